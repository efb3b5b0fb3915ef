"""What the bodies of one program share: who writes which field, the cells and tables that come of it, and the lists of the IR."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

from . import ir
from .errors import CheckError
from .heap import Heap
from .ir import Op
from .source import Function
from .template import Row, Template
from .types import IntT, ListT, NoneT, RefT, Scalar, Type, struct_fields

Trust = set[tuple[type, str, int]]
"""(struct, field, object from 1, or 0 for any of them): what was taken for constant."""


class Unit:
    """A program while it is compiled.

    A body is compiled on the assumption that what nobody was seen to write is constant, and notes what it trusted. When
    another body turns out to write such a field, it is compiled again, until no body trusts what is written.
    """

    def __init__(
        self,
        name: str,
        heap: Heap,
        substitute: dict[Callable[..., Any], Callable[..., Any]],
        ignore: frozenset[str],
        reuse: bool,
    ) -> None:
        self.ignore = ignore
        self.reuse = reuse
        self.program = ir.Program(name, [], [], [], [], [], [])
        self.heap = heap
        self.written: dict[tuple[type, str], set[int]] = {}
        """(struct, field) -> the objects (from 1) written through a constant pointer; 0 stands for all of them."""
        self.writes = 0
        self.trusted: Trust = set()
        self.substitute = substitute
        self.templates: dict[Hashable, Template] = {}
        self.fields: dict[tuple[type, str], int] = {}
        self.bases: dict[int, int] = {}
        self.tables: dict[tuple[type, str], int] = {}
        self.source_ids: dict[tuple[str, int], int] = {}
        self.failure_ids: dict[ir.Failure, int] = {}
        self.constants: dict[int, int] = {}
        self.kinds: dict[Scalar | NoneT, tuple[int, int, Callable[[int], str], bool]] = {}
        self.lengths: dict[tuple[type, str, bool], int] = {}
        self.starts: dict[tuple[type, str, tuple[int, ...] | None, int | None], frozenset[int]] = {}

    # -- who writes what ----------------------------------------------------------------------------------------------

    def betrayed(self, trusted: Trust) -> bool:
        """Is anything written that was taken for constant?"""
        for struct, name, obj in trusted:
            objects = self.written.get((struct, name))
            if objects and (obj == 0 or obj in objects or 0 in objects):
                return True
        return False

    def is_written(self, struct: type, name: str, obj: int) -> bool:
        """obj: from 1, or 0 for "any of them"."""
        objects = self.written.get((struct, name))
        if objects and (obj == 0 or obj in objects or 0 in objects):
            return True
        self.trusted.add((struct, name, obj))
        return False

    def note_written(self, struct: type, name: str, obj: int) -> None:
        objects = self.written.setdefault((struct, name), set())
        if obj in objects or 0 in objects:
            return
        # Known at once, so that the rest of this body is right already.
        objects.add(obj)
        self.writes += 1

    def is_constant(self, struct: type, name: str, objects: tuple[int, ...] | None) -> bool:
        """Does nobody write the field of any of these objects (None: of any object)?"""
        if objects is None:
            return not self.is_written(struct, name, 0)
        if not self.written.get((struct, name)):
            self.trusted.update((struct, name, each) for each in objects)
            return True
        return not any(self.is_written(struct, name, each) for each in objects)

    def initials(
        self, struct: type, name: str, kind: Type, objects: tuple[int, ...] | None, place: int | None
    ) -> frozenset[int]:
        """The initial values of a field; place: of a list (None: not a list, -1: any)."""
        key = (struct, name, objects, place)
        if key not in self.starts:
            where = range(self.length(struct, name, kind)) if place == -1 else (place or 0,)
            chosen = objects or range(1, self.heap.count(struct) + 1)
            self.starts[key] = frozenset(self.initial(struct, name, kind, obj, at) for obj in chosen for at in where)
        return self.starts[key]

    # -- once all bodies are there ------------------------------------------------------------------------------------

    def place(self, rows: Iterable[Row]) -> None:
        """Make cells for the fields that code accesses, in the order of the code."""
        for row in rows:
            if row[0] is Op.LOAD:
                self.base(row[3])
            elif row[0] is Op.STORE:
                self.base(row[1])

    def variables(self, declared: Iterable[tuple[str, Scalar | NoneT]]) -> list[ir.Local]:
        return [ir.Local(name, *self.traits(kind)) for name, kind in declared]

    # -- the heap -----------------------------------------------------------------------------------------------------

    def length(self, struct: type, name: str, kind: Type) -> int:
        """Cells of one object's field: 1, a fixed list's length, or the room that a dynamic list may need."""
        if not isinstance(kind, ListT):
            return 1
        grows = kind.dynamic and self.is_written(struct, name, 0)
        key = (struct, name, grows)
        if key not in self.lengths:
            longest = max(len(getattr(obj, name)) for obj in self.heap.pools[struct])
            if grows:
                assert isinstance(kind.elem, RefT)
                longest = max(longest, sum(self.heap.count(cls) for cls in kind.elem.structs))
            self.lengths[key] = max(longest, 1)
        return self.lengths[key]

    def initial(self, struct: type, name: str, kind: Type, obj: int, at: int) -> int:
        """Encoded initial value; obj from 1."""
        value = getattr(self.heap.pools[struct][obj - 1], name)
        if isinstance(kind, ListT):
            return self.heap.encode(kind.elem, value[at]) if at < len(value) else 0
        return self.heap.encode(kind, value)

    def field_id(self, struct: type, name: str) -> int:
        """A field's number: what accesses carry until cells are placed."""
        return self.fields.setdefault((struct, name), len(self.fields))

    def base(self, number: int) -> int:
        """The first cell of the field of this number, made at its first use: when it is known what is written."""
        if number in self.bases:
            return self.bases[number]
        struct, name = list(self.fields)[number]
        kind = struct_fields(struct)[name]
        scalar = kind.elem if isinstance(kind, ListT) else kind
        assert not isinstance(scalar, NoneT)
        length = self.length(struct, name, kind)
        first = self.bases[number] = len(self.program.cells)
        lo, hi = self.heap.bounds(scalar)
        if isinstance(kind, ListT) and kind.dynamic:
            lo = 0
        for obj in range(1, self.heap.count(struct) + 1):
            fixed = not self.is_written(struct, name, obj)
            for at in range(length):
                init = self.initial(struct, name, kind, obj, at)
                label = self.heap.names[id(self.heap.pools[struct][obj - 1])]
                if not (getattr(struct, "__embedded__", False) and next(iter(struct_fields(struct))) == name):
                    label += f".{name}"
                if isinstance(kind, ListT):
                    label += f"[{at}]"
                if not lo <= init <= hi:
                    raise CheckError(f"{label} starts as {init}, outside the declared {lo}..{hi}")
                self.program.cells.append(
                    ir.Cell(
                        label,
                        init if fixed else lo,
                        init if fixed else hi,
                        init,
                        # Not a closure over this unit: a program is freed as soon as nobody has it.
                        show=partial(self.heap.show, scalar),
                        thread_id=isinstance(scalar, IntT) and scalar.thread_id,
                        per_thread=at + 1
                        if isinstance(kind, ListT) and kind.per_cpu
                        else obj
                        if getattr(struct, "__per_cpu__", False)
                        else 0,
                        owned=(isinstance(scalar, IntT) and scalar.owned) or (isinstance(kind, ListT) and kind.owned),
                    )
                )
        return first

    def cell_of(self, obj: Any, name: str) -> int:
        """The cell of an object's field."""
        struct = type(obj)
        first = self.base(self.field_id(struct, name))
        return first + (self.heap.index[id(obj)] - 1) * self.length(struct, name, struct_fields(struct)[name])

    def table(self, struct: type, name: str, kind: Type) -> int:
        """A constant field as a table over (object, place)."""
        key = (struct, name)
        if key not in self.tables:
            length = self.length(struct, name, kind)
            self.tables[key] = len(self.program.tables)
            self.program.tables.append(
                [
                    self.initial(struct, name, kind, obj, at)
                    for obj in range(1, self.heap.count(struct) + 1)
                    for at in range(length)
                ]
            )
        return self.tables[key]

    def traits(self, kind: Scalar | NoneT) -> tuple[int, int, Callable[[int], str], bool]:
        """What a local of this type is declared with."""
        known = self.kinds.get(kind)
        if known is None:
            if isinstance(kind, NoneT):
                known = (0, 0, str, False)
            else:
                lo, hi = self.heap.bounds(kind)
                show = partial(self.heap.show, kind)
                known = (lo, hi, show, isinstance(kind, IntT) and kind.thread_id)
            self.kinds[kind] = known
        return known

    def constant(self, value: int) -> int:
        """The operand for a constant."""
        operand = self.constants.get(value)
        if operand is None:
            operand = self.constants[value] = self.program.const(value)
        return operand

    def failure(self, property: str, message: str) -> int:
        key = ir.Failure(property, message)
        if key not in self.failure_ids:
            self.failure_ids[key] = len(self.program.failures)
            self.program.failures.append(key)
        return self.failure_ids[key]

    def source(self, function: Function, line: int) -> int:
        key = (function.file, line)
        if key not in self.source_ids:
            self.source_ids[key] = len(self.program.sources)
            self.program.sources.append(ir.Source(function.file, line, function.name, function.text(line).strip()))
        return self.source_ids[key]
