"""mm/mremap.c: a mapping moves to other addresses, and its pages' mapping and index stay as they are."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EFAULT, EINVAL
from .ghost import walk_put_back
from .lang import atomic, exhausted, reached
from .locks import down_write, spin_lock, spin_lock_nested, spin_unlock, up_write
from .machine import config
from .memory import pte_alloc
from .mm_types import PmdKind, PteKind, mm_struct, page_table, vm_area_struct
from .mmap import detach_vma, find_vma, unmap_detached
from .pgtable import (
    flush_tlb_page,
    flush_tlb_range,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    ptep_get_and_clear,
    set_pte,
)
from .rmap import anon_vma_clone
from .slab import vm_area_alloc
from .vma import vma_link


@modelled(
    "mm/mmap.c",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=3,
    omits="the merge with a neighbour, and need_rmap_locks with it",
    errs="missed bug",
)
def copy_vma(mm: mm_struct, vma: vm_area_struct, addr: int) -> vm_area_struct:
    """A VMA at the new address, in the same trees and behind the old one, in which every page has the same index."""
    new = vm_area_alloc()
    dup_vma_at(new, vma, addr)
    anon_vma_clone(new, vma)
    vma_link(mm, new)
    return new


@atomic
def dup_vma_at(new: vm_area_struct, vma: vm_area_struct, addr: int) -> None:
    """The fields; the page offset stays, unless no page can know of it yet."""
    new.vm_mm = vma.vm_mm
    new.vm_start = addr
    new.vm_end = addr + (vma.vm_end - vma.vm_start)
    new.vm_pgoff = vma.vm_pgoff
    if vma.anon_vma is None:
        new.vm_pgoff = addr >> config.PAGE_SHIFT
    new.vm_flags = vma.vm_flags
    new.vm_file = vma.vm_file
    new.anon_vma = vma.anon_vma


@modelled(
    "mm/mremap.c",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=6,
    omits="the run of PTEs under one hold of the locks: here they are let go after each",
    errs="false alarm",
)
def move_ptes(mm: mm_struct, old: page_table, old_addr: int, new: page_table, new_addr: int) -> None:
    """One PTE to its new place. The order of the two locks is free: mmap_sem is held for writing."""
    old_ptep, new_ptep = pte_offset(old, old_addr), pte_offset(new, new_addr)
    spin_lock(pte_lockptr(old))
    if new is not old:
        spin_lock_nested(pte_lockptr(new))
    if old_ptep.pte.kind != PteKind.NONE:
        pte = ptep_get_and_clear(old_ptep)
        set_pte(new_ptep, pte)
        if pte.kind == PteKind.PRESENT and not pte.special:
            walk_put_back(pte.page)
        if era.mremap_flushes_early and pte.kind == PteKind.PRESENT:
            # Before the locks are let go: who unmaps the page at its new place does not know of the old one (E-17).
            flush_tlb_page(mm, old_addr)
    if new is not old:
        spin_unlock(pte_lockptr(new))
    spin_unlock(pte_lockptr(old))


@modelled(
    "mm/mremap.c",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=4,
    omits="huge entries (a bound), the move of whole tables (v5.0), the mmu notifier",
    errs="missed bug",
)
def move_page_tables(mm: mm_struct, vma: vm_area_struct, new_vma: vm_area_struct) -> None:
    """Every entry of one VMA into another of the same size."""
    first = vma.vm_start >> config.PAGE_SHIFT
    for number in range(first, vma.vm_end >> config.PAGE_SHIFT):
        old_addr = number << config.PAGE_SHIFT
        new_addr = new_vma.vm_start + (old_addr - vma.vm_start)
        pmd = pmd_offset(mm, old_addr).pmd
        if pmd.kind == PmdKind.NONE:
            continue
        if pmd.kind != PmdKind.TABLE:
            exhausted("mremap of a huge page")
            continue
        table = pte_alloc(mm, new_addr)
        if table is None:
            exhausted("mremap of a huge page")
            continue
        move_ptes(mm, pmd.table, old_addr, table, new_addr)
    if not era.mremap_flushes_early:
        flush_tlb_range(mm, vma.vm_start, vma.vm_end)


@modelled(
    "mm/mremap.c",
    function="sys_mremap (MREMAP_FIXED, move_vma)",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=6,
    omits="parts of a VMA, growing and shrinking, what lies at the destination (-EINVAL here), MREMAP_DONTUNMAP, KSM",
    errs="missed bug",
)
def sys_mremap(mm: mm_struct, new_addr: int, old_addr: int, length: int) -> int:
    """Move the VMA at [old_addr, old_addr + length) (bytes) to `new_addr`. 0; -EINVAL: not aligned, or not free there; -EFAULT."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if (new_addr | old_addr | length) & mask or length <= 0:
        return -EINVAL
    down_write(mm.mmap_sem)
    for other in mm.mmap:
        if other.vm_start < new_addr + length and other.vm_end > new_addr:
            up_write(mm.mmap_sem)
            return -EINVAL
    vma = find_vma(mm, old_addr)
    if vma is None or vma.vm_start != old_addr or vma.vm_end != old_addr + length:
        up_write(mm.mmap_sem)
        return -EFAULT
    new_vma = copy_vma(mm, vma, new_addr)
    move_page_tables(mm, vma, new_vma)
    detach_vma(mm, vma)
    unmap_detached(mm, old_addr, old_addr + length)
    up_write(mm.mmap_sem)
    reached("a mapping was moved")
    return 0
