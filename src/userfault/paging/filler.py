"""Installs pages in another process's memory, through its userfaultfd."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time

from . import wire

_COPY = struct.Struct("=QQQQq")
_RANGE = struct.Struct("=QQ")
_UFFDIO_COPY = 0xC028AA03
_UFFDIO_WAKE = 0x8010AA02
_MODE_DONTWAKE, _MODE_WP = 1, 2
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")

EVENT_TIMEOUT_S = 5.0
"""How long the owner's fork, mremap or madvise may keep UFFDIO_COPY off before the fill is reported as failed."""


class Filler:
    """UFFDIO_COPY with its outcomes sorted: what is done, what is somebody else's work, what must be tried again (ioctl_userfaultfd(2))."""

    def __init__(self, uffd: int) -> None:
        self._uffd = uffd

    def fill(self, address: int, view: memoryview, flags: int) -> None:
        """Install `view` (whole pages) at `address`. Pages that are there already stay as they are, and their waiters are woken.

        Raises OSError: ENOENT where the range is no longer registered, ESRCH where the owner is gone, EAGAIN where it did not
        get through the owner's own changes to the mapping within EVENT_TIMEOUT_S.
        """
        mode = (_MODE_WP if flags & wire.WRITE_PROTECT else 0) | (_MODE_DONTWAKE if flags & wire.DONT_WAKE else 0)
        source = ctypes.addressof(ctypes.c_char.from_buffer(view))
        end_s = time.monotonic() + EVENT_TIMEOUT_S
        done, wait_s = 0, 20e-6
        while done < len(view):
            copied, number = self._copy(address + done, source + done, len(view) - done, mode)
            done += copied
            if number == errno.EEXIST:
                # Whoever installed that page may not have woken those who wait for it.
                if not mode & _MODE_DONTWAKE:
                    self._wake(address + done, _PAGE_BYTES)
                done += _PAGE_BYTES
            elif number == errno.EAGAIN and time.monotonic() < end_s:
                if not copied:
                    time.sleep(wait_s)
                    wait_s = min(2 * wait_s, 1e-2)
            elif number:
                raise OSError(number, f"UFFDIO_COPY to {address + done:#x}: {os.strerror(number)}")

    def _copy(self, address: int, source: int, length_bytes: int, mode: int) -> tuple[int, int]:
        """Bytes copied, and the errno that stopped it, or 0."""
        request = bytearray(_COPY.pack(address, source, length_bytes, mode, 0))
        try:
            fcntl.ioctl(self._uffd, _UFFDIO_COPY, request)
        except OSError as error:
            copied = _COPY.unpack(request)[4]
            return max(0, copied), error.errno or errno.EIO
        return length_bytes, 0

    def _wake(self, address: int, length_bytes: int) -> None:
        fcntl.ioctl(self._uffd, _UFFDIO_WAKE, _RANGE.pack(address, length_bytes))
