"""mm/rmap.c: from a page to every PTE that maps it."""

from __future__ import annotations

from .anon_vma import anon_vma_lock_read, anon_vma_unlock_read, page_lock_anon_vma_read, page_unlock_anon_vma_read
from .catalogue import modelled
from .era import era
from .ghost import walk_abandon, walk_begin, walk_end, walk_gained, walk_put_back, walk_visit
from .lang import READ_ONCE, atomic, check, ghost, raw
from .locks import spin_lock, spin_unlock
from .machine import config, this_cpu
from .mm_types import PmdKind, PteKind, mm_struct, page, pte_slot, pte_t, rmap_item, stable_node, vm, vm_area_struct
from .page_flags import PageAnon, PageKsm, folio_mapcount, page_mapped
from .pgtable import (
    flush_tlb_all,
    flush_tlb_page,
    flush_tlb_pmd,
    linear_page_index,
    pmd_lockptr,
    pmd_offset,
    pmd_trans_huge,
    pmdp_clear_young,
    pte_lockptr,
    pte_offset,
    ptep_clear_flush,
    ptep_clear_young,
    ptep_get_and_clear,
    set_pte,
    vma_address,
)
from .slab import atomic_read, compound_head, get_page, hpage_nr, nth_page, put_page
from .swapfile import swap_duplicate, swap_free

# -- mappings of a page -----------------------------------------------------------------------------------------------


@atomic
def page_mapcount_inc(p: page) -> bool:
    """mc++; true if it was 0."""
    first = p.mapcount.counter == 0
    p.mapcount.counter += 1
    walk_gained(p)
    return first


@atomic
def page_mapcount_dec(p: page) -> bool:
    """mc--; true if it is 0 now."""
    check(p.mapcount.counter > 0, "accounting", "a page's mapcount fell below zero")
    p.mapcount.counter -= 1
    return p.mapcount.counter == 0


@atomic
def huge_mapcount_inc(p: page) -> None:
    """One PMD more maps the huge page. Before v4.5 the head's own mapcount counts PMDs."""
    if era.pte_mapped_huge:
        p.entire_mapcount += 1
    else:
        p.mapcount.counter += 1
    walk_gained(p)


@atomic
def huge_mapcount_dec(p: page) -> None:
    if era.pte_mapped_huge:
        check(p.entire_mapcount > 0, "accounting", "a page's mapcount fell below zero")
        p.entire_mapcount -= 1
    else:
        check(p.mapcount.counter > 0, "accounting", "a page's mapcount fell below zero")
        p.mapcount.counter -= 1


@modelled(
    "mm/rmap.c",
    function="page_add_new_anon_rmap (huge)",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=3,
)
def hugepage_add_new_anon_rmap(p: page, vma: vm_area_struct, haddr: int) -> None:
    """The same for a huge page mapped by a PMD; PMD lock held."""
    av = vma.anon_vma
    if era.folios:
        p.mapping = av
        p.index = linear_page_index(vma, haddr)
        huge_mapcount_inc(p)
        p.anon_exclusive = True
    else:
        huge_mapcount_inc(p)
        p.mapping = av
        p.index = linear_page_index(vma, haddr)
    p.lru = True


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.1", steps=3)
def page_add_new_anon_rmap(p: page, vma: vm_area_struct, addr: int) -> None:
    """A page that nobody knows yet becomes anonymous and mapped; PTL held. Since v6.1 folio_add_new_anon_rmap."""
    av = vma.anon_vma
    if era.folios:
        p.mapping = av
        p.index = linear_page_index(vma, addr)
        page_mapcount_inc(p)
        p.anon_exclusive = True
    else:
        page_mapcount_inc(p)
        p.mapping = av
        p.index = linear_page_index(vma, addr)
    p.lru = True


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.7", steps=3, omits="the debug checks of VM kernels")
def page_add_anon_rmap(p: page, vma: vm_area_struct, addr: int, exclusive: bool) -> None:
    """A page that may be anonymous already gets one mapping more; page locked, PTL held."""
    first = page_mapcount_inc(p)
    if first and not PageAnon(p):
        av = vma.anon_vma
        p.mapping = av if exclusive else av.root
        p.index = linear_page_index(vma, addr)
        p.lru = True
    if era.anon_exclusive and exclusive:
        p.anon_exclusive = True


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.2", steps=1)
def page_move_anon_rmap(p: page, vma: vm_area_struct) -> None:
    """The only mapper takes the page over: its anon_vma becomes the VMA's own. Page locked, index unchanged."""
    p.mapping = vma.anon_vma


