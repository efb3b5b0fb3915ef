"""mm/swapfile.c, mm/swap_state.c and the swap-in fault of mm/memory.c."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EEXIST, ENOENT
from .lang import NULL, atomic, wait_until
from .locks import lock_page, spin_lock, spin_unlock, trylock_page, unlock_page
from .machine import config, machine
from .mm_types import VM_FAULT_OOM, PteKind, anon_vma, page, page_table, pte_slot, pte_t, swap_slot, vm, vm_area_struct
from .page_flags import PageKsm, lacks_stable_node, page_mapped
from .pgtable import pte_lockptr, set_pte
from .rmap import page_add_anon_rmap, page_add_new_anon_rmap
from .slab import alloc_page, atomic_read, compound_head, out_of_memory, put_page
from .swapfile import swap_entry_free, swap_free, swp_entry_swapcount


@modelled("mm/swapfile.c", versions="v3.10 .. v6.8", section="C.4", steps=6, omits="the swap_full heuristic, writeback")
def free_swap_and_cache(slot: swap_slot) -> None:
    """A swap PTE is zapped: the last one takes the cached page along, if it can be locked at once.

    v3.10 looks the page up under the swap lock; since v4.20 (a449bf58e45a) the page may have another slot by then.
    """
    spin_lock(machine.swap_lock)
    left = swap_entry_free(slot)
    if era.folios:
        spin_unlock(machine.swap_lock)
    p: page | None = None
    if left == 0 and slot.has_cache:
        p = lookup_swap_cache(slot)
        if p is not None and not trylock_page(p):
            put_page(p)
            p = None
    if not era.folios:
        spin_unlock(machine.swap_lock)
    if p is None:
        return
    if era.folios:
        if not page_mapped(p):
            try_to_free_swap(p)
    elif p.swapcache is not None and not page_mapped(p):
        delete_from_swap_cache(p)
        p.dirty = True
    unlock_page(p)
    put_page(p)


@modelled(
    "mm/swapfile.c", versions="v3.10 .. v6.8 (since v5.19 folio_free_swap)", section="C.2", steps=3, omits="writeback"
)
def try_to_free_swap(p: page) -> bool:
    """Take a locked page out of the swap cache if no swap PTE refers to its slot."""
    if p.swapcache is None:
        return False
    if page_swapcount(p) != 0:
        return False
    delete_from_swap_cache(p)
    p.dirty = True
    return True


@modelled("mm/swap_state.c", versions="v3.10 .. v6.8", section="C.4", steps=4)
def free_swap_cache(p: page) -> None:
    """Whoever drops one of the last references takes an unmapped page out of the swap cache, if it can be locked at once."""
    if p.swapcache is not None and not page_mapped(p) and trylock_page(p):
        try_to_free_swap(p)
        unlock_page(p)


def free_page_and_swap_cache(p: page) -> None:
    """What the mmu_gather does with a page when the TLBs are flushed."""
    free_swap_cache(compound_head(p))
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
    if PageKsm(p):
        return False
    count = atomic_read(p.mapcount)
    if count <= 1 and p.swapcache is not None:
        count += page_swapcount(p)
        if count == 1:
            delete_from_swap_cache(p)
            p.dirty = True
    return count <= 1


# -- swap-in ----------------------------------------------------------------------------------------------------------


@atomic
def swapcache_prepare(p: page, slot: swap_slot) -> int:
    """Claim the slot's place in the swap cache for a fresh page, and put it there, locked. 0, -EEXIST or -ENOENT."""
    if slot.has_cache:
        return -EEXIST
    if slot.swap_map == 0:
        return -ENOENT
    trylock_page(p)
    add_to_swap_cache(p, slot)
    return 0


@modelled(
    "mm/swap_state.c",
    function="read_swap_cache_async",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=5,
    omits="read-ahead; the read itself is one step; the claim of the place and the insertion are one",
)
def read_swap_cache(slot: swap_slot) -> page | None:
    """The slot's page: from the cache, or read into it. None: the slot was freed meanwhile, or there is no memory."""
    while True:
        p = lookup_swap_cache(slot)
        if p is not None:
            return p
        if out_of_memory():
            return None
        fresh = alloc_page()
        err = swapcache_prepare(fresh, slot)
        if err == 0:
            fresh.lru = True
            fresh.data = slot.data
            unlock_page(fresh)
            return fresh
        put_page(fresh)
        if err == -ENOENT:
            return None
        # -EEXIST: another reader has the place. Its page is there at the next look.


@modelled(
    "mm/ksm.c",
    function="ksm_might_need_to_copy",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=3,
    omits="large folios, which are returned as they are; the copy (the caller's)",
)
def ksm_needs_copy(p: page, vma: vm_area_struct, addr_index: int) -> bool:
    """Is the page described as lying elsewhere? Reads its anon_vma (S4's masking). A KSM page with a node may lie anywhere."""
    mapping = p.mapping
    if not isinstance(mapping, anon_vma):
        return lacks_stable_node(p)
    return mapping.root is not vma.anon_vma.root or p.index != addr_index


