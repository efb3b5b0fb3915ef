"""mm/huge_memory.c (and since v4.8 mm/khugepaged.c): huge pages appear, are split, and are put together again.

A huge page is its head: lock, counts, mapping and index live there. Its tails are the pages after it.
"""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EBUSY
from .ghost import walk_begin, walk_end, walk_visit
from .lang import BUG_ON, NULL, atomic, check, exhausted, ghost, raw, reached
from .locks import (
    down_write,
    lock_page,
    spin_lock,
    spin_unlock,
    trylock_page,
    unlock_page,
    up_write,
)
from .machine import config, machine, new_page, new_page_table
from .migrate import remove_migration_pte
from .mm_types import (
    PmdKind,
    PteKind,
    anon_vma,
    mm_struct,
    page,
    page_table,
    pmd_slot,
    pmd_t,
    pte_slot,
    pte_t,
    vm,
    vm_area_struct,
)
from .pgtable import (
    flush_tlb_pmd,
    pmd_lockptr,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    ptep_get_and_clear,
    set_pmd,
    set_pte,
    vma_address,
)
from .rmap import (
    anon_vma_lock_write,
    anon_vma_prepare,
    anon_vma_unlock_write,
    page_add_new_anon_rmap,
    page_get_anon_vma,
    page_mapcount_dec,
    page_mapcount_inc,
    page_remove_rmap,
    put_anon_vma,
)
from .slab import atomic_read, get_page, put_page
from .vmscan import page_freeze


def hpage_nr() -> int:
    return 1 << config.HPAGE_PMD_ORDER


def nth_page(head: page, at: int) -> page:
    """The page `at` places after another: pages are one array."""
    return machine.pages[head.pfn + at]


def hpage_size() -> int:
    return 1 << (config.PAGE_SHIFT + config.HPAGE_PMD_ORDER)


@atomic
@raw
def alloc_hugepage() -> page:
    """Aligned neighbours from the pool, one reference, held by the head."""
    for head in machine.pages:
        if head.pfn & (hpage_nr() - 1) == 0 and head.pfn + hpage_nr() <= len(machine.pages):
            free = True
            for at in range(hpage_nr()):
                if nth_page(head, at).allocated:
                    free = False
            if free:
                for at in range(hpage_nr()):
                    nth_page(head, at).allocated = True
                    nth_page(head, at).compound = True
                head.refcount.counter = 1
                return head
    exhausted("huge page")
    return new_hugepage()


def new_hugepage() -> page:
    while len(machine.pages) & (hpage_nr() - 1):
        new_page()
    head = new_page()
    for _ in range(hpage_nr() - 1):
        new_page()
    for at in range(hpage_nr()):
        nth_page(head, at).allocated = True
        nth_page(head, at).compound = True
    head.refcount.counter = 1
    return head


@ghost
def huge_fault_is_delivered(pmdp: pmd_slot) -> None:
    """I12, as for a small page."""
    check(pmdp.pmd.kind == PmdKind.NONE, "missing_fault_is_missing", "a fault was delivered for a page that is there")


@modelled(
    "mm/huge_memory.c",
    function="do_huge_pmd_anonymous_page",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=8,
    omits="the huge zero page, fallback to small pages on allocation failure",
    errs="missed bug",
)
def do_huge_pmd_anonymous_page(vma: vm_area_struct, addr: int) -> int:
    """A touch of a none PMD in a VMA that may hold a huge page. 0: done or to be retried; 2: SIGBUS (R25)."""
    mm = vma.vm_mm
    pmdp = pmd_offset(mm, addr)
    anon_vma_prepare(vma)
    p = alloc_hugepage()
    for at in range(hpage_nr()):
        nth_page(p, at).data = 0
    table = pgtable_alloc(mm)
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd.kind != PmdKind.NONE:
        spin_unlock(pmd_lockptr(pmdp))
        table.allocated = False
        free_hugepage(p)
        return 0
    if vma.vm_flags & vm.USERFAULT:
        huge_fault_is_delivered(pmdp)
        spin_unlock(pmd_lockptr(pmdp))
        table.allocated = False
        free_hugepage(p)
        return 2
    haddr = addr & -hpage_size()
    page_add_new_anon_rmap(p, vma, haddr)
    pmdp.deposited = table
    set_pmd(pmdp, pmd_t(kind=PmdKind.HUGE, page=p, write=(vma.vm_flags & vm.WRITE) != 0, dirty=True, young=True))
    spin_unlock(pmd_lockptr(pmdp))
    return 0


