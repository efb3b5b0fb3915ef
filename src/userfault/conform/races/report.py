"""What `userfault run` says."""

from __future__ import annotations

from collections.abc import Sequence

from ...check.trace import render as render_trace
from ...litmus import outcome_program
from ...model.era import differing
from .histogram import render, show_outcome
from .run import Run


def report(done: Run) -> str:
    """The block of one test."""
    if done.skipped:
        return f"Test {done.test.name} skipped: {done.skipped}"
    assert done.histogram is not None and done.seen is not None
    lines = [render(done.histogram)]
    if done.seen.failures:
        lines.append(
            f"Void {done.test.name} {done.seen.failures} of {done.seen.rounds}: the initial state did not come about"
        )
    if done.seen.unblocked:
        lines.append(
            f"Unblocked {done.test.name} {done.seen.unblocked} of {done.seen.rounds}: a thread waited and nobody came"
        )
    if done.provoked is not None:
        lines.append(
            f"Provoked {done.test.name} {done.provoked} of {done.seen.rounds}: the kernel was seen to do its part"
        )
    if done.hang:
        expected = f", as the model of {done.hang_era} does" if done.hang_era else ""
        lines.append(f"Hang {done.test.name} {done.hang}{expected}")
    if done.not_compared:
        lines.append(f"Model {done.test.name} not compared: {done.not_compared}")
    found = done.comparison
    if found is not None:
        allowed = len(found.allowed)
        verdict = f"{len(found.mismatches)} NOT allowed" if found.mismatches else "all allowed"
        if not found.complete:
            verdict = f"not explored to the end ({found.broken or 'bound'})"
        lines.append(
            f"Model {done.test.name} {found.era}: {len(done.histogram.rows)} outcomes seen, {verdict};"
            f" {allowed} of the model's, {found.unseen} of them not seen"
        )
        for values, count in found.visited:
            shown = show_outcome(done.test, done.histogram.fields, values)
            lines.append(f"Stranger {count} times: {shown} (allowed where somebody else looks at a page meanwhile)")
        for values, count, near in found.mismatches:
            lines.append(f"Mismatch {count} times: {show_outcome(done.test, done.histogram.fields, values)}")
            if near is None:
                lines.append("the model allows nothing")
                continue
            lines.append(f"Nearest of the model: {show_outcome(done.test, done.histogram.fields, near.values)}")
            with differing(near.era, found.differences):
                program = outcome_program(done.test, near.era, near.whole)
                lines.append(render_trace(program, near.schedule).rsplit("\nbroken:", 1)[0].rstrip())
    return "\n".join(lines)


def summary(done: Sequence[Run]) -> str:
    """One line on everything, and every test that was skipped, with the reason."""
    ran = [each for each in done if not each.skipped]
    skipped = [each for each in done if each.skipped]
    rounds = sum(each.seen.rounds for each in ran if each.seen is not None)
    seconds = sum(each.seen.seconds for each in ran if each.seen is not None)
    compared = [each.comparison for each in ran if each.comparison is not None]
    text = f"{len(ran)} run, {rounds:,} rounds in {seconds:.1f} s"
    if compared:
        outcomes = sum(len(each.allowed) for each in compared)
        unseen = sum(each.unseen for each in compared)
        text += f"; {len(compared)} compared, {outcomes} outcomes allowed, {unseen} of them not seen"
    if without := [each for each in ran if each.not_compared]:
        text += f"; {len(without)} not compared"
    surprises = [each.test.name for each in ran if each.surprise]
    text += f"; SURPRISES: {', '.join(surprises)}" if surprises else "; no surprise"
    if idle := [each.test.name for each in ran if each.provoked == 0]:
        text += f"; the kernel was never seen to do its part in {', '.join(idle)}"
    if skipped:
        text += f"; {len(skipped)} skipped"
    if differences := next((each.differences for each in ran if each.differences), {}):
        said = ", ".join(f"{name}={answer}" for name, answer in differences.items())
        text += f"\nthe model of this kernel is v6.18 with {said}"
    if known := next((f"{each.era} stands in for this kernel: {each.known}" for each in ran if each.known), ""):
        text += f"\n{known}"
    return "\n".join([text, *(f"skipped {each.test.name}: {each.skipped}" for each in skipped)])
