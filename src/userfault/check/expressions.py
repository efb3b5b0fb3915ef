"""Expressions of the restricted Python: what each is worth, and the instructions that find out."""

from __future__ import annotations

import ast
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import lists, values
from .ir import Op
from .symbols import Label, Place, Py, Sym, Tup, Unreachable, Val, instead_of, is_data
from .types import BOOL, INT, ListT, NoneT, RefT, ValT, from_enum, from_hint, is_struct, is_value, struct_fields

if TYPE_CHECKING:
    from .body import Body

BINARY: dict[type[ast.operator], Op] = {
    ast.Add: Op.ADD,
    ast.Sub: Op.SUB,
    ast.Mult: Op.MUL,
    ast.BitAnd: Op.AND,
    ast.BitOr: Op.OR,
    ast.BitXor: Op.XOR,
    ast.LShift: Op.SHL,
    ast.RShift: Op.SHR,
}

_COMPARISONS: dict[type[ast.cmpop], Op] = {
    ast.Eq: Op.EQ,
    ast.Is: Op.EQ,
    ast.NotEq: Op.NE,
    ast.IsNot: Op.NE,
    ast.Lt: Op.LT,
    ast.LtE: Op.LE,
    ast.Gt: Op.LT,
    ast.GtE: Op.LE,
}

BUILTINS = {
    "True": True,
    "False": False,
    "None": None,
    "len": len,
    "isinstance": isinstance,
    "min": min,
    "max": max,
    "range": range,
    "abs": abs,
    "int": int,
    "bool": bool,
}


def condition(body: Body, node: ast.expr, yes: Label, no: Label) -> None:
    """Branch on an expression."""
    if isinstance(node, ast.BoolOp):
        for sub in node.values[:-1]:
            after = Label()
            if isinstance(node.op, ast.And):
                condition(body, sub, after, no)
            else:
                condition(body, sub, yes, after)
            body.label(after)
            if body.dead:
                return
        condition(body, node.values[-1], yes, no)
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        condition(body, node.operand, no, yes)
        return
    try:
        cond = lists.truth(body, expr(body, node), node)
    except Unreachable:
        body.dead = True
        return
    body.branch(cond, yes, no)


def expr(body: Body, node: ast.expr) -> Sym:
    handler = _EXPRESSIONS.get(type(node))
    if handler is None:
        body.refuse(
            node,
            f"a {type(node).__name__} expression is outside the model's subset",
            instead_of(node, "names, fields, calls, arithmetic and comparisons"),
        )
    return handler(body, node)


def _constant(body: Body, node: ast.Constant) -> Sym:
    return Py(node.value)


def _name(body: Body, node: ast.Name) -> Sym:
    frame = body.frames[-1]
    if node.id in frame.env:
        return frame.env[node.id]
    if node.id in frame.function.scope:
        return Py(frame.function.scope[node.id])
    if node.id in BUILTINS:
        return Py(BUILTINS[node.id])
    body.refuse(node, f"`{node.id}` has no value here", "a name assigned on every path before")


def _tuple(body: Body, node: ast.Tuple) -> Sym:
    return Tup(tuple(expr(body, item) for item in node.elts))


def _attribute(body: Body, node: ast.Attribute) -> Sym:
    obj = expr(body, node.value)
    if isinstance(obj, Py):
        if is_struct(type(obj.obj)):
            if node.attr not in struct_fields(type(obj.obj)):
                body.unit.log.own = True
                return Py(getattr(obj.obj, node.attr))
            obj = body.lift(obj, node)
        elif is_value(type(obj.obj)):
            obj = body.lift(obj, node)
        else:
            try:
                return Py(body.unit.attribute_of(obj.obj, node.attr))
            except AttributeError:
                body.refuse(node, f"there is no `{node.attr}` here", "an existing attribute")
    val = body.single(obj, node)
    if isinstance(val.type, ValT):
        return values.part(body, val, node.attr, node)
    struct, kind, val = body.field(val, node.attr, node)
    if isinstance(kind, ListT):
        return Place(struct, node.attr, kind, val)
    return body.load(struct, node.attr, kind, val, None, node)


