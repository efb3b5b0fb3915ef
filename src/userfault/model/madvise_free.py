"""mm/madvise.c: MADV_FREE, after which reclaim may drop pages unless they are written again."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .ghost import walk_put_back
from .huge_split import split_folio
from .locks import spin_lock, spin_unlock, trylock_page, unlock_page
from .machine import config
from .madvise_cold import batch
from .mm_types import PmdKind, PteKind, mm_struct, page_table, pte_slot, pte_t
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
    ptep_get_and_clear,
    set_pmd,
    set_pte,
)
from .slab import atomic_read, compound_head, get_page, hpage_nr, hpage_size, put_page
from .swap import free_swap_and_cache, try_to_free_swap


@modelled(
    "mm/madvise.c, mm/swap.c",
    function="madvise_free_pte_range, folio_mark_lazyfree",
    versions="v4.5 .. v6.18",
    section="C.7",
    steps=5,
    omits="the batch in which pages become lazily freed; pages on the unevictable list",
)
def madvise_free(mm: mm_struct, start: int, end: int) -> None:
    """The contents are not needed: reclaim may drop the pages, unless they are written again. What is swapped out goes at once."""
    done = start
    while done < end:
        border = min(end, (done & -hpage_size()) + hpage_size())
        pmd = pmd_offset(mm, done).pmd
        if pmd_is_huge(pmd) and madvise_free_huge_pmd(mm, done, border - done == hpage_size()):
            done = border
            continue
        pmd = pmd_offset(mm, done).pmd
        if pmd.kind == PmdKind.TABLE:
            spin_lock(pte_lockptr(pmd.table))
            if config.BATCHED_UNMAP:
                flush_tlb_batched_pending(mm)
            for number in range(done >> config.PAGE_SHIFT, border >> config.PAGE_SHIFT):
                addr = number << config.PAGE_SHIFT
                if addr < done:
                    continue
                if maps_part(pte_offset(pmd.table, addr).pte):
                    done = addr + (madvise_free_folio(mm, pmd.table, addr, border) << config.PAGE_SHIFT)
                    if addr < done:
                        continue
                madvise_free_pte(pte_offset(pmd.table, addr))
            spin_unlock(pte_lockptr(pmd.table))
        done = border


def maps_part(pte: pte_t) -> bool:
    """Does the entry map a part of a huge page?"""
    return config.TRANSPARENT_HUGEPAGE and pte.kind == PteKind.PRESENT and not pte.special and pte.page.compound


def madvise_free_folio(mm: mm_struct, table: page_table, addr: int, border: int) -> int:
    """A huge page that PTEs map: how many entries are done with; 0: it is split, look again. PTL held, but for the split.

    Whoever takes the table away meanwhile leaves it empty: then there is nothing to do in it.
    """
    head = compound_head(pte_offset(table, addr).pte.page)
    nr = batch(table, addr, border)
    if nr < hpage_nr() or not era.advice_goes_by_batches:
        if not era.advice_goes_by_batches:
            nr = (border - addr) >> config.PAGE_SHIFT
        if maybe_mapped_shared(head) or not trylock_page(head):
            return nr
        get_page(head)
        spin_unlock(pte_lockptr(table))
        err = split_folio(head)
        unlock_page(head)
        put_page(head)
        spin_lock(pte_lockptr(table))
        if config.BATCHED_UNMAP and era.advice_goes_by_batches:
            flush_tlb_batched_pending(mm)
        return 0 if err == 0 else nr
    if head.dirty:
        if not trylock_page(head):
            return nr
        if folio_mapcount(head) != hpage_nr():
            unlock_page(head)
            return nr
        head.dirty = False
        unlock_page(head)
    for at in range(hpage_nr()):
        ptep = pte_offset(table, addr + (at << config.PAGE_SHIFT))
        clean_entry(ptep, ptep.pte)
    if head.lru:
        head.lazyfree = True
    return nr


def clean_entry(ptep: pte_slot, seen: pte_t) -> None:
    """The entry forgets that its page was accessed, and written, if that was so when it was looked at."""
    if seen.young or seen.dirty:
        pte = ptep_get_and_clear(ptep)
        set_pte(ptep, pte._replace(young=False, dirty=False))
        walk_put_back(pte.page)


def madvise_free_pte(ptep: pte_slot) -> None:
    """One entry; PTL held."""
    pte = ptep.pte
    if pte.kind == PteKind.SWAP:
        free_swap_and_cache(pte.slot)
        set_pte(ptep, pte_t())
    elif pte.kind == PteKind.POISON_MARKER or pte.kind == PteKind.HWPOISON:
        set_pte(ptep, pte_t())
    elif pte.kind == PteKind.PRESENT and not pte.special and not pte.page.compound:
        p = pte.page
        if p.swapcache is not None or p.dirty:
            # The page's own bit goes only where nobody else needs it.
            if not trylock_page(p):
                return
            if atomic_read(p.mapcount) != 1 or (p.swapcache is not None and not try_to_free_swap(p)):
                unlock_page(p)
                return
            p.dirty = False
            unlock_page(p)
        clean_entry(ptep, pte)
        # Reclaim may have taken it into the swap cache since its lock was free.
        if p.lru and p.swapcache is None:
            p.lazyfree = True


@modelled(
    "mm/huge_memory.c",
    versions="v4.5 .. v6.18",
    section="C.7",
    steps=7,
    omits="that reclaim drops such a page whole; the batch in which pages become lazily freed",
)
def madvise_free_huge_pmd(mm: mm_struct, addr: int, whole: bool) -> bool:
    """MADV_FREE where a huge page is mapped: it is lazily freed, or split where the range is only a part of it.

    False: there may be PTEs to look at.
    """
    pmdp = pmd_offset(mm, addr)
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    p = pmd.page
    # Others who map it have not said that they don't need it.
    if pmd.kind != PmdKind.HUGE or maybe_mapped_shared(p) or not trylock_page(p):
        spin_unlock(pmd_lockptr(pmdp))
        return False
    if not whole:
        get_page(p)
        spin_unlock(pmd_lockptr(pmdp))
        split_folio(p)
        unlock_page(p)
        put_page(p)
        return False
    p.dirty = False
    unlock_page(p)
    if pmd.young or pmd.dirty:
        pmdp_invalidate(pmdp)
        flush_tlb_pmd(mm, addr)
        set_pmd(pmdp, pmd._replace(young=False, dirty=False))
    if p.lru:
        p.lazyfree = True
    spin_unlock(pmd_lockptr(pmdp))
    return True
