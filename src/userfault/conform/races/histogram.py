"""The outcomes of a litmus test, as litmus7 prints them."""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from ...kernel.race import Outcomes
from ...litmus.ast import WAITS, Atom, Formula, Test, Value

ACCESSES = ("load", "store", "touch")


@dataclass(frozen=True)
class Row:
    """An outcome: how often it was seen, its values, and whether it is what the condition speaks of."""

    count: int
    values: tuple[int, ...]
    witness: bool


@dataclass
class Histogram:
    """What was seen of a test. positive: rounds in which the condition's formula was true; negative: the others."""

    test: Test
    fields: tuple[Value, ...]
    rows: list[Row]
    positive: int
    negative: int
    seconds: float

    @property
    def observation(self) -> str:
        """`Always`, `Sometimes` or `Never`."""
        return "Never" if not self.positive else "Sometimes" if self.negative else "Always"

    @property
    def validated(self) -> bool:
        """Is the quantified condition true of what was seen?"""
        if self.test.quantifier == "forall":
            return not self.negative
        return bool(self.positive) == (self.test.quantifier == "exists")


def make_histogram(test: Test, fields: tuple[Value, ...], seen: Outcomes) -> Histogram:
    rows = []
    for values, count in sorted(seen.counts.items(), key=lambda item: -item[1]):
        rows.append(Row(count, values, holds(test.condition, dict(zip(fields, values, strict=True)))))
    positive = sum(row.count for row in rows if row.witness)
    total = sum(row.count for row in rows)
    return Histogram(test, fields, rows, positive, total - positive, seen.seconds)


def holds(condition: Formula | Atom | None, final: dict[Value, int]) -> bool:
    if condition is None:
        return True
    return condition.holds(final[condition.of]) if isinstance(condition, Atom) else condition.holds(final)


def show_outcome(test: Test, fields: Sequence[Value], values: Sequence[int]) -> str:
    """`0:r0=1; 1:r0=-EEXIST; [A:2]=1;`."""
    return " ".join(f"{field}={show_value(test, field, value)};" for field, value in zip(fields, values, strict=True))


def value_kind(test: Test, field: Value) -> str:
    """What a negative value of a field is: `s` a signal, `e` an errno, `n` a number."""
    if field.kind == "memory":
        return "s"
    if field.kind != "register":
        return "n"
    operations = test.threads[field.number].operations
    name = next(op.name for op in operations if op.register == field.name)
    return "s" if name in ACCESSES else "e"


def show_value(test: Test, field: Value, value: int) -> str:
    """A number; of a failed operation the errno's or signal's name; of one that waited in vain, `waits`; of a place without a page, -1."""
    if value == WAITS:
        return "waits"
    kind = value_kind(test, field)
    if kind == "s" and value in (-signal.SIGBUS, -signal.SIGSEGV):
        return f"-{signal.Signals(-value).name}"
    if kind == "e" and value < 0 and -value in errno.errorcode:
        return f"-{errno.errorcode[-value]}"
    return str(value)


def render(histogram: Histogram) -> str:
    """litmus7's block. A star marks the outcomes of which the condition's formula is true."""
    test = histogram.test
    kind = {"forall": "Required", "exists": "Allowed", "~exists": "Forbidden"}[test.quantifier]
    lines = [f"Test {test.name} {kind}", f"Histogram ({len(histogram.rows)} states)"]
    for row in histogram.rows:
        mark = "*" if row.witness and test.condition is not None else ":"
        lines.append(f"{row.count:<8}{mark}>{show_outcome(test, histogram.fields, row.values)}")
    if test.condition is not None:
        lines += ["Ok" if histogram.validated else "No", "", "Witnesses"]
        lines.append(f"Positive: {histogram.positive}, Negative: {histogram.negative}")
        verdict = "is validated" if histogram.validated else "is NOT validated"
        lines.append(f"Condition {test.quantifier} {show_formula(test, test.condition)} {verdict}")
        lines.append(f"Observation {test.name} {histogram.observation} {histogram.positive} {histogram.negative}")
    lines.append(f"Time {test.name} {histogram.seconds:.2f}")
    return "\n".join(lines)


def show_formula(test: Test, node: Formula | Atom, inside: bool = False) -> str:
    """The condition as the format writes it."""
    if isinstance(node, Atom):
        text = f"{node.of}{node.compare}{show_value(test, node.of, node.value)}"
        return text if inside else f"({text})"
    if node.kind == "not":
        text = f"not {show_formula(test, node.parts[0], True)}"
    else:
        joint = " /\\ " if node.kind == "and" else " \\/ "
        text = joint.join(show_formula(test, part, True) for part in node.parts)
    return f"({text})"
