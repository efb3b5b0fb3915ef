"""A sequence on both sides: the kernel's answers and records against the model's, operation by operation."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..kernel.agent import Agent, Message, Seen
from ..model.lang import ModelError, WouldBlock
from . import operations
from .operations import CONTEXT_FD, Op, Outcome
from .profiles import Profile
from .quirks import running
from .sandbox import prepare
from .world import WATCHED, State, World

SECONDS = 15.0
AREAS = 8
"""Operations between two looks at smaps, which costs more than all else."""


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
    model_messages: tuple[Message, ...] = ()
    kernel_messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Step:
    """An operation and what the model says to it: what it gives back, and what can be seen then. broken: why there is nothing."""

    op: Op
    outcome: Outcome = Outcome(0)  # noqa: RUF009 (a value)
    states: tuple[State, ...] = ()
    broken: str = ""
    messages: tuple[Message, ...] = ()
    """What userfaultfds said of it."""


def perform(op: Op, world: World) -> Step:
    """Do an operation on the model."""
    try:
        outcome = operations.apply(op, world)
    except (ModelError, WouldBlock) as error:
        return Step(op, broken=f"{type(error).__name__}: {error}")
    return Step(op, outcome, tuple(world.observe()), messages=world.told())


def compare(agent: Agent, profile: Profile, steps: Sequence[Step]) -> Divergence | int:
    """Do on the kernel what was done on the model. The first divergence, or how many operations agree."""
    commands = [operations.command(step.op, profile.window.base) for step in steps]
    run = agent.run(
        commands,
        partial(prepare, profile.huge, profile.ksm, running().lacking, profile.contexts),
        seconds=SECONDS,
        slice=profile.slice,
        areas=AREAS,
        userfaultfds=(len(WATCHED), CONTEXT_FD, profile.window.base) if profile.contexts is WATCHED else (0, 0, 0),
    )
    done = tuple(step.op for step in steps)
    for at, step in enumerate(steps):
        op = step.op
        if at >= run.done:
            what = "the kernel did not come back" if run.hung else f"the agent ended (status {run.status})"
            return Divergence(done, at, f"{op.name}: {what}")
        kernel = operations.outcome(op, run.answers[at])
        if step.broken:
            return Divergence(done, at, f"{op.name}: the model broke", None, kernel, note=step.broken)
        seen, told = run.records[at], tuple(run.messages[at])
        if step.outcome != kernel or step.messages != told:
            return Divergence(
                done,
                at,
                f"{op.name}: {'result' if step.outcome != kernel else 'messages'}",
                step.outcome,
                kernel,
                step.states,
                kept(seen),
                model_messages=step.messages,
                kernel_messages=told,
            )
        difference = differ(step.states, seen)
        if difference:
            what, places = difference
            return Divergence(
                done, at, f"{op.name}: {what}", step.outcome, kernel, step.states, kept(seen), tuple(places)
            )
    return len(steps)


def kept(seen: Sequence[Seen]) -> tuple[State, ...]:
    """A copy of what was seen: the agent's memory is used again."""
    return tuple(
        State(each.process, each.vmas, array("Q", each.words), array("Q", each.contents), each.areas) for each in seen
    )


def differ(states: Sequence[State], seen: Sequence[Seen]) -> tuple[str, list[tuple[int, int]]] | None:
    """What differs between the states and where; None: nothing."""
    if [each.process for each in states] != [each.process for each in seen]:
        return "processes", []
    for which, (state, real) in enumerate(zip(states, seen, strict=True)):
        if state.vmas != real.vmas:
            return "VMAs", []
        if state.words.tobytes() != real.words.tobytes():
            return "pages", [(which, at) for at, word in enumerate(state.words) if word != real.words[at]]
        if state.contents.tobytes() != real.contents.tobytes():
            return "contents", [(which, at) for at, word in enumerate(state.contents) if word != real.contents[at]]
        if real.areas and state.areas != real.areas:
            return "areas", []
    return None