def _subscript(body: Body, node: ast.Subscript) -> Sym:
    place = expr(body, node.value)
    if isinstance(place, Py) and isinstance(place.obj, list | tuple | dict):
        at = body.single(expr(body, node.slice), node)
        if at.operand < 0:
            return Py(place.obj[body.value(at)])
        body.refuse(node, "a Python list indexed by a run-time value", "a list field of a struct")
    if isinstance(place, Tup):
        at = body.single(expr(body, node.slice), node)
        if at.operand < 0:
            return place.items[body.value(at)]
    if not isinstance(place, Place):
        body.refuse(node, "an element of something that is not a list field", "a list field")
    at = body.convert(expr(body, node.slice), INT, node)
    return body.load(place.struct, place.field, place.type, place.obj, at, node)


def _unaryop(body: Body, node: ast.UnaryOp) -> Sym:
    if isinstance(node.op, ast.Not):
        return body.negate(lists.truth(body, expr(body, node.operand), node))
    if isinstance(node.op, ast.USub):
        return body.binary(Op.SUB, body.const(INT, 0), body.single(expr(body, node.operand), node))
    if isinstance(node.op, ast.Invert):
        return body.binary(Op.XOR, body.single(expr(body, node.operand), node), body.const(INT, -1))
    body.refuse(node, "this operator", "not, - or ~")


def _binop(body: Body, node: ast.BinOp) -> Sym:
    op = BINARY.get(type(node.op))
    if op is None and not isinstance(node.op, ast.FloorDiv | ast.Mod):
        body.refuse(node, "this operator", "+ - * & | ^ << >>")
    left = body.single(expr(body, node.left), node.left)
    right = body.single(expr(body, node.right), node.right)
    if op is None:
        if right.operand >= 0 or body.value(right) <= 0 or body.value(right) & (body.value(right) - 1):
            body.refuse(node, "division by something else than a constant power of two", "a shift or a mask")
        power = body.value(right)
        if isinstance(node.op, ast.Mod):
            return body.binary(Op.AND, left, body.const(INT, power - 1))
        return body.binary(Op.SHR, left, body.const(INT, power.bit_length() - 1))
    return body.binary(op, left, right)


def _boolop(body: Body, node: ast.BoolOp) -> Sym:
    out = body.local("bool", BOOL)
    yes, no, end = Label(), Label(), Label()
    condition(body, node, yes, no)
    known: list[int] = []
    body.label(yes)
    if not body.dead:
        body.emit(Op.MOV, d=out, a=body.const(BOOL, 1).operand)
        known.append(1)
        body.jump(end)
    body.label(no)
    if not body.dead:
        body.emit(Op.MOV, d=out, a=body.const(BOOL, 0).operand)
        known.append(0)
    body.label(end)
    if not known:
        raise Unreachable
    return body.const(BOOL, known[0]) if len(known) == 1 else Val(BOOL, out)


def _ifexp(body: Body, node: ast.IfExp) -> Sym:
    yes, no, end = Label(), Label(), Label()
    condition(body, node.test, yes, no)
    reached_no = no.used
    body.label(yes)
    out: Val | None = None
    if not body.dead:
        if not reached_no:
            return expr(body, node.body)
        try:
            value = body.single(expr(body, node.body), node.body)
            if isinstance(value.type, NoneT):
                body.refuse(node, "`None if ...`", "`... if ... else None`, the other way round")
            out = Val(value.type, body.local("ifexp", value.type))
            body.mutable.add(out.operand)
            body.emit(Op.MOV, d=out.operand, a=value.operand)
            body.jump(end)
        except Unreachable:
            body.dead = True
    body.label(no)
    if body.dead:
        raise Unreachable
    if out is None:
        return expr(body, node.orelse)
    try:
        other = body.convert(expr(body, node.orelse), out.type, node.orelse)
        body.emit(Op.MOV, d=out.operand, a=other.operand)
    except Unreachable:
        body.dead = True
    body.label(end)
    return out


def _compare(body: Body, node: ast.Compare) -> Sym:
    if len(node.ops) != 1:
        lower = ast.copy_location(ast.Compare(node.left, node.ops[:1], node.comparators[:1]), node)
        upper = ast.copy_location(ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:]), node)
        return _boolop(body, ast.copy_location(ast.BoolOp(ast.And(), [lower, upper]), node))
    op, right_node = node.ops[0], node.comparators[0]
    left, right = expr(body, node.left), expr(body, right_node)
    if isinstance(op, ast.In | ast.NotIn):
        return lists.contains(body, left, right, isinstance(op, ast.NotIn), node)
    if isinstance(left, Py) and isinstance(right, Py) and not (is_data(left.obj) and is_data(right.obj)):
        same = left.obj is right.obj
        return body.const(BOOL, int(same == isinstance(op, ast.Is | ast.Eq)))
    x, y = body.meet(body.single(left, node.left), body.single(right, right_node), node)
    if isinstance(op, ast.Gt | ast.GtE):
        x, y = y, x
    return body.binary(_COMPARISONS[type(op)], x, y, BOOL)


