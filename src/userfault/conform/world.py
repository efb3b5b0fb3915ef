"""The model's side: the machine booted with real pages, operations called as ordinary Python, and what could be seen of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from ..kernel.agent import MEANWHILE_DONE, MESSAGES, RESOLVED, Message
from ..kernel.uapi import Feature
from ..model import era as eras
from ..model import events
from ..model import fs_userfaultfd as uffd
from ..model import machine as machines
from ..model.fork import sys_fork
from ..model.ksmd import Ksmd
from ..model.lang import TOUCHED, check
from ..model.mm_types import (
    PmdKind,
    PteKind,
    mm_struct,
    page,
    page_table,
    pmd_t,
    pte_slot,
    pte_t,
    stable_node,
    userfaultfd_ctx,
    vm,
    vm_area_struct,
)
from ..model.user import page_bytes
from . import words as w
from .quirks import IN_THE_MODEL, Quirks

PAGE = 4096
HUGE_PAGES = 512
TASK_SIZE = (1 << 47) - PAGE
MMAP_MIN_ADDR = 65536
ZERO_KEY = "the zero page"
READ, WRITE, EXEC, UFFD_WP = int(vm.READ), int(vm.WRITE), int(vm.EXEC), int(vm.UFFD_WP)
ACCESS = READ | WRITE | EXEC
LOCKED = int(vm.LOCKED)
SHOWN = tuple(
    int(flag)
    for flag in (
        vm.READ,
        vm.WRITE,
        vm.EXEC,
        vm.DONTCOPY,
        vm.LOCKED,
        vm.LOCKONFAULT,
        vm.USERFAULT,
        vm.UFFD_WP,
        vm.HUGEPAGE,
        vm.NOHUGEPAGE,
        vm.WIPEONFORK,
        vm.DONTDUMP,
        vm.ACCOUNT,
        vm.MERGEABLE,
    )
)
"""What smaps calls VM_FLAGS."""
MOST = 255
"""That a page's word has room for, of its mappings."""
LAZY = 4
"""Where an area has its pages that are lazily freed."""
NONE, PRESENT, SWAP = PteKind.NONE, PteKind.PRESENT, PteKind.SWAP
MARKERS = {
    PteKind.WP_MARKER: w.S | w.SWAPPED | w.W,
    PteKind.POISON_MARKER: w.S | w.SWAPPED | w.WRITTEN,
    PteKind.GUARD_MARKER: w.S | w.SWAPPED | w.WRITTEN | w.G | w.SCAN_GUARD,
}
PROTECTED, UNPROTECTED = w.P | w.W | w.PRESENT, w.P | w.PRESENT | w.WRITTEN
ZERO_PAGE, HUGE_HEAD, HUGE_TAIL = w.PFNZERO | w.ZERO, w.THP | w.HEAD, w.THP | w.TAIL
CONTEXTS = (
    Feature.SIGBUS,
    Feature.SIGBUS | Feature.WP_UNPOPULATED,
    Feature.SIGBUS | Feature.WP_UNPOPULATED | Feature.WP_ASYNC,
)
"""The userfaultfds' features. Nobody resolves faults here, so that a touch of a missing page must not wait for it: SIGBUS."""
EVENTS = Feature.EVENT_FORK | Feature.EVENT_REMAP | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP
WATCHED = (
    Feature.SIGBUS | Feature.WP_UNPOPULATED | EVENTS,
    Feature.SIGBUS | Feature.WP_UNPOPULATED | Feature.WP_ASYNC | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP,
    Feature.PAGEFAULT_FLAG_WP | Feature.WP_UNPOPULATED | Feature.THREAD_ID | EVENTS,
    Feature.SIGBUS | Feature.EVENT_FORK | Feature.EVENT_REMAP,
    Feature.PAGEFAULT_FLAG_WP | Feature.EXACT_ADDRESS | Feature.THREAD_ID | EVENTS,
)
"""Those of sequences in which somebody reads what they say, and resolves the faults of those without SIGBUS."""


