"""What every source and every store must do, as tests that its author inherits:

    from userfault.paging.testing import StoreContract

    class TestMyStore(StoreContract):
        def make(self, data, directory):
            (directory / "data").write_bytes(data)
            return self.reopen(directory)

        def reopen(self, directory):
            return MyStore(directory / "data")

Needs pytest and hypothesis (`pip install 'userfault[testing]'`).
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from . import pickling
from .client import Connection
from .source import NativeKind, Source, SourceError, Store
from .worker import Worker

GUARD = b"\xaa"
TIMEOUT_S = 30.0


def read(source: Source, offset_bytes: int, length_bytes: int) -> bytes:
    """What `read_into` reads; fails if it writes beyond what it says it read."""
    buffer = bytearray(GUARD * (length_bytes + 64))
    count = source.read_into(offset_bytes, memoryview(buffer)[:length_bytes])
    assert 0 <= count <= length_bytes, f"read_into({offset_bytes}, ...) returned {count} for {length_bytes} bytes"
    assert buffer[count:] == GUARD * (len(buffer) - count), "read_into wrote behind the bytes that it returned"
    return bytes(buffer[:count])


class SourceContract(ABC):
    """Inherit, and say how a source is made. `directory` is an empty one for each test."""

    sizes_bytes: tuple[int, ...] = (1, 4096, 100_003)
    """The sizes to test; the last one is used where one is enough."""
    example_count: int = 60
    """How many random ranges or sequences a test tries."""
    step_bytes: int = 1
    """Offsets and lengths are multiples of it (or end at the end): for sources that know no smaller unit."""

    @abstractmethod
    def make(self, data: bytes, directory: Path) -> Source:
        """A new source, not open, that holds `data`."""

    def make_broken(self, directory: Path) -> Source | None:
        """A new source whose `open` or first read fails, as it does when what is behind it is missing.

        One that can't fail says `test_a_failure_is_typed_and_says_what_failed = None`.
        """
        return None

    def data(self, size_bytes: int) -> bytes:
        """What a source of this size is to hold; for sources that don't hold just anything."""
        return random.Random(size_bytes).randbytes(size_bytes)

    @contextmanager
    def opened(self, directory: Path, size_bytes: int | None = None) -> Iterator[tuple[Source, bytes]]:
        data = self.data(self.sizes_bytes[-1] if size_bytes is None else size_bytes)
        with self.make(data, directory) as source:
            yield source, data

    def ranges(self, size_bytes: int) -> st.SearchStrategy[tuple[int, int]]:
        """(offset, length) inside the data, not empty, often at its edges."""
        step = self.step_bytes
        count = -(-size_bytes // step)
        starts = st.sampled_from(sorted({0, count // 2, count - 1})) | st.integers(0, count - 1)
        lengths = st.sampled_from([1, 2, 3]) | st.integers(1, count)
        return st.tuples(starts, lengths).map(
            lambda pair: (pair[0] * step, min(pair[1] * step, size_bytes - pair[0] * step))
        )

    def examples(self, check: Callable[..., None], *strategies: st.SearchStrategy[object]) -> None:
        """Run `check` with random values, the same ones each time. The source stays open between them."""
        given(*strategies)(
            settings(
                max_examples=self.example_count,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                derandomize=True,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )(check)
        )()

    # What a source must do.

    def test_it_reads_what_it_holds(self, tmp_path: Path) -> None:
        for number, size_bytes in enumerate(self.sizes_bytes):
            directory = tmp_path / str(number)
            directory.mkdir()
            with self.opened(directory, size_bytes) as (source, data):
                assert source.size_bytes == len(data)
                assert read(source, 0, len(data)) == data

    def test_any_range_reads_as_the_same_range_of_the_data(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, data):

            def check(where: tuple[int, int]) -> None:
                offset, length = where
                assert read(source, offset, length) == data[offset : offset + length]

            self.examples(check, self.ranges(len(data)))

    def test_a_read_is_short_only_at_the_end(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, data):
            last = (len(data) - 1) // self.step_bytes * self.step_bytes
            assert read(source, last, 65536) == data[last:]
            assert read(source, len(data), 4096) == b""
            assert read(source, len(data) + (1 << 40), 4096) == b""
            assert read(source, 0, 0) == b""

    def test_several_threads_read_at_once(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, data):
            thread_count = min(source.parallel_count, 8)
            together = threading.Barrier(thread_count)

            def reader(number: int) -> None:
                pick = random.Random(number)
                together.wait(TIMEOUT_S)
                for _ in range(self.example_count // 2):
                    offset = pick.randrange(0, len(data), self.step_bytes)
                    length = pick.randrange(1, 2 + 20_000 // self.step_bytes) * self.step_bytes
                    assert read(source, offset, length) == data[offset : offset + length]

            with ThreadPoolExecutor(thread_count) as pool:
                for done in [pool.submit(reader, number) for number in range(thread_count)]:
                    done.result(TIMEOUT_S)

    def test_it_closes_twice_and_then_refuses(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, _data):
            source.close()
            source.close()
            with pytest.raises(SourceError, match="closed"):
                read(source, 0, self.step_bytes)

    def test_it_opens_twice(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, data):
            assert source.open() is source
            assert read(source, 0, self.step_bytes) == data[: self.step_bytes]

    def test_a_negative_offset_is_refused(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, _data), pytest.raises(ValueError):
            source.read_into(-self.step_bytes, memoryview(bytearray(self.step_bytes)))

    def test_it_has_a_name_for_people(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as (source, _data):
            assert source.name and source.name != Source.name
            assert type(source).__name__ in repr(source)

    def test_a_failure_is_typed_and_says_what_failed(self, tmp_path: Path) -> None:
        source = self.make_broken(tmp_path)
        if source is None:
            pytest.skip("nothing shows how a failure of this source looks: override make_broken, if it can fail")
        with pytest.raises(SourceError) as caught:
            try:
                read(source.open(), 0, self.step_bytes)
            finally:
                source.close()
        assert caught.value.source and caught.value.cause
        assert isinstance(pickling.loads(pickling.dumps(caught.value, "the error")), SourceError)

    def test_it_works_where_it_will_run(self, tmp_path: Path) -> None:
        """In a worker process; or by its native description, as the C handler reads it."""
        with self.opened(tmp_path) as (source, data):
            if not source.in_worker:
                _read_natively(source, data)
                return
            source.close()
        with Worker(self.make(data, _empty(tmp_path / "worker"))) as worker:
            worker.wait_ready(TIMEOUT_S)
            assert worker.size_bytes == len(data)
            connection = Connection(socket.socket(fileno=os.dup(worker.fileno())), TIMEOUT_S)
            try:
                buffer = bytearray(len(data))
                connection.read(0, memoryview(buffer), TIMEOUT_S)
                assert buffer == data
            finally:
                connection.close()


class StoreContract(SourceContract):
    """The same for a store: what is written is read, and after a flush it is still there when the store is opened anew."""

    @abstractmethod
    def make(self, data: bytes, directory: Path) -> Store:
        """A new store, not open, that holds `data`."""

    @abstractmethod
    def reopen(self, directory: Path) -> Store:
        """Another one, not open, on what `make` made in `directory`; the first is closed."""

    @contextmanager
    def opened_store(self, directory: Path) -> Iterator[tuple[Store, bytearray]]:
        data = self.data(self.sizes_bytes[-1])
        with self.make(data, directory) as store:
            yield store, bytearray(data)

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        with self.opened_store(tmp_path) as (store, oracle):

            def check(steps: list[tuple[str, tuple[int, int], int]]) -> None:
                for what, (offset, length), seed in steps:
                    if what == "write":
                        fresh = random.Random(seed).randbytes(length)
                        store.write_from(offset, memoryview(fresh))
                        oracle[offset : offset + length] = fresh
                    elif what == "flush":
                        store.flush()
                    assert read(store, offset, length) == oracle[offset : offset + length]
                assert read(store, 0, len(oracle)) == oracle

            step = st.tuples(
                st.sampled_from(["write", "write", "read", "flush"]), self.ranges(len(oracle)), st.integers(0, 255)
            )
            self.examples(check, st.lists(step, max_size=6))

    def test_what_was_flushed_is_there_when_it_is_opened_anew(self, tmp_path: Path) -> None:
        with self.opened_store(tmp_path) as (store, oracle):
            pick = random.Random(1)
            for _ in range(10):
                offset = pick.randrange(0, len(oracle), self.step_bytes)
                fresh = pick.randbytes(min(len(oracle) - offset, self.step_bytes * 100))
                store.write_from(offset, memoryview(fresh))
                oracle[offset : offset + len(fresh)] = fresh
            store.flush()
        with self.reopen(tmp_path) as store:
            assert store.size_bytes == len(oracle)
            assert read(store, 0, len(oracle)) == oracle

    def test_a_write_that_leaves_the_data_is_refused_whole(self, tmp_path: Path) -> None:
        with self.opened_store(tmp_path) as (store, oracle):
            start = (len(oracle) - 1) // self.step_bytes * self.step_bytes
            with pytest.raises(SourceError):
                store.write_from(start, memoryview(b"\x55" * (len(oracle) - start + self.step_bytes)))
            assert read(store, 0, len(oracle)) == oracle

    def test_neighbours_are_written_at_once(self, tmp_path: Path) -> None:
        """Writes of different bytes never undo each other, even where they share a chunk of the store."""
        with self.opened_store(tmp_path) as (store, oracle):
            thread_count = min(store.parallel_count, 8)
            piece = -(-len(oracle) // (8 * thread_count * self.step_bytes)) * self.step_bytes
            starts = range(0, len(oracle), piece)
            together = threading.Barrier(thread_count)

            def writer(number: int) -> None:
                together.wait(TIMEOUT_S)
                for start in starts[number::thread_count]:
                    count = min(piece, len(oracle) - start)
                    store.write_from(start, memoryview(bytes([number + 1]) * count))

            with ThreadPoolExecutor(thread_count) as pool:
                for done in [pool.submit(writer, number) for number in range(thread_count)]:
                    done.result(TIMEOUT_S)
            for index, start in enumerate(starts):
                oracle[start : start + piece] = bytes([index % thread_count + 1]) * (
                    min(start + piece, len(oracle)) - start
                )
            assert read(store, 0, len(oracle)) == oracle
            store.flush()
            assert read(store, 0, len(oracle)) == oracle

    def test_a_closed_store_refuses(self, tmp_path: Path) -> None:
        with self.opened_store(tmp_path) as (store, oracle):
            store.close()
            with pytest.raises(SourceError, match="closed"):
                store.write_from(0, memoryview(bytes(oracle[: self.step_bytes])))
            with pytest.raises(SourceError, match="closed"):
                store.flush()


def _empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _read_natively(source: Source, data: bytes) -> None:
    native = source.native()
    assert native is not None, "a source that is not read in a worker needs native()"
    assert native.size_bytes == len(data)
    match native.kind:
        case NativeKind.ZERO:
            assert not any(data)
        case NativeKind.MEMORY:
            assert ctypes.string_at(native.address, native.size_bytes) == data
        case NativeKind.PEER:
            assert native.peer and native.timeout_s > 0
        case NativeKind.FILE if not native.direct:
            assert os.pread(native.fd, native.size_bytes, native.offset_bytes) == data
