"""The final states of a program, read: both engines and both searches find the same ones."""

from __future__ import annotations

import pytest

from userfault.check.outcomes import find_outcomes, native_outcomes, reference_outcomes
from userfault.check.reduce import reduction
from userfault.check.result import Options
from userfault.litmus import compile_outcomes, load
from userfault.litmus.read import read

CASES = [("move+move", "v6.8"), ("R31-hole", "v6.8"), ("R10-move", "v3.10+seed"), ("R13-fork", "v6.8")]


@pytest.mark.parametrize(("name", "era"), CASES)
def test_every_search_finds_the_same_outcomes(name: str, era: str) -> None:
    program = compile_outcomes(load(name), era)
    options = Options()
    wanted = native_outcomes(program, options, None)
    assert wanted.complete and wanted.outcomes
    reduced = reduction(program, symmetry=False)
    assert native_outcomes(program, options, reduced).outcomes == wanted.outcomes
    if wanted.states < 3000:
        assert reference_outcomes(program, options, None).outcomes == wanted.outcomes
        assert reference_outcomes(program, options, reduced).outcomes == wanted.outcomes


def test_two_movers_end_in_four_ways() -> None:
    found = find_outcomes(compile_outcomes(load("move+move"), "v6.8"))
    assert found.outcomes == {(1, -17, -1, 1), (1, -2, -1, 1), (-17, 1, -1, 1), (-2, 1, -1, 1)}


def test_what_comes_after_a_broken_state_is_no_outcome() -> None:
    found = find_outcomes(compile_outcomes(load("S4"), "v3.10+seed"))
    assert not found.complete
    assert found.failure is not None and found.failure.property == "page_is_linear"


def test_a_bound_is_said() -> None:
    found = find_outcomes(compile_outcomes(load("move+move"), "v6.8"), Options(max_states=50))
    assert not found.complete and found.failure is None


def test_a_state_s_letters_are_read() -> None:
    text = (
        'userfault T\n"Where is it?"\n{ A:0-1 = P; A:2-3 userfault; swapout P; }\nP0 : A ;\nmove 2 <- 0 ;\n'
        "locations [present(A:0); swapped(A:0); swapped(A:2); mapcount(P); [A:2];]\nexpect v6.8 holds\n"
    )
    found = find_outcomes(compile_outcomes(read(text, "t.litmus"), "v6.8"))
    assert found.outcomes == {(0, 0, 1, 0, 1)}
