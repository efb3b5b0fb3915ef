"""mm/memory.c: faults, copy on write, zapping."""

from __future__ import annotations

from .anon_vma import anon_vma_prepare
from .catalogue import modelled
from .era import era
from .huge_memory import do_huge_pmd_anonymous_page, do_huge_pmd_fault, zap_huge_pmd
from .huge_migrate import pmd_migration_entry_wait
from .huge_split import split_huge_page_pmd, split_huge_pmd
from .lang import atomic, check, exhausted, ghost, raw
from .locks import lock_page, spin_lock, spin_unlock, trylock_page, unlock_page
from .machine import config, machine, new_page_table, this_cpu
from .migrate import migration_entry_wait
from .mm_types import (
    VM_FAULT_FALLBACK,
    VM_FAULT_HWPOISON,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_FAULT_USERFAULT,
    PmdKind,
    PteKind,
    mm_struct,
    page,
    page_table,
    pmd_t,
    pte_slot,
    pte_t,
    vm,
    vm_area_struct,
)
from .page_flags import PageAnon, PageKsm, folio_mapcount, maybe_mapped_shared
from .pgtable import (
    flush_tlb_batched_pending,
    flush_tlb_pmd,
    flush_tlb_range,
    is_swap_pmd,
    pmd_is_huge,
    pmd_lockptr,
    pmd_offset,
    pmd_trans_huge,
    pte_lockptr,
    pte_offset,
    ptep_clear_flush,
    ptep_get_and_clear,
    set_pmd,
    set_pte,
    table_is_gone,
)
from .rmap import page_add_new_anon_rmap, page_move_anon_rmap, page_remove_rmap
from .slab import alloc_page, atomic_read, compound_head, get_page, hpage_nr, hpage_size, out_of_memory, put_page
from .swap import (
    do_swap_page,
    free_page_and_swap_cache,
    free_swap_and_cache,
    free_swap_cache,
    reuse_swap_page,
    try_to_free_swap,
)

NONE_PTE = pte_t()


@atomic
@raw
def pte_alloc_one(mm: mm_struct) -> page_table:
    """An empty page table from the pool."""
    for each in machine.page_tables:
        if not each.allocated:
            each.allocated = True
            return each
    exhausted("page_table")
    return new_page_table()


@atomic
@raw
def pte_free(table: page_table) -> None:
    """A page table that nobody can find goes back to the pool."""
    for ptep in table.pte:
        check(ptep.pte.kind == PteKind.NONE, "bad_free", "a page table was freed while an entry is in it")
    table.allocated = False


def pte_alloc_fails(mm: mm_struct, addr: int) -> bool:
    """Is there no page table to be had for an address that needs one? Asked before pte_alloc."""
    return config.MEMORY_IS_SHORT and pmd_offset(mm, addr).pmd.kind == PmdKind.NONE and out_of_memory()


@modelled(
    "mm/memory.c",
    function="__pte_alloc",
    versions="v3.10 .. v6.8",
    section="C.1",
    omits="the memory barrier; the wait for a split under way (the fault is tried again)",
)
def pte_alloc(mm: mm_struct, addr: int) -> page_table:
    """The page table that covers an address; made if there is none, and dropped again if another was faster.

    NULL if a huge page is there: it may appear while we look.
    """
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if pmd.kind != PmdKind.NONE:
        return pmd.table
    fresh = pte_alloc_one(mm)
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.NONE:
        set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=fresh))
        spin_unlock(pmd_lockptr(pmdp))
        return fresh
    spin_unlock(pmd_lockptr(pmdp))
    pte_free(fresh)
    return pmd.table


