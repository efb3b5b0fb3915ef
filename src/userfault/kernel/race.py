"""Threads that race operations on the running kernel, thousands of rounds per second: native/run.c from Python.

A race is lists of operations by name (`operations()`); what they do is in native/race*.h. It runs in a process of its own,
which is killed when a round does not end. No Python runs in it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from mmap import mmap

from ..native import library, why_missing
from .errors import KernelError, limit_met

MAX_THREADS, MAX_MMS, MAX_FIELDS, MAX_OUTCOMES = 8, 8, 24, 4096
WAITS = -(2**31)
"""In an outcome: what an operation gave whose thread waited, until it was let go because nobody came."""
ENDED = 1
TELLING = frozenset({"ksm", "migrate", "collapse", "reclaim"})
"""The operations that ask the kernel for something that it may leave undone, and that see whether it did."""


@dataclass(frozen=True)
class Op:
    """An operation: its name in native/race*.h, up to four numbers, and the field of the outcome that takes its result.

    Addresses are bytes from the base of the test. field: -1 for none.
    """

    name: str
    args: tuple[int, ...] = ()
    field: int = -1


@dataclass(frozen=True)
class Race:
    """What to run.

    setup: the initial state, a list for each address space; the first is the runner's own, every other is a process that
    `child` or `fork` makes. threads: (address space, operations) each. observe: for each address space, after the race.
    fields: values in an outcome. huge: lengths are in huge pages. blocking: a missing page makes its thread wait instead
    of raising SIGBUS. events: UFFD_FEATURE_EVENT_* bits to ask for.
    """

    setup: tuple[tuple[Op, ...], ...]
    threads: tuple[tuple[int, tuple[Op, ...]], ...]
    observe: tuple[tuple[Op, ...], ...]
    fields: int
    huge: bool = False
    blocking: bool = False
    events: int = 0


@dataclass
class Outcomes:
    """What came of a race.

    counts: outcome (the fields' values; -1 where nothing was seen, negative errno or signal for failures, WAITS) -> rounds that
    ended in it. rounds: all that were run. failures: those whose initial state did not come about, which are in no count; failure is
    the negative errno of the last one. hangs: empty, or the operation (thread, its index) at which each thread stood
    when the race was killed. unblocked: rounds in which a thread that waited had to be let go. provoked: those in which what
    the kernel was asked to do beside the threads (TELLING) was seen to happen, at least.
    """

    counts: dict[tuple[int, ...], int] = field(default_factory=dict)
    rounds: int = 0
    failures: int = 0
    failure: int = 0
    failed_at: int = -1
    hangs: tuple[tuple[int, int], ...] = ()
    unblocked: int = 0
    provoked: int = 0
    seconds: float = 0.0


class _Op(ctypes.Structure):
    _fields_ = (
        ("what", ctypes.c_int32),
        ("field", ctypes.c_int32),
        ("args", ctypes.c_int64 * 4),
    )


class _List(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("operations", ctypes.POINTER(_Op)))


class _Program(ctypes.Structure):
    _fields_ = (
        ("threads", ctypes.c_int32),
        ("mms", ctypes.c_int32),
        ("fields", ctypes.c_int32),
        ("huge", ctypes.c_int32),
        ("blocking", ctypes.c_int32),
        ("events", ctypes.c_int32),
        ("mm_of", ctypes.c_int32 * MAX_THREADS),
        ("setup", _List * MAX_MMS),
        ("thread", _List * MAX_THREADS),
        ("observe", _List * MAX_MMS),
    )


class _Outcome(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int64), ("fields", ctypes.c_int32 * MAX_FIELDS))


class _Results(ctypes.Structure):
    _fields_ = (
        ("rounds", ctypes.c_int64),
        ("failures", ctypes.c_int64),
        ("failure", ctypes.c_int64),
        ("unblocked", ctypes.c_int64),
        ("provoked", ctypes.c_int64),
        ("ns", ctypes.c_int64),
        ("ended", ctypes.c_int32),
        ("outcomes", ctypes.c_int32),
        ("table", _Outcome * MAX_OUTCOMES),
    )


@cache
def _library() -> ctypes.CDLL:
    lib = library()
    if lib is None:
        raise KernelError(f"races can't be run: {why_missing()}")
    lib.uf_race_operations.restype = ctypes.c_char_p
    for name in ("uf_race_shared_bytes", "uf_race_results_at", "uf_race_at", "uf_race_start"):
        getattr(lib, name).restype = ctypes.c_int64
    lib.uf_race_start.argtypes = (
        ctypes.POINTER(_Program),
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_uint64,
    )
    return lib


@cache
def operations() -> tuple[str, ...]:
    """The operations that native/run.c knows, by number."""
    return tuple(_library().uf_race_operations().decode().split())


def _list(ops: Sequence[Op], keep: list[object]) -> _List:
    numbers = {name: number for number, name in enumerate(operations())}
    made = (_Op * max(len(ops), 1))()
    for at, op in enumerate(ops):
        made[at] = _Op(numbers[op.name], op.field, (ctypes.c_int64 * 4)(*op.args))
    keep.append(made)
    return _List(len(ops), made)


def _program(race: Race) -> tuple[_Program, list[object]]:
    if len(race.threads) > MAX_THREADS or len(race.setup) > MAX_MMS or race.fields > MAX_FIELDS:
        raise KernelError(
            f"this race is too large: up to {MAX_THREADS} threads, {MAX_MMS} address spaces, {MAX_FIELDS} values in an outcome"
        )
    keep: list[object] = []
    made = _Program(len(race.threads), len(race.setup), race.fields, race.huge, race.blocking, race.events)
    for at, ops in enumerate(race.setup):
        made.setup[at] = _list(ops, keep)
    for at, (mm, ops) in enumerate(race.threads):
        made.mm_of[at] = mm
        made.thread[at] = _list(ops, keep)
    for at, ops in enumerate(race.observe):
        made.observe[at] = _list(ops, keep)
    return made, keep


def run_race(
    race: Race, rounds: int, seconds: float = 0.0, pin: bool = True, patience: float = 10.0, seed: int = 1
) -> Outcomes:
    """Run a race `rounds` times, or for `seconds` if that is over first (0: no limit).

    pin: bind each thread to a CPU; else a busy scheduler may run them one after the other, on one. patience: seconds after
    which a round that does not end is given up: the race is killed, and `hangs` says where its threads stood; more where more
    threads want to run than there are CPUs (crowded). seed: of the delays.
    Raises KernelError where the native core is missing or the race is too large.
    """
    lib = _library()
    program, keep = _program(race)
    with mmap(-1, lib.uf_race_shared_bytes()) as memory:
        buffer = (ctypes.c_char * len(memory)).from_buffer(memory)
        at = ctypes.addressof(buffer)
        results = _Results.from_address(at + lib.uf_race_results_at())
        # uf_race_start: setting_up, then each thread's operation.
        stands = (ctypes.c_int32 * (1 + MAX_THREADS)).from_address(at + lib.uf_race_at())
        try:
            pid = lib.uf_race_start(ctypes.byref(program), at, rounds, int(seconds * 1e9), pin, seed)
            if pid < 0:
                raise limit_met(OSError(-pid, "")) or KernelError(f"no process for a race: {os.strerror(-pid)}")
            hung = not _wait(pid, results, patience)
            out = Outcomes(
                rounds=results.rounds,
                failures=results.failures,
                failure=results.failure,
                unblocked=results.unblocked,
                provoked=results.provoked,
                seconds=results.ns / 1e9,
            )
            for row in results.table[: results.outcomes]:
                out.counts[tuple(row.fields[: race.fields])] = row.count
            if hung:
                out.hangs = tuple((t, stands[1 + t] - 1) for t in range(len(race.threads)) if stands[1 + t])
            elif results.ended != ENDED:
                out.failure = results.ended if results.ended < 0 else -1
                out.failures = max(out.failures, 1)
            if out.failures:
                out.failed_at = stands[0] - 1
        finally:
            del results, stands, buffer
    del keep
    return out


def crowded() -> float:
    """How many times more threads want to run on this machine than there are CPUs, at least 1: a round's turns take that longer."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _wait(pid: int, results: _Results, patience: float) -> bool:
    """Wait for the end; False if a round took longer than `patience` and everything was killed."""
    rounds, since = -1, time.monotonic()
    done = False
    pidfd = os.pidfd_open(pid)
    try:
        import select

        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not (done := bool(poll.poll(100))):
            if results.rounds != rounds:
                rounds, since = results.rounds, time.monotonic()
            elif time.monotonic() - since > patience * crowded():
                break
    finally:
        os.close(pidfd)
        if not done:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return done


@dataclass(frozen=True)
class Piece:
    """A part of native/race*.h: its name, the pieces that it needs, its text."""

    name: str
    needs: tuple[str, ...]
    text: str


SOURCES = ("race.h", *(f"race_{name}.h" for name in ("userfaultfd", "memory", "pins", "rounds", "report")))


@cache
def pieces() -> tuple[Piece, ...]:
    """The C source of the operations and of the rounds, in its order: what a program of its own is made of."""
    found = []
    for file in SOURCES:
        text = resources.files("userfault.native").joinpath(file).read_text()
        for part in re.split(r"^//= ", text, flags=re.MULTILINE)[1:]:
            head, _, body = part.partition("\n")
            name, _, needs = head.partition(":")
            found.append(Piece(name.strip(), tuple(needs.split()), body.strip("\n")))
    return tuple(found)


def defines(piece: Piece) -> tuple[str, ...]:
    """The operations that a piece is the source of."""
    return tuple(re.findall(r"^OP\((\w+)\)", piece.text, re.MULTILINE))
