"""mm/fremap.c: remap_anon_pages (the seed's series, 2013) and the remap_file_pages that it wants to be unlike."""

from __future__ import annotations

from .anon_vma import anon_vma_lock_write, anon_vma_prepare, anon_vma_unlock_write, page_get_anon_vma, put_anon_vma
from .catalogue import modelled
from .errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM
from .huge_split import split_huge_page_pmd, wait_split_huge_page
from .lang import BUG_ON, NULL, reached
from .locks import down_read, lock_page, spin_lock, spin_lock_nested, spin_unlock, unlock_page, up_read
from .machine import config
from .memory import pte_alloc, pte_alloc_fails
from .migrate import migration_entry_wait
from .mm_types import (
    PmdKind,
    PteKind,
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
from .mmap import find_vma
from .page_flags import PageAnon
from .pgtable import (
    flush_tlb_pmd,
    linear_page_index,
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
)
from .slab import atomic_read, get_page, hpage_size, put_page, put_page_testzero
from .swapfile import swp_entry_swapcount

POSTED = "v3.10+seed (linux-mm posting of 3 Oct 2014, 12/17)"
RAP_ALLOW_SRC_HOLES = 1
"""The flag of the system call: a hole in the source is skipped, and counted as moved."""


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
    versions=POSTED,
    section="C.11",
    steps=17,
    omits="the mmu notifier; soft-dirty",
)
def remap_anon_pages_pte(
    mm: mm_struct,
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
    old = ptep_clear_flush(mm, src_addr, src_ptep)
    BUG_ON(not pte_same(old, src_pte))
    set_pte(dst_ptep, mk_pte(p, dst_vma))
    double_pt_unlock(dst, src)
    anon_vma_unlock_write(src_anon_vma)
    put_anon_vma(src_anon_vma)
    unlock_page(p)
    reached("a page was moved")
    return 0


def pte_same(a: pte_t, b: pte_t) -> bool:
    """The same entry, but for bits that the hardware sets by itself."""
    return a._replace(young=False, dirty=False) == b._replace(young=False, dirty=False)


def mk_pte(p: page, vma: vm_area_struct) -> pte_t:
    return pte_t(kind=PteKind.PRESENT, page=p, dirty=True, write=(vma.vm_flags & vm.WRITE) != 0)


@modelled("mm/fremap.c", function="remap_anon_pages_pte (swap entry)", versions=POSTED, section="C.11", steps=6)
def remap_anon_pages_swap(src_ptep: pte_slot, dst_ptep: pte_slot, src_pte: pte_t, dst_pte: pte_t) -> int:
    """Move one swap entry. Only the PTE: the page that may be in the swap cache is not looked at (S4)."""
    if src_pte.kind == PteKind.FILE or src_pte.kind == PteKind.HWPOISON:
        return -EFAULT
    if src_pte.kind == PteKind.MIGRATION:
        migration_entry_wait(src_ptep.table, src_ptep)
        return -EAGAIN
    if swp_entry_swapcount(src_pte.slot) != 1:
        return -EBUSY
    src, dst = src_ptep.table, dst_ptep.table
    double_pt_lock(dst, src)
    if src_ptep.pte != src_pte or dst_ptep.pte != dst_pte or swp_entry_swapcount(src_pte.slot) != 1:
        double_pt_unlock(dst, src)
        return -EAGAIN
    ptep_get_and_clear(src_ptep)
    set_pte(dst_ptep, src_pte)
    double_pt_unlock(dst, src)
    reached("a swap entry was moved")
    return 0


@modelled("mm/fremap.c", function="remap_anon_pages_pte (entry)", versions=POSTED, section="C.11", steps=2)
def remap_one_small(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    src_addr: int,
    dst_addr: int,
    src: page_table,
    dst: page_table,
    flags: int,
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
        return 0 if flags & RAP_ALLOW_SRC_HOLES else -ENOENT
    if src_pte.kind != PteKind.PRESENT:
        return remap_anon_pages_swap(src_ptep, dst_ptep, src_pte, dst_pte)
    return remap_anon_pages_pte(mm, dst_vma, src_addr, dst_addr, src_ptep, dst_ptep, src_pte, dst_pte)


@modelled(
    "mm/huge_memory.c",
    versions=POSTED,
    section="C.12",
    steps=15,
    omits="the mmu notifier; both PMD locks are one page_table_lock, as in 2013",
)
def remap_anon_pages_huge_pmd(
    mm: mm_struct,
    src_vma: vm_area_struct,
    dst_vma: vm_area_struct,
    src_addr: int,
    dst_addr: int,
    src_pmdp: pmd_slot,
    dst_pmdp: pmd_slot,
    src_pmd: pmd_t,
    dst_pmd: pmd_t,
) -> int:
    """Move one huge PMD whole. The PMD lock is held, and let go."""
    # Nobody counts the mappings of the huge zero page.
    if src_pmd.kind == PmdKind.HUGE_ZERO or atomic_read(src_pmd.page.mapcount) != 1:
        spin_unlock(pmd_lockptr(src_pmdp))
        return -EBUSY
    p = src_pmd.page
    get_page(p)
    spin_unlock(pmd_lockptr(src_pmdp))
    lock_page(p)
    src_anon_vma = page_get_anon_vma(p)
    if src_anon_vma is None:
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    anon_vma_lock_write(src_anon_vma)
    spin_lock(pmd_lockptr(src_pmdp))
    if src_pmdp.pmd != src_pmd or dst_pmdp.pmd != dst_pmd or atomic_read(p.mapcount) != 1:
        spin_unlock(pmd_lockptr(src_pmdp))
        anon_vma_unlock_write(src_anon_vma)
        put_anon_vma(src_anon_vma)
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    put_page_testzero(p)
    p.mapping = dst_vma.anon_vma
    p.index = linear_page_index(dst_vma, dst_addr)
    set_pmd(src_pmdp, pmd_t())
    flush_tlb_pmd(mm, src_addr)
    writable = (dst_vma.vm_flags & vm.WRITE) != 0
    set_pmd(dst_pmdp, pmd_t(kind=PmdKind.HUGE, page=p, write=writable, dirty=True))
    dst_pmdp.deposited = src_pmdp.deposited
    src_pmdp.deposited = NULL
    spin_unlock(pmd_lockptr(src_pmdp))
    anon_vma_unlock_write(src_anon_vma)
    put_anon_vma(src_anon_vma)
    unlock_page(p)
    reached("a huge page was moved whole")
    return 0


@modelled(
    "mm/fremap.c",
    function="sys_remap_anon_pages",
    versions=POSTED,
    section="A.5",
    omits="EINTR: nobody sends a signal; ENOMEM of page tables; the levels above a PMD",
)
def remap_anon_pages(mm: mm_struct, dst_start: int, src_start: int, length: int, flags: int) -> int:
    """Move every page of [src, src + length) (bytes) to the same offset in [dst, dst + length).

    Returns the bytes moved (also when an error stopped it after some progress), or the negative errno. Never 0.
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if (src_start | dst_start | length) & mask or flags & ~RAP_ALLOW_SRC_HOLES:
        return -EINVAL
    if length <= 0:
        return -EINVAL
    down_read(mm.mmap_sem)
    src_vma, dst_vma = find_vma(mm, src_start), find_vma(mm, dst_start)
    err = remap_check(src_vma, dst_vma, src_start, dst_start, length)
    if err != 0 or src_vma is None or dst_vma is None:
        up_read(mm.mmap_sem)
        return err
    if anon_vma_prepare(dst_vma) != 0:
        up_read(mm.mmap_sem)
        return -ENOMEM
    done = 0
    for at in range(length >> config.PAGE_SHIFT):
        # A huge page may have taken us further already.
        if at < done:
            continue
        offset = at << config.PAGE_SHIFT
        while True:
            err, pages = remap_one(mm, src_vma, dst_vma, src_start + offset, dst_start + offset, length - offset, flags)
            if err != -EAGAIN:
                break
        if err != 0:
            break
        done = at + pages
    up_read(mm.mmap_sem)
    return done << config.PAGE_SHIFT if done > 0 else err


@modelled("mm/fremap.c", function="sys_remap_anon_pages (loop body)", versions=POSTED, section="A.5")
def remap_one(
    mm: mm_struct,
    src_vma: vm_area_struct,
    dst_vma: vm_area_struct,
    src_addr: int,
    dst_addr: int,
    left: int,
    flags: int,
) -> tuple[int, int]:
    """Move what lies at one address: (0 or the negative errno, pages moved). -EAGAIN: the caller tries again."""
    size = hpage_size()
    src_pmdp = pmd_offset(mm, src_addr)
    dst_pmdp = pmd_offset(mm, dst_addr)
    # mm_find_pmd of v3.10 finds no entry that is not present.
    if src_pmdp.pmd.kind == PmdKind.NONE and not flags & RAP_ALLOW_SRC_HOLES:
        return -ENOENT, 0
    dst_pmd = dst_pmdp.pmd
    if pmd_trans_huge(dst_pmd):
        return -EEXIST, 0
    if pmd_trans_huge_lock(src_pmdp, src_vma):
        src_pmd = src_pmdp.pmd
        if ((src_addr | dst_addr) & (size - 1)) == 0 and left >= size and dst_pmd.kind == PmdKind.NONE:
            err = remap_anon_pages_huge_pmd(
                mm, src_vma, dst_vma, src_addr, dst_addr, src_pmdp, dst_pmdp, src_pmd, dst_pmd
            )
            return err, size >> config.PAGE_SHIFT
        spin_unlock(pmd_lockptr(src_pmdp))
        split_huge_page_pmd(src_pmdp, src_vma)
    src_pmd = src_pmdp.pmd
    if src_pmd.kind == PmdKind.NONE:
        if not flags & RAP_ALLOW_SRC_HOLES:
            return -ENOENT, 0
        if pte_alloc_fails(mm, src_addr):
            return -ENOMEM, 0
        pte_alloc(mm, src_addr)
        src_pmd = src_pmdp.pmd
    # MADV_DONTNEED and huge faults need mmap_sem for reading only.
    if src_pmd.kind != PmdKind.TABLE:
        return -EFAULT, 0
    if dst_pmd.kind != PmdKind.TABLE and pte_alloc_fails(mm, dst_addr):
        return -ENOMEM, 0
    dst_table = dst_pmd.table if dst_pmd.kind == PmdKind.TABLE else pte_alloc(mm, dst_addr)
    if dst_table is None:
        return -EFAULT, 0
    return remap_one_small(mm, dst_vma, src_addr, dst_addr, src_pmd.table, dst_table, flags), 1


@modelled("include/linux/huge_mm.h", versions="v3.10 .. v6.8", section="C.9", steps=3)
def pmd_trans_huge_lock(pmdp: pmd_slot, vma: vm_area_struct) -> bool:
    """The PMD lock, if the entry is huge under it, be it under migration. One that is being split is waited for, and not huge."""
    if not pmd_is_huge(pmdp.pmd):
        return False
    spin_lock(pmd_lockptr(pmdp))
    kind = pmdp.pmd.kind
    if kind == PmdKind.HUGE or kind == PmdKind.HUGE_ZERO or kind == PmdKind.MIGRATION:
        return True
    spin_unlock(pmd_lockptr(pmdp))
    if kind == PmdKind.SPLITTING:
        wait_split_huge_page(vma)
    return False


@modelled(
    "mm/fremap.c",
    function="sys_remap_anon_pages (checks)",
    versions=POSTED,
    section="A.5",
    omits="vm_page_prot beyond VM_WRITE",
)
def remap_check(
    src_vma: vm_area_struct | None, dst_vma: vm_area_struct | None, src_start: int, dst_start: int, length: int
) -> int:
    """The checks under mmap_sem, in their order: 0 or -EINVAL."""
    if src_vma is None or src_vma.vm_flags & vm.SHARED or src_start + length > src_vma.vm_end:
        return -EINVAL
    if dst_vma is None or dst_vma.vm_flags & vm.SHARED or dst_start + length > dst_vma.vm_end:
        return -EINVAL
    if (src_vma.vm_flags ^ dst_vma.vm_flags) & (vm.WRITE | vm.LOCKED):
        return -EINVAL
    if src_vma.vm_file is not None or dst_vma.vm_file is not None:
        return -EINVAL
    return 0
