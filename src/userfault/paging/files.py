"""A file as source or store, through the page cache or past it (O_DIRECT)."""

from __future__ import annotations

import mmap
import os
import stat

from .source import NativeKind, NativeSource, Source, Store

DIRECT_ALIGNMENT_BYTES = 4096
"""What every disk's O_DIRECT is content with for offset, length and address (open(2), NOTES)."""


class FileSource(Source):
    """The `size_bytes` bytes from `offset_bytes` on of a regular file or block device; by default up to its end.

    `direct` reads past the page cache: nothing is cached twice, and nothing is read ahead. Its `offset_bytes` must be a multiple of
    4096. A file that becomes shorter while it is read makes the read of the missing part fail with EOFError.
    """

    parallel_count = 64
    in_worker = False
    _flags = os.O_RDONLY

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        direct: bool = False,
    ) -> None:
        if offset_bytes < 0 or (size_bytes is not None and size_bytes < 0):
            raise ValueError(f"offset_bytes={offset_bytes}, size_bytes={size_bytes}: neither can be negative")
        if direct and offset_bytes % DIRECT_ALIGNMENT_BYTES:
            raise ValueError(
                f"offset_bytes={offset_bytes} with direct=True: O_DIRECT reads from multiples of {DIRECT_ALIGNMENT_BYTES}; "
                "use direct=False, or page the file from its start"
            )
        # Made absolute here, because the directory may be another one when it is opened.
        self.path = os.path.abspath(path)
        self.name = self.path
        self.direct = direct
        self._offset_bytes, self._wanted_bytes = offset_bytes, size_bytes
        self._fd = -1

    def acquire(self) -> None:
        # O_NONBLOCK: opening a FIFO must not wait for its writer. It means nothing to regular files.
        flags = self._flags | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if self.direct else 0)
        try:
            self._fd = os.open(self.path, flags)
        except OSError as error:
            if self.direct and os.access(self.path, os.R_OK):
                error.add_note(f"the file system of {self.path} may not support O_DIRECT: use direct=False")
            raise
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OSError(f"{self.path} is neither a regular file nor a block device, so it can't be read at an offset")
        end_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        left_bytes = max(0, end_bytes - self._offset_bytes)
        if self._wanted_bytes is not None and self._wanted_bytes > left_bytes:
            raise EOFError(
                f"{self._wanted_bytes} bytes from offset {self._offset_bytes} were asked for, {self.path} ends at {end_bytes}"
            )
        self.size_bytes = left_bytes if self._wanted_bytes is None else self._wanted_bytes

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if self.direct:
            self._read_direct(offset_bytes, view)
        else:
            self._pread(offset_bytes, view)

    def native(self) -> NativeSource:
        alignment_bytes = DIRECT_ALIGNMENT_BYTES if self.direct else 1
        return NativeSource(
            NativeKind.FILE, self.size_bytes, self._fd, self._offset_bytes, self.direct, alignment_bytes
        )

    def _pread(self, offset_bytes: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(self._fd, [view[done:]], self._offset_bytes + offset_bytes + done)
            if not count:
                raise EOFError(f"{self.path} became shorter while it was in use")
            done += count

    def _read_direct(self, offset_bytes: int, view: memoryview) -> None:
        start = offset_bytes // DIRECT_ALIGNMENT_BYTES * DIRECT_ALIGNMENT_BYTES
        end = -(-(offset_bytes + len(view)) // DIRECT_ALIGNMENT_BYTES) * DIRECT_ALIGNMENT_BYTES
        with mmap.mmap(-1, end - start) as blocks, memoryview(blocks) as bounce:
            done, needed = 0, offset_bytes - start + len(view)
            while done < needed:
                with bounce[done:] as rest:
                    count = os.preadv(self._fd, [rest], self._offset_bytes + start + done)
                done += count
                if not count or (done < needed and count % DIRECT_ALIGNMENT_BYTES):
                    raise EOFError(f"{self.path} became shorter while it was in use")
            view[:] = bounce[offset_bytes - start : needed]


class FileStore(FileSource, Store):
    """A file that is written back in place, through the page cache.

    Pages are written one by one: a crash leaves each of them old or new as far as the file system keeps a page whole.
    """

    _flags = os.O_RDWR

    def __init__(self, path: str | os.PathLike[str], *, offset_bytes: int = 0, size_bytes: int | None = None) -> None:
        super().__init__(path, offset_bytes=offset_bytes, size_bytes=size_bytes)

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwritev(self._fd, [view[done:]], self._offset_bytes + offset_bytes + done)

    def sync(self) -> None:
        os.fdatasync(self._fd)
