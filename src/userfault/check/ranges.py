"""Ranges of the locals: how many bits a state spends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import ir
from .ir import READS_A, READS_B, WRITES_D, Op
from .template import Row

UNDECLARED = (-128, 127)
"""The range of an integer of which nothing is declared."""


def bound(
    program: ir.Program, code: list[Row], declared: list[tuple[int, int]], wanted: Iterable[int]
) -> dict[int, tuple[int, int]]:
    """The ranges of integers without a declared one, as far as their definitions can be told to give.

    wanted: the locals for which that matters. The engines report a value outside a range as a violation of `range`, so an
    unsound bound can't pass silently.
    """
    known: list[tuple[int, int] | None] = [None if each == UNDECLARED else each for each in declared]
    definitions: dict[int, list[Row]] = {}
    for row in code:
        if row[0] in WRITES_D and known[row[1]] is None:
            definitions.setdefault(row[1], []).append(row)
    needed: set[int] = set()
    work = [local for local in wanted if known[local] is None]
    while work:
        local = work.pop()
        if local in needed:
            continue
        needed.add(local)
        for row in definitions.get(local, ()):
            work += [each for each in _reads(row) if known[each] is None]
    open_ended = [row for row in code if row[0] in WRITES_D and row[1] in needed] if needed else []
    readers: dict[int, list[int]] = {}
    for at, row in enumerate(open_ended):
        for local in _reads(row):
            readers.setdefault(local, []).append(at)
    rounds = [0] * len(declared)

    def of(operand: int) -> tuple[int, int] | None:
        if operand < 0:
            value = program.consts[-1 - operand]
            return value, value
        return known[operand]

    stale = [True] * len(open_ended)
    changed = True
    while changed:
        changed = False
        for at, row in enumerate(open_ended):
            if not stale[at]:
                continue
            stale[at] = False
            now = _result(program, row, of)
            if now is None:
                continue
            d = row[1]
            old = known[d]
            merged = now if old is None else (min(old[0], now[0]), max(old[1], now[1]))
            if merged != old:
                rounds[d] += 1
                if rounds[d] > 12:
                    merged = min(merged[0], declared[d][0]), max(merged[1], declared[d][1])
                    if rounds[d] > 14:
                        continue
                known[d] = merged
                changed = True
                for reader in readers.get(d, ()):
                    stale[reader] = True
    return {local: bounds for local in needed if (bounds := known[local]) is not None}


def _reads(row: Row) -> list[int]:
    """The locals that an instruction reads."""
    out = [row[2]] if row[0] in READS_A and row[2] >= 0 else []
    if row[0] in READS_B and row[3] >= 0:
        out.append(row[3])
    return out


def _result(program: ir.Program, row: Row, of: Callable[[int], tuple[int, int] | None]) -> tuple[int, int] | None:
    op, _, left, right, base, lo, hi, _, _ = row
    if op is Op.LOAD:
        cells = program.cells[base + lo : base + hi + 1]
        at = of(left)
        if left < 0 and at is not None and lo <= at[0] <= hi:
            cells = [program.cells[base + at[0]]]
        return min(c.lo for c in cells), max(c.hi for c in cells)
    if op is Op.LOADK:
        table = program.tables[base]
        return min(table), max(table)
    if op is Op.CHOOSE:
        return 0, max(base - 1, 0)
    if op in (Op.EQ, Op.NE, Op.LT, Op.LE, Op.NOT):
        return 0, 1
    a = of(left)
    if op is Op.MOV:
        return a if a is None else (a[0], a[1])
    b = of(right)
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
