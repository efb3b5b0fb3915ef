"""What /proc shows of pages: pagemap, PAGEMAP_SCAN, kpagecount and kpageflags (Documentation/admin-guide/mm/pagemap.rst).

Each is read as whole ranges, as cheaply as Python can: entries stay plain 64-bit words until somebody asks what one means.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from ctypes import addressof, sizeof
from functools import cache
from itertools import groupby
from types import TracebackType
from typing import NamedTuple, Self

from .errors import KernelError, Unavailable, limit_met
from .syscalls import ioctl, process_name
from .uapi import (
    ANON_EXCLUSIVE,
    PAGE_SIZE_BYTES,
    PM_PFN_MASK,
    PM_SWAP_OFFSET_SHIFT,
    PM_SWAP_TYPE_MASK,
    Ioctl,
    PageBit,
    PageFlag,
    PageIs,
    ScanFlag,
    page_region,
    pm_scan_arg,
)

_PRESENT, _SWAP = int(PageBit.PRESENT), int(PageBit.SWAP)
_LETTERS = (
    (PageBit.PRESENT, "P"),
    (PageBit.SWAP, "S"),
    (PageBit.FILE, "F"),
    (PageBit.GUARD_REGION, "G"),
    (PageBit.UFFD_WP, "W"),
    (PageBit.MMAP_EXCLUSIVE, "X"),
    (PageBit.SOFT_DIRTY, "D"),
)


class Entry(int):
    """An entry of a pagemap: the word itself, and what it means. 0 is a page that was never there, or is not there any more."""

    @property
    def present(self) -> bool:
        """In memory, and mapped."""
        return bool(self & _PRESENT)

    @property
    def swapped(self) -> bool:
        """A swap entry: a page in swap, one that is being migrated, or a marker (uffd-wp, poison, guard)."""
        return bool(self & _SWAP)

    @property
    def bits(self) -> PageBit:
        """Everything but the frame number or the swap slot."""
        return PageBit(self & ~PM_PFN_MASK & ~(0b11 << 59))

    @property
    def mapped_once(self) -> bool:
        """Bit 56: one process maps it, once. That is not the exclusive ownership that UFFDIO_MOVE asks for: see `Frames.flags`."""
        return bool(self & int(PageBit.MMAP_EXCLUSIVE))

    @property
    def uffd_wp(self) -> bool:
        """Write-protected by a userfaultfd; with `swapped` and slot 0, a marker of that on no page."""
        return bool(self & int(PageBit.UFFD_WP))

    @property
    def pfn(self) -> int | None:
        """The number of its page frame; None where it has none, or where it is hidden (no CAP_SYS_ADMIN)."""
        return self & PM_PFN_MASK or None if self & _PRESENT else None

    @property
    def swap_slot(self) -> tuple[int, int] | None:
        """Of a swapped page: the number of the swap device and the offset on it, in pages. (0, 0) where that is hidden."""
        if not self & _SWAP:
            return None
        return self & PM_SWAP_TYPE_MASK, (self & PM_PFN_MASK) >> PM_SWAP_OFFSET_SHIFT

    @property
    def letters(self) -> str:
        """P present, S swapped or a marker, F file or shared, G guard, W uffd-wp, X mapped once, D soft-dirty; `-` for none."""
        return "".join(letter for bit, letter in _LETTERS if self & bit) or "-"


class Region(NamedTuple):
    """A run of pages with the same categories, [start, end) in bytes."""

    start: int
    end: int
    categories: PageIs


class Pagemap:
    """/proc/PID/pagemap, kept open; a context manager. pid: 0 for this process, also after a fork.

    Raises Unavailable where there is no such process, or this user may not look into it (PTRACE_MODE_READ).
    """

    def __init__(self, pid: int = 0) -> None:
        self.pid = pid
        path = f"/proc/{pid or 'self'}/pagemap"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise limit_met(error) or Unavailable(
                f"{path}: {os.strerror(error.errno or errno.EIO)}", _whose(pid, error)
            ) from error

    def words(self, address: int, length: int) -> memoryview:
        """The entries of a range as 64-bit words, one a page. Shorter than asked for where the address space ends, or the process did."""
        first = address // PAGE_SIZE_BYTES
        count = -(-(address + length) // PAGE_SIZE_BYTES) - first
        if first < 0 or count < 0 or address + length > 1 << 64:
            raise KernelError(f"pagemap of [{address:#x}, {address + length:#x}): that is outside any address space")
        return memoryview(os.pread(self._fd, count * 8, first * 8)).cast("Q")

    def entries(self, address: int, length: int) -> list[Entry]:
        """The entries of a range, one a page."""
        return [Entry(word) for word in self.words(address, length)]

    def entry(self, address: int) -> Entry:
        """The entry of the page at `address`."""
        words = self.words(address, 1)
        return Entry(words[0] if words else 0)

    def scan(
        self,
        start: int,
        end: int,
        *,
        all_of: PageIs = PageIs(0),  # noqa: B008 (a constant)
        any_of: PageIs = PageIs(0),  # noqa: B008
        inverted: PageIs = PageIs(0),  # noqa: B008
        report: PageIs | None = None,
        flags: ScanFlag = ScanFlag(0),  # noqa: B008
        max_pages: int = 0,
    ) -> list[Region]:
        """ioctl PAGEMAP_SCAN: the runs of pages in [start, end) that have `all_of` the categories and one `of any_of`, in order.

        inverted: categories that are turned round before they are compared. report: the categories that the answer tells, and tells
        apart; None: all that this kernel knows. flags: WP_MATCHING protects what it reports, in one step (this process only, where
        it is registered with WP_ASYNC). max_pages: stop after so many. A page that has none of the categories is reported only where
        nothing is asked for.

        Raises OSError: ENOTTY from a kernel that has no such ioctl (it came with v6.7), EINVAL for a category that this kernel does
        not know, EPERM where WP_MATCHING meets memory that is not registered.
        """
        vector = (page_region * min(512, max(1, (end - start) // PAGE_SIZE_BYTES)))()
        argument = pm_scan_arg(
            size=sizeof(pm_scan_arg),
            flags=int(flags),
            start=start,
            end=end,
            vec=addressof(vector),
            vec_len=len(vector),
            max_pages=max_pages,
            category_inverted=int(inverted),
            category_mask=int(all_of),
            category_anyof_mask=int(any_of),
            return_mask=int(known_categories() if report is None else report),
        )
        found: list[Region] = []
        while True:
            count = ioctl(self._fd, Ioctl.PAGEMAP_SCAN, addressof(argument)).or_raise(
                f"PAGEMAP_SCAN of [{argument.start:#x}, {end:#x})"
            )
            for each in vector[:count]:
                if found and found[-1].end == each.start and found[-1].categories == each.categories:
                    found[-1] = Region(found[-1].start, each.end, found[-1].categories)
                else:
                    found.append(Region(each.start, each.end, PageIs(each.categories)))
            if max_pages:
                argument.max_pages = max_pages - sum(each.end - each.start for each in found) // PAGE_SIZE_BYTES
            if argument.walk_end >= end or (max_pages and argument.max_pages <= 0):
                return found
            argument.start = argument.walk_end

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Frames:
    """/proc/kpagecount and /proc/kpageflags: page frames, whoever maps them; a context manager.

    Raises Unavailable without CAP_SYS_ADMIN, or on a kernel without CONFIG_PROC_PAGE_MONITOR.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        try:
            for name in ("kpagecount", "kpageflags"):
                self._fds.append(os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            remedy = "this kernel lacks CONFIG_PROC_PAGE_MONITOR" if error.errno == errno.ENOENT else "run as root"
            raise limit_met(error) or Unavailable(f"{error.filename}: {error.strerror}", remedy) from error

    def count(self, pfn: int) -> int:
        """How many page-table entries map this frame (of the zero page: 0)."""
        return int.from_bytes(os.pread(self._fds[0], 8, pfn * 8), "little")

    def flags(self, pfn: int) -> PageFlag:
        """Its flags. Of an anonymous page, bit OWNER_2 (`ANON_EXCLUSIVE`) says that one process owns it alone, since v5.19."""
        return PageFlag(int.from_bytes(os.pread(self._fds[1], 8, pfn * 8), "little"))

    def counts_of(self, pfns: Iterable[int]) -> dict[int, int]:
        """Map counts of many frames, read in as few pieces as they make."""
        return self._read(0, pfns)

    def flags_of(self, pfns: Iterable[int]) -> dict[int, int]:
        """Flags of many frames as plain words (`PageFlag` says what they mean)."""
        return self._read(1, pfns)

    def _read(self, which: int, pfns: Iterable[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for _, run in groupby(enumerate(sorted(set(pfns))), lambda each: each[1] - each[0]):
            frames = [pfn for _, pfn in run]
            data = os.pread(self._fds[which], 8 * len(frames), 8 * frames[0])
            found.update(zip(frames, memoryview(data).cast("Q"), strict=False))
        return found

    def close(self) -> None:
        """Close the files; closing twice is fine."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def known_categories() -> PageIs:
    """The categories that this kernel's PAGEMAP_SCAN knows, found out by asking for them; none where it has no such ioctl."""
    with Pagemap() as own:
        known = PageIs(0)
        for each in PageIs:
            try:
                own.scan(0, PAGE_SIZE_BYTES, report=each)
            except OSError:
                continue
            known |= each
        return known


def flag_names(flags: int) -> list[str]:
    """The names of page flags, with ANON_EXCLUSIVE for what OWNER_2 means of an anonymous page."""
    names = [str(flag.name) for flag in PageFlag if flags & flag]
    if flags & PageFlag.ANON and flags & ANON_EXCLUSIVE:
        names[names.index("OWNER_2")] = "ANON_EXCLUSIVE"
    return names


def _whose(pid: int, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return f"there is no process {pid}, or the kernel lacks CONFIG_PROC_PAGE_MONITOR"
    return f"{process_name(pid)} may not be looked into: run as root (CAP_SYS_PTRACE)"
