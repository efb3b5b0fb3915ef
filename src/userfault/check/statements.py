"""Statements of the restricted Python: how each becomes instructions."""

from __future__ import annotations

import ast
import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .expressions import BINARY, condition, expr
from .ir import Op, Source
from .names import SOURCES
from .source import Function
from .symbols import Frame, Label, Place, Py, Sym, Tup, Unreachable, Val, instead_of, is_data
from .types import BOOL, INT, ListT, NoneT, RefT, Type, from_hint

if TYPE_CHECKING:
    from .body import Body


def block(body: Body, statements: Sequence[ast.stmt]) -> None:
    for node in statements:
        if body.dead:
            return
        try:
            _statement(body, node)
        except Unreachable:
            body.dead = True


def source_number(function: Function, line: int) -> int:
    """A line of a function, by number."""
    if line not in function.numbers:
        function.numbers[line] = SOURCES[Source(function.file, line, function.name, function.text(line).strip())]
    return function.numbers[line]


def _statement(body: Body, node: ast.stmt) -> None:
    pushed = False
    if not body.atomic and not (body.ghost and not body.spec):
        function = body.frames[-1].function
        if function.file:
            body.sources.append(source_number(function, function.first_line + node.lineno - 1))
            pushed = True
    handler = _STATEMENTS.get(type(node))
    if handler is None:
        body.refuse(
            node,
            f"`{type(node).__name__.lower()}` is outside the model's subset",
            instead_of(node, "assignments, if, while, for, return and calls"),
        )
    try:
        handler(body, node)
    finally:
        if pushed:
            body.sources.pop()


def _expr(body: Body, node: ast.Expr) -> None:
    if isinstance(node.value, ast.Constant):
        return
    expr(body, node.value)


def _pass(body: Body, node: ast.Pass) -> None:
    pass


def _return(body: Body, node: ast.Return) -> None:
    frame = body.frames[-1]
    result: Sym = Py(None) if node.value is None else expr(body, node.value)
    if body.dead:
        return
    kind = frame.function.kinds.get("return")
    typed = typed_result(body, result, kind, frame, node)
    if frame.function.node.body[-1] is node and not frame.returns:
        frame.result = typed
        return
    frame.returns += 1
    if frame.result is None:
        frame.result = result_slots(body, typed, frame, node)
    move(body, frame.result, typed, node)
    body.jump(frame.exit)


def typed_result(body: Body, result: Sym, kind: Type | None, frame: Frame, node: ast.AST) -> Sym:
    """The result as the return annotation says (so that None and references meet in one type)."""
    if isinstance(result, Tup):
        kinds = frame.function.return_kinds
        return Tup(
            tuple(
                typed_result(body, item, kinds[at] if at < len(kinds) else None, frame, node)
                for at, item in enumerate(result.items)
            )
        )
    if kind is None or isinstance(kind, NoneT | ListT) or isinstance(result, Place):
        return result
    if isinstance(result, Py) and not is_data(result.obj):
        return result
    return body.convert(result, kind, node)


def result_slots(body: Body, shape: Sym, frame: Frame, node: ast.AST) -> Sym:
    """Variables to return through, of the shape of the first result."""
    if isinstance(shape, Tup):
        return Tup(tuple(result_slots(body, item, frame, node) for item in shape.items))
    if isinstance(shape, Py) and shape.obj is None:
        return shape
    if isinstance(shape, Py):
        shape = body.lift(shape, node)
    if not isinstance(shape, Val):
        body.refuse(node, "a list can't be returned from several places", "a single return")
    return Val(shape.type, body.local(f"{frame.function.name}()", shape.type))


def move(body: Body, target: Sym, value: Sym, node: ast.AST) -> None:
    if isinstance(target, Tup):
        if not isinstance(value, Tup) or len(value.items) != len(target.items):
            body.refuse(node, "returns of different shapes", "the same number of values in every return")
        for slot, item in zip(target.items, value.items, strict=True):
            move(body, slot, item, node)
        return
    if isinstance(target, Py):
        return
    assert isinstance(target, Val)
    body.emit(Op.MOV, d=target.operand, a=body.convert(value, target.type, node).operand)


def _assign(body: Body, node: ast.Assign) -> None:
    if len(node.targets) != 1:
        body.refuse(node, "a chained assignment", "one assignment a line")
    assign(body, node.targets[0], expr(body, node.value), None)


def _annassign(body: Body, node: ast.AnnAssign) -> None:
    if node.value is None:
        return
    function = body.frames[-1].function
    if node not in function.declared:
        hint = eval(compile(ast.Expression(node.annotation), "<annotation>", "eval"), function.scope)
        function.declared[node] = from_hint(hint, function.name)
    assign(body, node.target, expr(body, node.value), function.declared[node])


