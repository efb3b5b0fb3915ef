"""The native engine: a program laid out in bits and translated to what native/explore.c executes.

A cell or local takes as many bits as its range needs and never straddles a word. Locals that are alive at the same step
never share bits; a local that is dead is zero. A step becomes one run of instructions: load the locals and cells that
it reads, compute, store, clear the bits of the locals that died, set the new place.
"""

from __future__ import annotations

import ctypes
import threading
import time
from array import array
from dataclasses import dataclass, replace
from typing import Any

from ..native import library
from ..native import why_missing as why_not_built
from . import ir
from .analysis import bits, defines, successors, thread_liveness, uses
from .errors import CheckError
from .explore import Machine
from .ir import Failure, Op
from .reduce import Reduction
from .result import DEADLOCK, LIVELOCK, Move, Options, Result

MAX_WORDS, MAX_THREADS, MAX_INVARIANTS, MAX_FIELDS = 31, 16, 64, 64

_OPS = (
    "MOV ADD SUB MUL AND OR XOR SHL SHR EQ NE LT LE NOT LD ST LDX STX LDK BR JMP WAIT FAIL CHOOSE REACH KEEP SETPC RET"
)
(MOV, ADD, SUB, MUL, AND, OR, XOR, SHL, SHR, EQ, NE, LT, LE, NOT) = range(14)
(LD, ST, LDX, STX, LDK, BR, JMP, WAIT, FAIL, CHOOSE, REACH, KEEP, SETPC, RET) = range(14, 28)


