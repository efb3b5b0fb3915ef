"""Random sequences. A profile says which operations come how often; the model's state says what most arguments should be.

Without the state nearly every operation would be refused at the door: two random ranges are seldom fit for a move.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from ..kernel.agent import SLOTS
from ..kernel.uapi import Feature
from ..model.mm_types import PmdKind, PteKind, mm_struct, pte_t, vm, vm_area_struct
from ..model.mm_types import page as Page
from .operations import ADVICE, MEANWHILES, MERGE, OF_USERFAULTFD, UNMERGE, Op
from .world import CONTEXTS, HUGE_PAGES, PAGE, WATCHED, Window, World

BASE = 0x2000_0000_0000


@dataclass(frozen=True)
class Profile:
    """What sequences are like. length: operations in one; weights: how often each operation comes.

    swap: the machine must have swap on a RAM disk. huge: huge pages are allowed. ksm: ksmd is driven, and few contents are written, so that
    pages are equal. children: how many live at once, at most. slice: pages whose contents are looked at after
    each operation (0: all). cost: of an operation, in operations of other profiles. contexts: the userfaultfds' features.
    """

    name: str
    doc: str
    window: Window
    length: int
    weights: dict[str, int] = field(default_factory=dict)
    swap: bool = False
    huge: bool = False
    ksm: bool = False
    children: int = 3
    slice: int = 0
    cost: int = 1
    contexts: tuple[Feature, ...] = CONTEXTS


MOVES = Profile(
    "moves",
    "small pages in one process: mappings, registrations, touches and moves, across a border of page tables",
    Window(BASE, HUGE_PAGES - 24, 40),
    120,
    {
        "mmap": 6,
        "munmap": 3,
        "load": 14,
        "store": 20,
        "populate_write": 6,
        "populate_read": 2,
        "dontneed": 8,
        "register": 10,
        "unregister": 3,
        "move": 30,
    },
)
FILLS = Profile(
    "fills",
    "everything that userfaultfd does to small pages of one process, with protections, guards and advice",
    Window(BASE, HUGE_PAGES - 20, 32),
    120,
    {
        "mmap": 5,
        "munmap": 2,
        "load": 12,
        "store": 18,
        "dontneed": 6,
        "register": 12,
        "unregister": 3,
        "move": 14,
        "copy": 12,
        "zeropage": 6,
        "poison": 4,
        "writeprotect": 12,
        "mincore": 4,
        "free": 3,
        "mprotect": 6,
        "populate_write": 4,
        "populate_read": 2,
        "guard_install": 3,
        "guard_remove": 3,
        "dontdump": 1,
        "dodump": 1,
        "process_madvise": 3,
    },
)
FORKS = Profile(
    "forks",
    "small pages that processes share after forks: copy on write, what is exclusive, what may move",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        "mmap": 3,
        "munmap": 1,
        "load": 12,
        "store": 30,
        "dontneed": 5,
        "register": 6,
        "move": 30,
        "copy": 4,
        "zeropage": 2,
        "poison": 1,
        "writeprotect": 4,
        "mprotect": 4,
        "guard_install": 1,
        "populate_write": 4,
        "populate_read": 2,
        "dontfork": 1,
        "dofork": 1,
        "wipeonfork": 1,
        "keeponfork": 1,
        "fork": 8,
        "exit": 6,
    },
)
SWAPS = Profile(
    "swaps",
    "the same with swap: entries that are exclusive or not, moved, shared, write-protected",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        **FORKS.weights,
        "free": 8,
        "pageout": 16,
        "process_madvise": 8,
        "cold": 3,
        "mincore": 8,
        "load": 24,
        "writeprotect": 8,
    },
    swap=True,
)
REMAPS = Profile(
    "remaps",
    "mappings that change their address, are locked, split and merged, with forks and userfaultfds",
    Window(BASE, HUGE_PAGES - 16, 28),
    120,
    {
        "mmap": 4,
        "munmap": 2,
        "load": 12,
        "store": 24,
        "populate_write": 5,
        "dontneed": 5,
        "register": 8,
        "unregister": 2,
        "move": 16,
        "copy": 4,
        "zeropage": 2,
        "poison": 1,
        "writeprotect": 6,
        "mprotect": 5,
        "guard_install": 2,
        "guard_remove": 1,
        "mremap": 24,
        "mincore": 3,
        "mlock": 6,
        "munlock": 4,
        "dontneed_locked": 3,
        "cold": 2,
        "fork": 3,
        "exit": 3,
    },
)
HUGE = Profile(
    "huge",
    "huge pages that appear, move whole or in part, are split and forgotten in part",
    Window(BASE, 0, 4 * HUGE_PAGES),
    60,
    {
        "mmap": 2,
        "hugepage": 5,
        "collapse": 5,
        "munmap": 2,
        "load": 14,
        "store": 22,
        "dontneed": 8,
        "register": 3,
        "move": 30,
        "populate_write": 2,
        "cold": 6,
        "free": 6,
    },
    huge=True,
    slice=256,
    cost=4,
)
FAMILIES = Profile(
    "families",
    "huge pages that processes share after forks, some as a whole and some in parts",
    Window(BASE, 0, 4 * HUGE_PAGES),
    60,
    {
        "mmap": 1,
        "munmap": 1,
        "hugepage": 2,
        "collapse": 6,
        "load": 12,
        "store": 24,
        "dontneed": 8,
        "register": 2,
        "move": 20,
        "populate_write": 2,
        "mprotect": 2,
        "cold": 5,
        "free": 6,
        "fork": 10,
        "exit": 7,
    },
    huge=True,
    children=1,
    slice=256,
    cost=4,
)
PINS = Profile(
    "pins",
    "forks and swap with pages that somebody keeps: pinned for writing or for reading, or referred to",
    Window(BASE, HUGE_PAGES - 10, 16),
    120,
    {
        **FORKS.weights,
        "move": 24,
        "fork": 10,
        "pageout": 14,
        "free": 4,
        "mincore": 3,
        "mremap": 4,
        "munmap": 2,
        "pin": 16,
        "unpin": 8,
        "vmread": 12,
        "hold": 12,
        "release": 8,
    },
    swap=True,
)
EVENTS = Profile(
    "events",
    "userfaultfds with a reader: what they say, in which order, and what is refused while it is unread; their children's after forks",
    Window(BASE, HUGE_PAGES - 14, 24),
    120,
    {
        "mmap": 5,
        "munmap": 5,
        "load": 14,
        "store": 18,
        "populate_write": 3,
        "populate_read": 2,
        "dontneed": 10,
        "free": 4,
        "dontneed_locked": 1,
        "register": 12,
        "unregister": 2,
        "move": 14,
        "copy": 10,
        "zeropage": 5,
        "poison": 2,
        "writeprotect": 10,
        "wake": 1,
        "continue": 1,
        "mprotect": 3,
        "mremap": 12,
        "guard_install": 1,
        "process_madvise": 2,
        "fork": 6,
        "exit": 5,
        **dict.fromkeys(MEANWHILES, 2),
    },
    contexts=WATCHED,
)
KSM = Profile(
    "ksm",
    "equal pages that ksmd makes one, in one process and several: what becomes of them in moves, forks, writes and under pins",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        "mmap": 3,
        "munmap": 1,
        "load": 8,
        "store": 24,
        "dontneed": 4,
        "register": 5,
        "move": 16,
        "copy": 5,
        "zeropage": 2,
        "writeprotect": 6,
        "mprotect": 4,
        "mremap": 5,
        "populate_write": 3,
        "populate_read": 2,
        "mergeable": 12,
        "unmergeable": 4,
        "ksmd": 14,
        "dontfork": 1,
        "dofork": 1,
        "fork": 5,
        "exit": 4,
        "pin": 5,
        "unpin": 4,
        "vmread": 4,
        "hold": 5,
        "release": 4,
    },
    ksm=True,
    cost=4,
)
PROFILES = {each.name: each for each in (MOVES, FILLS, FORKS, SWAPS, REMAPS, PINS, KSM, EVENTS, HUGE, FAMILIES)}


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
            if name.removeprefix("meanwhile_") not in world.quirks.operations
        }
        self.names, self.totals = list(weights), list(weights.values())
        self.watched = profile.contexts is WATCHED
        self.process = 0
        self.main = rng.choice(range(len(WATCHED)) if self.watched else (0, 0, 1, 2))
        self.child = -1
        self.at = 0
        self.read: dict[int, int] = {}
        """Where each process has read for another (vmread) since it stored."""

    def draw(self) -> Op:
        """The next operation: at first some that map most of the window."""
        self.at += 1
        window = self.profile.window
        half = window.pages // 2
        if self.profile.huge and self.at <= 4:
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
        if name == "meanwhile_copy":
            args = (*args[:2], UNMAPPED, *args[3:])
        return Op(process, name, args)

    def huge_start(self, half: int) -> Op:
        """Two halves, the upper one registered, the lower one for huge pages."""
        lower, upper = (0, half * PAGE, 3), (half * PAGE, half * PAGE, 3)
        return (
            Op(0, "mmap", lower),
            Op(0, "mmap", upper),
            Op(0, "register", (self.main, half * PAGE, half * PAGE, 1)),
            Op(0, "hugepage", (0, half * PAGE)),
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
        vma = self.vma(mm) if self.maybe(0.95) else None
        return (self.page_in(mm, vma, True if self.maybe(0.6) else None) + 8 * self.rng.randrange(512),)

    def draw_store(self, mm: mm_struct) -> tuple[int, ...]:
        """Often where vmread has made a copy, which is as protected as the page was."""
        page = self.read.pop(self.process, None)
        if page is None or not self.maybe(0.5):
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
        return (MERGE if self.maybe(0.9) else UNMERGE,)

    def slot(self, kept: Container[tuple[int, int]], free: bool) -> int:
        """One of a process that is free, or not, if there is one."""
        fit = [slot for slot in range(SLOTS) if ((self.process, slot) in kept) != free]
        return self.rng.choice(fit) if fit and self.maybe(0.95) else self.rng.randrange(SLOTS)

    def draw_pin(self, mm: mm_struct) -> tuple[int, ...]:
        vma = self.vma(mm, RW) if self.maybe(0.9) else self.vma(mm)
        return self.slot(self.world.pins, True), self.page_in(mm, vma, True if self.maybe(0.7) else None)

    def draw_hold(self, mm: mm_struct) -> tuple[int, ...]:
        vma = self.vma(mm)
        return self.slot(self.world.holds, True), self.page_in(mm, vma, True if self.maybe(0.7) else None)

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
        swapped = [addr for addr in self.pages() if self.kind(mm, addr) == PteKind.SWAP]
        # What one process has read in is in the cache for the others.
        cached = [addr for addr in swapped if self.pte(mm, addr).slot.cache is not None]
        if swapped and self.maybe(0.7):
            return self.inside(self.rng.choice(cached or swapped), self.length())
        return self.range_in(mm)

    def draw_free(self, mm: mm_struct) -> tuple[int, ...]:
        # Nothing is in the swap cache where nothing is swapped out, and there is much to look at.
        return self.around(mm, lambda p: p.swapcache is not None) if self.profile.swap else self.range_in(mm)

    def draw_pageout(self, mm: mm_struct) -> tuple[int, ...]:
        return self.around(mm, lambda p: p.lazyfree)

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
        return (*self.range_in(mm), self.rng.choices((3, 1, 0, 7, 2), (14, 5, 3, 1, 1))[0])

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

    huge_dontneed = huge_munmap = huge_hugepage = huge_collapse = huge_free = huge_range

    def huge_mmap(self, mm: mm_struct) -> tuple[int, ...]:
        return (*self.huge_range(mm), 3)

    def huge_move(self, mm: mm_struct) -> tuple[int, ...]:
        length = self.rng.choice((HUGE_PAGES, HUGE_PAGES, HUGE_PAGES, 2, HUGE_PAGES - 1)) * PAGE
        return (self.fd(), self.huge_place(), self.huge_place(), length, self.rng.choice((0, 2)))

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
