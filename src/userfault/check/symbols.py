"""What the compiler knows of a value, of a place in the code, and of a call."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .source import Function
from .types import ListT, NoneT, Scalar, is_struct, is_value


class Val(NamedTuple):
    """A run-time value: its type and its operand (a local if >= 0, a constant if < 0).

    objects: of a reference read from a constant field, which objects it can name (None: any).
    """

    type: Scalar | NoneT
    operand: int
    objects: frozenset[int] | None = None


class Py(NamedTuple):
    """Something known while compiling: a function, a class, a module, an era."""

    obj: Any


class Tup(NamedTuple):
    items: tuple[Sym, ...]


class Place(NamedTuple):
    """A list field of an object."""

    struct: type
    field: str
    type: ListT
    obj: Val


Sym = Val | Py | Tup | Place


@dataclass(slots=True)
class Label:
    at: int = -1
    used: bool = False


@dataclass(slots=True)
class Frame:
    """An inlined call: its variables, where it returns to, and what is known not to be freed under it."""

    function: Function
    env: dict[str, Sym]
    exit: Label
    result: Sym | None = None
    returns: int = 0
    loops: list[tuple[Label, Label]] = field(default_factory=list)
    raw: bool = False
    sane: set[tuple[type, int]] = field(default_factory=set)


class Unreachable(Exception):
    """The rest of an expression is not reached: what came before it fails or waits forever."""


def is_data(obj: Any) -> bool:
    """Can this Python object be a run-time value?"""
    return obj is None or isinstance(obj, int) or is_struct(type(obj)) or is_value(type(obj))


def instead_of(node: ast.AST, usual: str) -> str:
    """What to write instead of a construct outside the subset."""
    return _INSTEAD.get(type(node).__name__, usual)


_INSTEAD = {
    "Try": "error values, as the kernel does",
    "Raise": "check(False, property, message) or an error value",
    "With": "explicit lock and unlock calls",
    "Assert": "BUG_ON(...) or check(...)",
    "Lambda": "a function with a name",
    "ListComp": "a for loop",
    "GeneratorExp": "a for loop",
    "Dict": "a struct",
    "List": "a tuple, or a list field",
    "JoinedStr": "a plain string literal",
    "Yield": "a for loop over a list field",
    "Global": "a field of a struct",
    "Delete": "an assignment of None",
    "FunctionDef": "a function at module level",
}
