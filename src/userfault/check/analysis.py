"""What becomes of emitted code: instructions in order, locals numbered, and which of them are alive where."""

from __future__ import annotations

from collections.abc import Mapping

from . import ir
from .ir import READS_A, READS_B, WRITES_D, Op
from .ranges import bound
from .template import Row


def successors(code: list[ir.Instr], pc: int) -> tuple[int, ...]:
    """The instructions that may execute after the one at `pc`."""
    instr = code[pc]
    if instr.op is Op.BR:
        return (instr.base, instr.lo)
    if instr.op is Op.JMP:
        return (instr.base,)
    if instr.op is Op.END or instr.op is Op.FAIL:
        return ()
    return (pc + 1,)


def simplify(rows: list[Row], bases: Mapping[int, int]) -> list[ir.Instr]:
    """Emitted code as instructions, without jumps to jumps and without what is never reached.

    bases: where the cells of a field (by the number that accesses carry) begin.
    """

    def through(pc: int) -> int:
        row = rows[pc]
        seen = 0
        while row[0] is Op.JMP and not row[7] and seen < len(rows):
            pc += row[4]
            row = rows[pc]
            seen += 1
        return pc

    place: dict[int, int] = {}
    out: list[ir.Instr] = []
    jumps: list[tuple[ir.Instr, int, int]] = []
    work = [through(0)]
    while work:
        pc = work.pop()
        while pc not in place:
            place[pc] = len(out)
            op, d, a, b, base, lo, hi, step, source = rows[pc]
            if op is Op.LOAD:
                base, b = base + bases[b], 0
            elif op is Op.STORE:
                base, d = base + bases[d], 0
            instr = ir.Instr(op, d, a, b, base, lo, hi, step, source)
            out.append(instr)
            if op is Op.BR:
                yes, no = through(pc + base), through(pc + lo)
                jumps.append((instr, yes, no))
                work += [no, yes]
                break
            if op is Op.END or op is Op.FAIL:
                break
            if op is Op.JMP:
                after = through(pc + base)
                jumps.append((instr, after, -1))
            else:
                after = through(pc + 1)
            if after in place:
                # Falls into code that stands elsewhere.
                instr = ir.Instr(Op.JMP, source=source)
                out.append(instr)
                jumps.append((instr, after, -1))
                break
            pc = after
    for instr, yes, no in jumps:
        instr.base = place[yes]
        if no >= 0:
            instr.lo = place[no]
    return out


def settle(
    program: ir.Program, code: list[ir.Instr], variables: list[ir.Local]
) -> tuple[list[ir.Local], dict[int, int]]:
    """Number the locals of code anew and find which are alive where; returns the locals and `ir.Thread.live`.

    A local that is only read in the block that wrote it is scratch: it is never part of a state, and the blocks share the
    numbers behind those of the others. The ranges of the others are narrowed to what their definitions give.
    """
    starts = _block_starts(code)
    block_of = {pc: number for number, pc in enumerate(starts)}
    exposed: list[set[int]] = []
    written: list[set[int]] = []
    after_of: list[list[int]] = []
    for number, first in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(code)
        reads: set[int] = set()
        writes: set[int] = set()
        for pc in range(first, end):
            instr = code[pc]
            op = instr.op
            if op in READS_A:
                if instr.a >= 0 and instr.a not in writes:
                    reads.add(instr.a)
                if op in READS_B and instr.b >= 0 and instr.b not in writes:
                    reads.add(instr.b)
            if op in WRITES_D:
                writes.add(instr.d)
        exposed.append(reads)
        written.append(writes)
        after_of.append([block_of[after] for after in successors(code, end - 1)])
    lasting = sorted(set().union(*exposed))
    bound(program, code, variables, lasting)
    number_of = {local: number for number, local in enumerate(lasting)}
    live = _flow_back(
        [sum(1 << number_of[local] for local in reads) for reads in exposed],
        [sum(1 << number_of[local] for local in writes if local in number_of) for writes in written],
        after_of,
    )
    scratch = 0
    for number, first in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(code)
        mine: dict[int, int] = {}
        for pc in range(first, end):
            instr = code[pc]
            op = instr.op
            if op in READS_A:
                if instr.a >= 0:
                    instr.a = number_of[instr.a] if instr.a in number_of else mine[instr.a]
                if op in READS_B and instr.b >= 0:
                    instr.b = number_of[instr.b] if instr.b in number_of else mine[instr.b]
            if op in WRITES_D:
                if instr.d in number_of:
                    instr.d = number_of[instr.d]
                else:
                    instr.d = mine.setdefault(instr.d, len(lasting) + len(mine))
        scratch = max(scratch, len(mine))
    kept = [variables[local] for local in lasting] + [ir.Local("", 0, 0)] * scratch
    return kept, {pc: live[number] for number, pc in enumerate(starts) if code[pc].step}


def _block_starts(code: list[ir.Instr]) -> list[int]:
    leads = [False] * (len(code) + 1)
    leads[0] = True
    for pc, instr in enumerate(code):
        op = instr.op
        if instr.step:
            leads[pc] = True
        if op is Op.BR:
            leads[pc + 1] = leads[instr.base] = leads[instr.lo] = True
        elif op is Op.JMP:
            leads[pc + 1] = leads[instr.base] = True
        elif op is Op.END or op is Op.FAIL:
            leads[pc + 1] = True
    return [pc for pc in range(len(code)) if leads[pc]]


def _flow_back(gen: list[int], kill: list[int], after_of: list[list[int]]) -> list[int]:
    """Of each block, what is alive at its start, given what it reads first, what it writes, and who follows it."""
    before_of: list[list[int]] = [[] for _ in gen]
    for number, following in enumerate(after_of):
        for after in following:
            before_of[after].append(number)
    live = [0] * len(gen)
    work = list(range(len(gen)))
    queued = [True] * len(gen)
    while work:
        number = work.pop()
        queued[number] = False
        out = 0
        for after in after_of[number]:
            out |= live[after]
        now = gen[number] | (out & ~kill[number])
        if now != live[number]:
            live[number] = now
            for before in before_of[number]:
                if not queued[before]:
                    queued[before] = True
                    work.append(before)
    return live


def bits(word: int) -> list[int]:
    """The members of a bit set."""
    out = []
    while word:
        low = word & -word
        out.append(low.bit_length() - 1)
        word ^= low
    return out
