"""mm/swapfile.c, mm/swap_state.c and the swap-in fault of mm/memory.c."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .lang import NULL, atomic, wait_until
from .locks import lock_page, spin_lock, spin_unlock, trylock_page, unlock_page
from .machine import config
from .mm_types import PteKind, page, page_table, pte_slot, pte_t, swap_slot, vm, vm_area_struct
from .pgtable import pte_lockptr, set_pte
from .rmap import PageAnon, anon_vma_prepare, page_add_anon_rmap, page_add_new_anon_rmap
from .slab import alloc_page, atomic_read, put_page
from .swapfile import swap_free, swp_entry_swapcount


@modelled("mm/swapfile.c", versions="v3.10 .. v6.8", section="C.4", omits="the swap_full heuristic")
def free_swap_and_cache(slot: swap_slot) -> None:
    """A swap PTE is zapped: the last one takes the cached page along, if it can be locked at once."""
    if swap_free(slot) != 0:
        return
    p = lookup_swap_cache(slot)
    if p is None:
        return
    if trylock_page(p):
        if p.swapcache is slot and slot.swap_map == 0 and atomic_read(p.mapcount) == 0:
            delete_from_swap_cache(p)
        unlock_page(p)
    put_page(p)


def page_swapcount(p: page) -> int:
    return swp_entry_swapcount(p.swapcache)


# -- the swap cache ---------------------------------------------------------------------------------------------------


@atomic
def add_to_swap_cache(p: page, slot: swap_slot) -> bool:
    """The page becomes findable by its slot; False if another page is there. The cache holds a reference."""
    if slot.cache is not None:
        return False
    slot.cache = p
    slot.has_cache = True
    p.swapcache = slot
    p.refcount.counter += 1
    return True


@atomic
def lookup_swap_cache(slot: swap_slot) -> page | None:
    """The cached page with a reference, not locked: it may leave the cache before it is (E-7).

    A page whose references are frozen can't be had: the look-up is repeated until it is gone or thawed.
    """
    p = slot.cache
    wait_until(p is None or p.refcount.counter > 0)
    if p is not None:
        p.refcount.counter += 1
    return p


@atomic
def clear_swap_cache(p: page) -> None:
    slot = p.swapcache
    slot.cache = NULL
    slot.has_cache = False
    p.swapcache = NULL


def delete_from_swap_cache(p: page) -> None:
    """mm/swap_state.c delete_from_swap_cache; the page is locked."""
    clear_swap_cache(p)
    put_page(p)


@modelled("mm/swapfile.c", versions="v3.10 .. v6.7 (v6.8: part of wp_can_reuse_anon_folio)", section="C.2", steps=2)
def reuse_swap_page(p: page) -> bool:
    """May the only mapper write this page? Drops the swap cache if that was the only other user. Page locked."""
    count = atomic_read(p.mapcount)
    if count <= 1 and p.swapcache is not None:
        count += page_swapcount(p)
        if count <= 1:
            delete_from_swap_cache(p)
            p.dirty = True
    return count <= 1


# -- swap-in ----------------------------------------------------------------------------------------------------------


@modelled("mm/swap_state.c", versions="v3.10 .. v6.8", section="C.7", omits="read-ahead; the read itself is one step")
def read_swap_cache(slot: swap_slot) -> page | None:
    """The slot's page: from the cache, or read into it. None: the slot was freed meanwhile."""
    while True:
        p = lookup_swap_cache(slot)
        if p is not None:
            return p
        fresh = alloc_page()
        trylock_page(fresh)
        if slot.swap_map == 0:
            unlock_page(fresh)
            put_page(fresh)
            return None
        if add_to_swap_cache(fresh, slot):
            fresh.data = slot.data
            unlock_page(fresh)
            return fresh
        unlock_page(fresh)
        put_page(fresh)


@modelled(
    "mm/ksm.c",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=2,
    omits="large folios, which are returned as they are",
)
def ksm_needs_copy(p: page, vma: vm_area_struct, addr_index: int) -> bool:
    """ksm_might_need_to_copy's test: is the page described as lying elsewhere? Reads its anon_vma (S4's masking)."""
    if not PageAnon(p):
        return False
    mapping = p.mapping
    return mapping.root is not vma.anon_vma.root or p.index != addr_index  # type: ignore[union-attr]


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=11,
    omits="synchronous devices that bypass the cache, swap_full, mlock; freeing of the cache on a write that reuses",
)
def do_swap_page(vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t, write: bool) -> int:
    """A touch of a swap PTE; mmap_sem held for reading."""
    slot = orig.slot
    p = read_swap_cache(slot)
    if p is None:
        return 0
    anon_vma_prepare(vma)
    lock_page(p)
    if p.swapcache is not slot:
        unlock_page(p)
        put_page(p)
        return 0
    index = ((addr - vma.vm_start) >> config.PAGE_SHIFT) + vma.vm_pgoff
    copied = config.CONFIG_KSM and ksm_needs_copy(p, vma, index)
    q = p
    if copied:
        q = alloc_page()
        q.data = p.data
    spin_lock(pte_lockptr(table))
    if ptep.pte != orig:
        spin_unlock(pte_lockptr(table))
        unlock_page(p)
        put_page(p)
        if copied:
            put_page(q)
        return 0
    exclusive = False
    if era.anon_exclusive:
        exclusive = orig.exclusive or copied
        swap_free(slot)
        if exclusive and not copied and slot.swap_map == 0:
            delete_from_swap_cache(p)
    elif write and not copied and reuse_swap_page(p):
        exclusive = True
    writable = ((write and exclusive) or copied) and (vma.vm_flags & vm.WRITE) != 0
    pte = pte_t(kind=PteKind.PRESENT, page=q, write=writable, dirty=writable, young=True)
    if era.anon_exclusive:
        if copied:
            page_add_new_anon_rmap(q, vma, addr)
        else:
            page_add_anon_rmap(q, vma, addr, exclusive)
        set_pte(ptep, pte)
    else:
        set_pte(ptep, pte)
        if copied:
            page_add_new_anon_rmap(q, vma, addr)
        else:
            page_add_anon_rmap(q, vma, addr, exclusive)
        swap_free(slot)
    # Before the PTL is let go: a zap that follows may drop the last reference.
    unlock_page(p)
    spin_unlock(pte_lockptr(table))
    if copied:
        put_page(p)
    return 0
