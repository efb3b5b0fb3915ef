"""hypothesis draws sequences, and makes failing ones short. It is an extra: `pip install 'userfault[conform]'`.

The rules are the generator's: hypothesis stands where its random numbers come from. A sequence that was found without hypothesis is
handed over as an example that failed before, of a strategy that leaves operations out and makes numbers smaller.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, choices_to_bytes
from hypothesis.errors import Flaky, NoSuchExample
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ..kernel.agent import Agent
from .compare import Divergence, Step, compare, perform
from .generate import Generator
from .operations import KINDS, Op
from .profiles import Profile
from .quirks import running
from .shrink import Check, cut
from .world import PAGE, World

Sequence = tuple[Op, ...]
MOST_ADDRESS = 1 << 46
"""Larger ones are wrong on purpose, and stay."""
EVEN, FRACTION = 7, 14
"""Bits of a number that hypothesis draws evenly (larger ones are mostly small), and of a fraction."""
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "verbosity": Verbosity.quiet,
    "print_blob": False,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
}


class Drawn(random.Random):
    """Random numbers that hypothesis draws: small ones are simple choices."""

    def __init__(self) -> None:
        super().__init__(0)
        self.draw: Callable[[st.SearchStrategy[int]], int] = lambda strategy: 0

    def random(self) -> float:
        return self.getrandbits(FRACTION) / (1 << FRACTION)

    def getrandbits(self, k: int, /) -> int:
        value = 0
        while k > 0:
            part = min(k, EVEN)
            value = value << part | self.draw(st.integers(0, (1 << part) - 1))
            k -= part
        return value


class Parted(Exception):
    """Model and kernel did."""

    def __init__(self, found: Divergence) -> None:
        super().__init__(found.what)
        self.found = found


def machine(profile: Profile, agent: Agent) -> type[RuleBasedStateMachine]:
    """The state machine of a profile's sequences, which `agreed` counts the operations of."""

    class Machine(RuleBasedStateMachine):
        agreed = 0

        @initialize(data=st.data())
        def boot(self, data: st.DataObject) -> None:
            self.world = World(
                profile.window, agent.hash_page, running(), slice=profile.slice, features=profile.contexts
            )
            self.steps: list[Step] = []
            self.numbers = Drawn()
            self.numbers.draw = data.draw
            self.generator = Generator(profile, self.numbers, self.world)

        @rule(data=st.data())
        def operation(self, data: st.DataObject) -> None:
            self.numbers.draw = data.draw
            if not (self.steps and self.steps[-1].broken):
                self.steps.append(perform(self.generator.draw(), self.world))

        def teardown(self) -> None:
            # A process for a whole sequence, not an exchange with it for each operation.
            result = compare(agent, profile, self.steps) if getattr(self, "steps", None) else 0
            if isinstance(result, Divergence):
                raise Parted(result)
            Machine.agreed += result

    return Machine


def search(profile: Profile, agent: Agent, operations: int, seed: int) -> Divergence | int:
    """Sequences drawn by hypothesis until about so many operations agree, and how many did: or the first divergence.

    What it finds is not shrunk as it was drawn: an operation left out there changes what all later draws mean.
    """
    found = machine(profile, agent)
    sequences = -(-operations // profile.length)
    settings = hypothesis.settings(
        max_examples=sequences,
        stateful_step_count=profile.length,
        database=None,
        phases=[Phase.generate],
        **SETTINGS,
    )
    try:
        with suppress(Flaky):
            run_state_machine_as_test(hypothesis.seed(seed)(found), settings=settings)
    except Parted as parted:
        return cut(parted.found)
    return int(found.agreed)  # type: ignore[attr-defined]


class Handed(ExampleDatabase):
    """One example that failed before, and is not short yet: those that are, under the key itself, are left as they are."""

    KEY = b"found"

    def __init__(self, choices: Iterable[int]) -> None:
        super().__init__()
        self.example = choices_to_bytes(choices)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        return [self.example] if key == self.KEY + b".secondary" else []

    def save(self, key: bytes, value: bytes) -> None:
        pass

    def delete(self, key: bytes, value: bytes) -> None:
        pass


def shrink(found: Divergence, check: Check, *, seconds: float = 120.0) -> Divergence:
    """The shortest sequence that hypothesis gets to from the one that was found, in about so many seconds."""
    best = cut(found)
    end = time.monotonic() + seconds

    def fails(sequence: Sequence) -> bool:
        nonlocal best
        result = check(sequence) if sequence and time.monotonic() < end else 0
        if not isinstance(result, Divergence) or result.what != found.what:
            return False
        if size(result.sequence[: result.at + 1]) < size(best.sequence):
            best = cut(result)
        return True

    before = None
    while before is not best:
        # hypothesis stops after 500 smaller examples; where it began with a long one, there is more to gain.
        before = best
        given = Handed(choices(best.sequence))
        settings = hypothesis.settings(database=given, phases=[Phase.reuse, Phase.shrink], **SETTINGS)
        # Where it does not come again, what is known is as good.
        with suppress(NoSuchExample, Flaky):
            hypothesis.find(within(best.sequence), fails, settings=settings, database_key=Handed.KEY)
    return best


def size(sequence: Sequence) -> tuple[int, int]:
    """What a shorter sequence has less of: operations, and then how large its numbers are."""
    return len(sequence), sum(sum(numbers(op)) for op in sequence)


@st.composite
def within(draw: st.DrawFn, sequence: Sequence) -> Sequence:
    """The sequence without some of its operations, with some numbers smaller: the largest draws are all of it."""
    kept = []
    for op in sequence:
        # What is left out is drawn too: hypothesis makes draws small far better than it takes many out at once.
        stays, smaller = draw(st.booleans()), [draw(st.integers(0, each)) for each in numbers(op)]
        if stays:
            kept.append(rebuilt(op, smaller))
    return tuple(kept)


def choices(sequence: Sequence) -> list[int]:
    """The draws that make `within` the whole sequence."""
    out: list[int] = []
    for op in sequence:
        out += [True, *numbers(op)]
    return out


def numbers(op: Op) -> list[int]:
    """The numbers of an operation that may become smaller: its process, its arguments; of those in pages, pages and the rest."""
    out = [op.process]
    for name, value in zip(KINDS[op.name].parameters, op.args, strict=True):
        if name[0] in "@:" and 0 <= value < MOST_ADDRESS:
            out += divmod(value, PAGE)
        elif 0 <= value < MOST_ADDRESS:
            out.append(value)
    return out


def rebuilt(op: Op, given: Iterable[int]) -> Op:
    """The operation with other numbers."""
    rest = iter(given)
    process = next(rest)
    args = []
    for name, value in zip(KINDS[op.name].parameters, op.args, strict=True):
        if not 0 <= value < MOST_ADDRESS:
            args.append(value)
        elif name[0] in "@:":
            args.append(next(rest) * PAGE + next(rest))
        else:
            args.append(next(rest))
    return Op(process, op.name, tuple(args))
