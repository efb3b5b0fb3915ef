"""Is every outcome that the kernel showed one that the model allows?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ...check.engine import fewest_switches, run
from ...check.errors import CheckError
from ...check.outcomes import Outcome, find_outcomes
from ...check.result import Move, Options
from ...litmus import LitmusError, Test, compile_outcomes, outcome_program
from ...litmus.ast import Column, Operation, Vma
from ...litmus.operations import OPERATIONS
from ...model.era import differing
from .histogram import Histogram
from .lower import Unrunnable


@dataclass(frozen=True)
class Nearest:
    """The model's outcome that differs in the fewest values from one that it does not allow, and a run to it.

    whole: with the values that the kernel does not say.
    """

    values: Outcome
    whole: Outcome
    era: str
    schedule: tuple[Move, ...]


@dataclass(frozen=True)
class Comparison:
    """allowed: what the model allows, seen or not. complete: False if the model was not explored to the end, so that
    "not allowed" can't be said. mismatches: seen, how often, and the nearest that is allowed (None: nothing is). visited: seen, and
    how often, where the model allows it if a stranger looks at a page meanwhile. differences: in what the era was otherwise.
    """

    era: str
    allowed: frozenset[Outcome]
    complete: bool
    broken: str
    states: int
    mismatches: tuple[tuple[Outcome, int, Nearest | None], ...]
    unseen: int
    visited: tuple[tuple[Outcome, int], ...] = ()
    differences: Mapping[str, bool] = field(default_factory=dict)


def compare(
    histogram: Histogram,
    era: str,
    options: Options | None = None,
    engine: str = "auto",
    differences: Mapping[str, bool] = MappingProxyType({}),
) -> Comparison:
    """Explore the test on an era and look up what was seen. differences: of the kernel's from the era.

    Raises Unrunnable where the era has no such test.
    """
    with differing(era, differences):
        return replace(_compare(histogram, era, options, engine), differences=differences)


def _compare(histogram: Histogram, era: str, options: Options | None, engine: str) -> Comparison:
    test = histogram.test
    if test.kernel_only:
        raise Unrunnable(f"no era of the model runs it: {test.kernel_only}", "without --compare, the kernel alone")
    if era not in test.eras:
        raise Unrunnable(f"it says nothing of {era} (it has {', '.join(test.eras)})", f"add `expect {era} ...`")
    found = find_outcomes(compile_outcomes(test, era), options, engine)
    # What an operation returns may mean something else here: then it is in no outcome of the kernel's.
    shared = [test.outcome.index(field) for field in histogram.fields]
    whole = {tuple(values[at] for at in shared): values for values in sorted(found.outcomes)}
    allowed = set(whole)
    seen = {row.values: row.count for row in histogram.rows}
    others = {values: count for values, count in seen.items() if values not in allowed and found.complete}
    visited: dict[Outcome, int] = {}
    for stranger in strangers(test, era) if others else ():
        try:
            more = find_outcomes(compile_outcomes(stranger, era), options, engine).outcomes
        except (CheckError, LitmusError):
            continue
        more = {tuple(values[at] for at in shared) for values in more}
        visited |= {values: count for values, count in others.items() if values in more}
    mismatches = [
        (values, count, nearest(test, era, values, whole)) for values, count in others.items() if values not in visited
    ]
    return Comparison(
        era=era,
        allowed=frozenset(allowed),
        complete=found.complete,
        broken=found.failure.property if found.failure is not None else "",
        states=found.states,
        mismatches=tuple(mismatches),
        unseen=len(allowed - seen.keys()),
        visited=tuple(visited.items()),
    )


def strangers(test: Test, era: str) -> Iterator[Test]:
    """The test with one thread more, which looks at a page: reclaim, DAMON and compaction do so with any page, at any time, and hold
    a reference meanwhile.
    """
    if era not in (OPERATIONS[LOOK].eras or (era,)):
        return
    for vma in test.init:
        for page in vma.pages if isinstance(vma, Vma) else ():
            if page not in ("none", "zero"):
                look = Column(vma.at, f"P{len(test.threads)}", "", (Operation(vma.at, LOOK, (page,)),))
                yield replace(test, threads=(*test.threads, look))


LOOK = "idle"


def nearest(test: Test, era: str, values: Outcome, allowed: dict[Outcome, Outcome]) -> Nearest | None:
    """The closest of the model's outcomes (with what the kernel does not say), and the run to it with the fewest context
    switches.
    """
    if not allowed:
        return None
    best = min(allowed, key=lambda each: (sum(a != b for a, b in zip(each, values, strict=True)), each))
    program = outcome_program(test, era, allowed[best])
    result = run(program)
    if result.failure is None:
        return None
    moves = fewest_switches(program, result.failure) or result.schedule
    return Nearest(best, allowed[best], era, tuple(moves))
