"""Kernel generations as small sets of differences.

`era` is the one that runs. A modelled function asks for a difference by name (`if era.recheck_on_fast_path:`); the checker
folds the answer, so a function compiled for an era holds the steps of that era and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass
class Era:
    """What differs between the kernels we model. Each field names the kernel's own change."""

    name: str = "v3.10"
    remap_anon_pages: bool = False
    """The seed series: the system call, MADV_USERFAULT, khugepaged's rule for holes (seed 1/4 and 4/4)."""
    recheck_on_slow_path: bool = False
    """page_lock_anon_vma_read compares page->mapping after the blocking lock (seed 2/4)."""
    recheck_on_fast_path: bool = False
    """The same after the trylock (since v6.8)."""
    recheck_in_split: bool = False
    """split_huge_page's loop around page_get_anon_vma (seed 2/4)."""
    userfaultfd: bool = False
    """userfaultfd (since v4.3), not the seed's MADV_USERFAULT."""
    uffdio_move: bool = False
    """UFFDIO_MOVE (since v6.8)."""
    uffdio_poison: bool = False
    """UFFDIO_POISON (since v6.6)."""
    folios: bool = False
    """The folio-era order of steps: split under the folio lock, PTE-mapped after unmap_folio, index read after the lock."""
    anon_exclusive: bool = False
    """PageAnonExclusive and the exclusive bit of swap PTEs (since v5.19)."""
    aging_leaves_tlb: bool = False
    """x86 clears a PTE's accessed bit without a flush: a look at the bit is only a hint (since v3.15)."""
    migration_keeps_ad: bool = False
    """A migration entry remembers the accessed and dirty bits of its PTE (since v6.1)."""
    anon_vma_reuse: bool = False
    """fork may reuse an anon_vma without active VMAs (since v3.19; two counters since v6.0)."""
    munmap_downgrades: bool = False
    """munmap holds mmap_sem for reading only once the VMAs are detached (since v4.20)."""
    pte_mapped_huge: bool = False
    """A huge page may be mapped by PTEs: to split a mapping and to split the page are two things (since v4.5)."""
    mremap_flushes_early: bool = False
    """mremap flushes the old address before it lets the page-table locks go (since v4.20, eb66ae030829)."""
    split_pmd_locks: bool = False
    """PMD locks of their own instead of mm->page_table_lock (since v3.13)."""
    per_vma_locks: bool = False
    """Faults (v6.4) and UFFDIO_* (v6.9) hold the lock of their VMA instead of mmap_lock."""
    merge_spares_fork_children: bool = False
    """A VMA that may hold a parent's pages gives its anon_vma to no neighbour (v6.16)."""
    move_zero_page: bool = False
    """UFFDIO_MOVE moves the zero page, which v6.8 calls busy."""
    move_swap_cache: bool = False
    """UFFDIO_MOVE of a swap entry takes the page in the swap cache along (since v6.14, c50f8e6053b0)."""
    move_batches: bool = False
    """UFFDIO_MOVE moves runs of pages under one pair of page-table locks, and tries a folio's lock before it takes a
    reference (v6.18)."""
    move_keeps_eagain: bool = False
    """move_pages takes an attempt's -EAGAIN for its errno, and a later attempt's success does not clear it (v6.18 to v7.1: F-10)."""
    collapse_takes_read_only: bool = False
    """khugepaged puts pages together of which none is writable (v6.18; v6.8 asks for one that is)."""
    advice_goes_by_batches: bool = False
    """MADV_COLD, MADV_PAGEOUT and MADV_FREE leave a huge page whole that PTEs map one after the other, and go on behind one that can't be
    split (v6.18; v6.8 splits any of which a PTE maps a part, and ends where it can't)."""
    protection_goes_by_batches: bool = False
    """mprotect and UFFDIO_WRITEPROTECT change entries that map a huge page one after the other at once: all are dirty then of which one
    was (since v6.17, cac1db8c3aad)."""
    advice_clears_one_bit: bool = False
    """MADV_COLD clears a small page's accessed bit in place, and MADV_PAGEOUT leaves it, and a huge page's, as they are (v6.18; v6.8 takes
    the entry out, for both)."""
    lazyfree_is_kept_busy: bool = False
    """A page that may be freed lazily and that somebody refers to stays one for the next reclaim (v6.18, not v6.8)."""
    move_split_is_busy: bool = False
    """UFFDIO_MOVE answers EBUSY for a huge page that can't be split, where it tried again for ever (seen on v6.18.44; the
    sources of v6.18.35 and v7.2.13 try again, and so did 6.18.15, 7.1.13 and 7.2.13; v7.3 has it: F-11)."""
    move_keeps_clean: bool = False
    """A moved entry is dirty only if it was (v6.8 makes it dirty)."""
    huge_zero_page_is_replaced: bool = False
    """A write to the huge zero page maps a huge page in its place (since v6.13); before, the mapping is split."""
    collapse_of_less_succeeds: bool = False
    """MADV_COLLAPSE of a range that touches no border of huge pages is 0 (seen on v7.2, not on v7.1), where it is EINVAL."""
    reuses_parts: bool = False
    """A write to a part of a huge page that one address space alone maps takes it over; before, it is copied (since v6.15)."""
    copies_last_part: bool = False
    """A write to the only part of a huge page that is still mapped copies it (seen on v6.12, not on v6.1; v6.8 takes it over)."""
    split_maps_zero_page: bool = False
    """A split maps the zero page in place of parts that hold zeroes only (seen on v6.12, not on v6.1)."""
    empty_tables_are_freed: bool = False
    """MADV_DONTNEED frees the page tables that it empties (CONFIG_PT_RECLAIM, since v6.14)."""
    ksmd_forgets_checksums: bool = False
    """ksmd takes the checksum of a page anew that was merged, or nearly, and is no KSM page any more: one scan more (seen on v7.3, not on
    v7.2)."""
    dontneed_flushes_late: bool = False
    """MADV_DONTNEED flushes once a call, and for one VMA without a userfaultfd when the VMA's lock is let go (since v6.17)."""
    swapin_maps_writable: bool = False
    """A swapped-in page that is the process's alone is mapped writable even by a read (v6.18; v6.8 only by a write)."""
    swapin_goes_through_cache: bool = False
    """A page that is read from a synchronous device is in the swap cache until it is mapped (seen on v7.2, not on v6.18): only the entry
    tells whether it is its reader's alone, and the last reader takes it out of the cache."""
    mremap_moves_several: bool = False
    """mremap moves several VMAs, one after the other, and looks at its arguments first (since v6.17); before, a range that leaves
    its VMA is EFAULT, when the new place was unmapped already."""
    dontunmap_splits_locked: bool = False
    """MREMAP_DONTUNMAP of a part of a locked VMA splits that part off, and only it is no longer locked (seen on v7.2, not on v7.1)."""
    dontunmap_resets_offset: bool = False
    """MREMAP_DONTUNMAP of a whole VMA gives the empty one that stays the page offset of its address (seen on v7.2, not on v7.1)."""
    dontunmap_keeps_source_apart: bool = False
    """What MREMAP_DONTUNMAP copies of a VMA that was not touched does not make that VMA longer (seen on v7.2, not on v7.1)."""
    mremap_drops_protection: bool = False
    """mremap of memory whose monitor asked for no remap events drops write-protection by userfaultfd (seen on v6.12, not on v6.1)."""
    mremap_spares_neighbours: bool = False
    """What mremap takes from a monitor that asked for no remap events is merged with no neighbour, which the monitor would lose, too (F-15:
    seen on v7.3, not on v7.2)."""
    populate_stops_at_holes: bool = False
    """MADV_POPULATE_* ends at the first hole (seen on v6.12; on v6.1 not); before, it goes on behind it and answers ENOMEM at the end."""
    writeprotect_spans_vmas: bool = False
    """UFFDIO_WRITEPROTECT takes a range of several VMAs (seen on v6.12, not on v6.1)."""
    unregister_asks_whose: bool = False
    """UFFDIO_UNREGISTER refuses what another userfaultfd registered (seen on v6.18, not on v6.12)."""
    register_keeps_protection: bool = False
    """UFFDIO_REGISTER takes no write-protection from what its userfaultfd registered with it: EBUSY (seen on v7.3, not on v7.2)."""
    uffd_merges_rear: bool = False
    """The rear part of a VMA that is registered or unregistered is merged with the neighbour behind it (seen on v6.12, not on v6.1,
    which compares the page offset of the whole VMA and so merges with the wrong one: F-18)."""
    refusal_is_output: bool = False
    """UFFDIO_COPY and the like write EAGAIN to their output field, too, while an event is unread (seen on v6.12, not on v6.1)."""
    copy_checks_source: bool = False
    """UFFDIO_COPY checks where it reads before anything else (seen on v6.12, not on v6.1)."""
    mmap_merges_both_sides: bool = False
    """A new mapping joins two neighbours of which one was touched (seen on v6.12; on v6.1 it is merged with the one behind it)."""
    fills_prepare_first: bool = False
    """UFFDIO_COPY and the like give the VMA its anon_vma, to lock it alone, before they look whether it is registered (seen on v6.12,
    not on v6.1)."""
    mprotect_unaccounts: bool = False
    """mprotect that takes the permission to write from memory that was not touched gives its accounting back (seen on v6.12, not on
    v6.1)."""
    markers: bool = False
    """Entries that mark a hole (write-protected, poisoned, guard) and write-protection by userfaultfd: modelled for v6.18."""
    fills_replace_guards: bool = False
    """UFFDIO_COPY and the like take a guard for a hole (seen up to v6.18; EEXIST in v7.1)."""
    maple_tree: bool = False
    """VMAs lie in a tree whose nodes are taken from memory before anything changes (since v6.1)."""
    merge_failure_is_reported: bool = False
    """A merge for which there is no memory is ENOMEM (since v6.12); before, the VMA is split off, or changed, as it is."""
    fills_read_pmd_once: bool = False
    """UFFDIO_COPY and the like look at the PMD once, after a table was made if none was there: what is no table then is EEXIST (since
    v6.11: E-3)."""
    move_knows_migration: bool = False
    """UFFDIO_MOVE of a part looks at a huge entry's page only if it is a mapping (since v6.17: E-8)."""
    move_waits_on_a_copy: bool = False
    """UFFDIO_MOVE of a huge page under migration waits by a local copy of its entry (F-21: fixed after v7.1)."""
    split_knows_its_page: bool = False
    """A split of a page passes a huge page by that is under migration at the same place (since v6.15, be6e843fc51a: CVE-2025-37958)."""
    huge_move_clears_first: bool = False
    """A huge page's mapping and index change only once its PMD is cleared and no pin was found (since v6.8.8)."""


