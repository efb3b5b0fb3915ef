"""Random histories of a region beside plain bytes: reads, writes, evictions, flushes, marks, forks, deaths and errors.

The default run is short. USERFAULT_LONG=1 makes it 100 000 operations and more, and -s shows how many it made.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from userfault import paging
from userfault.paging import Source, SourceError
from userfault.paging.files import FileSource, FileStore
from userfault.paging.inject import STEPS, Effect, Point, inject
from userfault.paging.pytest_plugin import check
from userfault.paging.tcp import PageServer

pytestmark = pytest.mark.usefixtures("can_page")

LONG = bool(os.environ.get("USERFAULT_LONG"))
EXAMPLES, OPERATIONS = (2500, 50) if LONG else (20, 30)
DEADLINE_S = 3000.0 if LONG else 60.0

SIZE = 300_000
PAGES = -(-SIZE // 4096)
DATA = bytes(i * 7 % 251 for i in range(SIZE))

SOURCES = [*["file", "direct", "memory"] * 3, "worker", "server"]  # a process is a quarter of a second
ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20_000)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))
short_ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 9000)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))

FAULTS: list[tuple[Point, Effect, int]] = [
    *((step, "die", 0) for step in STEPS),
    ("copy", "errno", errno.EAGAIN),
    ("copy", "rival", 0),
    ("copy", "partial", 4096),
    ("move_in", "errno", errno.EBUSY),
    ("move_in", "partial", 4096),
    ("move_in", "rival", 0),
    ("move_out", "errno", errno.EAGAIN),
    ("move_out", "errno", errno.EBUSY),
    ("move_out", "partial", 4096),
    ("scan", "errno", errno.EINTR),
    ("drop", "errno", errno.ENOMEM),
    ("source_read", "partial", 777),
    ("source_read", "errno", errno.EAGAIN),
    ("swap_read", "partial", 777),
    ("swap_write", "partial", 777),
    ("send", "errno", errno.EIO),
    ("filled", "delay", 2000),
    ("before_take", "delay", 2000),
    ("submitted", "delay", 2000),
]
LOUD: list[tuple[Point, Effect, int]] = [
    ("source_read", "errno", errno.EIO),
    ("swap_read", "errno", errno.EIO),
    ("swap_write", "errno", errno.ENOSPC),
]


def distant(path: Path, writable: bool) -> Source:
    """The file as a source that a worker or a page server reads, which fails while there is a file PATH.fails."""

    # Sent whole: a worker need not import this module.
    class Flaky(FileStore if writable else FileSource):  # type: ignore[misc]
        in_worker = True

        def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
            if os.path.exists(f"{self.path}.fails"):
                raise OSError(errno.EIO, "it fails")
            super().read_exactly(offset_bytes, view)

    return Flaky(path)


class Server:
    """A page server in a process of its own, as this one may hold the interpreter's lock while it waits for a page."""

    def __init__(self, path: Path, writable: bool, address: str = "127.0.0.1:0") -> None:
        self._path, self._writable = path, writable
        reader, writer = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                with PageServer.listen(distant(path, writable), address, writable=writable) as server:
                    os.write(writer, str(server.address).encode())
                    os.close(writer)
                    server.serve()
            finally:
                os._exit(1)
        os.close(writer)
        self.address = os.read(reader, 100).decode()
        os.close(reader)
        assert self.address

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def successor(self) -> Server:
        """Where this one was: it listens when this returns."""
        self.kill()
        return Server(self._path, self._writable, self.address)