def write_protected_as(vma: vm_area_struct, orig: pte_t, pte: pte_t) -> pte_t:
    """The entry keeps the userfaultfd's write-protection of the swap entry; while the VMA is registered for it, it bites."""
    if not orig.uffd_wp:
        return pte
    if vma.vm_flags & vm.UFFD_WP:
        # No write yet, so that it is not dirty either.
        return pte._replace(uffd_wp=True, write=False, dirty=False)
    return pte._replace(uffd_wp=True)


@modelled(
    "mm/memory.c", function="do_swap_page", versions="v4.15 .. v6.18", section="C.7", steps=5, omits="large folios"
)
def swap_in_directly(
    vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t, write: bool
) -> int:
    """A slot with one user on a synchronous device: the page is read past the swap cache, and is the process's alone."""
    if out_of_memory():
        return no_page_for(table, ptep, orig)
    p = alloc_page()
    p.data = orig.slot.data
    spin_lock(pte_lockptr(table))
    if ptep.pte != orig:
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return 0
    swap_free(orig.slot)
    writable = vma.vm_flags & vm.WRITE != 0
    pte = pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=writable and write, young=True)
    page_add_new_anon_rmap(p, vma, addr)
    set_pte(ptep, write_protected_as(vma, orig, pte))
    spin_unlock(pte_lockptr(table))
    return 0


def no_page_for(table: page_table, ptep: pte_slot, orig: pte_t) -> int:
    """No page to read into: VM_FAULT_OOM, unless somebody else was faster."""
    spin_lock(pte_lockptr(table))
    same = ptep.pte == orig
    spin_unlock(pte_lockptr(table))
    return VM_FAULT_OOM if same else 0


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=11,
    omits="synchronous devices that bypass the cache, the swap_full heuristic, mlocked pages elsewhere; "
    "a write that can't reuse the page faults again, where the kernel copies at once",
)
def do_swap_page(vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t, write: bool) -> int:
    """A touch of a swap PTE; mmap_sem held for reading."""
    slot = orig.slot
    passing = config.SYNCHRONOUS_SWAP and era.swapin_goes_through_cache
    if config.SYNCHRONOUS_SWAP and not passing and slot.cache is None and slot.swap_map == 1:
        return swap_in_directly(vma, addr, table, ptep, orig, write)
    p = read_swap_cache(slot)
    if p is None:
        return no_page_for(table, ptep, orig) if config.MEMORY_IS_SHORT else 0
    lock_page(p)
    if p.swapcache is not slot:
        unlock_page(p)
        put_page(p)
        return 0
    index = ((addr - vma.vm_start) >> config.PAGE_SHIFT) + vma.vm_pgoff
    copied = config.CONFIG_KSM and ksm_needs_copy(p, vma, index)
    q = p
    if copied:
        if out_of_memory():
            unlock_page(p)
            put_page(p)
            return VM_FAULT_OOM
        q = alloc_page()
        q.data = p.data
        q.dirty = True
    spin_lock(pte_lockptr(table))
    if ptep.pte != orig:
        spin_unlock(pte_lockptr(table))
        unlock_page(p)
        put_page(p)
        if copied:
            put_page(q)
        return 0
    if era.anon_exclusive:
        # The entry is given back before the page is mapped: the count tells whether anybody else has the page.
        swap_free(slot)
        if not passing and (
            vma.vm_flags & vm.LOCKED or (write and not copied and not PageKsm(p) and atomic_read(p.refcount) == 2)
        ):
            try_to_free_swap(q)
        exclusive = not PageKsm(q) and (orig.exclusive or copied or atomic_read(q.refcount) == 1)
    else:
        exclusive = write and (copied or reuse_swap_page(p))
    writable = (write or era.swapin_maps_writable) and exclusive and vma.vm_flags & vm.WRITE != 0
    pte = pte_t(kind=PteKind.PRESENT, page=q, write=writable, dirty=writable and write, young=True)
    if era.markers:
        pte = write_protected_as(vma, orig, pte)
    if not era.anon_exclusive:
        set_pte(ptep, pte)
    if copied:
        page_add_new_anon_rmap(q, vma, addr)
    else:
        page_add_anon_rmap(q, vma, addr, exclusive)
    if era.anon_exclusive:
        set_pte(ptep, pte)
        if passing:
            try_to_free_swap(q)
    else:
        swap_free(slot)
        if vma.vm_flags & vm.LOCKED:
            try_to_free_swap(q)
    # Before the PTL is let go: a zap that follows may drop the last reference.
    unlock_page(p)
    if copied:
        put_page(p)
    spin_unlock(pte_lockptr(table))
    return 0
