"""Static facts about a program's threads: successors, liveness at steps, ranges of locals."""

from __future__ import annotations

from collections.abc import Iterable

from . import ir
from .ir import Op

_READS_A = {Op.MOV, Op.NOT, Op.LOAD, Op.LOADK, Op.BR, Op.WAIT}
_READS_AB = {
    Op.ADD,
    Op.SUB,
    Op.MUL,
    Op.AND,
    Op.OR,
    Op.XOR,
    Op.SHL,
    Op.SHR,
    Op.EQ,
    Op.NE,
    Op.LT,
    Op.LE,
    Op.STORE,
}
_DEFINES = {Op.MOV, Op.NOT, Op.LOAD, Op.LOADK, Op.CHOOSE} | (_READS_AB - {Op.STORE})


def successors(code: list[ir.Instr], pc: int) -> tuple[int, ...]:
    """The instructions that may execute after the one at `pc`."""
    instr = code[pc]
    if instr.op is Op.BR:
        return (instr.base, instr.lo)
    if instr.op is Op.JMP:
        return (instr.base,)
    if instr.op in (Op.END, Op.FAIL):
        return ()
    return (pc + 1,)


def uses(instr: ir.Instr) -> Iterable[int]:
    """The locals that an instruction reads."""
    if instr.op in _READS_AB:
        return [x for x in (instr.a, instr.b) if x >= 0]
    if instr.op in _READS_A and instr.a >= 0:
        return [instr.a]
    return []


def defines(instr: ir.Instr) -> int:
    """The local that an instruction writes, or -1."""
    return instr.d if instr.op in _DEFINES else -1


def live_locals(code: list[ir.Instr]) -> dict[int, int]:
    """At each instruction that begins a step: the locals whose values may still be read, as a bit set."""
    leads = [False] * (len(code) + 1)
    leads[0] = True
    for pc, instr in enumerate(code):
        if instr.step:
            leads[pc] = True
        if instr.op in (Op.BR, Op.JMP, Op.END, Op.FAIL):
            leads[pc + 1] = True
            for after in successors(code, pc):
                leads[after] = True
    starts = [pc for pc in range(len(code)) if leads[pc]]
    block_of = {pc: number for number, pc in enumerate(starts)}
    gen: list[int] = []
    kill: list[int] = []
    after_of: list[list[int]] = []
    preds: list[list[int]] = [[] for _ in starts]
    for number, first in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(code)
        used = killed = 0
        for pc in range(end - 1, first - 1, -1):
            instr = code[pc]
            op = instr.op
            if op in _DEFINES:
                bit = 1 << instr.d
                killed |= bit
                used &= ~bit
            if op in _READS_AB:
                if instr.a >= 0:
                    used |= 1 << instr.a
                if instr.b >= 0:
                    used |= 1 << instr.b
            elif op in _READS_A and instr.a >= 0:
                used |= 1 << instr.a
        gen.append(used)
        kill.append(~killed)
        following = [block_of[after] for after in successors(code, end - 1)]
        after_of.append(following)
        for after in following:
            preds[after].append(number)
    live = [0] * len(starts)
    work = list(range(len(starts)))
    queued = [True] * len(starts)
    while work:
        number = work.pop()
        queued[number] = False
        out = 0
        for after in after_of[number]:
            out |= live[after]
        now = gen[number] | (out & kill[number])
        if now != live[number]:
            live[number] = now
            for before in preds[number]:
                if not queued[before]:
                    queued[before] = True
                    work.append(before)
    return {pc: live[number] for number, pc in enumerate(starts) if code[pc].step}


def thread_liveness(thread: ir.Thread) -> dict[int, int]:
    """live_locals of a thread, computed once."""
    if thread.live is None:
        thread.live = live_locals(thread.code)
    return thread.live


def simplify(code: list[ir.Instr]) -> list[ir.Instr]:
    """The same code without jumps to jumps and without what is never reached."""

    def through(pc: int) -> int:
        seen = 0
        while code[pc].op is Op.JMP and not code[pc].step and seen < len(code):
            pc = code[pc].base
            seen += 1
        return pc

    place: dict[int, int] = {}
    order: list[int] = []
    work = [through(0)]
    jumps: list[tuple[int, int]] = []
    while work:
        pc = work.pop()
        while pc not in place:
            place[pc] = len(order)
            order.append(pc)
            instr = code[pc]
            if instr.op is Op.BR:
                work.append(through(instr.lo))
                work.append(through(instr.base))
                break
            if instr.op in (Op.END, Op.FAIL):
                break
            after = through(instr.base) if instr.op is Op.JMP else through(pc + 1)
            if after in place:
                # Falls into code that stands elsewhere.
                jumps.append((len(order), after))
                order.append(-1)
                break
            if instr.op is Op.JMP and not instr.step:  # pragma: no cover
                raise AssertionError
            pc = after
    out: list[ir.Instr] = []
    to = dict(jumps)
    for at, pc in enumerate(order):
        if pc < 0:
            out.append(ir.Instr(Op.JMP, base=place[to[at]], source=out[-1].source))
            continue
        old = code[pc]
        new = ir.Instr(old.op, old.d, old.a, old.b, old.base, old.lo, old.hi, old.step, old.source)
        if new.op is Op.BR:
            new.base, new.lo = place[through(old.base)], place[through(old.lo)]
        elif new.op is Op.JMP:
            new.base = place[through(old.base)]
        out.append(new)
    return out


