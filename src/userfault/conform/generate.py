"""Random sequences. A profile (profiles.py) says which operations come how often; the model's state says what most arguments should be.

Without the state nearly every operation would be refused at the door: two random ranges are seldom fit for a move.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container

from ..kernel.agent import SLOTS
from ..model.mm_types import PmdKind, PteKind, mm_struct, pte_t, stable_node, userfaultfd_ctx, vm, vm_area_struct
from ..model.mm_types import page as Page
from ..model.page_flags import PageKsm
from ..model.slab import compound_head
from .operations import ADVICE, MEANWHILES, MERGE, OF_USERFAULTFD, UNMERGE, Op
from .profiles import Profile
from .world import HUGE_PAGES, PAGE, WATCHED, World

RW = int(vm.READ | vm.WRITE)
ACCESS = int(vm.READ | vm.WRITE | vm.EXEC)
HUGE_BYTES = HUGE_PAGES * PAGE
HOLE = PteKind.NONE
NOTHING, HUGE_PART = pte_t(), pte_t(kind=PteKind.PRESENT)
TRIES = 8
UNMAPPED = -64 * PAGE
"""Where nothing is mapped: a source that no fault can hold up."""


class Generator:
    """Draws operations for a profile, each in the state that the model is in when it is asked."""

    def __init__(self, profile: Profile, rng: random.Random, world: World) -> None:
        self.profile, self.rng, self.world = profile, rng, world
        weights = {
            name: weight
            for name, weight in profile.weights.items()
            if not world.quirks.lacks(name.removeprefix("meanwhile_"))
        }
        self.names, self.totals = list(weights), list(weights.values())
        self.watched = profile.contexts is WATCHED
        self.process = 0
        self.main = rng.choice(range(len(WATCHED)) if self.watched else (0, 0, 1, 2))
        self.child = -1
        self.at = 0
        self.read: dict[int, int] = {}
        """Where each process has read for another (vmread) since it stored."""
        self.left: dict[int, range] = {}
        """The parts that each process has left of the huge page that it gave back in part."""

    def draw(self) -> Op:
        """The next operation: at first some that map most of the window."""
        self.at += 1
        window = self.profile.window
        half = window.pages // 2
        if self.profile.huge and self.at <= (5 if "writeprotect" in self.names else 4):
            return self.huge_start(half)
        if self.at <= 2:
            return Op(0, "mmap", ((window.first + (self.at - 1) * half) * PAGE, (half - 1) * PAGE, 3))
        if self.at == 3:
            return Op(
                0, "register", (self.main, (window.first + half) * PAGE, (half - 1) * PAGE, self.rng.choice((1, 3)))
            )
        name = self.rng.choices(self.names, self.totals)[0]
        processes = [number for number, mm in enumerate(self.world.processes) if mm is not None]
        if name == "fork":
            free = [number for number in range(1, 1 + self.profile.children) if number not in processes]
            if free:
                return Op(self.rng.choice(processes), "fork", (free[0],))
            name = "exit"
        if name == "exit":
            if len(processes) > 1:
                return Op(self.rng.choice(processes[1:]), "exit", ())
            name = "load"
        process = self.rng.choice(processes)
        if name in OF_USERFAULTFD and self.maybe(0.9):
            process = 0
        self.process, mm = process, self.world.mm_of(process)
        if name in MEANWHILES:
            process, mm = 0, self.world.mm_of(0)
        children = self.world.contexts[len(WATCHED) :]
        self.child = -1
        if self.watched and children and name in OF_USERFAULTFD + MEANWHILES and self.maybe(0.25):
            self.child = self.rng.randrange(len(children)) + len(WATCHED)
            mm = self.world.contexts[self.child].mm
        draw = getattr(self, f"draw_{name.removeprefix('meanwhile_')}", self.range_in)
        if self.profile.huge and self.maybe(0.5):
            draw = getattr(self, f"huge_{name}", draw)
        args: tuple[int, ...] = draw(mm)
        if name == "move" and "held-split" in self.world.quirks.without and self.splits_in_use(mm, *args[1:4]):
            name, args = "load", self.draw_load(mm)
        if name == "meanwhile_copy":
            args = (*args[:2], UNMAPPED, *args[3:])
        return Op(process, name, args)

    def huge_start(self, half: int) -> Op:
        """Two halves, the upper one registered, the lower one for huge pages, which may often be write-protected."""
        lower, upper = (0, half * PAGE, 3), (half * PAGE, half * PAGE, 3)
        return (
            Op(0, "mmap", lower),
            Op(0, "mmap", upper),
            Op(0, "register", (self.main, half * PAGE, half * PAGE, self.rng.choice((1, 3)))),
            Op(0, "hugepage", (0, half * PAGE)),
            Op(0, "register", (self.main, 0, half * PAGE, self.rng.choice((2, 2, 0)))),
        )[self.at - 1]

    # -- the state ----------------------------------------------------------------------------------------------------

    def maybe(self, probability: float) -> bool:
        return self.rng.random() < probability

    @staticmethod
    def pte(mm: mm_struct, addr: int) -> pte_t:
        """What is mapped at an address; a huge page is like one that is present."""
        pmd = mm.pmd[addr >> 21].pmd
        if pmd.kind == PmdKind.TABLE:
            return pmd.table.pte[(addr >> 12) & 511].pte
        return NOTHING if pmd.kind == PmdKind.NONE else HUGE_PART

    def kind(self, mm: mm_struct, addr: int) -> PteKind:
        return self.pte(mm, addr).kind

    def vma(self, mm: mm_struct, flags: int = 0, ctx: int = -1) -> vm_area_struct | None:
        """Some VMA with these flags, registered with that userfaultfd."""
        fit = [
            vma
            for vma in mm.mmap
            if vma.vm_flags & flags == flags and (ctx < 0 or vma.ctx in self.world.contexts[ctx : ctx + 1])
        ]
        return self.rng.choice(fit) if fit else None

    def page_in(self, mm: mm_struct, vma: vm_area_struct | None, want: bool | None = None) -> int:
        """The address of a page of a VMA: one where something is (want), or nothing, if there is one."""
        if vma is None:
            return self.page()
        pages = range(vma.vm_start, vma.vm_end, PAGE)
        if want is None or not self.maybe(0.85):
            return self.rng.choice(pages)

        def fit(addr: int) -> bool:
            return (self.kind(mm, addr) != PteKind.NONE) == want

        # Mostly one whose neighbour is alike; a few tries find one where there are many.
        neighbours = self.maybe(0.6)
        for _ in range(TRIES):
            addr = self.rng.choice(pages)
            if fit(addr) and (not neighbours or (addr + PAGE in pages and fit(addr + PAGE))):
                return addr
        return self.rng.choice(self.filled(mm, pages, want) or pages)

    @staticmethod
    def filled(mm: mm_struct, pages: range, want: bool) -> list[int]:
        """The addresses of those of some neighbouring pages where something is (want), or nothing."""
        found: list[int] = []
        for start in range(pages.start & -HUGE_BYTES, pages.stop, HUGE_BYTES):
            part = range(max(start, pages.start), min(start + HUGE_BYTES, pages.stop), PAGE)
            pmd = mm.pmd[start // HUGE_BYTES].pmd
            if pmd.kind == PmdKind.TABLE:
                slots = pmd.table.pte[(part.start - start) // PAGE : (part.stop - start) // PAGE]
                found += [addr for addr, slot in zip(part, slots, strict=True) if (slot.pte.kind is not HOLE) == want]
            elif (pmd.kind != PmdKind.NONE) == want:
                found += part
        return found

    # -- arguments ----------------------------------------------------------------------------------------------------

    def page(self) -> int:
        """The address of a page of the window, seldom of one just outside."""
        window = self.profile.window
        if self.maybe(0.02):
            return (window.first + self.rng.choice((-1, window.pages, window.pages + 1))) * PAGE
        return (window.first + self.rng.randrange(window.pages)) * PAGE

    def pages(self) -> range:
        """The addresses of the window's pages."""
        window = self.profile.window
        return range(window.first * PAGE, (window.first + window.pages) * PAGE, PAGE)

    def length(self, most: int = 8) -> int:
        return min(int(self.rng.expovariate(0.4)) + 1, most) * PAGE

    def within(self, addr: int, *vmas: vm_area_struct | None) -> int:
        """A length that mostly stays within the VMAs that begin somewhere before `addr`."""
        length = self.length()
        if self.maybe(0.9):
            for vma in vmas:
                if vma is not None and vma.vm_start <= addr < vma.vm_end:
                    length = min(length, vma.vm_end - addr)
        return length

    def odd(self, value: int) -> int:
        """Now and then a value that is wrong."""
        if self.maybe(0.015):
            return self.rng.choice(
                (value + 1, value + 100, value - 1, 0, -PAGE, 1 << 47, (1 << 64) - PAGE, 1 << 63, PAGE * 1000)
            )
        return value

    def astray(self, addr: int) -> int:
        """Now and then an address that nothing can be mapped at."""
        return self.rng.choice((addr + 1, 1 << 47, -(1 << 46))) if self.maybe(0.03) else addr

    def range_in(self, mm: mm_struct, flags: int = 0) -> tuple[int, int]:
        """A range for an operation that changes what is mapped: whatever is wrong with it, it ends in the window."""
        vma = self.vma(mm, flags)
        if vma is not None and self.maybe(0.7):
            addr = self.page_in(mm, vma)
            addr, length = self.inside(addr, self.within(addr, vma))
        else:
            addr, length = self.inside(self.page(), self.length())
        if self.maybe(0.02):
            return self.rng.choice(((addr + 1, length), (addr, length - 1), (addr, 0), (addr, -PAGE), (addr, -addr)))
        return addr, length

    def registered(self, mm: mm_struct, flags: int = 0) -> tuple[int, int, int]:
        """(userfaultfd, address, length) of a range that is registered, mostly."""
        fd = self.fd()
        vma = self.vma(mm, flags, fd) if self.maybe(0.9) else None
        addr = self.page_in(mm, vma, False if self.maybe(0.6) else None)
        return fd, self.odd(addr), self.odd(self.within(addr, vma))

    def inside(self, addr: int, length: int) -> tuple[int, int]:
        """A range cut to the window: what maps or unmaps must not leave it."""
        window = self.profile.window
        start = max(addr, window.first * PAGE)
        end = min(addr + length, (window.first + window.pages) * PAGE)
        return (start, end - start) if end > start else (window.first * PAGE, PAGE)

    def fd(self) -> int:
        """Mostly the userfaultfd that the sequence is about, seldom another one."""
        if self.child >= 0:
            return self.child
        if self.watched:
            return self.main if self.maybe(0.7) else self.rng.randrange(len(self.world.contexts) + self.maybe(0.1))
        return self.main if self.maybe(0.96) else self.rng.randrange(3)

    def mode(self, bits: int) -> int:
        """Mostly 0, sometimes allowed bits, seldom one that is not."""
        return self.rng.choices((0, self.rng.randint(0, bits), bits + 1), (14, 5, 1))[0]

    def draw_mmap(self, mm: mm_struct) -> tuple[int, ...]:
        prot = self.rng.choices((3, 1, 0, 7), (24, 2, 1, 1))[0]
        return (*self.inside(self.page(), self.length(12)), prot)

    def draw_munmap(self, mm: mm_struct) -> tuple[int, ...]:
        addr, length = self.inside(self.page(), self.length(4))
        return (addr + self.rng.choice((0,) * 30 + (1,)), length)

    def draw_load(self, mm: mm_struct) -> tuple[int, ...]:
        if self.profile.ksm and (cached := self.cached(mm)) and self.maybe(0.5):
            return (self.rng.choice(cached),)
        vma = self.vma(mm) if self.maybe(0.95) else None
        return (self.page_in(mm, vma, True if self.maybe(0.6) else None) + 8 * self.rng.randrange(512),)

    def draw_store(self, mm: mm_struct) -> tuple[int, ...]:
        """Often where vmread has made a copy, which is as protected as the page was."""
        page = self.read.pop(self.process, None)
        if page is None or not self.maybe(0.5):
            page = self.part_left(mm, alone=True)
        if page is None and self.maybe(0.7):
            page = self.merged(mm, 2)
        if page is None:
            page = self.page_in(mm, self.vma(mm, RW) if self.maybe(0.95) else None)
        if self.profile.ksm:
            return page, self.rng.choice((0, 1, 1, 2))
        return (page + 8 * self.rng.randrange(512), self.rng.randrange(1, 1 << 16))

    def draw_mergeable(self, mm: mm_struct) -> tuple[int, ...]:
        vma = self.vma(mm)
        if vma is not None and self.maybe(0.5):
            return self.inside(vma.vm_start, vma.vm_end - vma.vm_start)
        return self.range_in(mm)

    def draw_ksmd(self, mm: mm_struct) -> tuple[int, ...]:
        """Unmerging is best where the swap cache has a KSM page: its node goes."""
        cached = any(PageKsm(self.pte(mm, addr).slot.cache) for addr in self.cached(mm))
        return (MERGE if self.maybe(0.3 if cached else 0.9) else UNMERGE,)

    def slot(self, kept: Container[tuple[int, int]], free: bool) -> int:
        """One of a process that is free, or not, if there is one."""
        fit = [slot for slot in range(SLOTS) if ((self.process, slot) in kept) != free]
        return self.rng.choice(fit) if fit and self.maybe(0.95) else self.rng.randrange(SLOTS)

    def draw_pin(self, mm: mm_struct) -> tuple[int, ...]:
        vma = self.vma(mm, RW) if self.maybe(0.9) else self.vma(mm)
        return self.slot(self.world.pins, True), self.page_in(mm, vma, True if self.maybe(0.7) else None)

    def draw_hold(self, mm: mm_struct) -> tuple[int, ...]:
        page = self.part_left(mm)
        if page is None and self.maybe(0.5):
            page = self.merged(mm, 1)
        if page is None:
            page = self.page_in(mm, self.vma(mm), True if self.maybe(0.7) else None)
        return self.slot(self.world.holds, True), page

    def draw_vmread(self, mm: mm_struct) -> tuple[int, ...]:
        """Often of a page that is to be unshared first, best of a write-protected one."""
        shared = self.where(mm, lambda p: not p.anon_exclusive)
        protected = [addr for addr in shared if self.pte(mm, addr).uffd_wp]
        if shared and self.maybe(0.7):
            page = self.read[self.process] = self.rng.choice(protected or shared)
            return (page + 8 * self.rng.randrange(512),)
        return self.draw_load(mm)

    def draw_unpin(self, mm: mm_struct) -> tuple[int, ...]:
        return (self.slot(self.world.pins, False),)

    def draw_release(self, mm: mm_struct) -> tuple[int, ...]:
        return (self.slot(self.world.holds, False),)

    def draw_mincore(self, mm: mm_struct) -> tuple[int, ...]:
        """Mostly where something is swapped out, the only place where there is more to look up than the entry."""
        swapped = self.swapped(mm)
        # What one process has read in is in the cache for the others.
        if swapped and self.maybe(0.7):
            return self.inside(self.rng.choice(self.cached(mm) or swapped), self.length())
        return self.range_in(mm)

    def draw_free(self, mm: mm_struct) -> tuple[int, ...]:
        # Nothing is in the swap cache where nothing is swapped out, and there is much to look at.
        return self.around(mm, lambda p: p.swapcache is not None) if self.profile.swap else self.range_in(mm)

    def draw_pageout(self, mm: mm_struct) -> tuple[int, ...]:
        """Often a KSM page that has one mapping left, the only one that advice takes."""
        page = self.merged(mm, 1) if self.maybe(0.7) else None
        return (page, PAGE) if page is not None else self.around(mm, lambda p: p.lazyfree)

    def merged(self, mm: mm_struct, mapcount: int) -> int | None:
        """The address of a KSM page that so many entries map, if there is one; best of one that somebody holds, or that a fork brought."""
        if not self.profile.ksm:
            return None
        found = self.where(mm, lambda p: PageKsm(p) and p.mapcount.counter == mapcount)
        held = [addr for addr in found if self.pte(mm, addr).page in self.world.holds.values()]
        forked = [addr for addr in found if mm not in places(self.pte(mm, addr).page)]
        return self.rng.choice(held or forked or found) if found else None

    def swapped(self, mm: mm_struct) -> list[int]:
        """The addresses of swap entries."""
        return [addr for addr in self.pages() if self.kind(mm, addr) == PteKind.SWAP]

    def cached(self, mm: mm_struct) -> list[int]:
        """Those whose page is in the swap cache."""
        return [addr for addr in self.swapped(mm) if self.pte(mm, addr).slot.cache is not None]

    def where(self, mm: mm_struct, wanted: Callable[[Page], bool]) -> list[int]:
        """The addresses of such pages."""
        return [addr for addr in self.pages() if (p := self.pte(mm, addr).page) is not None and wanted(p)]

    def around(self, mm: mm_struct, wanted: Callable[[Page], bool]) -> tuple[int, int]:
        """Now and then a range that begins with such a page, if there is one."""
        found = self.where(mm, wanted)
        if found and self.maybe(0.4):
            return self.inside(self.rng.choice(found), self.length())
        return self.range_in(mm)

    def draw_mremap(self, mm: mm_struct) -> tuple[int, ...]:
        """In half of the cases with another length, then often of what reaches to the end of a mapping: it may grow in place."""
        window = self.profile.window
        top = (window.first + window.pages) * PAGE
        addr, length = self.range_in(mm)
        new, flags = length, self.rng.choices((3, 7, 1, 2, 11), (20, 10, 1, 1, 1))[0]
        if self.world.era.mremap_moves_several and self.maybe(0.5):
            flags = self.rng.choices((0, 3, 7), (10, 12, 1))[0]
            vma = self.vma(mm)
            if vma is not None and self.maybe(0.6):
                addr = self.page_in(mm, vma)
                length = vma.vm_end - addr
            new = min(self.length(), top - addr)
            if self.maybe(0.03):
                new = self.rng.choice((0, -1, 1 << 63, new - 1))
        to, _ = self.inside(self.page(), PAGE)
        if 0 < new < 1 << 46:
            to = max(min(to, top - new), window.first * PAGE)
        return addr, length, new, flags, self.astray(to)

    def draw_process_madvise(self, mm: mm_struct) -> tuple[int, ...]:
        """Of the first process, advice that the profile has."""
        first = self.world.mm_of(0)
        advice = [at for at, each in enumerate(ADVICE) if each.name.lower() in self.names]
        return *self.range_in(first), *self.range_in(first), self.rng.choice(advice)

    def draw_mlock(self, mm: mm_struct) -> tuple[int, ...]:
        return (*self.range_in(mm), int(self.maybe(0.3)))

    def draw_mprotect(self, mm: mm_struct) -> tuple[int, ...]:
        """Often where it shows that entries which map a huge page one after the other are changed at once."""
        parts = self.around(mm, lambda p: compound_head(p).lazyfree) if self.profile.huge else self.range_in(mm)
        return (*parts, self.rng.choices((3, 1, 0, 7, 2), (14, 5, 3, 1, 1))[0])

    def draw_register(self, mm: mm_struct) -> tuple[int, ...]:
        vma = self.vma(mm) if self.maybe(0.8) else None
        addr = self.page_in(mm, vma) if vma is None or self.maybe(0.5) else vma.vm_start
        length = vma.vm_end - addr if vma is not None and self.maybe(0.5) else self.within(addr, vma)
        mode = self.rng.choices((1, 3, 2, 0, 4, 8), (20, 10, 6, 1, 1, 1))[0]
        return (self.fd(), self.odd(addr), self.odd(length), mode)

    def draw_unregister(self, mm: mm_struct) -> tuple[int, ...]:
        return self.registered(mm)

    def draw_move(self, mm: mm_struct) -> tuple[int, ...]:
        fd = self.fd()
        target = self.vma(mm, 0, fd) if self.maybe(0.93) else None
        alike = [
            vma for vma in mm.mmap if target is not None and not (vma.vm_flags ^ target.vm_flags) & (ACCESS | vm.LOCKED)
        ]
        source = self.rng.choice(alike) if alike and self.maybe(0.93) else self.vma(mm)
        dst, src = self.page_in(mm, target, False), self.page_in(mm, source, True)
        length = self.within(dst, target)
        if source is not None and source.vm_start <= src < source.vm_end and self.maybe(0.9):
            length = min(length, source.vm_end - src)
        mode = self.rng.choices((0, 2, 1, 3, 4), (12, 8, 2, 2, 1))[0]
        return (fd, self.odd(dst), self.odd(src), self.odd(length), mode)

    def huge_place(self) -> int:
        return self.rng.randrange(self.profile.window.pages // HUGE_PAGES) * HUGE_PAGES * PAGE

    def huge_range(self, mm: mm_struct) -> tuple[int, ...]:
        return (self.huge_place(), HUGE_PAGES * PAGE)

    def huge_dontneed(self, mm: mm_struct) -> tuple[int, ...]:
        """Often all but some parts at one end, which a process may be the last to have."""
        place, count = self.huge_place(), self.rng.choice((1, 1, 2, 6))
        if self.maybe(0.4):
            return place, HUGE_BYTES
        length = HUGE_BYTES - count * PAGE
        if self.maybe(0.5):
            self.left[self.process] = range(place, place + count * PAGE, PAGE)
            return place + count * PAGE, length
        self.left[self.process] = range(place + length, place + HUGE_BYTES, PAGE)
        return place, length

    def part_left(self, mm: mm_struct, alone: bool = False) -> int | None:
        """Mostly one of the parts that the process has left of a huge page, if there are some that it may have to share. alone: but that
        no entry of another process maps any more.
        """
        found = []
        for addr in self.left.get(self.process, ()):
            p = self.pte(mm, addr).page
            if p is None or not p.compound or p.anon_exclusive:
                continue
            if not alone or p.mapcount.counter + compound_head(p).entire_mapcount == 1:
                found.append(addr)
        return self.rng.choice(found) if found and self.maybe(0.7) else None

    huge_munmap = huge_hugepage = huge_mergeable = huge_unmergeable = huge_range

    def huge_collapse(self, mm: mm_struct) -> tuple[int, ...]:
        """Often where KSM pages are."""
        if self.profile.ksm and (merged := self.where(mm, PageKsm)) and self.maybe(0.5):
            return self.rng.choice(merged) & -HUGE_BYTES, HUGE_BYTES
        return self.huge_range(mm)

    def huge_store(self, mm: mm_struct) -> tuple[int, ...]:
        """Where pages are to be merged, among a few of each huge page: some of its parts are then equal. Else often where parts were
        freed lazily.
        """
        if self.profile.ksm:
            return self.huge_place() + self.rng.randrange(4) * PAGE, self.rng.choice((1, 2))
        freed = self.in_parts(mm, lambda head: head.lazyfree)
        if freed and self.maybe(0.5):
            return self.rng.choice(freed) + self.rng.randrange(HUGE_BYTES) & -8, self.rng.randrange(1, 1 << 16)
        return self.draw_store(mm)

    def huge_mprotect(self, mm: mm_struct) -> tuple[int, ...]:
        """Around a part that was written since it was freed lazily; or of a part of a huge page, whose mapping is split, or of all of it,
        so that there is one mapping again.
        """
        for place in self.in_parts(mm, lambda head: head.lazyfree):
            slots = mm.pmd[place // HUGE_BYTES].pmd.table.pte
            written = [at for at, slot in enumerate(slots) if slot.pte.dirty]
            if written:
                addr, length = self.inside(place + (self.rng.choice(written) - self.rng.randrange(4)) * PAGE, 8 * PAGE)
                return addr, length, self.rng.choice((1, 3))
        whole = [place for place in self.huge_places() if mm.pmd[place // HUGE_BYTES].pmd.kind == PmdKind.HUGE]
        if whole and self.maybe(0.5):
            return self.rng.choice(whole) + self.rng.randrange(HUGE_PAGES) * PAGE, PAGE, 1
        return self.rng.choice(self.in_parts(mm, lambda head: True) or [self.huge_place()]), HUGE_BYTES, 3

    def huge_places(self) -> range:
        return range(0, self.profile.window.pages * PAGE, HUGE_BYTES)

    def in_parts(self, mm: mm_struct, wanted: Callable[[Page], bool]) -> list[int]:
        """Where small entries map such a huge page."""
        firsts = [(place, self.pte(mm, place).page) for place in self.huge_places()]
        return [place for place, p in firsts if p is not None and p.compound and wanted(compound_head(p))]

    def huge_free(self, mm: mm_struct) -> tuple[int, ...]:
        """Often of what small entries map: it stays whole."""
        parts = self.in_parts(mm, lambda head: not head.lazyfree)
        return (self.rng.choice(parts) if parts and self.maybe(0.7) else self.huge_place(), HUGE_BYTES)

    def in_use(self) -> set[Page]:
        """The pages, huge ones by their head, that somebody has pinned, or refers to."""
        return {compound_head(p) for p in (*self.world.pins.values(), *self.world.holds.values()) if p is not None}

    def kept_whole(self, mm: mm_struct) -> list[int]:
        """Where one entry maps a huge page that is in use."""
        kept = self.in_use()
        pmds = [(place, mm.pmd[place // HUGE_BYTES].pmd) for place in self.huge_places()]
        return [place for place, pmd in pmds if pmd.kind == PmdKind.HUGE and pmd.page in kept]

    def splits_in_use(self, mm: mm_struct, dst: int, src: int, length: int) -> bool:
        """Would a move come to a huge page in use that it can't move whole? Kernels with F-11 try to split it for ever."""
        kept = self.in_use()
        for place in self.huge_places():
            first, end, to = max(place, src), min(place + HUGE_BYTES, src + length), dst + place - src
            pmd = mm.pmd[place // HUGE_BYTES].pmd
            if first >= end or pmd.kind not in (PmdKind.HUGE, PmdKind.TABLE):
                continue
            if pmd.kind == PmdKind.HUGE:
                whole = end - first == HUGE_BYTES and to in self.huge_places()
                if pmd.page in kept and not (whole and mm.pmd[to // HUGE_BYTES].pmd.kind == PmdKind.NONE):
                    return True
                continue
            pages = (slot.pte.page for slot in pmd.table.pte[(first - place) // PAGE : (end - place) // PAGE])
            if any(p is not None and p.compound and compound_head(p) in kept for p in pages):
                return True
        return False

    def huge_mmap(self, mm: mm_struct) -> tuple[int, ...]:
        return (*self.huge_range(mm), 3)

    def huge_move(self, mm: mm_struct) -> tuple[int, ...]:
        """Often of what somebody has pinned, or refers to, to where nothing is."""
        length = self.rng.choice((HUGE_PAGES, HUGE_PAGES, HUGE_PAGES, 2, HUGE_PAGES - 1)) * PAGE
        fd, dst, src = self.fd(), self.huge_place(), self.huge_place()
        kept = self.kept_whole(mm)
        if kept and self.maybe(0.5):
            src = self.rng.choice(kept)
            dst = self.rng.choice(self.free_places(mm, self.world.contexts[fd]) or [dst])
        return (fd, dst, src, length, self.rng.choice((0, 2)))

    def free_places(self, mm: mm_struct, ctx: userfaultfd_ctx) -> list[int]:
        """Where a userfaultfd has registered a huge page's worth of which nothing is there."""
        theirs = [vma for vma in mm.mmap if vma.ctx is ctx]
        free = [place for place in self.huge_places() if mm.pmd[place // HUGE_BYTES].pmd.kind == PmdKind.NONE]
        return [at for at in free if any(vma.vm_start <= at and at + HUGE_BYTES <= vma.vm_end for vma in theirs)]

    def huge_register(self, mm: mm_struct) -> tuple[int, ...]:
        return (self.fd(), *self.huge_range(mm), self.rng.choice((1, 2, 3)))

    def huge_writeprotect(self, mm: mm_struct) -> tuple[int, ...]:
        """Mostly of what one entry maps, in a VMA that is registered for it."""
        fd, mode = self.fd(), self.rng.choice((1, 1, 0))
        ctx = self.world.contexts[fd]
        whole = [
            pmdp.first_page * PAGE
            for vma in mm.mmap
            if vma.ctx is ctx and vma.vm_flags & vm.UFFD_WP
            for pmdp in mm.pmd
            if pmdp.pmd.kind in (PmdKind.HUGE, PmdKind.HUGE_ZERO)
            and vma.vm_start <= pmdp.first_page * PAGE
            and pmdp.first_page * PAGE + HUGE_BYTES <= vma.vm_end
        ]
        if not whole:
            return self.draw_writeprotect(mm)
        return fd, self.rng.choice(whole), HUGE_BYTES, mode

    def draw_copy(self, mm: mm_struct) -> tuple[int, ...]:
        fd, dst, length = self.registered(mm)
        source = self.vma(mm) if self.maybe(0.95) else None
        src = self.page_in(mm, source, True) + (self.rng.randrange(PAGE) if self.maybe(0.1) else 0)
        return (fd, dst, self.odd(src), length, self.mode(3))

    def draw_zeropage(self, mm: mm_struct) -> tuple[int, ...]:
        return (*self.registered(mm), self.mode(1))

    def draw_continue(self, mm: mm_struct) -> tuple[int, ...]:
        # Write-protection in it is of v6.4, and nothing that anonymous memory could have.
        return (*self.registered(mm), self.rng.choice((0, 0, 0, 1, 4)))

    def draw_wake(self, mm: mm_struct) -> tuple[int, ...]:
        return self.registered(mm)

    def draw_poison(self, mm: mm_struct) -> tuple[int, ...]:
        return (*self.registered(mm), self.mode(1))

    def draw_writeprotect(self, mm: mm_struct) -> tuple[int, ...]:
        fd = self.fd()
        vma = self.vma(mm, int(vm.UFFD_WP)) if self.maybe(0.9) else None
        addr = self.page_in(mm, vma, True if self.maybe(0.6) else None)
        mode = self.rng.choices((1, 0, 2, 3, 4), (14, 8, 2, 1, 1))[0]
        return (fd, self.odd(addr), self.odd(self.within(addr, vma)), mode)


def places(p: Page) -> list[mm_struct]:
    """Where ksmd knows that a KSM page is. Of what a fork made of them it does not, until it has scanned that."""
    return [item.mm for item in p.mapping.hlist] if isinstance(p.mapping, stable_node) else []
