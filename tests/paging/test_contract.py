"""Each test of the contract suites fails for a source or store that breaks just that."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from userfault.paging.source import NativeKind, NativeSource, Source, SourceError, Store
from userfault.paging.testing import StoreContract

SIZE = 5_003


class Good(Store):
    """A store in a file, as simple as it can be."""

    parallel_count = 4

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def acquire(self) -> None:
        self.data = bytearray(self.path.read_bytes())
        self.size_bytes = len(self.data)

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        view[:] = self.data[offset_bytes : offset_bytes + len(view)]

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self.data[offset_bytes : offset_bytes + len(view)] = view

    def sync(self) -> None:
        self.path.write_bytes(self.data)


class Shifted(Good):
    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        super().read_exactly(offset_bytes - (offset_bytes % 7 == 3), view)


class Longer(Good):
    def acquire(self) -> None:
        super().acquire()
        self.size_bytes += 1

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        view[:] = self.data[offset_bytes : offset_bytes + len(view)].ljust(len(view), b"\0")


class Eager(Good):
    """Writes zeros behind the end, and counts them."""

    def read_into(self, offset_bytes: int, view: memoryview) -> int:
        data = self.data[offset_bytes : offset_bytes + len(view)]
        view[:] = data.ljust(len(view), b"\0")
        return len(data)


class OneCursor(Good):
    """Threads share a position."""

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self.at = offset_bytes
        time.sleep(1e-4)
        super().read_exactly(self.at, view)


class Undying(Good):
    def close(self) -> None:
        pass


class ClosedOnce(Good):
    def close(self) -> None:
        if self._state == "closed":
            raise OSError("already closed")
        super().close()


class OpenedOnce(Good):
    def open(self) -> OpenedOnce:
        if self._state == "open":
            raise OSError("already open")
        super().open()
        return self


class Negative(Good):
    def read_into(self, offset_bytes: int, view: memoryview) -> int:
        return super().read_into(max(0, offset_bytes), view)


class Nameless(Good):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = Source.name


class Untyped(Good):
    """Its errors are what they are."""

    def open(self) -> Untyped:
        self.acquire()
        self._state = "open"
        return self


class Unpickled(Good):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()


class WrongNative(Good):
    in_worker = False

    def native(self) -> NativeSource:
        return NativeSource(NativeKind.ZERO, self.size_bytes)


class NoNative(Good):
    in_worker = False


class Forgetful(Good):
    """Every write of one byte is lost."""

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if len(view) > 1:
            super().write_exactly(offset_bytes, view)


class Volatile(Good):
    def sync(self) -> None:
        pass


class Clipping(Good):
    """Writes the part that fits, and then refuses."""

    def write_from(self, offset_bytes: int, view: memoryview) -> None:
        super().write_from(offset_bytes, view[: self.size_bytes - offset_bytes])
        if offset_bytes + len(view) > self.size_bytes:
            raise SourceError("write", self.name, offset_bytes, len(view), "it ends there")


class Careless(Good):
    """Reads, changes and writes chunks of 1000 bytes without a lock."""

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        start = offset_bytes // 1000 * 1000
        end = -(-(offset_bytes + len(view)) // 1000) * 1000
        chunk = bytearray(self.data[start:end])
        time.sleep(1e-4)
        chunk[offset_bytes - start : offset_bytes - start + len(view)] = view
        self.data[start:end] = chunk


class WritesClosed(Good):
    def write_from(self, offset_bytes: int, view: memoryview) -> None:
        self.write_exactly(offset_bytes, view)


class Contract(StoreContract):
    sizes_bytes = (1, SIZE)
    example_count = 40

    def __init__(self, kind: type[Good]) -> None:
        self.kind = kind

    def make(self, data: bytes, directory: Path) -> Store:
        (directory / "data").write_bytes(data)
        return self.kind(directory / "data")

    def reopen(self, directory: Path) -> Store:
        return self.kind(directory / "data")

    def make_broken(self, directory: Path) -> Store:
        return self.kind(directory / "missing")


TESTS = sorted(name for name in dir(StoreContract) if name.startswith("test_"))
KILLS: dict[type[Good], str] = {
    Shifted: "test_any_range_reads_as_the_same_range_of_the_data",
    Longer: "test_it_reads_what_it_holds",
    Eager: "test_a_read_is_short_only_at_the_end",
    OneCursor: "test_several_threads_read_at_once",
    Undying: "test_it_closes_twice_and_then_refuses",
    ClosedOnce: "test_it_closes_twice_and_then_refuses",
    OpenedOnce: "test_it_opens_twice",
    Negative: "test_a_negative_offset_is_refused",
    Nameless: "test_it_has_a_name_for_people",
    Untyped: "test_a_failure_is_typed_and_says_what_failed",
    Unpickled: "test_it_works_where_it_will_run",
    WrongNative: "test_it_works_where_it_will_run",
    NoNative: "test_it_works_where_it_will_run",
    Forgetful: "test_what_was_written_is_read",
    Volatile: "test_what_was_flushed_is_there_when_it_is_opened_anew",
    Clipping: "test_a_write_that_leaves_the_data_is_refused_whole",
    Careless: "test_neighbours_are_written_at_once",
    WritesClosed: "test_a_closed_store_refuses",
}


def run(kind: type[Good], name: str, directory: Path) -> None:
    getattr(Contract(kind), name)(directory)


@pytest.mark.parametrize("name", [name for name in TESTS if name != "test_it_works_where_it_will_run"])
def test_a_good_store_passes(name: str, tmp_path: Path) -> None:
    run(Good, name, tmp_path)


@pytest.mark.parametrize("kind", KILLS, ids=lambda kind: kind.__name__)
def test_a_broken_one_is_caught(kind: type[Good], tmp_path: Path) -> None:
    with pytest.raises((AssertionError, SourceError, OSError, pytest.fail.Exception)):
        run(kind, KILLS[kind], tmp_path)


def test_every_test_catches_something() -> None:
    assert set(KILLS.values()) == set(TESTS)