class _Program(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_pc", ctypes.c_int32),
        ("code", ctypes.c_void_p),
        ("entry", ctypes.c_void_p),
        ("affects", ctypes.c_void_p),
        ("pc_word", ctypes.c_void_p),
        ("pc_shift", ctypes.c_void_p),
        ("pc_mask", ctypes.c_void_p),
        ("pc_end", ctypes.c_void_p),
        ("regs", ctypes.c_void_p),
        ("reg_count", ctypes.c_int32),
        ("cells", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("initial", ctypes.c_void_p),
        ("invariants", ctypes.c_int32),
        ("finals", ctypes.c_int32),
        ("spec_entry", ctypes.c_void_p),
        ("spec_regs", ctypes.c_void_p),
        ("failures", ctypes.c_int32),
        ("alone", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("row_words", ctypes.c_int32),
        ("chains", ctypes.c_int32),
        ("alike", ctypes.c_void_p),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("max_states", ctypes.c_int64),
        ("max_bytes", ctypes.c_int64),
        ("workers", ctypes.c_int32),
        ("keep_going", ctypes.c_int32),
        ("liveness", ctypes.c_int32),
        ("collect", ctypes.c_int32),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("verdict", ctypes.c_int32),
        ("failure", ctypes.c_int32),
        ("states", ctypes.c_int64),
        ("transitions", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("lasso", ctypes.c_int64),
        ("cyclic", ctypes.c_int64),
        ("reached", ctypes.c_uint64 * 4),
        ("moves", ctypes.POINTER(ctypes.c_int32)),
        ("moves_length", ctypes.c_int64),
        ("ends", ctypes.POINTER(ctypes.c_uint64)),
        ("ends_count", ctypes.c_int64),
    )


def available() -> bool:
    """Could the C core be built and loaded?"""
    return library() is not None


def why_missing() -> str:
    return why_not_built()


@dataclass(slots=True)
class Place:
    """Where a value lies in the packed state; bits 0: it is always `lo`."""

    word: int
    shift: int
    bits: int
    lo: int
    hi: int


class Layout:
    """The packed state of a program."""

    def __init__(self, program: ir.Program, dead_locals: bool) -> None:
        self.program = program
        self.used: list[int] = [0]
        self.cells = [self.fresh(cell.lo, cell.hi) for cell in program.cells]
        self.live: list[dict[int, int]] = []
        self.pc: list[Place] = []
        self.numbers: list[dict[int, int]] = []
        self.locals: list[dict[int, Place]] = []
        for thread in program.threads:
            live = thread_liveness(thread)
            ever = 0
            for members in live.values():
                ever |= members
            if not dead_locals:
                live = dict.fromkeys(live, ever)
            self.live.append(live)
            self.numbers.append({pc: number for number, pc in enumerate(live)})
            self.pc.append(self.fresh(0, len(live)))
            self.locals.append(self.place_locals(thread, live, ever))
        self.words = len(self.used)

    def fresh(self, lo: int, hi: int) -> Place:
        """Bits of its own for a value."""
        need = (hi - lo).bit_length()
        if need == 0:
            return Place(0, 0, 0, lo, hi)
        for word in range(max(0, len(self.used) - 2), len(self.used)):
            if self.used[word] + need <= 64:
                self.used[word] += need
                return Place(word, self.used[word] - need, need, lo, hi)
        self.used.append(need)
        return Place(len(self.used) - 1, 0, need, lo, hi)

    def place_locals(self, thread: ir.Thread, live: dict[int, int], ever: int) -> dict[int, Place]:
        """Locals that are never alive together share bits: greedy colouring, the widest first."""
        rivals: dict[int, int] = dict.fromkeys(bits(ever), 0)
        for members in set(live.values()):
            for local in bits(members):
                rivals[local] |= members
        slots: list[tuple[Place, int]] = []
        placed: dict[int, Place] = {}
        order = sorted(rivals, key=lambda x: -(thread.locals[x].hi - thread.locals[x].lo).bit_length())
        for local in order:
            lo, hi = thread.locals[local].lo, thread.locals[local].hi
            need = (hi - lo).bit_length()
            if need == 0:
                placed[local] = Place(0, 0, 0, lo, hi)
                continue
            for at, (place, members) in enumerate(slots):
                if place.bits >= need and not members & rivals[local]:
                    slots[at] = (place, members | 1 << local)
                    placed[local] = Place(place.word, place.shift, need, lo, hi)
                    break
            else:
                place = self.fresh(0, (1 << need) - 1)
                slots.append((place, 1 << local))
                placed[local] = Place(place.word, place.shift, need, lo, hi)
        return placed

    def put(self, words: list[int], place: Place, value: int) -> None:
        words[place.word] |= (value - place.lo) << place.shift


class Encoder:
    """The program in the form of native/explore.c."""

    def __init__(self, program: ir.Program, options: Options) -> None:
        self.program = program
        if len(program.threads) > MAX_THREADS:
            raise CheckError(f"{program.name}: the native engine runs up to {MAX_THREADS} threads")
        if len(program.invariants) > MAX_INVARIANTS:
            raise CheckError(f"{program.name}: the native engine evaluates up to {MAX_INVARIANTS} invariants")
        self.layout = layout = Layout(program, options.dead_locals)
        if layout.words > MAX_WORDS:
            raise CheckError(f"{program.name}: a state needs {layout.words} words, the native engine holds {MAX_WORDS}")
        self.code = array("i")
        self.frames = [self.frame_bits(number) for number in range(len(program.threads))]
        self.tables = array("i")
        self.table_at: list[int] = []
        for table in program.tables:
            self.table_at.append(len(self.tables))
            self.tables.extend(table)
        owners: list[ir.Thread | ir.Spec] = [*program.threads, *program.invariants, *program.finals]
        self.reg_count = max(len(owner.locals) for owner in owners) + len(program.consts) + 1
        self.first_const = self.reg_count - len(program.consts)
        reads = [self.cells_of(spec.code, False) for spec in program.invariants]
        self.max_pc = max(len(numbers) for numbers in layout.numbers) + 1
        self.entry = array("i", [0]) * (self.max_pc * len(program.threads))
        self.affects = array("Q", [0]) * (self.max_pc * len(program.threads))
        for number, thread in enumerate(program.threads):
            for pc, at in layout.numbers[number].items():
                self.entry[number * self.max_pc + at] = self.size()
                written = self.step(number, thread, pc)
                mask = sum(1 << i for i, cells in enumerate(reads) if cells & written)
                self.affects[number * self.max_pc + at] = mask
        self.spec_entry = array("i")
        for spec in [*program.invariants, *program.finals]:
            self.spec_entry.append(self.size())
            self.region(spec.code, 0, list(range(len(spec.code))), None)
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

    def size(self) -> int:
        return len(self.code) // 8

    def emit(self, op: int, d: int = 0, a: int = 0, b: int = 0, x: int = 0, y: int = 0, z: int = 0, w: int = 0) -> int:
        self.code.extend((op, d, a, b, x, y, z, w))
        return len(self.code) // 8 - 1

    def operand(self, operand: int) -> int:
        return operand if operand >= 0 else self.first_const - 1 - operand

    def cells_of(self, code: list[ir.Instr], written: bool) -> int:
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
            for local in uses(code[at]):
                used |= 1 << local
            d = defines(code[at])
            if d >= 0:
                defined |= 1 << d
        for local in bits((used | defined) & self.layout.live[number][pc]):
            self.load(local, self.layout.locals[number][local])
        self.region(code, pc, order, (number, defined))
        return self.cells_of([code[at] for at in order], True)

    def load(self, d: int, place: Place) -> None:
        self.emit(LD, d=d, x=place.word, y=place.shift, z=(1 << place.bits) - 1, w=place.lo)

    def region(self, code: list[ir.Instr], first: int, order: list[int], thread: tuple[int, int] | None) -> None:
        """Instructions of one step (or spec), in order; what leaves it goes to an exit that packs the state."""
        at_of: dict[int, int] = {}
        fix: list[tuple[int, int, int]] = []
        inside = set(order)
        for position, pc in enumerate(order):
            at_of[pc] = self.size()
            instr = code[pc]
            following = order[position + 1] if position + 1 < len(order) else -1
            self.translate(instr)
            if instr.op is Op.BR:
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
            for word, clear in keep.items():
                mask = ~clear & (1 << 64) - 1
                self.emit(KEEP, x=word, y=_signed(mask & 0xFFFFFFFF), z=_signed(mask >> 32))
            for local in bits(alive & defined):
                self.store(local, layout.locals[number][local])
            value = layout.numbers[number][target] if target >= 0 else len(layout.numbers[number])
            self.emit(SETPC, x=pc.word, y=pc.shift, z=value)
        self.emit(RET)

    def store(self, source: int, place: Place) -> None:
        self.emit(
            ST,
            a=place.hi - place.lo,
            b=source,
            x=place.word,
            y=place.shift,
            z=_signed((1 << place.bits) - 1),
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
            if instr.base >= 256:
                raise CheckError("the native engine notes up to 256 `sometimes` properties")
            self.emit(REACH, x=instr.base)
        elif op <= Op.NOT:
            self.emit(int(op), d=instr.d, a=a, b=b if op not in (Op.MOV, Op.NOT) else 0)

    def registers(self, rows: int) -> array[int]:
        row = array("i", [0]) * self.first_const + array("i", self.program.consts)
        return row * max(rows, 1)

    def persistent_sets(self, reduction: Reduction) -> tuple[array[int], array[int], int]:
        """`alone`, `rows` and `row_words` of native/explore.c."""
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
        """`alike` of native/explore.c. Alike threads have alike frames: the same slots, elsewhere."""
        out = array("i", [0])
        for group in groups:
            frames = [self.slots(thread) for thread in group]
            if len(frames[0]) > MAX_FIELDS or any([m for *_, m in f] != [m for *_, m in frames[0]] for f in frames):
                continue
            out[0] += 1
            out.extend((len(group), len(frames[0])))
            for frame in frames:
                for word, shift, mask in frame:
                    out.extend((word, shift, _signed(mask)))
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

    def program_struct(self, reduction: Reduction | None = None) -> tuple[_Program, list[object]]:
        """The C view; the arrays it points into must be kept alive."""
        layout, program = self.layout, self.program
        cells = array("i")
        for place in layout.cells:
            cells.extend((place.word, place.shift, _signed((1 << place.bits) - 1), place.lo, place.hi))
        per_thread = [
            array("i", [p.word for p in layout.pc]),
            array("i", [p.shift for p in layout.pc]),
            array("i", [_signed((1 << p.bits) - 1) for p in layout.pc]),
            array("i", [len(n) for n in layout.numbers]),
        ]
        arrays: list[array[int]] = [
            self.code,
            self.entry,
            self.affects,
            *per_thread,
            self.registers(len(program.threads)),
            cells,
            self.tables,
            self.initial,
            self.spec_entry,
            self.registers(len(program.invariants) + len(program.finals)),
        ]
        at = [each.buffer_info()[0] for each in arrays]
        made = _Program(
            layout.words, len(program.threads), self.max_pc, at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7],
            self.reg_count, at[8], at[9], at[10], len(program.invariants), len(program.finals), at[11], at[12],
            len(program.failures),
        )  # fmt: skip
        if reduction is not None:
            alone, rows, made.row_words = self.persistent_sets(reduction)
            made.alone, made.rows, made.chains = alone.buffer_info()[0], rows.buffer_info()[0], reduction.chains
            alike = self.alike(reduction.alike)
            made.alike = alike.buffer_info()[0]
            arrays += [alone, rows, alike]
        return made, list(arrays)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _failures(program: ir.Program) -> list[Failure]:
    dereference, range_ = Machine(program).dereference
    return [*program.failures, dereference, range_, DEADLOCK, LIVELOCK]


def _c_options(options: Options) -> _Options:
    return _Options(options.max_states, options.max_bytes, options.threads, options.keep_going, options.liveness)


_last: dict[str, Any] = {}
"""The program encoded last: a verdict and its counterexample are two searches of one program."""


def _call(
    program: ir.Program,
    options: Options,
    target: int | None,
    reduction: Reduction | None = None,
    collect: bool = False,
) -> tuple[_Result, list[Move], Encoder]:
    lib = library()
    if lib is None:
        raise CheckError(f"the native engine can't run: {why_not_built()}")
    key = (id(program), options.dead_locals)
    if _last.get("key") != key:
        _last.update(key=key, program=program, encoder=Encoder(program, options))
    encoder = _last["encoder"]
    struct, keep = encoder.program_struct(reduction)
    c_options, out = _c_options(options), _Result()
    c_options.collect = collect
    lib.uf_stop(0)

    def search() -> None:
        if target is None:
            lib.uf_explore(ctypes.byref(struct), ctypes.byref(c_options), ctypes.byref(out))
        else:
            lib.uf_fewest(ctypes.byref(struct), ctypes.byref(c_options), target, ctypes.byref(out))

    if threading.current_thread() is threading.main_thread():
        # Ctrl-C must reach a long search: the main thread waits where Python can take the signal.
        worker = threading.Thread(target=search, daemon=True)
        worker.start()
        try:
            while worker.is_alive():
                worker.join(0.2)
        except KeyboardInterrupt:
            lib.uf_stop(1)
            worker.join()
            raise
    else:
        search()
    del keep
    moves: list[Move] = []
    at = 0
    while at < out.moves_length:
        count = out.moves[at + 1]
        moves.append(Move(out.moves[at], tuple(out.moves[at + 2 + i] for i in range(count))))
        at += 2 + count
    lib.uf_free(out.moves)
    if out.verdict == 3:
        raise CheckError(f"{program.name}: a loop without a shared access does not end")
    if out.verdict == 5:
        raise CheckError(f"{program.name}: the search got no memory: lower --max-states")
    return out, moves, encoder


def explore(program: ir.Program, options: Options | None = None) -> Result:
    """As explore.explore: the same counts, verdict and depth."""
    return _explore(program, options or Options(), None)


def explore_reduced(program: ir.Program, reduction: Reduction, options: Options | None = None) -> Result:
    """As explore.explore_reduced: the same verdict and, where it holds, counts."""
    return _explore(program, options or Options(), reduction)


def _explore(program: ir.Program, options: Options, reduction: Reduction | None) -> Result:
    started = time.perf_counter()
    out, moves, _ = _call(program, options, None, reduction)
    result = _result(program, out, moves)
    result.seconds = time.perf_counter() - started
    return result


def final_states(
    program: ir.Program, options: Options, reduction: Reduction | None = None
) -> tuple[Result, list[list[int]]]:
    """Search past violations; the result, and the cells of every final state that breaks nothing."""
    options = replace(options, keep_going=True, liveness=False)
    out, moves, encoder = _call(program, options, None, reduction, collect=True)
    words = encoder.layout.words
    ends = []
    for at in range(0, out.ends_count * words, words):
        state = out.ends[at : at + words]
        ends.append(
            [(state[p.word] >> p.shift & (1 << p.bits) - 1) + p.lo for p in encoder.layout.cells],
        )
    library().uf_free(out.ends)  # type: ignore[union-attr]
    return _result(program, out, moves), ends


def _result(program: ir.Program, out: _Result, moves: list[Move]) -> Result:
    failures = _failures(program)
    result = Result("holds", engine="native")
    result.states, result.transitions, result.cyclic = out.states, out.transitions, bool(out.cyclic)
    result.reached = frozenset(
        name for number, name in enumerate(program.sometimes) if out.reached[number >> 6] >> (number & 63) & 1
    )
    if out.verdict == 1:
        result.failure = failures[out.failure]
        result.verdict = "bound" if result.failure.property == "bound" else "violated"
        result.schedule, result.lasso = moves, out.lasso
        result.depth = len(moves)
    elif out.verdict in (2, 4):
        result.verdict = "bound"
    result.bytes_per_state = out.bytes / max(out.states, 1)
    return result


def fewest_switches(program: ir.Program, target: Failure, options: Options | None = None) -> list[Move] | None:
    """As explore.fewest_switches."""
    options = options or Options()
    out, moves, _ = _call(program, options, _failures(program).index(target))
    return moves if out.verdict == 1 else None
