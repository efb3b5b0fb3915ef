"""mm/memory.c: faults, copy on write, zapping."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .huge_memory import do_huge_pmd_fault, zap_huge_pmd
from .lang import atomic, check, exhausted, ghost, raw
from .locks import lock_page, spin_lock, spin_unlock, trylock_page, unlock_page
from .machine import config, machine, new_page_table
from .migrate import migration_entry_wait
from .mm_types import PmdKind, PteKind, mm_struct, page, page_table, pmd_t, pte_slot, pte_t, vm, vm_area_struct
from .pgtable import (
    flush_tlb_page,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    ptep_clear_flush,
    ptep_get_and_clear,
    set_pmd,
    set_pte,
)
from .rmap import (
    PageAnon,
    PageKsm,
    anon_vma_prepare,
    page_add_new_anon_rmap,
    page_move_anon_rmap,
    page_remove_rmap,
)
from .slab import alloc_page, atomic_read, get_page, put_page
from .swap import do_swap_page, free_swap_and_cache, reuse_swap_page

VM_FAULT_SIGBUS = 2
VM_FAULT_USERFAULT = 4
"""v6.8: the fault goes to the userfaultfd's monitor (handle_userfault)."""


@atomic
@raw
def pte_alloc_one(mm: mm_struct) -> page_table:
    """An empty page table from the pool."""
    for each in machine.page_tables:
        if not each.allocated:
            each.allocated = True
            return each
    exhausted("page_table")
    return new_page_table()


@modelled("mm/memory.c", function="__pte_alloc", versions="v3.10 .. v6.8", section="C.1", omits="the memory barrier")
def pte_alloc(mm: mm_struct, addr: int) -> page_table:
    """The page table that covers an address; made if there is none, and dropped again if another was faster."""
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.TABLE:
        return pmd.table
    fresh = pte_alloc_one(mm)
    spin_lock(mm.page_table_lock)
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.NONE:
        set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=fresh))
        spin_unlock(mm.page_table_lock)
        return fresh
    spin_unlock(mm.page_table_lock)
    fresh.allocated = False
    return pmd.table


@ghost
def fault_is_delivered(ptep: pte_slot) -> None:
    """I12: a fault goes to user space only if its PTE is missing at that moment."""
    check(ptep.pte.kind == PteKind.NONE, "missing_fault_is_missing", "a fault was delivered for a page that is there")


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=9,
    omits="memcg and OOM; the huge fault (see huge_memory.py)",
)
def do_anonymous_page(vma: vm_area_struct, addr: int, write: bool) -> int:
    """A touch of a none PTE. Returns 0 or VM_FAULT_*; the caller holds mmap_sem for reading."""
    table = pte_alloc(vma.vm_mm, addr)
    ptep = pte_offset(table, addr)
    missing = VM_FAULT_USERFAULT if era.uffdio_move else VM_FAULT_SIGBUS
    if not write:
        spin_lock(pte_lockptr(table))
        if ptep.pte.kind != PteKind.NONE:
            spin_unlock(pte_lockptr(table))
            return 0
        if vma.vm_flags & vm.USERFAULT:
            fault_is_delivered(ptep)
            spin_unlock(pte_lockptr(table))
            return missing
        set_pte(ptep, pte_t(kind=PteKind.PRESENT, special=True, young=True))
        spin_unlock(pte_lockptr(table))
        return 0
    anon_vma_prepare(vma)
    p = alloc_page()
    p.data = 0
    spin_lock(pte_lockptr(table))
    if ptep.pte.kind != PteKind.NONE:
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return 0
    if vma.vm_flags & vm.USERFAULT:
        fault_is_delivered(ptep)
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return missing
    page_add_new_anon_rmap(p, vma, addr)
    writable = (vma.vm_flags & vm.WRITE) != 0
    set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=writable, young=True))
    spin_unlock(pte_lockptr(table))
    return 0


def make_writable(ptep: pte_slot, pte: pte_t) -> None:
    set_pte(ptep, pte._replace(write=True, dirty=True, young=True))


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.2",
    steps=4,
    omits="shared and file mappings; the LRU drain before the reference count is trusted",
)
def do_wp_page(vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t) -> int:
    """A write to a read-only PTE: reuse the page, or copy it. The PTL is held, and let go."""
    old = orig.page
    if not orig.special:
        if era.anon_exclusive:
            if old.anon_exclusive:
                make_writable(ptep, orig)
                spin_unlock(pte_lockptr(table))
                return 0
            if wp_can_reuse_anon_folio(old, vma):
                old.anon_exclusive = True
                make_writable(ptep, orig)
                spin_unlock(pte_lockptr(table))
                return 0
        elif PageAnon(old) and not PageKsm(old):
            if not trylock_page(old):
                get_page(old)
                spin_unlock(pte_lockptr(table))
                lock_page(old)
                spin_lock(pte_lockptr(table))
                if ptep.pte != orig:
                    unlock_page(old)
                    spin_unlock(pte_lockptr(table))
                    put_page(old)
                    return 0
                put_page(old)
            if reuse_swap_page(old):
                page_move_anon_rmap(old, vma)
                unlock_page(old)
                make_writable(ptep, orig)
                spin_unlock(pte_lockptr(table))
                return 0
            unlock_page(old)
        get_page(old)
    spin_unlock(pte_lockptr(table))
    return wp_page_copy(vma, addr, table, ptep, orig)


