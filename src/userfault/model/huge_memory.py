"""mm/huge_memory.c: huge pages appear, are written, forked and zapped. See huge_split.py and khugepaged.py for the rest.

A huge page is its head: lock, counts, mapping and index live there. Its tails are the pages after it.
"""

from __future__ import annotations

from .anon_vma import anon_vma_prepare
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, ENOMEM
from .events import is_watched
from .huge_split import split_huge_page, split_huge_pmd, split_huge_zero_page_pmd, wait_split_huge_page
from .lang import NULL, atomic, check, exhausted, ghost, raw, reached
from .locks import lock_page, spin_lock, spin_lock_nested, spin_unlock, trylock_page, unlock_page
from .machine import config, machine, new_page_table
from .mm_types import (
    VM_FAULT_FALLBACK,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_USERFAULT,
    PmdKind,
    PteKind,
    mm_struct,
    page,
    page_table,
    pmd_slot,
    pmd_t,
    pte_t,
    vm,
    vm_area_struct,
)
from .page_flags import folio_mapcount
from .pgtable import (
    flush_tlb_pmd,
    is_swap_pmd,
    pmd_lockptr,
    pmd_offset,
    pmd_trans_splitting,
    pte_offset,
    set_pmd,
    set_pte,
)
from .rmap import (
    huge_mapcount_dec,
    huge_mapcount_inc,
    hugepage_add_new_anon_rmap,
    page_add_new_anon_rmap,
    page_move_anon_rmap,
)
from .slab import (
    alloc_hugepage,
    alloc_page,
    atomic_read,
    get_page,
    hpage_nr,
    hpage_size,
    nth_page,
    out_of_memory,
    put_page,
)


@ghost
def huge_fault_is_delivered(pmdp: pmd_slot) -> None:
    """I12 for a huge fault."""
    check(pmdp.pmd.kind == PmdKind.NONE, "missing_fault_is_missing", "a fault was delivered for a page that is there")


@modelled(
    "mm/huge_memory.c",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=8,
    omits="memcg; the count of users of the huge zero page",
    errs="missed bug",
)
def do_huge_pmd_anonymous_page(vma: vm_area_struct, addr: int, write: bool = True) -> int:
    """A touch of a none PMD in a VMA that may hold a huge page. 0: done or to be retried; or VM_FAULT_* (R25)."""
    mm = vma.vm_mm
    pmdp = pmd_offset(mm, addr)
    haddr = addr & -hpage_size()
    if anon_vma_prepare(vma) != 0:
        return VM_FAULT_OOM
    p: page | None = None
    if write:
        if out_of_memory():
            return VM_FAULT_FALLBACK
        p = alloc_hugepage()
        for at in range(hpage_nr()):
            nth_page(p, at).data = 0
    if out_of_memory():
        if p is not None:
            put_page(p)
        return VM_FAULT_OOM
    table = pgtable_alloc(mm)
    spin_lock(pmd_lockptr(pmdp))
    missing = 0
    if pmdp.pmd.kind == PmdKind.NONE and vma.vm_flags & vm.USERFAULT:
        huge_fault_is_delivered(pmdp)
        missing = VM_FAULT_USERFAULT if era.userfaultfd else VM_FAULT_SIGBUS
    if pmdp.pmd.kind != PmdKind.NONE or missing != 0:
        spin_unlock(pmd_lockptr(pmdp))
        pgtable_free(table)
        if p is not None:
            put_page(p)
        return missing
    pmdp.deposited = table
    if p is None:
        set_pmd(pmdp, pmd_t(kind=PmdKind.HUGE_ZERO, young=True))
        reached("the huge zero page was mapped")
    else:
        hugepage_add_new_anon_rmap(p, vma, haddr)
        set_pmd(pmdp, mk_huge_pmd(p, vma))
    spin_unlock(pmd_lockptr(pmdp))
    return 0


def mk_huge_pmd(p: page, vma: vm_area_struct) -> pmd_t:
    return pmd_t(kind=PmdKind.HUGE, page=p, write=(vma.vm_flags & vm.WRITE) != 0, dirty=True, young=True)


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
def pgtable_free(table: page_table) -> None:
    """A table that was deposited, or never was: it is empty."""
    for ptep in table.pte:
        check(ptep.pte.kind == PteKind.NONE, "bad_free", "a page table was freed while an entry is in it")
    table.allocated = False


