"""mm/huge_memory.c: huge mappings, and huge pages, fall apart.

Before v4.5 the two were one: every mapping of a page that is split must be found at once (I6). Since then a mapping can be
split alone, which leaves the page huge and mapped by PTEs.
"""

from __future__ import annotations

from .anon_vma import anon_vma_lock_write, anon_vma_unlock_write, page_get_anon_vma, put_anon_vma
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EBUSY
from .ghost import walk_abandon, walk_begin, walk_end, walk_gained, walk_visit
from .huge_migrate import unmap_parts
from .lang import BUG_ON, NULL, atomic, check, reached, smp_processor_id
from .locks import lock_page, lockdep_acquired, spin_lock, spin_unlock, unlock_page
from .machine import config
from .mm_types import (
    LockClass,
    PmdKind,
    PteKind,
    anon_vma,
    page,
    page_table,
    pmd_slot,
    pmd_t,
    pte_t,
    vm_area_struct,
)
from .page_flags import folio_mapcount
from .pgtable import (
    flush_tlb_pmd,
    is_swap_pmd,
    pmd_lockptr,
    pmd_offset,
    pmdp_invalidate,
    pte_offset,
    set_pmd,
    set_pte,
    vma_address,
)
from .rmap import huge_mapcount_dec, remove_migration_pte, vma_overlaps
from .slab import atomic_read, get_page, hpage_nr, hpage_size, nth_page, put_page
from .swap import free_page_and_swap_cache
from .vmscan import page_freeze


@modelled("include/linux/huge_mm.h", versions="v3.10 .. v4.4", section="C.9", steps=2)
def wait_split_huge_page(vma: vm_area_struct) -> None:
    """Wait for a split under way, by its lock: works only while page->mapping and vma->anon_vma share a root."""
    anon_vma_lock_write(vma.anon_vma)
    anon_vma_unlock_write(vma.anon_vma)


# -- a mapping --------------------------------------------------------------------------------------------------------


@modelled("mm/huge_memory.c", versions="v3.10 .. v4.4", section="C.9", steps=5, function="__split_huge_page_pmd")
def split_huge_page_pmd(pmdp: pmd_slot, vma: vm_area_struct) -> None:
    """The mapping goes with its page: until the entry is not huge any more."""
    while True:
        spin_lock(pmd_lockptr(pmdp))
        pmd = pmdp.pmd
        if pmd.kind == PmdKind.HUGE_ZERO:
            table = split_huge_zero_page_pmd(vma, pmdp, pmdp.first_page << config.PAGE_SHIFT)
            set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
            spin_unlock(pmd_lockptr(pmdp))
            return
        if pmd.kind != PmdKind.HUGE and pmd.kind != PmdKind.SPLITTING:
            spin_unlock(pmd_lockptr(pmdp))
            return
        get_page(pmd.page)
        spin_unlock(pmd_lockptr(pmdp))
        split_huge_page(pmd.page)
        put_page(pmd.page)
        kind = pmdp.pmd.kind
        if kind == PmdKind.NONE or kind == PmdKind.TABLE:
            return


@modelled("mm/huge_memory.c", versions="v3.10 .. v6.8", section="C.9", steps=4, function="__split_huge_zero_page_pmd")
def split_huge_zero_page_pmd(vma: vm_area_struct, pmdp: pmd_slot, haddr: int, uffd_wp: bool = False) -> page_table:
    """The huge zero page's entry becomes the returned table of zero pages, which the caller puts there. PMD lock held."""
    set_pmd(pmdp, pmd_t())
    flush_tlb_pmd(vma.vm_mm, haddr)
    table = pmdp.deposited
    pmdp.deposited = NULL
    for at in range(hpage_nr()):
        set_pte(table.pte[at], pte_t(kind=PteKind.PRESENT, special=True, young=True, uffd_wp=uffd_wp))
    return table


