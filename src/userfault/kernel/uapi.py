"""The kernel's user-space interface as far as we use it: constants and structures in a table of our own.

Distributions ship headers older than the kernel that runs, so nothing is taken from them. `since` says with which mainline
version a name came, for people to read; whether the running kernel knows it is found out by trying (`probe.py`).
`native/uapi.h` is the same for the C core; tests/kernel/test_uapi.py compares the two.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import struct
from typing import Self

PAGE_SIZE_BYTES = os.sysconf("SC_PAGESIZE")
HUGE_SIZE_BYTES = PAGE_SIZE_BYTES * (PAGE_SIZE_BYTES // 8)
"""What a PMD maps: a page table's worth of pages (2 MiB where pages have 4 KiB)."""


class Dated(enum.IntFlag):
    """A flag that knows the mainline version that brought it."""

    since: str

    def __new__(cls, value: int, since: str = "") -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.since = since
        return member


class DatedNumber(enum.IntEnum):
    """A number that knows the mainline version that brought it."""

    since: str

    def __new__(cls, value: int, since: str = "") -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.since = since
        return member


def _here(x86_64: int, generic: int) -> int:
    """A system call's number on x86-64, or in the table that aarch64, riscv64 and loongarch64 share."""
    return x86_64 if platform.machine() == "x86_64" else generic


class Syscall(DatedNumber):
    """System calls that not every C library has a wrapper for: their numbers on this architecture."""

    USERFAULTFD = _here(323, 282), "4.3"
    MLOCK2 = _here(325, 284), "4.4"
    MOVE_PAGES = _here(279, 239), "2.6.18"
    KCMP = _here(312, 272), "3.5"
    PROCESS_VM_READV = _here(310, 270), "3.2"
    PROCESS_VM_WRITEV = _here(311, 271), "3.2"
    MEMFD_CREATE = _here(319, 279), "3.17"
    PIDFD_OPEN = 434, "5.3"
    PROCESS_MADVISE = 440, "5.10"
    PROCESS_MRELEASE = 448, "5.15"
    MSEAL = 462, "6.10"


class Feature(Dated):
    """UFFD_FEATURE_*: what UFFDIO_API can be asked for (ioctl_userfaultfd(2))."""

    PAGEFAULT_FLAG_WP = 1 << 0, "5.7"
    EVENT_FORK = 1 << 1, "4.11"
    EVENT_REMAP = 1 << 2, "4.11"
    EVENT_REMOVE = 1 << 3, "4.11"
    MISSING_HUGETLBFS = 1 << 4, "4.11"
    MISSING_SHMEM = 1 << 5, "4.11"
    EVENT_UNMAP = 1 << 6, "4.11"
    SIGBUS = 1 << 7, "4.14"
    THREAD_ID = 1 << 8, "4.14"
    MINOR_HUGETLBFS = 1 << 9, "5.13"
    MINOR_SHMEM = 1 << 10, "5.14"
    EXACT_ADDRESS = 1 << 11, "5.18"
    WP_HUGETLBFS_SHMEM = 1 << 12, "5.19"
    WP_UNPOPULATED = 1 << 13, "6.4"
    POISON = 1 << 14, "6.6"
    WP_ASYNC = 1 << 15, "6.7"
    MOVE = 1 << 16, "6.8"


class RegisterMode(Dated):
    """UFFDIO_REGISTER_MODE_*: which faults of a range come to the userfaultfd."""

    MISSING = 1 << 0, "4.3"
    WP = 1 << 1, "5.7"
    MINOR = 1 << 2, "5.13"


class CopyMode(Dated):
    """UFFDIO_COPY_MODE_*."""

    DONTWAKE = 1 << 0, "4.3"
    WP = 1 << 1, "5.7"


class ZeropageMode(Dated):
    """UFFDIO_ZEROPAGE_MODE_*."""

    DONTWAKE = 1 << 0, "4.3"


class MoveMode(Dated):
    """UFFDIO_MOVE_MODE_*."""

    DONTWAKE = 1 << 0, "6.8"
    ALLOW_SRC_HOLES = 1 << 1, "6.8"


