"""Compressed files in zstd's seekable format: frames of a fixed amount of data, each compressed by itself, and a table at the end.

Any zstd reads such a file as a whole (`zstd -d`); t2sz, pyzstd and others write it. The format: zstd_seekable_compression_format.md,
version 0.1.0, in zstd's contrib/seekable_format.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any

from .chunked import ChunkedSource, ChunkedStore
from .extras import load

_SKIPPABLE = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_SKIPPABLE_MAGIC, _SEEKABLE_MAGIC = 0x184D2A5E, 0x8F92EAB1
_HAS_CHECKSUMS = 0x80

FRAME_BYTES = 256 << 10
"""How much data a frame holds unless told otherwise."""
FRAME_BYTES_MAX = 64 << 20
"""A frame is decompressed whole for any byte of it, so larger ones are refused."""


@dataclass(frozen=True)
class Table:
    """Where frames start, compressed in the file and decompressed in the data, each with one entry more for the end; in bytes."""

    compressed: array[int]
    decompressed: array[int]

    @staticmethod
    def of(sizes: Iterable[tuple[int, int]]) -> Table:
        """From each frame's (compressed, decompressed) size."""
        pairs = list(sizes)
        return Table(*(array("Q", accumulate((pair[which] for pair in pairs), initial=0)) for which in (0, 1)))

    @staticmethod
    def read(fd: int) -> Table:
        """Raises ValueError for a file without one."""
        end = os.lseek(fd, 0, os.SEEK_END)
        remedy = "compress it anew with userfault.paging.zstd.compress_file or t2sz"
        tail = os.pread(fd, _FOOTER.size, max(0, end - _FOOTER.size))
        count, descriptor, magic = _FOOTER.unpack(tail) if len(tail) == _FOOTER.size else (0, 0, 0)
        if magic != _SEEKABLE_MAGIC:
            raise ValueError(f"it has no seek table, so it can't be read at an offset: {remedy}")
        entry = struct.Struct("<III" if descriptor & _HAS_CHECKSUMS else "<II")
        size = entry.size * count + _FOOTER.size
        table = os.pread(fd, _SKIPPABLE.size + size, max(0, end - size - _SKIPPABLE.size))
        if len(table) != _SKIPPABLE.size + size or _SKIPPABLE.unpack_from(table) != (_SKIPPABLE_MAGIC, size):
            raise ValueError(f"its seek table is damaged: {remedy}")
        found = Table.of(row[:2] for row in entry.iter_unpack(table[_SKIPPABLE.size : -_FOOTER.size]))
        if found.compressed[-1] + len(table) != end:
            raise ValueError(f"its seek table does not fit its length: {remedy}")
        largest = max((b - a for a, b in zip(found.decompressed, found.decompressed[1:], strict=False)), default=0)
        if largest > FRAME_BYTES_MAX:
            raise ValueError(
                f"it has a frame of {largest} bytes, more than {FRAME_BYTES_MAX}: {remedy}, with smaller frames"
            )
        return found

    def pack(self) -> bytes:
        """As it stands in a file."""
        count = len(self.compressed) - 1
        entries = array("I")
        for index in range(count):
            entries.append(self.compressed[index + 1] - self.compressed[index])
            entries.append(self.decompressed[index + 1] - self.decompressed[index])
        packed = struct.pack(f"<{2 * count}I", *entries) + _FOOTER.pack(count, 0, _SEEKABLE_MAGIC)
        return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(packed)) + packed


class ZstdSource(ChunkedSource):
    """The data of a seekable zstd file. Raises SourceError where it has no seek table."""

    _flags = os.O_RDONLY

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Links are followed once: a store replaces the file that they lead to.
        self.path = os.path.realpath(path)
        self.name = self.path
        self._fd = -1

    def acquire(self) -> None:
        self._zstd = load("zstandard", "zstd")
        self.open_cache()
        self._io_lock = threading.Lock()
        self._of_thread = threading.local()
        self._fd = os.open(self.path, self._flags | os.O_CLOEXEC)
        self._table = Table.read(self._fd)
        self.size_bytes = self._table.decompressed[-1]

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def chunk_at(self, offset_bytes: int) -> tuple[int, int, int]:
        starts = self._table.decompressed
        index = bisect_right(starts, offset_bytes) - 1
        return index, starts[index], starts[index + 1]

    def read_chunk(self, index: int) -> bytes:
        size = self._table.decompressed[index + 1] - self._table.decompressed[index]
        if not hasattr(self._of_thread, "decompressor"):
            self._of_thread.decompressor = self._zstd.ZstdDecompressor()
        decompressed: bytes = self._of_thread.decompressor.decompress(self._frame(index), max_output_size=size)
        return decompressed

    def _frame(self, index: int) -> bytes:
        # Under the lock, because a flush replaces the file.
        with self._io_lock:
            start, end = self._table.compressed[index], self._table.compressed[index + 1]
            return os.pread(self._fd, end - start, start)