@atomic
@raw
def pgtable_alloc(mm: mm_struct) -> page_table:
    """A table to deposit, so that a split never needs memory."""
    for each in machine.page_tables:
        if not each.allocated:
            each.allocated = True
            return each
    exhausted("page_table")
    return new_page_table()


@atomic
@raw
def free_hugepage(head: page) -> None:
    """The last reference of a compound page is gone: all of it is free."""
    for at in range(hpage_nr()):
        each = nth_page(head, at)
        each.compound = False
        each.allocated = False
        each.lru = False
        each.mapping = NULL
        each.mapping_stale = False
        each.anon_exclusive = False
    head.refcount.counter = 0


def do_huge_pmd_fault(vma: vm_area_struct, addr: int, write: bool, pmd: pmd_t) -> int:
    """A touch of a huge entry: set the accessed bit; wait out a split; copy-on-write splits first and retries."""
    pmdp = pmd_offset(vma.vm_mm, addr)
    if pmd.kind == PmdKind.SPLITTING:
        wait_split_huge_page(vma)
        return 0
    if write and not pmd.write:
        split_mapped(pmdp, pmd)
        return 0
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd == pmd:
        set_pmd(pmdp, pmd._replace(young=True, dirty=pmd.dirty or write))
    spin_unlock(pmd_lockptr(pmdp))
    return 0


def split_mapped(pmdp: pmd_slot, pmd: pmd_t) -> None:
    """__split_huge_page_pmd: take a reference under the lock, if the entry is still there, and split."""
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd != pmd:
        spin_unlock(pmd_lockptr(pmdp))
        return
    get_page(pmd.page)
    spin_unlock(pmd_lockptr(pmdp))
    split_huge_page(pmd.page)
    put_huge_page(pmd.page)


@modelled("include/linux/huge_mm.h", versions="v3.10 .. v4.4", section="C.9", steps=2)
def wait_split_huge_page(vma: vm_area_struct) -> None:
    """Wait for a split under way, by its lock: works only while page->mapping and vma->anon_vma share a root."""
    anon_vma_lock_write(vma.anon_vma)
    anon_vma_unlock_write(vma.anon_vma)


@modelled(
    "mm/huge_memory.c",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=4,
    omits="partial unmapping: the caller splits first",
)
def zap_huge_pmd(vma: vm_area_struct, pmdp: pmd_slot, addr: int) -> bool:
    """Clear a huge entry that the range covers; one that is being split is waited for. False: it is not huge."""
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    if pmd.kind != PmdKind.HUGE:
        spin_unlock(pmd_lockptr(pmdp))
        if pmd.kind == PmdKind.SPLITTING:
            wait_split_huge_page(vma)
        return False
    set_pmd(pmdp, pmd_t())
    table = pmdp.deposited
    pmdp.deposited = NULL
    page_remove_rmap(pmd.page)
    spin_unlock(pmd_lockptr(pmdp))
    flush_tlb_pmd(vma.vm_mm, addr)
    if table is not None:
        table.allocated = False
    put_huge_page(pmd.page)
    return True


def put_huge_page(head: page) -> None:
    """put_page of a page that may be huge."""
    if head.compound:
        if huge_put_testzero(head):
            free_hugepage(head)
    else:
        put_page(head)


@atomic
def huge_put_testzero(head: page) -> bool:
    head.refcount.counter -= 1
    return head.refcount.counter == 0


# -- split ------------------------------------------------------------------------------------------------------------


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
    """__split_huge_page_refcount: every tail gets the head's mappings as its own; under lru_lock and compound_lock."""
    mapcount = p.mapcount.counter
    for at in range(hpage_nr()):
        each = nth_page(p, at)
        if at > 0:
            each.mapping = p.mapping
            each.index = p.index + at
            each.mapcount.counter = mapcount
            each.refcount.counter = mapcount
            each.lru = True
            each.anon_exclusive = p.anon_exclusive
        each.compound = False


@modelled("mm/huge_memory.c", versions="v3.10 .. v4.4", section="C.9", steps=3)
def split_huge_page_map(p: page, vma: vm_area_struct, addr: int) -> bool:
    """The deposited table, filled with the small pages, replaces a splitting PMD."""
    pmdp = pmd_offset(vma.vm_mm, addr)
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    found = pmd.kind == PmdKind.SPLITTING and pmd.page is p
    if found:
        table = pmdp.deposited
        pmdp.deposited = NULL
        for at in range(hpage_nr()):
            ptep = pte_offset(table, addr + (at << config.PAGE_SHIFT))
            fill_split_pte(ptep, nth_page(p, at), pmd)
        flush_tlb_pmd(vma.vm_mm, addr)
        set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
    spin_unlock(pmd_lockptr(pmdp))
    return found


