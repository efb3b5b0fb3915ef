"""Pools (pools.py) as native/explore.h wants them: the same slots and references, in packed states."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from .encode import signed
from .layout import Layout, Place
from .pools import Pool, Pools, Site, Table

POOL_ARRAYS = (
    *(
        "first",
        "pool_of",
        "width",
        "field_at",
        "fields",
        "look_at",
        "look_word",
        "look",
        "free_at",
        "free_from",
        "free",
    ),
    *(
        "fixed_at",
        "fixed_from",
        "fixed",
        "site_at",
        "frame_at",
        "run_at",
        "run_word",
        "run_mask",
        "sites",
        "entry",
        "to",
        "rows",
    ),
)
"""The arrays of `pools` in native/explore.h, in their order there."""


def pool_arrays(pools: Pools, layout: Layout, max_pc: int) -> dict[str, array[int]]:
    """`pools` of native/explore.h, but for `count`."""
    made = vars(_Slots(pools, layout)) | vars(_References(pools, layout, max_pc))
    return {name: array("Q" if name in ("look", "run_mask") else "i", made[name]) for name in POOL_ARRAYS}


class _Slots:
    """What a slot holds."""

    def __init__(self, pools: Pools, layout: Layout) -> None:
        self.first = [pool.first for pool in pools.pools] + [len(pools.cells)]
        self.pool_of: list[int] = []
        self.width: list[int] = []
        self.field_at: list[int] = []
        self.fields: list[int] = []
        self.look_at = [0]
        self.look_word: list[int] = []
        self.look: list[int] = []
        self.free_at: list[int] = []
        self.free_from: list[int] = []
        self.free: list[int] = []
        self.fixed_at = [0]
        self.fixed_from = [0]
        self.fixed: list[int] = []
        for number, pool in enumerate(pools.pools):
            self.pool_of += [number] * pool.count
            self.add(pool, [[layout.cells[cell] for cell in pools.cells[slot]] for slot in pool.slots])
            for cells in pool.fixed:
                places = [layout.cells[cell] for cell in cells]
                if all(place.bits or place.lo == 0 for place in places):
                    self.fixed += [word for place in places if place.bits for word in _field(place, 0)]
                    self.fixed_from.append(len(self.fixed) // 4)
            self.fixed_at.append(len(self.fixed_from) - 1)

    def add(self, pool: Pool, slots: list[list[Place]]) -> None:
        stored = [at for at, place in enumerate(slots[0]) if place.bits]
        self.width.append(len(stored))
        self.free_at.append(sum(at in stored for at in pool.free))
        for places in slots:
            self.field_at.append(len(self.fields) // 4)
            words: dict[int, tuple[int, int]] = {}
            for at in stored:
                place, value = places[at], pool.blank[at]
                self.fields += _field(place, value)
                mask, held = words.get(place.word, (0, 0))
                words[place.word] = (
                    mask | (1 << place.bits) - 1 << place.shift,
                    held | value - place.lo << place.shift,
                )
            self.look_word += words
            self.look += [word for both in words.values() for word in both]
            self.look_at.append(len(self.look_word))
            self.free_from.append(len(self.free) // 4)
            self.free += [word for at in pool.free if at in stored for word in _field(places[at], 0)]


class _References:
    """Where references are, and what becomes of them."""

    def __init__(self, pools: Pools, layout: Layout, max_pc: int) -> None:
        self.site_at = [0]
        self.frame_at: list[int] = []
        self.run_at: list[int] = []
        self.run_word: list[int] = []
        self.run_mask: list[int] = []
        self.sites: list[int] = []
        self.entry: list[int] = []
        self.to: list[int] = []
        self.rows: list[int] = []
        self.tables: dict[int, int] = {}
        for cells in [pools.roots, *pools.inner]:
            self.add((layout.cells[cell], sites) for cell, sites in cells)
            self.site_at.append(len(self.run_at))
        for known, live, places in zip(pools.frames, layout.live, layout.locals, strict=True):
            for members in live.values():
                self.frame_at.append(len(self.run_at))
                self.add((places[local], sites) for local, sites in known.items() if members >> local & 1)
            self.frame_at += [len(self.run_at)] * (max_pc - len(live))
        self.frame_at.append(len(self.run_at))
        self.run_at.append(len(self.sites) // 4)

    def add(self, where: Iterable[tuple[Place, list[Site]]]) -> None:
        """References in the order in which they are followed, in runs."""
        last = -1
        for place, sites in where:
            for shift, mask, table in sites:
                if place.word != last:
                    self.run_at.append(len(self.sites) // 4)
                    self.run_word.append(place.word)
                    self.run_mask.append(0)
                    last = place.word
                if id(table) not in self.tables:
                    self.tables[id(table)] = self.add_table(table)
                self.run_mask[-1] |= mask << place.shift + shift
                self.sites.extend((place.word, place.shift + shift, signed(mask), self.tables[id(table)]))

    def add_table(self, table: Table) -> int:
        """Where its words begin."""
        first = len(self.entry)
        rows: dict[tuple[int, ...], int] = {}
        for each in table:
            if each is None:
                self.entry.append(-1)
                continue
            slot, words = each
            if words not in rows:
                rows[words] = len(self.rows)
                self.rows += words
            self.entry.append(len(self.to) // 2)
            self.to += [slot, rows[words]]
        return first


def _field(place: Place, value: int) -> tuple[int, int, int, int]:
    return place.word, place.shift, signed((1 << place.bits) - 1), signed(value - place.lo)
