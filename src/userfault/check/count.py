"""How many steps a function has by itself: compiled alone, its arguments unknown, for a table of functions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

from .analysis import in_order
from .body import Body
from .errors import CheckError
from .heap import Heap
from .source import parse
from .symbols import Frame, Label, Py, Sym, Tup, Unreachable, Val
from .template import Access, Log, rows_of
from .types import ListT, NoneT, Type
from .unit import Unit

Fn = Callable[..., Any]


def count_steps(
    starts: Iterable[Fn],
    table: Collection[Fn],
    roots: Iterable[Any],
    cpus: int = 2,
    refused: dict[Fn, CheckError] | None = None,
) -> dict[Fn, int]:
    """The steps (where another CPU can come in) of each function that somebody comes to from the starts.

    A function has the steps of its own text and those of the helpers that it calls, once for each call. Calls of functions of
    the table count for those. roots: the objects to compile for, as of compile_program; there must be one of every
    struct that the functions use. Fields that none of the functions writes are constants.
    Raises CheckError (CompileError for code outside the subset); or puts it into `refused`, by function, and leaves the function out.
    """
    unit = Unit("steps", Heap(list(roots), cpus, {}), {}, frozenset(), reuse=False)
    apart = frozenset(table)
    counted: dict[Fn, _Alone] = {}
    trusts: dict[Fn, set[Access]] = {}
    failed = {} if refused is None else refused
    work = list(starts)
    # The last of them may have betrayed what the others rest on.
    while work or (work := [fn for fn in counted if unit.betrayed(trusts[fn])]):
        fn = work.pop()
        if fn in failed or (fn in counted and not unit.betrayed(trusts[fn])):
            continue
        unit.log = Log()
        trusts[fn] = unit.log.trusted
        counted[fn] = body = _Alone(unit, apart)
        try:
            body.compile(fn)
        except CheckError as error:
            if refused is None:
                raise
            failed[fn] = error
            del counted[fn]
        work += body.called
    return {fn: body.steps_begun() for fn, body in counted.items()}


class _Alone(Body):
    """A function whose arguments can be anything, and for which the others of the table do nothing."""

    def __init__(self, unit: Unit, apart: frozenset[Fn]) -> None:
        super().__init__(unit, cpu=0, spec=False)
        self.apart = apart
        self.called: set[Fn] = set()

    def compile(self, fn: Fn) -> None:
        node = ast.parse("f()").body[0]
        function = parse(fn)
        self.frames.append(Frame(function, {}, Label()))
        args = [self.unknown(kind) if kind is not None else Py(default) for _, kind, default in function.params]
        with suppress(Unreachable):
            self.inline(fn, args, {}, node)
        self.finish()

    def steps_begun(self) -> int:
        rows, _ = in_order(list(rows_of(self.words)), self.unit)
        return sum(row[7] for row in rows)

    def call(self, fn: Fn, args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Sym:
        if fn not in self.apart:
            return super().call(fn, args, kwargs, node)
        self.called.add(fn)
        function = parse(fn)
        if function.return_kinds and function.kinds.get("return") is None:
            return Tup(tuple(self.unknown(kind) for kind in function.return_kinds))
        return self.unknown(function.kinds.get("return"))

    def unknown(self, kind: Type | None) -> Sym:
        if kind is None or isinstance(kind, NoneT | ListT):
            return Py(None)
        return Val(kind, self.local("unknown", kind))
