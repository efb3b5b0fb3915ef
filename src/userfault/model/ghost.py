"""Bookkeeping for I1 (a walk is complete): what a walk must have seen when it ends.

A walk under the right lock visits every mapping that the page has from its beginning to its end. `walk_begin` counts
the page's mappings, the functions that add one tell every walk under way, and `walk_end` demands that the walk visited
at least as many as cannot be explained by additions. Mappings that go away meanwhile only lower the demand.
"""

from __future__ import annotations

from .era import era
from .lang import NULL, check, ghost, raw, smp_processor_id
from .machine import config, machine, this_cpu
from .mm_types import PmdKind, PteKind, page, pte_t
from .pgtable import is_swap_pmd, pmd_trans_huge
from .slab import compound_head


@ghost
@raw
def count_mappings(p: page) -> int:
    """Present PTEs and PMDs that map the page and whose lock no other CPU holds, in all address spaces.

    An entry under a lock is in transit: an unlocked peek may miss it, which the kernel allows (I1's exception). So may a
    walk miss a table that khugepaged has taken out of its PMD: it has locked the pages.
    """
    me = smp_processor_id() + 1
    total = 0
    for mm in machine.mms:
        if mm.page_table_lock.owner in (0, me):
            for pmdp in mm.pmd:
                pmd = pmdp.pmd
                if pmd_trans_huge(pmd) and pmd.page is p:
                    total += 1
                if pmd.kind == PmdKind.TABLE and pmd.table.ptl.owner in (0, me):
                    for at in range(1 << config.HPAGE_PMD_ORDER):
                        pte = pmd.table.pte[at].pte
                        if pte.kind == PteKind.PRESENT and maps(pte, p):
                            total += 1
    return total


def maps(pte: pte_t, p: page) -> bool:
    """Does the entry map the page, or a part of the huge page whose head it is?"""
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge:
        return pte.page is not None and compound_head(pte.page) is p
    return pte.page is p


@ghost
def walk_begin(p: page) -> None:
    """The walker holds what it believes to be the lock of the page's anon_vma."""
    here = this_cpu()
    here.walk_page = p
    here.walk_visited = 0
    here.walk_gained = 0
    here.walk_expected = count_mappings(p)


@ghost
def walk_visit() -> None:
    """The walk came to an entry that maps the page."""
    this_cpu().walk_visited += 1


@ghost
def walk_gained(p: page) -> None:
    """The page has one mapping more."""
    head = compound_head(p)
    for each in machine.cpus:
        if each.walk_page is head:
            each.walk_gained += 1


@ghost
def walk_put_back(p: page) -> None:
    """An entry that was taken out under its lock is back: a walk may have peeked at its place meanwhile."""
    walk_gained(p)


@ghost
def walk_end(p: page) -> None:
    """Everything that was mapped throughout was visited."""
    here = this_cpu()
    required = count_mappings(p) - here.walk_gained
    if required > here.walk_expected:
        required = here.walk_expected
    check(here.walk_visited >= required, "walk_is_complete", "the walk missed a mapping of the page")
    walk_abandon()


@ghost
def walk_abandon() -> None:
    """The walk ends before its time, and says so: nothing is demanded of it."""
    here = this_cpu()
    here.walk_page = NULL
    here.walk_visited = 0
    here.walk_gained = 0
    here.walk_expected = 0


@ghost
@raw
def count_migration_entries(p: page) -> int:
    """Migration entries that name the page, in all address spaces."""
    total = 0
    for table in machine.page_tables:
        for ptep in table.pte:
            pte = ptep.pte
            if pte.kind == PteKind.MIGRATION and (pte.page is p or (p.compound and compound_head(pte.page) is p)):
                total += 1
    if config.TRANSPARENT_HUGEPAGE:
        for mm in machine.mms:
            for pmdp in mm.pmd:
                if is_swap_pmd(pmdp.pmd) and pmdp.pmd.page is p:
                    total += 1
    return total
