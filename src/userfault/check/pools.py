"""Symmetry of pool objects: of states that differ only in which slots of a pool are taken, one is explored.

An allocation scans its pool and takes the first free slot. So which slot an object has says who allocated first, which nobody
can see if the slots are alike: `compile_program` is told of which structs they are. Objects that are not free in the beginning
(a test may name them) never change place.

The representative of a state numbers the taken slots in the order in which they are first reached: from the cells that are in
no slot, then from the threads' locals, then from slot to slot. References in cells, in locals and within value types are
rewritten. Different representatives may be left of states that are the same (a slot that nobody refers to stays where it is
among its like): then less is merged.

What the scan takes next must not depend on what was merged. It does not while every free slot is blank: its content as in the
beginning, and no reference to it left. Nor does it while every blank slot is one that was never taken (they are behind the
others in every run) and at most one free slot is not blank. A search looks out for pools of which neither is true (`Mix`), and
is done again without them: what the slots' last users left decides there who meets whom.

References are followed where types say that they are: `_typed` makes sure that they get nowhere else and that no code orders them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, reduce
from itertools import chain
from operator import or_
from typing import Any

from . import ir
from .heap import Heap
from .ir import READS_A, READS_B, WRITES_D, Op
from .types import ListT, NoneT, RefT, Scalar, Type, ValT, is_struct, struct_fields

MAX_SLOTS = 64
"""The native engine's sets of slots are one word."""

Object = tuple[type, int]
"""A struct and the object's number in its pool, from 1."""

Table = list[tuple[int, tuple[int, ...]] | None]
"""For each word of a reference: the slot that it is to (or into), and the words of the same reference to each slot of that pool."""

Site = tuple[int, int, Table]
"""A reference in a word: shift, mask, and its table."""