def do_huge_pmd_fault(vma: vm_area_struct, addr: int, write: bool, pmd: pmd_t, unshare: bool = False) -> int:
    """The huge part of __handle_mm_fault: an entry that was found huge without its lock."""
    pmdp = pmd_offset(vma.vm_mm, addr)
    if pmd_trans_splitting(pmd):
        return 0
    if (write or unshare) and not pmd.write:
        if era.markers and not unshare and pmd.uffd_wp and vma.vm_flags & vm.UFFD_WP:
            if not vma.ctx.wp_async:
                return VM_FAULT_USERFAULT
            split_huge_pmd(vma, pmdp)
            return 0
        if era.pte_mapped_huge:
            return do_huge_pmd_wp_page(vma, pmdp, addr, pmd, unshare)
        return do_huge_pmd_wp_page_v3_10(vma, pmdp, addr, pmd)
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd == pmd:
        set_pmd(pmdp, pmd._replace(young=True, dirty=pmd.dirty or write))
    spin_unlock(pmd_lockptr(pmdp))
    return 0


@modelled("mm/huge_memory.c", versions="v6.13 .. v6.18", section="C.2", steps=4)
def do_huge_zero_wp_pmd(vma: vm_area_struct, pmdp: pmd_slot, addr: int, orig: pmd_t) -> int:
    """A write to the huge zero page: a huge page takes its place. Returns 0, VM_FAULT_OOM or VM_FAULT_FALLBACK."""
    if anon_vma_prepare(vma) != 0:
        return VM_FAULT_OOM
    if out_of_memory():
        return VM_FAULT_FALLBACK
    p = alloc_hugepage()
    for at in range(hpage_nr()):
        nth_page(p, at).data = 0
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd != orig:
        spin_unlock(pmd_lockptr(pmdp))
        put_page(p)
        return 0
    set_pmd(pmdp, pmd_t())
    flush_tlb_pmd(vma.vm_mm, addr & -hpage_size())
    hugepage_add_new_anon_rmap(p, vma, addr & -hpage_size())
    set_pmd(pmdp, mk_huge_pmd(p, vma))
    spin_unlock(pmd_lockptr(pmdp))
    return 0


def make_pmd_writable(pmdp: pmd_slot, pmd: pmd_t) -> None:
    set_pmd(pmdp, pmd._replace(write=True, dirty=True, young=True))


@modelled(
    "mm/huge_memory.c",
    versions="v5.19 .. v6.8",
    section="C.2",
    steps=9,
    omits="huge pages in the swap cache; the fallback to a fault on the PTE is the next try of the access",
)
def do_huge_pmd_wp_page(vma: vm_area_struct, pmdp: pmd_slot, addr: int, orig: pmd_t, unshare: bool = False) -> int:
    """A write to a read-only huge entry: reuse the page if it is ours alone, or split the mapping. unshare: it stays read-only."""
    if orig.kind == PmdKind.HUGE_ZERO:
        if era.huge_zero_page_is_replaced:
            replaced = do_huge_zero_wp_pmd(vma, pmdp, addr, orig)
            if replaced != VM_FAULT_FALLBACK:
                return replaced
        split_huge_pmd(vma, pmdp)
        return 0
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd != orig or orig.kind != PmdKind.HUGE:
        spin_unlock(pmd_lockptr(pmdp))
        return 0
    p = orig.page
    if p.anon_exclusive:
        if not unshare:
            make_pmd_writable(pmdp, orig)
        spin_unlock(pmd_lockptr(pmdp))
        return 0
    if not trylock_page(p):
        get_page(p)
        spin_unlock(pmd_lockptr(pmdp))
        lock_page(p)
        spin_lock(pmd_lockptr(pmdp))
        if pmdp.pmd != orig:
            spin_unlock(pmd_lockptr(pmdp))
            unlock_page(p)
            put_page(p)
            return 0
        put_page(p)
    if p.anon_exclusive or atomic_read(p.refcount) == 1:
        if not p.anon_exclusive:
            page_move_anon_rmap(p, vma)
            p.anon_exclusive = True
        unlock_page(p)
        if not unshare:
            make_pmd_writable(pmdp, orig)
        spin_unlock(pmd_lockptr(pmdp))
        return 0
    unlock_page(p)
    spin_unlock(pmd_lockptr(pmdp))
    split_huge_pmd(vma, pmdp)
    return 0


