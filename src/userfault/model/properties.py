"""What must always be true (protocol.md D.1). The checker evaluates these after every step.

A property speaks only of what nobody is in the middle of changing: entries whose lock is free, trees whose rwsem has no
writer. I1 and I9 are in ghost.py and migrate.py, I2, I10 and I13 in slab.py and locks.py, I6 is the kernel's own BUG_ON in
huge_memory.py, I7, I8 and I12 are conditions of the litmus tests; I11 is the checker's search for fair cycles.
"""

from __future__ import annotations

from .era import era
from .lang import check
from .machine import config, machine
from .mm_types import PmdKind, PteKind, address_space, anon_vma, mm_struct, page, vm_area_struct
from .pgtable import linear_page_index, pmd_trans_huge
from .slab import PageTail, compound_head


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
    """I3: a page's mapcounts are the numbers of entries that map it; its references cover them, the swap cache and the pins."""
    if not quiet():
        return
    for p in machine.pages:
        found = 0
        users = 0
        for table in machine.page_tables:
            for ptep in table.pte:
                pte = ptep.pte
                if pte.kind == PteKind.PRESENT and not pte.special:
                    if pte.page is p:
                        found += 1
                    if compound_head(pte.page) is p:
                        users += 1
        huge = 0
        if config.TRANSPARENT_HUGEPAGE:
            for mm in machine.mms:
                for pmdp in mm.pmd:
                    pmd = pmdp.pmd
                    if pmd_trans_huge(pmd) and pmd.page is p:
                        huge += 1
                    elif pmd.kind == PmdKind.SPLITTING and not p.compound and is_tail(pmd.page, p):
                        huge += 1
        users += huge
        if not p.allocated:
            check(found + huge == 0, "freed_page_is_unmapped", "a freed page is mapped")
        else:
            if era.pte_mapped_huge:
                check(
                    p.mapcount.counter == found and p.entire_mapcount == huge,
                    "mapcount_is_exact",
                    "a page's mapcount is not the number of its mappings",
                )
            else:
                check(
                    p.mapcount.counter == found + huge,
                    "mapcount_is_exact",
                    "a page's mapcount is not the number of its mappings",
                )
            check(
                p.refcount.counter >= users, "references_cover_mappings", "a page is mapped more often than referenced"
            )
            held = users + p.pincount
            if p.swapcache is not None:
                held += 1
            # 0: somebody has frozen the references, and knows them all.
            check(
                p.refcount.counter == 0 or p.refcount.counter >= held,
                "references_cover_users",
                "a page has more mappings, pins and swap cache than references",
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
                p.mapcount.counter + p.entire_mapcount <= 1,
                "exclusive_page_has_one_mapping",
                "a page flagged exclusive is mapped more than once",
            )


def pinned_page_is_exclusive() -> None:
    """I4 against gup_fast: a page that somebody pinned belongs to one process, and is no KSM page."""
    if not era.anon_exclusive or not quiet():
        return
    for p in machine.pages:
        if p.write_pins > 0 and not isinstance(compound_head(p).mapping, address_space):
            head = compound_head(p)
            check(
                (p.mapcount.counter == 0 or p.anon_exclusive) and (head.entire_mapcount == 0 or head.anon_exclusive),
                "pinned_page_is_exclusive",
                "a pinned page is not exclusive any more",
            )


def writable_page_is_exclusive() -> None:
    """I4, the other way round: an anonymous page that a private mapping may write is flagged AnonExclusive."""
    if not era.anon_exclusive or not quiet():
        return
    for table in machine.page_tables:
        for ptep in table.pte:
            pte = ptep.pte
            if pte.kind == PteKind.PRESENT and pte.write and not pte.special:
                check(
                    pte.page.anon_exclusive or not isinstance(compound_head(pte.page).mapping, anon_vma),
                    "writable_page_is_exclusive",
                    "a page that is not flagged exclusive may be written",
                )
    if config.TRANSPARENT_HUGEPAGE:
        for mm in machine.mms:
            for pmdp in mm.pmd:
                pmd = pmdp.pmd
                if pmd.kind == PmdKind.HUGE and pmd.write:
                    check(
                        pmd.page.anon_exclusive,
                        "writable_page_is_exclusive",
                        "a huge page that is not flagged exclusive may be written",
                    )