class RegionBesideBytes(RuleBasedStateMachine):
    operation_count = 0
    server: Server | None = None

    @initialize(
        unit=st.sampled_from(["4 KiB", "64 KiB"]),
        mode=st.sampled_from(["threads", "sigbus"]),
        policy=st.sampled_from(["clock", "fifo", "lru", "rank"]),
        access=st.sampled_from(["r", "c", "r+"]),
        source=st.sampled_from(SOURCES),
        handlers=st.integers(1, 3),
        prefetch_units=st.sampled_from([0, 4]),
    )
    def make(self, source: str, access: str, **options: Any) -> None:
        self.access = access
        self.path: Path | None = None
        what: Any = DATA
        if source != "memory" or access == "r+":  # a file: the histories look into it
            with tempfile.NamedTemporaryFile(
                dir="/dev/shm" if Path("/dev/shm").is_dir() else None, delete=False
            ) as file:
                file.write(DATA)
            what = self.path = Path(file.name)
        resident = "262144" if options["unit"] == "64 KiB" else "49152"
        self.options = {**options, "access": access, "resident": resident}
        if source == "direct" and access != "r+":
            self.options["direct"] = True  # what costs more to read is kept in limbo for a while
        self.source = what
        self.distant = source in ("worker", "server")
        if source == "server":
            assert self.path
            self.server = Server(self.path, access == "r+")
            self.source = f"tcp://{self.server.address}"
        self.expected = bytearray(DATA)
        self.written: set[int] = set()
        self.clean_run = True
        self.memory = self.opened()

    def opened(self) -> paging.Region:
        source = self.source
        if self.distant and not self.server:
            assert self.path
            source = distant(self.path, self.access == "r+")  # once it was closed, a source is not opened again
        return paging.open(source, **self.options)

    def did(self) -> None:
        type(self).operation_count += 1

    @rule(where=ranges)
    def read(self, where: tuple[int, int]) -> None:
        at, count = where
        assert self.memory[at : at + count] == self.expected[at : at + count]
        self.did()

    @rule(where=ranges)
    def read_at(self, where: tuple[int, int]) -> None:
        at, count = where
        assert self.memory.read_at(at, count) == self.expected[at : at + count]
        self.did()

    @precondition(lambda self: self.access != "r")
    @rule(where=short_ranges, value=st.integers(0, 255), accessor=st.booleans())
    def write(self, where: tuple[int, int], value: int, accessor: bool) -> None:
        at, count = where
        if accessor:
            self.memory.write_at(at, bytes([value]) * count)
        else:
            self.memory[at : at + count] = bytes([value]) * count
        self.expected[at : at + count] = bytes([value]) * count
        self.written |= set(range(at // 4096, (at + count - 1) // 4096 + 1))
        self.did()

    @precondition(lambda self: self.access != "r")
    @rule(first=st.integers(0, SIZE - 1), count=st.integers(1, 3), value=st.integers(0, 255))
    def write_units(self, first: int, count: int, value: int) -> None:
        size = self.memory.unit_bytes
        at = first // size * size
        length = min(count * size, SIZE - at)
        self.memory.write_at(at, bytes([value]) * length)
        self.expected[at : at + length] = bytes([value]) * length
        self.written |= set(range(at // 4096, (at + length - 1) // 4096 + 1))
        self.did()

    @rule(unit=st.integers(0, SIZE - 1), rank=st.integers(0, 3))
    def rank(self, unit: int, rank: int) -> None:
        if self.options["policy"] == "rank":
            self.memory.ranks[unit // self.memory.unit_bytes] = rank
            self.did()

    @rule(where=ranges)
    def evict(self, where: tuple[int, int]) -> None:
        self.memory.evict(*where)
        self.did()

    @rule(where=ranges)
    def evict_and_dontneed(self, where: tuple[int, int]) -> None:
        """Nothing is lost by dropping what has left already; what has not may have been put back by the prefetcher, unwritten."""
        self.memory.evict(*where)
        first = -(-where[0] // 65536) * 65536
        last = (where[0] + where[1]) // 65536 * 65536
        gone = all(self.memory.state_of(at) == "absent" for at in range(first, last, 4096))
        if last > first and gone and not self.options["prefetch_units"]:
            self.memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self.did()

    @rule(where=ranges)
    def will_need(self, where: tuple[int, int]) -> None:
        self.memory.will_need(*where)
        self.did()

    @rule()
    def flush(self) -> None:
        if self.access != "c":
            self.memory.flush()
        if self.access == "r+" and self.path:
            assert self.path.read_bytes() == self.expected
        self.did()

    @precondition(lambda self: self.access != "r")
    @rule()
    def mark(self) -> None:
        self.memory.mark()
        self.written.clear()
        self.did()

    @precondition(lambda self: self.access != "r")
    @rule()
    def dirty(self) -> None:
        pages = {page for at, count in self.memory.dirty() for page in range(at // 4096, (at + count - 1) // 4096 + 1)}
        assert self.written <= pages
        if self.clean_run:
            assert self.written == pages
        self.did()

    @rule()
    def fork(self) -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        self.did()

    @rule(fault=st.sampled_from(FAULTS), where=ranges, skip=st.integers(0, 3))
    def misfortune(self, fault: tuple[Point, Effect, int], where: tuple[int, int], skip: int) -> None:
        self.clean_run = False
        with inject(self.memory, *fault, skip=skip):
            self.read(where)
            if self.access != "r":
                self.write((where[0], min(where[1], 5000)), skip, False)
            self.memory.evict(*where)
            self.read(where)

    @rule(fault=st.sampled_from(LOUD), where=ranges)
    def loud_failure(self, fault: tuple[Point, Effect, int], where: tuple[int, int]) -> None:
        self.clean_run = False  # what can't be compared, because it can't be read, counts as written
        with inject(self.memory, *fault, times=1 << 20):
            self.read_or_fail(where)
        # What failed can be had again, by whoever asks in a way that can fail.
        assert self.memory.read_at(0, SIZE) == self.expected
        self.did()

    def read_or_fail(self, where: tuple[int, int]) -> None:
        try:
            self.read_at(where)
        except SourceError as error:
            assert error.errno in (errno.EIO, errno.ENOSPC)

    @precondition(lambda self: self.distant)
    @rule(where=ranges)
    def distant_failure(self, where: tuple[int, int]) -> None:
        flag = Path(f"{self.path}.fails")
        flag.touch()
        try:
            self.read_or_fail(where)
        finally:
            flag.unlink()
        assert self.memory.read_at(0, SIZE) == self.expected
        self.did()

    @precondition(lambda self: self.distant)
    @rule(where=ranges)
    def distant_death(self, where: tuple[int, int]) -> None:
        if self.server:
            self.server = self.server.successor()
        else:
            assert self.memory._worker
            pid = self.memory._worker.pid  # of a zombie, where it is not the first time
            os.kill(pid, signal.SIGKILL)
            # One that dies in the middle of a flush makes that fail: the next one writes it all again.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.read(where)

    @rule()
    def reopen(self) -> None:
        if self.access == "r+" and self.path:
            self.memory.close()
            assert self.path.read_bytes() == self.expected
            self.memory = self.opened()
            self.written.clear()
            self.clean_run = True
        self.did()

    @invariant()
    def within_budget(self) -> None:
        if hasattr(self, "memory"):
            stats = self.memory.stats()
            assert stats.resident_bytes <= stats.budget_bytes + 6 * stats.unit_bytes

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            try:
                assert self.memory.read_at(0, SIZE) == self.expected
                assert not self.memory.stats().stall_count
            finally:
                self.memory.close()
                if self.server:
                    self.server.kill()
                if self.path:
                    self.path.unlink()


def run_histories(examples: int, operations: int) -> int:
    run_state_machine_as_test(
        RegionBesideBytes,
        settings=settings(
            max_examples=examples,
            stateful_step_count=operations,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate] if LONG else tuple(Phase),
        ),
    )
    return RegionBesideBytes.operation_count


def test_histories() -> None:
    count = check(run_histories, EXAMPLES, OPERATIONS, deadline_s=DEADLINE_S)
    print(f"{count} operations")
    assert count > 100_000 if LONG else count > 300
