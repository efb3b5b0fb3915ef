"""`userfault conform`: random sequences on the model and on the running kernel."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from .guest import guest_options

EXIT_DIVERGES, EXIT_USAGE = 1, 2


@click.command("conform")
@click.option("--ops", "operations", default=20000, show_default=True, help="Operations to compare.")
@click.option("--seed", default=1, show_default=True, help="Which sequences.")
@click.option(
    "--profile",
    "name",
    default="moves",
    show_default=True,
    help="What sequences are like; `list` lists them, `freedom` what may differ, `quirks` what this kernel does otherwise.",
)
@click.option("--jobs", default=1, show_default=True, help="Processes; 0: one a CPU.")
@click.option("--resume", type=click.Path(dir_okay=False, path_type=Path), help="Keep how far the run is here, go on.")
@click.option("--replay", default="", help="Only this sequence (what a report ends with, or a file with it).")
@click.option("--c", "as_c", is_flag=True, help="With --replay: print the sequence as a C program instead.")
@click.option("--mutant", default="", help="Break the model first: a name, or `all`; how many operations find it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@guest_options(after=[["run", "--compare", "--rounds", "300"]])
def command(
    operations: int,
    seed: int,
    name: str,
    jobs: int,
    resume: Path | None,
    replay: str,
    as_c: bool,
    mutant: str,
    as_json: bool,
) -> None:
    """Do random sequences of operations on the model and on the running kernel, and compare after each operation.

    Exit codes: 0 all agree, 1 a divergence, 2 usage or environment.
    """
    from ..conform import emit, report
    from ..conform.compare import Divergence
    from ..conform.drive import ConformError, Progress, check, profile_named, run, shrunk, surroundings
    from ..conform.freedom import FREEDOM
    from ..conform.generate import PROFILES
    from ..kernel.errors import KernelError

    if name == "list":
        for profile in PROFILES.values():
            click.echo(f"{profile.name:10s} {profile.doc}")
        return
    if name == "freedom":
        for free in FREEDOM:
            click.echo(f"{free.what}: {free.why} {free.instead}")
        return
    if name == "quirks":
        from ..conform import quirks

        for line in quirks.lines(quirks.running()):
            click.echo(line)
        return
    started = time.perf_counter()
    try:
        if mutant:
            sys.exit(mutants(mutant, seed, operations, as_json))
        profile = profile_named(name)
        found: Divergence | None = None
        done = sequences = 0
        if replay:
            given = report.from_json(Path(replay).read_text() if replay[0] != "[" else replay)
            if as_c:
                click.echo(emit.c_program(given, profile.window, f"userfault conform --profile {name}"), nl=False)
                return
            with surroundings(profile):
                result = check(profile, given)
            found, done = (result, 0) if isinstance(result, Divergence) else (None, result)
        else:
            progress = Progress.load(resume, name, seed) if resume else Progress(name, seed, set())
            before = progress.operations
            for each in run(name, seed, operations, jobs=jobs or cpus(), progress=progress):
                if isinstance(each, Divergence):
                    found = each
                elif resume:
                    each.save(resume)
            done, sequences = progress.operations, len(progress.done)
            rate = (done - before) / (time.perf_counter() - started)
            if found is None:
                summary = {
                    "profile": name,
                    "seed": seed,
                    "operations": done,
                    "sequences": sequences,
                    "unrepeated": progress.unrepeated,
                    "rate": round(rate),
                }
                shown = f"{name}: {done} operations agree ({sequences} sequences, seed {seed}), {rate:.0f} a second"
                if progress.unrepeated:
                    shown += "".join(f"\ndid not come again: {each}" for each in progress.unrepeated)
                click.echo(json.dumps(summary) if as_json else shown)
    except (ConformError, KernelError, OSError, ValueError) as error:
        click.echo(f"userfault conform: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if found is None:
        if replay:
            click.echo(f"{done} operations agree")
        return
    if not replay:
        with surroundings(profile):
            found = shrunk(profile, found)
    again = f"userfault conform --profile {name} --replay '{report.to_json(found.sequence)}'"
    if as_json:
        click.echo(json.dumps({"what": found.what, "at": found.at, "sequence": report.to_json(found.sequence)}))
    else:
        for line in report.lines(found, profile.window.first):
            click.echo(line)
        click.echo(f"\nreplay: {again}\nas a C program: the same with --c")
    sys.exit(EXIT_DIVERGES)


def mutants(which: str, seed: int, operations: int, as_json: bool) -> int:
    """Look for mutants, each with the profile that its file names: 0 if all were found."""
    from ..conform.compare import Divergence
    from ..conform.drive import ConformError, profile_named, run
    from ..conform.mutants import find_mutant, mutant_library, mutated

    try:
        chosen = mutant_library() if which == "all" else (find_mutant(which),)
    except KeyError as error:
        raise ConformError(str(error.args[0])) from None
    missed = 0
    for each in chosen:
        done, what = 0, ""
        with mutated(each):
            for result in run(profile_named(each.test).name, seed, operations):
                if isinstance(result, Divergence):
                    done, what = done + result.at + 1, result.what
                else:
                    done = result.operations
        missed += not what
        if as_json:
            click.echo(json.dumps({"mutant": each.name, "profile": each.test, "operations": done, "found": what}))
        else:
            click.echo(
                f"{each.name:24s} {each.test:6s} {'found' if what else 'NOT FOUND'} after {done} operations  {what}"
            )
    return EXIT_DIVERGES if missed else 0


def cpus() -> int:
    import os

    return len(os.sched_getaffinity(0))
