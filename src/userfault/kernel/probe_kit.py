"""What the probes have in common."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from . import memory
from .errors import Unavailable
from .machine import THP, machine, setting
from .maps import vma_at
from .memory import Mapping
from .probe import Missing, Unclear
from .syscalls import Result, errno_name
from .uapi import (
    PAGE_SIZE_BYTES,
    Advice,
    Feature,
)
from .userfaultfd import Message, Pagefault, Userfault, supported_features

PAGE = PAGE_SIZE_BYTES
NOBODY = 65534
NEWER = "run a newer kernel"
ROOT = "run as root"


HUGETLB_FLAGS = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | 0x40000
"""mmap(2): anonymous memory of hugetlbfs."""


def ok(answer: Result | object, what: str, since: str = "") -> None:
    """Raise Missing where the answer is an error; `since`: the version that brought the call."""
    number = getattr(answer, "errno", 0)
    if number:
        remedy = f"{NEWER} ({what} came with v{since})" if since else f"{NEWER}, or {ROOT}"
        if number == errno.EPERM:
            remedy = ROOT
        raise Missing(f"{what}: {errno_name(number)}", remedy)


def has(feature: Feature, since: str) -> None:
    """Raise Missing where this kernel does not offer the feature."""
    if not supported_features() & feature:
        with suppress(OSError), Userfault():
            raise Missing(f"this kernel does not offer UFFD_FEATURE_{feature.name}", f"{NEWER} (it came with v{since})")
        raise Missing("no userfaultfd", "see the first lines")


def leaked() -> Mapping:
    """Memory that a thread may still wait in when the probe is done: only the child's end takes it away."""
    return Mapping(PAGE)


def touch(work: Callable[[], object]) -> threading.Thread:
    """Do something in a thread that may wait for ever."""
    # It may wait for ever: the child that runs this ends without it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def message(uffd: Userfault) -> Message:
    """The next message of a userfaultfd."""
    assert uffd.wait(5), "nothing is reported"
    return uffd.read()[0]


def fault(uffd: Userfault, work: Callable[[], object]) -> Pagefault:
    """The page fault that the work in a thread makes."""
    touch(work)
    told = message(uffd)
    assert isinstance(told, Pagefault), told
    return told


def event(feature: Feature, act: Callable[[Mapping], object]) -> str:
    """Ask for an event of a registered page, and say what came when `act` was done to it."""
    has(feature, "4.11")
    area = leaked()
    with Userfault(feature) as uffd:
        ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        touch(lambda: act(area))
        told = message(uffd)
        assert not isinstance(told, Pagefault), told
        return f"reported ({type(told).__name__.lower()})"


def moves(src: Mapping, dst: Mapping, length: int) -> None:
    """Move pages, or raise Missing."""
    with Userfault(Feature.SIGBUS) as uffd:
        ok(uffd.register(dst.address, length), "UFFDIO_REGISTER")
        ok(uffd.move_all(dst.address, src.address, length), "UFFDIO_MOVE")


def shared(contents: bytes = b"") -> Mapping:
    """A page of shared memory."""
    fd = os.memfd_create("probe")
    os.ftruncate(fd, PAGE)
    if contents:
        os.pwrite(fd, contents, 0)
    return Mapping(PAGE, flags=mmap.MAP_SHARED, fd=fd)


def size(area: Mapping, name: str) -> int:
    """A size of smaps (bytes) of the mapping."""
    vma = vma_at(area.address)
    return vma.sizes_bytes.get(name, 0) if vma else 0


def huge(area: Mapping) -> None:
    """Touch memory that should become a huge page; raise Missing or Unclear where it does not."""
    if not THP.is_dir():
        raise Missing("no transparent huge pages", "a kernel with CONFIG_TRANSPARENT_HUGEPAGE")
    area.tag_pages()
    if not size(area, "AnonHugePages"):
        enabled = setting(THP / "enabled")
        if enabled == "never":
            raise Missing("enabled: never", f"echo madvise > {THP}/enabled, as root")
        raise Unclear(
            f"enabled: {enabled}, but none was free", "echo 1 > /proc/sys/vm/compact_memory, as root, and again"
        )


def advised(advice: Advice, since: str) -> str:
    """Give an advice to a page of memory."""
    with Mapping(PAGE) as area:
        area.tag_pages()
        ok(area.madvise(advice), f"MADV_{advice.name}", since)
        return "done"


def private(kind: str) -> str:
    """Make a private swap device of this kind, and take it away."""
    if os.geteuid():
        raise Missing("swapon needs privilege", ROOT)
    try:
        with machine(timeout_s=2) as held:
            try:
                return f"{held.private_swap(1 << 20, kinds=(kind,)).kind}, tried and taken away"
            except Unavailable as error:
                raise Missing(error.reason, error.remedy) from error
    except Missing:
        raise
    except Unavailable as error:
        raise Unclear(error.reason, error.remedy) from error
