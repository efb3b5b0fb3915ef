"""System calls that Python has no wrapper for, or none that returns the errno as a value."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import NamedTuple

from .uapi import Syscall

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_uint]
libc.vmsplice.restype = ctypes.c_ssize_t
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
libc.syscall.restype = ctypes.c_long

MAP_FAILED = ctypes.c_void_p(-1).value


class Result(NamedTuple):
    """What a system call answered: `value` (0 or more) where it succeeded, else -1 and its `errno`."""

    value: int
    errno: int

    @property
    def ok(self) -> bool:
        """The call succeeded."""
        return self.errno == 0

    def or_raise(self, what: str) -> int:
        """`value`; OSError with `what` in its text where the call failed."""
        if self.errno:
            raise OSError(self.errno, f"{what}: {os.strerror(self.errno)}")
        return self.value


def result(value: int) -> Result:
    """The return value of a C function that sets errno where it is -1."""
    return Result(value, 0) if value != -1 else Result(-1, ctypes.get_errno())


def errno_name(number: int) -> str:
    """`ENOENT` for 2; `0` for 0; the number itself where it has no name."""
    return errno.errorcode.get(number, str(number))


def ioctl(fd: int, request: int, argument: int | ctypes.Array[ctypes.c_char] | None) -> Result:
    """ioctl(2) on the structure at `argument` (an address or a ctypes buffer)."""
    return result(libc.ioctl(fd, request, argument))


def syscall(number: Syscall, *arguments: int) -> Result:
    """A system call by its number. Every argument is passed as a long."""
    return result(libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


def userfaultfd(flags: int) -> Result:
    """userfaultfd(2): a new descriptor, or EPERM, EMFILE, ENOSYS..."""
    return syscall(Syscall.USERFAULTFD, flags)


def process_name(pid: int) -> str:
    """`firefox (1234)`, or `process 1234` where its name can't be read."""
    try:
        with open(f"/proc/{pid or 'self'}/comm", errors="replace") as file:
            return f"{file.read().strip()} ({pid or os.getpid()})"
    except OSError:
        return f"process {pid}"