@ghost
def fault_is_delivered(ptep: pte_slot) -> None:
    """I12: a fault goes to user space only if its PTE is missing at that moment."""
    missing = ptep.pte.kind == PteKind.NONE or (era.markers and ptep.pte.kind == PteKind.WP_MARKER)
    check(missing, "missing_fault_is_missing", "a fault was delivered for a page that is there")


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=9,
    omits="memcg",
)
def do_anonymous_page(vma: vm_area_struct, addr: int, write: bool, orig: pte_t = NONE_PTE) -> int:
    """A touch of a none PTE, or of a write-protected hole (`orig`); mmap_sem held for reading. Returns 0 or VM_FAULT_*."""
    if pte_alloc_fails(vma.vm_mm, addr):
        return VM_FAULT_OOM
    table = pte_alloc(vma.vm_mm, addr)
    if table is None:
        # A huge page appeared meanwhile: the access is tried again.
        return 0
    ptep = pte_offset(table, addr)
    missing = VM_FAULT_USERFAULT if era.userfaultfd else VM_FAULT_SIGBUS
    if not write:
        spin_lock(pte_lockptr(table))
        if ptep.pte != orig or (config.PT_RECLAIM and table_is_gone(vma.vm_mm, addr, table)):
            spin_unlock(pte_lockptr(table))
            return 0
        if vma.vm_flags & vm.USERFAULT:
            fault_is_delivered(ptep)
            spin_unlock(pte_lockptr(table))
            return missing
        set_pte(ptep, pte_t(kind=PteKind.PRESENT, special=True, young=True, uffd_wp=orig.uffd_wp))
        spin_unlock(pte_lockptr(table))
        return 0
    if anon_vma_prepare(vma) != 0 or out_of_memory():
        return VM_FAULT_OOM
    p = alloc_page()
    p.data = 0
    spin_lock(pte_lockptr(table))
    if ptep.pte != orig or (config.PT_RECLAIM and table_is_gone(vma.vm_mm, addr, table)):
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return 0
    if vma.vm_flags & vm.USERFAULT:
        fault_is_delivered(ptep)
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return missing
    page_add_new_anon_rmap(p, vma, addr)
    writable = (vma.vm_flags & vm.WRITE) != 0
    pte = pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=writable, young=True)
    if era.markers and orig.uffd_wp:
        pte = pte._replace(write=False, uffd_wp=True)
    set_pte(ptep, pte)
    spin_unlock(pte_lockptr(table))
    return 0


def make_writable(ptep: pte_slot, pte: pte_t) -> None:
    set_pte(ptep, pte._replace(write=True, dirty=True, young=True))


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.2",
    steps=4,
    omits="shared and file mappings; the LRU drain before the reference count is trusted",
)
def do_wp_page(
    vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t, unshare: bool = False
) -> int:
    """A write to a read-only PTE: reuse the page, or copy it. The PTL is held, and let go. unshare: it stays read-only."""
    if era.markers and not unshare and orig.uffd_wp and vma.vm_flags & vm.UFFD_WP:
        if not vma.ctx.wp_async:
            spin_unlock(pte_lockptr(table))
            return VM_FAULT_USERFAULT
        orig = orig._replace(uffd_wp=False)
        set_pte(ptep, orig)
    old = orig.page
    if not orig.special:
        if era.anon_exclusive:
            if PageAnon(old) and old.anon_exclusive:
                if not unshare:
                    make_writable(ptep, orig)
                spin_unlock(pte_lockptr(table))
                return 0
            if PageAnon(old) and wp_can_reuse_anon_folio(compound_head(old), vma):
                old.anon_exclusive = True
                if not unshare:
                    make_writable(ptep, orig)
                spin_unlock(pte_lockptr(table))
                return 0
        elif PageAnon(old) and not PageKsm(old):
            if not trylock_page(old):
                get_page(old)
                spin_unlock(pte_lockptr(table))
                lock_page(old)
                spin_lock(pte_lockptr(table))
                if ptep.pte != orig:
                    unlock_page(old)
                    spin_unlock(pte_lockptr(table))
                    put_page(old)
                    return 0
                put_page(old)
            if reuse_swap_page(old):
                page_move_anon_rmap(old, vma)
                unlock_page(old)
                make_writable(ptep, orig)
                spin_unlock(pte_lockptr(table))
                return 0
            unlock_page(old)
        get_page(old)
    spin_unlock(pte_lockptr(table))
    return wp_page_copy(vma, addr, table, ptep, orig, unshare)


