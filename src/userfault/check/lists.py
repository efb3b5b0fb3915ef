"""Fields that are lists: looked at, searched and changed in one step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .ir import Op
from .symbols import Label, Place, Py, Sym, Tup, Val
from .types import BOOL, INT, RefT

if TYPE_CHECKING:
    from .body import Body


@contextmanager
def one_look(body: Body, place: Place) -> Iterator[None]:
    """A look at a whole list is one step, or local work if nobody writes the list."""
    known = body.value(place.obj) if place.obj.operand < 0 else 0
    if body.unit.is_written(place.struct, place.field, known):
        with body.one_step():
            yield
    else:
        yield


def truth(body: Body, sym: Sym, node: ast.AST) -> Val:
    """A value that can be branched on: of a list, how long it is."""
    return length(body, sym, node) if isinstance(sym, Place) else body.single(sym, node)


def length(body: Body, place: Place, node: ast.AST) -> Val:
    length = body.unit.length(place.struct, place.field, place.type)
    known = body.value(place.obj) if place.obj.operand < 0 else 0
    if known and not body.unit.is_written(place.struct, place.field, known):
        return body.const(INT, body.unit.ask("list_length", place.struct, place.field, known))
    if not place.type.dynamic:
        return body.const(INT, length)
    total = body.const(INT, 0)
    with one_look(body, place):
        for at in range(length):
            item = body.load(place.struct, place.field, place.type, place.obj, body.const(INT, at), node)
            some = body.binary(Op.NE, item, body.const(INT, 0), INT)
            total = body.binary(Op.ADD, total, some, INT) if at else some
    return total


def method(body: Body, place: Place, method: str, args: list[Sym], node: ast.AST) -> Sym:
    """append, insert(0, x) and remove of a dynamic list, each one step."""
    kind = place.type
    if not kind.dynamic:
        body.refuse(
            node,
            f"`.{method}` of a list whose elements may be None",
            "element assignment, or declare it list[T]",
        )
    known = body.value(place.obj) if place.obj.operand < 0 else 0
    if not body.dead:
        body.unit.note_written(place.struct, place.field, known)
    with body.one_step():
        _change(body, place, method, args, node)
    return Py(None)


def _change(body: Body, place: Place, method: str, args: list[Sym], node: ast.AST) -> None:
    kind = place.type
    assert isinstance(kind.elem, RefT)
    if method not in ("append", "insert", "remove"):
        body.refuse(node, f"`.{method}` of a list", "append, insert(0, x), remove, `in`, len or a for loop")
    length = body.unit.length(place.struct, place.field, kind)
    places = [body.const(INT, at) for at in range(length)]
    item = body.convert(args[-1], kind.elem, node)

    def get(at: int) -> Val:
        return body.load(place.struct, place.field, kind, place.obj, places[at], node)

    def put(at: int, value: Val) -> None:
        body.store(place.struct, place.field, kind, place.obj, places[at], value, node)

    done = Label()
    if method == "append":
        for at in range(length):
            here, further = Label(), Label()
            body.branch(Val(BOOL, get(at).operand), further, here)
            body.label(here)
            if not body.dead:
                put(at, item)
            body.jump(done)
            body.label(further)
            if body.dead:
                break
        if not body.dead:
            body.fail("bound", f"the list {place.field} is full")
    elif method == "insert":
        where = body.convert(args[0], INT, node)
        if where.operand >= 0 or body.value(where) != 0:
            body.refuse(node, "insert at a place other than 0", "insert(0, x) or append(x)")
        for at in range(length - 1, 0, -1):
            put(at, get(at - 1))
        put(0, item)
    else:
        found = body.variable("found", body.const(BOOL, 0))
        for at in range(length):
            hit, keep, test = Label(), Label(), Label()
            if at:
                body.branch(found, hit, test)
                body.label(test)
            body.branch(body.binary(Op.EQ, get(at), item, BOOL), hit, keep)
            body.label(hit)
            if not body.dead:
                body.emit(Op.MOV, d=found.operand, a=body.const(BOOL, 1).operand)
                put(at, get(at + 1) if at + 1 < length else body.const(kind.elem, 0))
            body.label(keep)
        ok, bad = Label(), Label()
        body.branch(found, ok, bad)
        body.label(bad)
        if not body.dead:
            body.fail("dereference", f"removing from {place.field} what is not in it")
        body.label(ok)
    body.label(done)


def contains(body: Body, left: Sym, right: Sym, negated: bool, node: ast.AST) -> Sym:
    """`x in list`, `x in tuple`."""
    value = body.single(left, node)
    if isinstance(right, Py) and isinstance(right.obj, list | tuple | frozenset | set):
        right = Tup(tuple(Py(item) for item in right.obj))
    found = body.const(BOOL, 0)

    def compare(item: Val) -> Val:
        x, y = body.meet(value, item, node)
        equal = body.binary(Op.EQ, x, y, BOOL)
        none_yet = found.operand < 0 and not body.value(found)
        return equal if none_yet else body.binary(Op.OR, found, equal, BOOL)

    if isinstance(right, Tup):
        for each in right.items:
            found = compare(body.single(each, node))
    elif isinstance(right, Place):
        with one_look(body, right):
            for at in range(body.unit.length(right.struct, right.field, right.type)):
                found = compare(body.load(right.struct, right.field, right.type, right.obj, body.const(INT, at), node))
    else:
        body.refuse(node, "`in` something that is not a list field or a tuple", "a list field or a tuple")
    return body.negate(found) if negated else found
