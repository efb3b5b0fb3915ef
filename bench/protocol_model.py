"""The protocol of bench/peers/protocol.pml, step for step, as plain functions for userfault's checker.

Every call of an @atomic function, and every load or store of a field, is one of the numbered steps of the other
transcriptions. The words are few on purpose: states must be comparable, so there is no bookkeeping beside the protocol.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.ir import Program
from userfault.model.lang import Range, atomic, check, struct, wait_until

Bit = Annotated[int, Range(0, 1)]
Count = Annotated[int, Range(0, 7)]
Entry = Annotated[int, Range(0, 2)]
Place = Annotated[int, Range(0, 4)]
NONE, HUGE, SPLITTING = 0, 1, 2


@struct
class world:
    """One huge page, anon_vmas 0 (A) and 1 (B), VMAs 0 (source, in A), 1 (destination, in B), 2 (the child's, in A)."""

    mapping: Bit = 0
    pidx: Bit = 0
    mapcount: Annotated[int, Range(0, 3)] = 1
    plock: Bit = 0
    compound: Bit = 1
    ref: list[Count] = field(default_factory=lambda: [1, 1])
    rd: list[Count] = field(default_factory=lambda: [0, 0])
    wr: list[Bit] = field(default_factory=lambda: [0, 0])
    live: list[Bit] = field(default_factory=lambda: [1, 1])
    linked: list[Bit] = field(default_factory=lambda: [1, 1, 0])
    pte: list[Entry] = field(default_factory=lambda: [HUGE, NONE, NONE])
    ptl: Bit = 0
    mm_rd: Annotated[int, Range(0, 3)] = 0
    mm_wr: Bit = 0


class Knobs:
    """Rechecks on the fast path, slow path and in split; index before mapping; split reads the mapping once."""

    RF, RS, RP, IO, SR = True, True, True, True, True


knobs = Knobs()


@atomic
def mmap_read(w: world) -> None:
    wait_until(w.mm_wr == 0)
    w.mm_rd += 1


@atomic
def mmap_read_unlock(w: world) -> None:
    w.mm_rd -= 1


@atomic
def mmap_write(w: world) -> None:
    wait_until(w.mm_rd == 0 and w.mm_wr == 0)
    w.mm_wr = 1


@atomic
def movable_first(w: world, s: int, d: int) -> bool:
    wait_until(w.ptl == 0 and w.pte[s] != SPLITTING)
    return w.pte[s] == HUGE and w.pte[d] == NONE and w.mapcount == 1 and w.linked[s] == 1 and w.linked[d] == 1


@atomic
def movable(w: world, s: int, d: int) -> bool:
    return w.pte[s] == HUGE and w.pte[d] == NONE and w.mapcount == 1


@atomic
def lock_page(w: world) -> None:
    wait_until(w.plock == 0)
    w.plock = 1


@atomic
def get_ref(w: world, a: Bit) -> None:
    check(w.ref[a] > 0, "assert", "a reference to a dead anon_vma")
    w.ref[a] += 1


@atomic
def down_write(w: world, a: Bit) -> None:
    wait_until(w.rd[a] == 0 and w.wr[a] == 0)
    check(w.live[a] == 1, "assert", "a dead anon_vma was locked")
    w.wr[a] = 1


@atomic
def up_write(w: world, a: Bit) -> None:
    check(w.live[a] == 1, "assert", "a dead anon_vma was unlocked")
    w.wr[a] = 0


@atomic
def lock_ptl(w: world) -> None:
    wait_until(w.ptl == 0)
    w.ptl = 1


@atomic
def put_ref(w: world, a: Bit) -> None:
    w.ref[a] -= 1
    check(w.ref[a] > 0, "assert", "the mover held the last reference")


def remap(w: world, s: int, d: int) -> None:
    mmap_read(w)
    if movable_first(w, s, d):
        lock_page(w)
        a = w.mapping
        get_ref(w, a)
        down_write(w, a)
        lock_ptl(w)
        if movable(w, s, d):
            if knobs.IO:
                w.pidx = d
                w.mapping = d
            else:
                w.mapping = d
                w.pidx = d
            w.pte[s] = NONE
            w.pte[d] = HUGE
        w.ptl = 0
        up_write(w, a)
        put_ref(w, a)
        w.plock = 0
    mmap_read_unlock(w)


@atomic
def down_read_trylock(w: world, a: Bit) -> bool:
    if w.wr[a] != 0:
        return False
    w.rd[a] += 1
    return True


@atomic
def down_read(w: world, a: Bit) -> None:
    wait_until(w.wr[a] == 0)
    check(w.live[a] == 1, "assert", "a dead anon_vma was locked")
    w.rd[a] += 1


@atomic
def up_read(w: world, a: Bit) -> None:
    w.rd[a] -= 1


@atomic
def inc_not_zero(w: world, a: Bit) -> bool:
    if w.ref[a] == 0:
        return False
    w.ref[a] += 1
    return True


@atomic
def dec_was_last(w: world, a: Bit) -> bool:
    check(w.ref[a] > 0, "assert", "a reference too many was put")
    w.ref[a] -= 1
    return w.ref[a] == 0


@atomic
def unlocked(w: world, a: Bit) -> bool:
    return w.rd[a] == 0 and w.wr[a] == 0


@atomic
def free(w: world, a: Bit) -> None:
    check(w.live[a] == 1, "assert", "an anon_vma was freed twice")
    w.live[a] = 0


def anon_vma_free(w: world, a: Bit) -> None:
    if not unlocked(w, a):
        down_write_dead(w, a)
        w.wr[a] = 0
    free(w, a)


@atomic
def down_write_dead(w: world, a: Bit) -> None:
    wait_until(w.rd[a] == 0 and w.wr[a] == 0)
    w.wr[a] = 1


def put(w: world, a: Bit) -> None:
    if dec_was_last(w, a):
        anon_vma_free(w, a)


@atomic
def begin_walk(w: world, a: Bit) -> int:
    check(w.live[a] == 1 and w.mapping == a, "assert", "the walk begins under the wrong lock")
    return w.pidx


@atomic
def found(w: world, v: Place, i: Bit) -> bool:
    return w.linked[v] == 1 and i == (1 if v == 1 else 0)


@atomic
def end_look(w: world, a: Bit, i: Bit) -> None:
    check(w.live[a] == 1 and w.mapping == a and w.pidx == i, "assert", "the page moved during the walk")
    w.ptl = 0


@atomic
def end_walk(w: world, a: Bit, i: Bit) -> None:
    check(w.live[a] == 1 and w.mapping == a and w.pidx == i, "assert", "the page moved during the walk")
    w.rd[a] -= 1


def look(w: world, a: Bit, v: Place, i: Bit) -> None:
    if found(w, v, i):
        lock_ptl(w)
        end_look(w, a, i)


def walker(w: world) -> None:
    while True:
        a = w.mapping
        if w.mapcount == 0:
            return
        if down_read_trylock(w, a):
            if knobs.RF and w.mapping != a:
                up_read(w, a)
                continue
            if w.mapcount == 0:
                up_read(w, a)
                return
        else:
            if not inc_not_zero(w, a):
                return
            if w.mapcount == 0:
                put(w, a)
                return
            down_read(w, a)
            if knobs.RS and w.mapping != a:
                up_read(w, a)
                put(w, a)
                continue
            if dec_was_last(w, a):
                up_read(w, a)
                anon_vma_free(w, a)
                return
        i = begin_walk(w, a)
        v: Place = a
        while True:
            look(w, a, v, i)
            v = v + 2
            if v > 2:
                break
        end_walk(w, a, i)
        return


@atomic
def mark(w: world, v: Place) -> int:
    if w.pte[v] != HUGE:
        return 0
    w.pte[v] = SPLITTING
    return 1


@atomic
def finish_split(w: world) -> None:
    wait_until(w.ptl == 0)
    w.compound = 0
    for v in range(3):
        if w.pte[v] == SPLITTING:
            w.pte[v] = HUGE


def splitter(w: world) -> None:
    while True:
        m = w.mapping
        a = m if knobs.SR else w.mapping
        if w.mapcount == 0:
            return
        if not inc_not_zero(w, a):
            return
        if w.mapcount == 0:
            put(w, a)
            return
        down_write(w, a)
        if knobs.RP and w.mapping != m:
            w.wr[a] = 0
            put(w, a)
            continue
        break
    if w.compound == 1:
        i = w.pidx
        v: Place = a
        c: Place = 0
        while True:
            if found(w, v, i):
                lock_ptl(w)
                c = c + mark(w, v)
                w.ptl = 0
            v = v + 2
            if v > 2:
                break
        check(c == w.mapcount, "assert", "BUG_ON: split found another number of mappings")
        finish_split(w)
    up_write(w, a)
    put(w, a)


@atomic
def lock_ptl_stable(w: world) -> None:
    wait_until(w.ptl == 0 and w.pte[0] != SPLITTING)
    w.ptl = 1


@atomic
def dup_rmap(w: world) -> bool:
    if w.pte[0] != HUGE:
        return False
    w.mapcount += 1
    return True


def forker(w: world) -> None:
    mmap_write(w)
    if w.linked[0] == 1:
        down_write(w, 0)
        w.linked[2] = 1
        up_write(w, 0)
        lock_ptl_stable(w)
        if dup_rmap(w):
            w.pte[2] = HUGE
        w.ptl = 0
    w.mm_wr = 0


@atomic
def clear(w: world) -> bool:
    if w.pte[0] != HUGE:
        return False
    w.pte[0] = NONE
    return True


@atomic
def drop_rmap(w: world) -> None:
    w.mapcount -= 1


@atomic
def unlink(w: world) -> bool:
    w.linked[0] = 0
    return w.linked[2] == 0


def munmapper(w: world) -> None:
    mmap_write(w)
    lock_ptl_stable(w)
    if clear(w):
        drop_rmap(w)
    w.ptl = 0
    down_write(w, 0)
    last = unlink(w)
    up_write(w, 0)
    if last:
        put(w, 0)
    w.mm_wr = 0


def program(walkers: int, remappers: int, *, seed: bool = False) -> Program:
    """NW walkers, NR remappers, a splitter, a fork and a munmap. seed: the 2013 patch as posted."""
    knobs.RF = knobs.IO = not seed
    w = world()
    specs = [ThreadSpec("remap", [Call(remap, (w, n % 2, 1 - n % 2))]) for n in range(remappers)]
    specs += [ThreadSpec("walker", [Call(walker, (w,))]) for _ in range(walkers)]
    specs += [ThreadSpec(fn.__name__, [Call(fn, (w,))]) for fn in (splitter, forker, munmapper)]
    return compile_program("protocol", specs, roots=[w])


SIZES = {"S": (1, 1), "M": (2, 2), "L": (3, 1), "XL": (3, 2)}