@dataclass(slots=True)
class Pool:
    """first: its first slot; count: how many. blank: what the cells of a slot hold that was never taken.

    free: which of a slot's cells are zero while it is free. fixed: of each of the pool's other objects, the cells that are.
    """

    struct: type
    first: int
    count: int
    blank: tuple[int, ...]
    free: list[int]
    fixed: list[list[int]]

    @property
    def slots(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(slots=True)
class Mix:
    """What a search has seen of each pool (bit sets of their numbers).

    known: a free slot that is not blank. emptied: a slot that became blank again. apart: two free slots that are not blank.
    """

    known: int = 0
    emptied: int = 0
    apart: int = 0

    def pools(self) -> int:
        """The pools of which too much was merged, perhaps."""
        return self.apart | (self.known & self.emptied)


@dataclass(slots=True)
class Pools:
    """The slots of a program, numbered through all pools.

    cells: of each slot (and of what is embedded in it), the same order in all slots of a pool. roots, inner, frames: where references
    are: in the cells of no slot, in those of each slot, in the locals of each thread. left_out: structs that it does without.
    """

    pools: list[Pool]
    cells: list[list[int]]
    roots: list[tuple[int, list[Site]]]
    inner: list[list[tuple[int, list[Site]]]]
    frames: list[dict[int, list[Site]]]
    left_out: frozenset[type] = frozenset()

    def telling(self) -> int:
        """The cells that say which slots and other objects of the pools are free, as a bit set."""
        found = 0
        for pool in self.pools:
            for cell in chain([self.cells[slot][at] for slot in pool.slots for at in pool.free], *pool.fixed):
                found |= 1 << cell
        return found

    def taken(self, cells: tuple[int, ...], frames: list[list[tuple[int, int]]]) -> list[int]:
        """The slots that are not blank, in the representative's order. frames: of each thread, its locals and their values."""
        order: list[int] = []
        seen: set[int] = set()

        def visit(word: int, sites: list[Site]) -> None:
            for shift, mask, table in sites:
                entry = table[word >> shift & mask]
                if entry is not None and entry[0] not in seen:
                    seen.add(entry[0])
                    order.append(entry[0])

        for cell, sites in self.roots:
            visit(cells[cell], sites)
        for known, frame in zip(self.frames, frames, strict=True):
            for local, value in frame:
                if local in known:
                    visit(value, known[local])
        done = 0
        for pool in self.pools:
            for slot in (*pool.slots, -1):
                while done < len(order):
                    for cell, sites in self.inner[order[done]]:
                        visit(cells[cell], sites)
                    done += 1
                if slot >= 0 and slot not in seen and tuple(cells[c] for c in self.cells[slot]) != pool.blank:
                    seen.add(slot)
                    order.append(slot)
        return order

    def note(self, mix: Mix, before: set[int], after: list[int], cells: tuple[int, ...]) -> None:
        """Look at a state before it is changed for its representative. before: the slots taken where its step began."""
        for number, pool in enumerate(self.pools):
            taken = [slot for slot in after if slot in pool.slots]
            free = sum(all(cells[self.cells[slot][at]] == 0 for at in pool.free) for slot in taken)
            free += sum(all(cells[cell] == 0 for cell in each) for each in pool.fixed)
            mix.known |= (free > 0) << number
            mix.apart |= (free > 1) << number
            mix.emptied |= any(slot in before and slot not in taken for slot in pool.slots) << number

    def renumbered(
        self, cells: tuple[int, ...], frames: list[list[tuple[int, int]]], order: list[int]
    ) -> tuple[list[int], list[list[tuple[int, int]]]]:
        """The representative. order: as `taken` gave it."""
        out = list(cells)
        at: dict[int, int] = {}
        for pool in self.pools:
            mine = [slot for slot in order if slot in pool.slots]
            for place, slot in enumerate(mine):
                at[slot] = place
                for new, old in zip(self.cells[pool.first + place], self.cells[slot], strict=True):
                    out[new] = cells[old]
            for slot in pool.slots[len(mine) :]:
                for cell, value in zip(self.cells[slot], pool.blank, strict=True):
                    out[cell] = value

        def moved(word: int, sites: list[Site]) -> int:
            for shift, mask, table in sites:
                entry = table[word >> shift & mask]
                if entry is not None:
                    word = word & ~(mask << shift) | entry[1][at[entry[0]]] << shift
            return word

        for cell, sites in self.roots:
            out[cell] = moved(out[cell], sites)
        for within in self.inner:
            for cell, sites in within:
                out[cell] = moved(out[cell], sites)
        return out, [
            [(local, moved(value, known[local]) if local in known else value) for local, value in frame]
            for known, frame in zip(self.frames, frames, strict=True)
        ]


def find_pools(program: ir.Program, left_out: frozenset[type] = frozenset()) -> Pools | None:
    """The slots of a program's pools, without some. None: there are none that are alike, or code looks at references themselves."""
    structs = [struct for struct in program.pools if struct not in left_out]
    if program.heap is None or not structs or not _typed(program):
        return None
    return _Finder(program, program.heap).find(structs, left_out)


@dataclass(slots=True)
class _Finder:
    program: ir.Program
    heap: Heap
    cells: dict[Object, list[int]] = field(default_factory=dict)
    tables: dict[RefT, Table] = field(default_factory=dict)
    slot_of: dict[Object, tuple[int, int]] = field(default_factory=dict)
    """Object -> its slot, and its place in the slot's family."""
    families: list[list[Object]] = field(default_factory=list)
    pool_of: list[Pool] = field(default_factory=list)
    """Of each slot."""

    def find(self, structs: list[type], left_out: frozenset[type]) -> Pools | None:
        for number, cell in enumerate(self.program.cells):
            if cell.owner is not None:
                self.cells.setdefault(cell.owner[:2], []).append(number)
        pools: list[Pool] = []
        for struct in structs:
            pool, families = self.alike(struct, pools[-1].slots.stop if pools else 0)
            if pool is not None and pool.slots.stop <= MAX_SLOTS:
                pools.append(pool)
                self.families += families
                self.pool_of += [pool] * pool.count
        if not pools:
            return None
        self.slot_of = {
            each: (slot, place) for slot, family in enumerate(self.families) for place, each in enumerate(family)
        }
        cells = [[cell for each in family for cell in self.cells.get(each, [])] for family in self.families]
        inside = {cell for each in cells for cell in each}
        outside = [number for number in range(len(self.program.cells)) if number not in inside]
        return Pools(
            pools,
            cells,
            self.places(outside),
            [self.places(each) for each in cells],
            [
                {local: sites for local, each in enumerate(thread.locals) if (sites := self.sites(each.kind))}
                for thread in self.program.threads
            ],
            left_out,
        )

    def family(self, obj: Object) -> list[Object]:
        """An object and what is embedded in it: found by fields that nobody writes."""
        out = [obj]
        for struct, number in out:
            written = {self.program.cells[cell].owner[2] for cell in self.cells.get((struct, number), [])}  # type: ignore[index]
            for name, kind in struct_fields(struct).items():
                value = getattr(self.heap.pools[struct][number - 1], name)
                for each in value if isinstance(kind, ListT) else [value]:
                    if name not in written and is_struct(type(each)) and getattr(type(each), "__embedded__", False):
                        found = type(each), self.heap.index[id(each)]
                        if found not in out:
                            out.append(found)
        return out

    def alike(self, struct: type, first: int) -> tuple[Pool | None, list[list[Object]]]:
        """The objects of a pool that are alike in the beginning, and free."""
        families = [self.family((struct, number)) for number in range(1, self.heap.count(struct) + 1)]
        members = [each for family in families for each in family]
        if len(set(members)) < len(members):
            return None, []
        referred = self.referred(families)
        blank = [number for number, each in enumerate(families) if number not in referred and self.free(each[0])]
        if not blank:
            return None, []
        like = self.look(families[blank[-1]])
        blank = [number for number in blank if self.look(families[number]) == like]
        main = families[blank[-1]][0]
        cells = [cell for each in families[blank[-1]] for cell in self.cells.get(each, [])]
        free = [at for at, cell in enumerate(cells) if self.tells(main, cell)]
        if len(blank) < 2 or not free:
            return None, []
        fixed = [
            [cell for cell in self.cells.get(family[0], []) if self.tells(family[0], cell)]
            for number, family in enumerate(families)
            if number not in blank and not self.never_free(family[0])
        ]
        content = tuple(self.program.cells[cell].init for cell in cells)
        return Pool(struct, first, len(blank), content, free, fixed), [families[number] for number in blank]

    def tells(self, obj: Object, cell: int) -> bool:
        """Is this one of the cells that are zero while the object is free?"""
        owner = self.program.cells[cell].owner
        return owner is not None and owner[:2] == obj and owner[2] in self.program.pools[obj[0]]

    def free(self, obj: Object) -> bool:
        return not any(getattr(self.heap.pools[obj[0]][obj[1] - 1], name) for name in self.program.pools[obj[0]])

    def never_free(self, obj: Object) -> bool:
        """Does a field say so that nobody writes?"""
        written = {self.program.cells[cell].owner[2] for cell in self.cells.get(obj, [])}  # type: ignore[index]
        held = self.heap.pools[obj[0]][obj[1] - 1]
        return any(getattr(held, name) for name in self.program.pools[obj[0]] if name not in written)

    def look(self, family: list[Object]) -> list[Any]:
        """All that tells an object from others, with what is embedded in it: its cells, and its part of the tables."""
        out: list[Any] = [[struct for struct, _ in family]]
        for each in family:
            for number in self.cells.get(each, []):
                cell = self.program.cells[number]
                out.append((cell.lo, cell.hi, cell.init, cell.owned, cell.thread_id, cell.per_thread))
            for (struct, name), table in zip(self.program.table_fields, self.program.tables, strict=True):
                if struct is each[0]:
                    length = len(table) // self.heap.count(struct)
                    kind = _scalar(struct_fields(struct)[name])
                    for word in table[(each[1] - 1) * length : each[1] * length]:
                        to = list(self.objects(kind, word))
                        out.append([("own", family.index(o)) if o in family else o for o in to] if to else word)
        return out

    def referred(self, families: list[list[Object]]) -> set[int]:
        """The families that somebody refers to in the beginning."""
        number_of = {each: number for number, family in enumerate(families) for each in family}
        found: set[Object] = set()
        for cell in self.program.cells:
            found.update(self.objects(cell.kind, cell.init))
        for (struct, name), table in zip(self.program.table_fields, self.program.tables, strict=True):
            kind = _scalar(struct_fields(struct)[name])
            length = len(table) // max(self.heap.count(struct), 1)
            for at, word in enumerate(table):
                mine = number_of.get((struct, at // length + 1), -1)
                found.update(o for o in self.objects(kind, word) if mine < 0 or number_of.get(o) != mine)
        return {number_of[each] for each in found if each in number_of}

    def objects(self, kind: Scalar | NoneT | None, word: int) -> Iterator[Object]:
        """What a word refers to."""
        for shift, mask, ref in references(self.heap, kind):
            at = word >> shift & mask
            for struct in ref.structs if at else ():
                if at <= self.heap.count(struct):
                    yield struct, at
                    break
                at -= self.heap.count(struct)

    def places(self, cells: list[int]) -> list[tuple[int, list[Site]]]:
        every = [(cell, self.program.cells[cell]) for cell in cells]
        return [(number, sites) for number, cell in every if cell.lo < cell.hi and (sites := self.sites(cell.kind))]

    def sites(self, kind: Scalar | NoneT | None) -> list[Site]:
        """The references in a word of a type that may be to slots."""
        found = [(shift, mask, self.table(ref)) for shift, mask, ref in references(self.heap, kind)]
        return [each for each in found if any(each[2])]

    def table(self, ref: RefT) -> Table:
        if ref not in self.tables:
            _, mask, _ = references(self.heap, ref)[0]
            table: Table = [None] * (mask + 1)
            for word in range(1, self.heap.bounds(ref)[1] + 1):
                (obj,) = self.objects(ref, word)
                if obj in self.slot_of:
                    slot, place = self.slot_of[obj]
                    twins = (self.families[each][place] for each in self.pool_of[slot].slots)
                    table[word] = slot, tuple(self.heap.offset(ref, struct) + number for struct, number in twins)
            self.tables[ref] = table
        return self.tables[ref]


def _scalar(kind: Type) -> Scalar | NoneT:
    return kind.elem if isinstance(kind, ListT) else kind


def references(heap: Heap, kind: Scalar | NoneT | None) -> list[tuple[int, int, RefT]]:
    """The references in a word of a type: shift and mask of each."""
    if isinstance(kind, RefT):
        return [(0, (1 << heap.bounds(kind)[1].bit_length()) - 1, kind)]
    if isinstance(kind, ValT):
        return [
            (shift, (1 << width) - 1, sub)
            for sub, shift, width, _ in heap.layout(kind.cls)[0].values()
            if isinstance(sub, RefT) and width
        ]
    return []


def _typed(program: ir.Program) -> bool:
    """Are references to be found where types say so, and only there, wherever a step begins? And does no code order them?

    Of every value it is followed which of its bits may come from a reference; those of one that was calculated with, all.
    """
    heap = program.heap
    assert heap is not None

    @cache
    def of(kind: Scalar | NoneT | None) -> int:
        return sum(mask << shift for shift, mask, _ in references(heap, kind))

    cells = [of(cell.kind) for cell in program.cells]
    tables = [of(_scalar(struct_fields(struct)[name])) for struct, name in program.table_fields]
    owners: list[ir.Thread | ir.Spec] = [*program.threads, *program.invariants, *program.finals]
    for owner in owners:
        held = [of(local.kind) for local in owner.locals]
        for instr in owner.code:
            op = instr.op
            a = held[instr.a] if op in READS_A and instr.a >= 0 else 0
            b = held[instr.b] if op in READS_B and instr.b >= 0 else 0
            if op is Op.STORE:
                written = program.cells[instr.base + instr.lo : instr.base + instr.hi + 1]
                if any(b & ~_room(cell.kind, of(cell.kind)) for cell in written):
                    return False
            elif op in (Op.LT, Op.LE) and a and b:
                return False
            elif op in WRITES_D:
                result = _refers(program, instr, a, b, cells, tables)
                kind = owner.locals[instr.d].kind
                if kind is None:
                    # Scratch: read in the block that wrote it, and nowhere else.
                    held[instr.d] = result
                elif result & ~_room(kind, of(kind)):
                    return False
    return True


def _room(kind: Scalar | NoneT | None, mask: int) -> int:
    """The bits that may come from a reference. One to one of several structs is had from one to another by adding."""
    return -1 if isinstance(kind, RefT) else mask


def _refers(program: ir.Program, instr: ir.Instr, a: int, b: int, cells: list[int], tables: list[int]) -> int:
    """The bits of an instruction's result that may come from a reference, given those of what it reads."""
    op = instr.op
    if op is Op.LOAD:
        return reduce(or_, cells[instr.base + instr.lo : instr.base + instr.hi + 1], 0)
    if op is Op.LOADK:
        return tables[instr.base]
    if op is Op.MOV:
        return a
    if op in (Op.EQ, Op.NE, Op.LT, Op.LE, Op.NOT, Op.CHOOSE) or not a | b:
        return 0
    constant = program.consts[-1 - instr.b] if instr.b < 0 else None
    if constant is not None and op is Op.SHR and constant >= 0:
        return a >> constant
    if constant is not None and op is Op.SHL and constant >= 0:
        return a << constant
    if constant is not None and op is Op.AND:
        return a & constant
    if op is Op.OR:
        return a | b
    return -1
