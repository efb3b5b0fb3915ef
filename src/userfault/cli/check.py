"""`userfault check`: the library of litmus tests, on all eras, or what is asked for."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from contextlib import closing
from pathlib import Path

import click

from ..check.result import Options
from .parameters import plain_file

EXIT_SURPRISE, EXIT_USAGE, EXIT_BOUND = 1, 2, 3


def part_of(text: str | None) -> tuple[int, int] | None:
    """`2/3` -> (2, 3)."""
    if text is None:
        return None
    given = re.fullmatch(r"(\d+)/(\d+)", text)
    if given is None or not 1 <= int(given[1]) <= int(given[2]):
        raise click.BadParameter(f"{text!r} is no part: expected K/N, K from 1 to N, like 2/3")
    return int(given[1]), int(given[2])


@click.command("check")
@click.argument("tests", nargs=-1, metavar="[TEST]...")
@click.option("--era", "eras", multiple=True, metavar="ERA", help="Only this kernel generation (repeatable).")
@click.option("--mutant", metavar="M", help="Drop a step of the protocol: a name from `litmus list --mutants`.")
@click.option("--matrix", is_flag=True, help="Race every pair of operations instead of the library.")
@click.option("--triples", is_flag=True, help="With --matrix: every triple too.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="With --matrix: only N of its tests, drawn.")
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option(
    "--part",
    callback=lambda _, __, value: part_of(value),
    metavar="K/N",
    help="Only the K-th of N parts of the tests: the others are for other machines.",
)
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=plain_file,
    metavar="FILE",
    help="Add each outcome to FILE, and do not check again what is there, unless the model or the test has changed, or the bound grew.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tests at a time, or workers of a single large one; default: one a core.",
)
@click.option(
    "--max-states",
    type=click.IntRange(min=1),
    default=Options().max_states,
    show_default=True,
    help="Stop there: verdict `bound`.",
)
@click.option("--engine", type=click.Choice(["auto", "python", "native"]), default="auto", help="Which engine.")
@click.option("--no-reduction", is_flag=True, help="Explore everything, without the reductions.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    tests: tuple[str, ...],
    eras: tuple[str, ...],
    mutant: str | None,
    matrix: bool,
    triples: bool,
    sample: int | None,
    seed: int,
    part: tuple[int, int] | None,
    resume: Path | None,
    jobs: int | None,
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
    from .jobs import Job, perform_all
    from .journal import Journal
    from .show import best_of, line, print_trace, progress, summary

    if engine == "auto" and not native.available():
        click.echo(f"userfault check: {native.why_missing()} Meanwhile the slower Python engine runs.", err=True)
    options = Options(max_states=max_states)
    if no_reduction:
        options = options.unreduced()
    started = time.perf_counter()
    try:
        if (triples or sample) and not matrix:
            raise CheckError("--triples and --sample are of the matrix: add --matrix")
        if matrix and (tests or mutant == "all"):
            raise CheckError("--matrix makes its own tests: leave out TEST, and name one mutant or none")
        if mutant == "":
            raise CheckError("--mutant has no name: see `userfault litmus list --mutants`")
        wanted = matrix_jobs(eras, 3 if triples else 2, mutant or "") if matrix else jobs_for(tests, eras, mutant or "")
        total = len(wanted)
        if sample is not None and sample < total:
            drawn = set(random.Random(seed).sample(range(total), sample))
            wanted = [job for number, job in enumerate(wanted) if number in drawn]
        if part is not None:
            names = list(dict.fromkeys(test for test, _, _ in wanted))
            mine = set(names[part[0] - 1 :: part[1]])
            wanted = [job for job in wanted if job[0] in mine]
        done = Journal(resume, options.max_states)
        asked = [Job(*job) for job in wanted]
        outcomes = [done.of[job] for job in asked if job in done.of]
        left = [job for job in asked if job not in done.of]
        if done.stale:
            click.echo(
                f"userfault check: {resume} has {done.stale} outcomes of another version of the model or of their test:"
                " they are checked again",
                err=True,
            )
        waiting = sys.stderr.isatty()
        with closing(perform_all(left, options, engine, jobs)) as coming:
            for number, outcome in enumerate(coming, 1):
                outcomes.append(outcome)
                done.add(outcome)
                if waiting:
                    click.echo("\r\x1b[K", nl=False, err=True)
                click.echo(json.dumps(outcome.json()) if as_json else line(outcome))
                if waiting and number < len(left):
                    click.echo(progress(number, len(left), time.perf_counter() - started), nl=False, err=True)
    except (CheckError, LitmusError) as error:
        click.echo(f"userfault check: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if not as_json:
        click.echo()
        click.echo(summary(outcomes, time.perf_counter() - started))
        if len(left) < len(wanted):
            click.echo(f"{len(wanted) - len(left)} of them are from {resume}")
        if sample is not None and sample < total:
            click.echo(f"a sample, seed {seed}: {total - sample} of the {total} tests of the matrix were not run")
        if part is not None:
            click.echo(f"part {part[0]} of {part[1]}: {len(wanted)} tests")
        shown = best_of(outcomes)
        if shown is not None:
            print_trace(shown)
    if any(not outcome.expected for outcome in outcomes if outcome.verdict != "bound"):
        sys.exit(EXIT_SURPRISE)
    if any(outcome.verdict == "bound" for outcome in outcomes):
        sys.exit(EXIT_BOUND)