@modelled(
    "mm/huge_memory.c",
    function="do_huge_pmd_wp_page",
    versions="v3.10 .. v4.4",
    section="C.2",
    steps=9,
    omits="memcg",
)
def do_huge_pmd_wp_page_v3_10(vma: vm_area_struct, pmdp: pmd_slot, addr: int, orig: pmd_t) -> int:
    """A write to a read-only huge entry: reuse the page if it is mapped once, or copy it, whole or in small pages."""
    p = orig.page
    if orig.kind == PmdKind.HUGE:
        spin_lock(pmd_lockptr(pmdp))
        if pmdp.pmd != orig:
            spin_unlock(pmd_lockptr(pmdp))
            return 0
        if folio_mapcount(p) == 1:
            make_pmd_writable(pmdp, orig)
            spin_unlock(pmd_lockptr(pmdp))
            return 0
        get_page(p)
        spin_unlock(pmd_lockptr(pmdp))
    if not vma.vm_flags & vm.HUGEPAGE or out_of_memory():
        if orig.kind == PmdKind.HUGE_ZERO:
            return do_huge_pmd_wp_zero_page_fallback(vma, pmdp, addr, orig)
        return do_huge_pmd_wp_page_fallback(vma, pmdp, addr, orig)
    haddr = addr & -hpage_size()
    new = alloc_hugepage()
    for at in range(hpage_nr()):
        if orig.kind == PmdKind.HUGE:
            nth_page(new, at).data = nth_page(p, at).data
        else:
            nth_page(new, at).data = 0
    spin_lock(pmd_lockptr(pmdp))
    if orig.kind == PmdKind.HUGE:
        put_page(p)
    if pmdp.pmd != orig:
        spin_unlock(pmd_lockptr(pmdp))
        put_page(new)
        return 0
    set_pmd(pmdp, pmd_t())
    flush_tlb_pmd(vma.vm_mm, haddr)
    hugepage_add_new_anon_rmap(new, vma, haddr)
    set_pmd(pmdp, mk_huge_pmd(new, vma))
    if orig.kind == PmdKind.HUGE:
        huge_mapcount_dec(p)
        put_page(p)
    spin_unlock(pmd_lockptr(pmdp))
    return 0


@modelled(
    "mm/huge_memory.c",
    versions="v3.10 .. v4.4",
    section="C.2",
    steps=7,
    omits="memcg; one failure stands for any copy's",
)
def do_huge_pmd_wp_page_fallback(vma: vm_area_struct, pmdp: pmd_slot, addr: int, orig: pmd_t) -> int:
    """Small copies of all of a huge page, mapped by the deposited table. The caller's reference to the page goes."""
    haddr = addr & -hpage_size()
    p = orig.page
    if out_of_memory():
        # One small page may be had where all of them can't.
        split_huge_page(p)
        put_page(p)
        return VM_FAULT_OOM
    copies = pgtable_alloc(vma.vm_mm)
    for at in range(hpage_nr()):
        new = alloc_page()
        new.data = nth_page(p, at).data
        # The kernel keeps an array of the copies; here it is an array of entries that nobody sees.
        set_pte(copies.pte[at], pte_t(page=new))
    spin_lock(pmd_lockptr(pmdp))
    same = pmdp.pmd == orig
    if same:
        set_pmd(pmdp, pmd_t())
        flush_tlb_pmd(vma.vm_mm, haddr)
        table = pmdp.deposited
        pmdp.deposited = NULL
        for at in range(hpage_nr()):
            new = copies.pte[at].pte.page
            page_add_new_anon_rmap(new, vma, haddr + (at << config.PAGE_SHIFT))
            writable = (vma.vm_flags & vm.WRITE) != 0
            set_pte(table.pte[at], pte_t(kind=PteKind.PRESENT, page=new, write=writable, dirty=True, young=True))
        set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
        huge_mapcount_dec(p)
    spin_unlock(pmd_lockptr(pmdp))
    for at in range(hpage_nr()):
        if not same:
            put_page(copies.pte[at].pte.page)
        set_pte(copies.pte[at], pte_t())
    pgtable_free(copies)
    put_page(p)
    if same:
        put_page(p)
    return 0