@modelled(
    "mm/huge_memory.c",
    versions="v4.5 .. v6.8",
    section="C.9",
    steps=3,
    function="__split_huge_pmd",
)
def split_huge_pmd(vma: vm_area_struct, pmdp: pmd_slot, freeze: bool = False, p: page = NULL) -> None:
    """One mapping of a huge page becomes mappings of its parts. freeze: migration entries, if the entry maps `p`."""
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.HUGE_ZERO and not freeze:
        table = split_huge_zero_page_pmd(vma, pmdp, pmdp.first_page << config.PAGE_SHIFT, pmd.uffd_wp)
        set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
    elif pmd.kind == PmdKind.HUGE and (not freeze or pmd.page is p):
        split_huge_pmd_locked(vma, pmdp, pmd, freeze)
    elif is_swap_pmd(pmd) and not freeze:
        split_migration_pmd(pmdp, pmd)
    elif not era.split_knows_its_page:
        # v6.18 goes by what the walk finds. Another page's entry may be here, under migration (CVE-2025-37958).
        check(not is_swap_pmd(pmd), "not_present", "a migration entry was taken for the mapping of a page")
    spin_unlock(pmd_lockptr(pmdp))


@modelled(
    "mm/huge_memory.c",
    versions="v4.5 .. v6.8",
    section="C.9",
    steps=9,
    function="__split_huge_pmd_locked",
    omits="file pages",
)
def split_huge_pmd_locked(vma: vm_area_struct, pmdp: pmd_slot, pmd: pmd_t, freeze: bool) -> None:
    """The deposited table takes the huge entry's place. PMD lock held."""
    p = pmd.page
    # What the hardware has noted since the entry was looked at is there too.
    pmd = pmdp_invalidate(pmdp)
    flush_tlb_pmd(vma.vm_mm, pmdp.first_page << config.PAGE_SHIFT)
    if pmd.dirty:
        p.dirty = True
    exclusive = p.anon_exclusive
    if freeze:
        walk_visit()
        if exclusive:
            # The entry is gone and flushed: a pin that is not there now can't come any more.
            if p.pincount > 0:
                freeze = False
            else:
                p.anon_exclusive = False
    if not freeze:
        map_parts(p, exclusive)
    table = pmdp.deposited
    pmdp.deposited = NULL
    for at in range(hpage_nr()):
        each = nth_page(p, at)
        kind = PteKind.MIGRATION if freeze else PteKind.PRESENT
        owned = exclusive if freeze else False
        set_pte(
            table.pte[at],
            pte_t(
                kind=kind,
                page=each,
                write=pmd.write,
                dirty=pmd.dirty,
                young=pmd.young,
                exclusive=owned,
                uffd_wp=pmd.uffd_wp,
            ),
        )
    huge_mapcount_dec(p)
    if freeze:
        put_page(p)
    set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))


@modelled(
    "mm/huge_memory.c",
    versions="v4.14 .. v6.18",
    section="C.9",
    steps=3,
    function="__split_huge_pmd_locked (migration)",
)
def split_migration_pmd(pmdp: pmd_slot, pmd: pmd_t) -> None:
    """A huge migration entry becomes one for each part; no mapping, so nothing is counted. PMD lock held."""
    table = pmdp.deposited
    pmdp.deposited = NULL
    for at in range(hpage_nr()):
        set_pte(
            table.pte[at],
            pte_t(
                kind=PteKind.MIGRATION,
                page=nth_page(pmd.page, at),
                write=pmd.write,
                dirty=pmd.dirty,
                young=pmd.young,
                exclusive=pmd.exclusive,
                uffd_wp=pmd.uffd_wp,
            ),
        )
    set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))


@atomic
def map_parts(p: page, exclusive: bool) -> None:
    """folio_add_anon_rmap_ptes: every part of the huge page gets a mapping, and the page a reference for each but one."""
    p.refcount.counter += hpage_nr() - 1
    for at in range(hpage_nr()):
        each = nth_page(p, at)
        each.mapcount.counter += 1
        walk_gained(p)
        if exclusive:
            each.anon_exclusive = True


# -- a page -----------------------------------------------------------------------------------------------------------