@modelled("mm/memory.c", versions="v5.19 .. v6.8", section="C.2", steps=5, omits="the drain of the LRU caches")
def wp_can_reuse_anon_folio(p: page, vma: vm_area_struct) -> bool:
    """Nobody else has a reference, so the page is ours to write; the PTL is held. A huge page is mapped by PTEs here."""
    if config.TRANSPARENT_HUGEPAGE and era.copies_last_part and p.compound:
        return era.reuses_parts and wp_can_reuse_large_anon_folio(p)
    if PageKsm(p) or atomic_read(p.refcount) > (1 if p.swapcache is None else 2):
        return False
    if not trylock_page(p):
        return False
    if p.swapcache is not None:
        try_to_free_swap(p)
    if PageKsm(p) or atomic_read(p.refcount) != 1:
        unlock_page(p)
        return False
    page_move_anon_rmap(p, vma)
    unlock_page(p)
    return True


@modelled(
    "mm/memory.c",
    function="__wp_can_reuse_large_anon_folio",
    versions="v6.15 .. v6.18",
    section="C.2",
    steps=3,
    omits="huge pages in the swap cache",
)
def wp_can_reuse_large_anon_folio(head: page) -> bool:
    """All references to a huge page are mappings of parts, all in one address space: the part that is written is ours."""
    if folio_mapcount(head) <= 1 or maybe_mapped_shared(head):
        return False
    if folio_mapcount(head) != atomic_read(head.refcount):
        return False
    return all_references_are_ours(head)


@atomic
def all_references_are_ours(head: page) -> bool:
    """The same once more, with the map counts locked (folio_lock_large_mapcount): they stand still, and no reference is below them."""
    return not maybe_mapped_shared(head) and folio_mapcount(head) == atomic_read(head.refcount)


@modelled("mm/memory.c", versions="v3.10 (in do_wp_page) .. v6.8", section="C.2", steps=4, omits="the mmu notifier")
def wp_page_copy(
    vma: vm_area_struct, addr: int, table: page_table, ptep: pte_slot, orig: pte_t, unshare: bool = False
) -> int:
    """Copy the page (a reference keeps it) and put the copy in its place, if the PTE is still the same.

    unshare: the copy is the process's own, and as read-only as the page was.
    """
    old = orig.page
    if anon_vma_prepare(vma) != 0 or out_of_memory():
        if not orig.special:
            put_page(old)
        return VM_FAULT_OOM
    new = alloc_page()
    if orig.special:
        new.data = 0
    else:
        new.data = old.data
    spin_lock(pte_lockptr(table))
    copied = ptep.pte == orig
    if copied:
        ptep_clear_flush(vma.vm_mm, addr, ptep)
        page_add_new_anon_rmap(new, vma, addr)
        present = pte_t(kind=PteKind.PRESENT, page=new, young=True)
        if unshare:
            set_pte(ptep, present._replace(uffd_wp=orig.uffd_wp))
        else:
            set_pte(ptep, present._replace(write=True, dirty=True))
        if not orig.special:
            # Only after the new PTE is visible: the old page may be reused the moment nobody maps it.
            page_remove_rmap(old)
    # The mapping's reference to the old page goes, or our only one to the new: v3.10 drops it under the lock.
    if era.folios:
        spin_unlock(pte_lockptr(table))
    if not copied:
        put_page(new)
    elif not orig.special:
        put_page(old)
    if not era.folios:
        spin_unlock(pte_lockptr(table))
    if not orig.special:
        if era.folios and copied:
            free_swap_cache(compound_head(old))
        put_page(old)
    return 0


def huge_range_fits(vma: vm_area_struct, addr: int) -> bool:
    """transhuge_vma_suitable: does the huge page around `addr` lie within a VMA that may have one?"""
    first = addr & -hpage_size()
    return vma.vm_flags & vm.HUGEPAGE != 0 and vma.vm_start <= first and first + hpage_size() <= vma.vm_end


