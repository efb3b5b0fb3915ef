"""mm/vmscan.c: reclaim of one anonymous page."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .lang import atomic, raw, reached
from .locks import trylock_page, unlock_page
from .machine import config
from .mm_types import page
from .page_flags import PageAnon, PageKsm, page_mapped
from .rmap import page_referenced_anon, try_to_unmap, try_to_unmap_flush, try_to_unmap_flush_dirty
from .slab import atomic_read, free_page, out_of_memory, put_page
from .swap import add_to_swap_cache, clear_swap_cache
from .swapfile import get_swap_page


@modelled(
    "mm/vmscan.c",
    versions="v3.10 .. v6.8",
    section="C.7",
    omits="that the page leaves the list, so that only one of reclaim and migration has it at a time",
    errs="false alarm",
)
@atomic
@raw
def isolate_lru_page(p: page) -> bool:
    """A reference to a page found by its PFN or on a list. One that is being made is on no list yet, and can't be had."""
    if not p.lru or p.refcount.counter == 0:
        return False
    p.refcount.counter += 1
    return True


@modelled(
    "mm/vmscan.c", function="page_check_references", versions="v3.10 .. v6.8", section="C.7", omits="the LRU lists"
)
def referenced(p: page) -> int:
    """shrink_active_list's look at a page that it isolated: not locked (R4)."""
    if not isolate_lru_page(p):
        return 0
    count = page_referenced_anon(p, era.folios)
    put_page(p)
    return count


@modelled(
    "mm/page_idle.c", versions="v4.3 .. v6.8", section="B.3", omits="the idle flags; DAMON's two walkers are alike"
)
def page_idle_clear_pte_refs(p: page) -> int:
    """An unlocked walker that sleeps for the lock."""
    if not isolate_lru_page(p):
        return 0
    count = page_referenced_anon(p, False)
    put_page(p)
    return count


@atomic
def page_freeze(p: page, expected: int) -> bool:
    """page_freeze_refs / folio_ref_freeze: nobody but the expected users has a reference, and now nobody can get one."""
    if p.refcount.counter != expected:
        return False
    p.refcount.counter = 0
    return True


@atomic
@raw
def page_unfreeze(p: page, count: int) -> None:
    """The references are what they were."""
    p.refcount.counter = count


@atomic
@raw
def write_to_swap(p: page) -> None:
    """Writeback, in one step: the device holds what the page holds."""
    p.swapcache.data = p.data
    p.dirty = False


@modelled(
    "mm/vmscan.c",
    function="shrink_page_list",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=9,
    omits="the lists, references that keep a page, writeback as a state (it is one step), splitting of huge pages",
)
def shrink_page(p: page) -> int:
    """Swap one page out. Returns 1 if it was freed, 0 if it was kept."""
    freed = pageout_and_unlock(p)
    if config.BATCHED_UNMAP:
        # At the end of the list, when the pages are nobody's any more.
        try_to_unmap_flush()
    if freed:
        free_page(p)
        return 1
    return 0


def pageout_and_unlock(p: page) -> bool:
    """shrink_page without the flush at its end, and what must follow it. True: the page has no references and is to be freed."""
    if not isolate_lru_page(p):
        return False
    if not trylock_page(p):
        put_page(p)
        return False
    if not PageAnon(p) or (PageKsm(p) and not config.CONFIG_KSM) or p.compound:
        unlock_page(p)
        put_page(p)
        return False
    if era.anon_exclusive and p.pincount > 0 and p.swapcache is None and not p.lazyfree:
        unlock_page(p)
        put_page(p)
        return False
    if p.swapcache is None and not p.lazyfree:
        if out_of_memory():
            # No swap, or no memory to note it: the page is kept.
            unlock_page(p)
            put_page(p)
            return False
        slot = get_swap_page()
        add_to_swap_cache(p, slot)
        p.dirty = True
    if page_mapped(p) and not try_to_unmap(p, False):
        unlock_page(p)
        put_page(p)
        return False
    if p.lazyfree:
        # Nobody will miss it.
        if not page_freeze(p, 1):
            unlock_page(p)
            put_page(p)
            return False
        unlock_page(p)
        reached("a page was freed lazily")
        return True
    if p.dirty:
        # Somebody else's reference may be a device that still writes.
        if atomic_read(p.refcount) != 2:
            unlock_page(p)
            put_page(p)
            return False
        if config.BATCHED_UNMAP:
            try_to_unmap_flush_dirty()
        write_to_swap(p)
    if p.swapcache is None or not page_freeze(p, 2):
        unlock_page(p)
        put_page(p)
        return False
    if p.dirty:
        page_unfreeze(p, 2)
        unlock_page(p)
        put_page(p)
        return False
    clear_swap_cache(p)
    unlock_page(p)
    reached("a page was swapped out and freed")
    return True
