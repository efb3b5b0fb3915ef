"""A sequence on both sides: the kernel's answers and records against the model's, operation by operation."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from ..kernel.agent import Agent, Seen
from ..model.lang import ModelError, WouldBlock
from . import operations
from .operations import Op, Outcome
from .sandbox import prepare
from .world import State, World

SECONDS = 6.0


@dataclass(frozen=True)
class Divergence:
    """Where model and kernel part: after operation `at` (from 0) of the sequence.

    what: the kind of thing that differs, the same for runs that fail in the same way. model, kernel: what each gave back.
    model_states, kernel_states: what each shows; places: the pages that differ, as (which process, page in the window).
    """

    sequence: tuple[Op, ...]
    at: int
    what: str
    model: Outcome | None = None
    kernel: Outcome | None = None
    model_states: tuple[State, ...] = ()
    kernel_states: tuple[State, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    note: str = ""


def compare(agent: Agent, world: World, sequence: Sequence[Op], slice: int = 0) -> Divergence | int:
    """Do the sequence on both sides. The first divergence, or how many operations agree."""
    base = world.window.base
    commands = [operations.command(op, base) for op in sequence]
    run = agent.run(commands, prepare, seconds=SECONDS, slice=slice)
    done = tuple(sequence)
    for at, op in enumerate(sequence):
        if at >= run.done:
            what = "the kernel did not come back" if run.hung else f"the agent ended (status {run.status})"
            return Divergence(done, at, what)
        kernel = operations.outcome(op, run.answers[at])
        try:
            model = operations.apply(op, world)
        except (ModelError, WouldBlock) as error:
            return Divergence(done, at, f"the model broke: {type(error).__name__}", None, kernel, note=str(error))
        states = world.observe()
        seen = run.records[at]
        if model != kernel:
            return Divergence(done, at, f"{op.name}: result", model, kernel, tuple(states), kept(seen))
        difference = differ(states, seen, slice)
        if difference:
            what, places = difference
            return Divergence(done, at, f"{op.name}: {what}", model, kernel, tuple(states), kept(seen), tuple(places))
    return len(sequence)


def kept(seen: Sequence[Seen]) -> tuple[State, ...]:
    """A copy of what was seen: the agent's memory is used again."""
    return tuple(State(each.process, each.vmas, array("Q", each.words), array("Q", each.contents)) for each in seen)


def differ(states: Sequence[State], seen: Sequence[Seen], slice: int) -> tuple[str, list[tuple[int, int]]] | None:
    """What differs between the states and where; None: nothing."""
    if [each.process for each in states] != [each.process for each in seen]:
        return "processes", []
    for which, (state, real) in enumerate(zip(states, seen, strict=True)):
        if state.vmas != real.vmas:
            return "VMAs", []
        if state.words.tobytes() != real.words.tobytes():
            return "pages", [(which, at) for at, word in enumerate(state.words) if word != real.words[at]]
        if state.contents.tobytes() != real.contents.tobytes():
            places = [
                (which, at)
                for at, word in enumerate(state.contents)
                if word != real.contents[at] and (not slice or real.contents[at])
            ]
            if places:
                return "contents", places
    return None