class Window(NamedTuple):
    """Where operations happen: `pages` pages from page `first` of an area that begins at `base` (bytes, 2 MiB aligned)."""

    base: int
    first: int
    pages: int

    @property
    def start(self) -> int:
        return self.base + self.first * PAGE

    @property
    def span(self) -> int:
        """How many pages from `base` on an access can be to: with what lies behind the last 2 MiB."""
        return (-(-(self.first + self.pages) // HUGE_PAGES) + 1) * HUGE_PAGES


class Meanwhile(NamedTuple):
    """What an ioctl gave back that was done while a message was unread, and the addresses at which nobody waits any more."""

    result: int
    out: int
    woken: range


class State(NamedTuple):
    """What can be seen of a process: its VMAs (first page, end page, flags as PROCMAP_QUERY gives them), two words a page, and of
    each VMA what smaps says (kernel/agent.py)."""

    process: int
    vmas: tuple[tuple[int, int, int], ...]
    words: array[int]
    contents: array[int]
    areas: tuple[tuple[int, ...], ...] = ()


class Seen:
    """Where each page was seen first, of all processes' pages in a row from 1; 0: nowhere yet."""

    def __init__(self) -> None:
        self.pages = array("Q", bytes(8 * len(machines.machine.pages)))
        """By PFN."""
        self.zero_parts = array("Q", bytes(8 * HUGE_PAGES))
        """Parts of the huge zero page."""
        self.others: dict[object, int] = {}
        """The zero page and swap slots."""


class World:
    """A model machine with one process; addresses are bytes from the window's base.

    slice: pages whose contents are looked at after each operation (0: all).
    """

    def __init__(
        self,
        window: Window,
        hash_page: Callable[[bytes], int],
        quirks: Quirks,
        era: str = "v6.18",
        *,
        slice: int = 0,
        features: Sequence[Feature] = CONTEXTS,
    ) -> None:
        self.window, self.quirks = window, quirks
        self._slice, self._observed = slice or window.pages, 0
        self.era = eras.use(era)
        for name in IN_THE_MODEL:
            setattr(self.era, name, getattr(quirks, name))
        self.era.uffdio_move = "move" not in quirks.without
        self.era.uffdio_poison = "poison" not in quirks.without
        self._anon = w.ANON | (w.KSM if quirks.anon_shows_ksm else 0)
        addresses = (MMAP_MIN_ADDR - window.base, TASK_SIZE - window.base, (1 << 64) - window.base)
        machines.boot(
            page_shift=12,
            huge_order=9,
            ksm=True,
            split_vmas=True,
            alone=True,
            synchronous_swap=True,
            addresses=addresses,
            monitor=self._monitor if features is WATCHED else None,
        )
        self.messages: list[Message] = []
        """What the userfaultfds said since the last observation."""
        self.meanwhile: tuple[int, Callable[[], Meanwhile]] | None = None
        """What is done while the next message waits to be read, to which userfaultfd."""
        self._inherited = [0] * 8
        self.pins: dict[tuple[int, int], page] = {}
        """The pages that are pinned, by process and slot."""
        self.holds: dict[tuple[int, int], page | None] = {}
        """Those that are held (None: the zero page)."""
        # One more than the window needs: accesses may go past its end.
        self._span = window.span
        self.processes: list[mm_struct | None] = [None] * 8
        first = self.processes[0] = machines.new_mm(self._span)
        self.ksmd = Ksmd()
        self.ksmd.enter(first)
        self.contexts = [
            userfaultfd_ctx(
                mm=first,
                wp_unpopulated=bool(each & Feature.WP_UNPOPULATED),
                wp_async=bool(each & Feature.WP_ASYNC),
                features=int(each),
            )
            for each in (each & ~quirks.lacking for each in features)
        ]
        self._compared = quirks.compared
        self.running = -1
        self._hash_page = hash_page
        self._hashes: dict[bytes, int] = {}
        self._held: dict[page_table, list[tuple[int, int, pte_slot]]] = {}
        """What each page table holds, until an entry of it is set: see runs()."""
        self._mapped: Sequence[object] = ()
        self._last: list[State] = []

    def mm_of(self, process: int) -> mm_struct:
        """The address space of a process."""
        mm = self.processes[process]
        assert mm is not None
        return mm

    def mm(self, process: int) -> mm_struct:
        """The address space of a process, which is the one that runs from here on."""
        mm = self.mm_of(process)
        if process != self.running:
            machines.attach(0, mm, self._span)
            self.running = process
        return mm

    def forked(self, mm: mm_struct, number: int) -> None:
        """A child of the process becomes process `number`. It has its parent's descriptors, not those that come of the fork."""
        self._inherited[number] = self.descriptors(mm)
        child = self.processes[number] = machines.new_mm(self._span)
        sys_fork(mm, child)
        self.ksmd.enter(child)

    def descriptors(self, mm: mm_struct) -> int:
        """How many userfaultfds a process has: the first one all, the others those that there were when they were forked."""
        number = self.processes.index(mm)
        return self._inherited[number] if number else len(self.contexts)

    def told(self) -> tuple[Message, ...]:
        """What userfaultfds said since this was asked last."""
        said, self.messages = tuple(self.messages), []
        return said

    def _monitor(self, ctx: userfaultfd_ctx, message: events.uffd_msg) -> None:
        """What the agent's reader does (native/agent_messages.c): something else first, if so it was told; and faults are resolved."""
        fd = self.contexts.index(ctx)
        if self.meanwhile is not None:
            (other, act), self.meanwhile = self.meanwhile, None
            done = act()
            self.messages.append(Message(MEANWHILE_DONE, other, done.result, done.out))
            if message.event == events.EVENT_PAGEFAULT and other == fd and message.first in done.woken:
                # Who waited tries again, and nobody reads of it.
                return
        if message.event == events.EVENT_FORK:
            self.messages.append(Message(message.event, fd, len(self.contexts)))
            assert message.child is not None
            self.contexts.append(message.child)
        elif message.event == events.EVENT_PAGEFAULT:
            self.messages.append(Message(message.event, fd, message.first, message.second, self.running))
            for result, out in self._resolve(ctx, message.first & -PAGE, message.second):
                self.messages.append(Message(RESOLVED, fd, result, out))
        else:
            self.messages.append(Message(message.event, fd, message.first, message.second, message.third))

    def _resolve(self, ctx: userfaultfd_ctx, addr: int, flags: int) -> Iterator[tuple[int, int]]:
        """Results and output fields of what the reader resolves a fault with: zeroes in odd pages, else the page's number."""
        failed = 0
        if flags & events.FAULT_WP:
            failed = uffd.userfaultfd_writeprotect(ctx, addr, PAGE, 0)
            yield failed, 0
        elif addr // PAGE & 1:
            failed, out = uffd.userfaultfd_zeropage(ctx, addr, PAGE, 0)
            yield failed, out
        if not flags & events.FAULT_WP and (not addr // PAGE & 1 or failed):
            failed, out = uffd.copy_data(ctx, addr, (addr // PAGE).to_bytes(8, "little"))
            yield failed, out
        check(len(self.messages) < MESSAGES, "resolved", "a fault comes again and again")

    def gone(self, mm: mm_struct) -> None:
        """The process has ended."""
        self.ksmd.exit(mm)
        machines.machine.mms.remove(mm)
        mm.allocated = False
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
        """What can be seen of each process that lives. Contents are looked at in one slice of the window after the other."""
        begin = self._observed * self._slice % self.window.pages
        looked = range(begin, min(begin + self._slice, self.window.pages))
        self._observed += 1
        alive = [(process, mm) for process, mm in enumerate(self.processes) if mm is not None]
        mapped = [
            (process, [(vma.vm_start, vma.vm_end, vma.vm_flags, vma.ctx) for vma in mm.mmap]) for process, mm in alive
        ]
        for each in TOUCHED:
            self._held.pop(each, None)
        if TOUCHED or mapped != self._mapped:
            seen = Seen()
            self._last = [
                self._observe(process, mm, seen, at * self.window.pages + 1) for at, (process, mm) in enumerate(alive)
            ]
            self._mapped = mapped
            # A page that was freed lazily and is written needs no lock to be an ordinary one.
            if not any(area[LAZY] for state in self._last for area in state.areas):
                TOUCHED.clear()
        return [
            state._replace(contents=self._contents(mm, looked))
            for state, (_, mm) in zip(self._last, alive, strict=True)
        ]

    def _observe(self, process: int, mm: mm_struct, seen: Seen, offset: int) -> State:
        first, pages = self.window.first, self.window.pages
        words = array("Q", bytes(8 * pages))
        vmas, areas = [], []
        for vma in mm.mmap:
            start, end = (vma.vm_start >> 12) - first, (vma.vm_end >> 12) - first
            flags = vma.vm_flags
            shown = (1 if flags & READ else 0) | (2 if flags & WRITE else 0) | (4 if flags & EXEC else 0)
            vmas.append((start, end, shown))
            common = w.WPALLOWED if flags & UFFD_WP and vma.ctx is not None and vma.ctx.wp_async else 0
            rss = swap = huge = lazy = 0
            for pmd, part, at, until in self._parts(mm, max(start, 0), min(end, pages)):
                if pmd.kind == PmdKind.TABLE:
                    found = self._observe_table(pmd.table, part, common, at, until, offset, seen, words)
                    rss, swap, lazy = rss + found[0], swap + found[1], lazy + found[2]
                elif pmd.kind == PmdKind.HUGE or pmd.kind == PmdKind.HUGE_ZERO:
                    self._observe_huge(pmd, part, common, at, until, offset, seen, words)
                    if pmd.kind == PmdKind.HUGE:
                        rss, huge = rss + until - at, huge + until - at
                        lazy += until - at if pmd.page.lazyfree and not pmd.dirty and not pmd.page.dirty else 0
                elif flags & UFFD_WP and self.quirks.holes_are_written:
                    # A hole without a table counts as written where write-protection could have marked it.
                    words[at:until] = array("Q", (common | w.WRITTEN,)) * (until - at)
                elif common:
                    words[at:until] = array("Q", (common,)) * (until - at)
            if self.quirks.written_needs_protection and not flags & UFFD_WP:
                at, until = max(start, 0), min(end, pages)
                words[at:until] = array("Q", (word & ~w.WRITTEN for word in words[at:until]))
            locked = locked_kilobytes(mm, vma) if flags & LOCKED else 0
            if not self.quirks.shows_lock_on_fault:
                flags &= ~int(vm.LOCKONFAULT)
            areas.append((shown_flags(flags), rss, swap, huge, lazy, locked))
        if self._compared != w.ALL:
            words = array("Q", (word & self._compared for word in words))
        return State(process, tuple(vmas), words, array("Q"), tuple(areas))

    def _parts(self, mm: mm_struct, at: int, end: int) -> Iterator[tuple[pmd_t, int, int, int]]:
        """The PMDs of a range of the window's pages: each with the first of its pages there, and which of the window's those are."""
        while at < end:
            part = (self.window.first + at) % HUGE_PAGES
            until = min(end, at + HUGE_PAGES - part)
            yield mm.pmd[(self.window.first + at) // HUGE_PAGES].pmd, part, at, until
            at = until

    def _contents(self, mm: mm_struct, looked: range) -> array[int]:
        """The words that stand for the contents of pages."""
        out = array("Q", bytes(8 * self.window.pages))
        first = self.window.first
        for vma in mm.mmap:
            start, end = max((vma.vm_start >> 12) - first, looked.start), min((vma.vm_end >> 12) - first, looked.stop)
            readable = vma.vm_flags & ACCESS != 0
            for pmd, part, at, until in self._parts(mm, start, end):
                if pmd.kind == PmdKind.TABLE:
                    for place, stop, skipped, pte in self._holds(pmd.table, part, at, until):
                        if pte.kind is not PRESENT:
                            continue
                        if not readable:
                            # 1 stands for what the process may not read.
                            out[place:stop] = array("Q", (1,)) * (stop - place)
                        elif not pte.special:
                            out[place:stop] = self._contents_of(pte.page, skipped, stop - place)
                elif pmd.kind != PmdKind.NONE and not readable:
                    out[at:until] = array("Q", (1,)) * (until - at)
                elif pmd.kind == PmdKind.HUGE:
                    out[at:until] = self._contents_of(pmd.page, part, until - at)
        return out

    def _contents_of(self, first: page, skipped: int, count: int) -> array[int]:
        """Those of neighbours, after `skipped` of them."""
        begin = first.pfn + skipped
        pages = machines.machine.pages[begin : begin + count]
        return array("Q", [self.content(each) if each.data else 0 for each in pages])

    def _holds(self, table: page_table, part: int, at: int, until: int) -> Iterator[tuple[int, int, int, pte_t]]:
        """What a page table holds for pages `at` to `until` of the window, the first of which is its `part`: runs of them, and how
        many of a run come before that.
        """
        held = self._held.get(table)
        if held is None:
            held = self._held[table] = runs(table)
        shift = at - part
        for begin, end, slot in held:
            if begin + shift < until and end + shift > at:
                place = max(begin + shift, at)
                yield place, min(end + shift, until), place - begin - shift, slot.pte

    def _observe_table(
        self,
        table: page_table,
        part: int,
        common: int,
        at: int,
        until: int,
        offset: int,
        seen: Seen,
        words: array[int],
    ) -> tuple[int, int, int]:
        """The words of a page table's pages from its `part` on; how many are resident, swapped out, lazily freed."""
        rss = swap = lazy = 0
        pool = machines.machine.pages
        # A hole below a page table counts as written.
        hole = common | (w.WRITTEN if self.quirks.holes_are_written else 0)
        anon = common | self._anon
        if hole:
            words[at:until] = array("Q", (hole,)) * (until - at)
        for place, stop, skipped, pte in self._holds(table, part, at, until):
            kind = pte.kind
            if kind is PRESENT:
                word = PROTECTED if pte.uffd_wp else UNPROTECTED
                if pte.special:
                    word |= common | ZERO_PAGE | seen.others.setdefault(ZERO_KEY, offset + place) << w.CLASS_AT
                    words[place:stop] = array("Q", (word,)) * (stop - place)
                    continue
                p = pte.page
                rss += stop - place
                head = pool[p.pfn & -HUGE_PAGES] if p.compound else p
                if head.lazyfree and not pte.dirty and not head.dirty:
                    lazy += stop - place
                if p.compound:
                    parts = range(p.pfn + skipped, p.pfn + skipped + stop - place)
                    self._observe_parts(head, parts, anon | word | HUGE_TAIL, place, offset, seen, words)
                    continue
                count = min(p.mapcount.counter, MOST)
                if count == 1:
                    word |= w.X
                if p.anon_exclusive:
                    word |= w.AE
                if isinstance(p.mapping, stable_node):
                    word |= w.KSM
                if p.swapcache is not None:
                    word |= w.SWAPCACHE
                found = seen.pages[p.pfn]
                if not found:
                    found = seen.pages[p.pfn] = offset + place
                words[place] = anon | word | count << w.COUNT_AT | found << w.CLASS_AT
            elif kind is SWAP:
                swap += 1
                found = seen.others.setdefault(pte.slot, offset + place)
                words[place] = common | w.S | w.SWAPPED | (w.W if pte.uffd_wp else w.WRITTEN) | found << w.CLASS_AT
            else:
                words[place] = common | MARKERS[kind]
        return rss, swap, lazy

    def _observe_huge(
        self,
        pmd: pmd_t,
        part: int,
        common: int,
        at: int,
        until: int,
        offset: int,
        seen: Seen,
        words: array[int],
    ) -> None:
        """The words of a huge page from its part `part` on: they differ in their class alone, and the first from the others.

        Where other entries map parts of it one by one, they differ in how often they are mapped, too.
        """
        shown = common | w.HUGE | (PROTECTED if pmd.uffd_wp else UNPROTECTED)
        if pmd.kind == PmdKind.HUGE_ZERO:
            word = shown | ZERO_PAGE | w.THP | w.TAIL
            if self.quirks.huge_zero_page_is_file:
                word |= w.F
            classes = w.classes_of(seen.zero_parts, range(part, part + until - at), offset + at)
            words[at:until] = w.with_classes(word, classes)
        else:
            parts = range(pmd.page.pfn + part, pmd.page.pfn + part + until - at)
            word = shown | self._anon | HUGE_TAIL
            self._observe_parts(pmd.page, parts, word, at, offset, seen, words, whole=True)
        if part == 0 and pmd.kind == PmdKind.HUGE_ZERO:
            words[at] ^= w.HEAD | w.TAIL

    def _observe_parts(
        self,
        head: page,
        parts: range,
        word: int,
        at: int,
        offset: int,
        seen: Seen,
        words: array[int],
        whole: bool = False,
    ) -> None:
        """The words of parts of a huge page, from place `at` on: `word` with their classes, how often they are mapped, and
        whether they are one process's alone. whole: one entry maps all of it.
        """
        pages = machines.machine.pages[parts.start : parts.stop]
        counts = [each.mapcount.counter for each in pages]
        if self.quirks.parts_show_huge_flags:
            alone = [head.anon_exclusive] * len(pages)
        elif whole:
            alone = [each is head and head.anon_exclusive for each in pages]
        else:
            alone = [each.anon_exclusive for each in pages]
        of_all = 0
        if whole and self.quirks.huge_entry_shows_first_part:
            of_all = head.mapcount.counter + head.entire_mapcount

        def shown(count: int, exclusive: bool) -> int:
            count += head.entire_mapcount
            return count << w.COUNT_AT | (w.X if (of_all or count) == 1 else 0) | (w.AE if exclusive else 0)

        classes = w.classes_of(seen.pages, parts, offset + at)
        if counts.count(counts[0]) == alone.count(alone[0]) == len(pages):
            words[at : at + len(pages)] = w.with_classes(word | shown(counts[0], alone[0]), classes)
        else:
            kinds = {each: shown(*each) for each in set(zip(counts, alone, strict=True))}
            words[at : at + len(pages)] = w.with_classes(word, classes)
            for place, each in enumerate(zip(counts, alone, strict=True), at):
                words[place] |= kinds[each]
        if pages[0] is head:
            words[at] ^= w.HEAD | w.TAIL


def runs(table: page_table) -> list[tuple[int, int, pte_slot]]:
    """What a page table holds: first place, end and first entry of each run of zero pages that show the same, of neighbouring parts of
    a huge page whose entries do, or of one other entry.
    """
    out: list[tuple[int, int, pte_slot]] = []
    begin = end = following = -1
    first = None
    zero = protected = dirty = False
    for place, slot in enumerate(table.pte):
        pte = slot.pte
        if pte.kind is NONE:
            continue
        p = pte.page
        compound = p is not None and p.compound
        if place == end and pte.uffd_wp == protected:
            if zero and pte.special:
                end += 1
                continue
            # The head begins a run: what comes before it is another huge page's.
            if compound and p.pfn == following and p.pfn % HUGE_PAGES and pte.dirty == dirty:
                end, following = end + 1, following + 1
                continue
        if first is not None:
            out.append((begin, end, first))
        begin, end, first = place, place + 1, slot
        zero, protected, dirty = pte.special, pte.uffd_wp, pte.dirty
        following = p.pfn + 1 if compound else -1
    if first is not None:
        out.append((begin, end, first))
    return out


@cache
def shown_flags(flags: int) -> int:
    """A VMA's flags as bits in the order of VM_FLAGS."""
    return sum(1 << at for at, flag in enumerate(SHOWN) if flags & flag)


def locked_kilobytes(mm: mm_struct, vma: vm_area_struct) -> int:
    """smaps's Locked: each small page's share, in 4096ths of a byte, summed."""
    share = 0
    for addr in range(vma.vm_start, vma.vm_end, PAGE):
        pmd = mm.pmd[addr // PAGE // HUGE_PAGES].pmd
        if pmd.kind == PmdKind.TABLE:
            pte = pmd.table.pte[addr // PAGE % HUGE_PAGES].pte
            if pte.kind == PRESENT and not pte.special:
                share += (PAGE << 12) // pte.page.mapcount.counter
    return share >> 22
