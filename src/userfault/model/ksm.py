"""mm/ksm.c: two equal pages become one, write-protected."""

from __future__ import annotations

from .anon_vma import get_anon_vma, put_anon_vma
from .catalogue import modelled
from .era import era
from .errno import EAGAIN
from .ghost import walk_put_back
from .huge_split import split_folio
from .lang import NULL, atomic, exhausted, raw, reached
from .locks import down_read, lock_page, spin_lock, spin_unlock, trylock_page, unlock_page, up_read
from .machine import config, machine
from .memory import wp_page_copy
from .mm_types import PmdKind, PteKind, anon_vma, mm_struct, page, pte_t, rmap_item, stable_node, vm, vm_area_struct
from .mmap import find_vma
from .page_flags import PageAnon, PageKsm, page_mapped
from .pgtable import pmd_lockptr, pmd_offset, pte_lockptr, pte_offset, ptep_clear_flush, set_pte
from .rmap import page_check_address, page_mapcount_inc, page_remove_rmap
from .slab import atomic_read, compound_head, get_page, nth_page, put_page
from .swap import try_to_free_swap


@atomic
@raw
def alloc_stable_node(p: page) -> stable_node:
    """A free node, made the page's."""
    for each in machine.stable_nodes:
        if each.page is None:
            each.page = p
            return each
    exhausted("stable_node")
    made = new_stable_node()
    made.page = p
    return made


def new_stable_node() -> stable_node:
    made = stable_node()
    machine.stable_nodes.append(made)
    return made


@atomic
@raw
def alloc_rmap_item(mm: mm_struct, addr: int, av: anon_vma) -> rmap_item:
    """The place's item, which holds a reference to the anon_vma of its VMA."""
    for each in machine.rmap_items:
        if not each.allocated:
            return fill_rmap_item(each, mm, addr, av)
    exhausted("rmap_item")
    made = new_rmap_item()
    return fill_rmap_item(made, mm, addr, av)


def new_rmap_item() -> rmap_item:
    made = rmap_item()
    machine.rmap_items.append(made)
    return made


@raw
def fill_rmap_item(item: rmap_item, mm: mm_struct, addr: int, av: anon_vma) -> rmap_item:
    item.allocated = True
    item.mm = mm
    item.address = addr
    item.anon_vma = av
    return item


@modelled("mm/ksm.c", versions="v3.10 .. v6.8", section="C.17", steps=3, omits="the limit on a node's items (v4.13)")
def stable_tree_append(kpage: page, item: rmap_item) -> None:
    """The place is found by walks from now on; the page's lock keeps them out. mmap_sem is not held any more."""
    lock_page(kpage)
    node = kpage.mapping
    if isinstance(node, stable_node):
        node.hlist.append(item)
    unlock_page(kpage)


def append_place(node: stable_node, mm: mm_struct, addr: int, av: anon_vma) -> None:
    """stable_tree_append in a sequential run: once, whoever found that the place has the page."""
    if not any(item.mm is mm and item.address == addr for item in node.hlist):
        get_anon_vma(av)
        node.hlist.append(alloc_rmap_item(mm, addr, av))


def remove_place(node: stable_node, mm: mm_struct, addr: int) -> None:
    """remove_rmap_item_from_tree in a sequential run: walks don't come to the place any more."""
    for item in [each for each in node.hlist if each.mm is mm and each.address == addr]:
        node.hlist.remove(item)
        put_anon_vma(item.anon_vma)
        item.allocated = False


def forget_stable_node(p: page) -> None:
    """folio_set_stable_node(NULL), in a sequential run: a KSM page of which nobody knows where it is mapped. Its node is freed."""
    node = p.mapping
    assert isinstance(node, stable_node)
    for item in list(node.hlist):
        remove_place(node, item.mm, item.address)
    node.page = NULL
    p.mapping = stable_node()


