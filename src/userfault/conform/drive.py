"""Runs: sequence after sequence of a profile, on one core or several, stopped and resumed at will."""

from __future__ import annotations

import importlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Results
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from ..kernel.agent import Agent
from ..kernel.machine import machine
from ..kernel.workers import workers
from .compare import Divergence, Step, compare, perform
from .generate import Generator
from .needs import missing
from .operations import Op
from .profiles import PROFILES, Profile
from .quirks import running
from .sandbox import allowed, huge_pages, merging, swap
from .shrink import shrink
from .world import World

CHUNK = 10
"""Sequences that a worker does before it reports."""


class ConformError(Exception):
    """A run can't be what was asked for: what, on what, and what to do."""


def running_kernel() -> str:
    """Its release, and which build of it."""
    about = os.uname()
    return f"{about.release} {about.version}"


@dataclass
class Progress:
    """How far a run is. done: numbers of the sequences that agree; operations: in these; unrepeated: where a sequence
    diverged and did not when it was done again (a deadline on a busy machine, a page that the kernel migrated). code, kernel: whose
    answers agree. stale: what was in a file of others', empty if nothing was."""

    profile: str
    seed: int
    done: set[int]
    operations: int = 0
    unrepeated: list[str] = field(default_factory=list)
    code: str = ""
    kernel: str = field(default_factory=running_kernel)
    stale: str = ""

    def save(self, path: Path) -> None:
        data = {
            "profile": self.profile,
            "seed": self.seed,
            "operations": self.operations,
            "unrepeated": self.unrepeated,
            "done": sorted(self.done),
            "code": self.code,
            "kernel": self.kernel,
        }
        # Of this process: another run may be kept in the same file.
        fresh = path.with_suffix(f"{path.suffix}.{os.getpid()}")
        try:
            fresh.write_text(json.dumps(data))
            fresh.replace(path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            raise ConformError(f"{path} can't be written ({error.strerror}): name another file") from None

    @staticmethod
    def load(path: Path, profile: str, seed: int, code: str = "") -> Progress:
        """What was saved by the same code (any text that stands for it) on this kernel, or nothing done.

        Raises ConformError if it is no such file, or one of another run.
        """
        fresh = Progress(profile, seed, set(), code=code)
        if not path.exists():
            return fresh
        try:
            found = Progress._of(json.loads(path.read_text()))
        except OSError as error:
            raise ConformError(f"{path} can't be read ({error.strerror}): name another file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConformError(f"{path} is no file of a run ({error}): name another one, or remove it") from None
        if (found.profile, found.seed) != (profile, seed):
            raise ConformError(
                f"{path} is of profile {found.profile} and seed {found.seed}, not of {profile} and {seed}: "
                "ask for these, or name another file"
            )
        if found.code != code:
            fresh.stale = f"{len(found.done)} sequences of another version of userfault"
        elif found.kernel != fresh.kernel:
            fresh.stale = f"{len(found.done)} sequences of kernel {found.kernel}"
        return fresh if fresh.stale else found

    @staticmethod
    def _of(data: Any) -> Progress:
        """Raises KeyError, TypeError, ValueError for what `save` did not write."""
        data = {"code": "", "kernel": "", **data}
        kinds = {
            "profile": str,
            "seed": int,
            "operations": int,
            "unrepeated": list,
            "done": list,
            "code": str,
            "kernel": str,
        }
        for name, kind in kinds.items():
            if type(data[name]) is not kind:
                raise TypeError(f"{name} is {data[name]!r}")
        if not all(type(each) is int and each >= 0 for each in [data["operations"], *data["done"]]):
            raise ValueError("operations and done are not all numbers from 0")
        if not all(type(each) is str for each in data["unrepeated"]):
            raise ValueError("unrepeated is not all text")
        return Progress(**data | {"done": set(data["done"])})


def profile_named(name: str) -> Profile:
    """A profile. Raises ConformError for an unknown name."""
    if name not in PROFILES:
        raise ConformError(f"there is no profile {name!r}: one of {', '.join(PROFILES)}")
    return PROFILES[name]


def sequence_of(profile: Profile, seed: int, number: int) -> tuple[Op, ...]:
    """Sequence `number` of a run: it depends on nothing else."""
    return tuple(step.op for step in steps_of(profile, seed, number))


def steps_of(profile: Profile, seed: int, number: int) -> list[Step]:
    """Sequence `number` of a run, with what the model says to it. One that breaks the model ends there."""
    world = World(
        profile.window, agent_for(profile.name).hash_page, running(), slice=profile.slice, features=profile.contexts
    )
    generator = Generator(profile, random.Random(f"{profile.name}/{seed}/{number}"), world)
    steps: list[Step] = []
    while len(steps) < profile.length and not (steps and steps[-1].broken):
        steps.append(perform(generator.draw(), world))
    return steps


def agent_for(name: str) -> Agent:
    """This process's: a worker that was forked must not share the memory of whoever forked it."""
    return _agent_for(name, os.getpid())


@cache
def _agent_for(name: str, pid: int) -> Agent:
    profile = PROFILES[name]
    return Agent(profile.window.start, profile.window.pages, profile.length)


def check(profile: Profile, sequence: Sequence[Op]) -> Divergence | int:
    """Do a sequence on a fresh model and a fresh process: the first divergence, or how many operations agree."""
    agent = agent_for(profile.name)
    world = World(profile.window, agent.hash_page, running(), slice=profile.slice, features=profile.contexts)
    steps: list[Step] = []
    for op in sequence:
        steps.append(perform(op, world))
        if steps[-1].broken:
            break
    return compare(agent, profile, steps)


def chunk(name: str, seed: int, numbers: Sequence[int]) -> list[tuple[int, Divergence | int | str]]:
    """What a worker does: some sequences, up to the first that diverges."""
    out: list[tuple[int, Divergence | int | str]] = []
    profile = profile_named(name)
    for number in numbers:
        result = compare(agent_for(name), profile, steps_of(profile, seed, number))
        if isinstance(result, Divergence):
            again = compare(agent_for(name), profile, steps_of(profile, seed, number))
            if not isinstance(again, Divergence):
                out.append((number, f"sequence {number}, operation {result.at}: {result.what}"))
            result = again
        out.append((number, result))
        if isinstance(result, Divergence):
            break
    return out


def run(
    name: str, seed: int, operations: int, *, jobs: int = 1, progress: Progress | None = None
) -> Results[Progress | Divergence, None, None]:
    """Do sequences until `operations` agree: the progress after each few, or the first divergence, which is the last.

    To be closed by whoever may leave some.
    """
    profile = profile_named(name)
    now = progress if progress is not None else Progress(name, seed, set())
    wanted = -(-operations // profile.length)
    with surroundings(profile):
        yield from _run(now, jobs, wanted)


@contextmanager
def surroundings(profile: Profile) -> Iterator[None]:
    """What the machine must be like for a profile. Raises Unavailable where it can't be."""
    with ExitStack() as stack:
        if profile.swap or profile.huge or profile.ksm:
            held = stack.enter_context(machine(timeout_s=600))
            if profile.swap:
                swap(held)
            if profile.huge:
                huge_pages(held)
            if profile.ksm:
                merging(held)
        # What could not be asked before may be there now.
        missing.cache_clear()
        running.cache_clear()
        allowed()
        yield


def _run(now: Progress, jobs: int, wanted: int) -> Iterator[Progress | Divergence]:
    name, seed = now.profile, now.seed
    left = (number for number in range(wanted) if number not in now.done)
    chunks = iter(lambda: list(islice(left, CHUNK)), [])
    if jobs == 1:
        results: Iterator[list[tuple[int, Divergence | int | str]]] = (chunk(name, seed, each) for each in chunks)
        yield from _collect(results, now)
        return
    with workers(min(jobs, -(-wanted // CHUNK))) as pool:

        def shared() -> Iterator[list[tuple[int, Divergence | int | str]]]:
            under_way = {pool.submit(chunk, name, seed, each) for each in islice(chunks, 2 * jobs)}
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                under_way |= {pool.submit(chunk, name, seed, each) for each in islice(chunks, len(done))}
                yield from (each.result() for each in done)

        yield from _collect(shared(), now)


def _collect(
    results: Iterator[list[tuple[int, Divergence | int | str]]], now: Progress
) -> Iterator[Progress | Divergence]:
    for part in results:
        for number, result in part:
            if isinstance(result, Divergence):
                yield result
                return
            if isinstance(result, str):
                now.unrepeated.append(result)
                continue
            now.done.add(number)
            now.operations += result
        yield now


def shrunk(profile: Profile, found: Divergence, tried: Callable[[], object] = int) -> Divergence:
    """The divergence with as short a sequence as can be had: operations are left out here, the rest is hypothesis's, where it is.

    tried: called before each try.
    """

    def again(sequence: Sequence[Op]) -> Divergence | int:
        tried()
        return check(profile, sequence)

    short = shrink(found, again)
    if not without_hypothesis():
        short = stateful().shrink(short, again)
    return short


def search(profile: Profile, seed: int, operations: int) -> Divergence | int:
    """Sequences that hypothesis draws, until about so many operations agree: how many did, or the first divergence.

    Raises ConformError where there is no hypothesis.
    """
    if without_hypothesis():
        raise ConformError(without_hypothesis())
    with surroundings(profile):
        result: Divergence | int = stateful().search(profile, agent_for(profile.name), operations, seed)
        return result


@cache
def without_hypothesis() -> str:
    """Why hypothesis can't be used, and what to do; empty if it can."""
    try:
        stateful()
    except ImportError:
        return "hypothesis is not installed, or older than 6.130: pip install 'userfault[conform]'"
    return ""


def stateful() -> ModuleType:
    """stateful.py, the only part that needs hypothesis, which is slow to import."""
    return importlib.import_module(f"{__package__}.stateful")