class WriteprotectMode(Dated):
    """UFFDIO_WRITEPROTECT_MODE_*."""

    WP = 1 << 0, "5.7"
    DONTWAKE = 1 << 1, "5.7"


class ContinueMode(Dated):
    """UFFDIO_CONTINUE_MODE_*."""

    DONTWAKE = 1 << 0, "5.13"
    WP = 1 << 1, "6.4"


class PoisonMode(Dated):
    """UFFDIO_POISON_MODE_*."""

    DONTWAKE = 1 << 0, "6.6"


class Event(DatedNumber):
    """UFFD_EVENT_*: what can be read from a userfaultfd."""

    PAGEFAULT = 0x12, "4.3"
    FORK = 0x13, "4.11"
    REMAP = 0x14, "4.11"
    REMOVE = 0x15, "4.11"
    UNMAP = 0x16, "4.11"


class PagefaultFlag(Dated):
    """UFFD_PAGEFAULT_FLAG_*: what kind of fault it was; none of them: a read of a missing page."""

    WRITE = 1 << 0, "4.3"
    WP = 1 << 1, "5.7"
    MINOR = 1 << 2, "5.13"


class ScanFlag(Dated):
    """PM_SCAN_*: what ioctl PAGEMAP_SCAN does besides reporting."""

    WP_MATCHING = 1 << 0, "6.7"
    CHECK_WPASYNC = 1 << 1, "6.7"


class PageIs(Dated):
    """PAGE_IS_*: the categories of ioctl PAGEMAP_SCAN."""

    WPALLOWED = 1 << 0, "6.7"
    WRITTEN = 1 << 1, "6.7"
    FILE = 1 << 2, "6.7"
    PRESENT = 1 << 3, "6.7"
    SWAPPED = 1 << 4, "6.7"
    PFNZERO = 1 << 5, "6.7"
    HUGE = 1 << 6, "6.7"
    SOFT_DIRTY = 1 << 7, "6.7"
    GUARD = 1 << 8, "6.15"


class Advice(DatedNumber):
    """MADV_*: madvise(2)."""

    NORMAL = 0, "2.4"
    RANDOM = 1, "2.4"
    SEQUENTIAL = 2, "2.4"
    WILLNEED = 3, "2.4"
    DONTNEED = 4, "2.4"
    FREE = 8, "4.5"
    REMOVE = 9, "2.6.16"
    DONTFORK = 10, "2.6.16"
    DOFORK = 11, "2.6.16"
    MERGEABLE = 12, "2.6.32"
    UNMERGEABLE = 13, "2.6.32"
    HUGEPAGE = 14, "2.6.38"
    NOHUGEPAGE = 15, "2.6.38"
    DONTDUMP = 16, "3.4"
    DODUMP = 17, "3.4"
    WIPEONFORK = 18, "4.14"
    KEEPONFORK = 19, "4.14"
    COLD = 20, "5.4"
    PAGEOUT = 21, "5.4"
    POPULATE_READ = 22, "5.14"
    POPULATE_WRITE = 23, "5.14"
    DONTNEED_LOCKED = 24, "5.18"
    COLLAPSE = 25, "6.1"
    HWPOISON = 100, "2.6.32"
    SOFT_OFFLINE = 101, "2.6.33"
    GUARD_INSTALL = 102, "6.13"
    GUARD_REMOVE = 103, "6.13"


class RemapFlag(Dated):
    """MREMAP_*: mremap(2)."""

    MAYMOVE = 1, "2.4"
    FIXED = 2, "2.4"
    DONTUNMAP = 4, "5.7"


class LockFlag(Dated):
    """MLOCK_*: mlock2(2)."""

    ONFAULT = 1, "4.4"


class NodeFlag(Dated):
    """MPOL_MF_*: move_pages(2)."""

    MOVE = 1 << 1, "2.6.18"
    MOVE_ALL = 1 << 2, "2.6.18"


class Prctl(DatedNumber):
    """PR_*: prctl(2), about memory."""

    SET_THP_DISABLE = 41, "3.15"
    GET_THP_DISABLE = 42, "3.15"
    SET_MEMORY_MERGE = 67, "6.4"
    GET_MEMORY_MERGE = 68, "6.4"


