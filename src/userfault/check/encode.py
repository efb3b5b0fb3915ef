"""A program in the form that native/explore_step.c executes.

A step becomes one run of instructions: load the locals and cells that it reads, compute, store, clear the bits of the
locals that died, set the new place. It is translated when a search first comes to it: most steps are never reached.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from . import ir
from .analysis import bits, successors
from .errors import CheckError, TooLarge
from .explore import Machine
from .ir import READS_A, READS_B, WRITES_D, Op
from .layout import Layout, Place
from .reduce import Reduction
from .result import Options

MAX_WORDS, MAX_THREADS, MAX_INVARIANTS, MAX_FIELDS, MAX_SOMETIMES = 255, 16, 64, 64, 256
MAX_CHOICES = 16

(MOV, ADD, SUB, MUL, AND, OR, XOR, SHL, SHR, EQ, NE, LT, LE, NOT) = range(14)
(LD, ST, LDX, STX, LDK, BR, JMP, WAIT, FAIL, CHOOSE, REACH) = range(14, 25)
(EQ_BR, NE_BR, LT_BR, LE_BR, NOT_BR, KEEP, RET) = range(25, 32)
WITH_BRANCH = {EQ: EQ_BR, NE: NE_BR, LT: LT_BR, LE: LE_BR, NOT: NOT_BR}

LOW = (1 << 32) - 1


class Encoder:
    """The `program` of native/explore.h."""

    def __init__(self, program: ir.Program, options: Options) -> None:
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
        self.code = array("i")
        self.kept: list[array[int]] = []
        self.frames = [self.frame_bits(number) for number in range(len(program.threads))]
        self.tables = array("i")
        self.table_at: list[int] = []
        for table in program.tables:
            self.table_at.append(len(self.tables))
            self.tables.extend(table)
        owners: list[ir.Thread | ir.Spec] = [*program.threads, *program.invariants, *program.finals]
        self.reg_count = max(len(owner.locals) for owner in owners) + len(program.consts) + 1
        self.first_const = self.reg_count - len(program.consts)
        self.seen_by = [self.cells_of(spec.code, False) for spec in program.invariants]
        self.max_pc = max(len(numbers) for numbers in layout.numbers) + 1
        self.steps = [list(numbers) for numbers in layout.numbers]
        self.entry = array("Q", [0]) * (self.max_pc * len(program.threads))
        self.affects = array("Q", [0]) * (self.max_pc * len(program.threads))
        self.spec_entry = array("Q")
        for spec in [*program.invariants, *program.finals]:
            self.region(spec.code, 0, list(range(len(spec.code))), None)
            self.spec_entry.append(self.keep())
        machine = Machine(program, options.dead_locals)
        start = machine.initial()
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

    def frame_bits(self, number: int) -> dict[int, int]:
        """Word -> the bits of a thread's locals and place in it."""
        layout = self.layout
        frame: dict[int, int] = {}
        for place in [*layout.locals[number].values(), layout.pc[number]]:
            if place.bits:
                frame[place.word] = frame.get(place.word, 0) | ((1 << place.bits) - 1) << place.shift
        return frame

    def keep(self) -> int:
        """The address of the run of instructions that is complete now."""
        self.kept.append(self.code)
        self.code = array("i")
        return self.kept[-1].buffer_info()[0]

    def translate_step(self, thread: int, number: int) -> int:
        """`translate` of native/explore.h: the code of a step, and which invariants it may change."""
        written = self.step(thread, self.program.threads[thread], self.steps[thread][number])
        mask = sum(1 << i for i, cells in enumerate(self.seen_by) if cells & written)
        self.affects[thread * self.max_pc + number] = mask
        return self.keep()

    def nothing(self) -> int:
        """A step that changes nothing."""
        self.code = array("i")
        self.emit(RET)
        return self.keep()

    def size(self) -> int:
        return len(self.code) // 8

    def emit(self, op: int, d: int = 0, a: int = 0, b: int = 0, x: int = 0, y: int = 0, z: int = 0, w: int = 0) -> int:
        self.code.extend((op, d, a, b, x, y, z, w))
        return len(self.code) // 8 - 1

    def operand(self, operand: int) -> int:
        return operand if operand >= 0 else self.first_const - 1 - operand

    def cells_of(self, code: Sequence[ir.Instr], written: bool) -> int:
        """The cells that code may read (or write), as a bit set."""
        mask = 0
        for instr in code:
            if instr.op is (Op.STORE if written else Op.LOAD):
                if instr.a < 0:
                    mask |= 1 << instr.base + self.program.consts[-1 - instr.a]
                else:
                    mask |= ((1 << instr.hi - instr.lo + 1) - 1) << instr.base + instr.lo
        return mask

    def step(self, number: int, thread: ir.Thread, pc: int) -> int:
        """Translate one step; returns the cells that it may write."""
        code = thread.code
        order: list[int] = []
        seen = {pc}
        work = [pc]
        while work:
            at = work.pop()
            order.append(at)
            for after in reversed(successors(code, at)):
                if after not in seen and not code[after].step:
                    seen.add(after)
                    work.append(after)
        used, defined = 0, 0
        for at in order:
            instr = code[at]
            op = instr.op
            if op in READS_A and instr.a >= 0:
                used |= 1 << instr.a
            if op in READS_B and instr.b >= 0:
                used |= 1 << instr.b
            if op in WRITES_D:
                defined |= 1 << instr.d
        for local in bits((used | defined) & self.layout.live[number][pc]):
            self.load(local, self.layout.locals[number][local])
        self.region(code, pc, order, (number, defined))
        return self.cells_of([code[at] for at in order], True)

    def load(self, d: int, place: Place) -> None:
        self.emit(LD, d=d, x=place.word, y=place.shift, z=(1 << place.bits) - 1, w=place.lo)

    def region(self, code: Sequence[ir.Instr], first: int, order: list[int], thread: tuple[int, int] | None) -> None:
        """Instructions of one step (or spec), in order; what leaves it goes to an exit that packs the state."""
        at_of: dict[int, int] = {}
        fix: list[tuple[int, int, int]] = []
        inside = set(order)
        landed = {at for pc in order if code[pc].op in (Op.BR, Op.JMP) for at in (code[pc].base, code[pc].lo)}
        for position, pc in enumerate(order):
            at_of[pc] = self.size()
            instr = code[pc]
            following = order[position + 1] if position + 1 < len(order) else -1
            self.translate(instr)
            if instr.op is Op.BR:
                at = len(self.code) // 8 - 1
                compared = WITH_BRANCH.get(self.code[at * 8]) if at >= 0 else None
                if compared is not None and self.code[at * 8 + 1] == instr.a and pc not in landed and pc != first:
                    self.code[at * 8] = compared
                else:
                    at = self.emit(BR, a=self.operand(instr.a))
                fix += [(at, 4, instr.base), (at, 5, instr.lo)]
            elif instr.op is Op.END:
                fix.append((self.emit(JMP), 4, -1))
            elif instr.op is not Op.FAIL:
                after = instr.base if instr.op is Op.JMP else pc + 1
                if after != following or code[after].step:
                    fix.append((self.emit(JMP), 4, after))
        exits: dict[int, int] = {}
        for at, slot, target in fix:
            if (
                target in inside
                and target in at_of
                and not (target != first and code[target].step)
                and not (target == first and code[first].step)
            ):
                self.code[at * 8 + slot] = at_of[target]
                continue
            if target not in exits:
                exits[target] = self.size()
                self.leave(thread, target)
            self.code[at * 8 + slot] = exits[target]

    def leave(self, thread: tuple[int, int] | None, target: int) -> None:
        """The step is over, the thread stands at `target` (-1: it has ended)."""
        if thread is not None:
            number, defined = thread
            layout = self.layout
            alive = layout.live[number][target] if target >= 0 else 0
            pc = layout.pc[number]
            keep = dict(self.frames[number])
            for local in bits(alive & ~defined):
                place = layout.locals[number][local]
                if place.bits:
                    keep[place.word] &= ~(((1 << place.bits) - 1) << place.shift)
            value = layout.numbers[number][target] if target >= 0 else len(layout.numbers[number])
            for word, clear in keep.items():
                mask = ~clear & (1 << 64) - 1
                here = value << pc.shift if word == pc.word else 0
                self.emit(
                    KEEP, x=word, y=signed(mask & LOW), z=signed(mask >> 32), d=signed(here & LOW), a=signed(here >> 32)
                )
            for local in bits(alive & defined):
                self.store(local, layout.locals[number][local])
        self.emit(RET)

    def store(self, source: int, place: Place) -> None:
        self.emit(
            ST,
            a=place.hi - place.lo,
            b=source,
            x=place.word,
            y=place.shift,
            z=signed((1 << place.bits) - 1),
            w=place.lo,
        )

    def translate(self, instr: ir.Instr) -> None:
        """One instruction, jumps apart."""
        op, a, b = instr.op, self.operand(instr.a), self.operand(instr.b)
        program = self.program
        if op is Op.LOAD:
            if instr.a < 0 and instr.lo <= program.consts[-1 - instr.a] <= instr.hi:
                self.load(instr.d, self.layout.cells[instr.base + program.consts[-1 - instr.a]])
            else:
                self.emit(LDX, d=instr.d, a=a, x=instr.base, y=instr.lo, z=instr.hi)
        elif op is Op.STORE:
            if instr.a < 0 and instr.lo <= program.consts[-1 - instr.a] <= instr.hi:
                self.store(b, self.layout.cells[instr.base + program.consts[-1 - instr.a]])
            else:
                self.emit(STX, a=a, b=b, x=instr.base, y=instr.lo, z=instr.hi)
        elif op is Op.LOADK:
            self.emit(LDK, d=instr.d, a=a, x=self.table_at[instr.base] + instr.b, y=instr.lo, z=instr.hi)
        elif op is Op.WAIT:
            self.emit(WAIT, a=a)
        elif op is Op.FAIL:
            self.emit(FAIL, x=instr.base)
        elif op is Op.CHOOSE:
            self.emit(CHOOSE, d=instr.d, x=instr.base)
        elif op is Op.REACH:
            self.emit(REACH, x=instr.base)
        elif op <= Op.NOT:
            self.emit(int(op), d=instr.d, a=a, b=b if op not in (Op.MOV, Op.NOT) else 0)

    def registers(self, rows: int) -> array[int]:
        row = array("i", [0]) * self.first_const + array("i", self.program.consts)
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
            out.extend((len(group), len(frames[0])))
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


def signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
