"""Ranges of the locals: how many bits a state spends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import ir
from .ir import READS_A, READS_B, WRITES_D, Op

UNDECLARED = (-128, 127)
"""The range of an integer of which nothing is declared."""


def bound(program: ir.Program, code: list[ir.Instr], variables: list[ir.Local], wanted: Iterable[int]) -> None:
    """Narrow the ranges of integers without a declared one to what their definitions can give.

    wanted: the locals for which that matters. The engines report a value outside a range as a violation of `range`, so an
    unsound bound can't pass silently.
    """
    known: list[tuple[int, int] | None] = [
        None if (local.lo, local.hi) == UNDECLARED else (local.lo, local.hi) for local in variables
    ]
    definitions: dict[int, list[ir.Instr]] = {}
    for instr in code:
        if instr.op in WRITES_D and known[instr.d] is None:
            definitions.setdefault(instr.d, []).append(instr)
    needed: set[int] = set()
    work = [local for local in wanted if known[local] is None]
    while work:
        local = work.pop()
        if local in needed:
            continue
        needed.add(local)
        for instr in definitions.get(local, ()):
            work += [each for each in _reads(instr) if known[each] is None]
    open_ended = [instr for instr in code if instr.op in WRITES_D and instr.d in needed]
    readers: dict[int, list[int]] = {}
    for at, instr in enumerate(open_ended):
        for local in _reads(instr):
            readers.setdefault(local, []).append(at)
    rounds = [0] * len(variables)

    def of(operand: int) -> tuple[int, int] | None:
        if operand < 0:
            value = program.consts[-1 - operand]
            return value, value
        return known[operand]

    stale = [True] * len(open_ended)
    changed = True
    while changed:
        changed = False
        for at, instr in enumerate(open_ended):
            if not stale[at]:
                continue
            stale[at] = False
            now = _result(program, instr, of)
            if now is None:
                continue
            d = instr.d
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
                for reader in readers.get(d, ()):
                    stale[reader] = True
    for local in needed:
        bounds = known[local]
        if bounds is not None:
            variables[local].lo, variables[local].hi = bounds


def _reads(instr: ir.Instr) -> list[int]:
    """The locals that an instruction reads."""
    return [
        operand for operand, reads in ((instr.a, READS_A), (instr.b, READS_B)) if operand >= 0 and instr.op in reads
    ]


def _result(
    program: ir.Program, instr: ir.Instr, of: Callable[[int], tuple[int, int] | None]
) -> tuple[int, int] | None:
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