def assign(body: Body, target: ast.expr, value: Sym, kind: Type | None) -> None:
    if body.dead:
        return
    if isinstance(target, ast.Tuple):
        if not isinstance(value, Tup) or len(value.items) != len(target.elts):
            body.refuse(target, "unpacking something that is not a tuple of this length", "a tuple")
        for sub, item in zip(target.elts, value.items, strict=True):
            assign(body, sub, item, None)
        return
    if isinstance(target, ast.Name):
        assign_name(body, target, value, kind)
        return
    if isinstance(target, ast.Attribute):
        obj = body.single(expr(body, target.value), target)
        struct, field_kind, obj = body.field(obj, target.attr, target)
        if isinstance(field_kind, ListT):
            body.refuse(
                target,
                f"assigning the list `{target.attr}` as a whole",
                "its elements, or append and remove",
            )
        body.store(struct, target.attr, field_kind, obj, None, body.convert(value, field_kind, target), target)
        return
    if isinstance(target, ast.Subscript):
        place = expr(body, target.value)
        if not isinstance(place, Place):
            body.refuse(target, "an element of something that is not a list field", "a list field")
        at = body.convert(expr(body, target.slice), INT, target)
        body.store(
            place.struct,
            place.field,
            place.type,
            place.obj,
            at,
            body.convert(value, place.type.elem, target),
            target,
        )
        return
    body.refuse(target, "this can't be assigned to", "a name, a field or an element")


def assign_name(body: Body, target: ast.Name, value: Sym, kind: Type | None) -> None:
    frame = body.frames[-1]
    name = target.id
    if kind is not None and isinstance(value, Val | Py):
        value = body.convert(value, kind, target)
    if name in frame.function.direct:
        if kind is None and isinstance(value, Py) and is_data(value.obj):
            value = body.lift(value, target)
        if isinstance(value, Val) and value.operand in body.mutable:
            value = body.variable(name, value)
        frame.env[name] = value
        return
    if isinstance(value, Tup | Place):
        body.refuse(target, "a tuple or list kept in a variable that is assigned again", "one variable per value")
    if isinstance(value, Py) and not is_data(value.obj):
        body.refuse(target, "a function or class in a variable that is assigned again", "a direct call")
    val = body.single(value, target)
    have = frame.env.get(name)
    if isinstance(have, Val) and have.operand >= 0:
        kind = have.type
        if isinstance(kind, NoneT) and isinstance(val.type, RefT):
            kind = val.type
            body.retype(have.operand, kind)
            frame.env[name] = Val(kind, have.operand)
        body.emit(Op.MOV, d=have.operand, a=body.convert(val, kind, target).operand)
        return
    frame.env[name] = body.variable(name, val)


def _augassign(body: Body, node: ast.AugAssign) -> None:
    op = BINARY.get(type(node.op))
    if op is None:
        body.refuse(node, "this operator", "+ - * & | ^ << >>")
    target = node.target
    if isinstance(target, ast.Name):
        have = body.single(expr(body, target), target)
        value = body.single(expr(body, node.value), node)
        assert not isinstance(have.type, NoneT)
        assign(body, target, body.binary(op, have, value, have.type), None)
        return
    if isinstance(target, ast.Attribute):
        obj = body.single(expr(body, target.value), target)
        struct, kind, obj = body.field(obj, target.attr, target)
        assert not isinstance(kind, NoneT | ListT)
        value = body.single(expr(body, node.value), node)
        old = body.load(struct, target.attr, kind, obj, None, target)
        body.store(struct, target.attr, kind, obj, None, body.binary(op, old, value, kind), target)
        return
    place = expr(body, target.value)
    if not isinstance(place, Place):
        body.refuse(target, "an element of something that is not a list field", "a list field")
    at = body.convert(expr(body, target.slice), INT, target)
    value = body.single(expr(body, node.value), node)
    old = body.load(place.struct, place.field, place.type, place.obj, at, target)
    body.store(
        place.struct,
        place.field,
        place.type,
        place.obj,
        at,
        body.binary(op, old, value, place.type.elem),
        target,
    )


def _if(body: Body, node: ast.If) -> None:
    yes, no, end = Label(), Label(), Label()
    condition(body, node.test, yes, no)
    body.label(yes)
    block(body, node.body)
    if node.orelse:
        body.jump(end)
        body.label(no)
        block(body, node.orelse)
        body.label(end)
    else:
        body.label(no)


def _while(body: Body, node: ast.While) -> None:
    if node.orelse:
        body.refuse(node, "while ... else", "a flag")
    top, enter, end = Label(), Label(), Label()
    forget_loop_constants(body, node)
    body.label(top)
    condition(body, node.test, enter, end)
    body.label(enter)
    body.frames[-1].loops.append((top, end))
    block(body, node.body)
    body.frames[-1].loops.pop()
    body.jump(top)
    body.label(end)