@modelled(
    "mm/rmap.c",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=1,
    omits="clearing of mapping: like the kernel, mapping and index stay until the page is freed",
)
def page_remove_rmap(p: page) -> None:
    page_mapcount_dec(p)


# -- walks ------------------------------------------------------------------------------------------------------------


@modelled(
    "mm/rmap.c",
    function="__page_check_address",
    versions="v3.10 .. v6.8 (since v4.10 page_vma_mapped_walk)",
    section="C.7",
    steps=5,
    omits="hugetlb; entries of migration, which have a look of their own",
)
def page_check_address(p: page, vma: vm_area_struct, addr: int, sync: bool) -> pte_slot | None:
    """The PTE at this address if it maps the page, its PTL held; without `sync` an unlocked peek comes first."""
    pmd = READ_ONCE(pmd_offset(vma.vm_mm, addr).pmd)
    if pmd.kind != PmdKind.TABLE:
        return None
    ptep = pte_offset(pmd.table, addr)
    if not sync and READ_ONCE(ptep.pte).kind != PteKind.PRESENT:
        return None
    spin_lock(pte_lockptr(pmd.table))
    pte = ptep.pte
    if pte.kind == PteKind.PRESENT and pte.page is p:
        return ptep
    spin_unlock(pte_lockptr(pmd.table))
    return None


@modelled(
    "mm/rmap.c",
    versions="v3.10 .. v6.8 (folio_referenced_one)",
    section="C.7",
    steps=4,
    omits="VM_LOCKED (mlock) and hugetlb; the PTL is let go between two PTEs of a huge page",
)
def page_referenced_one(p: page, vma: vm_area_struct, addr: int) -> tuple[int, int]:
    """Test and clear the accessed bit of a VMA's mappings of the page: (how many there are, how many were used)."""
    if config.TRANSPARENT_HUGEPAGE and p.compound:
        return huge_page_referenced_one(p, vma)
    ptep = page_check_address(p, vma, addr, False)
    if ptep is None:
        return 0, 0
    walk_visit()
    young = ptep_clear_young(ptep)
    if young and not era.aging_leaves_tlb:
        flush_tlb_page(vma.vm_mm, addr)
    spin_unlock(pte_lockptr(ptep.table))
    return 1, 1 if young else 0


@modelled("mm/rmap.c", function="page_referenced_one (huge)", versions="v3.10 .. v6.18", section="C.7", steps=4)
def huge_page_referenced_one(p: page, vma: vm_area_struct) -> tuple[int, int]:
    """By its PMD, or, since v4.5, by the PTEs of its parts."""
    pgoff = p.index
    addr = vma_address(vma, pgoff)
    if addr >= 0:
        pmdp = pmd_offset(vma.vm_mm, addr)
        if not era.pte_mapped_huge or pmd_trans_huge(READ_ONCE(pmdp.pmd)):
            spin_lock(pmd_lockptr(pmdp))
            pmd = pmdp.pmd
            found = pmd_trans_huge(pmd) and pmd.page is p
            young = False
            if found:
                walk_visit()
                young = pmdp_clear_young(pmdp)
                if young:
                    flush_tlb_pmd(vma.vm_mm, addr)
            spin_unlock(pmd_lockptr(pmdp))
            if found or not era.pte_mapped_huge:
                return 1 if found else 0, 1 if young else 0
    mappings = 0
    used = 0
    for at in range(hpage_nr()):
        addr = vma_address(vma, pgoff + at)
        if addr < 0:
            continue
        ptep = page_check_address(nth_page(p, at), vma, addr, False)
        if ptep is None:
            continue
        walk_visit()
        mappings += 1
        if ptep_clear_young(ptep):
            used = 1
        spin_unlock(pte_lockptr(ptep.table))
    return mappings, used


def vma_overlaps(vma: vm_area_struct, p: page, pgoff: int) -> bool:
    """Does the VMA cover any part of the page? What the interval tree looks for."""
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and p.compound:
        last = pgoff + hpage_nr() - 1
        return vma.vm_pgoff <= last and pgoff < vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> config.PAGE_SHIFT)
    return vma_address(vma, pgoff) >= 0


