"""The compiler's types: how values of the model become small integers.

A reference is 0 for None and 1 + the object's place in its struct's pool (for a union: in the pools one after the
other). A value type (a `NamedTuple`) is its fields side by side in one integer: it is read and written whole.
"""

from __future__ import annotations

import enum
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from .errors import CheckError

# Tuples: they are made and hashed often. Each has its own length, so that no two are equal.


class IntT(NamedTuple):
    """An integer in lo..hi (None: not declared); bool is IntT(0, 1)."""

    lo: int | None = None
    hi: int | None = None
    enum: type[enum.IntEnum] | None = None
    thread_id: bool = False
    owned: bool = False
    boolean: bool = False


class RefT(NamedTuple):
    """A pointer to an object of one of these structs, or None."""

    structs: tuple[type, ...]
    optional: bool = True


class ValT(NamedTuple):
    """A NamedTuple held in one machine word."""

    cls: type


class ListT(NamedTuple):
    """A field that is a list. `dynamic` (elements never None): it grows and shrinks; otherwise its length is fixed."""

    elem: IntT | RefT | ValT
    dynamic: bool
    per_cpu: bool = False
    owned: bool = False


@dataclass(frozen=True)
class NoneT:
    """The type of None."""


Scalar = IntT | RefT | ValT
Type = IntT | RefT | ValT | ListT | NoneT

BOOL = IntT(0, 1, boolean=True)
INT = IntT()
NONE = NoneT()


@cache
def from_enum(cls: type[enum.IntEnum]) -> IntT:
    kind = from_hint(cls, cls.__name__)
    assert isinstance(kind, IntT)
    return kind


def is_struct(cls: Any) -> bool:
    return isinstance(cls, type) and getattr(cls, "__struct__", False) is True


def is_value(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")


def from_hint(hint: Any, where: str) -> Type:
    """The type of an annotation (already evaluated)."""
    metadata: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        metadata = tuple(rest)
    if hint is None or hint is type(None):
        return NONE
    if hint is bool:
        return BOOL
    if hint is int:
        for mark in metadata:
            name = type(mark).__name__
            if name == "Range":
                return IntT(mark.lo, mark.hi)
            if name == "CpuId":
                return IntT(thread_id=True, owned=mark.owned)
        return INT
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        values = [int(member) for member in hint]
        return IntT(min(values), max(values), enum=hint)
    if is_struct(hint):
        return RefT((hint,), optional=False)
    if is_value(hint):
        return ValT(hint)
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        members = [arg for arg in get_args(hint) if arg is not type(None)]
        if members and all(is_struct(member) for member in members):
            return RefT(tuple(members), optional=len(members) < len(get_args(hint)))
        if len(members) == 1:
            return from_hint(members[0], where)
        kept = [m for m in members if is_struct(m) or m is int]
        if int in kept and len(kept) == 1:
            return INT
    if origin is list:
        elem = from_hint(get_args(hint)[0], where)
        if isinstance(elem, IntT | RefT | ValT):
            per_cpu = [mark for mark in metadata if type(mark).__name__ == "PerCpu"]
            return ListT(
                elem,
                isinstance(elem, RefT) and not elem.optional,
                bool(per_cpu),
                bool(per_cpu) and per_cpu[0].owned,
            )
    raise CheckError(
        f"{where}: the checker has no type for the annotation {hint!r}; "
        "use int, bool, an IntEnum, a @struct, a NamedTuple, `X | None` or a list of these"
    )


_FIELDS: dict[type, dict[str, Type]] = {}


def struct_fields(cls: type) -> dict[str, Type]:
    """The fields of a struct that the checker sees: annotated, of a type it knows."""
    if cls not in _FIELDS:
        _FIELDS[cls] = _struct_fields(cls)
    return _FIELDS[cls]


def _struct_fields(cls: type) -> dict[str, Type]:
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Type] = {}
    for name, hint in hints.items():
        if get_origin(hint) is typing.ClassVar or hint is str:
            continue
        fields[name] = from_hint(hint, f"{cls.__name__}.{name}")
    return fields


@cache
def value_hints(cls: Any) -> dict[str, Scalar]:
    hints = get_type_hints(cls, include_extras=True)
    out: dict[str, Scalar] = {}
    for name in cls._fields:
        kind = from_hint(hints[name], f"{cls.__name__}.{name}")
        if isinstance(kind, ListT | NoneT):
            raise CheckError(f"{cls.__name__}.{name}: a value type can't hold a list")
        out[name] = kind
    return out
