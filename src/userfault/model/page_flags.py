"""include/linux/page-flags.h, mm.h: what a page says of itself."""

from __future__ import annotations

from .era import era
from .lang import READ_ONCE, atomic, raw
from .machine import config, machine
from .mm_types import PmdKind, PteKind, address_space, page, stable_node
from .slab import compound_head, hpage_nr


def PageAnon(p: page) -> bool:
    """include/linux/page-flags.h: anonymous, KSM pages included."""
    mapping = READ_ONCE(compound_head(p).mapping)
    return not isinstance(mapping, address_space) and mapping is not None


def PageKsm(p: page) -> bool:
    return isinstance(READ_ONCE(compound_head(p).mapping), stable_node)


@atomic
@raw
def lacks_stable_node(p: page) -> bool:
    """A KSM page whose stable node was removed, which the kernel writes as none."""
    return isinstance(p.mapping, stable_node) and p.mapping.page is None


@atomic
def folio_mapcount(p: page) -> int:
    """How many entries map the page: for a huge page, PMDs and the PTEs of each of its parts."""
    total = p.mapcount.counter
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and p.compound:
        total += p.entire_mapcount
        for at in range(1, hpage_nr()):
            total += machine.pages[p.pfn + at].mapcount.counter
    return total


@atomic
def page_mapped(p: page) -> bool:
    """page_mapped / folio_mapped. The page is a head, or not huge."""
    if p.mapcount.counter != 0:
        return True
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and p.compound:
        # Not by the count, which takes a look at every part.
        if p.entire_mapcount != 0:
            return True
        for at in range(1, hpage_nr()):
            if machine.pages[p.pfn + at].mapcount.counter != 0:
                return True
    return False


@atomic
@raw
def maybe_mapped_shared(head: page) -> bool:
    """folio_maybe_mapped_shared (v6.18): does more than one address space map the huge page? v6.8 asks how often its first part is.

    The kernel remembers two of them: with more, it may say so of one that is left alone.
    """
    if not era.advice_goes_by_batches:
        return head.mapcount.counter + head.entire_mapcount != 1
    owners = 0
    for mm in machine.mms:
        mine = False
        for pmdp in mm.pmd:
            pmd = pmdp.pmd
            if pmd.kind == PmdKind.HUGE and pmd.page is head:
                mine = True
            elif pmd.kind == PmdKind.TABLE:
                for ptep in pmd.table.pte:
                    pte = ptep.pte
                    if pte.kind == PteKind.PRESENT and not pte.special and compound_head(pte.page) is head:
                        mine = True
        if mine:
            owners += 1
    return owners > 1
