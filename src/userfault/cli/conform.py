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
    "--profile", "name", default="moves", show_default=True, help="What sequences are like; `list` lists them."
)
@click.option("--jobs", default=1, show_default=True, help="Processes; 0: one a CPU.")
@click.option("--resume", type=click.Path(dir_okay=False, path_type=Path), help="Keep how far the run is here, go on.")
@click.option("--replay", default="", help="Only this sequence (what a report ends with, or a file with it).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@guest_options(after=[["run", "--compare", "--rounds", "300"]])
def command(operations: int, seed: int, name: str, jobs: int, resume: Path | None, replay: str, as_json: bool) -> None:
    """Do random sequences of operations on the model and on the running kernel, and compare after each operation.

    Exit codes: 0 all agree, 1 a divergence, 2 usage or environment.
    """
    from ..conform import report
    from ..conform.compare import Divergence
    from ..conform.drive import ConformError, Progress, check, profile_named, run, shrunk
    from ..conform.generate import PROFILES
    from ..kernel.errors import KernelError

    if name == "list":
        for profile in PROFILES.values():
            click.echo(f"{profile.name:10s} {profile.doc}")
        return
    started = time.perf_counter()
    try:
        profile = profile_named(name)
        found: Divergence | None = None
        done = sequences = 0
        if replay:
            given = Path(replay).read_text() if Path(replay).is_file() else replay
            result = check(profile, report.from_json(given))
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
                    "rate": round(rate),
                }
                shown = f"{name}: {done} operations agree ({sequences} sequences, seed {seed}), {rate:.0f} a second"
                click.echo(json.dumps(summary) if as_json else shown)
    except (ConformError, KernelError, OSError, ValueError) as error:
        click.echo(f"userfault conform: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if found is None:
        if replay:
            click.echo(f"{done} operations agree")
        return
    if not replay:
        found = shrunk(profile, found)
    again = f"userfault conform --profile {name} --replay '{report.to_json(found.sequence)}'"
    if as_json:
        click.echo(json.dumps({"what": found.what, "at": found.at, "sequence": report.to_json(found.sequence)}))
    else:
        for line in report.lines(found, profile.window.first):
            click.echo(line)
        click.echo(f"\nreplay: {again}")
    sys.exit(EXIT_DIVERGES)


def cpus() -> int:
    import os

    return len(os.sched_getaffinity(0))
