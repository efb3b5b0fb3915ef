"""The model's side: the machine booted with real pages, operations called as ordinary Python, and what could be seen of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from ..kernel.uapi import Feature
from ..model import era as eras
from ..model import machine as machines
from ..model.fork import sys_fork
from ..model.mm_types import PmdKind, PteKind, mm_struct, page, stable_node, userfaultfd_ctx, vm
from ..model.user import page_bytes
from . import words as w
from .quirks import IN_THE_MODEL, Quirks

PAGE = 4096
HUGE_PAGES = 512
TASK_SIZE = (1 << 47) - PAGE
MMAP_MIN_ADDR = 65536
ZERO_KEY = "the zero page"
CONTEXTS = (
    Feature.SIGBUS,
    Feature.SIGBUS | Feature.WP_UNPOPULATED,
    Feature.SIGBUS | Feature.WP_UNPOPULATED | Feature.WP_ASYNC,
)
"""The userfaultfds' features. Nobody resolves faults here, so that a touch of a missing page must not wait for it: SIGBUS."""


class Window(NamedTuple):
    """Where operations happen: `pages` pages from page `first` of an area that begins at `base` (bytes, 2 MiB aligned)."""

    base: int
    first: int
    pages: int

    @property
    def start(self) -> int:
        return self.base + self.first * PAGE


class State(NamedTuple):
    """What can be seen of a process: its VMAs (first page, end page, flags as PROCMAP_QUERY gives them), two words a page."""

    process: int
    vmas: tuple[tuple[int, int, int], ...]
    words: array[int]
    contents: array[int]


