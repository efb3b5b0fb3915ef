"""mm/huge_memory.c (since v4.8 mm/khugepaged.c): small pages are put together to a huge one."""

from __future__ import annotations

from .anon_vma import anon_vma_lock_write, anon_vma_unlock_write
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EBUSY, EINVAL, ENOMEM
from .huge_memory import mk_huge_pmd
from .lang import BUG_ON, ghost, reached
from .locks import down_read, down_write, spin_lock, spin_unlock, trylock_page, unlock_page, up_read, up_write
from .machine import this_cpu
from .mm_types import PmdKind, PteKind, mm_struct, page, page_table, pmd_t, pte_t, vm, vm_area_struct
from .page_flags import folio_mapcount
from .pgtable import flush_tlb_pmd, pmd_lockptr, pmd_offset, pte_lockptr, ptep_get_and_clear, set_pmd
from .rmap import hugepage_add_new_anon_rmap, page_remove_rmap
from .slab import (
    alloc_hugepage,
    atomic_read,
    compound_head,
    get_page,
    hpage_nr,
    hpage_size,
    nth_page,
    out_of_memory,
    put_page,
)
from .swap import free_page_and_swap_cache
from .vma_lock import mmap_write_unlock, vma_start_write


@modelled(
    "mm/khugepaged.c",
    versions="v3.10 (mm/huge_memory.c) .. v6.8",
    section="C.10",
    steps=9,
    omits="the scan before it, swap-in, the test of the accessed bits, memcg",
)
def collapse_huge_page(mm: mm_struct, addr: int, forced: bool = False) -> int:
    """Put the small pages of one PMD together into a huge page. forced: MADV_COLLAPSE.

    0; -EAGAIN if they can't be, forced: -EINVAL if an entry can't be part of it at all; -ENOMEM without a huge page.
    """
    if out_of_memory():
        return -ENOMEM
    new = alloc_hugepage()
    down_write(mm.mmap_sem)
    vma: vm_area_struct | None = None
    for each in mm.mmap:
        if each.vm_start <= addr and addr + hpage_size() <= each.vm_end:
            vma = each
    if vma is None or vma.anon_vma is None or vma.vm_file is not None:
        up_write(mm.mmap_sem)
        put_page(new)
        return -EAGAIN
    pmdp = pmd_offset(mm, addr)
    vma_start_write(vma)
    # Only now nobody changes the entry any more.
    pmd = pmdp.pmd
    if pmd.kind != PmdKind.TABLE:
        mmap_write_unlock(mm)
        put_page(new)
        return -EAGAIN
    anon_vma_lock_write(vma.anon_vma)
    spin_lock(pmd_lockptr(pmdp))
    # Nobody finds the table any more; the flush's IPI waits for gup_fast.
    set_pmd(pmdp, pmd_t())
    flush_tlb_pmd(mm, addr)
    spin_unlock(pmd_lockptr(pmdp))
    table = pmd.table
    spin_lock(pte_lockptr(table))
    err = collapse_isolate(vma, table, forced)
    spin_unlock(pte_lockptr(table))
    if err != 0:
        spin_lock(pmd_lockptr(pmdp))
        BUG_ON(pmdp.pmd.kind != PmdKind.NONE)
        set_pmd(pmdp, pmd)
        spin_unlock(pmd_lockptr(pmdp))
        anon_vma_unlock_write(vma.anon_vma)
        mmap_write_unlock(mm)
        put_page(new)
        return err if forced else -EAGAIN
    # Every page is locked: walkers that need the page lock are out, the others find no PMD.
    anon_vma_unlock_write(vma.anon_vma)
    collapse_copy(table, new)
    spin_lock(pmd_lockptr(pmdp))
    BUG_ON(pmdp.pmd.kind != PmdKind.NONE)
    hugepage_add_new_anon_rmap(new, vma, addr)
    pmdp.deposited = table
    set_pmd(pmdp, mk_huge_pmd(new, vma))
    spin_unlock(pmd_lockptr(pmdp))
    mmap_write_unlock(mm)
    reached("pages were collapsed")
    return 0


@modelled(
    "mm/khugepaged.c",
    function="madvise_collapse, hpage_collapse_scan_pmd, hugepage_vma_revalidate",
    versions="v6.18",
    section="C.10",
    steps=4,
    omits="swapped pages; PMDs that can't be had",
)
def madvise_collapse(mm: mm_struct, vma: vm_area_struct, start: int, end: int) -> int:
    """MADV_COLLAPSE of a part of a VMA: every huge page's worth that lies in it whole. 0, or an errno of the last that can't be one.

    -EINVAL: not here, or nothing to put together; a range that touches no border of huge pages is one, too (before v7.2). -EBUSY: a
    hole that is a userfaultfd's to fill. -EAGAIN: a page in use, after which it goes on. mmap_sem is held for reading, but not while
    pages are put together.
    """
    size = hpage_size()
    last = (vma.vm_end - size) & ~(size - 1)
    first, end = (start + size - 1) & ~(size - 1), end & ~(size - 1)
    if vma.anon_vma is None or vma.vm_flags & vm.NOHUGEPAGE or last < vma.vm_start:
        return -EINVAL
    if end < first:
        return 0 if era.collapse_of_less_succeeds else -EINVAL
    failed = 0
    for addr in range(first, end, size):
        pmd = pmd_offset(mm, addr).pmd
        if pmd.kind == PmdKind.HUGE or pmd.kind == PmdKind.HUGE_ZERO or pmd.kind == PmdKind.MIGRATION:
            continue
        if pmd.kind != PmdKind.TABLE:
            return -EINVAL
        err = collapse_scan(vma, pmd.table)
        if err == 0:
            up_read(mm.mmap_sem)
            err = collapse_huge_page(mm, addr, True)
            down_read(mm.mmap_sem)
        if err == -EBUSY or err == -ENOMEM:
            return err
        if err != 0:
            failed = err
    return failed


