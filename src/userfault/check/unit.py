"""What the bodies of one program share: who writes which field, the cells and tables that come of it, and the lists of the IR."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from . import ir
from .errors import CheckError
from .heap import Heap
from .names import FAILURES, FIELDS, SITUATIONS
from .template import SHARED, Access, Fact, Log, Template
from .types import IntT, ListT, NoneT, RefT, Scalar, Type, is_struct, struct_fields

Traits = tuple[tuple[int, int], Callable[[int], str], bool, Scalar | NoneT]
"""Of a type: its least and greatest word, how a word is shown, whether it names a thread, itself."""


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
        self.name = name
        self.ignore = ignore
        self.reuse = reuse
        self.program = ir.Program(name, [], [], [], [], [], [])
        self.heap = heap
        self.written: dict[tuple[type, str], set[int]] = {}
        """(struct, field) -> the objects (from 1) written through a constant pointer; 0 stands for all of them."""
        self.writes = 0
        self.log = Log()
        self.substitute = substitute
        self.answers: dict[Fact, Any] = {}
        self.templates: dict[Hashable, tuple[Template, int]] = {}
        """The template for a call, and how much was written when it was last found to hold."""
        self.unfit: set[int] = set()
        self.bases: dict[int, int] = {}
        self.spans: dict[int, int] = {}
        self.tables: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        self.situations: dict[int, int] = {}
        self.kinds: dict[Scalar | NoneT, Traits] = {}

    # -- what code rests on -------------------------------------------------------------------------------------------

    def ask(self, *fact: Any) -> Any:
        """A fact about the program's objects, noted as something that the code rests on."""
        answer = self.log.facts[fact] = self.answer(fact)
        return answer

    def answer(self, fact: Fact) -> Any:
        if fact not in self.answers:
            self.answers[fact] = getattr(self, fact[0])(*fact[1:])
        return self.answers[fact]

    def holds(self, template: Template) -> bool:
        """Would the call compile to this in this program, as far as is known of it now? (If not, that may change.)"""
        log = template.log
        if id(template) in self.unfit or not self.substitute.keys().isdisjoint(log.functions):
            return False
        answers = self.answers
        for fact, answer in log.facts.items():
            if (answers[fact] if fact in answers else self.answer(fact)) != answer:
                self.unfit.add(id(template))
                return False
        return not self.betrayed(log.trusted) and all(self.known_written(*access) for access in log.written)

    def find(self, key: Hashable) -> Template | None:
        """The template that a call can be made from."""
        found = self.templates.get(key)
        if found is not None:
            # What holds in a program holds until something more is written.
            template, writes = found
            if writes == self.writes:
                return template
            if not self.betrayed(template.log.trusted):
                self.templates[key] = template, self.writes
                return template
        variants = SHARED.get(key, [])
        for at, template in enumerate(variants):
            if self.holds(template):
                # The next program is likely to be of the same kind.
                variants.insert(0, variants.pop(at))
                # It may betray itself: what it trusts first and writes later.
                self.templates[key] = template, self.writes
                for access in template.log.writes:
                    self.write(*access)
                return template
        return None

    def betrayed(self, trusted: Iterable[Access]) -> bool:
        """Is anything written that was taken for constant?"""
        written = self.written
        for struct, name, obj in trusted:
            objects = written.get((struct, name))
            if objects and (obj == 0 or obj in objects or 0 in objects):
                return True
        return False

    def known_written(self, struct: type, name: str, obj: int) -> bool:
        objects = self.written.get((struct, name))
        return bool(objects) and (obj == 0 or obj in objects or 0 in objects)  # type: ignore[operator]

    def is_written(self, struct: type, name: str, obj: int) -> bool:
        """obj: from 1, or 0 for "any of them"."""
        known = self.known_written(struct, name, obj)
        if not known:
            self.log.trusted.add((struct, name, obj))
        elif not self.log.wrote(struct, name, obj):
            self.log.written.add((struct, name, obj))
        return known

    def note_written(self, struct: type, name: str, obj: int) -> None:
        self.log.writes.add((struct, name, obj))
        self.write(struct, name, obj)

    def write(self, struct: type, name: str, obj: int) -> None:
        """As is_written says from now on."""
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
        return not any(self.is_written(struct, name, each) for each in objects)

    def length(self, struct: type, name: str, kind: Type) -> int:
        """Cells of one object's field: 1, a fixed list's length, or the room that a dynamic list may need."""
        if not isinstance(kind, ListT):
            return 1
        length: int = self.ask("longest", struct, name, kind.dynamic and self.is_written(struct, name, 0))
        return length

    def initials(
        self, struct: type, name: str, kind: Type, objects: tuple[int, ...] | None, place: int | None
    ) -> frozenset[int]:
        """The initial values of a field; place: of a list (None: not a list, -1: any)."""
        places = self.length(struct, name, kind) if place == -1 else 0
        values: frozenset[int] = self.ask("starts", struct, name, objects, place or 0, places)
        return values

    # -- facts --------------------------------------------------------------------------------------------------------

    def longest(self, struct: type, name: str, grows: bool) -> int:
        kind = struct_fields(struct)[name]
        longest = max(len(getattr(obj, name)) for obj in self.heap.pools[struct])
        if grows:
            assert isinstance(kind, ListT) and isinstance(kind.elem, RefT)
            longest = max(longest, sum(self.heap.count(cls) for cls in kind.elem.structs))
        return max(longest, 1)

    def starts(
        self, struct: type, name: str, objects: tuple[int, ...] | None, place: int, places: int
    ) -> frozenset[int]:
        kind = struct_fields(struct)[name]
        chosen = objects or range(1, self.heap.count(struct) + 1)
        where = range(places) if places else (place,)
        return frozenset(self.initial(struct, name, kind, obj, at) for obj in chosen for at in where)

    def count(self, struct: type) -> int:
        """How many objects of a struct there are."""
        return self.heap.count(struct)

    def offset(self, union: RefT, struct: type) -> int:
        """As Heap.offset."""
        return self.heap.offset(union, struct)

    def layout(self, cls: type) -> tuple[dict[str, tuple[Scalar, int, int, int]], int]:
        """As Heap.layout."""
        return self.heap.layout(cls)

    def list_length(self, struct: type, name: str, obj: int) -> int:
        """How long a list is in the beginning."""
        return len(getattr(self.heap.pools[struct][obj - 1], name))

    def word(self, kind: Scalar, obj: Any) -> int | None:
        """The integer that stands for an object; None if it was not there."""
        if is_struct(type(obj)) and id(obj) not in self.heap.index:
            return None
        return self.heap.encode(kind, obj)

    def ignored(self, property: str) -> bool:
        return property in self.ignore

    @staticmethod
    def attribute(number: int, name: str) -> Any:
        """An attribute of an object that is no part of the program's state: an era, a configuration."""
        return getattr(_BYSTANDERS[number], name)

    def attribute_of(self, obj: Any, name: str) -> Any:
        """The same, of the object. Raises AttributeError."""
        if isinstance(obj, ModuleType | type):
            return getattr(obj, name)
        _BYSTANDERS[id(obj)] = obj
        return self.ask("attribute", id(obj), name)

    # -- once all bodies are there ------------------------------------------------------------------------------------

    def failure(self, number: int) -> int:
        """A failure's number in the program."""
        if number not in self.failures:
            self.failures[number] = len(self.program.failures)
            self.program.failures.append(FAILURES.named[number])
        return self.failures[number]

    def situation(self, number: int) -> int:
        """The number in the program of what is reached."""
        if number not in self.situations:
            self.situations[number] = len(self.program.sometimes)
            self.program.sometimes.append(SITUATIONS.named[number])
        return self.situations[number]

    def declared(self, kinds: Sequence[Scalar | NoneT]) -> list[Traits]:
        """What locals of these types are declared with. (A type is hashed slowly, and most are the same few objects.)"""
        known = {number: self.traits(kind) for number, kind in {id(kind): kind for kind in kinds}.items()}
        return [known[id(kind)] for kind in kinds]

    # -- the heap -----------------------------------------------------------------------------------------------------

    def initial(self, struct: type, name: str, kind: Type, obj: int, at: int) -> int:
        """Encoded initial value; obj from 1."""
        value = getattr(self.heap.pools[struct][obj - 1], name)
        if isinstance(kind, ListT):
            return self.heap.encode(kind.elem, value[at]) if at < len(value) else 0
        return self.heap.encode(kind, value)

    def base(self, number: int) -> int:
        """The first cell of the field of this number, made at its first use: when it is known what is written."""
        if number in self.bases:
            return self.bases[number]
        struct, name = FIELDS.named[number]
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
                        kind=scalar,
                        owner=(struct, obj, name),
                    )
                )
        return first

    def span(self, number: int) -> int:
        """How many cells (or, of a constant field, words of a table) the field of this number has in all objects."""
        span = self.spans.get(number)
        if span is None:
            struct, name = FIELDS.named[number]
            span = self.heap.count(struct) * self.length(struct, name, struct_fields(struct)[name])
            self.spans[number] = span
        return span

    def cell_of(self, obj: Any, name: str) -> int:
        """The cell of an object's field."""
        struct = type(obj)
        first = self.base(FIELDS[struct, name])
        return first + (self.heap.index[id(obj)] - 1) * self.length(struct, name, struct_fields(struct)[name])

    def table(self, number: int) -> int:
        """A constant field, by its number, as a table over (object, place)."""
        if number not in self.tables:
            struct, name = FIELDS.named[number]
            kind = struct_fields(struct)[name]
            places = range(self.length(struct, name, kind))
            self.tables[number] = len(self.program.tables)
            self.program.table_fields.append((struct, name))
            self.program.tables.append(
                [
                    self.initial(struct, name, kind, obj, at)
                    for obj in range(1, self.heap.count(struct) + 1)
                    for at in places
                ]
            )
        return self.tables[number]

    def traits(self, kind: Scalar | NoneT) -> Traits:
        """What a local of this type is declared with."""
        known = self.kinds.get(kind)
        if known is None:
            if isinstance(kind, NoneT):
                known = (0, 0), str, False, kind
            else:
                show = partial(self.heap.show, kind)
                known = (self.heap.bounds(kind), show, isinstance(kind, IntT) and kind.thread_id, kind)
            self.kinds[kind] = known
        return known


_BYSTANDERS: dict[int, Any] = {}
"""Objects that attributes were read of, by id: they live as long as the process."""
