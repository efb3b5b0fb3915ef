"""Partial-order reduction: which steps need not be interleaved with what the other threads do.

In a state where thread t's next step commutes with everything that the others can do before t moves again, exploring t alone
is enough: {t} is a persistent set (Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, 1996).
What the others can do is bounded statically, with the locks that t is known to hold: while t owns a lock, a thread
that wants it comes to a halt there, and a trylock fails (as in Dwyer, Hatcliff, Robby and Prasad, FMSD 2004).

A step is never chosen alone if it writes what an invariant reads, has several outcomes, or closes a loop of its thread, so
every cycle of the reduced graph has a state where all threads are explored. Then deadlocks, failed assertions, broken
invariants, reached `sometimes` properties and the existence of a cycle are those of the full graph. Where slots of pools are merged,
who takes or frees one does not move alone either: which slots are free is looked at after every such step (`pools.Mix`).

The lock rule rests on `Cell.owned`: only the owner changes such a cell. The primitives of the model assert that, in the step
that would do it, so a model that breaks the rule is reported before the reduction relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from . import ir
from .ir import ARITHMETIC, Op
from .pools import Pools, find_pools

PATHS = 256
"""Partial paths followed within one step before what is known is given up."""

Facts = frozenset[tuple[int, int]]
"""What is known where a step begins: (local, value), and (-1 - cell, value) for cells."""

NOTHING: Facts = frozenset()


@dataclass(slots=True)
class Footprint:
    """What a step may do: cells read and written (bit sets), and, for each step that may follow, what is known there.

    named: those of the cells whose number is known.
    """

    reads: int = 0
    writes: int = 0
    named: int = 0
    choice: bool = False
    after: dict[int, Facts] = field(default_factory=dict)


@dataclass(slots=True)
class Reduction:
    """For thread t at step p: `rows[t][p][u]`, the steps of u (a bit set of their numbers) next to which t may move alone.

    The numbers are places in `Thread.live`; the one past the last stands for "ended". A step that is not in rows[t]
    is never taken alone. chains: states passed on the way are not stored. alike: groups of threads that may change places;
    of the states that differ only in that, one is stored. pools: the same of slots that objects lie in.
    """

    rows: list[dict[int, list[int]]]
    chains: bool = True
    alike: list[list[int]] = field(default_factory=list)
    pools: Pools | None = None

    def without(self, program: ir.Program, mixed: int) -> Reduction:
        """The same without some of the pools (a bit set of their numbers)."""
        assert self.pools is not None
        left_out = {pool.struct for number, pool in enumerate(self.pools.pools) if mixed >> number & 1}
        return replace(self, pools=find_pools(program, self.pools.left_out | left_out))


def reduction(
    program: ir.Program, persistent: bool = True, chains: bool = True, symmetry: bool = True, pools: bool = True
) -> Reduction:
    """The persistent sets of a program (without them there are no chains either), and its symmetries."""
    rows: list[dict[int, list[int]]] = [{} for _ in program.threads]
    groups = alike(program) if symmetry else []
    found = find_pools(program) if pools else None
    if persistent or found is not None:
        analysis = _Analysis(program)
        while found is not None and (uneven := analysis.uneven(found)):
            found = find_pools(program, found.left_out | uneven)
        if persistent:
            rows = analysis.rows(groups, found.telling() if found is not None else 0)
    return Reduction(rows, chains, groups, found)


def alike(program: ir.Program) -> list[list[int]]:
    """Groups of threads with the same code, instruction by instruction (so none of them says which thread it is)."""
    found: list[list[int]] = []
    for number, thread in enumerate(program.threads):
        for group in found:
            other = program.threads[group[0]]
            if _acts(thread) == _acts(other):
                group.append(number)
                break
        else:
            found.append([number])
    return [group for group in found if len(group) > 1]


def _acts(thread: ir.Thread) -> tuple[object, ...]:
    code = [(i.op, i.d, i.a, i.b, i.base, i.lo, i.hi, i.step) for i in thread.code]
    return code, [(local.lo, local.hi) for local in thread.locals]


class _Analysis:
    def __init__(self, program: ir.Program) -> None:
        self.program = program
        self.steps = [list(thread.live) for thread in program.threads]
        self.known = [self.forward(number) for number in range(len(program.threads))]
        self.footprints: dict[tuple[int, int, Facts], Footprint] = {}
        self.visible = 0
        for spec in program.invariants:
            self.visible |= self.looked_at(spec)

    def looked_at(self, spec: ir.Spec, named: bool = False) -> int:
        """The cells that an invariant or final condition may read. named: those whose number is known."""
        found = 0
        for instr in spec.code:
            if instr.op is Op.LOAD and (instr.a < 0 or not named):
                found |= _mask(instr, self.program.consts[-1 - instr.a] if instr.a < 0 else None)
        return found

    def uneven(self, pools: Pools) -> set[type]:
        """The pools of which a step may touch some slots and not others: code that names one, or stops in the middle of a scan."""
        touched = {self.looked_at(spec, named=True) for spec in [*self.program.invariants, *self.program.finals]}
        for thread, known in enumerate(self.known):
            touched |= {self.footprint(thread, pc, facts).named for pc, facts in known.items()}
        found = set()
        for pool in pools.pools:
            for places in zip(*(pools.cells[slot] for slot in pool.slots), strict=True):
                every = sum(1 << cell for cell in places)
                if any(cells & every not in (0, every) for cells in touched):
                    found.add(pool.struct)
        return found

    # -- one step -----------------------------------------------------------------------------------------------------

    def footprint(self, thread: int, pc: int, facts: Facts) -> Footprint:
        """What the step at `pc` may do, given what is known where it begins."""
        key = (thread, pc, facts)
        known = self.footprints.get(key)
        if known is None:
            known = self.footprints[key] = self.run(thread, pc, facts)
        return known

    def run(self, thread: int, first: int, facts: Facts) -> Footprint:
        code = self.program.threads[thread].code
        out = Footprint()
        work: list[tuple[int, dict[int, int]]] = [(first, dict(facts))]
        seen: set[tuple[int, Facts]] = set()
        while work:
            pc, env = work.pop()
            if len(seen) > PATHS:
                env = {}
            key = (pc, frozenset(env.items()))
            if key in seen:
                continue
            seen.add(key)
            instr = code[pc]
            if instr.op is Op.BR:
                value = self.value(instr.a, env)
                following = [instr.base, instr.lo] if value is None else [instr.base if value else instr.lo]
            elif instr.op is Op.JMP:
                following = [instr.base]
            elif instr.op is Op.END or not self.transfer(instr, env, out):
                continue
            else:
                following = [pc + 1]
            for after in following:
                if code[after].step:
                    kept = frozenset(env.items())
                    out.after[after] = out.after[after] & kept if after in out.after else kept
                else:
                    work.append((after, dict(env)))
        return out

    def value(self, operand: int, env: dict[int, int]) -> int | None:
        return env.get(operand) if operand >= 0 else self.program.consts[-1 - operand]

    def transfer(self, instr: ir.Instr, env: dict[int, int], out: Footprint) -> bool:
        """Carry out one instruction on what is known; False if no run goes on behind it."""
        op = instr.op
        if op is Op.FAIL:
            return False
        if op is Op.REACH:
            return True
        a = None if op is Op.CHOOSE else self.value(instr.a, env)
        if op is Op.WAIT:
            return a != 0
        result: int | None = None
        if op is Op.CHOOSE:
            out.choice = True
        elif op is Op.LOAD:
            out.reads |= _mask(instr, a)
            if a is not None:
                out.named |= _mask(instr, a)
                result = env.get(-1 - (instr.base + a))
        elif op is Op.STORE:
            out.writes |= _mask(instr, a)
            out.named |= _mask(instr, a) if a is not None else 0
            b = self.value(instr.b, env)
            if a is None:
                for at in range(instr.base + instr.lo, instr.base + instr.hi + 1):
                    env.pop(-1 - at, None)
            elif b is None:
                env.pop(-1 - (instr.base + a), None)
            else:
                env[-1 - (instr.base + a)] = b
            return True
        elif op is Op.LOADK:
            if a is not None and instr.lo <= a <= instr.hi:
                result = self.program.tables[instr.base][a + instr.b]
        elif op is Op.MOV:
            result = a
        elif op is Op.NOT:
            result = None if a is None else int(not a)
        else:
            b = self.value(instr.b, env)
            if a is not None and b is not None:
                result = ARITHMETIC[op](a, b)
        if result is None:
            env.pop(instr.d, None)
        else:
            env[instr.d] = result
        return True

    # -- a thread -----------------------------------------------------------------------------------------------------

    def held(self, thread: int, cell: int, value: int) -> bool:
        """Does this cell with this value say that the thread owns a lock?"""
        variable = self.program.cells[cell]
        if not variable.owned:
            return False
        if variable.thread_id:
            return value == thread + 1
        return variable.per_thread == thread + 1 and value == 1

    def forward(self, thread: int) -> dict[int, Facts]:
        """At each step: the locals whose value is known, and the locks that the thread certainly owns."""
        live = self.program.threads[thread].live
        code = self.program.threads[thread].code
        known: dict[int, Facts] = {}
        work = [0]
        if code[0].step:
            known[0] = NOTHING
        else:
            # What comes before the first step has run in the initial state.
            work = list(self.run(thread, 0, NOTHING).after)
            known = dict.fromkeys(work, NOTHING)
        while work:
            pc = work.pop()
            for after, facts in self.run(thread, pc, known[pc]).after.items():
                kept = frozenset(
                    (key, value)
                    for key, value in facts
                    if (live[after] >> key & 1 if key >= 0 else self.held(thread, -1 - key, value))
                )
                if after in known:
                    kept &= known[after]
                    if kept == known[after]:
                        continue
                known[after] = kept
                work.append(after)
        return known

    def locks(self, thread: int, pc: int) -> Facts:
        return frozenset((key, value) for key, value in self.known[thread].get(pc, NOTHING) if key < 0)

    def futures(self, thread: int, locks: Facts) -> dict[int, tuple[int, int]]:
        """At each step: the cells that the thread may read and write from there on, while another owns `locks`."""
        steps = [pc for pc in self.steps[thread] if pc in self.known[thread]]
        prints = {pc: self.footprint(thread, pc, self.known[thread][pc] | locks) for pc in steps}
        before: dict[int, list[int]] = {pc: [] for pc in steps}
        for pc in steps:
            for after in prints[pc].after:
                before[after].append(pc)
        future = {pc: (prints[pc].reads, prints[pc].writes) for pc in steps}
        work = list(steps)
        while work:
            at = work.pop()
            reads, writes = future[at]
            for pc in before[at]:
                r, w = future[pc]
                if reads & ~r or writes & ~w:
                    future[pc] = (r | reads, w | writes)
                    work.append(pc)
        return future

    def loops(self, thread: int) -> set[int]:
        """The steps with an edge back to a step that led to them: each cycle of the thread has one."""
        found: set[int] = set()
        colour: dict[int, int] = {}
        for root in self.steps[thread]:
            if root in colour or root not in self.known[thread]:
                continue
            colour[root] = 1
            stack: list[tuple[int, Iterator[int]]] = [(root, iter(self.plain(thread, root)))]
            while stack:
                pc, following = stack[-1]
                for after in following:
                    if colour.get(after) == 1:
                        found.add(pc)
                    elif after not in colour:
                        colour[after] = 1
                        stack.append((after, iter(self.plain(thread, after))))
                        break
                else:
                    colour[pc] = 2
                    stack.pop()
        return found

    def plain(self, thread: int, pc: int) -> dict[int, Facts]:
        return self.footprint(thread, pc, self.known[thread][pc]).after

    def rows(self, groups: list[list[int]], telling: int) -> list[dict[int, list[int]]]:
        """See Reduction. Of two alike threads at one place neither moves alone: which comes first is the engine's affair.

        telling: cells that who moves alone does not write either.
        """
        kin = {t: group for group in groups for t in group}
        threads = range(len(self.program.threads))
        cache: dict[tuple[int, Facts], list[tuple[int, int, int]]] = {}

        def classes(thread: int, locks: Facts) -> list[tuple[int, int, int]]:
            """(reads, writes, the steps with these futures), all the thread's steps."""
            key = (thread, locks)
            if key not in cache:
                future = self.futures(thread, locks)
                members: dict[tuple[int, int], int] = {}
                for number, pc in enumerate(self.steps[thread]):
                    if pc in future:
                        members[future[pc]] = members.get(future[pc], 0) | 1 << number
                cache[key] = [(r, w, bits_) for (r, w), bits_ in members.items()]
            return cache[key]

        out: list[dict[int, list[int]]] = []
        for t in threads:
            loops = self.loops(t)
            table: dict[int, list[int]] = {}
            done: dict[tuple[int, int, Facts], list[int]] = {}
            for number, pc in enumerate(self.steps[t]):
                if pc in loops or pc not in self.known[t]:
                    continue
                step = self.footprint(t, pc, self.known[t][pc])
                if step.choice or step.writes & (self.visible | telling):
                    continue
                locks = self.locks(t, pc)
                key = (step.reads, step.writes, locks)
                if key not in done:
                    touched = step.reads | step.writes
                    row = []
                    for u in threads:
                        fine = 1 << len(self.steps[u])
                        if u != t:
                            for reads, writes, places in classes(u, locks):
                                if not (writes & touched or reads & step.writes):
                                    fine |= places
                        row.append(fine)
                    done[key] = row
                here = ~(1 << number)
                table[pc] = [done[key][u] & (here if u in kin.get(t, ()) else -1) for u in threads]
            out.append(table)
        return out


def _mask(instr: ir.Instr, at: int | None) -> int:
    """The cells of a LOAD or STORE, given its index if it is known."""
    if at is not None:
        return 1 << instr.base + at if instr.lo <= at <= instr.hi else 0
    return ((1 << instr.hi - instr.lo + 1) - 1) << instr.base + instr.lo
