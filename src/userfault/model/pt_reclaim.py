"""mm/pt_reclaim.c: page tables in which MADV_DONTNEED left nothing are freed, while others may be on their way to them."""

from __future__ import annotations

from .catalogue import modelled
from .lang import atomic
from .locks import spin_lock, spin_lock_nested, spin_unlock
from .machine import config
from .memory import pte_free
from .mm_types import PteKind, mm_struct, page_table, pmd_slot, pmd_t
from .pgtable import pmd_lockptr, pte_lockptr
from .slab import hpage_size


@modelled(
    "mm/pt_reclaim.c",
    function="try_to_free_pte",
    versions="v6.14 .. v6.18",
    section="C.4",
    steps=2,
    omits="the end of the grace period; the way that holds the table's lock since the zap, as if nobody came in between; that only "
    "tables are freed which the zap went through",
)
def free_emptied_tables(mm: mm_struct, start: int, end: int) -> None:
    """Page tables that the range covers whole, and in which nothing is left, are freed."""
    for pmdp in mm.pmd:
        first = pmdp.first_page << config.PAGE_SHIFT
        if start <= first and first + hpage_size() <= end:
            spin_lock(pmd_lockptr(pmdp))
            table = pmdp.pmd.table
            empty = False
            if table is not None:
                spin_lock_nested(pte_lockptr(table))
                empty = table_is_empty(table)
                if empty:
                    detach_table(pmdp, table)
                spin_unlock(pte_lockptr(table))
            spin_unlock(pmd_lockptr(pmdp))
            if empty:
                pte_free_tlb(table)


def table_is_empty(table: page_table) -> bool:
    for ptep in table.pte:
        if ptep.pte.kind != PteKind.NONE:
            return False
    return True


@atomic
def detach_table(pmdp: pmd_slot, table: page_table) -> None:
    """pmd_clear: from now on only those who have found the table already can see it."""
    pmdp.pmd = pmd_t()
    table.detached = True


def pte_free_tlb(table: page_table) -> None:
    """Free a table that readers may be in, after the flush that ends the zap and a grace period: in a checked run, never."""
    if config.SPLIT_VMAS:
        table.detached = False
        pte_free(table)
