"""The process in which operations are done to the kernel: what is set up before the first one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from .operations import CONTEXT_FD

SYS_USERFAULTFD, PR_SET_THP_DISABLE = 323, 41
UFFDIO_API, UFFD_API = 0xC018AA3F, 0xAA
FEATURES = 1 << 7
"""UFFD_FEATURE_SIGBUS: nobody resolves faults here, so that a touch of a missing page must not wait for it."""
CONTEXTS = 2


def prepare() -> None:
    """In the agent's process: one CPU, no huge pages, two userfaultfds. Raises OSError."""
    # Batches of pages that are on their way to the LRU lists are kept by CPU.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")
    for number in range(CONTEXTS):
        fd = libc.syscall(SYS_USERFAULTFD, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("<QQQ", UFFD_API, FEATURES, 0)))
        os.dup2(fd, CONTEXT_FD + number)
        os.close(fd)