@modelled(
    "mm/huge_memory.c",
    function="split_huge_page_to_list",
    versions="v3.10; v3.10+seed with the loop; v6.8 under the folio lock",
    section="C.9",
    steps=9,
    omits="the LRU, the swap cache of huge pages",
)
def split_huge_page(p: page) -> int:
    """Split a huge page everywhere; the caller has one reference. 0: done (or not huge); 1, -EBUSY, -EAGAIN: not."""
    if era.folios:
        lock_page(p)
        ret = split_folio(p)
        unlock_page(p)
        return ret
    av: anon_vma | None = None
    if era.recheck_in_split:
        while True:
            mapping = p.mapping
            av = page_get_anon_vma(p)
            if av is None:
                return 1
            anon_vma_lock_write(av)
            # remap_anon_pages may have changed the anon_vma until the lock was ours.
            if p.mapping is mapping:
                break
            anon_vma_unlock_write(av)
            put_anon_vma(av)
    else:
        av = page_get_anon_vma(p)
        if av is None:
            return 1
        anon_vma_lock_write(av)
    if p.compound:
        __split_huge_page(p, av)
        reached("a huge page was split")
    anon_vma_unlock_write(av)
    put_anon_vma(av)
    return 0


@modelled("mm/huge_memory.c", versions="v3.10 .. v4.4", section="C.9", steps=5)
def __split_huge_page(p: page, av: anon_vma) -> None:
    """Mark every PMD that maps the page as splitting, turn the page into small ones, then map those (I6)."""
    pgoff = p.index
    mapcount = 0
    for avc in av.rb_root:
        addr = vma_address(avc.vma, pgoff)
        if addr >= 0 and split_huge_page_splitting(p, avc.vma, addr):
            mapcount += 1
    BUG_ON(mapcount != atomic_read(p.mapcount))
    split_huge_page_refcount(p)
    mapcount2 = 0
    for avc in av.rb_root:
        addr = vma_address(avc.vma, pgoff)
        if addr >= 0 and split_huge_page_map(p, avc.vma, addr):
            mapcount2 += 1
    BUG_ON(mapcount != mapcount2)


@modelled("mm/huge_memory.c", versions="v3.10 .. v4.4", section="C.9", steps=2)
def split_huge_page_splitting(p: page, vma: vm_area_struct, addr: int) -> bool:
    """Set the splitting bit in a PMD that maps the page; the flush's IPI keeps gup_fast out."""
    if addr & (hpage_size() - 1):
        return False
    pmdp = pmd_offset(vma.vm_mm, addr)
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    found = pmd.kind == PmdKind.HUGE and pmd.page is p
    if found:
        set_pmd(pmdp, pmd._replace(kind=PmdKind.SPLITTING))
        flush_tlb_pmd(vma.vm_mm, addr)
    spin_unlock(pmd_lockptr(pmdp))
    return found


@atomic
def split_huge_page_refcount(p: page) -> None:
    """__split_huge_page_refcount: every tail gets the head's mappings, and its users, as its own; under lru_lock and compound_lock."""
    mapcount = p.mapcount.counter
    for at in range(hpage_nr()):
        each = nth_page(p, at)
        if at > 0:
            each.mapping = p.mapping
            each.index = p.index + at
            each.mapcount.counter = mapcount
            each.refcount.counter = mapcount + each.tail_users
            p.refcount.counter -= each.tail_users
            each.tail_users = 0
            each.lru = True
            each.dirty = True
        each.compound = False


