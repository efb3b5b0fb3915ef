"""Where kernels of one era differ in what user space can see: found by trying, never by a version.

Each field's default is what Linux 6.18.44 does; `running()` is what the running kernel does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

from ..kernel import memory
from ..kernel.memory import Mapping
from ..kernel.pagemap import Frames, Pagemap, known_categories
from ..kernel.uapi import PAGE_SIZE_BYTES as PAGE
from ..kernel.uapi import Advice, Feature, PageFlag, PageIs
from ..kernel.userfaultfd import Userfault


@dataclass(frozen=True)
class Quirks:
    """How a kernel is modelled within the era v6.18."""

    holes_are_written: bool = True
    fills_replace_guards: bool = True
    anon_shows_ksm: bool = False
    has_guards: bool = True
    shows_guards: bool = True


class Quirk(NamedTuple):
    """field: of Quirks; what: it does where that is True; seen: which kernels that we ran do, and which not; probe: how it is found."""

    field: str
    what: str
    seen: str
    probe: str


QUIRKS = (
    Quirk(
        "holes_are_written",
        "PAGEMAP_SCAN calls holes below a page table, and all holes of areas registered for write-protection, written",
        "no: Debian 6.18.15; yes: 6.18.44, Debian 7.1.13",
        "PAGEMAP_SCAN of the hole beside a page that was touched",
    ),
    Quirk(
        "fills_replace_guards",
        "UFFDIO_COPY replaces guard regions (F-14)",
        "yes: 6.18.44, Debian 6.18.15; no: Debian 7.1.13 (EEXIST)",
        "UFFDIO_COPY to a guard",
    ),
    Quirk(
        "anon_shows_ksm",
        "/proc/kpageflags has the KSM bit for every anonymous page",
        "yes: Debian 6.18.15; no: 6.18.44, Debian 7.1.13",
        "/proc/kpageflags of a page that was touched",
    ),
    Quirk(
        "has_guards",
        "there are guard regions; without them sequences have no MADV_GUARD_*",
        "yes: 6.18.44, Debian 6.18.15, Debian 7.1.13; no: Debian 6.12.107",
        "MADV_GUARD_INSTALL",
    ),
    Quirk(
        "shows_guards",
        "PAGEMAP_SCAN has the category GUARD, pagemap its bit 58; without them they are not compared",
        "yes: 6.18.44, Debian 6.18.15, Debian 7.1.13; no: Debian 6.12.107",
        "PAGEMAP_SCAN that asks for it",
    ),
)


@cache
def running() -> Quirks:
    """What the running kernel does. Raises OSError where it has no userfaultfd."""
    with Mapping(2 * PAGE) as area:
        memory.store(area.address, b"1")
        with Pagemap() as pagemap:
            regions = pagemap.scan(area.address, area.address + 2 * PAGE)
            pfn = pagemap.entry(area.address).pfn
        with Frames() as frames:
            shown = pfn is not None and bool(frames.flags_of([pfn])[pfn] & PageFlag.KSM)
        written = any(region.end > area.address + PAGE and region.categories & PageIs.WRITTEN for region in regions)
    with Mapping(2 * PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        memory.store(area.address, b"1")
        uffd.register(area.address + PAGE, PAGE).or_raise("UFFDIO_REGISTER")
        guarded = memory.madvise(area.address + PAGE, PAGE, Advice.GUARD_INSTALL).ok
        replaced = guarded and uffd.copy(area.address + PAGE, area.address, PAGE).ok
    return Quirks(
        holes_are_written=written,
        fills_replace_guards=replaced,
        anon_shows_ksm=shown,
        has_guards=guarded,
        shows_guards=PageIs.GUARD in known_categories(),
    )


def lines(quirks: Quirks) -> list[str]:
    """A table for people: what the running kernel does, and which others were seen to."""
    answers = {each.name: getattr(quirks, each.name) for each in fields(quirks)}
    return [
        f"{'yes' if answers[q.field] else 'no':3s} {q.field}: {q.what} [{q.seen}; probe: {q.probe}]" for q in QUIRKS
    ]