class PageBit(Dated):
    """Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)."""

    SOFT_DIRTY = 1 << 55, "3.11"
    MMAP_EXCLUSIVE = 1 << 56, "4.2"
    UFFD_WP = 1 << 57, "5.14"
    GUARD_REGION = 1 << 58, "6.15"
    FILE = 1 << 61, "3.5"
    SWAP = 1 << 62, "2.6.25"
    PRESENT = 1 << 63, "2.6.25"


PM_PFN_MASK = (1 << 55) - 1
"""Of a present page the frame number, 0 without CAP_SYS_ADMIN; of a swapped one the swap device's number and the slot."""
PM_SWAP_TYPE_MASK = 0x1F
PM_SWAP_OFFSET_SHIFT = 5


class PageFlag(Dated):
    """Bits of an entry of /proc/kpageflags. From bit 32 on they are the kernel's own, and change their meaning as it does."""

    LOCKED = 1 << 0, "2.6.25"
    ERROR = 1 << 1, "2.6.25"
    REFERENCED = 1 << 2, "2.6.25"
    UPTODATE = 1 << 3, "2.6.25"
    DIRTY = 1 << 4, "2.6.25"
    LRU = 1 << 5, "2.6.25"
    ACTIVE = 1 << 6, "2.6.25"
    SLAB = 1 << 7, "2.6.25"
    WRITEBACK = 1 << 8, "2.6.25"
    RECLAIM = 1 << 9, "2.6.25"
    BUDDY = 1 << 10, "2.6.25"
    MMAP = 1 << 11, "2.6.31"
    ANON = 1 << 12, "2.6.31"
    SWAPCACHE = 1 << 13, "2.6.31"
    SWAPBACKED = 1 << 14, "2.6.31"
    COMPOUND_HEAD = 1 << 15, "2.6.31"
    COMPOUND_TAIL = 1 << 16, "2.6.31"
    HUGE = 1 << 17, "2.6.31"
    UNEVICTABLE = 1 << 18, "2.6.31"
    HWPOISON = 1 << 19, "2.6.31"
    NOPAGE = 1 << 20, "2.6.31"
    KSM = 1 << 21, "2.6.32"
    THP = 1 << 22, "3.4"
    OFFLINE = 1 << 23, "5.0"
    ZERO_PAGE = 1 << 24, "4.0"
    IDLE = 1 << 25, "4.3"
    PGTABLE = 1 << 26, "4.18"
    RESERVED = 1 << 32, "2.6.31"
    MLOCKED = 1 << 33, "2.6.31"
    OWNER_2 = 1 << 34, "2.6.31"
    PRIVATE = 1 << 35, "2.6.31"
    PRIVATE_2 = 1 << 36, "2.6.31"
    OWNER_PRIVATE = 1 << 37, "2.6.31"
    ARCH = 1 << 38, "2.6.31"
    UNCACHED = 1 << 39, "2.6.31"
    SOFTDIRTY = 1 << 40, "3.11"
    ARCH_2 = 1 << 41, "5.10"
    ARCH_3 = 1 << 42, "5.14"


ANON_EXCLUSIVE = PageFlag.OWNER_2
"""The same bit of an anonymous page: one process alone owns it (PG_anon_exclusive, since 5.19). UFFDIO_MOVE takes no others."""

UFFD_API = 0xAA
"""The API version that UFFDIO_API asks for: there is only one."""

MAP_DROPPABLE = 0x08
"""mmap(2): memory that the kernel may drop instead of swapping it (since 6.11)."""

USER_MODE_ONLY = 1
"""userfaultfd(2): only faults from user mode, which needs no privilege (since 5.11)."""


