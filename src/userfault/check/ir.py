"""The intermediate representation: what the compiler emits and what every engine executes.

A `Program` is a set of threads over a vector of shared, bounded integer *cells*. A thread's code is a list of
`Instr`; an instruction whose `step` flag is set begins a *step*. One transition of the program executes one thread from
the step it stands at up to (not including) the next instruction with `step` set, or to END, without interruption.
So a step is one shared access, lock operation or atomic, followed by purely local work.

Operands `a` and `b` are ints: `>= 0` is a local of the thread, `< 0` is the constant `program.consts[-1 - operand]`.

=========  ==================================================================================================
MOV        d := a
ADD..LE    d := a (op) b; comparisons give 0 or 1
NOT        d := not a
LOAD       d := cells[base + a]; a outside [lo, hi] is a violation of `dereference`
STORE      cells[base + a] := b; a outside [lo, hi] is a violation of `dereference`; b outside the cell's
           range is a violation of `range`
LOADK      d := program.tables[base][a + b] (b: a plain number); a outside [lo, hi] is a violation of `dereference`
BR         a != 0: goto base, else goto lo
JMP        goto base
WAIT       a == 0: the whole step is undone and the thread is not enabled in this state
FAIL       violation number base of program.failures
CHOOSE     d := each of 0..base-1; the step has one successor per value
REACH      the `sometimes` property number base was reached
END        the thread has finished
=========  ==================================================================================================
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, overload

from .types import NoneT, Scalar

if TYPE_CHECKING:
    from .heap import Heap


class Op(enum.IntEnum):
    MOV = 0
    ADD = 1
    SUB = 2
    MUL = 3
    AND = 4
    OR = 5
    XOR = 6
    SHL = 7
    SHR = 8
    EQ = 9
    NE = 10
    LT = 11
    LE = 12
    NOT = 13
    LOAD = 14
    STORE = 15
    LOADK = 16
    BR = 17
    JMP = 18
    WAIT = 19
    FAIL = 20
    CHOOSE = 21
    REACH = 22
    END = 23


WRITES_D = frozenset(Op) - {Op.STORE, Op.BR, Op.JMP, Op.WAIT, Op.FAIL, Op.REACH, Op.END}
"""The operations whose `d` is the local that they write."""

READS_A = frozenset(Op) - {Op.JMP, Op.FAIL, Op.CHOOSE, Op.REACH, Op.END}
"""The operations whose `a` is an operand that they read."""

READS_B = READS_A - {Op.MOV, Op.NOT, Op.LOAD, Op.LOADK, Op.BR, Op.WAIT}
"""The operations whose `b` is an operand that they read."""


class Instr(NamedTuple):
    """One instruction; see the module's table for the meaning of the fields per `op`."""

    op: Op
    d: int = 0
    a: int = 0
    b: int = 0
    base: int = 0
    lo: int = 0
    hi: int = 0
    step: bool = False
    source: int = 0


OPS = tuple(Op)


class Code(Sequence[Instr]):
    """Instructions as the native core hands them over: nine words each, taken apart when somebody asks for one."""

    __slots__ = ("_made", "words")

    def __init__(self, words: array[int]) -> None:
        self.words = words
        self._made: list[Instr | None] = [None] * (len(words) // 9)

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, at: int) -> Instr: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Instr]: ...
    def __getitem__(self, at: int | slice) -> Instr | Sequence[Instr]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        made = self._made[at]
        if made is None:
            first = 9 * (at if at >= 0 else at + len(self))
            op, d, a, b, base, lo, hi, step, source = self.words[first : first + 9]
            made = self._made[at] = Instr(OPS[op], d, a, b, base, lo, hi, bool(step), source)
        return made


class Source(NamedTuple):
    """A line of the model: what a trace shows."""

    file: str
    line: int
    function: str
    text: str


class Failure(NamedTuple):
    """A property and the words printed when it breaks."""

    property: str
    message: str


@dataclass(slots=True)
class Cell:
    """A shared variable. `thread_id` marks values that name a thread (0 none, 1 + thread), for symmetry.

    `owned` marks an ownership cell of a lock: while it names thread t (or, for a `per_thread` flag of t, while it is
    set), no other thread changes it. Reductions rely on that; the primitives of the model assert it.
    `kind`: its type. `owner`: the object (from 1, in its struct's pool) of which it is this field.
    """

    name: str
    lo: int
    hi: int
    init: int
    show: Callable[[int], str] = str
    thread_id: bool = False
    per_thread: int = 0
    owned: bool = False
    kind: Scalar | None = None
    owner: tuple[type, int, str] | None = None


@dataclass(slots=True)
class Local:
    """A local variable of one thread; `lo`..`hi` bounds its value wherever it is live at a step."""

    name: str
    lo: int
    hi: int
    show: Callable[[int], str] = str
    thread_id: bool = False
    kind: Scalar | NoneT | None = None


@dataclass(slots=True)
class Thread:
    """`live`: at each instruction that begins a step, the locals whose values may still be read, as a bit set."""

    name: str
    code: Sequence[Instr]
    locals: list[Local]
    live: dict[int, int]


@dataclass(slots=True)
class Spec:
    """Code over the shared cells that runs in one go: an invariant, or the condition on final states.

    It may read cells, never write them; it FAILs or runs to END. An observer (outcomes.py) writes the one cell that is its own.
    """

    name: str
    code: Sequence[Instr]
    locals: list[Local]


@dataclass(slots=True)
class Program:
    name: str
    cells: list[Cell]
    threads: list[Thread]
    consts: list[int]
    tables: list[list[int]]
    sources: list[Source]
    failures: list[Failure]
    sometimes: list[str] = field(default_factory=list)
    invariants: list[Spec] = field(default_factory=list)
    finals: list[Spec] = field(default_factory=list)
    observers: list[Spec] = field(default_factory=list)
    observed: list[int] = field(default_factory=list)
    """The cell that each observer writes."""
    heap: Heap | None = None
    """The objects whose fields the cells are."""
    table_fields: list[tuple[type, str]] = field(default_factory=list)
    """The constant field that each table holds, of all objects."""
    pools: Mapping[type, tuple[str, ...]] = field(default_factory=dict)
    """As `compile_program` was told."""

    def const(self, value: int) -> int:
        """The operand for a constant."""
        try:
            return -1 - self.consts.index(value)
        except ValueError:
            self.consts.append(value)
            return -len(self.consts)


ARITHMETIC: dict[Op, Callable[[int, int], int]] = {
    Op.ADD: lambda a, b: a + b,
    Op.SUB: lambda a, b: a - b,
    Op.MUL: lambda a, b: a * b,
    Op.AND: lambda a, b: a & b,
    Op.OR: lambda a, b: a | b,
    Op.XOR: lambda a, b: a ^ b,
    Op.SHL: lambda a, b: a << b,
    Op.SHR: lambda a, b: a >> b,
    Op.EQ: lambda a, b: int(a == b),
    Op.NE: lambda a, b: int(a != b),
    Op.LT: lambda a, b: int(a < b),
    Op.LE: lambda a, b: int(a <= b),
}
"""What the binary operations mean."""
