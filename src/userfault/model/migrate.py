"""mm/migrate.c: one anonymous page moves to another physical place."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EAGAIN
from .ghost import count_migration_entries
from .lang import NULL, atomic, check, ghost, reached
from .locks import down_read, spin_lock, spin_unlock, trylock_page, unlock_page, up_read, wait_on_page_locked
from .mm_types import PmdKind, PteKind, anon_vma, page, page_table, pte_slot, pte_t, vm_area_struct
from .pgtable import pmd_offset, pte_lockptr, pte_offset, set_pte, vma_address
from .rmap import PageAnon, PageKsm, page_get_anon_vma, page_mapcount_inc, page_mapped, put_anon_vma, try_to_unmap
from .slab import alloc_page, get_page, get_page_unless_zero, put_page
from .vmscan import page_freeze


@modelled("mm/migrate.c", versions="v3.10 .. v6.8", section="C.8", steps=3, omits="huge and hugetlb entries")
def migration_entry_wait(table: page_table, ptep: pte_slot) -> None:
    """A fault met a migration entry: sleep until the page under migration is unlocked."""
    spin_lock(pte_lockptr(table))
    pte = ptep.pte
    if era.folios and pte.kind == PteKind.MIGRATION:
        # Since v5.17 (ffa65753c431) the sleeper takes no reference, which would make the split fail that it waits for.
        spin_unlock(pte_lockptr(table))
        wait_on_page_locked(pte.page)
        return
    if pte.kind != PteKind.MIGRATION or not get_page_unless_zero(pte.page):
        spin_unlock(pte_lockptr(table))
        return
    spin_unlock(pte_lockptr(table))
    wait_on_page_locked(pte.page)
    put_page(pte.page)


@modelled("mm/migrate.c", versions="v3.10 .. v6.8", section="C.8", steps=4, omits="file pages, soft-dirty")
def remove_migration_pte(old: page, new: page, vma: vm_area_struct, addr: int) -> None:
    """One migration entry back to a present PTE; the lock is taken unconditionally: this look may not miss (E-15)."""
    pmd = pmd_offset(vma.vm_mm, addr).pmd
    if pmd.kind != PmdKind.TABLE:
        return
    ptep = pte_offset(pmd.table, addr)
    spin_lock(pte_lockptr(pmd.table))
    pte = ptep.pte
    if pte.kind == PteKind.MIGRATION and pte.page is old:
        get_page(new)
        if pte.exclusive:
            new.anon_exclusive = True
        page_mapcount_inc(new)
        set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=new, write=pte.write))
    spin_unlock(pte_lockptr(pmd.table))


@modelled("mm/rmap.c", function="rmap_walk_anon", versions="v3.10 (migration only) .. v6.8", section="C.7", steps=4)
def remove_migration_ptes(old: page, new: page) -> None:
    """Walk the new page's reverse map (the caller's reference keeps its anon_vma) and put every entry right."""
    pgoff = new.index
    mapping = new.mapping
    if not isinstance(mapping, anon_vma):
        return
    av = mapping
    down_read(av.root.rwsem)
    for avc in av.rb_root:
        vma = avc.vma
        addr = vma_address(vma, pgoff)
        if addr >= 0:
            remove_migration_pte(old, new, vma, addr)
    up_read(av.root.rwsem)


@ghost
def no_migration_entry_is_left(p: page) -> None:
    """I9: when migration unlocks the page, no entry to it remains: a fault on one would never be resolved."""
    check(count_migration_entries(p) == 0, "no_migration_entry_is_lost", "a migration entry outlived its migration")


@modelled(
    "mm/migrate.c",
    function="unmap_and_move",
    versions="v3.10 .. v6.8",
    section="C.8",
    steps=7,
    omits="file, KSM and huge pages, writeback, balloon pages",
)
def migrate_page(p: page) -> int:
    """Move an anonymous page to a new one. Returns 0, or -EAGAIN if it has users that can't be told."""
    if not get_page_unless_zero(p):
        return -EAGAIN
    if not trylock_page(p):
        put_page(p)
        return -EAGAIN
    if not PageAnon(p) or PageKsm(p) or p.compound:
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    av = page_get_anon_vma(p)
    if av is None and p.swapcache is None:
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    new = alloc_page()
    trylock_page(new)
    if page_mapped(p):
        try_to_unmap(p, True)
    moved = False
    if not page_mapped(p):
        moved = move_to_new_page(new, p)
    if av is not None:
        remove_migration_ptes(p, new if moved else p)
        put_anon_vma(av)
    no_migration_entry_is_left(p)
    unlock_page(new)
    unlock_page(p)
    if moved:
        reached("a page was migrated")
        put_page(p)
    else:
        put_page(p)
    put_page(new)
    return 0 if moved else -EAGAIN


@modelled("mm/migrate.c", versions="v3.10 .. v6.8", section="C.8", steps=1, omits="migrate_page_copy's other flags")
def move_to_new_page(new: page, p: page) -> bool:
    """Nobody maps the page: freeze it, copy it, and let the new one take its place in the swap cache."""
    if not page_freeze(p, 1 if p.swapcache is None else 2):
        return False
    new.data = p.data
    new.mapping = p.mapping
    new.index = p.index
    new.lru = True
    new.dirty = p.dirty
    replace_in_swap_cache(new, p)
    return True


@atomic
def replace_in_swap_cache(new: page, p: page) -> None:
    """The frozen page is unfrozen with its caller's reference only; the cache's goes to the new one."""
    p.refcount.counter = 1
    slot = p.swapcache
    if slot is not None:
        slot.cache = new
        new.swapcache = slot
        new.refcount.counter += 1
        p.swapcache = NULL