def forget_loop_constants(body: Body, node: ast.While | ast.For) -> None:
    """Variables that a loop assigns again live in locals from before the loop on."""
    frame = body.frames[-1]
    for name in frame.function.loops[node]:
        have = frame.env.get(name)
        if isinstance(have, Val) and have.operand < 0 and name not in frame.function.direct:
            frame.env[name] = body.variable(name, have)


def _for(body: Body, node: ast.For) -> None:
    if node.orelse:
        body.refuse(node, "for ... else", "a flag")
    if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name) and node.iter.func.id == "range":
        for_range(body, node, [body.convert(expr(body, arg), INT, arg) for arg in node.iter.args])
        return
    over = expr(body, node.iter)
    if isinstance(over, Py) and (isinstance(over.obj, list | tuple | enum.EnumMeta)):
        over = Tup(tuple(Py(item) for item in over.obj))
    if isinstance(over, Tup):
        for_each(body, node, list(over.items))
        return
    if not isinstance(over, Place):
        body.refuse(node.iter, "iterating over this", "a list field, a tuple, or range(...)")
    length = body.unit.length(over.struct, over.field, over.type)
    if over.obj.operand < 0 and not body.unit.is_written(over.struct, over.field, body.value(over.obj)):
        actual = body.unit.ask("list_length", over.struct, over.field, body.value(over.obj))
        for_each(
            body,
            node,
            [
                body.load(over.struct, over.field, over.type, over.obj, body.const(INT, at), node)
                for at in range(actual)
            ],
        )
        return
    # As CPython iterates: by index, looking at the length anew each time.
    at = body.variable("at", body.const(INT, 0))
    top, enter, more, end = Label(), Label(), Label(), Label()
    forget_loop_constants(body, node)
    body.label(top)
    inside = body.binary(Op.LT, at, body.const(INT, length), BOOL)
    body.branch(inside, more, end)
    body.label(more)
    item = body.load(over.struct, over.field, over.type, over.obj, at, node)
    if over.type.dynamic:
        body.branch(Val(BOOL, item.operand), enter, end)
    body.label(enter)
    step = Label()
    assign(body, node.target, item, None)
    body.frames[-1].loops.append((step, end))
    block(body, node.body)
    body.frames[-1].loops.pop()
    body.label(step)
    if not body.dead:
        body.emit(Op.ADD, d=at.operand, a=at.operand, b=body.const(INT, 1).operand)
    body.jump(top)
    body.label(end)


def for_each(body: Body, node: ast.For, items: list[Sym]) -> None:
    """Unrolled: the elements are known while compiling."""
    end = Label()
    forget_loop_constants(body, node)
    for item in items:
        step = Label()
        assign(body, node.target, item, None)
        body.frames[-1].loops.append((step, end))
        block(body, node.body)
        body.frames[-1].loops.pop()
        body.label(step)
    body.label(end)


def for_range(body: Body, node: ast.For, bounds: list[Val]) -> None:
    start = body.const(INT, 0) if len(bounds) == 1 else bounds[0]
    stop = bounds[0] if len(bounds) == 1 else bounds[1]
    step = body.const(INT, 1) if len(bounds) < 3 else bounds[2]
    if start.operand < 0 and stop.operand < 0 and step.operand < 0:
        values = range(body.value(start), body.value(stop), body.value(step))
        for_each(body, node, [body.const(INT, value) for value in values])
        return
    at = body.variable("at", start)
    top, enter, end, again = Label(), Label(), Label(), Label()
    forget_loop_constants(body, node)
    body.label(top)
    body.branch(body.binary(Op.LT, at, stop, BOOL), enter, end)
    body.label(enter)
    current = body.variable("at", at)
    assign(body, node.target, current, None)
    body.frames[-1].loops.append((again, end))
    block(body, node.body)
    body.frames[-1].loops.pop()
    body.label(again)
    if not body.dead:
        body.emit(Op.ADD, d=at.operand, a=at.operand, b=step.operand)
    body.jump(top)
    body.label(end)


def _break(body: Body, node: ast.Break) -> None:
    body.jump(body.frames[-1].loops[-1][1])


def _continue(body: Body, node: ast.Continue) -> None:
    body.jump(body.frames[-1].loops[-1][0])


_STATEMENTS: dict[type[ast.stmt], Callable[[Body, Any], None]] = {
    ast.Expr: _expr,
    ast.Pass: _pass,
    ast.Return: _return,
    ast.Assign: _assign,
    ast.AnnAssign: _annassign,
    ast.AugAssign: _augassign,
    ast.If: _if,
    ast.While: _while,
    ast.For: _for,
    ast.Break: _break,
    ast.Continue: _continue,
}
