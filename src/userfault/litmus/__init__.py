"""Litmus tests: the format, the library, mutants, and what the author of each expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..check.ir import Program
from ..check.result import Result
from ..model.era import ERAS
from .ast import EXISTS, At, Atom, Formula, Test
from .errors import LitmusError
from .matrix import generate, matrix_jobs
from .mutants import Mutant, find_mutant, in_order, mutant_library
from .read import read, read_file

__all__ = [
    "LitmusError",
    "Mutant",
    "Test",
    "compile_outcomes",
    "compile_test",
    "expected",
    "jobs_for",
    "judged",
    "library",
    "load",
    "matrix_jobs",
    "mutant_library",
    "outcome_program",
]


@cache
def library() -> tuple[Test, ...]:
    """Every test that comes with the package, by name."""
    folder = files(__package__).joinpath("library")
    names = [each.name.removesuffix(".litmus") for each in folder.iterdir() if each.name.endswith(".litmus")]
    return tuple(map(_from_library, sorted(names, key=in_order)))


@cache
def _from_library(name: str) -> Test:
    place = files(__package__).joinpath("library", f"{name}.litmus")
    test = read(place.read_text(), f"{name}.litmus")
    if test.name != name:
        raise LitmusError(f"{name}.litmus: the test calls itself {test.name}: the file must be named after it")
    return test


def load(name: str) -> Test:
    """A test by its library name, or from a file. Raises LitmusError."""
    if files(__package__).joinpath("library", f"{name}.litmus").is_file():
        return _from_library(name)
    if name.startswith("matrix/"):
        return generate(name)
    path = Path(name)
    if name and (path.suffix == ".litmus" or path.exists()):
        return read_file(path)
    raise LitmusError(f"there is no test {name!r} in the library and no such file: see `userfault litmus list`")


def compile_test(test: Test, era: str, mutant: str | None = None) -> Program:
    """The program of a test on an era, with a mutant or as the kernel was. Raises LitmusError, CheckError."""
    from .build import Builder

    return Builder(test, era).program(mutant)


def compile_outcomes(test: Test, era: str) -> Program:
    """The program of a test for `check.outcomes`: whose final states are read as `test.outcome`. Raises LitmusError."""
    from .build import Builder

    return Builder(test, era).program(None, outcome=True)


def outcome_program(test: Test, era: str, outcome: Sequence[int]) -> Program:
    """The program of a test in which reaching that outcome breaks the property `condition`: for a trace to it."""
    from .build import Builder

    pairs = zip(test.outcome, outcome, strict=True)
    atoms = tuple(Atom(At(1, 1), value, "=", number) for value, number in pairs)
    goal = replace(test, quantifier="~exists", condition=Formula("and", atoms), ignore=frozenset())
    return Builder(goal, era).program(None)


def expected(test: Test, era: str, mutant: str | None = None) -> tuple[str, str]:
    """(verdict, property) that the author of the test, or of the mutant, expects."""
    if mutant:
        which = find_mutant(mutant)
        if (which.test, which.era) == (test.name, era):
            return which.expected()
    for each in test.expect:
        if each.era == era:
            return each.verdict, each.property
    return "holds", ""


def judged(test: Test, result: Result) -> tuple[str, str, str]:
    """(verdict, property, what was found): a search's, or what a search that found nothing wrong has never seen.

    `sometimes` is broken by a situation that is never reached, `condition` by an `exists` that no run makes true.
    """
    if result.verdict != "holds":
        return result.verdict, *((result.failure.property, result.failure.message) if result.failure else ("", ""))
    if test.quantifier == "exists" and EXISTS not in result.reached:
        return "violated", "condition", "no run ends in a state that the test asks for"
    missing = [name for name in test.sometimes if name not in result.reached]
    if missing:
        return "violated", "sometimes", f"never reached: {', '.join(missing)}"
    return result.verdict, "", ""


def jobs_for(tests: Sequence[str], eras: Sequence[str], mutant: str) -> list[tuple[str, str, str]]:
    """(test, era, mutant) for a command line; no tests: the library, or what kills the mutant. Raises LitmusError."""
    for era in eras:
        if era not in ERAS:
            raise LitmusError(f"there is no era {era!r}: one of {', '.join(ERAS)}")
    if mutant == "all":
        every = [
            (m.test, m.era, m.name)
            for m in mutant_library()
            if not ((eras and m.era not in eras) or (tests and m.test not in tests))
        ]
        if not every:
            raise LitmusError(
                f"no mutant is killed by {', '.join(tests) or 'a test'} on {', '.join(eras) or 'any era'}"
            )
        return every
    if mutant and not tests:
        which = find_mutant(mutant)
        return [(which.test, era, mutant) for era in (eras or (which.era,))]
    if mutant:
        find_mutant(mutant)
    jobs = []
    for name in tests or [test.name for test in library()]:
        test = load(name)
        wanted = [era for era in test.eras if not eras or era in eras]
        if tests and not wanted:
            raise LitmusError(f"{name} says nothing of {', '.join(eras)} (it has {', '.join(test.eras)})")
        jobs += [(name, era, mutant) for era in wanted]
    return jobs
