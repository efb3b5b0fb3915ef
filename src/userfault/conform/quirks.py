"""Where kernels of one era differ in what user space can see: found by trying, never by a version.

Each field's default is what Linux 6.18.44 does; `running()` is what the running kernel does. What a kernel lacks altogether is in
needs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from ..kernel import memory
from ..kernel.memory import Mapping
from ..kernel.pagemap import Frames, Pagemap
from ..kernel.uapi import PAGE_SIZE_BYTES as PAGE
from ..kernel.uapi import Advice, Feature, PageFlag, PageIs
from ..kernel.userfaultfd import Userfault
from . import needs
from . import words as w


@dataclass(frozen=True)
class Quirks:
    """How a kernel is modelled within the era v6.18."""

    holes_are_written: bool = True
    anon_shows_ksm: bool = False
    fills_replace_guards: bool = True
    without: frozenset[str] = frozenset()
    """The needs (needs.py) that the kernel does not meet."""

    @property
    def operations(self) -> frozenset[str]:
        """Those that sequences do without."""
        return frozenset(name for need in self.without for name in needs.NEEDS[need].operations)

    @property
    def compared(self) -> int:
        """The bits of a page's word that can be compared."""
        left = w.ALL
        for need in self.without:
            left &= ~needs.NEEDS[need].bits
        return left

    @property
    def lacking(self) -> Feature:
        """The features that userfaultfds do without."""
        return Feature(sum(needs.NEEDS[need].feature for need in self.without))


IN_THE_MODEL = ("fills_replace_guards",)
"""The quirks that are differences of the model's eras (model/era.py), by the same name; the others change what is shown."""


class Quirk(NamedTuple):
    """field: of Quirks; what: it does where that is True; seen: which kernels that we ran do, and which not; probe: how it is found.

    ask: does so. need: of needs.py, without which there is nothing to ask.
    """

    field: str
    what: str
    seen: str
    probe: str
    ask: Callable[[], bool]
    need: str = ""


def _holes_are_written() -> bool:
    with Mapping(2 * PAGE) as area, Pagemap() as pagemap:
        memory.store(area.address, b"1")
        regions = pagemap.scan(area.address, area.address + 2 * PAGE)
        return any(region.end > area.address + PAGE and region.categories & PageIs.WRITTEN for region in regions)


def _fills_replace_guards() -> bool:
    with Mapping(2 * PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        memory.store(area.address, b"1")
        uffd.register(area.address + PAGE, PAGE).or_raise("UFFDIO_REGISTER")
        memory.madvise(area.address + PAGE, PAGE, Advice.GUARD_INSTALL).or_raise("MADV_GUARD_INSTALL")
        return uffd.copy(area.address + PAGE, area.address, PAGE).ok


def _anon_shows_ksm() -> bool:
    with Mapping(PAGE) as area, Pagemap() as pagemap, Frames() as frames:
        memory.store(area.address, b"1")
        pfn = pagemap.entry(area.address).pfn
        return pfn is not None and bool(frames.flags_of([pfn])[pfn] & PageFlag.KSM)


QUIRKS = (
    Quirk(
        "holes_are_written",
        "PAGEMAP_SCAN calls holes below a page table, and all holes of areas registered for write-protection, written",
        "no: Debian 6.18.15; yes: 6.18.44, Debian 7.1.13",
        "PAGEMAP_SCAN of the hole beside a page that was touched",
        _holes_are_written,
        "pagemap-scan",
    ),
    Quirk(
        "anon_shows_ksm",
        "/proc/kpageflags has the KSM bit for every anonymous page",
        "yes: Debian 6.18.15; no: 6.18.44, Debian 7.1.13",
        "/proc/kpageflags of a page that was touched",
        _anon_shows_ksm,
    ),
    Quirk(
        "fills_replace_guards",
        "UFFDIO_COPY replaces guard regions (F-14)",
        "yes: 6.18.44, Debian 6.18.15; no: Debian 7.1.13 (EEXIST)",
        "UFFDIO_COPY to a guard",
        _fills_replace_guards,
        "guard",
    ),
)


@cache
def running() -> Quirks:
    """What the running kernel does. Raises OSError where it has no userfaultfd."""
    without = needs.left_out()
    answers = {quirk.field: quirk.ask() for quirk in QUIRKS if quirk.need not in without}
    return Quirks(**answers, without=without)


def lines(quirks: Quirks) -> list[str]:
    """A table for people: what the running kernel does, which others were seen to, and what it lacks."""

    def answer(quirk: Quirk) -> str:
        if quirk.need in quirks.without:
            return "not applicable"
        return "yes" if getattr(quirks, quirk.field) else "no"

    return [
        *(f"{answer(q):3s} {q.field}: {q.what} [{q.seen}; probe: {q.probe}]" for q in QUIRKS),
        *needs.lines(quirks.without),
    ]