class uffdio_range(ctypes.Structure):
    """Argument of UFFDIO_UNREGISTER and UFFDIO_WAKE (bytes)."""

    _fields_ = [("start", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class uffdio_api(ctypes.Structure):
    """Argument of UFFDIO_API. features: in what is wanted, out all that the kernel has."""

    _fields_ = [("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64)]


class uffdio_register(ctypes.Structure):
    """Argument of UFFDIO_REGISTER. ioctls: out, what can be done to the range."""

    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("ioctls", ctypes.c_uint64)]


class uffdio_copy(ctypes.Structure):
    """Argument of UFFDIO_COPY. copy: out, bytes done or -errno; some refusals leave it as it was."""

    _fields_ = [
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("copy", ctypes.c_int64),
    ]


class uffdio_zeropage(ctypes.Structure):
    """Argument of UFFDIO_ZEROPAGE. zeropage: out, as `uffdio_copy.copy`."""

    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("zeropage", ctypes.c_int64)]


class uffdio_move(ctypes.Structure):
    """Argument of UFFDIO_MOVE. move: out, as `uffdio_copy.copy`."""

    _fields_ = [
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("move", ctypes.c_int64),
    ]


class uffdio_writeprotect(ctypes.Structure):
    """Argument of UFFDIO_WRITEPROTECT. It has no field for progress."""

    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64)]


class uffdio_continue(ctypes.Structure):
    """Argument of UFFDIO_CONTINUE. mapped: out, as `uffdio_copy.copy`."""

    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("mapped", ctypes.c_int64)]


class uffdio_poison(ctypes.Structure):
    """Argument of UFFDIO_POISON. updated: out, as `uffdio_copy.copy`."""

    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("updated", ctypes.c_int64)]


class pm_scan_arg(ctypes.Structure):
    """Argument of PAGEMAP_SCAN. vec_len counts regions; walk_end: out, where it stopped."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    ]


class page_region(ctypes.Structure):
    """A run of pages with the same categories, [start, end) in bytes."""

    _fields_ = [("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64)]


UFFD_MSG = struct.Struct("=B7xQQQ")
"""One message of a userfaultfd: the event, then three words whose meaning is the event's."""

IoctlStruct = type[ctypes.Structure]

_WRITE, _READ = 1, 2


def _ioc(direction: int, kind: int, number: int, argument: IoctlStruct | None) -> int:
    """An ioctl's number, as asm-generic/ioctl.h makes it (the architectures that differ have no userfaultfd users here)."""
    size_bytes = ctypes.sizeof(argument) if argument else 0
    return direction << 30 | size_bytes << 16 | kind << 8 | number


class Ioctl(DatedNumber):
    """The ioctls of a userfaultfd, of /dev/userfaultfd (NEW) and of /proc/PID/pagemap (PAGEMAP_SCAN)."""

    API = _ioc(_READ | _WRITE, 0xAA, 0x3F, uffdio_api), "4.3"
    REGISTER = _ioc(_READ | _WRITE, 0xAA, 0x00, uffdio_register), "4.3"
    UNREGISTER = _ioc(_READ, 0xAA, 0x01, uffdio_range), "4.3"
    WAKE = _ioc(_READ, 0xAA, 0x02, uffdio_range), "4.3"
    COPY = _ioc(_READ | _WRITE, 0xAA, 0x03, uffdio_copy), "4.3"
    ZEROPAGE = _ioc(_READ | _WRITE, 0xAA, 0x04, uffdio_zeropage), "4.3"
    MOVE = _ioc(_READ | _WRITE, 0xAA, 0x05, uffdio_move), "6.8"
    WRITEPROTECT = _ioc(_READ | _WRITE, 0xAA, 0x06, uffdio_writeprotect), "5.7"
    CONTINUE = _ioc(_READ | _WRITE, 0xAA, 0x07, uffdio_continue), "5.13"
    POISON = _ioc(_READ | _WRITE, 0xAA, 0x08, uffdio_poison), "6.6"
    NEW = _ioc(0, 0xAA, 0x00, None), "6.1"
    PAGEMAP_SCAN = _ioc(_READ | _WRITE, ord("f"), 16, pm_scan_arg), "6.7"

    @property
    def bit(self) -> int:
        """Its bit in the masks that UFFDIO_API and UFFDIO_REGISTER answer."""
        return 1 << (self & 0xFF)
