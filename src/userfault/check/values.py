"""Value types: several fields in one word, taken apart and put together as local work."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from .ir import Op
from .symbols import Py, Sym, Val
from .types import INT, ValT

if TYPE_CHECKING:
    from .body import Body


def part(body: Body, val: Val, name: str, node: ast.AST) -> Val:
    """A field of a value type: local work."""
    assert isinstance(val.type, ValT)
    fields, total = body.unit.ask("layout", val.type.cls)
    if name not in fields:
        body.refuse(node, f"{val.type.cls.__name__} has no field `{name}`", f"one of {', '.join(fields)}")
    kind, shift, bits, lo = fields[name]
    if bits == 0:
        return body.const(kind, lo)
    word = body.binary(Op.SHR, val, body.const(INT, shift), kind)
    if shift + bits < total:
        word = body.binary(Op.AND, word, body.const(INT, (1 << bits) - 1), kind)
    return body.binary(Op.ADD, word, body.const(INT, lo), kind)


def construct(body: Body, cls: type, args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Val:
    """A value type from its fields."""
    fields, _ = body.unit.ask("layout", cls)
    defaults: dict[str, Any] = cls._field_defaults  # type: ignore[attr-defined]
    given = dict(zip(fields, args, strict=False)) | kwargs
    kind = ValT(cls)
    word = body.const(kind, 0)
    for name, (sub, shift, _bits, lo) in fields.items():
        if name not in given and name not in defaults:
            body.refuse(node, f"{cls.__name__} needs `{name}`", f"{cls.__name__}(..., {name}=...)")
        value = body.convert(given[name] if name in given else Py(defaults[name]), sub, node)
        value = body.binary(Op.SUB, value, body.const(INT, lo))
        shifted = body.binary(Op.SHL, value, body.const(INT, shift), kind)
        word = shifted if word.operand < 0 and body.value(word) == 0 else body.binary(Op.OR, word, shifted, kind)
    return Val(kind, word.operand)


def method(body: Body, val: Val, name: str, args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Sym:
    assert isinstance(val.type, ValT)
    if name != "_replace":
        fn = getattr(val.type.cls, name, None)
        if callable(fn) and hasattr(fn, "__code__"):
            return body.call(fn, [val, *args], kwargs, node)
        body.refuse(node, f"`.{name}()` of a value type", "_replace(...)")
    fields, _ = body.unit.ask("layout", val.type.cls)
    for field, given in kwargs.items():
        if field not in fields:
            body.refuse(node, f"{val.type.cls.__name__} has no field `{field}`", f"one of {', '.join(fields)}")
        kind, shift, bits, lo = fields[field]
        value = body.binary(Op.SUB, body.convert(given, kind, node), body.const(INT, lo))
        kept = body.binary(Op.AND, val, body.const(INT, ~(((1 << bits) - 1) << shift)), val.type)
        val = body.binary(Op.OR, kept, body.binary(Op.SHL, value, body.const(INT, shift)), kept.type)  # type: ignore[arg-type]
    return val
