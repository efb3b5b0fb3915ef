"""Page tables and TLBs: finding entries, their locks, and flushing."""

from __future__ import annotations

from .era import era
from .lang import atomic, check, touched, wait_until
from .machine import config, machine
from .mm_types import (
    PmdKind,
    mm_struct,
    page_table,
    pmd_slot,
    pmd_t,
    pte_slot,
    pte_t,
    spinlock_t,
    tlb_t,
    vm_area_struct,
)

NO_TRANSLATION, NO_ENTRY = tlb_t(), pte_t()


def linear_page_index(vma: vm_area_struct, addr: int) -> int:
    """include/linux/pagemap.h: the offset, in pages, that a page at `addr` (bytes) has in this VMA."""
    return ((addr - vma.vm_start) >> config.PAGE_SHIFT) + vma.vm_pgoff


def vma_address(vma: vm_area_struct, index: int) -> int:
    """mm/internal.h __vma_address: where a page with this index lies in the VMA (bytes); -1 if outside."""
    addr = vma.vm_start + ((index - vma.vm_pgoff) << config.PAGE_SHIFT)
    if addr < vma.vm_start or addr >= vma.vm_end:
        return -1
    return addr


def pmd_offset(mm: mm_struct, addr: int) -> pmd_slot:
    """The PMD entry that covers an address."""
    return mm.pmd[addr >> (config.PAGE_SHIFT + config.HPAGE_PMD_ORDER)]


def pte_offset(table: page_table, addr: int) -> pte_slot:
    """The PTE of an address in its table."""
    return table.pte[(addr >> config.PAGE_SHIFT) & ((1 << config.HPAGE_PMD_ORDER) - 1)]


def pmd_is_huge(pmd: pmd_t) -> bool:
    """Neither nothing nor a table: huge, or a huge page under migration (pmd_trans_huge or is_swap_pmd, up to v6.18)."""
    return config.TRANSPARENT_HUGEPAGE and pmd.kind != PmdKind.NONE and pmd.kind != PmdKind.TABLE


def pmd_trans_huge(pmd: pmd_t) -> bool:
    """A huge entry, be it the huge zero page's, one that is being split or one that the hardware may not use."""
    return pmd_is_huge(pmd) and pmd.kind != PmdKind.MIGRATION


def is_swap_pmd(pmd: pmd_t) -> bool:
    """A migration entry: no other entry that is no mapping is as large as a huge page."""
    return config.TRANSPARENT_HUGEPAGE and pmd.kind == PmdKind.MIGRATION


def pmd_trans_splitting(pmd: pmd_t) -> bool:
    """arch/x86 pgtable.h, v3.10 .. v4.4: the bit stays set to the end of the split, while the entry is invalid too."""
    return pmd.kind == PmdKind.SPLITTING or (pmd.kind == PmdKind.INVALID and not era.pte_mapped_huge)


def pte_lockptr(table: page_table) -> spinlock_t:
    """include/linux/mm.h pte_lockptr, with split PTE locks."""
    return table.ptl


def pmd_lockptr(pmd: pmd_slot) -> spinlock_t:
    """The lock of a PMD entry: mm->page_table_lock (before v3.13); one PMD page a process is what we model later too."""
    return pmd.mm.page_table_lock


def table_is_gone(mm: mm_struct, addr: int, table: page_table) -> bool:
    """pmd_same in pte_offset_map_lock: the table that is locked is not the address's any more. Only PT_RECLAIM can make it so."""
    return pmd_offset(mm, addr).pmd.table is not table


def table_now(mm: mm_struct, addr: int, table: page_table) -> page_table | None:
    """The table of an address where it is looked up again: the one that was found at first, unless tables may go."""
    return pmd_offset(mm, addr).pmd.table if config.PT_RECLAIM else table


@atomic
def set_pte(ptep: pte_slot, pte: pte_t) -> None:
    if config.PT_RECLAIM and ptep.table is not None:
        check(not ptep.table.detached, "use_after_free", "an entry was written to a page table that was freed")
    ptep.pte = pte
    touched(ptep.table)


