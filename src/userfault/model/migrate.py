"""mm/migrate.c: one anonymous page moves to another physical place."""

from __future__ import annotations

from .anon_vma import page_get_anon_vma, put_anon_vma
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, ENOMEM
from .ghost import count_migration_entries
from .huge_migrate import remove_migration_pmd, try_to_migrate
from .huge_split import split_huge_page
from .lang import NULL, atomic, check, ghost, raw, reached
from .locks import down_read, spin_lock, spin_unlock, trylock_page, unlock_page, up_read, wait_on_page_locked
from .machine import config
from .mm_types import PteKind, anon_vma, page, page_table, pte_slot, stable_node, vm_area_struct
from .page_flags import PageAnon, PageKsm, page_mapped
from .pgtable import pte_lockptr, vma_address
from .rmap import item_may_lie, remove_migration_pte, try_to_unmap
from .slab import (
    alloc_hugepage,
    alloc_page,
    atomic_read,
    compound_head,
    get_page_unless_zero,
    hpage_nr,
    nth_page,
    out_of_memory,
    put_page,
)
from .vmscan import isolate_lru_page, page_freeze


@modelled("mm/migrate.c", versions="v3.10 .. v6.8", section="C.8", steps=3, omits="huge and hugetlb entries")
def migration_entry_wait(table: page_table, ptep: pte_slot) -> None:
    """A fault met a migration entry: sleep until the page under migration is unlocked."""
    spin_lock(pte_lockptr(table))
    pte = ptep.pte
    if era.folios and pte.kind == PteKind.MIGRATION:
        # Since v5.17 (ffa65753c431) the sleeper takes no reference, which would make the split fail that it waits for.
        head = compound_head(pte.page)
        spin_unlock(pte_lockptr(table))
        wait_on_page_locked(head)
        return
    if pte.kind != PteKind.MIGRATION or not get_page_unless_zero(pte.page):
        spin_unlock(pte_lockptr(table))
        return
    spin_unlock(pte_lockptr(table))
    wait_on_page_locked(pte.page)
    put_page(pte.page)


@modelled("mm/rmap.c", function="rmap_walk_anon", versions="v3.10 (migration only) .. v6.8", section="C.7", steps=4)
def remove_migration_ptes(old: page, new: page) -> None:
    """Walk the new page's reverse map (the caller's reference keeps its anon_vma) and put every entry right."""
    # v3.10 trusts what it reads before the lock: the page is locked.
    pgoff = 0 if era.folios else new.index
    mapping = new.mapping
    if config.CONFIG_KSM and isinstance(mapping, stable_node):
        remove_migration_ptes_ksm(mapping, old, new)
    if not isinstance(mapping, anon_vma):
        return
    av = mapping
    down_read(av.root.rwsem)
    if era.folios:
        pgoff = new.index
    for avc in av.rb_root:
        vma = avc.vma
        if config.TRANSPARENT_HUGEPAGE and new.compound:
            remove_migration_of_huge_page(old, new, vma, pgoff)
            continue
        addr = vma_address(vma, pgoff)
        if addr >= 0:
            remove_migration_pte(old, new, vma, addr)
    up_read(av.root.rwsem)


def remove_migration_of_huge_page(old: page, new: page, vma: vm_area_struct, pgoff: int) -> None:
    """One VMA's entries, the PMD's or those of the parts."""
    addr = vma_address(vma, pgoff)
    if addr >= 0 and remove_migration_pmd(old, new, vma, addr):
        return
    for at in range(hpage_nr()):
        addr = vma_address(vma, pgoff + at)
        if addr >= 0:
            remove_migration_pte(nth_page(old, at), nth_page(new, at), vma, addr)