def collapse_scan(vma: vm_area_struct, table: page_table) -> int:
    """hpage_collapse_scan_pmd for MADV_COLLAPSE: the errno of the first entry that is in the way."""
    for ptep in table.pte:
        pte = ptep.pte
        if is_hole(pte):
            if vma.vm_flags & (vm.USERFAULT | vm.UFFD_WP):
                return -EBUSY
        elif pte.uffd_wp:
            return -EINVAL
        elif pte.kind == PteKind.PRESENT:
            head = compound_head(pte.page)
            if folio_mapcount(head) + (0 if head.swapcache is None else 1) != atomic_read(head.refcount):
                return -EAGAIN
    return 0


def is_hole(pte: pte_t) -> bool:
    """v3.10 stops at the zero page, later kernels take it for a hole."""
    return pte.kind == PteKind.NONE or (era.folios and pte.special)


@modelled(
    "mm/khugepaged.c",
    function="__collapse_huge_page_isolate",
    versions="v3.10 (mm/huge_memory.c) .. v6.8",
    section="C.10",
    steps=6,
    omits="the limits (holes and shared pages are allowed without number); that small pages leave the LRU lists",
    errs="missed bug",
)
def collapse_isolate(vma: vm_area_struct, table: page_table, forced: bool) -> int:
    """Lock every page of the table: 0, or an errno, and none is locked. PTL held.

    -EAGAIN: a page in use, or locked: a KSM page that the table maps twice is, the second time.
    """
    # One page must be writable, or, since v6.18, have been used lately, unless the user asks.
    worth_it = forced and era.collapse_takes_read_only
    for at in range(hpage_nr()):
        pte = table.pte[at].pte
        if is_hole(pte):
            if vma.vm_flags & (vm.USERFAULT | vm.UFFD_WP):
                # R26: a hole is the user's to fill.
                release_pte_pages(table, at)
                return -EINVAL
            continue
        if pte.kind != PteKind.PRESENT or pte.special or pte.uffd_wp or (not pte.write and not era.folios):
            release_pte_pages(table, at)
            return -EINVAL
        head = compound_head(pte.page)
        if not is_isolated(head) and not can_isolate(head):
            release_pte_pages(table, at)
            return -EAGAIN
        worth_it = worth_it or pte.write or era.collapse_takes_read_only
    if not worth_it:
        release_pte_pages(table, hpage_nr())
        return -EINVAL
    return 0


@ghost
def is_isolated(head: page) -> bool:
    """Was the huge page met by another of its parts?"""
    return head in this_cpu().isolated


def can_isolate(p: page) -> bool:
    """Locked, with no user beside its mappings and (since v5.8) the swap cache."""
    if not era.folios:
        return atomic_read(p.refcount) == 1 and trylock_page(p)
    if not trylock_page(p):
        return False
    # is_refcount_suitable
    if folio_mapcount(p) + (0 if p.swapcache is None else 1) == atomic_read(p.refcount):
        if p.compound:
            get_page(p)
            isolate_huge(p)
        return True
    unlock_page(p)
    return False


@ghost
def isolate_huge(head: page) -> None:
    this_cpu().isolated.append(head)


def release_pte_pages(table: page_table, count: int) -> None:
    for at in range(hpage_nr()):
        if at < count and not is_hole(table.pte[at].pte) and not table.pte[at].pte.page.compound:
            unlock_page(table.pte[at].pte.page)
    release_huge_pages()


def release_huge_pages() -> None:
    """Unlock them, and let go of the reference that kept them off the lists; it may be the last."""
    while len(this_cpu().isolated) != 0:
        head = this_cpu().isolated[0]
        this_cpu().isolated.remove(head)
        unlock_page(head)
        put_page(head)


@modelled(
    "mm/khugepaged.c",
    function="__collapse_huge_page_copy",
    versions="v3.10 (mm/huge_memory.c) .. v6.8",
    section="C.10",
    steps=7,
    omits="machine checks while copying",
)
def collapse_copy(table: page_table, new: page) -> None:
    """Copy every page and drop its old mapping; v3.10 does one after the other, v6.8 (v6.1 on) all copies first."""
    if era.folios:
        for at in range(hpage_nr()):
            copy_part(table, at, nth_page(new, at))
    for at in range(hpage_nr()):
        if not era.folios:
            copy_part(table, at, nth_page(new, at))
        ptep = table.pte[at]
        pte = ptep.pte
        if pte.kind == PteKind.PRESENT and not pte.special and not pte.page.compound:
            unlock_page(pte.page)
        if pte.kind != PteKind.NONE:
            spin_lock(pte_lockptr(table))
            ptep_get_and_clear(ptep)
            if not pte.special:
                page_remove_rmap(pte.page)
            spin_unlock(pte_lockptr(table))
            if not pte.special:
                free_page_and_swap_cache(pte.page)
    release_huge_pages()


def copy_part(table: page_table, at: int, new: page) -> None:
    pte = table.pte[at].pte
    if is_hole(pte):
        new.data = 0
    else:
        new.data = pte.page.data