@modelled("mm/huge_memory.c", versions="v3.10 .. v4.4", section="C.9", steps=4)
def split_huge_page_map(p: page, vma: vm_area_struct, addr: int) -> bool:
    """The deposited table, filled with the small pages, replaces a splitting PMD."""
    if addr & (hpage_size() - 1):
        return False
    pmdp = pmd_offset(vma.vm_mm, addr)
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    found = pmd.kind == PmdKind.SPLITTING and pmd.page is p
    if found:
        table = pmdp.deposited
        pmdp.deposited = NULL
        BUG_ON(pmd.write and atomic_read(p.mapcount) != 1)
        for at in range(hpage_nr()):
            ptep = pte_offset(table, addr + (at << config.PAGE_SHIFT))
            BUG_ON(ptep.pte.kind != PteKind.NONE)
            set_pte(
                ptep,
                pte_t(kind=PteKind.PRESENT, page=nth_page(p, at), write=pmd.write, dirty=True, young=pmd.young),
            )
        pmdp_invalidate(pmdp)
        flush_tlb_pmd(vma.vm_mm, addr)
        set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
    spin_unlock(pmd_lockptr(pmdp))
    return found


@modelled(
    "mm/huge_memory.c",
    function="split_huge_page_to_list",
    versions="v4.5 .. v6.8",
    section="C.9",
    steps=8,
    omits="swap cache of huge pages, the deferred list, writeback",
)
def split_folio(p: page, lock_at: page = NULL) -> int:
    """v6.8: the folio is locked and the caller has one reference beyond the mappings; both are the first part's then, or `lock_at`'s."""
    if not p.compound:
        return 0
    kept = p if lock_at is NULL else lock_at
    av = page_get_anon_vma(p)
    if av is None:
        return -EBUSY
    anon_vma_lock_write(av)
    ret = -EAGAIN
    if folio_mapcount(p) == atomic_read(p.refcount) - 1:
        unmap_folio(p, av)
        if page_freeze(p, 1):
            split_frozen(p)
            ret = 0
        remap_folio(p, av, era.split_maps_zero_page and ret == 0)
    if ret == 0:
        reached("a huge page was split")
        for at in range(hpage_nr()):
            each = nth_page(p, at)
            if each is not kept:
                unlock_page(each)
                free_page_and_swap_cache(each)
    anon_vma_unlock_write(av)
    put_anon_vma(av)
    return ret


@modelled(
    "mm/huge_memory.c",
    versions="v4.5 .. v6.8",
    section="C.9",
    steps=4,
    omits="that the PTL is kept between two PTEs of a table",
    errs="false alarm",
)
def unmap_folio(p: page, av: anon_vma) -> None:
    """try_to_migrate with the rmap lock held, huge PMDs split: every mapping becomes migration entries, or it stops."""
    walk_begin(p)
    pgoff = p.index
    stopped = False
    for avc in av.rb_root:
        vma = avc.vma
        if stopped or not vma_overlaps(vma, p, pgoff):
            continue
        addr = vma_address(vma, pgoff)
        if addr >= 0:
            split_huge_pmd(vma, pmd_offset(vma.vm_mm, addr), True, p)
        if not unmap_parts(p, vma, pgoff, True):
            stopped = True
    if stopped:
        walk_abandon()
    else:
        walk_end(p)


@atomic
def split_frozen(p: page) -> None:
    """__split_huge_page: the frozen folio becomes small ones, all locked, one reference on each."""
    for at in range(hpage_nr()):
        each = nth_page(p, at)
        check(each.mapcount.counter == 0, "accounting", "a part of a huge page is mapped while it is split")
        if at > 0:
            each.mapping = p.mapping
            each.index = p.index + at
            each.lru = True
            each.dirty = p.dirty
            if p.lazyfree:
                each.lazyfree = True
            each.locked = smp_processor_id() + 1
            lockdep_acquired(LockClass.PAGE)
        each.compound = False
        each.refcount.counter = 1


@modelled("mm/huge_memory.c", function="remap_page", versions="v4.5 .. v6.8", section="C.9", steps=1)
def remap_folio(p: page, av: anon_vma, use_zero_page: bool = False) -> None:
    """remove_migration_ptes with the rmap lock held, for every page that the folio was or still is."""
    pgoff = p.index
    for avc in av.rb_root:
        vma = avc.vma
        for at in range(hpage_nr()):
            addr = vma_address(vma, pgoff + at)
            if addr >= 0:
                remove_migration_pte(nth_page(p, at), nth_page(p, at), vma, addr, use_zero_page)
