"""The compiler: restricted Python functions -> `ir.Program`.

Calls are inlined, constants folded, and everything that no thread ever writes is a constant too: the compiler starts
from "nothing is written", compiles, looks which fields were stored to, and repeats until that set is stable. What
remains of a function is its shared accesses (each the start of a step) and the local work between them.
"""

from __future__ import annotations

import ast
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from . import ir
from .analysis import bound_locals, simplify
from .errors import CheckError, CompileError
from .heap import Heap
from .ir import ARITHMETIC, Op
from .source import NO_DEFAULT, Function, parse
from .types import (
    BOOL,
    INT,
    NONE,
    IntT,
    ListT,
    NoneT,
    RefT,
    Scalar,
    Type,
    ValT,
    from_hint,
    is_struct,
    is_value,
    struct_fields,
)

MAX_CODE = 60_000
"""Instructions of one thread; more means a loop that unrolls without end."""


@dataclass(frozen=True)
class Call:
    """One operation of a thread: `fn(*args)`, its result stored in field `into[1]` of struct object `into[0]`."""

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    into: tuple[Any, str] | None = None


@dataclass(frozen=True)
class ThreadSpec:
    """A thread: operations one after the other, then `at_end` (checks made as part of its last step)."""

    name: str
    calls: Sequence[Call]
    at_end: Sequence[Call] = ()


@dataclass(frozen=True)
class Val:
    """A run-time value: its type and its operand (a local if >= 0, a constant if < 0).

    objects: of a reference read from a constant field, which objects it can name (None: any).
    """

    type: Scalar | NoneT
    operand: int
    objects: frozenset[int] | None = None


@dataclass(frozen=True)
class Py:
    """Something known while compiling: a function, a class, a module, an era."""

    obj: Any


@dataclass(frozen=True)
class Tup:
    items: tuple[Sym, ...]


@dataclass(frozen=True)
class Place:
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
    """An inlined call: its variables, where it returns to, and the frame that called it."""

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


Written = dict[tuple[type, str], set[int]]
"""(struct, field) -> the objects (from 1) written through a constant pointer; 0 stands for all of them."""

_BINARY: dict[type[ast.operator], Op] = {
    ast.Add: Op.ADD,
    ast.Sub: Op.SUB,
    ast.Mult: Op.MUL,
    ast.BitAnd: Op.AND,
    ast.BitOr: Op.OR,
    ast.BitXor: Op.XOR,
    ast.LShift: Op.SHL,
    ast.RShift: Op.SHR,
}


def compile_program(
    name: str,
    threads: Sequence[ThreadSpec],
    *,
    roots: Iterable[Any] = (),
    invariants: Sequence[Call] = (),
    finals: Sequence[Call] = (),
    observers: Sequence[Call] = (),
    names: dict[int, str] | None = None,
    substitute: dict[Callable[..., Any], Callable[..., Any]] | None = None,
    ignore: frozenset[str] = frozenset(),
) -> ir.Program:
    """Compile threads of model functions over the objects they reach.

    roots: objects whose pools are snapshotted first (their order names the objects).
    invariants: checked after every step. finals: checked in states where every thread has ended.
    observers: for outcomes.py: each reads a value of a final state into its `into`, an object that nobody else writes.
    names: id(object) -> its name in traces. substitute: function -> the mutant compiled in its place.
    ignore: properties that are not checked.
    Raises CompileError for code outside the subset.
    """
    args: list[Any] = list(roots)
    for thread in threads:
        for call in [*thread.calls, *thread.at_end]:
            args += [*call.args, *(call.into[:1] if call.into else ())]
    for call in [*invariants, *finals, *observers]:
        args += [*call.args, *(call.into[:1] if call.into else ())]
    unit = Unit(name, Heap(args, len(threads), dict(names or {})), substitute or {}, ignore)
    return unit.build(threads, invariants, finals, observers)


class Unit:
    """A program while it is compiled: what its bodies share.

    A body is compiled on the assumption that what nobody was seen to write is constant, and notes what it trusted. When
    another body turns out to write such a field, it is compiled again, until no body trusts what is written.
    """

    def __init__(
        self,
        name: str,
        heap: Heap,
        substitute: dict[Callable[..., Any], Callable[..., Any]],
        ignore: frozenset[str],
    ) -> None:
        self.ignore = ignore
        self.program = ir.Program(name, [], [], [], [], [], [])
        self.heap = heap
        self.written: Written = {}
        self.trusted: set[tuple[type, str, int]] = set()
        self.substitute = substitute
        self.fields: dict[tuple[type, str], int] = {}
        self.bases: dict[tuple[type, str], int] = {}
        self.tables: dict[tuple[type, str], int] = {}
        self.source_ids: dict[tuple[str, int], int] = {}
        self.failure_ids: dict[ir.Failure, int] = {}
        self.constants: dict[int, int] = {}
        self.kinds: dict[Scalar | NoneT, tuple[int, int, Callable[[int], str], bool]] = {}
        self.lengths: dict[tuple[type, str, bool], int] = {}
        self.starts: dict[tuple[type, str, tuple[int, ...] | None, int | None], frozenset[int]] = {}

    def build(
        self,
        threads: Sequence[ThreadSpec],
        invariants: Sequence[Call],
        finals: Sequence[Call],
        observers: Sequence[Call],
    ) -> ir.Program:
        makers = [partial(self.thread_body, number, spec) for number, spec in enumerate(threads)]
        makers += [partial(self.spec_body, call) for call in [*invariants, *finals, *observers]]
        bodies: list[Body] = []
        trusts: list[set[tuple[type, str, int]]] = []
        for make in makers:
            self.trusted = set()
            bodies.append(make())
            trusts.append(self.trusted)
        while stale := [at for at, trusted in enumerate(trusts) if self.betrayed(trusted)]:
            for at in stale:
                self.trusted = trusts[at] = set()
                bodies[at] = makers[at]()
        for body in bodies:
            self.place(body.code)
            body.code = simplify(body.code)
        program = self.program
        for number, spec in enumerate(threads):
            group = next((n for n in range(number) if self.alike(threads[n], bodies[n], spec, bodies[number])), number)
            program.threads.append(ir.Thread(spec.name, bodies[number].code, bodies[number].locals, group))
        specs = [
            ir.Spec(call.fn.__name__, body.code, body.locals)
            for call, body in zip([*invariants, *finals, *observers], bodies[len(threads) :], strict=True)
        ]
        program.invariants = specs[: len(invariants)]
        program.finals = specs[len(invariants) : len(invariants) + len(finals)]
        program.observers = specs[len(invariants) + len(finals) :]
        program.observed = [self.cell_of(*call.into) for call in observers if call.into is not None]
        bound_locals(program)
        return program

    def thread_body(self, number: int, spec: ThreadSpec) -> Body:
        body = Body(self, cpu=number, spec=False)
        for call in spec.calls:
            body.call_toplevel(call)
        for call in spec.at_end:
            with body.no_step():
                body.call_toplevel(call)
        body.finish()
        return body

    def cell_of(self, obj: Any, name: str) -> int:
        """The cell of an object's field."""
        kind = struct_fields(type(obj))[name]
        return self.base(type(obj), name) + (self.heap.encode(RefT((type(obj),)), obj) - 1) * self.length(
            type(obj), name, kind
        )

    def spec_body(self, call: Call) -> Body:
        body = Body(self, cpu=0, spec=True, writes=call.into is not None)
        body.call_toplevel(call)
        body.finish()
        return body

    @staticmethod
    def alike(a: ThreadSpec, a_body: Body, b: ThreadSpec, b_body: Body) -> bool:
        """Do two threads run the same operations, so that they can change places?"""
        same = [(c.fn, [id(x) for x in c.args], c.into) for c in a.calls] == [
            (c.fn, [id(x) for x in c.args], c.into) for c in b.calls
        ]
        return same and [(i.op, i.step) for i in a_body.code] == [(i.op, i.step) for i in b_body.code]

    def betrayed(self, trusted: set[tuple[type, str, int]]) -> bool:
        """Is anything written that a body took for constant?"""
        for struct, name, obj in trusted:
            objects = self.written.get((struct, name))
            if objects and (obj == 0 or obj in objects or 0 in objects):
                return True
        return False

    def place(self, code: list[ir.Instr]) -> None:
        """Now that it is known what is written: the fields' cells, and every access's."""
        keys = list(self.fields)
        for instr in code:
            if instr.op is Op.LOAD:
                instr.base += self.base(*keys[instr.b])
                instr.b = 0
            elif instr.op is Op.STORE:
                instr.base += self.base(*keys[instr.d])
                instr.d = 0

    # -- the heap -----------------------------------------------------------------------------------------------------

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

    def base(self, struct: type, name: str) -> int:
        """The first cell of a field, made at its first use."""
        key = (struct, name)
        if key in self.bases:
            return self.bases[key]
        kind = struct_fields(struct)[name]
        scalar = kind.elem if isinstance(kind, ListT) else kind
        assert not isinstance(scalar, NoneT)
        length = self.length(struct, name, kind)
        first = self.bases[key] = len(self.program.cells)
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
                        show=lambda word, kind=scalar: self.heap.show(kind, word),  # type: ignore[misc]
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