def fill_split_pte(ptep: pte_slot, each: page, pmd: pmd_t) -> None:
    set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=each, write=pmd.write, dirty=pmd.dirty, young=pmd.young))


@modelled(
    "mm/huge_memory.c",
    function="split_huge_page_to_list",
    versions="v4.5 .. v6.8",
    section="C.9",
    steps=8,
    omits="swap cache of huge pages, the deferred list",
)
def split_folio(p: page) -> int:
    """v6.8: the folio is locked and the caller has one reference beyond the mappings."""
    if not p.compound:
        return 0
    av = page_get_anon_vma(p)
    if av is None:
        return -EBUSY
    anon_vma_lock_write(av)
    ret = 0
    if atomic_read(p.mapcount) != atomic_read(p.refcount) - 1:
        ret = -EAGAIN
    else:
        unmap_folio(p, av)
        if page_freeze(p, 1):
            split_frozen(p)
            reached("a huge page was split")
        else:
            ret = -EAGAIN
        remap_folio(p, av)
    anon_vma_unlock_write(av)
    put_anon_vma(av)
    return ret


@modelled("mm/huge_memory.c", versions="v4.5 .. v6.8", section="C.9", steps=1, omits="PTE-mapped huge pages")
def unmap_folio(p: page, av: anon_vma) -> None:
    """try_to_migrate with the rmap lock held: every PMD becomes a table of migration entries."""
    walk_begin(p)
    pgoff = p.index
    for avc in av.rb_root:
        vma = avc.vma
        addr = vma_address(vma, pgoff)
        if addr < 0:
            continue
        pmdp = pmd_offset(vma.vm_mm, addr)
        spin_lock(pmd_lockptr(pmdp))
        pmd = pmdp.pmd
        if pmd.kind == PmdKind.HUGE and pmd.page is p:
            walk_visit()
            freeze_pmd(pmdp, pmd)
            flush_tlb_pmd(vma.vm_mm, addr)
            page_mapcount_dec(p)
            drop_mapping_reference(p)
        spin_unlock(pmd_lockptr(pmdp))
    walk_end(p)


@atomic
def drop_mapping_reference(p: page) -> None:
    p.refcount.counter -= 1


@atomic
def freeze_pmd(pmdp: pmd_slot, pmd: pmd_t) -> None:
    """__split_huge_pmd_locked(freeze): the deposited table, full of migration entries, replaces the huge PMD."""
    table = pmdp.deposited
    pmdp.deposited = NULL
    for at in range(hpage_nr()):
        each = nth_page(pmd.page, at)
        table.pte[at].pte = pte_t(kind=PteKind.MIGRATION, page=each, write=pmd.write, exclusive=pmd.page.anon_exclusive)
    pmdp.pmd = pmd_t(kind=PmdKind.TABLE, table=table)


@atomic
def split_frozen(p: page) -> None:
    """__split_huge_page: the frozen folio becomes small ones; the caller's reference stays on the head."""
    for at in range(hpage_nr()):
        each = nth_page(p, at)
        if at > 0:
            each.mapping = p.mapping
            each.index = p.index + at
            each.lru = True
            each.anon_exclusive = False
        each.compound = False
    p.anon_exclusive = False
    p.refcount.counter = 1


@modelled("mm/huge_memory.c", function="remap_page", versions="v4.5 .. v6.8", section="C.9", steps=1)
def remap_folio(p: page, av: anon_vma) -> None:
    """remove_migration_ptes with the rmap lock held, for every page that the folio was or still is."""
    pgoff = p.index
    for avc in av.rb_root:
        vma = avc.vma
        addr = vma_address(vma, pgoff)
        if addr < 0:
            continue
        if p.compound:
            remap_pmd(p, vma, addr)
        else:
            for at in range(hpage_nr()):
                each = nth_page(p, at)
                remove_migration_pte(each, each, vma, addr + (at << config.PAGE_SHIFT))


def remap_pmd(p: page, vma: vm_area_struct, addr: int) -> None:
    """The split failed: the entries of one VMA map the folio again. The model puts the huge PMD back as it was."""
    pmdp = pmd_offset(vma.vm_mm, addr)
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.TABLE and pmd.table.pte[0].pte.kind == PteKind.MIGRATION and pmd.table.pte[0].pte.page is p:
        unfreeze_pmd(pmdp, pmd.table)
        get_page(p)
        page_mapcount_inc(p)
    spin_unlock(pmd_lockptr(pmdp))


