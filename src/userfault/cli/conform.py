"""`userfault conform`: random sequences on the model and on the running kernel."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .guest import Guest, Stage, alone, given, guest_options, row_of
from .parameters import plain_file

if TYPE_CHECKING:
    from ..conform.compare import Divergence

EXIT_DIVERGES, EXIT_USAGE = 1, 2
OPERATIONS, OPERATIONS_IN_A_GUEST, ROUNDS_IN_A_GUEST = 20_000, 480, 300
TABLES = ("list", "freedom", "quirks")
SILENT_S = 30.0
"""A run that has said nothing for so many seconds says that it goes on: a guest that says nothing is given up (--silence)."""


def inside(guest: Guest, context: click.Context) -> int:
    """The command in a guest: every profile unless one is named, fewer operations, and the litmus tests."""
    from ..conform.drive import ConformError
    from . import run

    asked, arguments = context.params, given(context)
    races = ["--rounds", str(asked["rounds"] or ROUNDS_IN_A_GUEST)]
    if asked["litmus"]:
        return run.raced_there(guest, [], races, (), asked["as_json"])
    if asked["name"] in TABLES or asked["replay"] or asked["mutant"]:
        return guest.run([alone("conform", *arguments)])
    try:
        before = [alone("conform", "--profile", "quirks"), profiles(asked, arguments)]
    except ConformError as error:
        click.echo(f"userfault conform: {error}", err=True)
        return EXIT_USAGE
    return run.raced_there(guest, before, races, (), asked["as_json"])


def profiles(asked: Mapping[str, Any], arguments: list[str]) -> Stage:
    """The profiles of a run in a guest, as parts of which each may end it. Raises ConformError."""
    operations = asked["operations"] if "--ops" in arguments else OPERATIONS_IN_A_GUEST
    names = names_of(asked["name"] if "--profile" in arguments else "all")
    last = seeds_of(asked["seeds"])[-1]
    for option in ("--ops", "--profile", "--rounds"):
        if option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 2]

    def command(parts: tuple[str, ...]) -> list[str]:
        # With a comma, what is left alone of several is one of several still.
        some = ",".join(parts) + "," * (len(parts) == 1 < len(names))
        return ["conform", *arguments, "--profile", some, "--ops", str(operations)]

    def ended(line: str) -> str:
        row = row_of(line, "profile")
        for name in names:
            if row.get("profile") == name and (row.get("seed") == last or "skipped" in row):
                return name
            if line.startswith(f"{name}: skipped: ") or re.match(
                rf"{name}: \d+ operations agree .*seed {last}\)", line
            ):
                return name
        return ""

    return Stage(tuple(names), command, ended)


@click.command("conform")
@click.option(
    "--ops",
    "operations",
    type=click.IntRange(1),
    default=OPERATIONS,
    show_default=True,
    help=f"Operations to compare, of each profile; `all` does a quarter of the costly ones. With --kernel: {OPERATIONS_IN_A_GUEST}.",
)
@click.option("--seed", "seeds", default="1", show_default=True, help="Which sequences: a number, or `1..5` for each.")
@click.option(
    "--profile",
    "name",
    default="moves",
    show_default=True,
    help="What sequences are like: one, several with commas, or `all`; `list` lists them, `freedom` what may differ, `quirks` what this "
    "kernel does otherwise.",
)
@click.option("--jobs", type=click.IntRange(0, 256), default=1, show_default=True, help="Processes; 0: one a CPU.")
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=plain_file,
    help="Keep how far the run is here, go on. What other code or another kernel agreed with is done again.",
)
@click.option("--replay", help="Only this sequence (what a report ends with, or a file with it).")
@click.option("--c", "as_c", is_flag=True, help="With --replay: print the sequence as a C program instead.")
@click.option("--mutant", help="Break the model first: a name, or `all`; how many operations find it.")
@click.option("--hypothesis", is_flag=True, help="hypothesis draws the sequences: slower, and by other chances.")
@click.option("--litmus", is_flag=True, help="The litmus tests instead: the same as `userfault run --compare`.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help=f"Of each litmus test, with --litmus or --kernel (there {ROUNDS_IN_A_GUEST} unless said).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@guest_options(inside)
def command(
    operations: int,
    seeds: str,
    name: str,
    jobs: int,
    resume: Path | None,
    replay: str | None,
    as_c: bool,
    mutant: str | None,
    hypothesis: bool,
    litmus: bool,
    rounds: int | None,
    as_json: bool,
) -> None:
    """Do random sequences of operations on the model and on the running kernel, and compare after each operation.

    Exit codes: 0 all agree, 1 a divergence, 2 usage or environment.
    """
    from ..conform import emit, quirks, report
    from ..conform.compare import Divergence
    from ..conform.drive import ConformError, check, profile_named, surroundings
    from ..conform.freedom import FREEDOM
    from ..conform.profiles import PROFILES
    from ..kernel.errors import KernelError, Unavailable
    from ..litmus import LitmusError

    if litmus:
        from . import run

        context = click.get_current_context()
        ours = ("--litmus", "--rounds", "--json")
        others = [each for each in given(context) if each.startswith("--") and each not in ours]
        if others:
            click.echo(
                f"userfault conform: --litmus runs the library's tests, of which {', '.join(others)} says nothing: leave it out, "
                "or see `userfault run --compare` for what can be asked",
                err=True,
            )
            sys.exit(EXIT_USAGE)
        context.invoke(run.command, comparing=True, as_json=as_json, **({"rounds": rounds} if rounds else {}))
        return
    if rounds:
        click.echo("userfault conform: --rounds is of litmus tests: use it with --litmus or --kernel", err=True)
        sys.exit(EXIT_USAGE)
    if name == "list":
        for profile in PROFILES.values():
            click.echo(f"{profile.name:10s} {profile.doc}")
        return
    if name == "freedom":
        for free in FREEDOM:
            click.echo(f"{free.what}: {free.why} {free.instead}")
        return
    try:
        if name == "quirks":
            for line in about_this_kernel():
                click.echo(line)
            return
        chosen = seeds_of(seeds)
        names, several = names_of(name), name == "all" or "," in name
        replays, breaks = replay is not None, mutant is not None
        if hypothesis and (replays or resume or jobs != 1 or breaks):
            raise ConformError(
                "--hypothesis draws sequences on one core and keeps none: leave out --replay, --resume, --jobs and --mutant"
            )
        if (replays or resume) and len(names) * len(chosen) > 1:
            raise ConformError("--replay and --resume are of one profile and one seed: name them")
        if breaks and (replays or resume or jobs != 1):
            raise ConformError(
                "--mutant looks for each on one core and keeps nothing: leave out --replay, --resume and --jobs"
            )
        if as_c and not replays:
            raise ConformError("--c prints a sequence that is known: name it with --replay")
        if mutant is not None:
            sys.exit(mutants(mutant, chosen[0], operations, as_json))
        if replay is None:
            done = 0
            for each in names:
                for seed in chosen:
                    wanted = -(-operations // PROFILES[each].cost) if several else operations
                    try:
                        if hypothesis:
                            found = draw(each, seed, wanted, as_json)
                        else:
                            found = compare(each, seed, wanted, jobs or cpus(), resume, as_json)
                    except Unavailable as error:
                        if not several:
                            raise
                        skipped(each, str(error), as_json)
                        break
                    if found is not None:
                        show(each, found, as_json)
                        sys.exit(EXIT_DIVERGES)
                    done += 1
            sys.exit(0 if done else EXIT_USAGE)
        profile = profile_named(name)
        sequence = report.from_json(text_of(replay) if replay[:1] not in ("", "[") else replay, profile.window)
        if as_c:
            title = f"userfault conform --profile {name}"
            click.echo(emit.c_program(sequence, profile, title, quirks.running().lacking), nl=False)
            return
        with surroundings(profile):
            result = check(profile, sequence)
        if isinstance(result, Divergence):
            show(name, result, as_json)
            sys.exit(EXIT_DIVERGES)
        click.echo(f"{result} operations agree")
    except (ConformError, KernelError, LitmusError, ValueError) as error:
        click.echo(f"userfault conform: {error}", err=True)
        sys.exit(EXIT_USAGE)


def text_of(path: str) -> str:
    """Of a file with a sequence. Raises ConformError."""
    from ..conform.drive import ConformError

    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise ConformError(f"--replay {path} is no sequence, and no file with one: {why}") from None


def about_this_kernel() -> Iterator[str]:
    """The lines of `--profile quirks`."""
    from ..conform import quirks
    from ..conform.races.eras import running_era

    era = running_era()
    yield f"era of the litmus tests: {era.name}{f' stands in: {era.known}' if era.known else ''}"
    for flag, answer in era.differences.items():
        yield f"the kernel differs from it: {flag}={answer}"
    yield from quirks.lines(quirks.running())


def skipped(name: str, why: str, as_json: bool) -> None:
    """Of several profiles, one that this machine can't run."""
    click.echo(json.dumps({"profile": name, "skipped": why}) if as_json else f"{name}: skipped: {why}")


