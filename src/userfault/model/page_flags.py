"""include/linux/page-flags.h, mm.h: what a page says of itself."""

from __future__ import annotations

from .era import era
from .lang import READ_ONCE, atomic
from .machine import config
from .mm_types import address_space, page, stable_node
from .slab import compound_head, hpage_nr, nth_page


def PageAnon(p: page) -> bool:
    """include/linux/page-flags.h: anonymous, KSM pages included."""
    mapping = READ_ONCE(compound_head(p).mapping)
    return not isinstance(mapping, address_space) and mapping is not None


def PageKsm(p: page) -> bool:
    return isinstance(READ_ONCE(compound_head(p).mapping), stable_node)


@atomic
def folio_mapcount(p: page) -> int:
    """How many entries map the page: for a huge page, PMDs and the PTEs of each of its parts."""
    total = p.mapcount.counter
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and p.compound:
        total += p.entire_mapcount
        for at in range(1, hpage_nr()):
            total += nth_page(p, at).mapcount.counter
    return total


def page_mapped(p: page) -> bool:
    """page_mapped / folio_mapped. The page is a head, or not huge."""
    return folio_mapcount(p) != 0
