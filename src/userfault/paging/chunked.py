"""Data that can be read and written only a chunk at a time: a cache of chunks between pages and their container."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .source import Source, Store


class _Chunk:
    """One cached chunk. `data` belongs to whoever holds `lock`; `pin_count` to the cache's lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytearray | None = None
        self.dirty = False
        self.pin_count = 0


class ChunkedSource(Source):
    """To write one, implement `chunk_range` and `read_chunk`; set `size_bytes` in `acquire`.

    Up to `cache_bytes` of chunks are kept, so that the pages of a chunk do not each cost its decompression. A chunk is read once,
    however many threads want it.
    """

    cache_bytes: int = 32 << 20
    parallel_count = 4

    @abstractmethod
    def chunk_at(self, offset_bytes: int) -> tuple[int, int, int]:
        """The chunk that holds this byte: its index, where it starts and where it ends, in bytes."""

    @abstractmethod
    def read_chunk(self, index: int) -> bytes | bytearray:
        """All bytes of a chunk."""

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        for index, start, end, part in self._parts(offset_bytes, view):
            with self._held(index, for_write=False) as chunk:
                at = max(offset_bytes, start) - start
                part[:] = memoryview(self._loaded(chunk, index, end - start))[at : at + len(part)]

    def open_cache(self) -> None:
        """To be called by `acquire`."""
        self._lock = threading.Lock()
        self._chunks: OrderedDict[int, _Chunk] = OrderedDict()

    def _parts(self, offset_bytes: int, view: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
        done = 0
        while done < len(view):
            index, start, end = self.chunk_at(offset_bytes + done)
            count = min(len(view) - done, end - offset_bytes - done)
            yield index, start, end, view[done : done + count]
            done += count

    @contextmanager
    def _held(self, index: int, *, for_write: bool) -> Iterator[_Chunk]:
        """The chunk, locked, and afterwards as many others gone as are too many."""
        with self._lock:
            chunk = self._chunks.setdefault(index, _Chunk())
            self._chunks.move_to_end(index)
            chunk.pin_count += 1
        try:
            with chunk.lock:
                yield chunk
        finally:
            with self._lock:
                chunk.pin_count -= 1
                if chunk.data is None and not chunk.pin_count:
                    self._chunks.pop(index, None)
            self._shrink(for_write)

    def _loaded(self, chunk: _Chunk, index: int, size_bytes: int) -> bytearray:
        if chunk.data is None:
            data = self.read_chunk(index)
            if len(data) != size_bytes:
                raise EOFError(f"chunk {index} has {len(data)} bytes where it should have {size_bytes}")
            chunk.data = data if isinstance(data, bytearray) else bytearray(data)
        return chunk.data

    def _shrink(self, for_write: bool) -> None:
        failed: set[int] = set()
        while True:
            with self._lock:
                total = sum(len(chunk.data) for chunk in self._chunks.values() if chunk.data is not None)
                idle = (i for i, chunk in self._chunks.items() if not chunk.pin_count and i not in failed)
                index = next(idle, None)
                if index is None or total <= self.cache_bytes:
                    return
                chunk = self._chunks[index]
                if not chunk.dirty:
                    del self._chunks[index]
                    continue
                chunk.pin_count += 1
            try:
                with chunk.lock:
                    self._clean(index, chunk)
            except Exception:
                # A page that was read is not lost because another one can't be written: that fails the next write or flush.
                if for_write:
                    raise
                failed.add(index)
            finally:
                with self._lock:
                    chunk.pin_count -= 1

    def _clean(self, index: int, chunk: _Chunk) -> None:
        raise AssertionError("only a store has dirty chunks")


class ChunkedStore(ChunkedSource, Store):
    """The same, written back: implement `write_chunk` too, and `sync_chunks` if that is not durable at once.

    Chunks that were written stay in the cache until it is full or flushed. Where storing one of them fails, it stays there, and the write
    or flush that wanted it stored fails.
    """

    @abstractmethod
    def write_chunk(self, index: int, data: bytearray) -> None:
        """Store all bytes of a chunk."""

    def sync_chunks(self) -> None:
        """Make the chunks that were written durable."""

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        for index, start, end, part in self._parts(offset_bytes, view):
            with self._held(index, for_write=True) as chunk:
                if len(part) == end - start:
                    chunk.data = bytearray(part)
                else:
                    at = max(offset_bytes, start) - start
                    self._loaded(chunk, index, end - start)[at : at + len(part)] = part
                chunk.dirty = True

    def sync(self) -> None:
        with self._lock:
            indices = sorted(index for index, chunk in self._chunks.items() if chunk.dirty)
        with ThreadPoolExecutor(self.parallel_count) as pool:
            for _ in pool.map(self._store, indices):
                pass
        self.sync_chunks()

    def _store(self, index: int) -> None:
        with self._held(index, for_write=True) as chunk:
            self._clean(index, chunk)

    def _clean(self, index: int, chunk: _Chunk) -> None:
        if chunk.dirty and chunk.data is not None:
            self.write_chunk(index, chunk.data)
            chunk.dirty = False