@modelled("mm/huge_memory.c", versions="v3.10 .. v4.4", section="C.2", steps=6, omits="memcg")
def do_huge_pmd_wp_zero_page_fallback(vma: vm_area_struct, pmdp: pmd_slot, addr: int, orig: pmd_t) -> int:
    """A zeroed page where the write goes, the zero page for the rest."""
    haddr = addr & -hpage_size()
    if out_of_memory():
        return VM_FAULT_OOM
    new = alloc_page()
    new.data = 0
    spin_lock(pmd_lockptr(pmdp))
    if pmdp.pmd != orig:
        spin_unlock(pmd_lockptr(pmdp))
        put_page(new)
        return 0
    table = split_huge_zero_page_pmd(vma, pmdp, haddr)
    page_add_new_anon_rmap(new, vma, addr & -(1 << config.PAGE_SHIFT))
    set_pte(
        pte_offset(table, addr),
        pte_t(kind=PteKind.PRESENT, page=new, write=(vma.vm_flags & vm.WRITE) != 0, dirty=True, young=True),
    )
    set_pmd(pmdp, pmd_t(kind=PmdKind.TABLE, table=table))
    spin_unlock(pmd_lockptr(pmdp))
    return 0


@modelled("mm/huge_memory.c", versions="v3.10 .. v6.8", section="C.4", steps=6, omits="file pages")
def zap_huge_pmd(vma: vm_area_struct, pmdp: pmd_slot, addr: int) -> tuple[bool, page]:
    """Clear a huge entry that the range covers; one that is being split is waited for.

    Returns (was it huge?, the page that the caller frees after the flush; NULL for the huge zero page and under migration).
    """
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    if pmd.kind != PmdKind.HUGE and pmd.kind != PmdKind.HUGE_ZERO and not is_swap_pmd(pmd):
        spin_unlock(pmd_lockptr(pmdp))
        if pmd.kind == PmdKind.SPLITTING:
            wait_split_huge_page(vma)
        return False, NULL
    table = pmdp.deposited
    pmdp.deposited = NULL
    set_pmd(pmdp, pmd_t())
    if pmd.kind == PmdKind.HUGE:
        huge_mapcount_dec(pmd.page)
    spin_unlock(pmd_lockptr(pmdp))
    pgtable_free(table)
    # A migration entry holds no reference: whoever migrates finds no entry to put right.
    return True, pmd.page if not is_swap_pmd(pmd) else NULL


@modelled("mm/huge_memory.c", versions="v3.10 .. v6.18", section="C.3", steps=6)
def copy_huge_pmd(mm: mm_struct, child: mm_struct, vma: vm_area_struct, new_vma: vm_area_struct, addr: int) -> int:
    """A huge entry, shared read-only. 0; -EAGAIN: it changed under us, look again; -ENOMEM."""
    if out_of_memory():
        return -ENOMEM
    src, dst = pmd_offset(mm, addr), pmd_offset(child, addr)
    table = pgtable_alloc(child)
    spin_lock(pmd_lockptr(dst))
    spin_lock_nested(pmd_lockptr(src))
    pmd = src.pmd
    pinned = False
    copied = pmd.kind == PmdKind.HUGE or pmd.kind == PmdKind.HUGE_ZERO or is_swap_pmd(pmd)
    if pmd.kind == PmdKind.HUGE:
        get_page(pmd.page)
        if era.anon_exclusive:
            # It may be pinned: the parent keeps it, and the child gets small copies.
            pinned = pmd.page.pincount > 0 and pmd.page.anon_exclusive
            if pinned:
                put_page(pmd.page)
                copied = False
            else:
                pmd.page.anon_exclusive = False
        if copied:
            huge_mapcount_inc(pmd.page)
    if is_swap_pmd(pmd):
        # Nobody's alone when it comes back: the same entry in both, so nothing else is to be undone.
        pmd = pmd._replace(write=False, exclusive=False)
        set_pmd(src, pmd)
        dst.deposited = table
        set_pmd(dst, pmd._replace(uffd_wp=pmd.uffd_wp and is_watched(new_vma)))
    elif copied:
        set_pmd(src, pmd._replace(write=False))
        dst.deposited = table
        set_pmd(dst, pmd._replace(write=False, young=False, uffd_wp=pmd.uffd_wp and is_watched(new_vma)))
    spin_unlock(pmd_lockptr(src))
    spin_unlock(pmd_lockptr(dst))
    if not copied:
        pgtable_free(table)
    if pinned:
        split_huge_pmd(vma, src)
    if pmd.kind == PmdKind.SPLITTING:
        wait_split_huge_page(vma)
    return 0 if copied else -EAGAIN
