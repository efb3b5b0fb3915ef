"""Endless fair runs: both engines find one wherever there is one, and what they show is one."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check import explore, native
from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.explore import Machine, State, Violation
from userfault.check.ir import Program
from userfault.check.result import Result
from userfault.check.trace import replay

from . import programs as p
from .test_engines import made, outcome


def nag(s: p.shared) -> None:
    """Looks for something under the lock, again and again, until the visitor has been."""
    while s.y == 0:
        p.lock(s.a)
        while s.x == 0:
            pass
        p.unlock(s.a)


def toggle(s: p.shared) -> None:
    """Shows it and hides it until the visitor has been."""
    while s.y == 0:
        s.x = 1
        s.x = 0
    s.x = 1


def visit(s: p.shared) -> None:
    p.lock(s.a)
    s.y = 1
    p.unlock(s.a)


def graph(program: Program) -> tuple[dict[State, list[tuple[int, State]]], dict[State, set[int]]]:
    machine = Machine(program)
    edges: dict[State, list[tuple[int, State]]] = {}
    enabled: dict[State, set[int]] = {}
    work = [machine.initial()]
    while work:
        state = work.pop()
        if state in edges:
            continue
        outcomes = [(t, after) for t in range(len(program.threads)) for _, after in machine.successors(state, t)]
        enabled[state] = {t for t, _ in outcomes}
        edges[state] = [(t, after) for t, after in outcomes if not isinstance(after, Violation)]
        work += [after for _, after in edges[state]]
    return edges, enabled


def endless(program: Program) -> bool:
    """By trying every set of threads that may be shut out: in the states where none of them can move, all others go round."""
    edges, enabled = graph(program)
    threads = range(len(program.threads))
    for size in range(len(threads)):
        for out in map(set, combinations(threads, size)):
            left = {s for s in edges if not enabled[s] & out}
            for start in left:
                reach = closure(start, edges, left)
                around = {s for s in reach if start in closure(s, edges, left)}
                if {t for s in around for t, after in edges[s] if after in around} | out == set(threads):
                    return True
    return False


def closure(start: State, edges: dict[State, list[tuple[int, State]]], left: set[State]) -> set[State]:
    seen: set[State] = set()
    work = [start]
    while work:
        for _, after in edges[work.pop()]:
            if after in left and after not in seen:
                seen.add(after)
                work.append(after)
    return seen


def is_fair(program: Program, result: Result) -> bool:
    """Does everybody who can move somewhere on the lasso's cycle move in it, and does it close?"""
    machine = Machine(program)
    state = machine.initial()
    states = [state]
    for move in result.schedule:
        after, _ = machine.step(state, move.thread, move.choices)
        state = after
        states.append(state)
    cycle = states[result.lasso :]
    movers = {move.thread for move in result.schedule[result.lasso :]}
    able = {t for s in cycle for t in range(len(program.threads)) if any(True for _ in machine.successors(s, t))}
    return cycle[0] == cycle[-1] and bool(movers) and able <= movers


def test_a_fair_cycle_in_a_larger_component_is_found() -> None:
    """The visitor can come in while the lock is free, but not in the cycle in which the nag keeps it."""
    s = p.fresh(3)
    specs = [ThreadSpec(fn.__name__, [Call(fn, (s,))]) for fn in (nag, toggle, visit)]
    program = compile_program("nag", specs)
    for engine in (explore, native):
        result = engine.explore(program)
        assert result.failure is not None and result.failure.property == "termination"
        assert is_fair(program, result)
        assert {move.thread for move in result.schedule[result.lasso :]} == {0, 1}
        assert replay(program, result.schedule, result.lasso).failure == result.failure


def test_who_waits_for_a_lock_that_is_free_again_and_again_gets_it() -> None:
    s = p.fresh(2)

    def holder(s: p.shared) -> None:
        while s.y == 0:
            p.lock(s.a)
            p.unlock(s.a)

    program = compile_program("holder", [ThreadSpec("h", [Call(holder, (s,))]), ThreadSpec("v", [Call(visit, (s,))])])
    assert explore.explore(program).verdict == native.explore(program).verdict == "holds"
    assert not endless(program)


LOOPS = st.sampled_from(
    [
        "lock(s.a)",
        "unlock(s.a)",
        "lock(s.b)",
        "unlock(s.b)",
        "s.y = 1",
        "s.x = 1 - s.x",
        "while s.x == 0:\n    pass",
        "while s.y == 0:\n    s.x = 1 - s.x",
        "while s.y == 0:\n    lock(s.a)\n    while s.x == 1:\n        pass\n    unlock(s.a)",
        "while s.x == 0:\n    if trylock(s.b):\n        unlock(s.b)",
        "while choose(2):\n    lock(s.b)\n    unlock(s.b)",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(LOOPS, min_size=1, max_size=2), min_size=1, max_size=3))
def test_there_is_a_lasso_exactly_if_there_is_an_endless_fair_run(bodies: list[list[str]]) -> None:
    # What is written is read anew in every round.
    program = made([["s.x = s.x", "s.y = s.y", *bodies[0]], *bodies[1:]])
    slow, fast = explore.explore(program), native.explore(program)
    assert outcome(slow) == outcome(fast)
    if slow.verdict == "holds":
        assert not endless(program)
    elif slow.lasso >= 0:
        assert is_fair(program, slow) and is_fair(program, fast)


@pytest.mark.parametrize(
    ("bodies", "forever"),
    [
        ([["s.x = 0", "while s.x == 0:\n    pass"]], True),
        ([["while s.y == 0:\n    s.x = 1 - s.x"], ["s.y = 1"]], False),
    ],
)
def test_the_oracle_tells_the_two_apart(bodies: list[list[str]], forever: bool) -> None:
    assert endless(made(bodies)) == forever
