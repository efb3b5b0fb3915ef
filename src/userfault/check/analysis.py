"""What becomes of emitted code: instructions in order, locals numbered, and which of them are alive where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from . import ir
from .ir import READS_A, READS_B, WRITES_D, Op
from .template import Row
from .unit import Unit

NOT, LOAD, STORE, LOADK, REACH = Op.NOT, Op.LOAD, Op.STORE, Op.LOADK, Op.REACH
BR, JMP, FAIL, END = Op.BR, Op.JMP, Op.FAIL, Op.END
"""An enumeration's member costs a look-up, once for every instruction of a program."""


def successors(code: Sequence[ir.Instr], pc: int) -> tuple[int, ...]:
    """The instructions that may execute after the one at `pc`."""
    instr = code[pc]
    if instr.op is Op.BR:
        return (instr.base, instr.lo)
    if instr.op is Op.JMP:
        return (instr.base,)
    if instr.op is Op.END or instr.op is Op.FAIL:
        return ()
    return (pc + 1,)


@dataclass(slots=True)
class Settled:
    """Emitted code as instructions, its locals numbered anew.

    lasting: the variables that are part of a state, in the order of their new numbers. locals_count: with the scratch ones.
    live: the first which of them are alive where (`ir.Thread.live`). definitions: the rows, before that, with all that write a
    local of which no range is declared.
    """

    code: Sequence[ir.Instr]
    lasting: list[int]
    locals_count: int
    live: dict[int, int]
    definitions: list[Row]


def settled(unit: Unit, rows: list[Row], variables: int) -> Settled:
    """Put emitted code in order and number its locals (there are so many `variables`).

    A local that is only read in the block that wrote it is scratch: it is never part of a state, and the blocks share the
    numbers behind those of the others.
    """
    placed, place = in_order(rows, unit)
    blocks = _blocks(placed, place)
    lasting, gen, kill = _lasting(placed, blocks, variables)
    block_of = {first: number for number, (first, _) in enumerate(blocks)}
    live = _flow_back(gen, kill, [[block_of[to] for to in _after(placed, place, end - 1)] for _, end in blocks])
    code: list[ir.Instr] = []
    new = tuple.__new__
    everywhere = len(blocks)
    number_of = [-1] * variables
    home = [-1] * variables
    for number, local in enumerate(lasting):
        number_of[local], home[local] = number, everywhere
    scratch = len(lasting)
    for number, (first, end) in enumerate(blocks):
        fresh = len(lasting)
        for op, d, a, b, base, lo, hi, step, source in placed[first:end]:
            if op in READS_A:
                if a >= 0:
                    a = number_of[a]
                if op in READS_B and b >= 0:
                    b = number_of[b]
            if op in WRITES_D:
                if home[d] != number and home[d] != everywhere:
                    home[d], number_of[d] = number, fresh
                    fresh += 1
                d = number_of[d]
            elif op is BR:
                base, lo = place[base], place[lo]
            elif op is JMP:
                base = place[base]
            code.append(new(ir.Instr, (op, d, a, b, base, lo, hi, step, source)))
        scratch = max(scratch, fresh)
    steps = {first: live[number] for number, (first, _) in enumerate(blocks) if code[first].step}
    return Settled(code, lasting, scratch, steps, placed)


def in_order(rows: list[Row], unit: Unit) -> tuple[list[Row], list[int]]:
    """The rows that can be reached, without jumps to jumps, and where each went; what they name by number is now the
    program's own. Jumps name their targets' old places."""
    failing: dict[tuple[int, int], int] = {}

    def through(pc: int) -> int:
        row = rows[pc]
        seen = 0
        while row[0] is JMP and not row[7] and seen < len(rows):
            pc += row[4]
            row = rows[pc]
            seen += 1
        # The same failure of the same line needs to be there once.
        return failing.setdefault((row[4], row[8]), pc) if row[0] is FAIL else pc

    place = [-1] * len(rows)
    out: list[Row] = []
    work = [through(0)]
    while work:
        pc = work.pop()
        while place[pc] < 0:
            place[pc] = len(out)
            row = rows[pc]
            op = row[0]
            if op <= NOT:
                # Most of the code: nothing of it depends on the program.
                out.append(row)
                pc += 1
                after = rows[pc]
                if after[0] is FAIL or after[0] is JMP:
                    pc = through(pc)
                if place[pc] >= 0:
                    out.append((JMP, 0, 0, 0, pc, 0, 0, False, row[8]))
                    break
                continue
            if op is BR:
                yes, no = through(pc + row[4]), through(pc + row[5])
                out.append((op, 0, row[2], 0, yes, no, 0, row[7], row[8]))
                work += [no, yes]
                break
            if op is LOAD:
                number = row[3]
                row = (op, row[1], row[2], 0, row[4] + unit.base(number), row[5], row[6] + unit.span(number), *row[7:])
            elif op is STORE:
                number = row[1]
                row = (op, 0, *row[2:4], row[4] + unit.base(number), row[5], row[6] + unit.span(number), *row[7:])
            elif op is LOADK:
                number = row[4]
                row = (*row[:4], unit.table(number), row[5], row[6] + unit.span(number), *row[7:])
            elif op is REACH:
                row = (*row[:4], unit.situation(row[4]), *row[5:])
            elif op is FAIL:
                out.append((*row[:4], unit.failure(row[4]), *row[5:]))
                break
            elif op is END:
                out.append(row)
                break
            following = pc + row[4] if op is JMP else pc + 1
            after = rows[following]
            if after[0] is FAIL or (after[0] is JMP and not after[7]):
                following = through(following)
            out.append((op, 0, 0, 0, following, 0, 0, row[7], row[8]) if op is JMP else row)
            if place[following] >= 0:
                # Falls into code that stands elsewhere.
                out.append((JMP, 0, 0, 0, following, 0, 0, False, row[8]))
                break
            pc = following
    return out, place


