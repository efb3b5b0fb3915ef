"""Blosc2 containers (super-chunks, and arrays of one dimension): read, and written back chunk by chunk."""

from __future__ import annotations

import os
import threading
from typing import Any, Literal

from .chunked import ChunkedSource, ChunkedStore
from .extras import load


class Blosc2Source(ChunkedSource):
    """The bytes of a Blosc2 frame: a file (`.b2frame`, `.b2nd`) or a sparse directory of chunks.

    Blosc2 decompresses a chunk with threads of its own, and is asked for one chunk at a time. Raises SourceError for an array of more than
    one dimension, whose chunks are not in the order of its bytes.
    """

    parallel_count = 4
    _mode: Literal["r", "a"] = "r"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self.name = self.path
        self._frame: Any = None

    def acquire(self) -> None:
        blosc2 = load("blosc2", "blosc2")
        self.open_cache()
        self._blosc2_lock = threading.Lock()
        # An array's frame is freed with the array, whoever still holds it.
        opened = self._opened = blosc2.open(self.path, mode=self._mode)
        self._frame = getattr(opened, "schunk", opened)
        self.size_bytes = opened.nbytes
        self._chunk_bytes = self._stored_bytes = self._frame.chunksize
        if isinstance(opened, blosc2.NDArray):
            if opened.ndim != 1:
                raise ValueError(
                    f"it is an array of {opened.ndim} dimensions, whose chunks are not in the order of its bytes: "
                    "store it flat, as in blosc2.asarray(array.reshape(-1), urlpath=...)"
                )
            # Its chunks are stored as whole blocks.
            self._chunk_bytes = opened.chunks[0] * opened.dtype.itemsize

    def release(self) -> None:
        self._frame = self._opened = None

    def chunk_at(self, offset_bytes: int) -> tuple[int, int, int]:
        index = offset_bytes // self._chunk_bytes
        start = index * self._chunk_bytes
        return index, start, min(start + self._chunk_bytes, self.size_bytes)

    def read_chunk(self, index: int) -> bytes:
        with self._blosc2_lock:
            data: bytes = self._frame.decompress_chunk(index)
        _index, start, end = self.chunk_at(index * self._chunk_bytes)
        return data[: end - start]


class Blosc2Store(Blosc2Source, ChunkedStore):
    """The same, written back in place: a flush costs only the chunks that changed. A crash in the middle of one can damage a frame in one
    file; the sparse directory (`contiguous=False`) has a file for each chunk and loses at most that one.
    """

    _mode = "a"

    def write_chunk(self, index: int, data: bytearray) -> None:
        # An array's chunks are all stored whole; a super-chunk's last one is as long as its data.
        stored = data.ljust(min(self._stored_bytes, self._frame.nbytes - index * self._stored_bytes), b"\0")
        with self._blosc2_lock:
            self._frame.update_data(index, stored, copy=True)

    def sync_chunks(self) -> None:
        is_sparse = os.path.isdir(self.path)
        for path in [entry.path for entry in os.scandir(self.path)] if is_sparse else [self.path]:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