@modelled(
    "mm/rmap.c",
    versions="v3.10 .. v6.8 (folio_referenced)",
    section="C.7",
    steps=5,
    omits="memcg, which VMAs count; since v3.15 the mapcount is read before the lock: a mapping gained since may be missed",
)
def page_referenced_anon(p: page, try_lock: bool) -> int:
    """How many mappings were used since the last look; the page need not be locked (R4)."""
    av = page_lock_anon_vma_read(p, try_lock)
    if av is None:
        return 0
    walk_begin(p)
    referenced = 0
    mapcount = folio_mapcount(p)
    pgoff = p.index
    for avc in av.rb_root:
        vma = avc.vma
        if not vma_overlaps(vma, p, pgoff):
            continue
        found, young = page_referenced_one(p, vma, vma_address(vma, pgoff))
        referenced += young
        mapcount -= found
        if mapcount <= 0:
            break
    walk_end(p)
    page_unlock_anon_vma_read(av)
    return referenced


# -- unmapping --------------------------------------------------------------------------------------------------------


@modelled("mm/rmap.c", versions="v4.4 .. v6.18", section="C.7", steps=1, omits="which CPUs have the address space")
def set_tlb_ubc_flush_pending(mm: mm_struct, pte: pte_t) -> None:
    """An entry is gone, and CPUs may know it still. One that was clean lets nobody write: the hardware looks at the table first."""
    this_cpu().flush_required = True
    mm.tlb_flush_batched = True
    if pte.dirty:
        this_cpu().flush_dirty = True


def try_to_unmap_flush() -> None:
    """Every CPU forgets what this one has unmapped: before the pages are freed."""
    if this_cpu().flush_required:
        flush_tlb_all()
        this_cpu().flush_required = False
        this_cpu().flush_dirty = False


def try_to_unmap_flush_dirty() -> None:
    """The same, before the contents are written out, if a CPU might change them meanwhile."""
    if this_cpu().flush_dirty:
        try_to_unmap_flush()


@modelled(
    "mm/rmap.c",
    versions="v3.10 .. v6.8",
    section="C.7",
    steps=9,
    omits="v3.10's last look at the accessed bit, hwpoison; the batched flush of v4.4 on, but in tests that ask for it",
    errs="missed bug",
)
def try_to_unmap_one(p: page, vma: vm_area_struct, addr: int, migration: bool, sync: bool = False) -> bool:
    """Replace one mapping by a swap or migration entry. False: could not, the walk ends.

    The page may be part of a huge page that is mapped by PTEs, on its way to be split.
    """
    ptep = page_check_address(p, vma, addr, sync)
    if ptep is None:
        return True
    walk_visit()
    if vma.vm_flags & vm.LOCKED and not migration:
        spin_unlock(pte_lockptr(ptep.table))
        return False
    if config.BATCHED_UNMAP and not migration:
        pte = ptep_get_and_clear(ptep)
        set_tlb_ubc_flush_pending(vma.vm_mm, pte)
    else:
        pte = ptep_clear_flush(vma.vm_mm, addr, ptep)
    if pte.dirty:
        compound_head(p).dirty = True
    if p.lazyfree and not migration:
        # In this order: who wrote by a reference says so before it lets the page go.
        refs = atomic_read(p.refcount)
        maps = atomic_read(p.mapcount)
        dirty = p.dirty
        kept = dirty or refs != 1 + maps
        if kept:
            set_pte(ptep, pte)
            # Written since, or in use: it is worth keeping, and a written one is like any other again.
            if dirty or not era.lazyfree_is_kept_busy:
                p.lazyfree = False
            walk_put_back(p)
        else:
            page_remove_rmap(p)
            put_page(p)
        spin_unlock(pte_lockptr(ptep.table))
        return not kept
    if not migration and not swap_duplicate(p.swapcache):
        set_pte(ptep, pte)
        walk_put_back(p)
        spin_unlock(pte_lockptr(ptep.table))
        return False
    exclusive = False
    if era.anon_exclusive and p.anon_exclusive:
        # The PTE is gone and flushed: a pin that is not there now can't come any more.
        if compound_head(p).pincount > 0:
            if not migration:
                swap_free(p.swapcache)
            set_pte(ptep, pte)
            walk_put_back(p)
            spin_unlock(pte_lockptr(ptep.table))
            return False
        p.anon_exclusive = False
        exclusive = True
    if migration:
        set_pte(ptep, make_migration_entry(p, pte, exclusive))
    else:
        set_pte(ptep, pte_t(kind=PteKind.SWAP, slot=p.swapcache, exclusive=exclusive, uffd_wp=pte.uffd_wp))
    page_remove_rmap(p)
    put_page(p)
    spin_unlock(pte_lockptr(ptep.table))
    return True