@modelled(
    "mm/memory.c",
    function="__handle_mm_fault",
    versions="v3.10 .. v6.8",
    section="C.1",
    omits="NUMA hints, file pages",
)
def handle_mm_fault(vma: vm_area_struct, addr: int, write: bool, unshare: bool = False) -> int:
    """One fault; mmap_sem is held for reading. Returns 0 (the access is retried) or VM_FAULT_*.

    unshare: a read that wants a page which is nobody else's (FAULT_FLAG_UNSHARE, since v5.19).
    """
    pmd = pmd_offset(vma.vm_mm, addr).pmd
    if pmd.kind == PmdKind.NONE:
        if config.TRANSPARENT_HUGEPAGE and huge_range_fits(vma, addr):
            huge = do_huge_pmd_anonymous_page(vma, addr, write)
            if huge != VM_FAULT_FALLBACK:
                return huge
        return do_anonymous_page(vma, addr, write)
    if is_swap_pmd(pmd):
        pmd_migration_entry_wait(pmd_offset(vma.vm_mm, addr))
        return 0
    if pmd_trans_huge(pmd):
        return do_huge_pmd_fault(vma, addr, write, pmd, unshare)
    return handle_pte_fault(vma, addr, pmd.table, write, unshare)


@modelled("mm/memory.c", versions="v3.10 .. v6.8", section="C.1", omits="NUMA hints, file pages")
def handle_pte_fault(vma: vm_area_struct, addr: int, table: page_table, write: bool, unshare: bool = False) -> int:
    """A fault below a page table: what to do depends on the PTE, read without its lock and compared under it."""
    ptep = pte_offset(table, addr)
    pte = ptep.pte
    if pte.kind == PteKind.NONE:
        return do_anonymous_page(vma, addr, write)
    if pte.kind == PteKind.SWAP:
        return do_swap_page(vma, addr, table, ptep, pte, write)
    if pte.kind == PteKind.MIGRATION:
        migration_entry_wait(table, ptep)
        return 0
    if era.markers:
        if pte.kind == PteKind.GUARD_MARKER:
            return VM_FAULT_SIGSEGV
        if pte.kind == PteKind.POISON_MARKER:
            return VM_FAULT_HWPOISON
        if pte.kind == PteKind.WP_MARKER:
            if vma.vm_flags & vm.UFFD_WP:
                return do_anonymous_page(vma, addr, write, pte)
            clear_marker(table, ptep, pte)
            return 0
    if pte.kind != PteKind.PRESENT:
        return VM_FAULT_SIGBUS
    spin_lock(pte_lockptr(table))
    if ptep.pte != pte:
        spin_unlock(pte_lockptr(table))
        return 0
    if (write or unshare) and not pte.write:
        return do_wp_page(vma, addr, table, ptep, pte, unshare)
    if write:
        # ptep_set_access_flags of x86. A read leaves the entry to the hardware, which may be setting its bits.
        set_pte(ptep, pte._replace(young=True, dirty=True))
    spin_unlock(pte_lockptr(table))
    return 0


@modelled("mm/memory.c", function="pte_marker_clear", versions="v6.4 .. v6.18", section="C.1", steps=2)
def clear_marker(table: page_table, ptep: pte_slot, marker: pte_t) -> None:
    """The mark of a hole whose VMA is not write-protected any more goes; the access is tried again."""
    spin_lock(pte_lockptr(table))
    if ptep.pte == marker:
        set_pte(ptep, pte_t())
    spin_unlock(pte_lockptr(table))


@ghost
def tlb_remove_page(p: page) -> None:
    """mm/mmu_gather.c __tlb_remove_page: into the batch, which nobody else can see."""
    this_cpu().gather.append(p)


@modelled(
    "mm/mmu_gather.c",
    versions="v3.10 (mm/memory.c) .. v6.8",
    section="C.4",
    steps=3,
    omits="a batch that is full, which is flushed and freed before the zap goes on; the page tables in it",
    errs="missed bug",
)
def tlb_finish_mmu(mm: mm_struct, start: int, end: int) -> None:
    """Flush [start, end) (bytes) on every CPU, and only then free what was unmapped."""
    flush_tlb_range(mm, start, end)
    while len(this_cpu().gather) != 0:
        p = this_cpu().gather[0]
        this_cpu().gather.remove(p)
        free_page_and_swap_cache(p)