@atomic
def set_pmd(pmdp: pmd_slot, pmd: pmd_t) -> None:
    pmdp.pmd = pmd


@atomic
def ptep_get_and_clear(ptep: pte_slot) -> pte_t:
    """One atomic exchange: no accessed or dirty bit is lost."""
    old = ptep.pte
    ptep.pte = NO_ENTRY
    touched(ptep.table)
    return old


@atomic
def ptep_clear_young(ptep: pte_slot) -> bool:
    """ptep_test_and_clear_young: one bit, in one instruction, so that the dirty bit that the hardware sets meanwhile stays."""
    young = ptep.pte.young
    ptep.pte = ptep.pte._replace(young=False)
    return young


@atomic
def pmdp_clear_young(pmdp: pmd_slot) -> bool:
    """pmdp_test_and_clear_young, as ptep_clear_young."""
    young = pmdp.pmd.young
    pmdp.pmd = pmdp.pmd._replace(young=False)
    return young


@atomic
def pmdp_invalidate(pmdp: pmd_slot) -> pmd_t:
    """One atomic exchange: the hardware may not use the entry any more; returns what was there. A flush must follow."""
    old = pmdp.pmd
    pmdp.pmd = old._replace(kind=PmdKind.INVALID)
    return old


@atomic
def flush_tlb_page(mm: mm_struct, addr: int) -> None:
    """Forget the translation on every CPU, by IPI: waits for CPUs that have interrupts off (gup_fast)."""
    for each in machine.cpus:
        wait_until(not (each.irqs_off and each.mm is mm))
    for each in machine.cpus:
        if each.mm is mm and addr >> config.PAGE_SHIFT < len(each.tlb):
            each.tlb[addr >> config.PAGE_SHIFT] = NO_TRANSLATION


def ptep_clear_flush(mm: mm_struct, addr: int, ptep: pte_slot) -> pte_t:
    """mm/pgtable-generic.c ptep_clear_flush: clear, then flush; returns what was there."""
    pte = ptep_get_and_clear(ptep)
    flush_tlb_page(mm, addr)
    return pte


@atomic
def flush_tlb_pmd(mm: mm_struct, addr: int) -> None:
    """Forget the translations of a whole PMD on every CPU, by IPI."""
    for each in machine.cpus:
        wait_until(not (each.irqs_off and each.mm is mm))
    for each in machine.cpus:
        if each.mm is mm:
            first = addr >> config.PAGE_SHIFT
            for number in range(first, min(first + (1 << config.HPAGE_PMD_ORDER), len(each.tlb))):
                each.tlb[number] = NO_TRANSLATION


@atomic
def flush_tlb_range(mm: mm_struct, start: int, end: int) -> None:
    """Forget the translations of [start, end) (bytes) on every CPU, by IPI."""
    for each in machine.cpus:
        wait_until(not (each.irqs_off and each.mm is mm))
    for each in machine.cpus:
        if each.mm is mm:
            for number in range(start >> config.PAGE_SHIFT, min(end >> config.PAGE_SHIFT, len(each.tlb))):
                each.tlb[number] = NO_TRANSLATION


@atomic
def flush_tlb_mm(mm: mm_struct) -> None:
    """Forget every translation of an address space on every CPU, by IPI."""
    for each in machine.cpus:
        wait_until(not (each.irqs_off and each.mm is mm))
    for each in machine.cpus:
        if each.mm is mm:
            for at in range(len(each.tlb)):
                each.tlb[at] = NO_TRANSLATION


@atomic
def flush_tlb_all() -> None:
    """Forget every translation on every CPU, by IPI."""
    for each in machine.cpus:
        wait_until(not each.irqs_off)
    for each in machine.cpus:
        for at in range(len(each.tlb)):
            each.tlb[at] = NO_TRANSLATION


def flush_tlb_batched_pending(mm: mm_struct) -> None:
    """mm/rmap.c, since v4.4; a PTL is held: what reclaim has unmapped is forgotten by every CPU before entries change again."""
    if mm.tlb_flush_batched:
        flush_tlb_mm(mm)
        mm.tlb_flush_batched = False