@modelled("include/linux/swapops.h", versions="v3.10 .. v6.8 (accessed and dirty since v6.1)", section="C.8", steps=1)
def make_migration_entry(p: page, pte: pte_t, exclusive: bool) -> pte_t:
    """What a fault finds in the place of a PTE until the page has moved."""
    if era.migration_keeps_ad:
        return pte_t(
            kind=PteKind.MIGRATION,
            page=p,
            write=pte.write,
            exclusive=exclusive,
            young=pte.young,
            dirty=pte.dirty,
            uffd_wp=pte.uffd_wp,
        )
    return pte_t(kind=PteKind.MIGRATION, page=p, write=pte.write, exclusive=exclusive)


@ghost
@raw
def is_zero_filled(p: page) -> bool:
    """Does the page hold nothing but zeroes? (The kernel looks at it, unmapped and locked.)"""
    return p.data == 0 or p.data == config.ZEROES


@modelled("mm/migrate.c", versions="v3.10 .. v6.8", section="C.8", steps=4, omits="file pages, soft-dirty")
def remove_migration_pte(old: page, new: page, vma: vm_area_struct, addr: int, use_zero_page: bool = False) -> None:
    """One migration entry back to a present PTE; the lock is taken unconditionally: this look may not miss (E-15).

    use_zero_page: a page of zeroes is not mapped again, the zero page takes its place (RMP_USE_SHARED_ZEROPAGE).
    """
    pmd = pmd_offset(vma.vm_mm, addr).pmd
    if pmd.kind != PmdKind.TABLE:
        return
    ptep = pte_offset(pmd.table, addr)
    spin_lock(pte_lockptr(pmd.table))
    pte = ptep.pte
    if pte.kind == PteKind.MIGRATION and pte.page is old:
        protnone = vma.vm_flags & (vm.READ | vm.WRITE | vm.EXEC) == 0
        if use_zero_page and is_zero_filled(new) and not vma.vm_flags & vm.LOCKED:
            set_pte(ptep, pte_t(kind=PteKind.PRESENT, special=True, uffd_wp=pte.uffd_wp, protnone=protnone))
            spin_unlock(pte_lockptr(pmd.table))
            return
        get_page(new)
        dirty = pte.dirty and new.dirty
        uffd_wp = pte.uffd_wp and not pte.write
        present = pte_t(
            kind=PteKind.PRESENT,
            page=new,
            write=pte.write,
            young=pte.young,
            dirty=dirty,
            uffd_wp=uffd_wp,
            protnone=protnone,
        )
        if era.folios:
            page_mapcount_inc(new)
            if pte.exclusive:
                new.anon_exclusive = True
            set_pte(ptep, present)
        else:
            set_pte(ptep, present)
            page_mapcount_inc(new)
    spin_unlock(pte_lockptr(pmd.table))


@modelled("mm/ksm.c", versions="v3.10 .. v6.8 (since v3.14 rmap_walk_ksm)", section="C.17", steps=6)
def try_to_unmap_ksm(p: page, migration: bool) -> bool:
    """Every merged place first, then what forks made of them. The page is locked. True if nobody maps it any more."""
    node = p.mapping
    if not isinstance(node, stable_node):
        return False
    for search_new_forks in (False, True):
        for item in node.hlist:
            av = item.anon_vma
            anon_vma_lock_read(av)
            for avc in av.rb_root:
                vma = avc.vma
                if not item_may_lie(item, vma, search_new_forks):
                    continue
                if not try_to_unmap_one(p, vma, item.address, migration) or not page_mapped(p):
                    anon_vma_unlock_read(av)
                    return not page_mapped(p)
            anon_vma_unlock_read(av)
    return not page_mapped(p)


def item_may_lie(item: rmap_item, vma: vm_area_struct, search_new_forks: bool) -> bool:
    """Does the VMA cover the place, in the process that was scanned, or (the second time) in another?"""
    if item.address < vma.vm_start or item.address >= vma.vm_end:
        return False
    return (item.mm is vma.vm_mm) != search_new_forks


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.7", steps=4, omits="file pages")
def try_to_unmap(p: page, migration: bool) -> bool:
    """Unmap the page everywhere; it is locked. True if nobody maps it any more."""
    if config.CONFIG_KSM and PageKsm(p):
        return try_to_unmap_ksm(p, migration)
    av = page_lock_anon_vma_read(p)
    if av is None:
        return not page_mapped(p)
    walk_begin(p)
    pgoff = p.index
    stopped = False
    for avc in av.rb_root:
        vma = avc.vma
        addr = vma_address(vma, pgoff)
        if addr < 0:
            continue
        if not try_to_unmap_one(p, vma, addr, migration):
            stopped = True
            break
        if not page_mapped(p):
            break
    if not stopped:
        walk_end(p)
    else:
        walk_abandon()
    page_unlock_anon_vma_read(av)
    return not page_mapped(p)
