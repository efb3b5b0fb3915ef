"""mm/memory.c: faults, copy on write, zapping."""

from __future__ import annotations

from .catalogue import modelled
from .locks import spin_lock, spin_unlock
from .machine import new_page_table
from .mm_types import PmdKind, PteKind, mm_struct, page_table, pmd_t, pte_t, vm, vm_area_struct
from .pgtable import pmd_offset, pte_lockptr, pte_offset, set_pmd, set_pte
from .rmap import anon_vma_prepare, page_add_new_anon_rmap
from .slab import alloc_page, put_page

VM_FAULT_SIGBUS = 2


def pte_alloc(mm: mm_struct, addr: int) -> page_table:
    """The page table that covers an address, made if there is none (mm/memory.c __pte_alloc)."""
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.TABLE:
        return pmd.table
    table = new_page_table(mm)
    set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
    return table


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=9,
    omits="memcg and OOM; the huge fault (see huge_memory.py)",
)
def do_anonymous_page(vma: vm_area_struct, addr: int, write: bool) -> int:
    """A touch of a none PTE. Returns 0 or VM_FAULT_SIGBUS; the caller holds mmap_sem for reading."""
    table = pte_alloc(vma.vm_mm, addr)
    ptep = pte_offset(table, addr)
    if not write:
        spin_lock(pte_lockptr(table))
        if ptep.pte.kind != PteKind.NONE:
            spin_unlock(pte_lockptr(table))
            return 0
        if vma.vm_flags & vm.USERFAULT:
            spin_unlock(pte_lockptr(table))
            return VM_FAULT_SIGBUS
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
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return VM_FAULT_SIGBUS
    page_add_new_anon_rmap(p, vma, addr)
    writable = (vma.vm_flags & vm.WRITE) != 0
    set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=writable, young=True))
    spin_unlock(pte_lockptr(table))
    return 0