@modelled("mm/ksm.c", versions="v3.10 .. v6.8", section="C.17", steps=6, omits="the mmu notifier")
def write_protect_page(vma: vm_area_struct, p: page, addr: int) -> bool:
    """Make the one mapping read-only, if nobody else has a reference; the page is locked."""
    ptep = page_check_address(p, vma, addr, False)
    if ptep is None:
        return False
    done = True
    pte = ptep.pte
    # Read-only and clean is not enough since v5.19: the page must stop being exclusive.
    if pte.write or pte.dirty or (era.anon_exclusive and p.anon_exclusive):
        entry = ptep_clear_flush(vma.vm_mm, addr, ptep)
        extra = 0 if p.swapcache is None else 1
        if atomic_read(p.mapcount) + 1 + extra != atomic_read(p.refcount) or (
            era.anon_exclusive and p.anon_exclusive and p.pincount > 0
        ):
            set_pte(ptep, entry)
            walk_put_back(p)
            done = False
        else:
            if era.anon_exclusive:
                p.anon_exclusive = False
            if entry.dirty:
                p.dirty = True
            set_pte(ptep, entry._replace(write=False, dirty=False))
            walk_put_back(p)
    spin_unlock(pte_lockptr(ptep.table))
    return done


@modelled("mm/ksm.c", versions="v3.10 .. v6.18", section="C.17", steps=5, omits="the zero page (v6.6)")
def replace_page(vma: vm_area_struct, p: page, kpage: page, addr: int, orig: pte_t) -> bool:
    """Map the KSM page where the other one was."""
    pmd = pmd_offset(vma.vm_mm, addr).pmd
    if pmd.kind != PmdKind.TABLE:
        return False
    ptep = pte_offset(pmd.table, addr)
    spin_lock(pte_lockptr(pmd.table))
    if ptep.pte != orig:
        spin_unlock(pte_lockptr(pmd.table))
        return False
    get_page(kpage)
    page_mapcount_inc(kpage)
    ptep_clear_flush(vma.vm_mm, addr, ptep)
    set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=kpage, protnone=orig.protnone))
    page_remove_rmap(p)
    if not page_mapped(p):
        try_to_free_swap(p)
    put_page(p)
    spin_unlock(pte_lockptr(pmd.table))
    return True


def follow_page(mm: mm_struct, addr: int) -> page | None:
    """A reference to the anonymous page at an address, or to the huge page that it is a part of."""
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and pmd.kind == PmdKind.HUGE:
        spin_lock(pmd_lockptr(pmdp))
        pmd = pmdp.pmd
        if pmd.kind == PmdKind.HUGE:
            p = nth_page(pmd.page, (addr >> config.PAGE_SHIFT) - pmdp.first_page)
            get_page(p)
            spin_unlock(pmd_lockptr(pmdp))
            return p
        spin_unlock(pmd_lockptr(pmdp))
    if pmd.kind != PmdKind.TABLE:
        return None
    ptep = pte_offset(pmd.table, addr)
    spin_lock(pte_lockptr(pmd.table))
    pte = ptep.pte
    if pte.kind != PteKind.PRESENT or pte.special or not PageAnon(pte.page):
        spin_unlock(pte_lockptr(pmd.table))
        return None
    get_page(pte.page)
    spin_unlock(pte_lockptr(pmd.table))
    return pte.page


def lock_small(p: page) -> bool:
    """Lock a page, at once or not at all. A huge page that it is a part of is split first, if nobody has a reference but the caller."""
    head = compound_head(p)
    if not trylock_page(head):
        return False
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and head.compound:
        if split_folio(head, p) != 0:
            unlock_page(head)
            return False
        reached("a huge page was split to be merged in part")
    return True