def _after(placed: list[Row], place: list[int], pc: int) -> list[int]:
    row = placed[pc]
    if row[0] is Op.BR:
        return [place[row[4]], place[row[5]]]
    if row[0] is Op.JMP:
        return [place[row[4]]]
    return [] if row[0] is Op.END or row[0] is Op.FAIL else [pc + 1]


def _blocks(placed: list[Row], place: list[int]) -> list[tuple[int, int]]:
    """The basic blocks: a step begins one."""
    leads = bytearray(len(placed) + 1)
    leads[0] = leads[len(placed)] = 1
    for pc, row in enumerate(placed):
        if row[7]:
            leads[pc] = 1
        op = row[0]
        if op < BR:
            continue
        if op is BR:
            leads[pc + 1] = leads[place[row[4]]] = leads[place[row[5]]] = 1
        elif op is JMP:
            leads[pc + 1] = leads[place[row[4]]] = 1
        elif op is END or op is FAIL:
            leads[pc + 1] = 1
    starts = [pc for pc, lead in enumerate(leads) if lead]
    return list(pairwise(starts))


def _lasting(placed: list[Row], blocks: list[tuple[int, int]], count: int) -> tuple[list[int], list[int], list[int]]:
    """The locals that are read in another block than the one that wrote them last; of each block, as bit sets of places in
    that list: which of them it reads first, and which it writes."""
    home = [-1] * count
    reads: list[tuple[int, int]] = []
    writes: list[tuple[int, int]] = []
    for number, (first, end) in enumerate(blocks):
        for row in placed[first:end]:
            op = row[0]
            if op in READS_A:
                a = row[2]
                if a >= 0 and home[a] != number:
                    reads.append((number, a))
                if op in READS_B:
                    b = row[3]
                    if b >= 0 and home[b] != number:
                        reads.append((number, b))
            if op in WRITES_D:
                d = row[1]
                if home[d] != number:
                    home[d] = number
                    writes.append((number, d))
    lasting = sorted({local for _, local in reads})
    bit = {local: 1 << number for number, local in enumerate(lasting)}
    gen, kill = [0] * len(blocks), [0] * len(blocks)
    for number, local in reads:
        gen[number] |= bit[local]
    for number, local in writes:
        if local in bit:
            kill[number] |= bit[local]
    return lasting, gen, kill


def _flow_back(gen: list[int], kill: list[int], after_of: list[list[int]]) -> list[int]:
    """Of each block, what is alive at its start, given what it reads first, what it writes, and who follows it."""
    before_of: list[list[int]] = [[] for _ in gen]
    for number, following in enumerate(after_of):
        for after in following:
            before_of[after].append(number)
    live = [0] * len(gen)
    stale = bytearray(b"\1") * len(gen)
    again = True
    while again:
        # Against the order of the code: most of what follows a block is settled before it.
        again = False
        for number in range(len(gen) - 1, -1, -1):
            if not stale[number]:
                continue
            stale[number] = 0
            out = 0
            for after in after_of[number]:
                out |= live[after]
            now = gen[number] | (out & ~kill[number])
            if now != live[number]:
                live[number] = now
                for before in before_of[number]:
                    stale[before] = 1
                    again |= before >= number
    return live


def bits(word: int) -> list[int]:
    """The members of a bit set."""
    out = []
    while word:
        low = word & -word
        out.append(low.bit_length() - 1)
        word ^= low
    return out