def bits(word: int) -> list[int]:
    """The members of a bit set."""
    out = []
    while word:
        low = word & -word
        out.append(low.bit_length() - 1)
        word ^= low
    return out


UNDECLARED = (-128, 127)
"""The range of an integer of which nothing is declared."""


def bound_locals(program: ir.Program) -> None:
    """Narrow the ranges of integers without a declared one to what their definitions can give.

    The engines report a value outside a range as a violation of `range`, so an unsound bound can't pass silently.
    """
    owners: list[ir.Thread | ir.Spec] = [*program.threads, *program.invariants, *program.finals, *program.observers]
    for owner in owners:
        _bound(program, owner.code, owner.locals)


def _bound(program: ir.Program, code: list[ir.Instr], variables: list[ir.Local]) -> None:
    known: list[tuple[int, int] | None] = [
        None if (local.lo, local.hi) == UNDECLARED else (local.lo, local.hi) for local in variables
    ]
    rounds = [0] * len(variables)

    def of(operand: int) -> tuple[int, int] | None:
        if operand < 0:
            value = program.consts[-1 - operand]
            return value, value
        return known[operand]

    open_ended = [(d, instr) for instr in code if (d := defines(instr)) >= 0 and known[d] is None]
    changed = True
    while changed:
        changed = False
        for d, instr in open_ended:
            now = _result(program, instr, of)
            if now is None:
                continue
            old = known[d]
            merged = now if old is None else (min(old[0], now[0]), max(old[1], now[1]))
            if merged != old:
                rounds[d] += 1
                if rounds[d] > 12:
                    merged = min(merged[0], variables[d].lo), max(merged[1], variables[d].hi)
                    if rounds[d] > 14:
                        continue
                known[d] = merged
                changed = True
    for local, bound in zip(variables, known, strict=True):
        if bound is not None:
            local.lo, local.hi = bound


def _result(program: ir.Program, instr: ir.Instr, of: object) -> tuple[int, int] | None:
    assert callable(of)
    op = instr.op
    if op is Op.LOAD:
        cells = program.cells[instr.base + instr.lo : instr.base + instr.hi + 1]
        at = of(instr.a)
        if instr.a < 0 and at is not None and instr.lo <= at[0] <= instr.hi:
            cells = [program.cells[instr.base + at[0]]]
        return min(c.lo for c in cells), max(c.hi for c in cells)
    if op is Op.LOADK:
        table = program.tables[instr.base]
        return min(table), max(table)
    if op is Op.CHOOSE:
        return 0, max(instr.base - 1, 0)
    if op in (Op.EQ, Op.NE, Op.LT, Op.LE, Op.NOT):
        return 0, 1
    a = of(instr.a)
    if op is Op.MOV:
        return a if a is None else (a[0], a[1])
    b = of(instr.b)
    if a is None or b is None:
        return None
    if op is Op.ADD:
        return a[0] + b[0], a[1] + b[1]
    if op is Op.SUB:
        return a[0] - b[1], a[1] - b[0]
    if op is Op.MUL:
        corners = [x * y for x in a for y in b]
        return min(corners), max(corners)
    if op is Op.AND:
        if b[0] == b[1] and b[0] >= 0:
            return 0, b[0] if a[0] < 0 else min(b[0], (1 << a[1].bit_length()) - 1)
        if a[0] >= 0 and b[0] >= 0:
            return 0, min(a[1], b[1])
        if a[0] >= 0:
            return 0, a[1]
        width = max(abs(x) for x in (*a, *b)).bit_length()
        return -(1 << width), (1 << width) - 1
    if op in (Op.OR, Op.XOR):
        width = max(x.bit_length() if x >= 0 else (~x).bit_length() for x in (*a, *b))
        low = 0 if a[0] >= 0 and b[0] >= 0 else -(1 << width)
        return low, (1 << width) - 1
    if op is Op.SHL:
        return min(a[0] << b[0], a[0] << b[1]), max(a[1] << b[0], a[1] << b[1])
    return min(a[0] >> b[0], a[0] >> b[1]), max(a[1] >> b[0], a[1] >> b[1])
