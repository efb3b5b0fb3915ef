"""Running litmus tests on this kernel, and holding what they show against the test and the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...kernel.race import TELLING, WAITS, Outcomes, run_race
from ...litmus import Test
from ...litmus.ast import atoms
from ...model.era import ERAS
from .compare import Comparison, compare
from .eras import running_era
from .histogram import Histogram, make_histogram, show_outcome
from .lower import Unrunnable, lower
from .needs import require


@dataclass
class Run:
    """What came of a test. skipped: why it did not run, with the remedy; not_compared: why no model was asked. era, known and
    differences are RunningEra's. provoked: Outcomes.provoked, None where no thread asks the kernel for what it may leave undone.
    """

    test: Test
    skipped: str = ""
    histogram: Histogram | None = None
    seen: Outcomes | None = None
    comparison: Comparison | None = None
    not_compared: str = ""
    era: str = ""
    known: str = ""
    differences: Mapping[str, bool] = field(default_factory=dict)
    hang: str = ""
    provoked: int | None = None

    @property
    def surprise(self) -> bool:
        """Something was seen that the test or the model rules out."""
        if self.comparison is not None and self.comparison.mismatches:
            return True
        if self.unawaited:
            return True
        return self.judged and not self.validated

    @property
    def validated(self) -> bool:
        """Is the condition true of what was seen, but for what a stranger made of it?"""
        if self.histogram is None or self.histogram.validated:
            return True
        visited = [values for values, _ in self.comparison.visited] if self.comparison is not None else []
        against = [row for row in self.histogram.rows if not row.witness and row.values not in visited]
        return self.test.quantifier == "forall" and not against

    @property
    def unawaited(self) -> int:
        """Rounds in which a thread waited and nobody came, and of which the condition does not say so."""
        if self.seen is None or self.histogram is None:
            return 0
        said = 0
        if any(atom.value == WAITS for atom in atoms(self.test.condition)):
            said = sum(row.count for row in self.histogram.rows if row.witness and WAITS in row.values)
        return self.seen.unblocked - said

    @property
    def hang_era(self) -> str:
        """The newest era, up to the kernel's, on which the test's author expects that a run may not end; empty: on none.

        An older one than the kernel's: what ended the loop has not come to this kernel.
        """
        order = list(ERAS)
        endless = {each.era for each in self.test.expect if each.property == "termination"}
        return next((era for era in reversed(order[: order.index(self.era) + 1]) if era in endless), "")

    @property
    def judged(self) -> bool:
        """Does the test's author expect the condition of this kernel, in every round?"""
        if self.test.quantifier == "exists" or self.test.condition is None:
            return False
        if self.test.kernel_only:
            return True
        return any((each.era, each.verdict) == (self.era, "holds") for each in self.test.expect)

    @property
    def bound(self) -> bool:
        return (bool(self.hang) and not self.hang_era) or self.unexplored

    @property
    def unexplored(self) -> bool:
        """The model was not explored to its end, and not because it breaks as the test's author expects."""
        if self.comparison is None or self.comparison.complete:
            return False
        expected = {each.property for each in self.test.expect if each.era == self.comparison.era}
        return self.comparison.broken not in expected

    def json(self) -> dict[str, object]:
        out: dict[str, object] = {"test": self.test.name, "skipped": self.skipped}
        if self.histogram is not None and self.seen is not None:
            fields = self.histogram.fields
            out |= {
                "rounds": self.seen.rounds,
                "failures": self.seen.failures,
                "unblocked": self.seen.unblocked,
                "provoked": self.provoked,
                "seconds": self.histogram.seconds,
                "fields": [str(each) for each in fields],
                "histogram": [
                    {"count": row.count, "values": list(row.values), "witness": row.witness}
                    for row in self.histogram.rows
                ],
                "observation": self.histogram.observation,
                "validated": self.histogram.validated,
                "hang": self.hang,
            }
        if self.comparison is not None:
            out |= {
                "era": self.comparison.era,
                "allowed": len(self.comparison.allowed),
                "unseen": self.comparison.unseen,
                "complete": self.comparison.complete,
                "visited": [
                    {"outcome": show_outcome(self.test, self.histogram.fields, values), "count": count}
                    for values, count in self.comparison.visited
                    if self.histogram is not None
                ],
                "mismatches": [
                    {"outcome": show_outcome(self.test, self.histogram.fields, values), "count": count}
                    for values, count, _ in self.comparison.mismatches
                    if self.histogram is not None
                ],
            }
        out |= {"kernel_era": self.era, "known": self.known, "differences": dict(self.differences)}
        out["not_compared"] = self.not_compared
        out["surprise"] = self.surprise
        return out


def run_test(
    test: Test,
    rounds: int,
    seconds: float = 0.0,
    pin: bool = True,
    comparing: bool = False,
    seed: int = 1,
    patience: float = 10.0,
) -> Run:
    """Race a test on this kernel, and compare it with the model if asked. Raises LitmusError, KernelError, CheckError."""
    out = Run(test)
    try:
        lowered = lower(test)
        require(lowered)
    except Unrunnable as why:
        out.skipped = str(why)
        return out
    seen = out.seen = run_race(lowered.race, rounds, seconds, pin, patience, seed)
    if any(op.name in TELLING for _, ops in lowered.race.threads for op in ops):
        out.provoked = seen.provoked
    if seen.failures and seen.failures >= seen.rounds and not seen.counts:
        out.skipped = _never(lowered.race.setup[0], seen)
        return out
    if seen.hangs:
        stands = [f"P{t} in `{_operation(test, t, at)}`" for t, at in seen.hangs]
        out.hang = f"round {seen.rounds + 1} did not end within {patience:g} s: {', '.join(stands) or 'no thread runs'}"
    out.histogram = make_histogram(test, lowered.fields, seen)
    era = running_era()
    out.era, out.known, out.differences = era.name, era.known, era.differences
    if comparing:
        hold_against_model(out)
    return out


def hold_against_model(done: Run) -> None:
    """Compare what was seen with the model of the kernel's era, or say why not. Raises CheckError."""
    if done.histogram is None:
        return
    try:
        if not done.era:
            raise Unrunnable(f"the model has no era for this kernel ({done.known})", "run without --compare")
        done.comparison = compare(done.histogram, done.era, differences=done.differences)
    except Unrunnable as why:
        done.not_compared = str(why)


def from_json(test: Test, row: Mapping[str, Any]) -> Run:
    """What `Run.json` gave of the test elsewhere, on another kernel say; not compared."""
    done = Run(test, skipped=row["skipped"], era=row["kernel_era"], known=row["known"], differences=row["differences"])
    if "histogram" in row:
        seen = done.seen = Outcomes(
            {tuple(each["values"]): each["count"] for each in row["histogram"]},
            rounds=row["rounds"],
            failures=row["failures"],
            unblocked=row["unblocked"],
            seconds=row["seconds"],
        )
        done.histogram = make_histogram(test, lower(test).fields, seen)
        done.hang, done.provoked = row["hang"], row["provoked"]
    return done


def _never(setup: tuple[object, ...], seen: Outcomes) -> str:
    import os

    step = setup[seen.failed_at] if 0 <= seen.failed_at < len(setup) else "the initial state"
    why = os.strerror(-seen.failure) if seen.failure < 0 else "a child failed"
    return f"its initial state never came about ({step}: {why}): see `userfault probe`"


def _operation(test: Test, thread: int, at: int) -> str:
    op = test.threads[thread].operations[at]
    return " ".join([op.name, *map(str, op.args)])