@modelled("mm/memory.c", versions="v3.10 .. v6.8", section="C.4", steps=5, omits="file pages; stops to let others run")
def zap_pte_range(mm: mm_struct, table: page_table, addr: int, end: int, keep_guards: bool) -> None:
    """Clear the entries of one page table, and gather the pages that they held, under one hold of its lock."""
    spin_lock(pte_lockptr(table))
    if config.BATCHED_UNMAP:
        flush_tlb_batched_pending(mm)
    for number in range(addr >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        ptep = pte_offset(table, number << config.PAGE_SHIFT)
        pte = ptep.pte
        if pte.kind == PteKind.NONE:
            continue
        if era.markers and keep_guards and pte.kind == PteKind.GUARD_MARKER:
            continue
        if pte.kind != PteKind.PRESENT:
            # A migration entry is only cleared: whoever migrates finds no entry to put right.
            if pte.kind == PteKind.SWAP:
                free_swap_and_cache(pte.slot)
            set_pte(ptep, pte_t())
            continue
        # The exchange again: the hardware may have set bits since, and another page can't come while the lock is ours.
        pte = ptep_get_and_clear(ptep)
        if not pte.special:
            page_remove_rmap(pte.page)
            tlb_remove_page(pte.page)
    spin_unlock(pte_lockptr(table))


@modelled(
    "mm/memory.c",
    function="zap_pmd_range",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=4,
)
def zap_page_range(mm: mm_struct, vma: vm_area_struct, start: int, end: int, keep_guards: bool = False) -> None:
    """Every entry of [start, end) that the VMA covers; a huge mapping that only partly lies there is split first.

    The pages are gathered: tlb_finish_mmu frees them.

    keep_guards: the contents go, the mapping stays, and with it its guard markers.
    """
    last = min(end, vma.vm_end)
    done = 0
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        addr = number << config.PAGE_SHIFT
        # A huge page may have taken us further already.
        if number < done or addr < vma.vm_start or addr >= last:
            continue
        pmdp = pmd_offset(mm, addr)
        while True:
            pmd = pmdp.pmd
            if pmd_is_huge(pmd):
                if addr & (hpage_size() - 1) or addr + hpage_size() > last:
                    if era.pte_mapped_huge:
                        split_huge_pmd(vma, pmdp)
                    else:
                        split_huge_page_pmd(pmdp, vma)
                else:
                    zapped, p = zap_huge_pmd(vma, pmdp, addr)
                    if zapped:
                        if p is not None:
                            tlb_remove_page(p)
                        done = number + hpage_nr()
                        break
                if era.folios:
                    continue
                # v3.10: what became huge again meanwhile is somebody else's later fault, and stays.
                pmd = pmdp.pmd
            if pmd.kind == PmdKind.TABLE:
                border = min(last, (addr & -hpage_size()) + hpage_size())
                zap_pte_range(mm, pmd.table, addr, border, keep_guards)
                done = border >> config.PAGE_SHIFT
            break


@modelled(
    "mm/memory.c",
    function="free_pgd_range",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=2,
    omits="the levels above; the mmu_gather batch",
    errs="missed bug",
)
def free_pgd_range(mm: mm_struct, start: int, end: int) -> None:
    """Free the page tables of [start, end) that no VMA needs any more; the walkers of rmap can't come here (C.4).

    No lock protects the entry: mmap_sem keeps faults out, unlink_anon_vmas the walkers, the flush's IPI gup_fast.
    """
    for pmdp in mm.pmd:
        first = pmdp.first_page << config.PAGE_SHIFT
        if first < end and first + hpage_size() > start and not vma_in_range(mm, first, first + hpage_size()):
            pmd = pmdp.pmd
            if pmd.kind == PmdKind.TABLE:
                set_pmd(pmdp, pmd_t())
                flush_tlb_pmd(mm, first)
                pte_free(pmd.table)


def vma_in_range(mm: mm_struct, start: int, end: int) -> bool:
    """Does a VMA of the address space still lie, in part, in [start, end)?"""
    for vma in mm.mmap:
        if vma.vm_start < end and vma.vm_end > start:
            return True
    return False