@modelled("mm/ksm.c", function="rmap_walk_ksm", versions="v3.10 (migration only) .. v6.8", section="C.17", steps=5)
def remove_migration_ptes_ksm(node: stable_node, old: page, new: page) -> None:
    """The same for a KSM page: by the places that were merged, then by what forks made of them."""
    for search_new_forks in (False, True):
        for item in node.hlist:
            av = item.anon_vma
            down_read(av.root.rwsem)
            for avc in av.rb_root:
                vma = avc.vma
                if item_may_lie(item, vma, search_new_forks):
                    remove_migration_pte(old, new, vma, item.address)
            up_read(av.root.rwsem)


@atomic
@raw
def ksm_migrate_page(new: page, p: page) -> None:
    """mm/ksm.c: the node's page is the new one; the old one is a KSM page without a node, which nobody can look up."""
    node = new.mapping
    if isinstance(node, stable_node):
        node.page = new


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
    omits="file pages, writeback, balloon pages; further tries, which wait for the page's lock; a page that nobody else has "
    "any more is not told from one in use",
    errs="missed bug",
)
def migrate_page(p: page) -> int:
    """Move an anonymous page to a new one; a huge one is split first (before v4.14).

    0, also where nobody maps what should be split; -EAGAIN: it has users that can't be told; -ENOMEM: there is no new one.
    """
    if not isolate_lru_page(p):
        return -EAGAIN
    if out_of_memory():
        put_page(p)
        return -ENOMEM
    if config.TRANSPARENT_HUGEPAGE and not era.pte_mapped_huge and p.compound and split_huge_page(p) != 0:
        # Nobody maps it any more, so there is nothing to be done.
        put_page(p)
        return 0
    if not trylock_page(p):
        put_page(p)
        return -EAGAIN
    huge = config.TRANSPARENT_HUGEPAGE and p.compound
    # What was read from swap and has not been mapped yet moves too: it has no reverse map, but a place in the cache.
    if (not PageAnon(p) and p.swapcache is None) or (PageKsm(p) and not config.CONFIG_KSM):
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    ksm = config.CONFIG_KSM and PageKsm(p)
    av = page_get_anon_vma(p)
    if av is None and p.swapcache is None and not era.folios and not ksm:
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    new = alloc_hugepage() if huge else alloc_page()
    trylock_page(new)
    if page_mapped(p):
        if huge:
            try_to_migrate(p)
        else:
            try_to_unmap(p, True)
    moved = False
    if not page_mapped(p):
        moved = move_to_new_page(new, p)
    if av is not None or ksm:
        remove_migration_ptes(p, new if moved else p)
    if moved:
        if not era.folios:
            p.mapping = NULL
        unlock_page(new)
    if av is not None:
        put_anon_vma(av)
    no_migration_entry_is_left(p)
    unlock_page(p)
    if moved:
        reached("a page was migrated")
    else:
        unlock_page(new)
    put_page(p)
    put_page(new)
    return 0 if moved else -EAGAIN


@modelled("mm/migrate.c", versions="v3.10 .. v6.8", section="C.8", steps=1, omits="migrate_page_copy's other flags")
def move_to_new_page(new: page, p: page) -> bool:
    """Nobody maps the page: the new one takes over its description, its place in the swap cache and its content.

    Only a page that can be looked up, in the swap cache, has to be frozen for it.
    """
    if p.swapcache is None:
        if atomic_read(p.refcount) != 1:
            return False
    elif not page_freeze(p, 2):
        return False
    new.mapping = p.mapping
    new.index = p.index
    new.lru = True
    new.dirty = p.dirty
    if p.swapcache is not None:
        replace_in_swap_cache(new, p)
    new.data = p.data
    if config.TRANSPARENT_HUGEPAGE and p.compound:
        for at in range(1, hpage_nr()):
            nth_page(new, at).data = nth_page(p, at).data
    if config.CONFIG_KSM and PageKsm(new):
        ksm_migrate_page(new, p)
    return True


@atomic
def replace_in_swap_cache(new: page, p: page) -> None:
    """The frozen page is unfrozen with its caller's reference only; the cache's goes to the new one."""
    p.refcount.counter = 1
    slot = p.swapcache
    slot.cache = new
    new.swapcache = slot
    new.refcount.counter += 1
    p.swapcache = NULL
