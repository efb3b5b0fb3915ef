"""The clock's second chance: what leaves waits in limbo, and whoever touches it has it back without the source."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from userfault import paging
from userfault.paging import Region, SourceError
from userfault.paging.files import FileSource
from userfault.paging.inject import Point, inject
from userfault.paging.native import LIMBO, PRESENT, STATE_MASK
from userfault.paging.pytest_plugin import check, run

pytestmark = pytest.mark.usefixtures("can_page")

UNIT = 65536
UNITS = 24
DATA = random.Random(5).randbytes(UNITS * UNIT - 5000)
FILE = Path(tempfile.gettempdir()) / f"userfault-limbo-{os.getpid()}"
BUDGET, IN_LIMBO = 8, 2
STEPS: list[Point] = [
    "limbo_locked",
    "limbo_left",
    "limbo_moved",
    "limbo_kept",
    "victims",
    "claimed",
    "reserved",
    "filled",
    "installed",
    "woken",
]

libc = ctypes.CDLL(None, use_errno=True)
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@pytest.fixture(autouse=True, scope="module")
def _file() -> Iterator[None]:
    FILE.write_bytes(DATA)
    yield
    FILE.unlink()


def opened(what: Any = None, **options: Any) -> Region:
    """Past the page cache: what costs little has no limbo."""
    source = FileSource(FILE, direct=True) if what is None else what
    return paging.open(source, **{"resident": BUDGET * UNIT, "prefetch_units": 0, **options})


def touch(memory: Region, *units: int) -> None:
    for unit in units:
        assert memory[unit * UNIT] == DATA[unit * UNIT]


def states(memory: Region) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for unit in range(UNITS):
        found.setdefault(memory.state_of(unit * UNIT), set()).add(unit)
    return found


def inconsistency(memory: Region) -> str:
    """What of the units, limbo's places and the counts does not fit together, or nothing; of a region where nothing is under way."""
    control, pager = memory._control, memory._pager
    words = (ctypes.c_uint32 * (-(-control.length // control.unit))).from_address(pager + control.state_offset)
    places = (ctypes.c_uint32 * (2 * control.limbo_places)).from_address(pager + control.limbo_offset)
    in_limbo = {(word >> 16) - 1: unit for unit, word in enumerate(words) if word & STATE_MASK == LIMBO}
    present_count = sum(word & STATE_MASK == PRESENT for word in words)
    held = {index: unit - 1 for index, unit in enumerate(places[1::2]) if unit}
    if any(places[::2]):
        return f"places {[index for index, owner in enumerate(places[::2]) if owner]} are locked"
    if held != in_limbo or control.limbo_count != len(held):
        return f"units say {in_limbo}, places say {held}, the count says {control.limbo_count}"
    if control.resident_units != present_count + len(held):
        return f"{control.resident_units} are counted, {present_count} are present and {len(held)} in limbo"
    return ""


def assert_consistent(memory: Region) -> None:
    """Whoever is dead is found after a while."""
    end = time.monotonic() + 60
    while (wrong := inconsistency(memory)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not wrong


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_what_is_touched_in_limbo_comes_back_without_the_source(mode: str) -> None:
    def child() -> None:
        with opened(mode=mode) as memory:
            touch(memory, *range(BUDGET))
            assert_consistent(memory)
            assert states(memory)["limbo"] == {0, 1}
            in_bytes = memory.stats().in_bytes
            touch(memory, 0, 1)
            assert_consistent(memory)
            stats = memory.stats()
            assert (stats.soft_fault_count, stats.in_bytes, stats.evict_clean_count) == (2, in_bytes, 0)
            # Others have taken their places, and they are spared once.
            assert states(memory)["limbo"] == {2, 3}
            touch(memory, *range(BUDGET, BUDGET + 6))
            assert_consistent(memory)
            assert {0, 1} <= states(memory)["present"]
            assert memory.stats().evict_clean_count == 6
            assert memory[:] == DATA
            assert memory.stats().resident_bytes <= BUDGET * UNIT
            assert_consistent(memory)

    check(child)


def test_what_a_worker_has_read_comes_back_without_it() -> None:
    def child() -> None:
        def numbered(offset: int, view: memoryview) -> None:
            view[:] = DATA[offset : offset + len(view)]

        with opened(numbered, size_bytes=len(DATA)) as memory:
            # A fill that finds others at work puts nothing into limbo: the next one does.
            touch(memory, *range(BUDGET))
            following = iter(range(BUDGET, UNITS))
            while not (waiting := states(memory).get("limbo", set())):
                touch(memory, next(following))
                assert_consistent(memory)
            assert_consistent(memory)
            waiting = states(memory)["limbo"]
            in_bytes = memory.stats().in_bytes
            touch(memory, *waiting)
            assert_consistent(memory)
            assert (memory.stats().soft_fault_count, memory.stats().in_bytes) == (len(waiting), in_bytes)
            assert memory[:] == DATA

    check(child)


def test_where_there_is_no_limbo() -> None:
    """Small units, writable regions, other policies, no budget; what is in memory or in the page cache anyway."""

    def child() -> None:
        options: list[dict[str, Any]] = [
            {"unit": "4 KiB"},
            {"policy": "fifo"},
            {"policy": "lru"},
            {"resident": None},
            {"access": "c"},
            {"what": DATA},
            {"what": FILE},
        ]
        for each in options:
            with opened(**each) as memory:
                assert memory._control.limbo_units == 0
                assert memory[:] == DATA
                assert "limbo" not in states(memory)

    check(child)


def test_a_page_that_was_dropped_before_its_unit_left_is_read_again() -> None:
    def child() -> None:
        with opened() as memory:
            touch(memory, 0)
            memory.madvise(mmap.MADV_DONTNEED, 8192, 4096)
            touch(memory, *range(1, BUDGET))
            assert_consistent(memory)
            assert memory.state_of(0) == "limbo"
            assert memory[:UNIT] == DATA[:UNIT]
            assert memory.stats().soft_fault_count == 1
            assert_consistent(memory)

    check(child)


def test_evict_takes_out_of_limbo_as_well() -> None:
    def child() -> None:
        with opened() as memory:
            touch(memory, *range(BUDGET))
            memory.evict()
            assert states(memory) == {"absent": set(range(UNITS))}
            assert memory.stats().resident_bytes == 0
            assert memory.stats().evict_clean_count == BUDGET
            assert_consistent(memory)
            assert memory[:] == DATA

    check(child)


def test_a_prefetch_leaves_in_limbo_what_is_there() -> None:
    def child() -> None:
        with opened(prefetch_units=4) as memory:
            touch(memory, 7, 3, 11, 2, 9, 5, 0, 12)
            memory.will_need(7 * UNIT, UNIT)
            memory.will_need(20 * UNIT, UNIT)
            while memory.state_of(20 * UNIT) != "present":
                time.sleep(0.001)
            assert memory.stats().soft_fault_count == 0

    check(child)


def test_what_is_unmapped_while_it_is_in_limbo_is_gone() -> None:
    def child() -> None:
        memory = opened()
        touch(memory, *range(BUDGET))
        assert_consistent(memory)
        assert states(memory)["limbo"] == {0, 1}
        assert not libc.munmap(memory._control.base, UNIT)
        end = time.monotonic() + 60
        while memory.state_of(0) != "gone" and time.monotonic() < end:
            time.sleep(0.001)
        assert memory.state_of(0) == "gone"
        assert_consistent(memory)
        assert memory[UNIT:] == DATA[UNIT:]
        os._exit(0)

    exited(child)


def test_what_is_unmapped_on_its_way_to_limbo_is_gone() -> None:
    def child() -> None:
        memory = opened(handlers=2)
        touch(memory, *range(BUDGET - IN_LIMBO))
        with inject(memory, "limbo_moved", "delay", 200_000) as struck:
            # Not by an access, which would hold the GIL meanwhile.
            reader = threading.Thread(target=memory.ensure, args=[10 * UNIT, 1])
            reader.start()
            while not struck.struck_count:
                time.sleep(0.001)
            assert memory.state_of(0) == "evicting"
            assert not libc.munmap(memory._control.base, UNIT)
            reader.join(60)
        assert memory.state_of(0) == "gone"
        assert_consistent(memory)
        assert memory[UNIT:] == DATA[UNIT:]
        os._exit(0)

    exited(child)


def exited(child: object) -> None:
    """As `check`, for children that end without a word."""
    ended = run(child)  # type: ignore[arg-type]
    assert (ended.signal, ended.code) == (0, 0), ended.stderr


@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_any_step_loses_no_unit_and_no_place(step: Point) -> None:
    def child() -> None:
        pick = random.Random(3)
        with opened(handlers=2) as memory:
            deaths = 0
            for skip in range(8):
                with inject(memory, step, "die", skip=skip) as injection:
                    for _ in range(40):
                        # Often one of the last few, which may be in limbo.
                        at = pick.randrange(len(DATA) if pick.random() < 0.5 else BUDGET * UNIT)
                        assert memory[at] == DATA[at]
                    deaths += injection.struck_count
                assert memory.stats().resident_bytes <= BUDGET * UNIT
                assert_consistent(memory)
            assert deaths == 8
            assert memory.stats().soft_fault_count > 10
            assert memory[:] == DATA
            assert not memory.stats().poison_count
            assert_consistent(memory)

    check(child)


@pytest.mark.parametrize("step", ["limbo_locked", "limbo_left", "reserved", "filled", "installed", "woken"])
def test_a_death_on_the_way_back(step: Point) -> None:
    def child() -> None:
        with opened(handlers=2) as memory:
            touch(memory, *range(BUDGET))
            with inject(memory, step, "die") as injection:
                touch(memory, 0)
                end = time.monotonic() + 60  # the page is there before its handler is done
                while not injection.struck_count and time.monotonic() < end:
                    time.sleep(0.001)
                assert injection.struck_count == 1
            assert_consistent(memory)
            assert memory[:] == DATA
            assert_consistent(memory)

    check(child)


def test_threads_that_touch_evict_and_die_at_once() -> None:
    def child() -> None:
        with opened(handlers=3) as memory:
            wrong: list[int] = []

            def reader(seed: int) -> None:
                pick = random.Random(seed)
                for _ in range(400):
                    at = pick.randrange(len(DATA))
                    if memory.read_at(at, 1) != DATA[at : at + 1]:
                        wrong.append(at)
                    if pick.random() < 0.05:
                        memory.evict(at // UNIT * UNIT, UNIT)

            threads = [threading.Thread(target=reader, args=[seed]) for seed in range(4)]
            for thread in threads:
                thread.start()
            for step in STEPS * 2:
                with inject(memory, step, "die"):
                    time.sleep(0.02)
            for thread in threads:
                thread.join(60)
            assert not wrong
            assert memory[:] == DATA
            assert_consistent(memory)

    check(child)


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_a_worker_that_dies_and_handlers_that_die_over_it(mode: str) -> None:
    def child() -> None:
        def copied(offset: int, view: memoryview) -> None:
            view[:] = DATA[offset : offset + len(view)]

        with opened(copied, size_bytes=len(DATA), mode=mode, handlers=3, prefetch_units=4) as memory:
            wrong: list[int] = []

            def reader(seed: int) -> None:
                pick = random.Random(seed)
                for _ in range(200):
                    at = pick.randrange(len(DATA))
                    memory.ensure(at, 1)
                    if memory.read_at(at, 1) != DATA[at : at + 1]:
                        wrong.append(at)
                    if pick.random() < 0.05:
                        memory.evict(at // UNIT * UNIT, UNIT)

            threads = [threading.Thread(target=reader, args=[seed]) for seed in range(3)]
            for thread in threads:
                thread.start()
            for step in STEPS[:4]:
                with inject(memory, step, "die"):
                    assert memory._worker
                    os.kill(memory._worker.pid, signal.SIGKILL)
                    time.sleep(0.05)
            for thread in threads:
                thread.join(60)
            assert not wrong
            assert memory.read_at(0, len(DATA)) == DATA
            assert memory.stats().soft_fault_count
            assert_consistent(memory)

    check(child)


def test_a_source_that_fails_leaves_limbo_as_it_was() -> None:
    def child() -> None:
        with opened() as memory:
            touch(memory, *range(BUDGET))
            with (
                inject(memory, "copy", "errno", 28, times=100),
                inject(memory, "move_in", "errno", 28, times=100),
                pytest.raises(SourceError),
            ):
                memory.read_at(0, 1)
            assert_consistent(memory)
            assert memory.read_at(0, len(DATA)) == DATA
            assert_consistent(memory)

    check(child)