@modelled(
    "mm/ksm.c",
    function="try_to_merge_one_page",
    versions="v3.10 .. v6.18",
    section="C.17",
    steps=5,
    omits="the trees and checksums; the moment in which the page is KSM but has no node yet; items are never removed while others run; "
    "VM_MERGEABLE",
    errs="missed bug",
)
def ksm_make_stable(mm: mm_struct, addr: int) -> int:
    """Turn the page at an address into a KSM page: write-protected, its mapping a stable node. 0 or -EAGAIN."""
    down_read(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None:
        up_read(mm.mmap_sem)
        return -EAGAIN
    p = follow_page(mm, addr)
    if p is None:
        up_read(mm.mmap_sem)
        return -EAGAIN
    if PageKsm(p) or not lock_small(p):
        put_page(p)
        up_read(mm.mmap_sem)
        return -EAGAIN
    item: rmap_item | None = None
    if write_protect_page(vma, p, addr):
        p.mapping = alloc_stable_node(p)
        if era.folios:
            p.dirty = True
        get_anon_vma(vma.anon_vma)
        item = alloc_rmap_item(mm, addr, vma.anon_vma)
        reached("a page became a KSM page")
    unlock_page(p)
    up_read(mm.mmap_sem)
    if item is not None:
        stable_tree_append(p, item)
    put_page(p)
    return 0 if item is not None else -EAGAIN


@modelled("mm/ksm.c", function="try_to_merge_with_ksm_page", versions="v3.10 .. v6.18", section="C.17", steps=4)
def ksm_merge(mm: mm_struct, addr: int, kpage: page) -> int:
    """Merge the page at an address with an equal KSM page. 0, or -EAGAIN."""
    down_read(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None:
        up_read(mm.mmap_sem)
        return -EAGAIN
    p = follow_page(mm, addr)
    if p is None:
        up_read(mm.mmap_sem)
        return -EAGAIN
    item: rmap_item | None = None
    if p is not kpage and lock_small(p):
        if write_protect_page(vma, p, addr) and p.data == kpage.data and PageKsm(kpage):
            pmd = pmd_offset(mm, addr).pmd
            if pmd.kind == PmdKind.TABLE:
                orig = pte_offset(pmd.table, addr).pte
                if orig.kind == PteKind.PRESENT and orig.page is p and not orig.write:
                    if replace_page(vma, p, kpage, addr, orig):
                        get_anon_vma(vma.anon_vma)
                        item = alloc_rmap_item(mm, addr, vma.anon_vma)
        unlock_page(p)
    put_page(p)
    up_read(mm.mmap_sem)
    if item is None:
        return -EAGAIN
    stable_tree_append(kpage, item)
    return 0


@modelled(
    "mm/ksm.c, mm/memory.c",
    function="break_ksm, do_wp_page (FAULT_FLAG_UNSHARE)",
    versions="v6.2 .. v6.18",
    section="C.17",
    omits="the loop around a fault that backs out",
    steps=4,
)
def break_ksm(mm: mm_struct, addr: int) -> None:
    """If a KSM page is mapped at an address, map a copy there, read-only and exclusive; mmap_sem is held."""
    vma = find_vma(mm, addr)
    pmd = pmd_offset(mm, addr).pmd
    if vma is None or pmd.kind != PmdKind.TABLE:
        return
    ptep = pte_offset(pmd.table, addr)
    orig = ptep.pte
    if orig.kind != PteKind.PRESENT or orig.special or not PageKsm(orig.page):
        return
    get_page(orig.page)
    if wp_page_copy(vma, addr, pmd.table, ptep, orig) == 0:
        spin_lock(pte_lockptr(pmd.table))
        # Nobody wrote: what a write would wait for is still to come.
        set_pte(ptep, ptep.pte._replace(write=False, dirty=False, uffd_wp=orig.uffd_wp, protnone=orig.protnone))
        spin_unlock(pte_lockptr(pmd.table))


@modelled("mm/ksm.c", versions="v6.2 .. v6.18", section="C.17", omits="signals")
def unmerge_ksm_pages(vma: vm_area_struct, start: int, end: int) -> None:
    """Map copies in place of the KSM pages of a range, if it may have any."""
    if vma.vm_flags & vm.MERGEABLE and vma.anon_vma is not None:
        for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
            break_ksm(vma.vm_mm, number << config.PAGE_SHIFT)
