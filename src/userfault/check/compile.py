"""The compiler: restricted Python functions -> `ir.Program`.

Calls are inlined, constants folded, and everything that no thread ever writes is a constant too: the compiler starts
from "nothing is written", compiles, looks which fields were stored to, and repeats until that set is stable. What
remains of a function is its shared accesses (each the start of a step) and the local work between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from . import ir
from .body import Body
from .heap import Heap
from .names import CONSTANTS, SOURCES
from .settle import settle
from .template import Access, Log
from .unit import Unit


class Call(NamedTuple):
    """One operation of a thread: `fn(*args)`, its result stored in field `into[1]` of struct object `into[0]`."""

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    into: tuple[Any, str] | None = None


class ThreadSpec(NamedTuple):
    """A thread: operations one after the other, then `at_end` (checks made as part of its last step)."""

    name: str
    calls: Sequence[Call]
    at_end: Sequence[Call] = ()


def compile_program(
    name: str,
    threads: Sequence[ThreadSpec],
    *,
    roots: Iterable[Any] = (),
    invariants: Sequence[Call] = (),
    finals: Sequence[Call] = (),
    observers: Sequence[Call] = (),
    names: dict[int, str] | None = None,
    substitute: dict[Callable[..., Any], Callable[..., Any]] | None = None,
    ignore: frozenset[str] = frozenset(),
    reuse: bool = True,
    pools: Mapping[type, tuple[str, ...]] | None = None,
) -> ir.Program:
    """Compile threads of model functions over the objects they reach.

    roots: objects whose pools are snapshotted first (their order names the objects).
    invariants: checked after every step. finals: checked in states where every thread has ended.
    observers: for outcomes.py: each reads a value of a final state into its `into`, an object that nobody else writes.
    names: id(object) -> its name in traces. substitute: function -> the mutant compiled in its place.
    pools: structs whose free objects are interchangeable, and the fields that are zero in a free one (see pools.py).
    ignore: properties that are not checked. reuse: compile equal calls once (the program is the same without).
    Raises CompileError for code outside the subset.
    """
    args: list[Any] = list(roots)
    for thread in threads:
        for call in [*thread.calls, *thread.at_end]:
            args += [*call.args, *(call.into[:1] if call.into else ())]
    specs = [*invariants, *finals, *observers]
    for call in specs:
        args += [*call.args, *(call.into[:1] if call.into else ())]
    unit = Unit(name, Heap(args, len(threads), dict(names or {})), substitute or {}, ignore, reuse)
    makers = [partial(_thread, unit, *each) for each in enumerate(threads)]
    makers += [partial(_spec, unit, each) for each in specs]
    bodies = _bodies(unit, makers)
    program = unit.program
    program.heap, program.pools = unit.heap, pools or {}
    program.consts = list(CONSTANTS.named)
    program.sources = list(SOURCES.named)
    settled = [settle(unit, body.words, body.locals) for body in bodies]
    program.threads = [
        ir.Thread(spec.name, code, variables, live)
        for spec, (code, variables, live) in zip(threads, settled, strict=False)
    ]
    made = [
        ir.Spec(call.fn.__name__, code, variables)
        for call, (code, variables, _) in zip(specs, settled[len(threads) :], strict=True)
    ]
    program.invariants = made[: len(invariants)]
    program.finals = made[len(invariants) : len(invariants) + len(finals)]
    program.observers = made[len(invariants) + len(finals) :]
    program.observed = [unit.cell_of(*call.into) for call in observers if call.into is not None]
    return program


def _bodies(unit: Unit, makers: Sequence[Callable[[], Body]]) -> list[Body]:
    """All the bodies, none of which trusts what another writes."""
    bodies: list[Body] = []
    trusts: list[set[Access]] = []
    for make in makers:
        unit.log = Log()
        bodies.append(make())
        trusts.append(unit.log.trusted)
    while stale := [at for at, trusted in enumerate(trusts) if unit.betrayed(trusted)]:
        for at in stale:
            unit.log = Log()
            bodies[at] = makers[at]()
            trusts[at] = unit.log.trusted
    return bodies


def _thread(unit: Unit, number: int, spec: ThreadSpec) -> Body:
    body = Body(unit, cpu=number, spec=False)
    for call in spec.calls:
        body.call_toplevel(call.fn, call.args, call.into)
    for call in spec.at_end:
        with body.no_step():
            body.call_toplevel(call.fn, call.args, call.into)
    body.finish()
    return body


def _spec(unit: Unit, call: Call) -> Body:
    body = Body(unit, cpu=0, spec=True, writes=call.into is not None)
    body.call_toplevel(call.fn, call.args, call.into)
    body.finish()
    return body