def names_of(given: str) -> list[str]:
    """The profiles of `all`, `moves`, or `moves,huge`. Raises ConformError."""
    from ..conform.drive import profile_named
    from ..conform.profiles import PROFILES

    return (
        list(PROFILES) if given == "all" else [profile_named(each).name for each in given.removesuffix(",").split(",")]
    )


def seeds_of(given: str) -> range:
    """`3` or `1..5`. Raises ConformError."""
    from ..conform.drive import ConformError

    first, several, last = given.partition("..")
    try:
        seeds = range(int(first), int(last if several else first) + 1)
    except ValueError:
        raise ConformError(f"--seed {given!r} is no number, and no range like 1..5") from None
    if not seeds:
        raise ConformError(f"--seed {given} is an empty range: the first number is the smaller one")
    return seeds


class GoingOn:
    """Says on stderr, now and then, that what takes long goes on."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self.said >= SILENT_S:
            self.said = now
            click.echo(text, err=True)


def compare(name: str, seed: int, operations: int, jobs: int, resume: Path | None, as_json: bool) -> Divergence | None:
    """One run, and what is said of it: None, or a divergence made short."""
    from ..conform.compare import Divergence
    from ..conform.drive import Progress, profile_named, run, shrunk, surroundings
    from .journal import OF_CONFORM, code

    started, going_on = time.perf_counter(), GoingOn()
    progress = Progress.load(resume, name, seed, code(OF_CONFORM)) if resume else Progress(name, seed, set())
    before = progress.operations
    if progress.stale:
        click.echo(f"userfault conform: {resume} has {progress.stale}: they are done again", err=True)
    if resume:
        # Where nothing can be kept, that is said before there is something.
        progress.save(resume)
    found: Divergence | None = None
    with closing(run(name, seed, operations, jobs=jobs, progress=progress)) as results:
        for each in results:
            if isinstance(each, Divergence):
                found = each
            else:
                going_on(f"{name}: {each.operations} operations agree so far")
                if resume:
                    each.save(resume)
    if found is not None:
        if not as_json:
            click.echo(f"{name}: parts after {progress.operations + found.at} operations ({found.what}), is made short")
        # The run has given the machine back by now: who asks for it twice waits for itself.
        with surroundings(profile_named(name)):
            return shrunk(profile_named(name), found, lambda: going_on(f"{name}: is still made short"))
    asked = progress.operations - before
    rate = asked / (time.perf_counter() - started)
    if as_json:
        summary = {
            "profile": name,
            "seed": seed,
            "operations": progress.operations,
            "sequences": len(progress.done),
            "unrepeated": progress.unrepeated,
            "before": before,
            "rate": round(rate) if asked else None,
        }
        click.echo(json.dumps(summary))
        return None
    done, sequences = progress.operations, len(progress.done)
    known = f", {before} of them done before" if before else ""
    now = f"{known}, {rate:.0f} a second" if asked else ", all done before: nothing was asked"
    click.echo(f"{name}: {done} operations agree ({sequences} sequences, seed {seed}){now}")
    for unrepeated in progress.unrepeated:
        click.echo(f"did not come again: {unrepeated}")
    return None


def draw(name: str, seed: int, operations: int, as_json: bool) -> Divergence | None:
    """A run of which hypothesis draws the sequences, and what is said of it: None, or a divergence made short."""
    from ..conform.compare import Divergence
    from ..conform.drive import profile_named, search, shrunk, surroundings

    started = time.perf_counter()
    profile = profile_named(name)
    result = search(profile, seed, operations)
    if isinstance(result, Divergence):
        going_on = GoingOn()
        with surroundings(profile):
            return shrunk(profile, result, lambda: going_on(f"{name}: is still made short"))
    rate = result / (time.perf_counter() - started)
    if as_json:
        click.echo(json.dumps({"profile": name, "seed": seed, "operations": result, "rate": round(rate)}))
    else:
        click.echo(f"{name}: {result} operations agree (drawn by hypothesis, seed {seed}), {rate:.0f} a second")
    return None


def show(name: str, found: Divergence, as_json: bool) -> None:
    """The report of a divergence, and how to see it again."""
    from ..conform import report
    from ..conform.drive import profile_named, without_hypothesis

    if without_hypothesis():
        click.echo(f"userfault conform: made short without hypothesis: {without_hypothesis()}", err=True)
    sequence = report.to_json(found.sequence)
    if as_json:
        click.echo(json.dumps({"profile": name, "what": found.what, "at": found.at, "sequence": sequence}))
        return
    for line in report.lines(found, profile_named(name).window.first):
        click.echo(line)
    again = f"userfault conform --profile {name} --replay '{sequence}'"
    click.echo(f"\nreplay: {again}\nas a C program: the same with --c")


def mutants(which: str, seed: int, operations: int, as_json: bool) -> int:
    """Look for mutants, each with the profile that its file names: 0 if all were found."""
    from ..conform.compare import Divergence
    from ..conform.drive import ConformError, Progress, profile_named, run
    from ..conform.mutants import find_mutant, mutant_library, mutated

    try:
        chosen = mutant_library() if which == "all" else (find_mutant(which),)
    except KeyError as error:
        raise ConformError(str(error.args[0])) from None
    missed = 0
    for each in chosen:
        progress, what = Progress(profile_named(each.test).name, seed, set()), ""
        with mutated(each):
            for result in run(progress.profile, seed, operations, progress=progress):
                if isinstance(result, Divergence):
                    progress.operations += result.at + 1
                    what = result.what
        done = progress.operations
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
