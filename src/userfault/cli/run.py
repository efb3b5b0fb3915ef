"""`userfault run`: litmus tests on the running kernel."""

from __future__ import annotations

import json
import sys

import click

from .guest import guest_options

EXIT_MISMATCH, EXIT_USAGE, EXIT_BOUND = 1, 2, 3


@click.command("run")
@click.argument("tests", nargs=-1, metavar="[TEST]...")
@click.option("--rounds", default=10_000, show_default=True, type=click.IntRange(1), help="Rounds of each test.")
@click.option("--seconds", default=10.0, show_default=True, help="A test ends then, whatever its rounds.")
@click.option("--pin/--no-pin", default=True, show_default=True, help="Bind each thread to a CPU of its own.")
@click.option("--compare", "comparing", is_flag=True, help="Every outcome must be one that the model allows.")
@click.option("--seed", default=1, show_default=True, help="Of the delays.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@guest_options()
def command(
    tests: tuple[str, ...], rounds: int, seconds: float, pin: bool, comparing: bool, seed: int, as_json: bool
) -> None:
    """Race TESTs (library names or files; default: all that this kernel can run) on the running kernel.

    Exit codes: 0 nothing that a test or the model rules out was seen, 1 something was, 2 usage or environment, 3 a round
    did not end, or the model was not explored to its end.
    """
    from ..check.errors import CheckError
    from ..conform.races.needs import borrowed
    from ..conform.races.report import report, summary
    from ..conform.races.run import run_test
    from ..kernel.errors import KernelError
    from ..litmus import LitmusError, library, load

    done = []
    try:
        chosen = [load(name) for name in tests] or library()
        with borrowed(chosen):
            for test in chosen:
                outcome = run_test(test, rounds, seconds, pin, comparing, seed)
                done.append(outcome)
                if as_json:
                    click.echo(json.dumps(outcome.json()))
                elif tests or not outcome.skipped:
                    click.echo(report(outcome) + "\n")
    except (CheckError, KernelError, LitmusError) as error:
        click.echo(f"userfault run: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if not as_json:
        click.echo(summary(done))
    if any(outcome.surprise for outcome in done):
        sys.exit(EXIT_MISMATCH)
    if any(outcome.bound for outcome in done):
        sys.exit(EXIT_BOUND)
    if tests and all(outcome.skipped for outcome in done):
        sys.exit(EXIT_USAGE)