class World:
    """A model machine with one process; addresses are bytes from the window's base."""

    def __init__(self, window: Window, hash_page: Callable[[bytes], int], quirks: Quirks, era: str = "v6.18") -> None:
        self.window, self.quirks = window, quirks
        self.era = eras.use(era)
        for name in IN_THE_MODEL:
            setattr(self.era, name, getattr(quirks, name))
        self.era.uffdio_move = "move" not in quirks.without
        self.era.uffdio_poison = "poison" not in quirks.without
        self._anon = w.ANON | (w.KSM if quirks.anon_shows_ksm else 0)
        addresses = (MMAP_MIN_ADDR - window.base, TASK_SIZE - window.base, (1 << 64) - window.base)
        machines.boot(page_shift=12, huge_order=9, split_vmas=True, synchronous_swap=True, addresses=addresses)
        # One more than the window needs: accesses may go past its end.
        self._span = (-(-(window.first + window.pages) // HUGE_PAGES) + 1) * HUGE_PAGES
        self.processes: list[mm_struct | None] = [None] * 8
        first = self.processes[0] = machines.new_mm(self._span)
        self.contexts = [
            userfaultfd_ctx(
                mm=first,
                wp_unpopulated=bool(features & Feature.WP_UNPOPULATED),
                wp_async=bool(features & Feature.WP_ASYNC),
            )
            for features in (each & ~quirks.lacking for each in CONTEXTS)
        ]
        self._compared = quirks.compared
        self.running = -1
        self._hash_page = hash_page
        self._hashes: dict[bytes, int] = {}

    def mm(self, process: int) -> mm_struct:
        """The address space of a process, which is the one that runs from here on."""
        mm = self.processes[process]
        assert mm is not None
        if process != self.running:
            machines.attach(0, mm, self._span)
            self.running = process
        return mm

    def forked(self, mm: mm_struct) -> mm_struct:
        """A child of the process."""
        child = machines.new_mm(self._span)
        sys_fork(mm, child)
        return child

    def gone(self, mm: mm_struct) -> None:
        """The process has ended."""
        machines.machine.mms.remove(mm)
        self.processes[self.processes.index(mm)] = None
        self.running = -1

    def content(self, p: page | None) -> int:
        """The word that stands for a page's contents."""
        if p is None or isinstance(p.data, int):
            return 0
        known = self._hashes.get(p.data)
        if known is None:
            known = self._hashes[p.data] = self._hash_page(page_bytes(p))
        return known

    def observe(self) -> list[State]:
        """What can be seen of each process that lives."""
        out: list[State] = []
        seen: dict[object, int] = {}
        for process, mm in enumerate(self.processes):
            if mm is not None:
                out.append(self._observe(process, mm, seen, len(out) * self.window.pages + 1))
        return out

    def _observe(self, process: int, mm: mm_struct, seen: dict[object, int], offset: int) -> State:
        first, pages = self.window.first, self.window.pages
        pool = machines.machine.pages
        words = array("Q", bytes(8 * pages))
        contents = array("Q", bytes(8 * pages))
        vmas = []
        for vma in mm.mmap:
            start, end = (vma.vm_start >> 12) - first, (vma.vm_end >> 12) - first
            flags = vma.vm_flags
            shown = (1 if flags & vm.READ else 0) | (2 if flags & vm.WRITE else 0) | (4 if flags & vm.EXEC else 0)
            vmas.append((start, end, shown))
            readable = flags & (vm.READ | vm.WRITE | vm.EXEC) != 0
            common = w.WPALLOWED if vma.ctx is not None and vma.ctx.wp_async and flags & vm.UFFD_WP else 0
            for at in range(max(start, 0), min(end, pages)):
                number = first + at
                pmd = mm.pmd[number >> 9].pmd
                word = common
                if pmd.kind == PmdKind.TABLE:
                    pte = pmd.table.pte[number & 511].pte
                    kind = pte.kind
                    if kind == PteKind.PRESENT:
                        if pte.uffd_wp:
                            word |= w.P | w.W | w.PRESENT
                        else:
                            word |= w.P | w.PRESENT | w.WRITTEN
                        if pte.special:
                            word |= w.PFNZERO | w.ZERO
                            word |= seen.setdefault(ZERO_KEY, offset + at) << w.CLASS_AT
                            contents[at] = 0 if readable else 1
                        else:
                            p = pte.page
                            count = p.mapcount.counter
                            head = p
                            if p.compound:
                                # The flags of a part are its huge page's, AE among them.
                                head = pool[p.pfn & -HUGE_PAGES]
                                count += head.entire_mapcount
                                word |= w.THP | (w.HEAD if p is head else w.TAIL)
                            if count == 1:
                                word |= w.X
                            word |= self._anon | count << w.COUNT_AT
                            if head.anon_exclusive:
                                word |= w.AE
                            if isinstance(p.mapping, stable_node):
                                word |= w.KSM
                            if p.swapcache is not None:
                                word |= w.SWAPCACHE
                            word |= seen.setdefault(p, offset + at) << w.CLASS_AT
                            contents[at] = self.content(p) if readable else 1
                    elif kind == PteKind.NONE:
                        # A hole below a page table counts as written.
                        word |= w.WRITTEN if self.quirks.holes_are_written else 0
                    elif kind == PteKind.SWAP:
                        word |= w.S | w.SWAPPED | (w.W if pte.uffd_wp else w.WRITTEN)
                        word |= seen.setdefault(pte.slot, offset + at) << w.CLASS_AT
                    elif kind == PteKind.WP_MARKER:
                        word |= w.S | w.SWAPPED | w.W
                    elif kind == PteKind.POISON_MARKER:
                        word |= w.S | w.SWAPPED | w.WRITTEN
                    elif kind == PteKind.GUARD_MARKER:
                        word |= w.S | w.SWAPPED | w.WRITTEN | w.G | w.SCAN_GUARD
                elif pmd.kind == PmdKind.HUGE:
                    p = pool[pmd.page.pfn + (number & 511)]
                    count = pmd.page.entire_mapcount + p.mapcount.counter
                    word |= w.P | w.PRESENT | w.WRITTEN | w.HUGE | self._anon | w.THP | count << w.COUNT_AT
                    word |= w.TAIL if number & 511 else w.HEAD
                    if count == 1:
                        word |= w.X
                    if pmd.page.anon_exclusive:
                        word |= w.AE
                    word |= seen.setdefault(p, offset + at) << w.CLASS_AT
                    contents[at] = self.content(p) if readable else 1
                elif pmd.kind == PmdKind.HUGE_ZERO:
                    word |= w.P | w.F | w.PRESENT | w.WRITTEN | w.HUGE | w.PFNZERO | w.THP | w.ZERO
                    word |= w.TAIL if number & 511 else w.HEAD
                    word |= seen.setdefault((ZERO_KEY, number & 511), offset + at) << w.CLASS_AT
                    contents[at] = 0 if readable else 1
                elif flags & vm.UFFD_WP and self.quirks.holes_are_written:
                    # So does one without a table, where write-protection could have marked it.
                    word |= w.WRITTEN
                words[at] = word & self._compared
        return State(process, tuple(vmas), words, contents)
