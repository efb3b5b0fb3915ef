"""What is fetched before it is asked for, and who leaves."""

from __future__ import annotations

import ctypes
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from userfault import paging
from userfault.paging import PagingError, Region
from userfault.paging.pytest_plugin import check

pytestmark = pytest.mark.usefixtures("can_page")

UNIT = 65536
WAITED = 8
SIZE = 64 * UNIT
DATA = random.Random(5).randbytes(SIZE)


def settle(memory: Region, units: int) -> bool:
    """Whether so many units become resident in time."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if memory.stats().resident_bytes >= units * UNIT:
            return True
        time.sleep(0.001)
    return False


@pytest.mark.parametrize("stride", [1, 3, -2])
def test_a_run_is_fetched_ahead(stride: int) -> None:
    def child() -> None:
        with paging.open(DATA, prefetch_units=4) as memory:
            at = 30
            for _ in range(3):
                assert memory[at * UNIT] == DATA[at * UNIT]
                at += stride
            assert settle(memory, 5)
            assert memory.state_of(at * UNIT) == "present"
            before = memory.stats().fault_count
            assert memory[at * UNIT] == DATA[at * UNIT]
            assert memory.stats().fault_count == before

    check(child)


def test_who_waits_for_a_fetch_ahead_that_fails_asks_anew(tmp_path: Path) -> None:
    """He asked for nothing that failed: the guess of the prefetcher did."""

    def child() -> None:
        begun, go = tmp_path / "begun", tmp_path / "go"

        def fill(offset: int, view: memoryview) -> None:
            if not begun.exists():
                begun.touch()
                while not go.exists():
                    time.sleep(0.001)
                raise OSError("the first one fails")
            view[:] = b"x" * len(view)

        with paging.open(fill, size_bytes=UNIT, prefetch_units=4) as memory:
            memory.will_need()
            while not begun.exists():
                time.sleep(0.001)
            found: list[bytes] = []
            reader = threading.Thread(target=lambda: found.append(memory.read_at(0, 1)))
            reader.start()
            word = ctypes.c_uint32.from_address(memory._pager + memory._control.state_offset)
            while not word.value & WAITED:
                time.sleep(0.001)
            go.touch()
            reader.join()
            assert found == [b"x"]
            assert memory.stats().error_count == 0

    check(child)


def test_random_touches_fetch_nothing_ahead() -> None:
    def child() -> None:
        with paging.open(DATA, prefetch_units=4) as memory:
            for at in (5, 60, 17, 40, 2, 33):
                assert memory[at * UNIT] == DATA[at * UNIT]
            time.sleep(0.05)
            assert memory.stats().prefetch_count == 0

    check(child)


def test_will_need_and_the_working_set() -> None:
    def child() -> None:
        with paging.open(DATA, prefetch_units=0) as memory:
            memory.will_need(2 * UNIT + 5, 3 * UNIT)
            assert settle(memory, 4)
            assert [memory.state_of(unit * UNIT) for unit in (1, 2, 5, 6)] == ["absent", "present", "present", "absent"]
            for unit in (60, 40, 41, 42, 60, 7):
                assert memory[unit * UNIT] == DATA[unit * UNIT]
            seen = memory.working_set()
        assert seen == [60, 40, 41, 42, 7]
        with paging.open(DATA, prefetch_units=0) as memory:
            with pytest.raises(ValueError, match="unit -1"):
                memory.replay([-1])
            memory.replay(seen)
            assert settle(memory, 5)
            for unit in seen:
                assert memory[unit * UNIT] == DATA[unit * UNIT]
            assert memory.stats().fault_count == 0

    check(child)


def test_clock_spares_what_is_used_again() -> None:
    def child() -> None:
        with paging.open(DATA, resident=8 * UNIT, prefetch_units=0) as memory:
            for unit in range(60):
                assert memory[unit * UNIT] == DATA[unit * UNIT]
                memory.ensure(0, 1)
            assert memory.state_of(0) == "present"
            assert memory.stats().evict_clean_count == 52
        with paging.open(DATA, resident=8 * UNIT, prefetch_units=0, policy="fifo") as memory:
            for unit in range(9):
                assert memory[unit * UNIT] == DATA[unit * UNIT]
                memory.ensure(0, 1)
            assert memory.state_of(UNIT) == "absent"

    check(child)


def test_the_lowest_rank_leaves() -> None:
    def child() -> None:
        with paging.open(DATA, resident=8 * UNIT, prefetch_units=0, policy="rank") as memory:
            ranks = memory.ranks
            assert list(ranks) == [0] * (len(DATA) // UNIT)

            def read(first: int, last: int) -> list[int]:
                for unit in range(first, last):
                    assert memory[unit * UNIT] == DATA[unit * UNIT]
                    while memory.state_of(unit * UNIT) != "present":  # until it says so it is no candidate
                        time.sleep(0.001)
                return [unit for unit in range(len(DATA) // UNIT) if memory.state_of(unit * UNIT) == "present"]

            for unit in range(7):
                ranks[unit] = 0xFFFFFFFF - unit
            assert read(0, 40) == [0, 1, 2, 3, 4, 5, 6, 39]
            ranks[3], ranks[39], ranks[40], ranks[41] = 0, 1, 3, 2
            assert read(40, 41) == [0, 1, 2, 4, 5, 6, 39, 40]
            assert read(41, 42) == [0, 1, 2, 4, 5, 6, 40, 41]
            assert read(42, 44) == [0, 1, 2, 4, 5, 6, 40, 43]
        ranks[0] = 1  # they are not the region's memory
        with paging.open(DATA) as memory, pytest.raises(PagingError, match='policy="rank"'):
            memory.ranks  # noqa: B018

    check(child)


def test_a_policy_in_c(tmp_path: Path) -> None:
    """The highest number leaves."""
    source = tmp_path / "policy.c"
    source.write_text(
        "unsigned choose(void *context, const unsigned *units, unsigned count) {\n"
        "    (void)context;\n    unsigned best = 0;\n"
        "    for (unsigned i = 1; i < count; i++) if (units[i] > units[best]) best = i;\n    return best;\n}\n"
    )
    library = tmp_path / "policy.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)

    def child() -> None:
        choose = ctypes.CDLL(str(library)).choose
        with paging.open(DATA, resident=8 * UNIT, prefetch_units=0, policy=choose) as memory:
            for unit in range(40):
                assert memory[unit * UNIT] == DATA[unit * UNIT]
                # Until it says so it is no candidate.
                while memory.state_of(unit * UNIT) != "present":
                    time.sleep(0.001)
            assert [memory.state_of(unit * UNIT) for unit in range(7)] == ["present"] * 7

    check(child)


def test_lru_does_not_wait_for_a_unit_in_work() -> None:
    """A unit that was evicted by name still has its place among the candidates, and the oldest stamp, when it is fetched again."""

    def child() -> None:
        with paging.open(DATA, resident=2 * UNIT, prefetch_units=0, policy="lru") as memory:
            assert memory[0] == DATA[0]
            time.sleep(0.01)
            assert memory[UNIT] == DATA[UNIT]
            memory.evict(0, UNIT)
            assert memory[2 * UNIT] == DATA[2 * UNIT]
            assert memory[0] == DATA[0]

    check(child)
