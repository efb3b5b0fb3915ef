"""The kernel's user-space interface as far as we use it: constants and structures in a table of our own.

Distributions ship headers older than the kernel that runs, so nothing is taken from them. `since` says with which mainline
version a name came, for people to read; whether the running kernel knows it is found out by trying (`probe.py`).
`native/uapi.h` is the same for the C core; tests/kernel/test_uapi.py compares the two.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from typing import Self

PAGE_SIZE_BYTES = 4096
HUGE_SIZE_BYTES = 2 << 20
"""What a PMD maps on x86-64 and on arm64 with 4 KiB pages."""

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282}
"""userfaultfd(2), which the C library has no wrapper for; by platform.machine()."""


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
    GUARD_INSTALL = 102, "6.13"
    GUARD_REMOVE = 103, "6.13"


USER_MODE_ONLY = 1
"""userfaultfd(2): only faults from user mode, which needs no privilege (since 5.11)."""


class uffdio_range(ctypes.Structure):
    _fields_ = [("start", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class uffdio_api(ctypes.Structure):
    _fields_ = [("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64)]


class uffdio_register(ctypes.Structure):
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("ioctls", ctypes.c_uint64)]


class uffdio_copy(ctypes.Structure):
    _fields_ = [
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("copy", ctypes.c_int64),
    ]


class uffdio_zeropage(ctypes.Structure):
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("zeropage", ctypes.c_int64)]


class uffdio_move(ctypes.Structure):
    _fields_ = [
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("move", ctypes.c_int64),
    ]


class uffdio_writeprotect(ctypes.Structure):
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64)]


class uffdio_continue(ctypes.Structure):
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("mapped", ctypes.c_int64)]


class uffdio_poison(ctypes.Structure):
    _fields_ = [("range", uffdio_range), ("mode", ctypes.c_uint64), ("updated", ctypes.c_int64)]


class pm_scan_arg(ctypes.Structure):
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
