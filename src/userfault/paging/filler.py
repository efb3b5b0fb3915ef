"""Installs pages in another process's memory, through its userfaultfd."""

from __future__ import annotations

import ctypes
import os

from ..kernel.uapi import CopyMode
from ..kernel.userfaultfd import Outcome, Userfault
from . import wire

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")

EVENT_TIMEOUT_S = 5.0
"""How long the owner's fork, mremap or madvise may keep UFFDIO_COPY off before the fill is reported as failed."""


class Filler:
    """UFFDIO_COPY through a descriptor that this process was handed (ioctl_userfaultfd(2))."""

    def __init__(self, uffd: int) -> None:
        self._userfault = Userfault(fd=uffd)

    def fill(self, address: int, view: memoryview, flags: int) -> None:
        """Install `view` (whole pages) at `address`. Pages that are there already stay as they are, and their waiters are woken.

        Raises OSError: ENOENT where the range is no longer registered, ESRCH where the owner is gone, EAGAIN where it did not
        get through the owner's own changes to the mapping within EVENT_TIMEOUT_S.
        """
        mode = CopyMode.WP if flags & wire.WRITE_PROTECT else 0
        source = ctypes.addressof(ctypes.c_char.from_buffer(view))
        done = 0
        while done < len(view):
            answer = self._userfault.copy_all(
                address + done, source + done, len(view) - done, mode, deadline_s=EVENT_TIMEOUT_S
            )
            done += answer.bytes
            if answer.outcome is Outcome.LOST_RACE:
                # Whoever installed that page may not have woken those who wait for it.
                self._userfault.wake(address + done, _PAGE_BYTES)
                done += _PAGE_BYTES
            elif not answer.ok:
                raise OSError(answer.errno, f"UFFDIO_COPY to {address + done:#x}: {os.strerror(answer.errno)}")