V3_10 = Era()
V3_10_SEED = replace(
    V3_10,
    name="v3.10+seed",
    remap_anon_pages=True,
    recheck_on_slow_path=True,
    recheck_in_split=True,
)
V6_8 = Era(
    name="v6.8",
    recheck_on_slow_path=True,
    recheck_on_fast_path=True,
    userfaultfd=True,
    maple_tree=True,
    uffdio_move=True,
    move_waits_on_a_copy=True,
    uffdio_poison=True,
    folios=True,
    anon_exclusive=True,
    aging_leaves_tlb=True,
    migration_keeps_ad=True,
    anon_vma_reuse=True,
    munmap_downgrades=True,
    pte_mapped_huge=True,
    mremap_flushes_early=True,
    split_pmd_locks=True,
)
V6_18 = replace(
    V6_8,
    name="v6.18",
    per_vma_locks=True,
    merge_spares_fork_children=True,
    move_zero_page=True,
    move_swap_cache=True,
    move_batches=True,
    move_keeps_eagain=True,
    collapse_takes_read_only=True,
    move_split_is_busy=True,
    advice_goes_by_batches=True,
    protection_goes_by_batches=True,
    advice_clears_one_bit=True,
    lazyfree_is_kept_busy=True,
    move_keeps_clean=True,
    huge_zero_page_is_replaced=True,
    reuses_parts=True,
    copies_last_part=True,
    split_maps_zero_page=True,
    empty_tables_are_freed=True,
    dontneed_flushes_late=True,
    swapin_maps_writable=True,
    mremap_moves_several=True,
    mremap_drops_protection=True,
    populate_stops_at_holes=True,
    writeprotect_spans_vmas=True,
    unregister_asks_whose=True,
    uffd_merges_rear=True,
    mprotect_unaccounts=True,
    fills_prepare_first=True,
    refusal_is_output=True,
    copy_checks_source=True,
    mmap_merges_both_sides=True,
    markers=True,
    fills_replace_guards=True,
    huge_move_clears_first=True,
    fills_read_pmd_once=True,
    merge_failure_is_reported=True,
    move_knows_migration=True,
    split_knows_its_page=True,
)
ERAS = {each.name: each for each in (V3_10, V3_10_SEED, V6_8, V6_18)}

era = Era()


@contextmanager
def differing(name: str, differences: Mapping[str, bool]) -> Iterator[None]:
    """The named era with some of its differences otherwise, for whoever uses it meanwhile: a kernel between two eras."""
    whole = ERAS[name]
    ERAS[name] = replace(whole)
    for field, answer in differences.items():
        setattr(ERAS[name], field, answer)
    try:
        yield
    finally:
        ERAS[name] = whole


def use(name: str) -> Era:
    """Make the named era the one that runs. Raises KeyError for an unknown name."""
    for each in fields(Era):
        setattr(era, each.name, getattr(ERAS[name], each.name))
    return era
