"""Running litmus tests: one job a (test, era, mutant), on all cores."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import NamedTuple

from ..check.engine import fewest_switches, run
from ..check.errors import CheckError, TooLarge
from ..check.ir import Failure, Program
from ..check.result import Move, Options, Result
from ..check.trace import decode_schedule, encode_schedule
from ..litmus import compile_test, expected, judged, load


class Job(NamedTuple):
    """What to check. `test`: a library name or a file."""

    test: str
    era: str
    mutant: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of it: a line of `check`, an object of `--json`. seconds: compiling and searching."""

    test: str
    era: str
    mutant: str
    verdict: str
    property: str
    states: int
    transitions: int
    seconds: float
    steps: int
    replay: str
    expected: bool
    found: str
    engine: str

    def json(self) -> dict[str, object]:
        return asdict(self)


class Replay(NamedTuple):
    """A replay string taken apart."""

    job: Job
    program: Program
    moves: list[Move]
    lasso: int


SHOWN = 4
"""Programs kept for the counterexample that is shown at the end: enough for a test on all eras."""

_violated: dict[str, Program] = {}
"""By the replay string that this process made: they need not be compiled again."""


def decode(string: str) -> Replay:
    """The program and the schedule of a replay string. Raises CheckError or LitmusError for anything else."""
    head, colon, schedule = string.rpartition(":")
    test, at, era = head.rpartition("@")
    if not (colon and at and test):
        raise CheckError(
            f"{string!r} is not a replay string: expected TEST@ERA:SCHEDULE, the last line of a counterexample"
        )
    era, _, mutant = era.partition("~")
    schedule, _, lasso = schedule.partition("!")
    if lasso and not lasso.isdigit():
        raise CheckError(f"{lasso!r} does not say at which step a cycle begins: expected a number behind `!`")
    program = _violated.pop(string, None) or compile_test(load(test), era, mutant or None)
    return Replay(Job(test, era, mutant), program, decode_schedule(schedule), int(lasso) if lasso else -1)


def replay_string(job: Job, result: Result) -> str:
    """`TEST@ERA[~MUTANT]:SCHEDULE[!STEP]`; `!` says where the cycle of a livelock begins."""
    mutant = f"~{job.mutant}" if job.mutant else ""
    lasso = f"!{result.lasso}" if result.lasso >= 0 else ""
    return f"{job.test}@{job.era}{mutant}:{encode_schedule(result.schedule)}{lasso}"


def perform(job: Job, options: Options, engine: str = "auto") -> Outcome:
    """Compile and search one test; a counterexample is the one with the fewest context switches."""
    # A program is kept to the end and freed at once then: collecting meanwhile takes a fifth of the time, and frees nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _perform(job, options, engine)
    finally:
        if collecting:
            gc.enable()


def _perform(job: Job, options: Options, engine: str) -> Outcome:
    started = time.perf_counter()
    test = load(job.test)
    program = compile_test(test, job.era, job.mutant or None)
    try:
        result = run(program, options, engine)
    except TooLarge as error:
        result = Result("bound", Failure("bound", str(error)))
    if result.verdict == "violated" and result.failure is not None and result.lasso < 0:
        best = fewest_switches(program, result.failure, options, engine)
        if best is not None:
            result.schedule = best
    verdict, prop, found = judged(test, result)
    replay = replay_string(job, result) if result.schedule else ""
    if replay and len(_violated) < SHOWN:
        _violated[replay] = program
    return Outcome(
        test=job.test,
        era=job.era,
        mutant=job.mutant,
        verdict=verdict,
        property=prop,
        states=result.states,
        transitions=result.transitions,
        seconds=time.perf_counter() - started,
        steps=len(result.schedule),
        replay=replay,
        expected=(verdict, prop) == expected(test, job.era, job.mutant or None),
        found=found,
        engine=result.engine,
    )


def perform_all(
    jobs: Sequence[Job], options: Options, engine: str = "auto", processes: int | None = None
) -> Generator[Outcome, None, None]:
    """The outcomes in the order of the jobs, computed by that many processes (default: one a core).

    Where one process does all, a large search has as many workers. To be closed by whoever may leave some outcomes.
    """
    # The eras of one test have much code in common: they follow each other in one process.
    alike = [list(group) for _, group in groupby(jobs, key=lambda job: job.test)]
    cores = processes or len(os.sched_getaffinity(0))
    if min(cores, len(alike)) <= 1:
        for job in jobs:
            yield perform(job, replace(options, threads=cores), engine)
        return
    # Not needed, and not waited for, where one process is enough.
    from ..kernel.workers import workers

    with workers(min(cores, len(alike)), gc.disable) as pool:
        for future in [pool.submit(_perform_each, group, options, engine) for group in alike]:
            yield from future.result()


def _perform_each(jobs: Sequence[Job], options: Options, engine: str) -> list[Outcome]:
    return [perform(job, options, engine) for job in jobs]
