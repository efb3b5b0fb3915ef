"""Races on the running kernel: outcomes are counted, faults are outcomes, and nothing hangs."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from userfault.kernel.errors import KernelError
from userfault.kernel.race import MAX_THREADS, Op, Race, crowded, operations, run_race
from userfault.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="the native core is not built: apt-get install gcc libc6-dev")

PAGE, RW = 4096, 3
ONE = (Op("map", (0, PAGE, 0, RW)), Op("store", (0, 7)))


def alone(*ops: Op, setup: tuple[Op, ...] = ONE, fields: int) -> tuple[int, ...]:
    seen = run_race(Race((setup,), ((0, ops),), ((),), fields), 3)
    assert seen.rounds == 3 and len(seen.counts) == 1, seen
    return next(iter(seen.counts))


def test_every_round_begins_anew_and_is_counted() -> None:
    race = Race((ONE,), ((0, (Op("load", (0,), 0), Op("store", (0, 9), 1))),), ((Op("content", (0,), 2),),), 3)
    seen = run_race(race, 200)
    assert seen.counts == {(7, 0, 9): 200}
    assert (seen.rounds, seen.failures, seen.hangs) == (200, 0, ())


def test_a_fault_is_an_outcome() -> None:
    assert alone(Op("load", (PAGE,), 0), Op("store", (PAGE, 1), 1), fields=2) == (-11, -11)


def test_what_a_call_returns_is_its_errno() -> None:
    assert alone(Op("advise", (0, PAGE, 9999), 0), Op("munmap", (1, PAGE), 1), fields=2) == (-22, -22)


def test_both_orders_of_two_stores_are_seen() -> None:
    threads = tuple((0, (Op("store", (0, value)),)) for value in (1, 2))
    seen = run_race(Race((ONE,), threads, ((Op("content", (0,), 0),),), 1), 2000)
    assert set(seen.counts) == {(1,), (2,)}


def test_a_forked_child_sees_its_own_copy() -> None:
    threads = ((0, (Op("fork", (1,), 0), Op("store", (0, 8), 1))),)
    observe = ((Op("content", (0,), 2),), (Op("content", (0,), 3),))
    seen = run_race(Race((ONE, ()), threads, observe, 4), 20)
    assert seen.counts == {(0, 0, 8, 7): 20}


def test_a_thread_runs_in_another_address_space() -> None:
    threads = ((0, (Op("load", (0,), 0),)), (1, (Op("store", (0, 5)), Op("load", (0,), 1))))
    seen = run_race(Race(((*ONE, Op("child", (1, 0))), ()), threads, ((), ()), 2), 20)
    assert seen.counts == {(7, 5): 20}


def test_an_initial_state_that_never_comes_about_is_given_up() -> None:
    seen = run_race(Race(((Op("protect", (0, PAGE, 99)),),), ((0, ()),), ((),), 1), 10_000)
    assert seen.counts == {} and seen.rounds < 1000
    assert (seen.failure, seen.failed_at) == (-22, 0)


def test_an_event_is_waited_for_no_longer_than_somebody_may_raise_one() -> None:
    waiting = (Op("event", (60_000,), 0),)
    seen = run_race(Race(((Op("open"),),), ((0, ()), (0, waiting)), ((),), 1), 5)
    assert (seen.counts, seen.hangs) == ({(-errno.EAGAIN,): 5}, ())


def test_a_round_that_does_not_end_is_killed_and_said() -> None:
    # A pipe's reader that is never given anything: the thread's own `hang` sleeps for good.
    threads = ((0, (Op("load", (0,), 0), Op("sleep", (600,)))),)
    seen = run_race(Race((ONE,), threads, ((),), 1), 5, patience=0.3)
    assert seen.hangs == ((0, 1),)
    assert seen.rounds == 0


def test_a_round_has_more_time_where_more_wants_to_run_than_there_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for load, times in ((0.5, 1.0), (2.0, 1.0), (8.0, 4.0)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert crowded() == times


def test_no_process_is_left_behind(children: Callable[[], set[str]]) -> None:
    before = children()
    run_race(Race(((*ONE, Op("child", (1, 0))), ()), ((1, ()),), ((), ()), 1), 5)
    assert children() <= before


def test_a_race_that_is_too_large_is_refused() -> None:
    with pytest.raises(KernelError, match="too large"):
        run_race(Race(((),), ((0, ()),) * (MAX_THREADS + 1), ((),), 1), 1)


def test_the_operations_are_known_by_name() -> None:
    assert {"move", "load", "fork"} <= set(operations())
