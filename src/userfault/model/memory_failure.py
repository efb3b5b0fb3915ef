"""mm/memory-failure.c: the hardware says that a page's memory is broken; the processes that map it are found."""

from __future__ import annotations

from .anon_vma import page_lock_anon_vma_read, page_unlock_anon_vma_read
from .catalogue import modelled
from .ghost import walk_begin, walk_end, walk_visit
from .locks import lock_page, spin_unlock, unlock_page
from .mm_types import page, vm_area_struct
from .page_flags import page_mapped
from .pgtable import pte_lockptr, vma_address
from .rmap import page_check_address
from .slab import get_page_unless_zero, put_page


@modelled("mm/rmap.c", versions="v3.10 .. v6.18 (since v4.10 mm/page_vma_mapped.c)", section="C.19", steps=1)
def page_mapped_in_vma(p: page, vma: vm_area_struct) -> bool:
    """Does the VMA map the page? Under the PTL: this look may not miss."""
    addr = vma_address(vma, p.index)
    if addr < 0:
        return False
    ptep = page_check_address(p, vma, addr, True)
    if ptep is None:
        return False
    walk_visit()
    spin_unlock(pte_lockptr(ptep.table))
    return True


@modelled(
    "mm/memory-failure.c",
    versions="v3.10 .. v6.18",
    section="C.19",
    steps=3,
    omits="tasklist_lock (later RCU) and the tasks: each address space is one, from its fork on, and wants to be told",
    errs="missed bug",
)
def collect_procs_anon(p: page) -> int:
    """In how many VMAs the page is mapped: those whose processes will be told. The page is locked."""
    av = page_lock_anon_vma_read(p)
    if av is None:
        return 0
    walk_begin(p)
    pgoff = p.index
    found = 0
    for avc in av.rb_root:
        vma = avc.vma
        if vma_address(vma, pgoff) >= 0 and page_mapped_in_vma(p, vma):
            found += 1
    walk_end(p)
    page_unlock_anon_vma_read(av)
    return found


@modelled(
    "mm/memory-failure.c",
    versions="v3.10 .. v6.18",
    section="C.19",
    steps=1,
    omits="what follows: signals, and hwpoison entries for the mappings; KSM pages; huge pages, which are split first; that a page "
    "off the LRU lists, or one that failed before, is not walked, which is a false alarm",
    errs="missed bug",
)
def memory_failure(p: page) -> int:
    """Look for who maps a small page, by its PFN: how many VMAs do."""
    if not get_page_unless_zero(p):
        return 0
    lock_page(p)
    found = 0
    if not p.compound and page_mapped(p):
        found = collect_procs_anon(p)
    unlock_page(p)
    put_page(p)
    return found