def swap_count_is_exact() -> None:
    """I3 for swap: a slot's count is the number of PTEs that name it, and the cache knows its page as the page knows it."""
    if not quiet() or machine.swap_lock.owner != 0:
        return
    for slot in machine.swap_slots:
        found = 0
        for table in machine.page_tables:
            for ptep in table.pte:
                pte = ptep.pte
                if pte.kind == PteKind.SWAP and pte.slot is slot:
                    found += 1
        check(slot.swap_map == found, "swap_count_is_exact", "a swap slot's count is not the number of its entries")
        p = slot.cache
        if p is not None:
            check(
                p.allocated and p.swapcache is slot,
                "swap_cache_is_mutual",
                "the page in a slot's cache does not know of the slot",
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
    head = compound_head(p)
    mapping = head.mapping
    check(mapping is not None, "page_is_linear", "a mapped page has neither anon_vma nor file")
    if not isinstance(mapping, anon_vma):
        return
    index = head.index
    if config.TRANSPARENT_HUGEPAGE:
        index += p.pfn - head.pfn
    found = False
    for avc in machine.anon_vma_chains:
        if avc.allocated and avc.anon_vma is mapping:
            vma = avc.vma
            if vma.vm_mm is mm and covers(vma, number) and linear_page_index(vma, number << config.PAGE_SHIFT) == index:
                found = True
    check(found, "page_is_linear", "a page is mapped where its mapping and index do not say")


def covers(vma: vm_area_struct, number: int) -> bool:
    return vma.vm_start <= (number << config.PAGE_SHIFT) and (number << config.PAGE_SHIFT) < vma.vm_end


def vma_is_linked() -> None:
    """I14: a VMA with an anon_vma is in its tree and its ancestors', and VMAs that share an anon_vma share all of them.

    Unless its mmap_sem or the trees' lock has a writer.
    """
    for mm in machine.mms:
        if mm.mmap_sem.writer == 0:
            for vma in mm.mmap:
                av = vma.anon_vma
                if av is not None and av.root.rwsem.writer == 0 and mm.page_table_lock.owner == 0:
                    check(linked(vma, av), "vma_is_linked", "a VMA is not linked to its own anon_vma")
                    above = av
                    while above is not above.root:
                        above = above.parent
                        check(linked(vma, above), "vma_is_linked", "a VMA is not linked to an ancestor of its anon_vma")
                    for other in mm.mmap:
                        if other.anon_vma is av:
                            check(
                                len(other.anon_vma_chain) == len(vma.anon_vma_chain),
                                "vma_is_linked",
                                "two VMAs share an anon_vma but not its ancestors",
                            )


def linked(vma: vm_area_struct, av: anon_vma) -> bool:
    """Is there a link between the two, on the VMA's list and in the anon_vma's tree?"""
    for avc in vma.anon_vma_chain:
        if avc.anon_vma is av and avc in av.rb_root:
            return True
    return False


def anon_vmas_are_accounted() -> None:
    """At the end: who allocated has freed or has it in use, and an anon_vma's counts are the numbers of its users."""
    for vma in machine.vmas:
        if vma.allocated:
            check(vma in vma.vm_mm.mmap, "memory_leak", "a VMA that is in no address space was not freed")
    for avc in machine.anon_vma_chains:
        if avc.allocated:
            # One that was never linked has no VMA.
            check(avc.vma is not None, "memory_leak", "an anon_vma_chain without a VMA was not freed")
            check(avc in avc.vma.anon_vma_chain, "memory_leak", "an anon_vma_chain on no VMA's list was not freed")
    for av in machine.anon_vmas:
        if av.allocated:
            check(len(av.rb_root) != 0, "memory_leak", "an anon_vma without links was not freed")
            references = 1
            children = 0
            active = 0
            for other in machine.anon_vmas:
                if other.allocated:
                    references += int(other is not av and other.root is av)
                    children += int(other.parent is av)
            for item in machine.rmap_items:
                references += int(item.anon_vma is av)
            for vma in machine.vmas:
                active += int(vma.allocated and vma.anon_vma is av)
            check(av.refcount.counter == references, "accounting", "an anon_vma's references are not its users")
            if era.anon_vma_reuse:
                check(av.num_children == children, "accounting", "an anon_vma's children are not counted right")
                check(av.num_active_vmas == active, "accounting", "an anon_vma's active VMAs are not counted right")


def pages_are_accounted() -> None:
    """At the end, too: a page table is where it maps or is kept for a split, and a page's references are its users."""
    for table in machine.page_tables:
        if table.allocated:
            found = False
            for mm in machine.mms:
                for pmdp in mm.pmd:
                    if pmdp.pmd.table is table or pmdp.deposited is table:
                        found = True
            check(found, "memory_leak", "a page table that nobody finds was not freed")
    for p in machine.pages:
        if p.allocated and compound_head(p) is p and not PageTail(p):
            users = p.pincount + int(p.swapcache is not None)
            for table in machine.page_tables:
                for ptep in table.pte:
                    if ptep.pte.kind == PteKind.PRESENT and not ptep.pte.special:
                        users += int(compound_head(ptep.pte.page) is p)
            for mm in machine.mms:
                for pmdp in mm.pmd:
                    users += int(pmd_trans_huge(pmdp.pmd) and pmdp.pmd.page is p)
            check(p.refcount.counter == users, "memory_leak", "a page has references that nobody holds")


ALWAYS = (
    mapcount_is_exact,
    exclusive_page_has_one_mapping,
    writable_page_is_exclusive,
    pinned_page_is_exclusive,
    swap_count_is_exact,
    page_is_linear,
    vma_is_linked,
)
"""What the checker evaluates after every step."""
