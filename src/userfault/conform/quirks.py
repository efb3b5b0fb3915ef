"""Where kernels of one era differ in what user space can see: found by trying, never by a version.

Each field's default is what Linux 6.18.44 does; `running()` is what the running kernel does. What a kernel lacks altogether is in
needs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from ..kernel.errors import Unavailable
from ..kernel.uapi import Feature
from . import needs
from . import quirk_probes as probes
from . import words as w


@dataclass(frozen=True)
class Quirks:
    """How a kernel is modelled within the era v6.18."""

    holes_are_written: bool = True
    written_needs_protection: bool = False
    anon_shows_ksm: bool = False
    parts_show_huge_flags: bool = True
    huge_entry_shows_first_part: bool = True
    huge_zero_page_is_file: bool = True
    shows_lock_on_fault: bool = True
    fills_replace_guards: bool = True
    merge_spares_fork_children: bool = True
    mremap_moves_several: bool = True
    dontunmap_splits_locked: bool = False
    dontunmap_resets_offset: bool = False
    dontunmap_keeps_source_apart: bool = False
    mremap_drops_protection: bool = True
    mremap_spares_neighbours: bool = False
    populate_stops_at_holes: bool = True
    writeprotect_spans_vmas: bool = True
    unregister_asks_whose: bool = True
    register_keeps_protection: bool = False
    uffd_merges_rear: bool = True
    copy_checks_source: bool = True
    refusal_is_output: bool = True
    mmap_merges_both_sides: bool = True
    fills_prepare_first: bool = True
    mprotect_unaccounts: bool = True
    empty_tables_are_freed: bool = True
    huge_zero_page_is_replaced: bool = True
    reuses_parts: bool = True
    copies_last_part: bool = True
    collapse_of_less_succeeds: bool = False
    swapin_goes_through_cache: bool = False
    split_maps_zero_page: bool = True
    advice_goes_by_batches: bool = True
    protection_goes_by_batches: bool = True
    lazyfree_is_kept_busy: bool = True
    ksmd_forgets_checksums: bool = False
    without: frozenset[str] = frozenset()
    """The needs (needs.py) that the kernel does not meet."""
    unasked: frozenset[str] = frozenset()
    """The fields that could not be asked: what they are about is not there, or this user may not look at it."""

    def lacks(self, operation: str) -> bool:
        """Do sequences go without an operation?"""
        return any(operation in needs.NEEDS[need].operations for need in self.without)

    @property
    def compared(self) -> int:
        """The bits of a page's word that can be compared."""
        left = w.ALL
        for need in self.without:
            left &= ~needs.NEEDS[need].bits
        return left

    @property
    def lacking(self) -> Feature:
        """The features that userfaultfds do without."""
        return Feature(sum(needs.NEEDS[need].feature for need in self.without))


IN_THE_MODEL = (
    "fills_replace_guards",
    "merge_spares_fork_children",
    "mremap_moves_several",
    "dontunmap_splits_locked",
    "dontunmap_resets_offset",
    "dontunmap_keeps_source_apart",
    "mremap_drops_protection",
    "mremap_spares_neighbours",
    "populate_stops_at_holes",
    "writeprotect_spans_vmas",
    "unregister_asks_whose",
    "register_keeps_protection",
    "uffd_merges_rear",
    "copy_checks_source",
    "refusal_is_output",
    "mmap_merges_both_sides",
    "fills_prepare_first",
    "mprotect_unaccounts",
    "empty_tables_are_freed",
    "huge_zero_page_is_replaced",
    "reuses_parts",
    "copies_last_part",
    "collapse_of_less_succeeds",
    "swapin_goes_through_cache",
    "split_maps_zero_page",
    "advice_goes_by_batches",
    "protection_goes_by_batches",
    "lazyfree_is_kept_busy",
    "ksmd_forgets_checksums",
)
"""The quirks that are differences of the model's eras (model/era.py), by the same name; the others change what is shown."""


KERNELS = (
    "Debian 6.1.176",
    "Debian 6.12.107",
    "Debian 6.12.117",
    "Debian 6.18.15",
    "6.18.44",
    "Debian 7.1.13",
    "Debian 7.2.13",
    "Debian 7.3.4",
)
"""The kernels that were run, in order."""


