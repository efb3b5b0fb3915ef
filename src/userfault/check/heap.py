"""A snapshot of the model's objects: the initial state of a checked program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import CheckError
from .ranges import UNDECLARED
from .types import IntT, ListT, NoneT, RefT, Scalar, Type, ValT, is_struct, struct_fields, value_hints


@dataclass
class Heap:
    """Every struct object reachable from the roots, by struct, in the order in which it was found.

    `cpu_count`: how many threads the checked program has; values that name a CPU range over them.
    """

    roots: list[Any]
    cpu_count: int
    names: dict[int, str] = field(default_factory=dict)
    pools: dict[type, list[Any]] = field(default_factory=dict)
    index: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        queue: list[tuple[Any, str]] = [(root, "") for root in self.roots]
        at = 0
        while at < len(queue):
            obj, place = queue[at]
            at += 1
            if obj is None or isinstance(obj, int | str | bytes):
                continue
            if isinstance(obj, list | tuple):
                queue += [(item, f"{place}[{number}]") for number, item in enumerate(obj)]
                continue
            if is_struct(type(obj)) and id(obj) not in self.index:
                pool = self.pools.setdefault(type(obj), [])
                pool.append(obj)
                self.index[id(obj)] = len(pool)
                embedded = place if getattr(type(obj), "__embedded__", False) else ""
                name = self.names.setdefault(id(obj), embedded or f"{type(obj).__name__}{len(pool) - 1}")
                queue += [(getattr(obj, field), f"{name}.{field}") for field in struct_fields(type(obj))]

    def count(self, cls: type) -> int:
        return len(self.pools.get(cls, ()))

    def offset(self, ref: RefT, cls: type) -> int:
        """Where `cls`'s objects begin in a reference to one of several structs."""
        at = 0
        for other in ref.structs:
            if other is cls:
                return at
            at += self.count(other)
        raise CheckError(f"a {cls.__name__} can't be stored where {names(ref)} is expected")

    def bounds(self, kind: Scalar) -> tuple[int, int]:
        """Least and greatest encoded value of a type."""
        if isinstance(kind, IntT):
            if kind.thread_id:
                return 0, self.cpu_count
            if kind.lo is None or kind.hi is None:
                return UNDECLARED
            return kind.lo, kind.hi
        if isinstance(kind, RefT):
            return 0, sum(self.count(cls) for cls in kind.structs)
        return 0, (1 << self.layout(kind.cls)[1]) - 1

    def layout(self, cls: type) -> tuple[dict[str, tuple[Scalar, int, int, int]], int]:
        """Of a value type: name -> (type, shift, bits, least value), and the bits of the whole."""
        cached: dict[type, tuple[dict[str, tuple[Scalar, int, int, int]], int]] = self.__dict__.setdefault(
            "_layouts", {}
        )
        if cls not in cached:
            fields: dict[str, tuple[Scalar, int, int, int]] = {}
            shift = 0
            for name, kind in value_hints(cls).items():
                lo, hi = self.bounds(kind)
                bits = (hi - lo).bit_length()
                fields[name] = (kind, shift, bits, lo)
                shift += bits
            if shift > 31:
                raise CheckError(f"{cls.__name__} needs {shift} bits here; the checker's words hold 31: narrow a field")
            cached[cls] = fields, shift
        return cached[cls]

    def encode(self, kind: Type, value: Any) -> int:
        """The integer that stands for a Python value of this type."""
        if isinstance(kind, NoneT) or value is None:
            return 0
        if isinstance(kind, RefT):
            if type(value) not in kind.structs:
                raise CheckError(f"a {type(value).__name__} where {names(kind)} is expected")
            return self.offset(kind, type(value)) + self.index[id(value)]
        if isinstance(kind, ValT):
            word = 0
            for name, (sub, shift, _bits, lo) in self.layout(kind.cls)[0].items():
                word |= (self.encode(sub, getattr(value, name)) - lo) << shift
            return word
        return int(value)

    def show(self, kind: Scalar, word: int) -> str:
        """A value for people."""
        if isinstance(kind, IntT):
            if kind.boolean:
                return "true" if word else "false"
            if kind.thread_id:
                return f"CPU{word - 1}" if word else "nobody"
            if kind.enum is not None and word in kind.enum._value2member_map_:
                return kind.enum(word).name
            return str(word)
        if isinstance(kind, RefT):
            at = word
            if at == 0:
                return "NULL"
            for cls in kind.structs:
                if at <= self.count(cls):
                    return self.names[id(self.pools[cls][at - 1])]
                at -= self.count(cls)
            return f"wild pointer {word}"
        parts: list[str] = []
        for name, (sub, shift, bits, lo) in self.layout(kind.cls)[0].items():
            value = ((word >> shift) & ((1 << bits) - 1)) + lo
            if isinstance(sub, IntT) and sub.enum is not None:
                parts.insert(0, self.show(sub, value))
            elif isinstance(sub, IntT) and sub.boolean:
                if value:
                    parts.append(name)
            elif value:
                parts.append(f"{name}={self.show(sub, value)}" if isinstance(sub, IntT) else self.show(sub, value))
        return "(" + " ".join(parts) + ")"


def names(ref: RefT) -> str:
    return " or ".join(cls.__name__ for cls in ref.structs)


def reachable(roots: Iterable[Any], cpu_count: int, names: dict[int, str] | None = None) -> Heap:
    """The heap reachable from the roots; objects of the first roots come first in their pools."""
    return Heap(list(roots), cpu_count, dict(names or {}))


__all__ = ["Heap", "ListT", "reachable"]