class ZstdStore(ZstdSource, ChunkedStore):
    """The same, written back. A flush writes the whole file anew, with the unchanged frames copied as they are, and renames it into place:
    a crash leaves the old one or the new one. That costs time in proportion to the compressed file, so flush seldom, or use a Blosc2Store.
    """

    sync_is_atomic = True

    def __init__(self, path: str | os.PathLike[str], *, level: int = 3) -> None:
        super().__init__(path)
        self.level = level

    def acquire(self) -> None:
        super().acquire()
        # What was written since the last flush lies in a file without a name, which a crash removes.
        self._side: IO[bytes] = tempfile.TemporaryFile(dir=os.path.dirname(self.path), buffering=0)  # noqa: SIM115
        self._pending: dict[int, tuple[int, int]] = {}
        self._sync_lock = threading.Lock()

    def release(self) -> None:
        super().release()
        if hasattr(self, "_side"):
            self._side.close()

    def write_chunk(self, index: int, data: bytearray) -> None:
        if not hasattr(self._of_thread, "compressor"):
            self._of_thread.compressor = _compressor(self._zstd, self.level)
        frame = self._of_thread.compressor.compress(data)
        with self._io_lock:
            start = self._side.seek(0, os.SEEK_END)
            _write_all(self._side.fileno(), frame)
            self._pending[index] = (start, len(frame))

    def sync_chunks(self) -> None:
        with self._sync_lock:
            with self._io_lock:
                pending, old = dict(self._pending), self._table
            if not pending:
                return
            fresh, table = self._rewritten(pending, old)
            with self._io_lock:
                os.close(self._fd)
                self._fd, self._table = fresh, table
                self._pending = {i: where for i, where in self._pending.items() if pending.get(i) != where}
                if not self._pending:
                    self._side.truncate(0)

    def _frame(self, index: int) -> bytes:
        with self._io_lock:
            where = self._pending.get(index)
            if where:
                return os.pread(self._side.fileno(), where[1], where[0])
        return super()._frame(index)

    def _rewritten(self, pending: dict[int, tuple[int, int]], old: Table) -> tuple[int, Table]:
        """A descriptor of the new file, in place and durable, and its table."""
        directory = os.path.dirname(self.path)
        fd, name = tempfile.mkstemp(prefix=f".{os.path.basename(self.path)}.", dir=directory)
        try:
            was = os.fstat(self._fd)
            with suppress(PermissionError):
                os.fchown(fd, was.st_uid, was.st_gid)
            os.fchmod(fd, was.st_mode & 0o7777)
            count, sizes, index = len(old.compressed) - 1, list[tuple[int, int]](), 0
            for index in range(count):
                start, size = old.compressed[index], old.compressed[index + 1] - old.compressed[index]
                origin = self._fd
                if index in pending:
                    (start, size), origin = pending[index], self._side.fileno()
                _copy(origin, start, size, fd)
                sizes.append((size, old.decompressed[index + 1] - old.decompressed[index]))
            table = Table.of(sizes)
            _write_all(fd, table.pack())
            os.fsync(fd)
            os.replace(name, self.path)
            _sync_directory(directory)
            return fd, table
        except BaseException:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise


def compress_file(
    source: str | os.PathLike[str], path: str | os.PathLike[str], *, frame_bytes: int = FRAME_BYTES, level: int = 3
) -> None:
    """Compress the file `source` into the seekable zstd file `path`, which appears only when it is complete.

    `frame_bytes` of data go into each frame: any access costs the decompression of one. Raises OSError, ValueError,
    ModuleNotFoundError without zstandard.
    """
    if not 1 <= frame_bytes <= FRAME_BYTES_MAX:
        raise ValueError(f"frame_bytes={frame_bytes}: it lies between 1 and {FRAME_BYTES_MAX}")
    compressor = _compressor(load("zstandard", "zstd"), level)
    directory = os.path.dirname(os.path.abspath(path))
    with open(source, "rb") as data, tempfile.NamedTemporaryFile(dir=directory, delete=False) as target:
        try:
            sizes = []
            while piece := data.read(frame_bytes):
                frame = compressor.compress(piece)
                target.write(frame)
                sizes.append((len(frame), len(piece)))
            target.write(Table.of(sizes).pack())
            target.flush()
            os.fchmod(target.fileno(), os.fstat(data.fileno()).st_mode & 0o777)
            os.fsync(target.fileno())
            os.replace(target.name, path)
            _sync_directory(directory)
        except BaseException:
            os.unlink(target.name)
            raise


def _compressor(zstandard: Any, level: int) -> Any:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)


def _copy(origin: int, start: int, size_bytes: int, target: int) -> None:
    done = 0
    while done < size_bytes:
        try:
            count = os.copy_file_range(origin, target, size_bytes - done, start + done)
        except OSError:
            # Some file systems do not know it.
            count = os.write(target, os.pread(origin, min(size_bytes - done, 1 << 20), start + done))
        if not count:
            raise EOFError("the file became shorter while it was copied")
        done += count


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
