"""Every test of the library does what its author expects; every mutant is killed by the property that it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files

import pytest

from userfault.check.engine import fewest_switches, run
from userfault.check.ir import Program
from userfault.check.trace import replay
from userfault.litmus import Test, compile_test, expected, judged, library, load, mutant_library

CASES = [(test, era) for test in library() for era in test.eras]


@pytest.mark.parametrize(("test", "era"), CASES, ids=[f"{test.name}@{era}" for test, era in CASES])
def test_the_verdict_is_as_expected(test: Test, era: str, compiled: Callable[[str, str], Program]) -> None:
    program = compiled(test.name, era)
    result = run(program)
    assert judged(test, result)[:2] == expected(test, era)
    if result.failure is not None and result.lasso < 0:
        moves = fewest_switches(program, result.failure)
        assert moves is not None
        assert replay(program, moves).failure == result.failure


@pytest.mark.parametrize("mutant", mutant_library(), ids=[m.name for m in mutant_library()])
def test_a_mutant_is_killed_by_its_property(mutant: object) -> None:
    from userfault.litmus import Mutant

    assert isinstance(mutant, Mutant)
    test = load(mutant.test)
    result = run(compile_test(test, mutant.era, mutant.name))
    assert judged(test, result)[:2] == mutant.expected()
    # The kernel as it was does not break it (or does, where the patch closes a hole): the patch is what makes the difference.
    assert (expected(test, mutant.era)[1] == mutant.property) == mutant.closes


SHADOWED = {"freed_page_is_unmapped": "bad_free and mapcount_is_exact speak first: a page is freed at mapcount 0 only"}


def test_every_property_has_a_mutant_that_it_kills() -> None:
    # What the checker itself looks for; what the model names is found in its text.
    named = {"deadlock", "termination", "condition", "sometimes"}
    for file in files("userfault.model").iterdir():
        if file.name.endswith(".py"):
            calls = re.findall(r"check\((?:[^()]|\([^()]*\))*?,\s*\"(\w+)\",", file.read_text())
            named |= set(calls)
    assert len(named) > 15
    killing = {mutant.property for mutant in mutant_library() if not mutant.closes}
    assert named - killing == SHADOWED.keys()