def wp_can_reuse_anon_folio(p: page, vma: vm_area_struct) -> bool:
    """mm/memory.c, v6.8: nobody else has a reference, so the page is ours to write."""
    if PageKsm(p) or atomic_read(p.refcount) > (1 if p.swapcache is None else 2):
        return False
    if not trylock_page(p):
        return False
    if p.swapcache is not None:
        reuse_swap_page(p)
    if PageKsm(p) or atomic_read(p.refcount) != 1:
        unlock_page(p)
        return False
    page_move_anon_rmap(p, vma)
    unlock_page(p)
    return True


@modelled("mm/memory.c", versions="v3.10 (in do_wp_page) .. v6.8", section="C.2", steps=4, omits="the mmu notifier")
def wp_page_copy(vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t) -> int:
    """Copy the page (a reference keeps it) and put the copy in its place, if the PTE is still the same."""
    old = orig.page
    anon_vma_prepare(vma)
    new = alloc_page()
    if orig.special:
        new.data = 0
    else:
        new.data = old.data
    spin_lock(pte_lockptr(table))
    if ptep.pte != orig:
        spin_unlock(pte_lockptr(table))
        put_page(new)
        if not orig.special:
            put_page(old)
        return 0
    ptep_clear_flush(vma.vm_mm, addr, ptep)
    page_add_new_anon_rmap(new, vma, addr)
    set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=new, write=True, dirty=True, young=True))
    if not orig.special:
        # Only after the new PTE is visible: the old page may be reused the moment nobody maps it.
        page_remove_rmap(old)
    spin_unlock(pte_lockptr(table))
    if not orig.special:
        put_page(old)
        put_page(old)
    return 0


@modelled("mm/memory.c", versions="v3.10 .. v6.8", section="C.1", omits="NUMA hints, file pages")
def handle_pte_fault(vma: vm_area_struct, addr: int, write: bool) -> int:
    """One fault; mmap_sem is held for reading. Returns 0 (the access is retried) or VM_FAULT_*."""
    pmd = pmd_offset(vma.vm_mm, addr).pmd
    if pmd.kind == PmdKind.NONE:
        return do_anonymous_page(vma, addr, write)
    if pmd.kind != PmdKind.TABLE:
        return do_huge_pmd_fault(vma, addr, write, pmd)
    table = pmd.table
    ptep = pte_offset(table, addr)
    pte = ptep.pte
    if pte.kind == PteKind.NONE:
        return do_anonymous_page(vma, addr, write)
    if pte.kind == PteKind.SWAP:
        return do_swap_page(vma, addr, table, ptep, pte, write)
    if pte.kind == PteKind.MIGRATION:
        migration_entry_wait(table, ptep)
        return 0
    spin_lock(pte_lockptr(table))
    if ptep.pte != pte:
        spin_unlock(pte_lockptr(table))
        return 0
    if write and not pte.write:
        if not vma.vm_flags & vm.WRITE:
            spin_unlock(pte_lockptr(table))
            return VM_FAULT_SIGBUS
        return do_wp_page(vma, addr, table, ptep, pte)
    set_pte(ptep, pte._replace(young=True, dirty=pte.dirty or write))
    spin_unlock(pte_lockptr(table))
    return 0


@modelled(
    "mm/memory.c",
    function="zap_pte_range",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=5,
    omits="the mmu_gather batch: each page is flushed and freed before the next",
    errs="missed bug",
)
def zap_pte(mm: mm_struct, addr: int, table: page_table) -> None:
    """Clear one PTE and drop what it held."""
    ptep = pte_offset(table, addr)
    spin_lock(pte_lockptr(table))
    pte = ptep.pte
    if pte.kind == PteKind.NONE:
        spin_unlock(pte_lockptr(table))
        return
    pte = ptep_get_and_clear(ptep)
    if pte.kind == PteKind.PRESENT and not pte.special:
        page_remove_rmap(pte.page)
    elif pte.kind == PteKind.SWAP:
        free_swap_and_cache(pte.slot)
    spin_unlock(pte_lockptr(table))
    flush_tlb_page(mm, addr)
    if pte.kind == PteKind.PRESENT and not pte.special:
        put_page(pte.page)


def zap_page_range(mm: mm_struct, vma: vm_area_struct, start: int, end: int) -> None:
    """mm/memory.c zap_page_range / unmap_vmas: every entry of [start, end) that the VMA covers."""
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        addr = number << config.PAGE_SHIFT
        if addr < vma.vm_start or addr >= vma.vm_end:
            continue
        pmdp = pmd_offset(mm, addr)
        while True:
            pmd = pmdp.pmd
            if pmd.kind == PmdKind.TABLE:
                zap_pte(mm, addr, pmd.table)
                break
            # A huge entry that was split meanwhile is a table now.
            if pmd.kind == PmdKind.NONE or zap_huge_pmd(vma, pmdp, addr):
                break
