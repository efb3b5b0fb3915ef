"""`userfault run`: litmus tests on the running kernel."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .guest import EXIT_ENVIRONMENT, EXIT_MISMATCH, Guest, Stage, given, guest_options, row_of, worst_of
from .parameters import duration

if TYPE_CHECKING:
    from ..conform.races.run import Run

EXIT_USAGE, EXIT_BOUND = 2, 3


def inside(guest: Guest, context: click.Context) -> int:
    """The command in a guest. With --compare it only races there: the model is explored here, where it is many times as fast."""
    arguments = given(context)
    tests = context.params["tests"]
    options = [each for each in arguments if each not in tests and each != "--compare"]
    return raced_there(guest, [], options, tests, context.params["as_json"], "--compare" in arguments)


def raced_there(
    guest: Guest,
    before: Sequence[Stage],
    options: Sequence[str],
    tests: Sequence[str],
    as_json: bool,
    comparing: bool = True,
) -> int:
    """Run what is `before` in a guest, then race the tests with `options`, and compare them here. The worst exit code."""
    from ..check.errors import CheckError
    from ..conform.races.run import from_json, hold_against_model
    from ..litmus import LitmusError, library, load

    done: list[Run] = []

    def line(text: str) -> None:
        row = row_of(text, "test")
        if not row:
            if text:
                # A complaint there is one here.
                click.echo(text, err=as_json and not text.startswith("{"))
            return
        done.append(from_json(chosen[row["test"]], row))
        if comparing:
            hold_against_model(done[-1])
        show(done[-1], as_json, bool(tests))

    def ended(text: str) -> str:
        return str(row_of(text, "test").get("test", ""))

    try:
        chosen = {test.name: test for test in [load(name) for name in tests] or library()}
        races = ["run", *options, *([] if "--json" in options else ["--json"])]
        names = dict(zip(chosen, tests, strict=True)) if tests else {}

        def command(parts: tuple[str, ...]) -> list[str]:
            # All of the library need not be named.
            return races + [names.get(each, each) for each in parts] * (bool(tests) or len(parts) < len(chosen))

        code = guest.run([*before, Stage(tuple(chosen), command, ended, judges=False)], line, as_json)
    except (CheckError, LitmusError) as error:
        click.echo(f"userfault run: {error}", err=True)
        return EXIT_USAGE
    if not as_json and (done or code != EXIT_ENVIRONMENT):
        conclude(done)
    return worst_of(code, exit_code(done))


def show(outcome: Run, as_json: bool, named: bool) -> None:
    """One test. named: it was asked for, so that it is shown even where it was skipped."""
    from ..conform.races.report import report

    if as_json:
        click.echo(json.dumps(outcome.json()))
    elif named or not outcome.skipped:
        click.echo(report(outcome) + "\n")


def conclude(done: Sequence[Run]) -> None:
    from ..conform.races.report import summary

    click.echo(summary(done))


def exit_code(done: Sequence[Run]) -> int:
    if any(outcome.surprise for outcome in done):
        return EXIT_MISMATCH
    if any(outcome.bound for outcome in done):
        return EXIT_BOUND
    # A run in which nothing ran must not look like one in which nothing was wrong.
    return EXIT_USAGE if all(outcome.skipped for outcome in done) else 0


@click.command("run")
@click.argument("tests", nargs=-1, metavar="[TEST]...")
@click.option("--rounds", default=10_000, show_default=True, type=click.IntRange(1), help="Rounds of each test.")
@click.option(
    "--seconds",
    callback=duration,
    default=10.0,
    show_default=True,
    help="A test ends then, whatever its rounds; 0: never.",
)
@click.option("--pin/--no-pin", default=True, show_default=True, help="Bind each thread to a CPU of its own.")
@click.option("--compare", "comparing", is_flag=True, help="Every outcome must be one that the model allows.")
@click.option("--seed", default=1, show_default=True, help="Of the delays.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@guest_options(inside)
def command(
    tests: tuple[str, ...], rounds: int, seconds: float, pin: bool, comparing: bool, seed: int, as_json: bool
) -> None:
    """Race TESTs (library names or files; default: all that this kernel can run) on the running kernel.

    Exit codes: 0 nothing that a test or the model rules out was seen, 1 something was, 2 usage or environment (nothing could be run), 3 a
    round did not end, or the model was not explored to its end.
    """
    from ..check.errors import CheckError
    from ..conform.races.needs import borrowed
    from ..conform.races.run import run_test
    from ..kernel.errors import KernelError
    from ..litmus import LitmusError, library, load

    done = []
    try:
        chosen = [load(name) for name in tests] or library()
        with borrowed(chosen):
            for test in chosen:
                done.append(run_test(test, rounds, seconds, pin, comparing, seed))
                show(done[-1], as_json, bool(tests))
    except (CheckError, KernelError, LitmusError) as error:
        click.echo(f"userfault run: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if not as_json:
        conclude(done)
    sys.exit(exit_code(done))