@atomic
def unfreeze_pmd(pmdp: pmd_slot, table: page_table) -> None:
    entry = table.pte[0].pte
    if entry.exclusive:
        entry.page.anon_exclusive = True
    for at in range(hpage_nr()):
        table.pte[at].pte = pte_t()
    pmdp.deposited = table
    pmdp.pmd = pmd_t(kind=PmdKind.HUGE, page=entry.page, write=entry.write, dirty=True)


# -- collapse ---------------------------------------------------------------------------------------------------------


@modelled(
    "mm/huge_memory.c",
    versions="v3.10 (since v4.8 mm/khugepaged.c) .. v6.8",
    section="C.10",
    steps=9,
    omits="the scan before it, the fill of holes with zeroes beyond the rule for them (none allowed here), swap-in",
    errs="missed bug",
)
def collapse_huge_page(mm: mm_struct, addr: int) -> int:
    """Put the small pages of one PMD together into a huge page. 0, or -EAGAIN if they can't be."""
    down_write(mm.mmap_sem)
    vma = None
    for each in mm.mmap:
        if each.vm_start <= addr and addr + hpage_size() <= each.vm_end:
            vma = each
    if vma is None or vma.anon_vma is None:
        up_write(mm.mmap_sem)
        return -EAGAIN
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if pmd.kind != PmdKind.TABLE:
        up_write(mm.mmap_sem)
        return -EAGAIN
    new = alloc_hugepage()
    av = vma.anon_vma
    anon_vma_lock_write(av)
    spin_lock(pmd_lockptr(pmdp))
    # Nobody finds the table any more; the flush's IPI waits for gup_fast.
    set_pmd(pmdp, pmd_t())
    flush_tlb_pmd(mm, addr)
    spin_unlock(pmd_lockptr(pmdp))
    isolated = collapse_isolate(pmd.table, addr)
    if isolated < hpage_nr():
        collapse_release(pmd.table, isolated)
        spin_lock(pmd_lockptr(pmdp))
        set_pmd(pmdp, pmd)
        spin_unlock(pmd_lockptr(pmdp))
        anon_vma_unlock_write(av)
        up_write(mm.mmap_sem)
        free_hugepage(new)
        return -EAGAIN
    # Every page is locked: walkers that need the page lock are out, the others find no PMD.
    anon_vma_unlock_write(av)
    for at in range(hpage_nr()):
        collapse_copy(pmd.table, at, nth_page(new, at))
    spin_lock(pmd_lockptr(pmdp))
    page_add_new_anon_rmap(new, vma, addr)
    pmdp.deposited = pmd.table
    set_pmd(pmdp, pmd_t(kind=PmdKind.HUGE, page=new, write=(vma.vm_flags & vm.WRITE) != 0, dirty=True))
    spin_unlock(pmd_lockptr(pmdp))
    up_write(mm.mmap_sem)
    reached("pages were collapsed")
    return 0


@modelled(
    "mm/huge_memory.c", function="__collapse_huge_page_isolate", versions="v3.10 .. v6.8", section="C.10", steps=6
)
def collapse_isolate(table: page_table, addr: int) -> int:
    """Lock every page of the table that may be collapsed; returns how many in a row could be."""
    spin_lock(pte_lockptr(table))
    for at in range(hpage_nr()):
        pte = table.pte[at].pte
        if pte.kind != PteKind.PRESENT or pte.special or not pte.write:
            spin_unlock(pte_lockptr(table))
            return at
        p = pte.page
        if atomic_read(p.refcount) != 1 or not trylock_page(p):
            spin_unlock(pte_lockptr(table))
            return at
    spin_unlock(pte_lockptr(table))
    return hpage_nr()


def collapse_release(table: page_table, count: int) -> None:
    for at in range(hpage_nr()):
        if at < count:
            unlock_page(table.pte[at].pte.page)


@modelled("mm/huge_memory.c", function="__collapse_huge_page_copy", versions="v3.10 .. v6.8", section="C.10", steps=3)
def collapse_copy(table: page_table, at: int, new: page) -> None:
    """Copy one page and drop its old mapping."""
    ptep = table.pte[at]
    old = ptep.pte.page
    new.data = old.data
    spin_lock(pte_lockptr(table))
    ptep_get_and_clear(ptep)
    page_remove_rmap(old)
    spin_unlock(pte_lockptr(table))
    unlock_page(old)
    put_page(old)


@modelled(
    "mm/huge_memory.c", versions="v4.5 .. v6.8", section="C.13", steps=2, omits="the huge zero page, migration PMDs"
)
def split_huge_pmd(mm: mm_struct, pmdp: pmd_slot, pmd: pmd_t, addr: int) -> None:
    """v6.8 splits the mapping first and the folio later; the model, which has no PTE-mapped huge pages, splits both."""
    split_mapped(pmdp, pmd)
