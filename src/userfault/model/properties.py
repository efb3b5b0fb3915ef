"""What must always be true (protocol.md D.1). The checker evaluates these after every step.

A property speaks only of what nobody is in the middle of changing: entries whose lock is free, trees whose rwsem has no
writer. I1 and I9 are in ghost.py and migrate.py, I2, I10 and I13 in slab.py and locks.py, I6 is the kernel's own BUG_ON in
huge_memory.py, I7, I8 and I12 are conditions of the litmus tests; I11 is the checker's search for fair cycles.
"""

from __future__ import annotations

from .era import era
from .lang import check
from .machine import config, machine
from .mm_types import PmdKind, PteKind, anon_vma, mm_struct, page, vm_area_struct
from .pgtable import linear_page_index


def quiet() -> bool:
    """Is no page-table lock and no swap lock held by anybody?"""
    for table in machine.page_tables:
        if table.ptl.owner != 0:
            return False
    for mm in machine.mms:
        if mm.page_table_lock.owner != 0:
            return False
    return True


def mapcount_is_exact() -> None:
    """I3: a page's mapcount is the number of entries that map it, and its references cover them."""
    if not quiet():
        return
    for p in machine.pages:
        if p.allocated:
            found = 0
            for table in machine.page_tables:
                for ptep in table.pte:
                    pte = ptep.pte
                    if pte.kind == PteKind.PRESENT and pte.page is p:
                        found += 1
            for mm in machine.mms:
                for pmdp in mm.pmd:
                    pmd = pmdp.pmd
                    if (pmd.kind == PmdKind.HUGE or pmd.kind == PmdKind.SPLITTING) and pmd.page is p:
                        found += 1
                    elif pmd.kind == PmdKind.SPLITTING and not p.compound and is_tail(pmd.page, p):
                        found += 1
            check(
                p.mapcount.counter == found, "mapcount_is_exact", "a page's mapcount is not the number of its mappings"
            )
            check(
                p.refcount.counter >= found, "references_cover_mappings", "a page is mapped more often than referenced"
            )


def is_tail(head: page, p: page) -> bool:
    """Between the two walks of a split the tails count mappings that are still the huge entry's."""
    return head.pfn < p.pfn and p.pfn < head.pfn + (1 << config.HPAGE_PMD_ORDER)


def exclusive_page_has_one_mapping() -> None:
    """I4: a page flagged AnonExclusive has at most one mapping."""
    if not era.anon_exclusive or not quiet():
        return
    for p in machine.pages:
        if p.allocated and p.anon_exclusive:
            check(
                p.mapcount.counter <= 1,
                "exclusive_page_has_one_mapping",
                "a page flagged exclusive is mapped more than once",
            )


def page_is_linear() -> None:
    """I5: every PTE of an anonymous page lies where mapping and index say, in a VMA linked to that anon_vma."""
    if not quiet():
        return
    for mm in machine.mms:
        for pmdp in mm.pmd:
            pmd = pmdp.pmd
            if pmd.kind == PmdKind.HUGE:
                check_linear(mm, pmd.page, pmdp.first_page)
            elif pmd.kind == PmdKind.TABLE:
                for at in range(1 << config.HPAGE_PMD_ORDER):
                    pte = pmd.table.pte[at].pte
                    if pte.kind == PteKind.PRESENT and not pte.special:
                        check_linear(mm, pte.page, pmdp.first_page + at)


def check_linear(mm: mm_struct, p: page, number: int) -> None:
    mapping = p.mapping
    if not isinstance(mapping, anon_vma):
        return
    found = False
    for avc in machine.anon_vma_chains:
        if avc.allocated and avc.anon_vma is mapping:
            vma = avc.vma
            if (
                vma.vm_mm is mm
                and covers(vma, number)
                and linear_page_index(vma, number << config.PAGE_SHIFT) == p.index
            ):
                found = True
    check(found, "page_is_linear", "a page is mapped where its mapping and index do not say")


def covers(vma: vm_area_struct, number: int) -> bool:
    return vma.vm_start <= (number << config.PAGE_SHIFT) and (number << config.PAGE_SHIFT) < vma.vm_end


def vma_is_linked() -> None:
    """I14: a VMA with an anon_vma is in that anon_vma's tree, unless its mmap_sem or the tree's lock has a writer."""
    for mm in machine.mms:
        if mm.mmap_sem.writer == 0:
            for vma in mm.mmap:
                av = vma.anon_vma
                if av is not None and av.root.rwsem.writer == 0 and mm.page_table_lock.owner == 0:
                    found = False
                    for avc in vma.anon_vma_chain:
                        if avc.anon_vma is av:
                            found = True
                    check(found, "vma_is_linked", "a VMA is not linked to its own anon_vma")


ALWAYS = (mapcount_is_exact, exclusive_page_has_one_mapping, page_is_linear, vma_is_linked)
"""What the checker evaluates after every step."""
