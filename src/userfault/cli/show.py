"""How outcomes look on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from ..check.trace import WIDTH, render
from .jobs import Outcome, decode


def line(outcome: Outcome) -> str:
    """test, era, verdict and property, states, seconds, as expected or not."""
    name = outcome.test + (f"~{outcome.mutant}" if outcome.mutant else "")
    verdict = outcome.verdict + (f" {outcome.property}" if outcome.property else "")
    colour = {"holds": "green", "violated": "yellow", "bound": "magenta"}[outcome.verdict]
    end = "as expected" if outcome.expected else click.style("UNEXPECTED", fg="red", bold=True)
    if outcome.verdict == "violated" and not outcome.replay:
        end += f" ({outcome.found})"
    return (
        f"{name:<26} {outcome.era:<11} {click.style(f'{verdict:<30}', fg=colour)}"
        f" {outcome.states:>9,} states {outcome.seconds:6.2f} s  {end}"
    )


def progress(done: int, total: int, seconds: float) -> str:
    """How far a run is, and how long the rest takes at that pace."""
    left = seconds / done * (total - done)
    return f"{done} of {total}, {left / 60:.0f} min left" if left >= 90 else f"{done} of {total}, {left:.0f} s left"


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """One line on everything."""
    count = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("holds", "violated", "bound")}
    surprises = sum(not o.expected for o in outcomes)
    states = sum(o.states for o in outcomes)
    engines = " and ".join(sorted({o.engine for o in outcomes}))
    text = (
        f"{len(outcomes)} checked in {seconds:.1f} s ({engines} engine, {states:,} states): {count['holds']} hold,"
        f" {count['violated']} violated"
    )
    if count["bound"]:
        text += f", {count['bound']} hit a bound"
    return text + (f"; {surprises} NOT as expected" if surprises else "; all as expected")


HARM = {"bug_on": 0, "use_after_free": 0, "condition": 2, "termination": 3}
"""What a broken property does to the kernel: brings it down, breaks its rules (1: all others), surprises its user, or never ends."""


def best_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The counterexample worth showing: a surprise first, then a hole of a kernel as it was, the worst, the shortest of them."""
    violated = [o for o in outcomes if o.verdict == "violated" and o.replay]
    return min(violated, key=lambda o: (o.expected, bool(o.mutant), HARM.get(o.property, 1), o.steps), default=None)


def print_trace(outcome: Outcome) -> None:
    """A counterexample in full, with the string that replays it."""
    from ..litmus import load

    replay = decode(outcome.replay)
    click.echo()
    click.echo(click.style(f"{outcome.test} on {outcome.era}", bold=True))
    for text in textwrap.wrap(load(outcome.test).question, WIDTH):
        click.echo(text)
    click.echo()
    click.echo(render(replay.program, replay.moves, replay.lasso))
    click.echo(f"replay: userfault replay '{outcome.replay}'")
