"""mm/fremap.c: remap_anon_pages (the seed's series, 2013) and the remap_file_pages that it wants to be unlike."""

from __future__ import annotations

from .catalogue import modelled
from .lang import BUG_ON
from .locks import lock_page, spin_lock, spin_lock_nested, spin_unlock, unlock_page
from .mm_types import PteKind, page, page_table, pte_slot, pte_t, vm, vm_area_struct
from .pgtable import linear_page_index, pte_lockptr, pte_offset, ptep_clear_flush, set_pte
from .rmap import PageAnon, anon_vma_lock_write, anon_vma_unlock_write, page_get_anon_vma, put_anon_vma
from .slab import atomic_read, get_page, put_page, put_page_testzero

EAGAIN, EBUSY, EEXIST, EFAULT, EINTR, EINVAL, ENOENT, ENOMEM = 11, 16, 17, 14, 4, 22, 2, 12


def double_pt_lock(a: page_table, b: page_table) -> None:
    """Both page-table locks, by address, once if they are the same."""
    if a is b:
        spin_lock(pte_lockptr(a))
    elif lock_address(a) < lock_address(b):
        spin_lock(pte_lockptr(a))
        spin_lock_nested(pte_lockptr(b))
    else:
        spin_lock(pte_lockptr(b))
        spin_lock_nested(pte_lockptr(a))


def double_pt_unlock(a: page_table, b: page_table) -> None:
    spin_unlock(pte_lockptr(a))
    if a is not b:
        spin_unlock(pte_lockptr(b))


def lock_address(table: page_table) -> int:
    """Where a lock lies in memory: any fixed order of the tables does."""
    return table.number


@modelled(
    "mm/fremap.c",
    versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 12/17)",
    section="C.11",
    steps=17,
    omits="the mmu notifier; soft-dirty",
)
def remap_anon_pages_pte(
    src_vma: vm_area_struct,
    dst_vma: vm_area_struct,
    src_addr: int,
    dst_addr: int,
    src_ptep: pte_slot,
    dst_ptep: pte_slot,
    src_pte: pte_t,
    dst_pte: pte_t,
) -> int:
    """Move one present small page. `src_pte` and `dst_pte` are what the caller saw under each PTL."""
    src, dst = src_ptep.table, dst_ptep.table
    spin_lock(pte_lockptr(src))
    if src_ptep.pte != src_pte:
        spin_unlock(pte_lockptr(src))
        return -EAGAIN
    p = src_pte.page
    if src_pte.special or not PageAnon(p) or atomic_read(p.mapcount) != 1:
        spin_unlock(pte_lockptr(src))
        return -EBUSY
    get_page(p)
    spin_unlock(pte_lockptr(src))
    lock_page(p)
    src_anon_vma = page_get_anon_vma(p)
    if src_anon_vma is None:
        # The page was unmapped by somebody else.
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    anon_vma_lock_write(src_anon_vma)
    double_pt_lock(dst, src)
    if src_ptep.pte != src_pte or dst_ptep.pte != dst_pte or atomic_read(p.mapcount) != 1:
        double_pt_unlock(dst, src)
        anon_vma_unlock_write(src_anon_vma)
        put_anon_vma(src_anon_vma)
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    # The source PTE still holds a reference, and the page is locked: ours is not needed any more.
    put_page_testzero(p)
    p.mapping = dst_vma.anon_vma
    p.index = linear_page_index(dst_vma, dst_addr)
    old = ptep_clear_flush(src_vma.vm_mm, src_addr, src_ptep)
    BUG_ON(not pte_same(old, src_pte))
    set_pte(dst_ptep, mk_pte(p, dst_vma))
    double_pt_unlock(dst, src)
    anon_vma_unlock_write(src_anon_vma)
    put_anon_vma(src_anon_vma)
    unlock_page(p)
    return 0


def pte_same(a: pte_t, b: pte_t) -> bool:
    """The same entry, but for bits that the hardware sets by itself."""
    return a._replace(young=False, dirty=False) == b._replace(young=False, dirty=False)


def mk_pte(p: page, vma: vm_area_struct) -> pte_t:
    return pte_t(kind=PteKind.PRESENT, page=p, dirty=True, write=(vma.vm_flags & vm.WRITE) != 0)


@modelled(
    "mm/fremap.c",
    versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 12/17)",
    section="C.11",
    steps=2,
    omits="userland holes (see remap_anon_pages)",
)
def remap_one_small(
    src_vma: vm_area_struct,
    dst_vma: vm_area_struct,
    src_addr: int,
    dst_addr: int,
    src: page_table,
    dst: page_table,
) -> int:
    """Look at both PTEs, each under its own lock, and move what is there."""
    src_ptep = pte_offset(src, src_addr)
    dst_ptep = pte_offset(dst, dst_addr)
    spin_lock(pte_lockptr(dst))
    dst_pte = dst_ptep.pte
    spin_unlock(pte_lockptr(dst))
    if dst_pte.kind != PteKind.NONE:
        return -EEXIST
    spin_lock(pte_lockptr(src))
    src_pte = src_ptep.pte
    spin_unlock(pte_lockptr(src))
    if src_pte.kind == PteKind.NONE:
        return -ENOENT
    return remap_anon_pages_pte(src_vma, dst_vma, src_addr, dst_addr, src_ptep, dst_ptep, src_pte, dst_pte)
