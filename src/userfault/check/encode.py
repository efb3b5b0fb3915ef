"""A program as native/explore.h wants it: its code, and where in a packed state everything lies.

native/explore_encode.c makes each step a run of instructions on packed words, when a search first comes to it.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from ctypes import c_int32, c_void_p
from itertools import chain

from . import ir
from .errors import CheckError, TooLarge
from .explore import Machine
from .ir import READS_A, READS_B
from .layout import Layout, Place
from .reduce import Reduction
from .result import Options

MAX_WORDS, MAX_THREADS, MAX_INVARIANTS, MAX_FIELDS, MAX_SOMETIMES = 255, 16, 64, 64, 256
MAX_CHOICES = 16

WORD = (1 << 64) - 1


class Body(ctypes.Structure):
    """`body` of native/explore.h."""

    _fields_ = (
        ("code", c_void_p),
        ("locals", c_void_p),
        ("step_at", c_void_p),
        ("live", c_void_p),
        ("frame", c_void_p),
        ("count", c_int32),
        ("locals_count", c_int32),
        ("steps", c_int32),
        ("live_words", c_int32),
    )


class Encoder:
    """The `program` of native/explore.h, but for what differs from one search to the next.

    made: what native/explore_encode.c allocated, freed with the encoder. reached: the `sometimes` properties reached before
    anybody's first step.
    """

    def __init__(self, program: ir.Program, options: Options, lib: ctypes.CDLL) -> None:
        self.program = program
        if len(program.threads) > MAX_THREADS:
            raise CheckError(f"{program.name}: the native engine runs up to {MAX_THREADS} threads")
        if len(program.invariants) > MAX_INVARIANTS:
            raise CheckError(f"{program.name}: the native engine evaluates up to {MAX_INVARIANTS} invariants")
        self.layout = layout = Layout(program, options.dead_locals)
        if layout.words > MAX_WORDS:
            raise TooLarge(f"{program.name}: a state needs {layout.words} words, the native engine holds {MAX_WORDS}")
        if len(program.sometimes) > MAX_SOMETIMES:
            raise CheckError(f"{program.name}: the native engine notes up to {MAX_SOMETIMES} `sometimes` properties")
        for number, thread in enumerate(program.threads):
            for local, place in layout.locals[number].items():
                if not -1 << 31 <= place.lo <= place.hi < 1 << 31:
                    name = thread.locals[local].name or "a local"
                    raise TooLarge(
                        f"{program.name}: {name} may need {place.bits} bits and does not fit in 32: the native engine's words"
                    )
        self.kept: list[array[int]] = []
        self.tables = array("i")
        self.table_at = array("i")
        for table in program.tables:
            self.table_at.append(len(self.tables))
            self.tables.extend(table)
        owners: list[ir.Thread | ir.Spec] = [*program.threads, *program.invariants, *program.finals]
        self.reg_count = max(len(owner.locals) for owner in owners) + len(program.consts) + 1
        self.first_const = self.reg_count - len(program.consts)
        self.consts = fitting(program, owners)
        self.cell_words = len(program.cells) // 64 + 1
        self.seen_by = array("Q", bytes(8 * self.cell_words * len(program.invariants)))
        self.max_pc = max(len(numbers) for numbers in layout.numbers) + 1
        self.entry = array("Q", bytes(8 * self.max_pc * len(program.threads)))
        self.affects = array("Q", bytes(8 * self.max_pc * len(program.threads)))
        self.spec_entry = array("Q", bytes(8 * (len(program.invariants) + len(program.finals))))
        self.bodies = (Body * len(owners))(
            *(self.thread(number, thread) for number, thread in enumerate(program.threads)),
            *(
                Body(code=self.keep(words_of(spec.code)), count=len(spec.code))
                for spec in [*program.invariants, *program.finals]
            ),
        )
        self.made = c_void_p()
        self.failed = c_int32()
        weakref.finalize(self, _forget, lib, self.made)
        machine = Machine(program, options.dead_locals)
        start = machine.initial()
        self.reached = frozenset(machine.reached)
        words = [0] * layout.words
        for place, cell in zip(layout.cells, program.cells, strict=True):
            layout.put(words, place, cell.init)
        for number in range(len(program.threads)):
            pc = machine.pc(start, number)
            layout.put(words, layout.pc[number], layout.numbers[number].get(pc, len(layout.numbers[number])))
            if pc >= 0:
                frame = start[machine.cell_count + 2 * number + 1]
                for local, value in zip(machine.live[number][pc], frame, strict=True):  # type: ignore[call-overload]
                    layout.put(words, layout.locals[number][local], value)
        self.initial = array("Q", words)

    def keep(self, words: array[int]) -> int:
        """The address of an array that lives as long as the encoder."""
        self.kept.append(words)
        return words.buffer_info()[0]

    def thread(self, number: int, thread: ir.Thread) -> Body:
        """`body` of native/explore.h: a thread's code and frame."""
        layout = self.layout
        places, live = layout.locals[number], layout.live[number]
        count = max(places, default=-1) + 1
        words = (count + 63) // 64
        unused = Place(0, 0, 0, 0, 0)
        frame = [0] * layout.words
        for place in [*places.values(), layout.pc[number]]:
            frame[place.word] |= ((1 << place.bits) - 1) << place.shift
        return Body(
            code=self.keep(words_of(thread.code)),
            locals=self.keep(cells_of([places.get(local, unused) for local in range(count)])),
            step_at=self.keep(array("i", live)),
            live=self.keep(array("Q", [each >> 64 * at & WORD for each in live.values() for at in range(words)])),
            frame=self.keep(array("Q", frame)),
            count=len(thread.code),
            locals_count=count,
            steps=len(live),
            live_words=words,
        )

    def registers(self, rows: int) -> array[int]:
        row = array("i", [0]) * self.first_const + self.consts
        return row * max(rows, 1)

    def persistent_sets(self, reduction: Reduction) -> tuple[array[int], array[int], int]:
        """`alone`, `rows` and `row_words` of native/explore.h."""
        threads = len(self.program.threads)
        words = (self.max_pc + 64) // 64
        alone = array("i", [-1]) * (self.max_pc * threads * threads)
        rows = array("Q")
        places: dict[int, int] = {}
        for t, table in enumerate(reduction.rows):
            for pc, row in table.items():
                at = (t * self.max_pc + self.layout.numbers[t][pc]) * threads
                for u, fine in enumerate(row):
                    if fine not in places:
                        places[fine] = len(places)
                        rows.extend(fine >> 64 * word & (1 << 64) - 1 for word in range(words))
                    alone[at + u] = places[fine]
        return alone, rows, words

    def alike(self, groups: list[list[int]]) -> array[int]:
        """`alike` of native/explore.h. Alike threads have alike frames: the same slots, elsewhere."""
        out = array("i", [0])
        for group in groups:
            frames = [self.slots(thread) for thread in group]
            if len(frames[0]) > MAX_FIELDS or any([m for *_, m in f] != [m for *_, m in frames[0]] for f in frames):
                continue
            out[0] += 1
            out.extend((len(group), len(frames[0]), *group))
            for frame in frames:
                for word, shift, mask in frame:
                    out.extend((word, shift, signed(mask)))
        return out

    def slots(self, thread: int) -> list[tuple[int, int, int]]:
        """(word, shift, mask) of a thread's place, then of the bits that its locals share."""
        widest: dict[tuple[int, int], int] = {}
        for place in self.layout.locals[thread].values():
            if place.bits:
                at = place.word, place.shift
                widest[at] = max(widest.get(at, 0), place.bits)
        pc = self.layout.pc[thread]
        return [
            (pc.word, pc.shift, (1 << pc.bits) - 1),
            *((word, shift, (1 << width) - 1) for (word, shift), width in widest.items()),
        ]


