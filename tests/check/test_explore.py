"""The reference engine on programs whose outcome is known by hand."""

from __future__ import annotations

import pytest

from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.explore import explore, fewest_switches
from userfault.check.ir import Program
from userfault.check.result import Options
from userfault.check.trace import replay, switches

from . import programs as p


def two(*calls: Call, invariants: tuple[Call, ...] = (), finals: tuple[Call, ...] = ()) -> Program:
    threads = [ThreadSpec(f"P{number}", [call]) for number, call in enumerate(calls)]
    return compile_program("test", threads, invariants=invariants, finals=finals)


def increments(locked: bool) -> Program:
    s = p.fresh()
    call = Call(p.increment, (s, locked))
    return two(call, call, finals=(Call(p.add_up, (s, 2)),))


def test_two_unlocked_increments_lose_an_update() -> None:
    result = explore(increments(False))
    assert (result.verdict, result.failure and result.failure.property) == ("violated", "sum")
    assert (result.states, result.transitions, result.depth) == (12, 14, 4)


def test_two_locked_increments_hold_in_exactly_these_states() -> None:
    result = explore(increments(True))
    assert (result.verdict, result.states, result.transitions) == ("holds", 16, 16)


def test_the_printed_schedule_has_the_fewest_switches() -> None:
    program = increments(False)
    result = explore(program)
    assert result.failure is not None
    moves = fewest_switches(program, result.failure)
    assert moves is not None
    assert (switches(moves), len(moves)) == (2, 4)
    assert replay(program, moves).failure == result.failure


def test_a_lock_order_inversion_deadlocks() -> None:
    s = p.fresh()
    program = two(Call(p.a_then_b, (s,)), Call(p.b_then_a, (s,)))
    result = explore(program)
    assert result.failure is not None
    assert (result.failure.property, result.depth) == ("deadlock", 2)
    moves = fewest_switches(program, result.failure)
    assert moves is not None
    assert (len(moves), switches(moves)) == (2, 1)
    assert replay(program, moves).failure == result.failure


def test_one_lock_order_does_not_deadlock() -> None:
    s = p.fresh()
    assert explore(two(Call(p.a_then_b, (s,)), Call(p.a_then_b, (s,)))).verdict == "holds"


def test_two_threads_that_step_back_for_each_other_may_do_so_forever() -> None:
    s = p.fresh()
    program = two(Call(p.polite, (s, True)), Call(p.polite, (s, False)))
    result = explore(program)
    assert result.failure is not None
    assert result.failure.property == "termination"
    assert result.lasso >= 0
    assert replay(program, result.schedule, result.lasso).failure == result.failure


def test_spinning_until_the_holder_lets_go_is_no_livelock() -> None:
    s = p.fresh()
    assert explore(two(Call(p.spin, (s,)), Call(p.a_then_b, (s,)))).verdict == "holds"
    assert explore(two(Call(p.spin, (s,)), Call(p.spin, (s,)))).verdict == "holds"


def test_every_choice_is_explored() -> None:
    s = p.fresh()
    result = explore(two(Call(p.roll, (s,))))
    assert result.verdict == "holds"
    assert result.reached == {"rolled a two"}


def test_a_value_out_of_range_is_a_violation() -> None:
    s = p.fresh()
    result = explore(two(Call(p.overflow, (s,)), Call(p.overflow, (s,))))
    assert result.failure is not None
    assert result.failure.property == "range"


def test_following_a_pointer_that_is_taken_away_is_a_violation() -> None:
    s = p.fresh()
    s.other = p.other_t(3)
    assert explore(two(Call(p.follow, (s,)))).verdict == "holds"
    result = explore(two(Call(p.follow, (s,)), Call(p.drop, (s,))))
    assert result.failure is not None
    assert result.failure.property == "dereference"


def test_an_invariant_sees_every_state() -> None:
    s = p.fresh()
    program = two(Call(p.set_five, (s,)), invariants=(Call(p.never_five, (s,)),))
    result = explore(program)
    assert result.failure is not None
    assert (result.failure.property, result.depth) == ("never_five", 1)


def test_unlocking_what_another_holds_is_misuse() -> None:
    s = p.fresh()
    result = explore(two(Call(p.lock, (s.a,)), Call(p.unlock, (s.a,))))
    assert result.failure is not None
    assert result.failure.property == "lock_misuse"


def test_a_bound_is_never_called_holding() -> None:
    result = explore(increments(True), Options(max_states=5))
    assert result.verdict == "bound"


@pytest.mark.parametrize("dead_locals", [True, False])
def test_forgetting_dead_locals_changes_no_verdict(dead_locals: bool) -> None:
    options = Options(dead_locals=dead_locals)
    for locked in (True, False):
        expected = "holds" if locked else "violated"
        assert explore(increments(locked), options).verdict == expected
    fewer = explore(increments(False), Options(keep_going=True)).states
    assert fewer <= explore(increments(False), Options(keep_going=True, dead_locals=False)).states
