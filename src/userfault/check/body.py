"""The code of one thread (or invariant) while it is emitted: instructions, accesses to the heap, and inlined calls."""

from __future__ import annotations

import ast
import enum
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from struct import Struct
from typing import Any, NoReturn

from .errors import CheckError, CompileError
from .intrinsics import intrinsic
from .ir import ARITHMETIC, Failure, Op
from .names import CONSTANTS, FAILURES, FIELDS
from .source import NO_DEFAULT, Function, parse
from .statements import block
from .symbols import Frame, Label, Py, Sym, Unreachable, Val, is_data
from .template import CALLER, WIDTH, Log, Template, describe, move, share
from .types import (
    BOOL,
    INT,
    NONE,
    ListT,
    NoneT,
    RefT,
    Scalar,
    Type,
    ValT,
    from_enum,
    is_struct,
    is_value,
    struct_fields,
)
from .unit import Unit

MAX_CODE = 60_000
"""Instructions of one thread; more means a loop that unrolls without end."""


_packed = Struct(f"{WIDTH}i").pack

_BASE, _LO = 4, 5
"""Where in a row the targets of a jump stand."""


_NOWHERE, _THERE = ast.parse("def f(): pass\nf()").body
"""In place of the text that makes the calls of a thread, and of a call."""


def constant(value: int) -> int:
    """The operand for a constant."""
    return -1 - CONSTANTS[value]