def _forget(lib: ctypes.CDLL, made: c_void_p) -> None:
    lib.uf_forget(made)


def fitting(program: ir.Program, owners: Sequence[ir.Thread | ir.Spec]) -> array[int]:
    """The constants as the engine's words, 0 for one too large. Raises CheckError if the code reads such a one.

    The constants are those of all programs of the process.
    """
    large = {-1 - at: value for at, value in enumerate(program.consts) if not -(1 << 31) <= value < 1 << 31}
    for owner in owners if large else ():
        words = words_of(owner.code)
        for op, a, b in zip(words[0::9], words[2::9], words[3::9], strict=True):
            read = a if a in large and op in READS_A else b if b in large and op in READS_B else 0
            if read:
                raise CheckError(f"{program.name}: {large[read]} does not fit in 32 bits: the native engine's words")
    return array("i", [0 if -1 - at in large else value for at, value in enumerate(program.consts)])


def words_of(code: Sequence[ir.Instr]) -> array[int]:
    """Instructions as nine words each."""
    return code.words if isinstance(code, ir.Code) else array("i", chain.from_iterable(code))


def cells_of(places: Sequence[Place]) -> array[int]:
    """Places as `cell` of native/explore.h."""
    return array("i", [x for p in places for x in (p.word, p.shift, signed((1 << p.bits) - 1), p.lo, p.hi)])


def signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
