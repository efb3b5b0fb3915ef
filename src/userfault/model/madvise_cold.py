"""mm/madvise.c: MADV_COLD and MADV_PAGEOUT, which look at each page of a range and split huge pages that lie there in part."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .ghost import walk_put_back
from .huge_split import split_folio
from .lang import atomic, raw
from .locks import lock_page, spin_lock, spin_unlock, trylock_page, unlock_page
from .machine import config
from .mm_types import PmdKind, PteKind, mm_struct, page_table, pmd_slot
from .page_flags import folio_mapcount, maybe_mapped_shared
from .pgtable import (
    flush_tlb_batched_pending,
    flush_tlb_pmd,
    pmd_is_huge,
    pmd_lockptr,
    pmd_offset,
    pmdp_invalidate,
    pte_lockptr,
    pte_offset,
    ptep_clear_young,
    ptep_get_and_clear,
    set_pmd,
    set_pte,
)
from .slab import compound_head, get_page, hpage_nr, hpage_size, put_page
from .vmscan import shrink_page


@modelled(
    "mm/madvise.c",
    function="madvise_cold_or_pageout_pte_range",
    versions="v5.4 .. v6.18",
    section="C.7",
    steps=3,
    omits="isolation of a page table's pages before the first is written; pages that are not on the LRU lists yet; huge pages whole in "
    "swap, which only a block device takes; one hold of a table's lock for all its entries; that v6.8 keeps what was used since it looked, "
    "and does not flush again what reclaim has batched when it takes the lock again after a split",
    errs="both",
)
def madvise_cold_or_pageout(mm: mm_struct, start: int, end: int, pageout: bool) -> None:
    """The pages of the range that nobody else maps are not in use; pageout: they are reclaimed."""
    done = 0
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        # A huge page takes us further.
        if number < done:
            continue
        addr = number << config.PAGE_SHIFT
        pmdp = pmd_offset(mm, addr)
        border = min(end, (addr & -hpage_size()) + hpage_size())
        if pmd_is_huge(pmdp.pmd) and not advise_huge(mm, pmdp, addr, border - addr == hpage_size(), pageout):
            done = border >> config.PAGE_SHIFT
            continue
        table = pmdp.pmd.table
        if pmdp.pmd.kind == PmdKind.TABLE:
            done = number + advise_pte(mm, table, addr, border, pageout)


@modelled(
    "mm/madvise.c",
    function="madvise_cold_or_pageout_pte_range (a huge entry)",
    versions="v5.4 .. v6.18",
    section="C.7",
    steps=5,
)
def advise_huge(mm: mm_struct, pmdp: pmd_slot, addr: int, whole: bool, pageout: bool) -> bool:
    """A huge page that nobody else maps. True: it is split, and its parts are to be looked at.

    A part of it splits it, and waits for its lock. All of it is only old, or is split by reclaim, which waits for nobody.
    """
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    p = pmd.page
    wanted = pmd.kind == PmdKind.HUGE and not maybe_mapped_shared(p)
    if wanted and whole and clears_age(pageout):
        if pmd.young:
            # What the hardware notes between the look and this is lost with it.
            pmdp_invalidate(pmdp)
            flush_tlb_pmd(mm, addr)
            set_pmd(pmdp, pmd._replace(young=False))
        wanted = pageout
    if wanted:
        get_page(p)
    spin_unlock(pmd_lockptr(pmdp))
    if not wanted:
        return False
    if whole and not trylock_page(p):
        put_page(p)
        return False
    if not whole:
        lock_page(p)
    err = split_folio(p)
    unlock_page(p)
    put_page(p)
    return err == 0


@modelled(
    "mm/madvise.c",
    function="madvise_cold_or_pageout_pte_range (an entry)",
    versions="v5.4 .. v6.18",
    section="C.7",
    steps=6,
)
def advise_pte(mm: mm_struct, table: page_table, addr: int, border: int, pageout: bool) -> int:
    """One entry, or those of a huge page that follow one another up to the border: how many pages were done."""
    while True:
        spin_lock(pte_lockptr(table))
        if config.BATCHED_UNMAP:
            flush_tlb_batched_pending(mm)
        ptep = pte_offset(table, addr)
        pte = ptep.pte
        if pte.kind != PteKind.PRESENT or pte.special:
            spin_unlock(pte_lockptr(table))
            return 1
        p = pte.page
        if config.TRANSPARENT_HUGEPAGE and p.compound:
            head = compound_head(p)
            count = batch(table, addr, border)
            after = count if era.advice_goes_by_batches else (border - addr) >> config.PAGE_SHIFT
            whole = era.advice_goes_by_batches and count == hpage_nr()
            wanted = head.lru and folio_mapcount(head) == count if whole else not maybe_mapped_shared(head)
            if wanted and whole and not pageout:
                for at in range(count):
                    ptep_clear_young(pte_offset(table, addr + (at << config.PAGE_SHIFT)))
                wanted = False
            if not wanted or not trylock_page(head):
                spin_unlock(pte_lockptr(table))
                return after
            get_page(head)
            spin_unlock(pte_lockptr(table))
            err = split_folio(head)
            unlock_page(head)
            put_page(head)
            if err != 0:
                return after
            continue
        wanted = p.lru and folio_mapcount(p) == 1
        if wanted and clears_age(pageout) and pte.young:
            if era.advice_clears_one_bit:
                ptep_clear_young(ptep)
            else:
                entry = ptep_get_and_clear(ptep)
                set_pte(ptep, entry._replace(young=False))
                walk_put_back(p)
        spin_unlock(pte_lockptr(table))
        if wanted and pageout:
            shrink_page(p)
        return 1


def clears_age(pageout: bool) -> bool:
    """Is what was used lately to be forgotten? v6.18's reclaim is told not to ask, and an entry's age stays."""
    return not pageout or not era.advice_clears_one_bit


@atomic
@raw
def batch(table: page_table, addr: int, border: int) -> int:
    """folio_pte_batch, the PTL held: entries up to the border that map the parts of a huge page one after the other."""
    first = pte_offset(table, addr).pte
    count = 0
    for at in range((border - addr) >> config.PAGE_SHIFT):
        pte = pte_offset(table, addr + (at << config.PAGE_SHIFT)).pte
        if pte.kind != PteKind.PRESENT or pte.special or compound_head(pte.page) is not compound_head(first.page):
            break
        if pte.page.pfn != first.page.pfn + at or pte.uffd_wp != first.uffd_wp or pte.protnone != first.protnone:
            break
        count += 1
    return count