class Body:
    """The code of one thread (or invariant) while it is being emitted.

    cpu: the thread's number. spec: it is an invariant, which runs in one go. writes: it may write.
    """

    def __init__(self, unit: Unit, cpu: int, spec: bool, writes: bool = True) -> None:
        self.unit = unit
        self.heap = unit.heap
        self.cpu = cpu
        self.spec = spec
        self.writes = writes
        self.words = array("i")
        """The rows, see template.Row."""
        self.targets: list[tuple[int, int, Label]] = []
        self.locals: list[tuple[str, Scalar | NoneT]] = []
        self.frames: list[Frame] = []
        self.sources: list[int] = [0]
        self.ghost = 1 if spec else 0
        self.atomic = 0
        self.dead = False
        self.hooks = 0
        self.mutable: set[int] = set()
        self.steps = 0
        self.raw = 0
        self.asked = False

    # -- emission -----------------------------------------------------------------------------------------------------

    def emit(self, op: Op, d: int = 0, a: int = 0, b: int = 0, base: int = 0, lo: int = 0, hi: int = 0) -> None:
        if not self.dead:
            self.words.frombytes(_packed(op, d, a, b, base, lo, hi, False, self.sources[-1]))

    def begin_step(self) -> None:
        """What follows can be interleaved with what came before."""
        if not self.dead:
            self.words.frombytes(_packed(Op.JMP, 0, 0, 0, 1, 0, 0, True, self.sources[-1]))
            self.steps += 1

    def label(self, target: Label) -> None:
        """The label stands here; code after it can be reached if anybody jumps to it."""
        target.at = len(self.words)
        if target.used:
            self.dead = False

    def aim(self, at: int, slot: int, target: Label) -> None:
        target.used = True
        self.targets.append((at, slot, target))

    def jump(self, target: Label) -> None:
        if self.dead:
            return
        self.aim(len(self.words), _BASE, target)
        self.emit(Op.JMP)
        self.dead = True

    def branch(self, cond: Val, yes: Label, no: Label) -> None:
        if self.dead:
            return
        if cond.operand < 0:
            self.jump(yes if self.value(cond) else no)
            return
        self.aim(len(self.words), _BASE, yes)
        self.aim(len(self.words), _LO, no)
        self.emit(Op.BR, a=cond.operand)
        self.dead = True

    def resolve(self, first: int) -> None:
        """The jumps noted since then, whose labels all stand by now: from the jump to the label."""
        for at, slot, label in self.targets[first:]:
            assert label.at >= 0
            self.words[at + slot] = (label.at - at) // WIDTH
        del self.targets[first:]

    def finish(self) -> None:
        self.dead = False
        self.emit(Op.END)
        self.resolve(0)

    def local(self, name: str, kind: Scalar | NoneT) -> int:
        self.locals.append((name, kind))
        return len(self.locals) - 1

    def const(self, kind: Scalar | NoneT, value: int) -> Val:
        return Val(kind, constant(value))

    def value(self, val: Val) -> int:
        """The compile-time value of a constant."""
        return CONSTANTS.named[-1 - val.operand]

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
        if val.type is kind or isinstance(kind, NoneT | ListT):
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

    def single(self, sym: Sym, node: ast.AST) -> Val:
        """A value that an instruction can take."""
        if isinstance(sym, Val):
            return sym
        if isinstance(sym, Py):
            return self.lift(sym, node)
        self.refuse(node, "this is not a single value", "an int, a bool, a reference or a value type")

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

    def rebase(self, val: Val, have: RefT, want: RefT, node: ast.AST) -> Val:
        common = [cls for cls in have.structs if cls in want.structs]
        if not common:
            self.refuse(node, "a reference to another struct", "a reference of the field's type")
        shift = self.unit.ask("offset", want, common[0]) - self.unit.ask("offset", have, common[0])
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
        self.emit(Op.ADD, d=out, a=val.operand, b=constant(shift))
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
            return self.const(from_enum(type(obj)), int(obj))
        if isinstance(obj, int):
            return self.const(INT, obj)
        if is_struct(type(obj)):
            kind = RefT((type(obj),))
            word = self.unit.ask("word", kind, obj)
            if word is None:
                self.refuse(
                    node,
                    "this object was not there when the program was compiled",
                    "an object reachable from the machine",
                )
            return self.const(kind, word)
        if is_value(type(obj)):
            kind2 = ValT(type(obj))
            return self.const(kind2, self.unit.ask("word", kind2, obj))
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
                    offset = self.const(INT, self.unit.ask("offset", union, cls))
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
        if self.raw or any((struct, obj.operand) in frame.sane for frame in self.frames):
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
            index, lo, hi, shift = self.address(obj, at, length)
            d = self.local(name, scalar)
            self.emit(Op.LOADK, d=d, a=index.operand, base=FIELDS[struct, name], lo=lo, hi=hi, b=shift)
            if fixed is not None:
                return fixed
            never_null = isinstance(scalar, RefT) and 0 not in values
            return Val(scalar, d, values if never_null else None)
        number = FIELDS[struct, name]
        index, lo, hi, shift = self.access(struct, obj, at, length, node)
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
        number = FIELDS[struct, name]
        index, lo, hi, shift = self.access(struct, obj, at, length, node)
        self.emit(Op.STORE, d=number, a=index.operand, b=value.operand, base=shift, lo=lo, hi=hi)

    def access(self, struct: type, obj: Val, at: Val | None, length: int, node: ast.AST) -> tuple[Val, int, int, int]:
        """What is shared is accessed here: `address`, in a step of its own unless an atomic one is under way."""
        if not (self.atomic or self.ghost):
            self.begin_step()
        if "__on_access__" in struct.__dict__:
            self.atomic += 1
            try:
                self.hook(struct, obj, node)
            finally:
                self.atomic -= 1
        return self.address(obj, at, length)

    def address(self, obj: Val, at: Val | None, length: int) -> tuple[Val, int, int, int]:
        """(index operand, its least and greatest legal value, what to add to the base).

        The cell of place `at` of object `obj` (from 1) is base + (obj - 1) * length + at. The greatest value is told from
        the number of the field's cells (Unit.span), so that the code does not depend on how many objects there are.
        """
        scaled = self.binary(Op.MUL, obj, self.const(INT, length))
        if at is None or at.operand < 0:
            place = self.value(at) if at is not None else 0
            if scaled.operand < 0:
                return self.const(INT, self.value(scaled) - length + place), 0, -1, 0
            return scaled, length, 0, place - length
        return self.binary(Op.ADD, scaled, at), length, length - 1, -length

    def fail(self, property: str, message: str) -> None:
        self.emit(Op.FAIL, base=FAILURES[Failure(property, message)])
        self.dead = True

    # -- calls --------------------------------------------------------------------------------------------------------

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Everything within is one step (part of the step around it, if there is one)."""
        if self.shared():
            self.begin_step()
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

    def call_toplevel(self, fn: Callable[..., Any], given: Sequence[Any], into: tuple[Any, str] | None) -> None:
        """An operation of a thread; its result goes to a field of a struct object."""
        args: list[Sym] = [Py(arg) for arg in given]
        wrapper = Function(fn, fn.__name__, "", 1, [""], 0, _NOWHERE, {}, {})  # type: ignore[arg-type]
        self.frames.append(Frame(wrapper, {}, Label()))
        try:
            result = self.call(fn, args, {}, _THERE)
            if into is not None:
                obj, name = into
                kind = struct_fields(type(obj))[name]
                target = self.lift(Py(obj), _THERE)
                with self.no_step():
                    self.store(type(obj), name, kind, target, None, self.convert(result, kind, _THERE), _THERE)
        except Unreachable:
            pass
        self.frames.pop()

    def call(self, fn: Callable[..., Any], args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Sym:
        special = getattr(fn, "__intrinsic__", None)
        if special is not None:
            return intrinsic(self, special, args, node)
        if fn in self.unit.substitute:
            fn = self.unit.substitute[fn]
            self.unit.log.own = True
        if len(self.words) > MAX_CODE * WIDTH:
            name = self.unit.name
            raise CheckError(f"{name}: a thread needs over {MAX_CODE} instructions: does a loop unroll without end?")
        known = describe(self, fn, args, kwargs) if self.unit.reuse and not self.dead else None
        if known is None:
            return self.inline(fn, args, kwargs, node)
        key, params = known
        template = self.unit.find(key) or self.unit.find((key, self.cpu))
        if template is None:
            return self.record(key, params, fn, args, kwargs, node)
        self.unit.log.add(template.log)
        self.asked |= template.cpu >= 0
        self.steps += template.steps
        first_local = len(self.locals)
        template.place(self.words, params, first_local, self.sources[-1])
        self.locals += template.locals
        if template.result is None:
            self.dead = True
            raise Unreachable
        return template.moved(template.result, params, first_local, self.mutable)

    def inline(self, fn: Callable[..., Any], args: list[Sym], kwargs: dict[str, Sym], node: ast.AST) -> Sym:
        function = parse(fn)
        self.unit.log.functions.add(fn)
        if len(self.frames) > 40 and any(frame.function.fn is fn for frame in self.frames):
            self.refuse(node, f"{function.name} calls itself", "a loop")
        is_atomic = getattr(fn, "__atomic__", False)
        is_ghost = getattr(fn, "__ghost__", False)
        if self.shared() and (is_atomic or (is_ghost and not self.steps)):
            self.begin_step()
        is_raw = getattr(fn, "__raw__", False)
        frame = Frame(function, {}, Label(), raw=is_raw)
        self.bind(frame, args, kwargs, node)
        self.frames.append(frame)
        self.raw += is_raw
        self.atomic += is_atomic
        self.ghost += is_ghost
        if is_atomic:
            self.sanitize_once(frame, node)
        block(self, function.node.body)
        self.raw -= is_raw
        self.atomic -= is_atomic
        self.ghost -= is_ghost
        self.label(frame.exit)
        self.frames.pop()
        if self.dead:
            raise Unreachable
        return frame.result if frame.result is not None else Py(None)

    def record(
        self,
        key: Hashable,
        params: list[int],
        fn: Callable[..., Any],
        args: list[Sym],
        kwargs: dict[str, Sym],
        node: ast.AST,
    ) -> Sym:
        """Inline a call, and keep what comes of it for the next one like it."""
        unit = self.unit
        first_word, first_local, first_target = len(self.words), len(self.locals), len(self.targets)
        outer, unit.log = unit.log, Log()
        asked, self.asked = self.asked, False
        # What is trusted first and written later, in the call itself, makes the template stale at once.
        writes, steps = unit.writes, self.steps
        self.sources.append(CALLER)
        result: Sym | None = None
        with suppress(Unreachable):
            result = self.inline(fn, args, kwargs, node)
        self.sources.pop()
        self.resolve(first_target)
        # Made from text (a condition, a mutant), or given an object of this program alone.
        unit.log.own |= hasattr(fn, "__source__") or any(
            isinstance(arg, Py) and is_struct(type(arg.obj)) for arg in args
        )
        template = Template(
            self.words[first_word:],
            self.locals[first_local:],
            first_local,
            params,
            result,
            self.mutable,
            self.steps - steps,
            unit.log,
            self.cpu if self.asked else -1,
        )
        if self.asked:
            key = (key, self.cpu)
        unit.templates[key] = template, writes
        if not unit.log.own:
            share(key, template)
        self.asked |= asked
        outer.add(unit.log)
        unit.log = outer
        source = self.sources[-1]
        if source != CALLER:
            move(self.words, first_word, params, params, first_local, first_local, source)
        if result is None:
            raise Unreachable
        return result

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
            data = isinstance(sym, Val) or (isinstance(sym, Py) and is_data(sym.obj))
            if data and kind is not None and not isinstance(kind, ListT):
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

    def retype(self, slot: int, kind: Scalar) -> None:
        self.locals[slot] = (self.locals[slot][0], kind)
