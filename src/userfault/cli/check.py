"""`userfault check`: the library of litmus tests, on all eras, or what is asked for."""

from __future__ import annotations

import json
import sys
import time

import click

from ..check.result import Options

EXIT_SURPRISE, EXIT_USAGE, EXIT_BOUND = 1, 2, 3


@click.command("check")
@click.argument("tests", nargs=-1, metavar="[TEST]...")
@click.option("--era", "eras", multiple=True, metavar="ERA", help="Only this kernel generation (repeatable).")
@click.option(
    "--mutant", default="", metavar="M", help="Drop a step of the protocol: a name from `litmus list --mutants`."
)
@click.option("--matrix", is_flag=True, help="Race every pair of operations instead of the library.")
@click.option("--triples", is_flag=True, help="With --matrix: every triple too.")
@click.option("--max-states", default=Options().max_states, show_default=True, help="Stop there: verdict `bound`.")
@click.option("--engine", type=click.Choice(["auto", "python", "native"]), default="auto", help="Which engine.")
@click.option("--no-reduction", is_flag=True, help="Explore everything, without the reductions.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    tests: tuple[str, ...],
    eras: tuple[str, ...],
    mutant: str,
    matrix: bool,
    triples: bool,
    max_states: int,
    engine: str,
    no_reduction: bool,
    as_json: bool,
) -> None:
    """Explore every interleaving of TESTs (library names or files; default: the library on all eras).

    Exit codes: 0 all as expected, 1 a surprise, 2 usage or environment, 3 a bound was hit.
    """
    from ..check import native
    from ..check.errors import CheckError
    from ..litmus import LitmusError, jobs_for, matrix_jobs
    from .jobs import Job, Outcome, perform_all
    from .show import best_of, line, print_trace, summary

    if engine == "auto" and not native.available():
        click.echo(f"userfault check: {native.why_missing()}", err=True)
    options = Options(max_states=max_states)
    if no_reduction:
        options = options.unreduced()
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    try:
        if matrix:
            if tests or mutant:
                raise CheckError("--matrix makes its own tests: leave out TEST and --mutant")
            wanted = matrix_jobs(eras, 3 if triples else 2)
        else:
            wanted = jobs_for(tests, eras, mutant)
        jobs = [Job(*each) for each in wanted]
        waiting = sys.stderr.isatty()
        for outcome in perform_all(jobs, options, engine):
            outcomes.append(outcome)
            if waiting:
                click.echo("\r\x1b[K", nl=False, err=True)
            click.echo(json.dumps(outcome.json()) if as_json else line(outcome))
            if waiting and len(outcomes) < len(jobs):
                click.echo(f"{len(outcomes)} of {len(jobs)}", nl=False, err=True)
    except (CheckError, LitmusError) as error:
        click.echo(f"userfault check: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if not as_json:
        click.echo()
        click.echo(summary(outcomes, time.perf_counter() - started))
        shown = best_of(outcomes)
        if shown is not None:
            print_trace(shown)
    if any(not outcome.expected for outcome in outcomes if outcome.verdict != "bound"):
        sys.exit(EXIT_SURPRISE)
    if any(outcome.verdict == "bound" for outcome in outcomes):
        sys.exit(EXIT_BOUND)
