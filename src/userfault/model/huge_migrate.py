"""mm/huge_memory.c: a huge page that a PMD maps is migrated whole (since v4.14): the PMD itself is the migration entry."""

from __future__ import annotations

from .anon_vma import page_lock_anon_vma_read, page_unlock_anon_vma_read
from .catalogue import modelled
from .errno import EBUSY
from .ghost import walk_abandon, walk_begin, walk_end, walk_put_back, walk_visit
from .lang import READ_ONCE
from .locks import spin_lock, spin_unlock, wait_on_page_locked
from .mm_types import PmdKind, page, pmd_slot, pmd_t, vm_area_struct
from .pgtable import (
    flush_tlb_pmd,
    is_swap_pmd,
    pmd_lockptr,
    pmd_offset,
    pmd_trans_huge,
    pmdp_invalidate,
    set_pmd,
    vma_address,
)
from .rmap import huge_mapcount_dec, huge_mapcount_inc, try_to_unmap_one, vma_overlaps
from .slab import get_page, hpage_nr, nth_page, put_page


@modelled("mm/migrate.c", versions="v4.14 .. v6.18", section="C.8", steps=3)
def pmd_migration_entry_wait(pmdp: pmd_slot) -> None:
    """A fault met a huge page under migration: sleep until it is unlocked."""
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    spin_unlock(pmd_lockptr(pmdp))
    if is_swap_pmd(pmd):
        wait_on_page_locked(pmd.page)


@modelled("mm/huge_memory.c", versions="v4.14 .. v6.18", section="C.8", steps=6, omits="uffd-wp, soft-dirty")
def set_pmd_migration_entry(p: page, vma: vm_area_struct, addr: int) -> int:
    """A huge mapping becomes a migration entry. 1: done; 0: no PMD maps the page here; -EBUSY: it is pinned."""
    pmdp = pmd_offset(vma.vm_mm, addr)
    if not pmd_trans_huge(READ_ONCE(pmdp.pmd)):
        return 0
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    if pmd.kind != PmdKind.HUGE or pmd.page is not p:
        spin_unlock(pmd_lockptr(pmdp))
        return 0
    walk_visit()
    pmd = pmdp_invalidate(pmdp)
    flush_tlb_pmd(vma.vm_mm, addr)
    exclusive = p.anon_exclusive
    if exclusive:
        # The entry is invalid and flushed: a pin that is not there now can't come any more.
        if p.pincount > 0:
            set_pmd(pmdp, pmd)
            walk_put_back(p)
            spin_unlock(pmd_lockptr(pmdp))
            return -EBUSY
        p.anon_exclusive = False
    if pmd.dirty:
        p.dirty = True
    set_pmd(pmdp, pmd._replace(kind=PmdKind.MIGRATION, exclusive=exclusive))
    huge_mapcount_dec(p)
    put_page(p)
    spin_unlock(pmd_lockptr(pmdp))
    return 1


@modelled(
    "mm/huge_memory.c", versions="v4.14 .. v6.18", section="C.8", steps=5, omits="file pages, uffd-wp, soft-dirty"
)
def remove_migration_pmd(old: page, new: page, vma: vm_area_struct, addr: int) -> bool:
    """A huge migration entry maps the new page. False: there is none here, so look for PTEs."""
    pmdp = pmd_offset(vma.vm_mm, addr)
    if not is_swap_pmd(READ_ONCE(pmdp.pmd)):
        return False
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    found = is_swap_pmd(pmd) and pmd.page is old
    if found:
        get_page(new)
        huge_mapcount_inc(new)
        if pmd.exclusive:
            new.anon_exclusive = True
        dirty = pmd.dirty and new.dirty
        huge = pmd_t(kind=PmdKind.HUGE, page=new, write=pmd.write, dirty=dirty, young=pmd.young)
        set_pmd(pmdp, huge._replace(uffd_wp=pmd.uffd_wp))
    spin_unlock(pmd_lockptr(pmdp))
    return found


def unmap_parts(p: page, vma: vm_area_struct, pgoff: int, sync: bool) -> bool:
    """try_to_migrate_one for the parts that PTEs of the VMA map. False: one could not be unmapped."""
    for at in range(hpage_nr()):
        addr = vma_address(vma, pgoff + at)
        if addr >= 0 and not try_to_unmap_one(nth_page(p, at), vma, addr, True, sync):
            return False
    return True


@modelled(
    "mm/rmap.c",
    function="try_to_migrate",
    versions="v4.14 (as try_to_unmap) .. v6.18",
    section="C.8",
    steps=4,
    omits="that the PTL is kept between two PTEs of a table",
    errs="false alarm",
)
def try_to_migrate(p: page) -> None:
    """Every mapping of a huge page becomes a migration entry, PMD or PTE, until one can't. The page is locked."""
    av = page_lock_anon_vma_read(p)
    if av is None:
        return
    walk_begin(p)
    pgoff = p.index
    stopped = False
    for avc in av.rb_root:
        vma = avc.vma
        if stopped or not vma_overlaps(vma, p, pgoff):
            continue
        addr = vma_address(vma, pgoff)
        whole = set_pmd_migration_entry(p, vma, addr) if addr >= 0 else 0
        if whole == -EBUSY or (whole == 0 and not unmap_parts(p, vma, pgoff, False)):
            stopped = True
    if stopped:
        walk_abandon()
    else:
        walk_end(p)
    page_unlock_anon_vma_read(av)
