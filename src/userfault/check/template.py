"""Calls are inlined, so the same call comes again and again: what it came to is kept and put in place with other operands.

A template is used only where the call would compile to the same code: its key says all that a body's state decides (see
describe), and what it rests on (its Log) must hold in the program that wants it (Unit.holds). So a program is the same
instruction by instruction with templates and without, whatever was compiled before.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from ctypes import c_void_p
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..native import library
from .ir import OPS, READS_A, READS_B, WRITES_D, Op
from .symbols import Place, Py, Sym, Tup, Val
from .types import NoneT, Scalar

if TYPE_CHECKING:
    from .body import Body

Row = tuple[Op, int, int, int, int, int, int, bool, int]
"""An instruction while it is compiled: the fields of ir.Instr, but jumps are relative (so that code can be put anywhere),
and accesses carry the number of their field in a place that their operation leaves free. Many of them are one array of
nine words each, which is copied and moved as a whole."""

WIDTH = 9
"""Words of a row."""

Access = tuple[type, str, int]
"""(struct, field, object from 1, or 0 for any of them)."""

CALLER = -1
"""In place of a source: the line that makes the call."""


Fact = tuple[Any, ...]
"""A question about the program (the name of a method of Unit and its arguments): the answer decides what code there is."""


@dataclass(slots=True)
class Log:
    """What compiling something rested on, and what it did beside emitting code.

    facts: questions and answers. trusted, written: (struct, field, object from 1, or 0 for any of them) that were taken for
    constant, and that others were known to write. writes: those that it writes. functions: what was inlined.
    own: it is about objects or functions that only this program has.
    """

    facts: dict[Fact, Any] = field(default_factory=dict)
    trusted: set[Access] = field(default_factory=set)
    written: set[Access] = field(default_factory=set)
    writes: set[Access] = field(default_factory=set)
    functions: set[Callable[..., Any]] = field(default_factory=set)
    own: bool = False

    def wrote(self, struct: type, name: str, obj: int) -> bool:
        """Did it write that itself before?"""
        writes = self.writes
        if (struct, name, obj) in writes or (struct, name, 0) in writes:
            return True
        return obj == 0 and any(other is struct and field == name for other, field, _ in writes)

    def add(self, other: Log) -> None:
        """What came next."""
        self.facts |= other.facts
        self.trusted |= other.trusted
        fresh = other.written - self.written
        self.written |= {access for access in fresh if not self.wrote(*access)} if self.writes else fresh
        self.writes |= other.writes
        self.functions |= other.functions
        self.own |= other.own


class Template:
    """What a call came to.

    words: its rows. locals: its variables, from first_local on. params: the locals that it was given. result: None if it
    never returns. mutable: which of the locals in the result are variables. steps: how many it begins. log: what it rests
    on. cpu: the CPU that it asked for, or -1.
    """

    def __init__(
        self,
        words: array[int],
        locals: list[tuple[str, Scalar | NoneT]],
        first_local: int,
        params: list[int],
        result: Sym | None,
        mutable: set[int],
        steps: int,
        log: Log,
        cpu: int,
    ) -> None:
        self.words, self.locals, self.first_local, self.params = words, locals, first_local, params
        self.result, self.steps, self.log, self.cpu = result, steps, log, cpu
        self.mutable = {local for local in locals_of(result) if local in mutable}

    def place(self, words: array[int], params: list[int], first_local: int, source: int) -> None:
        """Append the code with these operands; the call stands in this line."""
        at = len(words)
        words.extend(self.words)
        move(words, at, self.params, params, self.first_local, first_local, source)

    def moved(self, sym: Sym, params: list[int], first_local: int, mutable: set[int]) -> Sym:
        """The result with these operands; its variables are added to `mutable`."""
        if isinstance(sym, Val):
            if sym.operand < 0:
                return sym
            operand = _operand(sym.operand, self.params, params, self.first_local, first_local)
            if sym.operand in self.mutable:
                mutable.add(operand)
            return Val(sym.type, operand, sym.objects)
        if isinstance(sym, Py):
            return sym
        if isinstance(sym, Tup):
            return Tup(tuple(self.moved(item, params, first_local, mutable) for item in sym.items))
        obj = self.moved(sym.obj, params, first_local, mutable)
        assert isinstance(obj, Val)
        return Place(sym.struct, sym.field, sym.type, obj)


def rows_of(words: Sequence[int]) -> Iterator[Row]:
    """The rows in an array."""
    for at in range(0, len(words), WIDTH):
        op, d, a, b, base, lo, hi, step, source = words[at : at + WIDTH]
        yield OPS[op], d, a, b, base, lo, hi, bool(step), source


def move(
    words: array[int], at: int, params: list[int], given: list[int], first_local: int, first_given: int, source: int
) -> None:
    """Rewrite the rows from word `at` on, in place: `params` become `given`, locals from first_local on those from
    first_given on, and what stands in no line stands in this one.
    """
    lib = library()
    if lib is not None:
        operands = array("i", params + given)
        lost = lib.uf_move(
            c_void_p(words.buffer_info()[0] + at * words.itemsize),
            (len(words) - at) // WIDTH,
            c_void_p(operands.buffer_info()[0]),
            len(params),
            first_local,
            first_given,
            source,
        )
        assert not lost
        return
    for row in range(at, len(words), WIDTH):
        for place, operations in _OPERANDS:
            if words[row] in operations:
                words[row + place] = _operand(words[row + place], params, given, first_local, first_given)
        if words[row + 8] == CALLER:
            words[row + 8] = source


_OPERANDS = (1, WRITES_D), (2, READS_A), (3, READS_B)


def _operand(operand: int, params: list[int], given: list[int], first_local: int, first_given: int) -> int:
    """Constants stay what they are."""
    if operand >= first_local:
        return operand - first_local + first_given
    return operand if operand < 0 else given[params.index(operand)]


def locals_of(sym: Sym | None) -> list[int]:
    """The locals in a result."""
    if isinstance(sym, Val):
        return [sym.operand] if sym.operand >= 0 else []
    if isinstance(sym, Tup):
        return [local for item in sym.items for local in locals_of(item)]
    return locals_of(sym.obj) if isinstance(sym, Place) else []


def describe(
    body: Body, fn: Callable[..., Any], args: list[Sym], kwargs: dict[str, Sym]
) -> tuple[Hashable, list[int]] | None:
    """All that decides what code a call comes to, the operands apart; and those. None: it can't be told."""
    params: list[int] = []
    parts = [_describe_one(sym, params, body.mutable) for sym in args]
    named = [(name, _describe_one(sym, params, body.mutable)) for name, sym in kwargs.items()]
    sane = [
        (struct, params.index(operand) if operand >= 0 else operand)
        for frame in body.frames
        for struct, operand in frame.sane
        if operand < 0 or operand in params
    ]
    state = (body.atomic > 0, body.ghost > 0, body.hooks > 0, body.spec, body.writes, body.steps > 0, body.raw > 0)
    key = (fn, state, *parts, *named, frozenset(sane))
    try:
        hash(key)
    except TypeError:
        return None
    return key, params


def _describe_one(sym: Sym, params: list[int], mutable: set[int]) -> Hashable:
    if isinstance(sym, Val):
        if sym.operand < 0:
            return sym
        if sym.operand not in params:
            params.append(sym.operand)
        return sym.type, params.index(sym.operand), sym.objects, sym.operand in mutable
    if isinstance(sym, Py):
        return type(sym.obj), sym.obj
    if isinstance(sym, Tup):
        return tuple(_describe_one(item, params, mutable) for item in sym.items)
    return sym.struct, sym.field, _describe_one(sym.obj, params, mutable)


SHARED: dict[Hashable, list[Template]] = {}
"""Templates of calls that do not depend on one program's objects, for all programs of the process."""

VARIANTS, LARGEST = 32, 1000
"""Templates kept of one call, which rest on different facts; their instructions: larger ones seldom fit another program."""


def share(key: Hashable, template: Template) -> None:
    """Keep a template for other programs."""
    if len(template.words) > LARGEST * WIDTH:
        return
    variants = SHARED.setdefault(key, [])
    variants.insert(0, template)
    del variants[VARIANTS:]
