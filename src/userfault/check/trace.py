"""Counterexamples for people: CPU columns of the model's own source lines, and schedules as short strings."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import ir
from .errors import CheckError
from .explore import Access, Blocked, Machine, State, Violation
from .result import DEADLOCK, LIVELOCK, Move

WIDTH = 76
_RUN = re.compile(r"(\d+)(?:x(\d+)|c([\d-]+))?")


def encode_schedule(moves: Sequence[Move]) -> str:
    """`1x31.0x9.1c2`: thread 1 for 31 steps, thread 0 for 9, then one step of thread 1 that chooses 2."""
    runs: list[str] = []
    count = 0
    for at, move in enumerate(moves):
        if any(move.choices):
            runs.append(f"{move.thread}c{'-'.join(map(str, move.choices))}")
            continue
        count += 1
        following = moves[at + 1] if at + 1 < len(moves) else None
        if following is None or following.thread != move.thread or any(following.choices):
            runs.append(f"{move.thread}x{count}" if count > 1 else f"{move.thread}")
            count = 0
    return ".".join(runs)


def decode_schedule(text: str) -> list[Move]:
    """The inverse of `encode_schedule`. Raises CheckError for anything else."""
    moves: list[Move] = []
    for run in text.split("."):
        match = _RUN.fullmatch(run)
        if match is None or (match[2] is not None and int(match[2]) > 100_000):
            raise CheckError(f"{run!r} is not a part of a schedule: expected THREAD, THREADxCOUNT or THREADcCHOICE")
        if match[2] is not None and int(match[2]) == 0:
            raise CheckError(f"{run!r} is no step of the schedule: expected a count from 1 on")
        thread = int(match[1])
        if match[3] is not None:
            moves.append(Move(thread, tuple(int(choice) for choice in match[3].split("-"))))
        else:
            moves += [Move(thread)] * int(match[2] or 1)
    return moves


@dataclass(slots=True)
class Event:
    """Steps of one thread on one source line."""

    thread: int
    source: ir.Source
    accesses: list[Access] = field(default_factory=list)
    cycle: bool = False


@dataclass(slots=True)
class Replay:
    """A schedule executed: its events, where it ended, and the property that broke (None: nothing did)."""

    events: list[Event]
    state: State
    failure: ir.Failure | None = None
    source: ir.Source | None = None


def replay(program: ir.Program, moves: Sequence[Move], lasso: int = -1) -> Replay:
    """Execute a schedule on the reference engine. Raises CheckError if it does not fit the program."""
    machine = Machine(program)
    state = machine.initial()
    done = Replay([], state)
    failure = machine.broken(state)
    cycle_state: State | None = None
    for number, move in enumerate(moves):
        if failure is not None:
            raise CheckError(f"the schedule goes on after step {number}, where {failure.property} broke already")
        if not 0 <= move.thread < len(program.threads):
            raise CheckError(
                f"step {number} of the schedule is of thread {move.thread}, which this program does not have"
            )
        if number == lasso:
            cycle_state = state
        pc = machine.pc(state, move.thread)
        if pc < 0:
            raise CheckError(f"step {number} of the schedule is of thread {move.thread}, which has ended")
        source = program.sources[program.threads[move.thread].code[pc].source]
        log: list[Access] = []
        try:
            state, _ = machine.step(state, move.thread, move.choices, log)
            failure = machine.broken(state)
        except Blocked:
            raise CheckError(f"step {number} of the schedule is of thread {move.thread}, which waits there") from None
        except Violation as violation:
            failure = violation.failure
            done.source = program.sources[violation.source]
        last = done.events[-1] if done.events else None
        if last is not None and last.thread == move.thread and last.source == source and number != lasso:
            last.accesses += log
        else:
            done.events.append(Event(move.thread, source, log, number == lasso))
        done.source = done.source or source
        if failure is None:
            done.source = None
    done.state = state
    if failure is None and lasso >= 0 and state == cycle_state:
        failure = LIVELOCK
    if failure is None and not machine.ended(state) and _stuck(machine, state):
        failure = DEADLOCK
    done.failure = failure
    return done


def _stuck(machine: Machine, state: State) -> bool:
    for thread in range(len(machine.program.threads)):
        for _ in machine.successors(state, thread):
            return False
    return True


def render(program: ir.Program, moves: Sequence[Move], lasso: int = -1) -> str:
    """The trace as text: a column a CPU, at most 76 characters wide, ASCII."""
    done = replay(program, moves, lasso)
    count = len(program.threads)
    width = (WIDTH - 3 * (count - 1)) // count
    lines: list[str] = []

    def row(thread: int, text: str) -> None:
        cells = [" " * width] * count
        cells[thread] = text.ljust(width)
        lines.append(" | ".join(cells).rstrip())

    heads = [
        textwrap.shorten(f"CPU{n}: {t.name}", width, placeholder="~").ljust(width)
        for n, t in enumerate(program.threads)
    ]
    lines.append(" | ".join(heads).rstrip())
    lines.append("-+-".join("-" * width for _ in range(count)))
    for event in done.events:
        if event.cycle:
            lines.append(" from here on, again and again ".center(WIDTH, "~"))
        for text in textwrap.wrap(_ascii(event.source.text), width, subsequent_indent="  ", break_long_words=True):
            row(event.thread, text)
        for note in _notes(program, event):
            for text in textwrap.wrap(note, width - 4, subsequent_indent="  "):
                row(event.thread, "    " + text)
    lines.append("")
    if done.failure is None:
        lines.append("nothing broke")
    else:
        lines.append(f"broken: {done.failure.property}")
        lines += textwrap.wrap(f"found: {done.failure.message}", WIDTH, subsequent_indent="  ")
        if done.source is not None and done.failure not in (DEADLOCK, LIVELOCK):
            lines.append(f"at: {done.source.file}:{done.source.line} {done.source.function}()")
        if done.failure == DEADLOCK:
            lines += _waiting(program, done.state)
    return "\n".join(lines)


def _waiting(program: ir.Program, state: State) -> list[str]:
    machine = Machine(program)
    out = []
    for number, thread in enumerate(program.threads):
        pc = machine.pc(state, number)
        if pc >= 0:
            source = program.sources[thread.code[pc].source]
            out += textwrap.wrap(
                f"CPU{number} waits at {source.file}:{source.line}: {_ascii(source.text)}",
                WIDTH,
                subsequent_indent="  ",
            )
    return out


def _notes(program: ir.Program, event: Event) -> list[str]:
    """What the line read and changed, without the bookkeeping that belongs to one CPU alone."""
    notes: list[str] = []
    written: dict[int, tuple[int, int]] = {}
    for access in event.accesses:
        cell = program.cells[access.cell]
        if _is_bookkeeping(cell):
            continue
        if access.write:
            first = written.get(access.cell, (access.old, access.new))[0]
            written[access.cell] = (first, access.new)
    for cell_number, (old, new) in written.items():
        cell = program.cells[cell_number]
        if old != new:
            notes.append(f"{cell.name}: {cell.show(old)} -> {cell.show(new)}")
    if not notes:
        seen: dict[str, str] = {}
        for access in event.accesses:
            cell = program.cells[access.cell]
            if not access.write and not _is_bookkeeping(cell):
                seen[cell.name] = cell.show(access.new)
        if 0 < len(seen) <= 3:
            notes = [f"{name} = {value}" for name, value in seen.items()]
    return [_ascii(note) for note in notes]


def _is_bookkeeping(cell: ir.Cell) -> bool:
    """A lock's line says what happened to it; what belongs to one CPU is the model's own accounting."""
    return cell.owned or cell.per_thread > 0 or cell.name.endswith(".allocated")


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def switches(moves: Sequence[Move]) -> int:
    """Context switches of a schedule."""
    return sum(a.thread != b.thread for a, b in itertools.pairwise(moves))
