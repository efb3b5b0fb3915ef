"""Random histories of a region beside plain bytes: reads, writes, evictions, flushes, marks, forks, deaths and errors.

The default run is short. USERFAULT_LONG=1 makes it 100 000 operations and more, and -s shows how many it made.
"""

from __future__ import annotations

import errno
import mmap
import os
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
from userfault.paging import SourceError
from userfault.paging.inject import STEPS, Effect, Point, inject
from userfault.paging.pytest_plugin import check

pytestmark = pytest.mark.usefixtures("can_page")

LONG = bool(os.environ.get("USERFAULT_LONG"))
EXAMPLES, OPERATIONS = (2500, 50) if LONG else (25, 30)
DEADLINE_S = 3000.0 if LONG else 60.0

SIZE = 300_000
PAGES = -(-SIZE // 4096)
DATA = bytes(i * 7 % 251 for i in range(SIZE))

ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20_000)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))
short_ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 9000)).map(lambda r: (r[0], min(r[1], SIZE - r[0])))

FAULTS: list[tuple[Point, Effect, int]] = [
    *((step, "die", 0) for step in STEPS if step != "submitted"),
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
    ("filled", "delay", 2000),
    ("before_take", "delay", 2000),
]
LOUD: list[tuple[Point, Effect, int]] = [
    ("source_read", "errno", errno.EIO),
    ("swap_read", "errno", errno.EIO),
    ("swap_write", "errno", errno.ENOSPC),
]


class RegionBesideBytes(RuleBasedStateMachine):
    operation_count = 0

    @initialize(
        unit=st.sampled_from(["4 KiB", "64 KiB"]),
        mode=st.sampled_from(["threads", "sigbus"]),
        policy=st.sampled_from(["clock", "fifo", "lru"]),
        access=st.sampled_from(["r", "c", "r+"]),
        source=st.sampled_from(["file", "direct", "memory"]),
        handlers=st.integers(1, 3),
        prefetch_units=st.sampled_from([0, 4]),
    )
    def make(self, source: str, access: str, **options: Any) -> None:
        self.access = access
        self.path: Path | None = None
        what: Any = DATA
        if source != "memory" or access == "r+":
            with tempfile.NamedTemporaryFile(
                dir="/dev/shm" if Path("/dev/shm").is_dir() else None, delete=False
            ) as file:
                file.write(DATA)
            what = self.path = Path(file.name)
        resident = "262144" if options["unit"] == "64 KiB" else "49152"
        self.options = {**options, "access": access, "resident": resident}
        if source == "direct" and access != "r+":
            self.options["direct"] = True  # what costs more to read is kept in limbo for a while
        self.expected = bytearray(DATA)
        self.written: set[int] = set()
        self.clean_run = True
        self.memory = paging.open(what, **self.options)

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
        if self.clean_run and not self.memory.stats().suspicious_count:
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
        with inject(self.memory, *fault, times=1 << 20):
            try:
                self.read_at(where)
            except SourceError as error:
                assert error.errno in (errno.EIO, errno.ENOSPC)
        # What failed can be had again, by whoever asks in a way that can fail.
        assert self.memory.read_at(0, SIZE) == self.expected
        self.did()

    @rule()
    def reopen(self) -> None:
        if self.access == "r+" and self.path:
            self.memory.close()
            assert self.path.read_bytes() == self.expected
            self.memory = paging.open(self.path, **self.options)
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
