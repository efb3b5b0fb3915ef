"""Traces: their shape, and that a replay string is the schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.errors import CheckError
from userfault.check.explore import explore
from userfault.check.ir import Program
from userfault.check.result import Move
from userfault.check.trace import decode_schedule, encode_schedule, render, replay

from . import programs as p

moves = st.lists(
    st.builds(
        Move,
        st.integers(0, 3),
        st.one_of(st.just(()), st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple).filter(any)),
    ),
    min_size=1,
)


@given(moves)
def test_a_schedule_survives_its_string(schedule: list[Move]) -> None:
    assert decode_schedule(encode_schedule(schedule)) == schedule


@pytest.mark.parametrize("text", ["", "x", "1x", "1y2", "0x9999999", "1x2..0"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(CheckError, match="not a part of a schedule"):
        decode_schedule(text)


def racing(threads: int) -> Program:
    s = p.fresh(threads)
    specs = [ThreadSpec(f"P{n}", [Call(p.increment, (s, False))]) for n in range(threads)]
    return compile_program("race", specs, finals=[Call(p.add_up, (s, threads))])


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_a_trace_fits_a_commit_message(threads: int) -> None:
    program = racing(threads)
    result = explore(program)
    text = render(program, result.schedule)
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 76
    assert "broken: sum" in text
    assert "s.x = before + 1" in text
    assert "shared0.x: 0 -> 1" in " ".join(text.replace("|", " ").split()) or threads > 2


def test_a_schedule_that_does_not_fit_says_where() -> None:
    program = racing(2)
    with pytest.raises(CheckError, match="step 2 of the schedule is of thread 0, which has ended"):
        replay(program, [Move(0), Move(0), Move(0)])
    with pytest.raises(CheckError, match="thread 7, which this program does not have"):
        replay(program, [Move(7)])


def test_a_schedule_into_a_wait_is_refused() -> None:
    s = p.fresh()
    specs = [ThreadSpec("P0", [Call(p.a_then_b, (s,))]), ThreadSpec("P1", [Call(p.a_then_b, (s,))])]
    program = compile_program("wait", specs)
    with pytest.raises(CheckError, match="step 1 of the schedule is of thread 1, which waits there"):
        replay(program, [Move(0), Move(1)])


def test_a_deadlock_trace_says_who_waits_where() -> None:
    s = p.fresh()
    specs = [ThreadSpec("P0", [Call(p.a_then_b, (s,))]), ThreadSpec("P1", [Call(p.b_then_a, (s,))])]
    program = compile_program("abba", specs)
    text = render(program, explore(program).schedule)
    assert "broken: deadlock" in text
    assert "CPU0 waits at" in text
    assert "lock(s.b)" in text