class Body:
    """The code of one thread (or invariant) while it is being emitted."""

    def __init__(self, unit: Unit, cpu: int, spec: bool, writes: bool = True) -> None:
        self.unit = unit
        self.heap = unit.heap
        self.cpu = cpu
        self.spec = spec
        self.writes = writes
        self.code: list[ir.Instr] = []
        self.targets: list[tuple[int, str, Label]] = []
        self.locals: list[ir.Local] = []
        self.frames: list[Frame] = []
        self.sources: list[int] = [0]
        self.ghost = 1 if spec else 0
        self.atomic = 0
        self.dead = False
        self.hooks = 0
        self.mutable: set[int] = set()

    # -- emission -----------------------------------------------------------------------------------------------------

    def emit(
        self,
        op: Op,
        d: int = 0,
        a: int = 0,
        b: int = 0,
        base: int = 0,
        lo: int = 0,
        hi: int = 0,
        step: bool = False,
    ) -> None:
        if not self.dead:
            if len(self.code) >= MAX_CODE:
                name = self.unit.program.name
                raise CheckError(
                    f"{name}: a thread needs over {MAX_CODE} instructions: does a loop unroll without end?"
                )
            self.code.append(ir.Instr(op, d, a, b, base, lo, hi, step, self.sources[-1]))

    def label(self, target: Label) -> None:
        """The label stands here; code after it can be reached if anybody jumps to it."""
        target.at = len(self.code)
        if target.used:
            self.dead = False

    def aim(self, at: int, slot: str, target: Label) -> None:
        target.used = True
        self.targets.append((at, slot, target))

    def jump(self, target: Label) -> None:
        if self.dead:
            return
        self.aim(len(self.code), "base", target)
        self.emit(Op.JMP)
        self.dead = True

    def branch(self, cond: Val, yes: Label, no: Label) -> None:
        if self.dead:
            return
        if cond.operand < 0:
            self.jump(yes if self.value(cond) else no)
            return
        self.aim(len(self.code), "base", yes)
        self.aim(len(self.code), "lo", no)
        self.emit(Op.BR, a=cond.operand)
        self.dead = True

    def finish(self) -> list[ir.Instr]:
        self.dead = False
        self.code.append(ir.Instr(Op.END, source=self.sources[-1]))
        for at, slot, target in self.targets:
            setattr(self.code[at], slot, target.at)
        return self.code

    def local(self, name: str, kind: Scalar | NoneT) -> int:
        lo, hi, show, thread_id = self.unit.traits(kind)
        self.locals.append(ir.Local(name, lo, hi, show, thread_id))
        return len(self.locals) - 1

    def const(self, kind: Scalar | NoneT, value: int) -> Val:
        return Val(kind, self.unit.constant(value))

    def value(self, val: Val) -> int:
        """The compile-time value of a constant."""
        return self.unit.program.consts[-1 - val.operand]

    def shared(self) -> bool:
        """Does the next access begin a step?"""
        return not (self.atomic or self.ghost)

    def refuse(self, node: ast.AST, problem: str, instead: str) -> NoReturn:
        function = self.frames[-1].function
        line = function.first_line + getattr(node, "lineno", 1) - 1
        col = getattr(node, "col_offset", 0) + function.indent
        raise CompileError(function.file, line, col, function.text(line), problem, instead)

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def binary(self, op: Op, a: Val, b: Val, kind: Scalar = INT) -> Val:
        if a.operand < 0 and b.operand < 0:
            return self.const(kind, ARITHMETIC[op](self.value(a), self.value(b)))
        if b.operand < 0:
            right = self.value(b)
            if (op in (Op.ADD, Op.SUB, Op.SHL, Op.SHR, Op.OR) and right == 0) or (op is Op.MUL and right == 1):
                return Val(kind, a.operand)
        d = self.local("", kind)
        self.emit(op, d=d, a=a.operand, b=b.operand)
        return Val(kind, d)

    def negate(self, a: Val) -> Val:
        if a.operand < 0:
            return self.const(BOOL, int(not self.value(a)))
        d = self.local("", BOOL)
        self.emit(Op.NOT, d=d, a=a.operand)
        return Val(BOOL, d)

    # -- the heap -----------------------------------------------------------------------------------------------------

    def convert(self, val: Sym, kind: Type, node: ast.AST) -> Val:
        """A value where `kind` is expected."""
        if isinstance(val, Py):
            val = self.lift(val, node)
        if not isinstance(val, Val):
            self.refuse(node, "this is not a single value", "an int, a bool, a reference or a value type")
        if isinstance(kind, NoneT | ListT):
            return val
        if isinstance(kind, RefT):
            if isinstance(val.type, NoneT):
                return self.const(kind, 0)
            if not isinstance(val.type, RefT):
                self.refuse(node, "an integer where a reference is expected", "a reference or None")
            if val.type.structs == kind.structs:
                return Val(kind, val.operand, val.objects)
            return self.rebase(val, val.type, kind, node)
        if isinstance(val.type, RefT | NoneT):
            self.refuse(node, "a reference where a number is expected", "a comparison such as `x is not None`")
        if isinstance(kind, ValT) or isinstance(val.type, ValT):
            if kind != val.type:
                self.refuse(node, "a value of another type", "the value type of the field")
            return val
        return Val(kind, val.operand)

    def rebase(self, val: Val, have: RefT, want: RefT, node: ast.AST) -> Val:
        common = [cls for cls in have.structs if cls in want.structs]
        if not common:
            self.refuse(node, "a reference to another struct", "a reference of the field's type")
        shift = self.heap.offset(want, common[0]) - self.heap.offset(have, common[0])
        if val.operand < 0:
            word = self.value(val)
            return self.const(want, word + shift if word else 0)
        if shift == 0:
            return Val(want, val.operand)
        out = self.local("", want)
        done, some = Label(), Label()
        self.emit(Op.MOV, d=out, a=val.operand)
        self.branch(Val(BOOL, val.operand), some, done)
        self.label(some)
        self.emit(Op.ADD, d=out, a=val.operand, b=self.unit.constant(shift))
        self.label(done)
        return Val(want, out)

    def lift(self, sym: Py, node: ast.AST) -> Val:
        """A compile-time Python object as a run-time constant."""
        obj = sym.obj
        if obj is None:
            return self.const(NONE, 0)
        if isinstance(obj, bool):
            return self.const(BOOL, int(obj))
        if isinstance(obj, enum.IntEnum):
            return self.const(from_hint_int(type(obj)), int(obj))
        if isinstance(obj, int):
            return self.const(INT, obj)
        if is_struct(type(obj)):
            kind = RefT((type(obj),))
            if id(obj) not in self.heap.index:
                self.refuse(
                    node,
                    "this object was not there when the program was compiled",
                    "an object reachable from the machine",
                )
            return self.const(kind, self.heap.encode(kind, obj))
        if is_value(type(obj)):
            kind2 = ValT(type(obj))
            return self.const(kind2, self.heap.encode(kind2, obj))
        self.refuse(
            node,
            f"a {type(obj).__name__} can't be a value of a checked program",
            "an int, a bool, a struct or a value type",
        )

    def field(self, obj: Val, name: str, node: ast.AST) -> tuple[type, Type, Val]:
        """Which struct's field this is, its type, and the object as an index into that struct's pool."""
        if not isinstance(obj.type, RefT):
            self.refuse(node, f"`.{name}` of something that is not a struct", "a field of a struct")
        union = obj.type
        for cls in union.structs:
            kind = struct_fields(cls).get(name)
            if kind is not None:
                if len(union.structs) > 1:
                    offset = self.const(INT, self.heap.offset(union, cls))
                    obj = self.binary(Op.SUB, obj, offset, RefT((cls,)))
                return cls, kind, obj
        self.refuse(
            node,
            f"{' or '.join(c.__name__ for c in union.structs)} has no field `{name}`",
            "a declared field",
        )

    def hook(self, struct: type, obj: Val, node: ast.AST) -> None:
        """A struct's `__on_access__` runs as part of every access to it (use after free)."""
        hook = struct.__dict__.get("__on_access__")
        if hook is None or self.hooks or self.spec:
            return
        if any(f.raw or (struct, obj.operand) in f.sane for f in self.frames):
            return
        self.hooks += 1
        try:
            with self.no_step():
                self.call(getattr(hook, "__func__", hook), [obj], {}, node)
        finally:
            self.hooks -= 1

    def load(self, struct: type, name: str, kind: Type, obj: Val, at: Val | None, node: ast.AST) -> Val:
        """Read a field (or the place `at` of a list field)."""
        unit = self.unit
        scalar = kind.elem if isinstance(kind, ListT) else kind
        assert not isinstance(scalar, NoneT)
        length = unit.length(struct, name, kind)
        known = self.value(obj) if obj.operand < 0 else 0
        if obj.operand < 0 and known == 0:
            self.fail("dereference", f"NULL->{name}")
            raise Unreachable
        if at is not None and at.operand < 0 and not 0 <= self.value(at) < length:
            self.fail("dereference", f"{struct.__name__}.{name}[{self.value(at)}] is outside the list")
            raise Unreachable
        objects = (known,) if known else tuple(sorted(obj.objects)) if obj.objects else None
        if unit.is_constant(struct, name, objects):
            place = None if at is None else self.value(at) if at.operand < 0 else -1
            values = unit.initials(struct, name, kind, objects, place)
            fixed = self.const(scalar, next(iter(values))) if len(values) == 1 and place != -1 else None
            if fixed is not None and objects is not None:
                return fixed
            # Even where the value is known, the pointer may be NULL: the look-up finds out.
            index, lo, hi, shift = self.address(struct, obj, at, length)
            d = self.local(name, scalar)
            self.emit(Op.LOADK, d=d, a=index.operand, base=unit.table(struct, name, kind), lo=lo, hi=hi, b=shift)
            if fixed is not None:
                return fixed
            never_null = isinstance(scalar, RefT) and 0 not in values
            return Val(scalar, d, values if never_null else None)
        number = unit.field_id(struct, name)
        if not (self.atomic or self.ghost):
            self.emit(Op.JMP, step=True, base=len(self.code) + 1)
        if "__on_access__" in struct.__dict__:
            self.atomic += 1
            try:
                self.hook(struct, obj, node)
            finally:
                self.atomic -= 1
        index, lo, hi, shift = self.address(struct, obj, at, length)
        d = self.local(name, scalar)
        self.emit(Op.LOAD, d=d, a=index.operand, b=number, base=shift, lo=lo, hi=hi)
        return Val(scalar, d)

    def store(self, struct: type, name: str, kind: Type, obj: Val, at: Val | None, value: Val, node: ast.AST) -> None:
        unit = self.unit
        if not self.writes:
            self.refuse(node, "an invariant writes", "a ghost function that the model calls")
        length = unit.length(struct, name, kind)
        known = self.value(obj) if obj.operand < 0 else 0
        if obj.operand < 0 and known == 0:
            self.fail("dereference", f"NULL->{name}")
            raise Unreachable
        if not self.dead:
            unit.note_written(struct, name, known)
        number = unit.field_id(struct, name)
        if not (self.atomic or self.ghost):
            self.emit(Op.JMP, step=True, base=len(self.code) + 1)
        if "__on_access__" in struct.__dict__:
            self.atomic += 1
            try:
                self.hook(struct, obj, node)
            finally:
                self.atomic -= 1
        index, lo, hi, shift = self.address(struct, obj, at, length)
        self.emit(Op.STORE, d=number, a=index.operand, b=value.operand, base=shift, lo=lo, hi=hi)

    def address(self, struct: type, obj: Val, at: Val | None, length: int) -> tuple[Val, int, int, int]:
        """(index operand, its least and greatest legal value, what to add to the base).

        The cell of place `at` of object `obj` (from 1) is base + (obj - 1) * length + at.
        """
        count = self.heap.count(struct)
        scaled = self.binary(Op.MUL, obj, self.const(INT, length))
        if at is None or at.operand < 0:
            place = self.value(at) if at is not None else 0
            if scaled.operand < 0:
                return self.const(INT, self.value(scaled) - length + place), 0, count * length - 1, 0
            return scaled, length, count * length, place - length
        return self.binary(Op.ADD, scaled, at), length, count * length + length - 1, -length

    def fail(self, property: str, message: str) -> None:
        self.emit(Op.FAIL, base=self.unit.failure(property, message))
        self.dead = True

    # -- calls --------------------------------------------------------------------------------------------------------

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Everything within is one step (part of the step around it, if there is one)."""
        if self.shared():
            self.emit(Op.JMP, step=True, base=len(self.code) + 1)
        self.atomic += 1
        try:
            yield
        finally:
            self.atomic -= 1

    @contextmanager
    def no_step(self) -> Iterator[None]:
        """Everything within belongs to the step before."""
        self.ghost += 1
        try:
            yield
        finally:
            self.ghost -= 1

    def call_toplevel(self, call: Call) -> None:
        node = ast.parse("f()").body[0]
        args: list[Sym] = [Py(arg) for arg in call.args]
        wrapper = Function(call.fn, call.fn.__name__, "", 1, [""], 0, ast.parse("def f(): pass").body[0], {}, {})  # type: ignore[arg-type]
        self.frames.append(Frame(wrapper, {}, Label()))
        try:
            result = self.call(call.fn, args, {}, node)
            if call.into is not None:
                obj, name = call.into
                kind = struct_fields(type(obj))[name]
                target = self.lift(Py(obj), node)
                with self.no_step():
                    self.store(type(obj), name, kind, target, None, self.convert(result, kind, node), node)
        except Unreachable:
            pass
        self.frames.pop()

    def call(self, fn: Callable[..., Any], args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Sym:
        special = getattr(fn, "__intrinsic__", None)
        if special is not None:
            return self.intrinsic(special, args, node)
        fn = self.unit.substitute.get(fn, fn)
        function = parse(fn)
        if any(frame.function.fn is fn for frame in self.frames) and len(self.frames) > 40:
            self.refuse(node, f"{function.name} calls itself", "a loop")
        is_atomic = getattr(fn, "__atomic__", False)
        is_ghost = getattr(fn, "__ghost__", False)
        opened = bool(is_atomic and self.shared())
        if opened:
            self.emit(Op.JMP, step=True, base=len(self.code) + 1)
        if is_ghost and self.shared() and not any(instr.step for instr in self.code):
            self.emit(Op.JMP, step=True, base=len(self.code) + 1)
        frame = Frame(function, {}, Label(), raw=getattr(fn, "__raw__", False))
        self.bind(frame, args, kwargs, node)
        self.frames.append(frame)
        self.atomic += is_atomic
        self.ghost += is_ghost
        if is_atomic:
            self.sanitize_once(frame, node)
        self.block(function.node.body)
        self.atomic -= is_atomic
        self.ghost -= is_ghost
        self.label(frame.exit)
        self.frames.pop()
        if self.dead:
            raise Unreachable
        return frame.result if frame.result is not None else Py(None)

    def sanitize_once(self, frame: Frame, node: ast.AST) -> None:
        """An atomic function's arguments can't be freed under it by others: look at them once."""
        if frame.raw:
            return
        for sym in list(frame.env.values()):
            if not isinstance(sym, Val) or sym.operand in self.mutable or not isinstance(sym.type, RefT):
                continue
            if len(sym.type.structs) == 1 and not sym.type.optional:
                struct = sym.type.structs[0]
                try:
                    self.hook(struct, sym, node)
                except Unreachable:
                    return
                frame.sane.add((struct, sym.operand))

    def bind(self, frame: Frame, args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> None:
        function = frame.function
        if function.variadic or len(args) > len(function.params):
            self.refuse(
                node, f"{function.name} is called with too many arguments, or has * parameters", "its parameters"
            )
        for at, (name, kind, default) in enumerate(function.params):
            if at < len(args):
                sym = args[at]
            elif name in kwargs:
                sym = kwargs[name]
            elif default is not NO_DEFAULT:
                sym = Py(default)
            else:
                self.refuse(node, f"{function.name} needs the argument `{name}`", f"{function.name}(..., {name}=...)")
            if kind is not None and not isinstance(kind, ListT) and (type(sym) is Val or _is_data_sym(sym)):
                sym = self.convert(sym, kind, node)
            if name in function.assigned and isinstance(sym, Val):
                sym = self.variable(name, sym)
            frame.env[name] = sym

    def variable(self, name: str, value: Val) -> Val:
        """A mutable variable initialised with a value."""
        slot = self.local(name, value.type)
        self.mutable.add(slot)
        self.emit(Op.MOV, d=slot, a=value.operand)
        return Val(value.type, slot)

    def intrinsic(self, name: str, args: list[Sym], node: ast.AST) -> Sym:
        if name == "read_once":
            return args[0]
        if name == "wait_until":
            cond = self.truth(args[0], node)
            if cond.operand < 0:
                if not self.value(cond):
                    self.emit(Op.WAIT, a=cond.operand)
                    self.dead = True
                    raise Unreachable
            else:
                self.emit(Op.WAIT, a=cond.operand)
            return Py(None)
        if name == "check":
            cond = self.truth(args[0], node)
            prop, message = args[1], args[2]
            if not (isinstance(prop, Py) and isinstance(message, Py)):
                self.refuse(node, "check() needs literal property and message", "string literals")
            if prop.obj in self.unit.ignore:
                return Py(None)
            ok, bad = Label(), Label()
            self.branch(cond, ok, bad)
            self.label(bad)
            if not self.dead:
                self.fail(str(prop.obj), str(message.obj))
            self.label(ok)
            if self.dead:
                raise Unreachable
            return Py(None)
        if name == "exhausted":
            assert isinstance(args[0], Py)
            self.fail("bound", f"the pool of {args[0].obj} is exhausted")
            raise Unreachable
        if name == "reached":
            assert isinstance(args[0], Py)
            program = self.unit.program
            label = str(args[0].obj)
            if label not in program.sometimes:
                program.sometimes.append(label)
            if not self.spec:
                self.emit(Op.REACH, base=program.sometimes.index(label))
            return Py(None)
        if name == "choose":
            assert isinstance(args[0], Val | Py)
            count = self.convert(args[0], INT, node)
            if count.operand >= 0:
                self.refuse(node, "choose() of a number not known while compiling", "a constant")
            n = self.value(count)
            d = self.local("choice", IntT(0, max(n - 1, 0)))
            self.emit(Op.CHOOSE, d=d, base=n, step=self.shared())
            return Val(INT, d)
        if name == "current_cpu":
            return Py(self.cpu)
        self.refuse(node, f"unknown intrinsic {name}", "a word of the vocabulary")

    # -- statements ---------------------------------------------------------------------------------------------------

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self.dead:
                return
            try:
                self.statement(statement)
            except Unreachable:
                self.dead = True

    def statement(self, node: ast.stmt) -> None:
        pushed = False
        if not self.atomic and not (self.ghost and not self.spec):
            function = self.frames[-1].function
            if function.file:
                self.sources.append(self.unit.source(function, function.first_line + node.lineno - 1))
                pushed = True
        handler = _STATEMENTS.get(type(node))
        if handler is None:
            self.refuse(
                node,
                f"`{type(node).__name__.lower()}` is outside the model's subset",
                _INSTEAD.get(type(node).__name__, "assignments, if, while, for, return and calls"),
            )
        try:
            handler(self, node)
        finally:
            if pushed:
                self.sources.pop()

    def stmt_expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        self.expr(node.value)

    def stmt_pass(self, node: ast.Pass) -> None:
        pass

    def stmt_return(self, node: ast.Return) -> None:
        frame = self.frames[-1]
        result: Sym = Py(None) if node.value is None else self.expr(node.value)
        if self.dead:
            return
        kind = frame.function.kinds.get("return")
        typed = self.typed_result(result, kind, frame, node)
        if frame.function.node.body[-1] is node and not frame.returns:
            frame.result = typed
            return
        frame.returns += 1
        if frame.result is None:
            frame.result = self.result_slots(typed, frame, node)
        self.move(frame.result, typed, node)
        self.jump(frame.exit)

    def typed_result(self, result: Sym, kind: Type | None, frame: Frame, node: ast.AST) -> Sym:
        """The result as the return annotation says (so that None and references meet in one type)."""
        if isinstance(result, Tup):
            kinds = frame.function.return_kinds
            return Tup(
                tuple(
                    self.typed_result(item, kinds[at] if at < len(kinds) else None, frame, node)
                    for at, item in enumerate(result.items)
                )
            )
        if kind is None or isinstance(kind, NoneT | ListT) or isinstance(result, Place):
            return result
        if isinstance(result, Py) and not _is_data(result.obj):
            return result
        return self.convert(result, kind, node)

    def result_slots(self, shape: Sym, frame: Frame, node: ast.AST) -> Sym:
        """Variables to return through, of the shape of the first result."""
        if isinstance(shape, Tup):
            return Tup(tuple(self.result_slots(item, frame, node) for item in shape.items))
        if isinstance(shape, Py) and shape.obj is None:
            return shape
        if isinstance(shape, Py):
            shape = self.lift(shape, node)
        if not isinstance(shape, Val):
            self.refuse(node, "a list can't be returned from several places", "a single return")
        return Val(shape.type, self.local(f"{frame.function.name}()", shape.type))

    def move(self, target: Sym, value: Sym, node: ast.AST) -> None:
        if isinstance(target, Tup):
            if not isinstance(value, Tup) or len(value.items) != len(target.items):
                self.refuse(node, "returns of different shapes", "the same number of values in every return")
            for slot, item in zip(target.items, value.items, strict=True):
                self.move(slot, item, node)
            return
        if isinstance(target, Py):
            return
        assert isinstance(target, Val)
        self.emit(Op.MOV, d=target.operand, a=self.convert(value, target.type, node).operand)

    def stmt_assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1:
            self.refuse(node, "a chained assignment", "one assignment a line")
        self.assign(node.targets[0], self.expr(node.value), None)

    def stmt_annassign(self, node: ast.AnnAssign) -> None:
        if node.value is None:
            return
        function = self.frames[-1].function
        hint = eval(compile(ast.Expression(node.annotation), "<annotation>", "eval"), function.scope)
        self.assign(node.target, self.expr(node.value), from_hint(hint, function.name))

    def assign(self, target: ast.expr, value: Sym, kind: Type | None) -> None:
        if self.dead:
            return
        if isinstance(target, ast.Tuple):
            if not isinstance(value, Tup) or len(value.items) != len(target.elts):
                self.refuse(target, "unpacking something that is not a tuple of this length", "a tuple")
            for sub, item in zip(target.elts, value.items, strict=True):
                self.assign(sub, item, None)
            return
        if isinstance(target, ast.Name):
            self.assign_name(target, value, kind)
            return
        if isinstance(target, ast.Attribute):
            obj = self.single(self.expr(target.value), target)
            struct, field_kind, obj = self.field(obj, target.attr, target)
            if isinstance(field_kind, ListT):
                self.refuse(
                    target,
                    f"assigning the list `{target.attr}` as a whole",
                    "its elements, or append and remove",
                )
            self.store(struct, target.attr, field_kind, obj, None, self.convert(value, field_kind, target), target)
            return
        if isinstance(target, ast.Subscript):
            place = self.expr(target.value)
            if not isinstance(place, Place):
                self.refuse(target, "an element of something that is not a list field", "a list field")
            at = self.convert(self.expr(target.slice), INT, target)
            self.store(
                place.struct,
                place.field,
                place.type,
                place.obj,
                at,
                self.convert(value, place.type.elem, target),
                target,
            )
            return
        self.refuse(target, "this can't be assigned to", "a name, a field or an element")

    def assign_name(self, target: ast.Name, value: Sym, kind: Type | None) -> None:
        frame = self.frames[-1]
        name = target.id
        if kind is not None and isinstance(value, Val | Py):
            value = self.convert(value, kind, target)
        if name in frame.function.direct and name not in (a.arg for a in frame.function.node.args.args):
            if kind is None and isinstance(value, Py) and _is_data(value.obj):
                value = self.lift(value, target)
            if isinstance(value, Val) and value.operand in self.mutable:
                value = self.variable(name, value)
            frame.env[name] = value
            return
        if isinstance(value, Tup | Place):
            self.refuse(target, "a tuple or list kept in a variable that is assigned again", "one variable per value")
        if isinstance(value, Py) and not _is_data(value.obj):
            self.refuse(target, "a function or class in a variable that is assigned again", "a direct call")
        val = self.single(value, target)
        have = frame.env.get(name)
        if isinstance(have, Val) and have.operand >= 0:
            kind = have.type
            if isinstance(kind, NoneT) and isinstance(val.type, RefT):
                kind = val.type
                self.retype(have.operand, kind)
                frame.env[name] = Val(kind, have.operand)
            self.emit(Op.MOV, d=have.operand, a=self.convert(val, kind, target).operand)
            return
        frame.env[name] = self.variable(name, val)

    def retype(self, slot: int, kind: Scalar) -> None:
        fresh = self.local(self.locals[slot].name, kind)
        self.locals[slot] = self.locals[fresh]
        self.locals.pop()

    def stmt_augassign(self, node: ast.AugAssign) -> None:
        op = _BINARY.get(type(node.op))
        if op is None:
            self.refuse(node, "this operator", "+ - * & | ^ << >>")
        target = node.target
        if isinstance(target, ast.Name):
            have = self.single(self.expr(target), target)
            value = self.single(self.expr(node.value), node)
            assert not isinstance(have.type, NoneT)
            self.assign(target, self.binary(op, have, value, have.type), None)
            return
        if isinstance(target, ast.Attribute):
            obj = self.single(self.expr(target.value), target)
            struct, kind, obj = self.field(obj, target.attr, target)
            assert not isinstance(kind, NoneT | ListT)
            value = self.single(self.expr(node.value), node)
            old = self.load(struct, target.attr, kind, obj, None, target)
            self.store(struct, target.attr, kind, obj, None, self.binary(op, old, value, kind), target)
            return
        place = self.expr(target.value)
        if not isinstance(place, Place):
            self.refuse(target, "an element of something that is not a list field", "a list field")
        at = self.convert(self.expr(target.slice), INT, target)
        value = self.single(self.expr(node.value), node)
        old = self.load(place.struct, place.field, place.type, place.obj, at, target)
        self.store(
            place.struct,
            place.field,
            place.type,
            place.obj,
            at,
            self.binary(op, old, value, place.type.elem),
            target,
        )

    def stmt_if(self, node: ast.If) -> None:
        yes, no, end = Label(), Label(), Label()
        self.condition(node.test, yes, no)
        self.label(yes)
        self.block(node.body)
        if node.orelse:
            self.jump(end)
            self.label(no)
            self.block(node.orelse)
            self.label(end)
        else:
            self.label(no)

    def stmt_while(self, node: ast.While) -> None:
        if node.orelse:
            self.refuse(node, "while ... else", "a flag")
        top, body, end = Label(), Label(), Label()
        self.forget_loop_constants(node)
        self.label(top)
        self.condition(node.test, body, end)
        self.label(body)
        self.frames[-1].loops.append((top, end))
        self.block(node.body)
        self.frames[-1].loops.pop()
        self.jump(top)
        self.label(end)

    def forget_loop_constants(self, node: ast.While | ast.For) -> None:
        """Variables that a loop assigns again live in locals from before the loop on."""
        env = self.frames[-1].env
        for sub in ast.walk(node):
            if isinstance(sub, ast.Name) and isinstance(sub.ctx, ast.Store):
                have = env.get(sub.id)
                if isinstance(have, Val) and have.operand < 0 and sub.id not in self.frames[-1].function.direct:
                    env[sub.id] = self.variable(sub.id, have)

    def stmt_for(self, node: ast.For) -> None:
        if node.orelse:
            self.refuse(node, "for ... else", "a flag")
        if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name) and node.iter.func.id == "range":
            self.for_range(node, [self.convert(self.expr(arg), INT, arg) for arg in node.iter.args])
            return
        over = self.expr(node.iter)
        if isinstance(over, Py) and (isinstance(over.obj, list | tuple | enum.EnumMeta)):
            over = Tup(tuple(Py(item) for item in over.obj))
        if isinstance(over, Tup):
            self.for_each(node, list(over.items))
            return
        if not isinstance(over, Place):
            self.refuse(node.iter, "iterating over this", "a list field, a tuple, or range(...)")
        length = self.unit.length(over.struct, over.field, over.type)
        if over.obj.operand < 0 and not self.unit.is_written(over.struct, over.field, self.value(over.obj)):
            actual = len(getattr(self.heap.pools[over.struct][self.value(over.obj) - 1], over.field))
            self.for_each(
                node,
                [
                    self.load(over.struct, over.field, over.type, over.obj, self.const(INT, at), node)
                    for at in range(actual)
                ],
            )
            return
        # As CPython iterates: by index, looking at the length anew each time.
        at = self.variable("at", self.const(INT, 0))
        top, body, more, end = Label(), Label(), Label(), Label()
        self.forget_loop_constants(node)
        self.label(top)
        inside = self.binary(Op.LT, at, self.const(INT, length), BOOL)
        self.branch(inside, more, end)
        self.label(more)
        item = self.load(over.struct, over.field, over.type, over.obj, at, node)
        if over.type.dynamic:
            self.branch(Val(BOOL, item.operand), body, end)
        self.label(body)
        step = Label()
        self.assign(node.target, item, None)
        self.frames[-1].loops.append((step, end))
        self.block(node.body)
        self.frames[-1].loops.pop()
        self.label(step)
        if not self.dead:
            self.emit(Op.ADD, d=at.operand, a=at.operand, b=self.unit.constant(1))
        self.jump(top)
        self.label(end)

    def for_each(self, node: ast.For, items: list[Sym]) -> None:
        """Unrolled: the elements are known while compiling."""
        end = Label()
        self.forget_loop_constants(node)
        for item in items:
            step = Label()
            self.assign(node.target, item, None)
            self.frames[-1].loops.append((step, end))
            self.block(node.body)
            self.frames[-1].loops.pop()
            self.label(step)
        self.label(end)

    def for_range(self, node: ast.For, bounds: list[Val]) -> None:
        start = self.const(INT, 0) if len(bounds) == 1 else bounds[0]
        stop = bounds[0] if len(bounds) == 1 else bounds[1]
        step = self.const(INT, 1) if len(bounds) < 3 else bounds[2]
        if start.operand < 0 and stop.operand < 0 and step.operand < 0:
            values = range(self.value(start), self.value(stop), self.value(step))
            self.for_each(node, [self.const(INT, value) for value in values])
            return
        at = self.variable("at", start)
        top, body, end, again = Label(), Label(), Label(), Label()
        self.forget_loop_constants(node)
        self.label(top)
        self.branch(self.binary(Op.LT, at, stop, BOOL), body, end)
        self.label(body)
        current = self.variable("at", at)
        self.assign(node.target, current, None)
        self.frames[-1].loops.append((again, end))
        self.block(node.body)
        self.frames[-1].loops.pop()
        self.label(again)
        if not self.dead:
            self.emit(Op.ADD, d=at.operand, a=at.operand, b=step.operand)
        self.jump(top)
        self.label(end)

    def stmt_break(self, node: ast.Break) -> None:
        self.jump(self.frames[-1].loops[-1][1])

    def stmt_continue(self, node: ast.Continue) -> None:
        self.jump(self.frames[-1].loops[-1][0])

    # -- expressions --------------------------------------------------------------------------------------------------

    def single(self, sym: Sym, node: ast.AST) -> Val:
        if isinstance(sym, Py):
            return self.lift(sym, node)
        if isinstance(sym, Val):
            return sym
        self.refuse(node, "this is not a single value", "an int, a bool, a reference or a value type")

    def truth(self, sym: Sym, node: ast.AST) -> Val:
        if isinstance(sym, Place):
            return self.list_length(sym, node)
        return self.single(sym, node)

    def condition(self, node: ast.expr, yes: Label, no: Label) -> None:
        """Branch on an expression."""
        if isinstance(node, ast.BoolOp):
            for sub in node.values[:-1]:
                after = Label()
                if isinstance(node.op, ast.And):
                    self.condition(sub, after, no)
                else:
                    self.condition(sub, yes, after)
                self.label(after)
                if self.dead:
                    return
            self.condition(node.values[-1], yes, no)
            return
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.condition(node.operand, no, yes)
            return
        try:
            cond = self.truth(self.expr(node), node)
        except Unreachable:
            self.dead = True
            return
        self.branch(cond, yes, no)

    def expr(self, node: ast.expr) -> Sym:
        handler = _EXPRESSIONS.get(type(node))
        if handler is None:
            self.refuse(
                node,
                f"a {type(node).__name__} expression is outside the model's subset",
                _INSTEAD.get(type(node).__name__, "names, fields, calls, arithmetic and comparisons"),
            )
        result: Sym = handler(self, node)
        return result

    def expr_constant(self, node: ast.Constant) -> Sym:
        return Py(node.value)

    def expr_name(self, node: ast.Name) -> Sym:
        frame = self.frames[-1]
        if node.id in frame.env:
            return frame.env[node.id]
        if node.id in frame.function.scope:
            return Py(frame.function.scope[node.id])
        builtins = {
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
        if node.id in builtins:
            return Py(builtins[node.id])
        self.refuse(node, f"`{node.id}` has no value here", "a name assigned on every path before")

    def expr_tuple(self, node: ast.Tuple) -> Sym:
        return Tup(tuple(self.expr(item) for item in node.elts))

    def expr_attribute(self, node: ast.Attribute) -> Sym:
        obj = self.expr(node.value)
        if isinstance(obj, Py):
            if is_struct(type(obj.obj)):
                if node.attr not in struct_fields(type(obj.obj)):
                    return Py(getattr(obj.obj, node.attr))
                obj = self.lift(obj, node)
            elif is_value(type(obj.obj)):
                obj = self.lift(obj, node)
            else:
                try:
                    return Py(getattr(obj.obj, node.attr))
                except AttributeError:
                    self.refuse(node, f"there is no `{node.attr}` here", "an existing attribute")
        val = self.single(obj, node)
        if isinstance(val.type, ValT):
            return self.part(val, node.attr, node)
        struct, kind, val = self.field(val, node.attr, node)
        if isinstance(kind, ListT):
            return Place(struct, node.attr, kind, val)
        return self.load(struct, node.attr, kind, val, None, node)

    def part(self, val: Val, name: str, node: ast.AST) -> Val:
        """A field of a value type: local work."""
        assert isinstance(val.type, ValT)
        fields, total = self.heap.layout(val.type.cls)
        if name not in fields:
            self.refuse(node, f"{val.type.cls.__name__} has no field `{name}`", f"one of {', '.join(fields)}")
        kind, shift, bits, lo = fields[name]
        if bits == 0:
            return self.const(kind, lo)
        word = self.binary(Op.SHR, val, self.const(INT, shift), kind)
        if shift + bits < total:
            word = self.binary(Op.AND, word, self.const(INT, (1 << bits) - 1), kind)
        return self.binary(Op.ADD, word, self.const(INT, lo), kind)

    def expr_subscript(self, node: ast.Subscript) -> Sym:
        place = self.expr(node.value)
        if isinstance(place, Py) and isinstance(place.obj, list | tuple | dict):
            at = self.single(self.expr(node.slice), node)
            if at.operand < 0:
                return Py(place.obj[self.value(at)])
            self.refuse(node, "a Python list indexed by a run-time value", "a list field of a struct")
        if isinstance(place, Tup):
            at = self.single(self.expr(node.slice), node)
            if at.operand < 0:
                return place.items[self.value(at)]
        if not isinstance(place, Place):
            self.refuse(node, "an element of something that is not a list field", "a list field")
        at = self.convert(self.expr(node.slice), INT, node)
        return self.load(place.struct, place.field, place.type, place.obj, at, node)

    def expr_unaryop(self, node: ast.UnaryOp) -> Sym:
        if isinstance(node.op, ast.Not):
            return self.negate(self.truth(self.expr(node.operand), node))
        if isinstance(node.op, ast.USub):
            return self.binary(Op.SUB, self.const(INT, 0), self.single(self.expr(node.operand), node))
        if isinstance(node.op, ast.Invert):
            return self.binary(Op.XOR, self.single(self.expr(node.operand), node), self.const(INT, -1))
        self.refuse(node, "this operator", "not, - or ~")

    def expr_binop(self, node: ast.BinOp) -> Sym:
        op = _BINARY.get(type(node.op))
        if op is None and not isinstance(node.op, ast.FloorDiv | ast.Mod):
            self.refuse(node, "this operator", "+ - * & | ^ << >>")
        left = self.single(self.expr(node.left), node.left)
        right = self.single(self.expr(node.right), node.right)
        if op is None:
            if right.operand >= 0 or self.value(right) <= 0 or self.value(right) & (self.value(right) - 1):
                self.refuse(node, "division by something else than a constant power of two", "a shift or a mask")
            power = self.value(right)
            if isinstance(node.op, ast.Mod):
                return self.binary(Op.AND, left, self.const(INT, power - 1))
            return self.binary(Op.SHR, left, self.const(INT, power.bit_length() - 1))
        return self.binary(op, left, right)

    def expr_boolop(self, node: ast.BoolOp) -> Sym:
        out = self.local("bool", BOOL)
        yes, no, end = Label(), Label(), Label()
        self.condition(node, yes, no)
        known: list[int] = []
        self.label(yes)
        if not self.dead:
            self.emit(Op.MOV, d=out, a=self.unit.constant(1))
            known.append(1)
            self.jump(end)
        self.label(no)
        if not self.dead:
            self.emit(Op.MOV, d=out, a=self.unit.constant(0))
            known.append(0)
        self.label(end)
        if not known:
            raise Unreachable
        return self.const(BOOL, known[0]) if len(known) == 1 else Val(BOOL, out)

    def expr_ifexp(self, node: ast.IfExp) -> Sym:
        yes, no, end = Label(), Label(), Label()
        self.condition(node.test, yes, no)
        reached_no = no.used
        self.label(yes)
        out: Val | None = None
        if not self.dead:
            if not reached_no:
                return self.expr(node.body)
            try:
                value = self.single(self.expr(node.body), node.body)
                if isinstance(value.type, NoneT):
                    self.refuse(node, "`None if ...`", "`... if ... else None`, the other way round")
                out = Val(value.type, self.local("ifexp", value.type))
                self.mutable.add(out.operand)
                self.emit(Op.MOV, d=out.operand, a=value.operand)
                self.jump(end)
            except Unreachable:
                self.dead = True
        self.label(no)
        if self.dead:
            raise Unreachable
        if out is None:
            return self.expr(node.orelse)
        try:
            other = self.convert(self.expr(node.orelse), out.type, node.orelse)
            self.emit(Op.MOV, d=out.operand, a=other.operand)
        except Unreachable:
            self.dead = True
        self.label(end)
        return out

    def expr_compare(self, node: ast.Compare) -> Sym:
        if len(node.ops) != 1:
            lower = ast.copy_location(ast.Compare(node.left, node.ops[:1], node.comparators[:1]), node)
            upper = ast.copy_location(ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:]), node)
            return self.expr_boolop(ast.copy_location(ast.BoolOp(ast.And(), [lower, upper]), node))
        op, right_node = node.ops[0], node.comparators[0]
        left, right = self.expr(node.left), self.expr(right_node)
        if isinstance(op, ast.In | ast.NotIn):
            return self.membership(left, right, isinstance(op, ast.NotIn), node)
        if isinstance(left, Py) and isinstance(right, Py) and not (_is_data(left.obj) and _is_data(right.obj)):
            same = left.obj is right.obj
            return self.const(BOOL, int(same == isinstance(op, ast.Is | ast.Eq)))
        a, b = self.single(left, node.left), self.single(right, right_node)
        a, b = self.meet(a, b, node)
        if isinstance(op, ast.Eq | ast.Is):
            return self.binary(Op.EQ, a, b, BOOL)
        if isinstance(op, ast.NotEq | ast.IsNot):
            return self.binary(Op.NE, a, b, BOOL)
        if isinstance(op, ast.Lt):
            return self.binary(Op.LT, a, b, BOOL)
        if isinstance(op, ast.LtE):
            return self.binary(Op.LE, a, b, BOOL)
        if isinstance(op, ast.Gt):
            return self.binary(Op.LT, b, a, BOOL)
        return self.binary(Op.LE, b, a, BOOL)

    def meet(self, a: Val, b: Val, node: ast.AST) -> tuple[Val, Val]:
        """Two values made comparable."""
        if isinstance(a.type, RefT) and isinstance(b.type, RefT) and a.type.structs != b.type.structs:
            wide, narrow = (a, b) if len(a.type.structs) >= len(b.type.structs) else (b, a)
            assert isinstance(wide.type, RefT) and isinstance(narrow.type, RefT)
            narrow = self.rebase(narrow, narrow.type, wide.type, node)
            return wide, narrow
        refs = (isinstance(a.type, RefT | NoneT), isinstance(b.type, RefT | NoneT))
        if refs[0] != refs[1]:
            if isinstance(a.type, NoneT) or isinstance(b.type, NoneT):
                return (self.const(INT, -1 << 30), b) if isinstance(a.type, NoneT) else (a, self.const(INT, -1 << 30))
            self.refuse(node, "comparing a reference with a number", "two references, or `is None`")
        if isinstance(a.type, ValT) != isinstance(b.type, ValT):
            self.refuse(node, "comparing a value type with something else", "two values of one type, or their fields")
        return a, b

    def membership(self, left: Sym, right: Sym, negated: bool, node: ast.AST) -> Sym:
        if isinstance(right, Py) and isinstance(right.obj, list | tuple | frozenset | set):
            right = Tup(tuple(Py(item) for item in right.obj))
        if isinstance(right, Tup):
            value = self.single(left, node)
            result = self.const(BOOL, 0)
            for item in right.items:
                a, b = self.meet(value, self.single(item, node), node)
                result = (
                    self.binary(Op.OR, result, self.binary(Op.EQ, a, b, BOOL), BOOL)
                    if result.operand >= 0 or self.value(result)
                    else self.binary(Op.EQ, a, b, BOOL)
                )
            return self.negate(result) if negated else result
        if isinstance(right, Place):
            value = self.single(left, node)
            found = self.const(BOOL, 0)
            with self.list_step(right):
                for at in range(self.unit.length(right.struct, right.field, right.type)):
                    item = self.load(right.struct, right.field, right.type, right.obj, self.const(INT, at), node)
                    a, b = self.meet(item, value, node)
                    equal = self.binary(Op.EQ, a, b, BOOL)
                    none_yet = found.operand < 0 and not self.value(found)
                    found = equal if none_yet else self.binary(Op.OR, found, equal, BOOL)
            return self.negate(found) if negated else found
        self.refuse(node, "`in` something that is not a list field or a tuple", "a list field or a tuple")

    @contextmanager
    def list_step(self, place: Place) -> Iterator[None]:
        """A look at a whole list is one step, or local work if nobody writes the list."""
        known = self.value(place.obj) if place.obj.operand < 0 else 0
        if self.unit.is_written(place.struct, place.field, known):
            with self.one_step():
                yield
        else:
            yield

    def list_length(self, place: Place, node: ast.AST) -> Val:
        length = self.unit.length(place.struct, place.field, place.type)
        known = self.value(place.obj) if place.obj.operand < 0 else 0
        if known and not self.unit.is_written(place.struct, place.field, known):
            return self.const(INT, len(getattr(self.heap.pools[place.struct][known - 1], place.field)))
        if not place.type.dynamic:
            return self.const(INT, length)
        total = self.const(INT, 0)
        with self.list_step(place):
            for at in range(length):
                item = self.load(place.struct, place.field, place.type, place.obj, self.const(INT, at), node)
                some = self.binary(Op.NE, item, self.const(INT, 0), INT)
                total = self.binary(Op.ADD, total, some, INT) if at else some
        return total

    def list_method(self, place: Place, method: str, args: list[Sym], node: ast.AST) -> Sym:
        """append, insert(0, x) and remove of a dynamic list, each one step."""
        kind = place.type
        if not kind.dynamic:
            self.refuse(
                node,
                f"`.{method}` of a list whose elements may be None",
                "element assignment, or declare it list[T]",
            )
        known = self.value(place.obj) if place.obj.operand < 0 else 0
        if not self.dead:
            self.unit.note_written(place.struct, place.field, known)
        with self.one_step():
            self.change_list(place, method, args, node)
        return Py(None)

    def change_list(self, place: Place, method: str, args: list[Sym], node: ast.AST) -> None:
        kind = place.type
        assert isinstance(kind.elem, RefT)
        if method not in ("append", "insert", "remove"):
            self.refuse(node, f"`.{method}` of a list", "append, insert(0, x), remove, `in`, len or a for loop")
        length = self.unit.length(place.struct, place.field, kind)
        places = [self.const(INT, at) for at in range(length)]
        item = self.convert(args[-1], kind.elem, node)

        def get(at: int) -> Val:
            return self.load(place.struct, place.field, kind, place.obj, places[at], node)

        def put(at: int, value: Val) -> None:
            self.store(place.struct, place.field, kind, place.obj, places[at], value, node)

        done = Label()
        if method == "append":
            for at in range(length):
                here, further = Label(), Label()
                self.branch(Val(BOOL, get(at).operand), further, here)
                self.label(here)
                if not self.dead:
                    put(at, item)
                self.jump(done)
                self.label(further)
                if self.dead:
                    break
            if not self.dead:
                self.fail("bound", f"the list {place.field} is full")
        elif method == "insert":
            where = self.convert(args[0], INT, node)
            if where.operand >= 0 or self.value(where) != 0:
                self.refuse(node, "insert at a place other than 0", "insert(0, x) or append(x)")
            for at in range(length - 1, 0, -1):
                put(at, get(at - 1))
            put(0, item)
        else:
            found = self.variable("found", self.const(BOOL, 0))
            for at in range(length):
                hit, keep, test = Label(), Label(), Label()
                if at:
                    self.branch(found, hit, test)
                    self.label(test)
                self.branch(self.binary(Op.EQ, get(at), item, BOOL), hit, keep)
                self.label(hit)
                if not self.dead:
                    self.emit(Op.MOV, d=found.operand, a=self.unit.constant(1))
                    put(at, get(at + 1) if at + 1 < length else self.const(kind.elem, 0))
                self.label(keep)
            ok, bad = Label(), Label()
            self.branch(found, ok, bad)
            self.label(bad)
            if not self.dead:
                self.fail("dereference", f"removing from {place.field} what is not in it")
            self.label(ok)
        self.label(done)

    def expr_call(self, node: ast.Call) -> Sym:
        if isinstance(node.func, ast.Attribute):
            owner = self.expr(node.func.value)
            if isinstance(owner, Place):
                return self.list_method(owner, node.func.attr, [self.expr(arg) for arg in node.args], node)
            if isinstance(owner, Val) and isinstance(owner.type, ValT):
                return self.value_method(owner, node)
            if isinstance(owner, Py) and is_value(type(owner.obj)):
                return self.value_method(self.lift(owner, node), node)
        target = self.expr(node.func)
        if not isinstance(target, Py) or not callable(target.obj):
            self.refuse(node, "calling something not known while compiling", "a function of the model by its name")
        fn = target.obj
        if fn is isinstance:
            return self.isinstance_(node)
        args = [self.expr(arg) for arg in node.args]
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self.refuse(node, "** in a call", "keyword arguments by name")
            kwargs[keyword.arg] = self.expr(keyword.value)
        if fn is len:
            if isinstance(args[0], Place):
                return self.list_length(args[0], node)
            if isinstance(args[0], Tup):
                return Py(len(args[0].items))
            if isinstance(args[0], Py):
                return Py(len(args[0].obj))
        if fn in (int, bool):
            value = self.single(args[0], node)
            return self.binary(Op.NE, value, self.const(INT, 0), BOOL) if fn is bool else Val(INT, value.operand)
        if fn in (min, max):
            a, b = (self.single(arg, node) for arg in args)
            out = self.local("minmax", INT)
            first, end = Label(), Label()
            other = Label()
            self.emit(Op.MOV, d=out, a=b.operand)
            self.branch(self.binary(Op.LT, a, b, BOOL) if fn is min else self.binary(Op.LT, b, a, BOOL), first, other)
            self.label(first)
            if not self.dead:
                self.emit(Op.MOV, d=out, a=a.operand)
            self.label(other)
            self.label(end)
            return Val(INT, out)
        if getattr(fn, "__name__", "") == "cast" and getattr(fn, "__module__", "") == "typing":
            assert isinstance(args[0], Py)
            return self.convert(args[1], from_hint(args[0].obj, "cast"), node)
        if is_value(fn):
            return self.construct(fn, args, kwargs, node)
        if isinstance(fn, type) and issubclass(fn, enum.IntEnum):
            return Val(from_hint_int(fn), self.single(args[0], node).operand)
        if isinstance(fn, type):
            self.refuse(
                node,
                f"making a {fn.__name__} in model code",
                "an allocation function that takes a free one from a pool",
            )
        return self.call(fn, args, kwargs, node)

    def isinstance_(self, node: ast.Call) -> Sym:
        val = self.single(self.expr(node.args[0]), node)
        cls = self.expr(node.args[1])
        if not isinstance(cls, Py):
            self.refuse(node, "isinstance of a class not known while compiling", "the struct's name")
        if isinstance(val.type, NoneT):
            return self.const(BOOL, 0)
        if not isinstance(val.type, RefT) or cls.obj not in val.type.structs:
            return self.const(BOOL, 0)
        first = self.heap.offset(val.type, cls.obj)
        last = first + self.heap.count(cls.obj)
        above = self.binary(Op.LT, self.const(INT, first), val, BOOL)
        if val.operand < 0:
            return self.const(BOOL, int(first < self.value(val) <= last))
        if cls.obj is val.type.structs[-1]:
            return above
        below = self.binary(Op.LE, val, self.const(INT, last), BOOL)
        return self.binary(Op.AND, above, below, BOOL)

    def construct(self, cls: type, args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Val:
        """A value type from its fields."""
        fields, _ = self.heap.layout(cls)
        defaults: dict[str, Any] = cls._field_defaults  # type: ignore[attr-defined]
        given = dict(zip(fields, args, strict=False)) | kwargs
        kind = ValT(cls)
        word = self.const(kind, 0)
        for name, (sub, shift, _bits, lo) in fields.items():
            if name not in given and name not in defaults:
                self.refuse(node, f"{cls.__name__} needs `{name}`", f"{cls.__name__}(..., {name}=...)")
            value = self.convert(given[name] if name in given else Py(defaults[name]), sub, node)
            value = self.binary(Op.SUB, value, self.const(INT, lo))
            shifted = self.binary(Op.SHL, value, self.const(INT, shift))
            word = shifted if word.operand < 0 and self.value(word) == 0 else self.binary(Op.OR, word, shifted, kind)
        return Val(kind, word.operand)

    def value_method(self, val: Val, node: ast.Call) -> Sym:
        assert isinstance(node.func, ast.Attribute) and isinstance(val.type, ValT)
        if node.func.attr != "_replace":
            method = getattr(val.type.cls, node.func.attr, None)
            if callable(method) and hasattr(method, "__code__"):
                return self.call(method, [val, *(self.expr(arg) for arg in node.args)], {}, node)
            self.refuse(node, f"`.{node.func.attr}()` of a value type", "_replace(...)")
        fields, _ = self.heap.layout(val.type.cls)
        for keyword in node.keywords:
            if keyword.arg not in fields:
                self.refuse(
                    node,
                    f"{val.type.cls.__name__} has no field `{keyword.arg}`",
                    f"one of {', '.join(fields)}",
                )
            kind, shift, bits, lo = fields[keyword.arg]
            value = self.convert(self.expr(keyword.value), kind, node)
            value = self.binary(Op.SUB, value, self.const(INT, lo))
            kept = self.binary(Op.AND, val, self.const(INT, ~(((1 << bits) - 1) << shift)), val.type)
            val = self.binary(Op.OR, kept, self.binary(Op.SHL, value, self.const(INT, shift)), kept.type)  # type: ignore[arg-type]
        return val


def from_hint_int(cls: type[enum.IntEnum]) -> IntT:
    kind = from_hint(cls, cls.__name__)
    assert isinstance(kind, IntT)
    return kind


def _is_data_sym(sym: Sym) -> bool:
    return isinstance(sym, Py) and _is_data(sym.obj)


def _is_data(obj: Any) -> bool:
    """Can this Python object be a run-time value?"""
    return obj is None or isinstance(obj, int) or is_struct(type(obj)) or is_value(type(obj))


def _handlers(prefix: str, base: type[ast.AST]) -> dict[type[ast.AST], Callable[[Body, Any], Any]]:
    """Node type -> the method of Body that compiles it."""
    methods = {name.removeprefix(prefix): fn for name, fn in vars(Body).items() if name.startswith(prefix)}
    return {cls: methods[cls.__name__.lower()] for cls in base.__subclasses__() if cls.__name__.lower() in methods}


_EXPRESSIONS = _handlers("expr_", ast.expr)
_STATEMENTS = _handlers("stmt_", ast.stmt)

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