class Quirk(NamedTuple):
    """field: of Quirks; what: it does where that is True; seen: a letter for each of KERNELS: y it does, n it does not, - it has no
    such thing; why: where in the source; probe: how it is found.

    ask: does so; None: what it is about is not there. need: of needs.py, without which there is nothing to ask.
    """

    field: str
    what: str
    seen: str
    why: str
    probe: str
    ask: Callable[[], bool | None]
    need: str = ""

    def kernels(self, letter: str) -> str:
        """Which of the kernels that were run did so: `y`, `n` or `-`."""
        return ", ".join(kernel for kernel, each in zip(KERNELS, self.seen, strict=True) if each == letter)

    @property
    def where(self) -> str:
        return f"yes: {self.kernels('y')}; no: {self.kernels('n')}"


QUIRKS = (
    Quirk(
        "holes_are_written",
        "PAGEMAP_SCAN calls holes below a page table, and all holes of areas registered for write-protection, written",
        "-yynyyyy",
        "fs/proc/task_mmu.c, pagemap_page_category: a correction that stable series got at different times",
        "PAGEMAP_SCAN of the hole beside a page that was touched, registered for write-protection",
        probes.holes_are_written,
        "pagemap-scan",
    ),
    Quirk(
        "written_needs_protection",
        "PAGEMAP_SCAN calls pages and holes written in areas registered for write-protection alone; elsewhere, too, otherwise",
        "-nnnnnny",
        "fs/proc/task_mmu.c, pagemap_page_category: asks for userfaultfd_wp(vma) first in 7.3.4, not in 7.2.13",
        "PAGEMAP_SCAN of a page that was touched",
        probes.written_needs_protection,
        "pagemap-scan",
    ),
    Quirk(
        "anon_shows_ksm",
        "/proc/kpageflags has the KSM bit for every anonymous page",
        "nyyynnnn",
        "fs/proc/page.c, stable_page_flags: one of the two bits that mark a KSM page is taken for the mark (read in 6.12.117)",
        "/proc/kpageflags of a page that was touched",
        probes.anon_shows_ksm,
    ),
    Quirk(
        "parts_show_huge_flags",
        "/proc/kpageflags of a part of a huge page has the flags of the huge page; its own otherwise, ANON_EXCLUSIVE among them",
        "nyyyyyyy",
        "fs/proc/page.c, stable_page_flags: page->flags in 6.1.176, folio->flags in 6.12.117",
        "/proc/kpageflags of the second part of a huge page",
        probes.parts_show_huge_flags,
    ),
    Quirk(
        "huge_entry_shows_first_part",
        "that a part of a huge page is mapped once, pagemap says by how often the first part is; by its own count otherwise (F-25)",
        "ynnyyyyy",
        "fs/proc/task_mmu.c, pagemap_pmd_range: asked once in 6.1.176, for each part in 6.12.117, of the first part each time in 6.18",
        "pagemap of the second part of a huge page, which a child shares but for that part",
        probes.huge_entry_shows_first_part,
    ),
    Quirk(
        "huge_zero_page_is_file",
        "pagemap has the bit of pages of files for the huge zero page, as it has not for the small one",
        "yyyyyyyn",
        "fs/proc/task_mmu.c, pagemap_pmd_range_thp: vm_normal_page_pmd knows no such page in 7.3.4, pmd_page does in 7.2.13",
        "pagemap of memory for huge pages that was read",
        probes.huge_zero_page_is_file,
    ),
    Quirk(
        "shows_lock_on_fault",
        "VmFlags of smaps has `lf` for memory that mlock2(MLOCK_ONFAULT) locked",
        "nyyyyyyy",
        "fs/proc/task_mmu.c, show_smap_vma_flags: in 6.12.117, not in 6.1.176",
        "smaps of such memory",
        probes.shows_lock_on_fault,
    ),
    Quirk(
        "fills_replace_guards",
        "UFFDIO_COPY replaces guard regions (F-14)",
        "---yynnn",
        "mm/userfaultfd.c, mfill_atomic_install_pte: F-14",
        "UFFDIO_COPY to a guard",
        probes.fills_replace_guards,
        "guard",
    ),
    Quirk(
        "merge_spares_fork_children",
        "memory with pages is merged with a neighbour without any that becomes like it, unless a fork may have made the pages",
        "nnnyyyyy",
        "mm/vma.c, is_mergeable_anon_vma: 6.12.117 asks the neighbour for exactly one anon_vma, and an untouched one has none",
        "MADV_DONTDUMP of a page that was touched, behind one that was not and has it",
        probes.merge_spares_fork_children,
    ),
    Quirk(
        "mremap_moves_several",
        "mremap moves all mappings of a range; EFAULT otherwise, when what was at the new place is unmapped already",
        "nnnyyyyy",
        "mm/mremap.c, vma_to_resize: EFAULT in 6.12.117, after mremap_to unmapped the new place; remap_move in 6.18",
        "mremap of two mappings",
        probes.mremap_moves_several,
    ),
    Quirk(
        "dontunmap_splits_locked",
        "MREMAP_DONTUNMAP of a part of locked memory splits it off, and that part alone is no longer locked; all of it otherwise",
        "nnynnnyy",
        "mm/mremap.c, prep_move_vma: splits in 7.2.13 (move_vma in 6.12.117), dontunmap_complete unlocks the whole VMA in 6.18",
        "smaps of the page beside the one that MREMAP_DONTUNMAP moved",
        probes.dontunmap_splits_locked,
    ),
    Quirk(
        "dontunmap_resets_offset",
        "the empty mapping that MREMAP_DONTUNMAP leaves can be merged with a neighbour, wherever its pages came from",
        "nnynnnyy",
        "mm/mremap.c, dontunmap_complete: sets the page offset in 7.2.13 (move_vma in 6.12.117), not in 6.18",
        "MADV_DODUMP of a neighbour of what MREMAP_DONTUNMAP left of a page that mremap had brought there",
        probes.dontunmap_resets_offset,
    ),
    Quirk(
        "dontunmap_keeps_source_apart",
        "what MREMAP_DONTUNMAP copies of untouched memory is a mapping beside that memory's; it is merged with it otherwise",
        "nnynnnyy",
        "mm/vma.c, copy_vma: told in 6.12.117 and 7.2.13 that the source stays, and then no neighbour to merge with; not told in 6.18",
        "smaps after MREMAP_DONTUNMAP of a page that was not touched to the place behind it",
        probes.dontunmap_keeps_source_apart,
    ),
    Quirk(
        "mremap_drops_protection",
        "mremap drops write-protection by a userfaultfd that asked for no remap events",
        "nyyyyyyy",
        "mm/mremap.c, move_ptes: in 6.12.117, not in 6.1.176",
        "pagemap of a protected page that mremap moved",
        probes.mremap_drops_protection,
        "wp",
    ),
    Quirk(
        "mremap_spares_neighbours",
        "mremap unregisters what it moves alone, where no remap events were asked for; neighbours that it joins, too, otherwise (F-15)",
        "nnnnnnny",
        "mm/vma.c, vma_merge_copied_range: merges no such VMA in 7.3.4; does in 7.2.13, and mremap_userfaultfd_prep resets what it became",
        "smaps of a registered page behind which mremap moved another one",
        probes.mremap_spares_neighbours,
    ),
    Quirk(
        "populate_stops_at_holes",
        "MADV_POPULATE_* ends at the first hole; it goes on behind it otherwise",
        "nyyyyyyy",
        "mm/madvise.c, madvise_populate: for each VMA in 6.1.176 (madvise_walk_vmas), for the range in 6.12.117",
        "MADV_POPULATE_WRITE of a hole and the page behind it",
        probes.populate_stops_at_holes,
    ),
    Quirk(
        "writeprotect_spans_vmas",
        "UFFDIO_WRITEPROTECT takes a range of several mappings; ENOENT otherwise",
        "nyyyyyyy",
        "mm/userfaultfd.c, mwriteprotect_range: one find_dst_vma for the whole range in 6.1.176",
        "UFFDIO_WRITEPROTECT of two mappings",
        probes.writeprotect_spans_vmas,
        "wp",
    ),
    Quirk(
        "unregister_asks_whose",
        "UFFDIO_UNREGISTER of what another userfaultfd registered is EINVAL; it is unregistered otherwise",
        "nnnyyyyy",
        "fs/userfaultfd.c, userfaultfd_unregister: not asked in 6.12.117",
        "UFFDIO_UNREGISTER by another userfaultfd",
        probes.unregister_asks_whose,
    ),
    Quirk(
        "register_keeps_protection",
        "UFFDIO_REGISTER without write-protection of what the same userfaultfd registered with it is EBUSY; it succeeds otherwise",
        "nnnnnnny",
        "mm/userfaultfd.c, userfaultfd_register: asks for VM_UFFD_WP among the old flags in 7.3.4, not in 7.2.13",
        "UFFDIO_REGISTER for missing pages of what was registered for both",
        probes.register_keeps_protection,
        "wp",
    ),
    Quirk(
        "uffd_merges_rear",
        "the rear part of a mapping that is registered or unregistered is merged with an equal one behind it",
        "nyyyyyyy",
        "fs/userfaultfd.c, userfaultfd_unregister: 6.1.176 hands vma_merge the page offset of the whole VMA (F-18)",
        "UFFDIO_UNREGISTER of the rear page of what was registered",
        probes.uffd_merges_rear,
    ),
    Quirk(
        "copy_checks_source",
        "UFFDIO_COPY checks the address of its source first: EINVAL; it is EFAULT when it is read otherwise",
        "nyyyyyyy",
        "fs/userfaultfd.c, userfaultfd_copy: the source is validated in 6.12.117, only looked at for a wrap in 6.1.176",
        "UFFDIO_COPY from an address that no process can have",
        probes.copy_checks_source,
    ),
    Quirk(
        "refusal_is_output",
        "what UFFDIO_COPY and the like refuse while an event is unread (EAGAIN) is in their output field, too",
        "nyyyyyyy",
        "fs/userfaultfd.c: in 6.12.107 and 6.18.15, not in 6.1.176, as sequences with events show",
        "UFFDIO_ZEROPAGE while MADV_DONTNEED waits for the reader of its event",
        probes.refusal_is_output,
    ),
    Quirk(
        "mmap_merges_both_sides",
        "a new mapping joins two neighbours of which one was touched; it is merged with the one behind it otherwise",
        "nyyyyyyy",
        "mm/mmap.c, mmap_region: in 6.1.176 the neighbour before is compared with the anon_vma of the one behind",
        "mmap between a mapping that was not touched and one that was",
        probes.mmap_merges_both_sides,
    ),
    Quirk(
        "fills_prepare_first",
        "UFFDIO_COPY to memory that is not registered (ENOENT) leaves an anon_vma behind, so that fewer neighbours are merged",
        "nyyyyyyy",
        "mm/userfaultfd.c: to lock the VMA alone needs its anon_vma (6.12.117, uffd_lock_vma); 6.1.176 looks at the registration first",
        "UFFDIO_COPY to memory that is not registered, whose neighbour is then touched and becomes like it",
        probes.fills_prepare_first,
    ),
    Quirk(
        "mprotect_unaccounts",
        "mprotect that makes untouched memory read-only gives its accounting back (VmFlags loses `ac`)",
        "nyyyyyyy",
        "mm/mprotect.c, mprotect_fixup: in 6.12.117, not in 6.1.176",
        "smaps of memory that mprotect made read-only before it was touched",
        probes.mprotect_unaccounts,
    ),
    Quirk(
        "empty_tables_are_freed",
        "MADV_DONTNEED of all that a page table maps frees the table",
        "nnnyyyyy",
        "CONFIG_PT_RECLAIM: not in 6.12.117",
        "VmPTE of /proc/self/status before and after",
        probes.empty_tables_are_freed,
    ),
    Quirk(
        "huge_zero_page_is_replaced",
        "a write to the huge zero page maps a huge page in its place; it maps a small page otherwise",
        "nnnyyyyy",
        "mm/huge_memory.c, do_huge_pmd_wp_page: split in 6.12.117",
        "/proc/kpageflags of the page beside one that was read, then written, in an area for huge pages",
        probes.huge_zero_page_is_replaced,
    ),
    Quirk(
        "reuses_parts",
        "a write to a part of a huge page that was shared, and that one process alone maps by now, takes it over; it copies it otherwise",
        "nnnyyyyy",
        "mm/memory.c, wp_can_reuse_anon_folio: one reference in 6.12.117, as many as the process has mappings in 6.18",
        "/proc/kpageflags of a part that is written when a forked child has gone",
        probes.reuses_parts,
    ),
    Quirk(
        "copies_last_part",
        "a write to the only part of a huge page that is still mapped, and that was shared, copies it; it takes it over otherwise",
        "nyyyyyyy",
        "mm/memory.c, wp_can_reuse_anon_folio: no huge page is taken over in 6.12.117; in 6.1.176 (do_wp_page) one with one reference is",
        "/proc/kpageflags of the last part, written when a forked child has gone",
        probes.copies_last_part,
    ),
    Quirk(
        "collapse_of_less_succeeds",
        "MADV_COLLAPSE of a range that touches no border of huge pages has nothing to do, and succeeds; EINVAL otherwise",
        "---nnnyy",
        "mm/khugepaged.c, madvise_collapse: 7.2.13 looks for a whole huge page first; before, the result is of a negative count of them",
        "MADV_COLLAPSE of the second page of memory that was touched",
        probes.collapse_of_less_succeeds,
        "collapse",
    ),
    Quirk(
        "swapin_goes_through_cache",
        "a page that was shared when it went to a RAM disk is not the process's alone when it is read, only when it is written",
        "nnnnn-yy",
        "mm/memory.c, do_swap_page: in 7.2.13 it is read into the swap cache, which it leaves at once; in 6.18 past it if it has one user",
        "/proc/kpageflags of a page that was shared with a child, swapped out and read",
        probes.swapin_goes_through_cache,
        "swap",
    ),
    Quirk(
        "split_maps_zero_page",
        "a huge page that is split leaves the zero page in place of small pages full of zeroes",
        "nyyyyyyy",
        "mm/huge_memory.c, remap_page: to the shared zero page in 6.12.117, not in 6.1.176",
        "MADV_COLD of a part of a huge page, then /proc/kpageflags of another part",
        probes.split_maps_zero_page,
    ),
    Quirk(
        "advice_goes_by_batches",
        "MADV_FREE, MADV_COLD and MADV_PAGEOUT of all of a huge page that small entries map leave it whole; they split it otherwise",
        "nyyyyyyy",
        "mm/madvise.c, madvise_free_pte_range: any huge page is split in 6.1.176, only one that is mapped in part in 6.12.117",
        "/proc/kpageflags after MADV_FREE of a huge page whose mapping mprotect of a part has split",
        probes.advice_goes_by_batches,
    ),
    Quirk(
        "protection_goes_by_batches",
        "mprotect and UFFDIO_WRITEPROTECT make all entries dirty that map a huge page one after the other, if one of them is",
        "nnnyyyyy",
        "mm/mprotect.c, change_pte_range: mprotect_folio_pte_batch in 6.18 (cac1db8c3aad), entry by entry in 6.12.117",
        "LazyFree of smaps after MADV_FREE, a write to one page and mprotect of a huge page whose mapping was split",
        probes.protection_goes_by_batches,
    ),
    Quirk(
        "lazyfree_is_kept_busy",
        "a page that reclaim finds in use may be freed lazily by the next reclaim still; its MADV_FREE is forgotten otherwise",
        "nnnyyyyy",
        "mm/rmap.c, try_to_unmap_one: a folio with one reference more gets folio_set_swapbacked like a dirty one in 6.1.176 and 6.12.107, "
        "a dirty one alone in 6.18.15",
        "MADV_FREE, then MADV_PAGEOUT of a page to which a pipe refers, and again when the pipe is closed: pagemap",
        probes.lazyfree_is_kept_busy,
    ),
    Quirk(
        "ksmd_forgets_checksums",
        "a page that was merged, and is written as it was, is looked at by ksmd for a scan more before it is merged again",
        "nnnnnnny",
        "mm/ksm.c, struct ksm_rmap_item: oldchecksum shares its place with linear_page_index in 7.3.4, which leaves 0; not in 7.2.13",
        "which of three equal pages stays, of which the last two were merged before: /proc/self/pagemap, by profile `ksm` alone",
        probes.ksmd_forgets_checksums,
    ),
)


