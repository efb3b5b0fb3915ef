"""A reduced search finds what the full one finds, in no more states."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check import explore, native
from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.ir import Program
from userfault.check.reduce import reduction
from userfault.check.result import Options, Result
from userfault.litmus import library

from . import programs as p
from .test_engines import STATEMENTS, made


def same(
    program: Program, persistent: bool = True, chains: bool = True, symmetry: bool = True, pools: bool = True
) -> Result:
    """Both engines' reduced searches find what the full one finds. Returns the reference engine's."""
    full = native.explore(program, Options(keep_going=True, liveness=False))
    sets = reduction(program, persistent, chains, symmetry, pools)
    while True:
        reduced = explore.explore_reduced(program, sets)
        fast = native.explore_reduced(program, sets)
        assert (fast.verdict == "holds", fast.mixed) == (reduced.verdict == "holds", reduced.mixed)
        if reduced.verdict == "holds" or reduced.mixed:
            assert (fast.states, fast.transitions) == (reduced.states, reduced.transitions)
            assert (fast.reached, fast.cyclic, fast.levels) == (reduced.reached, reduced.cyclic, reduced.levels)
        if not reduced.mixed:
            break
        sets = sets.without(program, reduced.mixed)
    assert (reduced.verdict == "holds") == (full.verdict == "holds")
    assert reduced.states <= full.states
    if full.verdict == "holds":
        assert reduced.reached == full.reached
        endless = native.explore(program).failure is not None
        assert reduced.cyclic or not endless
    return reduced


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.lists(STATEMENTS, min_size=1, max_size=5), min_size=1, max_size=3),
    *[st.booleans()] * 4,
)
def test_on_is_off_on_random_programs(
    bodies: list[list[str]], twice: bool, persistent: bool, chains: bool, symmetry: bool
) -> None:
    """twice: two threads run the first body."""
    same(made(bodies[:2] + bodies[:1] if twice else bodies), persistent, chains, symmetry)


def test_the_engines_agree_whatever_representative_they_take() -> None:
    writer = ["s.x = (s.x + 1) & 7", "s.y = s.x"]
    same(made([writer, ["s.y = s.x"], writer]), chains=False)


SMALL = ["S1", "S1-munmap", "R13-dontfork", "R31-exist", "R35-same", "R19-oops"]


@pytest.mark.parametrize("name", SMALL)
def test_on_is_off_on_the_library(name: str, compiled: Callable[[str, str], Program]) -> None:
    test = next(test for test in library() if test.name == name)
    for era in test.eras:
        same(compiled(name, era))


def test_two_threads_of_their_own_are_not_interleaved() -> None:
    s = [p.fresh(), p.fresh()]
    program = compile_program("t", [ThreadSpec(f"P{n}", [Call(p.increment, (s[n], True))]) for n in range(2)])
    full = explore.explore(program).states
    assert explore.explore_reduced(program, reduction(program, chains=False)).states < full
    assert explore.explore_reduced(program, reduction(program)).states < full / 2


def test_threads_alike_are_counted_once() -> None:
    s = p.fresh()
    program = compile_program("t", [ThreadSpec(f"P{n}", [Call(p.increment, (s, False))]) for n in range(3)])
    full = explore.explore(program).states
    sets = reduction(program, persistent=False)
    assert sets.alike == [[0, 1, 2]]
    reduced = explore.explore_reduced(program, sets)
    assert reduced.states < full / 2
    assert native.explore_reduced(program, sets).states == reduced.states