def _call(body: Body, node: ast.Call) -> Sym:
    owner = None
    if isinstance(node.func, ast.Attribute):
        found = expr(body, node.func.value)
        if isinstance(found, Place):
            return lists.method(body, found, node.func.attr, [expr(body, arg) for arg in node.args], node)
        if isinstance(found, Py) and is_value(type(found.obj)):
            found = body.lift(found, node)
        if isinstance(found, Val) and isinstance(found.type, ValT):
            owner = found
    if owner is None:
        target = expr(body, node.func)
        if not isinstance(target, Py) or not callable(target.obj):
            body.refuse(node, "calling something not known while compiling", "a function of the model by its name")
        fn = target.obj
        if fn is isinstance:
            return _isinstance(body, node)
    args = [expr(body, arg) for arg in node.args]
    kwargs = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            body.refuse(node, "** in a call", "keyword arguments by name")
        kwargs[keyword.arg] = expr(body, keyword.value)
    if owner is not None:
        assert isinstance(node.func, ast.Attribute)
        return values.method(body, owner, node.func.attr, args, kwargs, node)
    if fn is len:
        if isinstance(args[0], Place):
            return lists.length(body, args[0], node)
        if isinstance(args[0], Tup):
            return Py(len(args[0].items))
        if isinstance(args[0], Py):
            return Py(len(args[0].obj))
    if fn in (int, bool):
        value = body.single(args[0], node)
        return body.binary(Op.NE, value, body.const(INT, 0), BOOL) if fn is bool else Val(INT, value.operand)
    if fn in (min, max):
        x, y = (body.single(arg, node) for arg in args)
        out = body.local("minmax", INT)
        first, other = Label(), Label()
        body.emit(Op.MOV, d=out, a=y.operand)
        body.branch(body.binary(Op.LT, x, y, BOOL) if fn is min else body.binary(Op.LT, y, x, BOOL), first, other)
        body.label(first)
        if not body.dead:
            body.emit(Op.MOV, d=out, a=x.operand)
        body.label(other)
        return Val(INT, out)
    if getattr(fn, "__name__", "") == "cast" and getattr(fn, "__module__", "") == "typing":
        assert isinstance(args[0], Py)
        return body.convert(args[1], from_hint(args[0].obj, "cast"), node)
    if is_value(fn):
        return values.construct(body, fn, args, kwargs, node)
    if isinstance(fn, type) and issubclass(fn, enum.IntEnum):
        return Val(from_enum(fn), body.single(args[0], node).operand)
    if isinstance(fn, type):
        body.refuse(
            node,
            f"making a {fn.__name__} in model code",
            "an allocation function that takes a free one from a pool",
        )
    return body.call(fn, args, kwargs, node)


def _isinstance(body: Body, node: ast.Call) -> Sym:
    val = body.single(expr(body, node.args[0]), node)
    cls = expr(body, node.args[1])
    if not isinstance(cls, Py):
        body.refuse(node, "isinstance of a class not known while compiling", "the struct's name")
    if isinstance(val.type, NoneT):
        return body.const(BOOL, 0)
    if not isinstance(val.type, RefT) or cls.obj not in val.type.structs:
        return body.const(BOOL, 0)
    first = body.unit.ask("offset", val.type, cls.obj)
    last = first + body.unit.ask("count", cls.obj)
    above = body.binary(Op.LT, body.const(INT, first), val, BOOL)
    if val.operand < 0:
        return body.const(BOOL, int(first < body.value(val) <= last))
    if cls.obj is val.type.structs[-1]:
        return above
    below = body.binary(Op.LE, val, body.const(INT, last), BOOL)
    return body.binary(Op.AND, above, below, BOOL)


_EXPRESSIONS: dict[type[ast.expr], Callable[[Body, Any], Sym]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Tuple: _tuple,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.UnaryOp: _unaryop,
    ast.BinOp: _binop,
    ast.BoolOp: _boolop,
    ast.IfExp: _ifexp,
    ast.Compare: _compare,
    ast.Call: _call,
}