def table() -> list[str]:
    """The table of docs/kernel.md."""

    def first_and_last(quirk: Quirk) -> str:
        seen = quirk.kernels("y").split(", ")
        return " | ".join((seen[0], seen[-1], quirk.kernels("n")))

    rows = [f"| `{q.field}` | {q.what} | {first_and_last(q)} | {q.probe} | {q.why} |" for q in QUIRKS]
    return [
        "| quirk | what | first seen | last seen | not so | probe | why |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


@cache
def running() -> Quirks:
    """What the running kernel does. What this user may not ask is among `unasked`. Raises OSError where there is no userfaultfd."""
    without = needs.left_out()

    def asked_of(quirk: Quirk) -> bool | None:
        if quirk.need in without:
            return None
        try:
            return quirk.ask()
        except (Unavailable, PermissionError):
            return None

    asked = {quirk.field: asked_of(quirk) for quirk in QUIRKS}
    answers = {name: answer for name, answer in asked.items() if answer is not None}
    return Quirks(**answers, without=without, unasked=frozenset(asked.keys() - answers.keys()))


def lines(quirks: Quirks) -> list[str]:
    """A table for people: what the running kernel does, which others were seen to, and what it lacks."""

    def answer(quirk: Quirk) -> str:
        if quirk.field in quirks.unasked:
            return "not asked"
        return "yes" if getattr(quirks, quirk.field) else "no"

    return [
        *(f"{answer(q):3s} {q.field}: {q.what} [{q.where}; probe: {q.probe}]" for q in QUIRKS),
        *needs.lines(quirks.without),
    ]
