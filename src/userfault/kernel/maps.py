"""/proc/PID/maps and smaps: the mappings of a process, with their sizes and VmFlags (proc_pid_smaps(5))."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .errors import Unavailable, limit_met

VM_FLAGS = {
    "rd": "readable",
    "wr": "writable",
    "ex": "executable",
    "sh": "shared",
    "mr": "may read",
    "mw": "may write",
    "me": "may execute",
    "ms": "may share",
    "gd": "grows down",
    "pf": "pure PFN range",
    "lo": "locked",
    "lf": "locked on fault",
    "io": "I/O memory",
    "sr": "sequential read",
    "rr": "random read",
    "dc": "not copied by fork",
    "de": "does not expand",
    "ac": "accounted",
    "nr": "no swap reserved",
    "ht": "hugetlb",
    "sf": "synchronous fault",
    "ar": "architecture specific",
    "wf": "wiped by fork",
    "dd": "not dumped",
    "sd": "soft-dirty",
    "mm": "mixed map",
    "hg": "huge pages advised",
    "nh": "no huge pages",
    "mg": "mergeable",
    "bt": "BTI guarded",
    "mt": "MTE tags",
    "um": "userfaultfd missing",
    "uw": "userfaultfd write-protect",
    "ui": "userfaultfd minor",
    "ss": "shadow stack",
    "sl": "sealed",
    "dp": "droppable",
    "gu": "may have guard regions",
}
"""The two letters of a VmFlags line, in words."""


@dataclass(frozen=True)
class Vma:
    """A mapping, [start, end) in bytes. sizes_bytes and vm_flags are of smaps, empty where only maps was read."""

    start: int
    end: int
    permissions: str
    offset_bytes: int
    device: str
    inode: int
    name: str
    sizes_bytes: dict[str, int] = field(default_factory=dict)
    vm_flags: frozenset[str] = frozenset()

    @property
    def anonymous(self) -> bool:
        """No file behind it, and private."""
        return self.inode == 0 and self.permissions.endswith("p")

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end


def maps(pid: int = 0) -> list[Vma]:
    """The mappings of a process (0: this one), in order.

    Raises Unavailable where there is no such process, or this user may not look into it.
    """
    return [_vma(line) for line in _lines(pid, "maps")]


def smaps(pid: int = 0, start: int = 0, end: int = 1 << 64) -> list[Vma]:
    """The mappings that overlap [start, end), with sizes (bytes) and VmFlags. Reading it walks the page tables of all of them.

    Raises Unavailable as `maps`.
    """
    return [each for each in _blocks(_lines(pid, "smaps")) if each.start < end and each.end > start]


def vma_at(address: int, pid: int = 0) -> Vma | None:
    """The mapping at `address`, from smaps; None where nothing is mapped."""
    return next(iter(smaps(pid, address, address + 1)), None)


def _lines(pid: int, name: str) -> Iterator[str]:
    path = f"/proc/{pid or 'self'}/{name}"
    try:
        with open(path, errors="surrogateescape") as file:
            yield from file
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ESRCH)
        remedy = f"there is no process {pid} any more" if gone else "that process is not yours: run as root"
        raise limit_met(error) or Unavailable(f"{path}: {os.strerror(error.errno or errno.EIO)}", remedy) from error


def _vma(line: str) -> Vma:
    span, permissions, offset, device, inode, *name = line.rstrip("\n").split(maxsplit=5)
    start, end = (int(each, 16) for each in span.split("-"))
    return Vma(start, end, permissions, int(offset, 16), device, int(inode), name[0] if name else "")


def _blocks(lines: Iterator[str]) -> Iterator[Vma]:
    head: str | None = None
    sizes: dict[str, int] = {}
    flags: frozenset[str] = frozenset()
    for line in lines:
        key, colon, rest = line.partition(":")
        # A header's first word has no colon before its space.
        if not colon or " " in key:
            if head is not None:
                yield _with(head, sizes, flags)
            head, sizes, flags = line, {}, frozenset()
        elif key == "VmFlags":
            flags = frozenset(rest.split())
        elif rest.endswith("kB\n"):
            sizes[key] = int(rest.split()[0]) << 10
        else:
            sizes[key] = int(rest)
    if head is not None:
        yield _with(head, sizes, flags)


def _with(head: str, sizes: dict[str, int], flags: frozenset[str]) -> Vma:
    return replace(_vma(head), sizes_bytes=sizes, vm_flags=flags)
