"""The packed state of the native engine: which bits of which word hold which value.

A cell or local takes as many bits as its range needs and never straddles a word. Locals that are alive at the same step
never share bits; a local that is dead is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import ir
from .analysis import bits


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
            live = thread.live
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
