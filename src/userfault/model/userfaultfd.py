"""mm/userfaultfd.c: UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_POISON and UFFDIO_WRITEPROTECT."""

from __future__ import annotations

from .anon_vma import anon_vma_prepare
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM
from .locks import down_read, spin_lock, spin_unlock, up_read
from .machine import config
from .memory import pte_alloc, pte_alloc_fails
from .mm_types import PteKind, mm_struct, page, page_table, pte_t, vm, vm_area_struct
from .mmap import find_vma
from .mprotect import MM_CP_TRY_CHANGE_WRITABLE, MM_CP_UFFD_WP, MM_CP_UFFD_WP_RESOLVE, change_protection
from .pgtable import is_swap_pmd, pmd_offset, pmd_trans_huge, pte_lockptr, pte_offset, set_pte, table_is_gone
from .rmap import page_add_new_anon_rmap
from .slab import alloc_page, out_of_memory, put_page
from .vma_lock import lock_vma_under_rcu, vma_end_read, vma_start_read_locked


@modelled("mm/userfaultfd.c", versions="v6.9 .. v6.18", section="C.13")
def uffd_lock_vma(mm: mm_struct, addr: int) -> tuple[int, vm_area_struct | None]:
    """The VMA of an address, with an anon_vma and locked for reading: (0, VMA), or (-ENOENT or -ENOMEM, None)."""
    fast = lock_vma_under_rcu(mm, addr)
    if fast is not None:
        if fast.anon_vma is not None or fast.vm_flags & vm.SHARED:
            return 0, fast
        vma_end_read(fast)
    down_read(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None:
        up_read(mm.mmap_sem)
        return -ENOENT, None
    if not vma.vm_flags & vm.SHARED and anon_vma_prepare(vma) != 0:
        up_read(mm.mmap_sem)
        return -ENOMEM, None
    vma_start_read_locked(vma)
    up_read(mm.mmap_sem)
    return 0, vma


@modelled(
    "mm/userfaultfd.c",
    function="mfill_atomic_pte_copy",
    versions="v4.3 .. v6.8",
    section="C.15",
    steps=5,
    omits="the copy from user memory with its fault and revalidation; write-protect mode; map_changing_lock (v6.9), by which "
    "an event waits for the fills that are under way",
    errs="both",
)
def uffdio_copy(mm: mm_struct, dst_addr: int, value: int) -> int:
    """Fill the missing page at `dst_addr` with `value`: 0, -ENOENT without a VMA, -EEXIST if it is not missing, -EAGAIN."""
    if mm.mmap_changing != 0:
        return -EAGAIN
    if config.PER_VMA_LOCKS:
        locked, only = uffd_lock_vma(mm, dst_addr)
        if only is None:
            return locked
        done = -ENOENT
        if only.vm_flags & vm.USERFAULT:
            done = -EAGAIN if mm.mmap_changing != 0 else copy_into(only, mm, dst_addr, value)
        vma_end_read(only)
        return done
    down_read(mm.mmap_sem)
    vma = find_vma(mm, dst_addr)
    if era.per_vma_locks:
        # uffd_mfill_lock, before anything else is asked.
        if vma is not None and not vma.vm_flags & vm.SHARED and anon_vma_prepare(vma) != 0:
            up_read(mm.mmap_sem)
            return -ENOMEM
        if vma is None or not vma.vm_flags & vm.USERFAULT:
            up_read(mm.mmap_sem)
            return -ENOENT
    if mm.mmap_changing != 0:
        up_read(mm.mmap_sem)
        return -EAGAIN
    err = copy_into(vma, mm, dst_addr, value)
    up_read(mm.mmap_sem)
    return err


def copy_into(vma: vm_area_struct | None, mm: mm_struct, dst_addr: int, value: int) -> int:
    """The page itself, whichever lock keeps the VMA."""
    if vma is None or not vma.vm_flags & vm.USERFAULT:
        return -ENOENT
    if vma.vm_flags & vm.SHARED or vma.vm_file is not None:
        return -EINVAL
    if not era.per_vma_locks and anon_vma_prepare(vma) != 0:
        return -ENOMEM
    if pmd_trans_huge(pmd_offset(mm, dst_addr).pmd):
        return -EEXIST
    if pte_alloc_fails(mm, dst_addr):
        return -ENOMEM
    table = pte_alloc(mm, dst_addr)
    if table is None:
        if era.fills_read_pmd_once:
            return -EEXIST
        return -EAGAIN if is_swap_pmd(pmd_offset(mm, dst_addr).pmd) else -EFAULT
    if out_of_memory():
        return -ENOMEM
    p = alloc_page()
    p.data = value
    ptep = pte_offset(table, dst_addr)
    spin_lock(pte_lockptr(table))
    if not (fillable(ptep.pte) if era.markers else ptep.pte.kind == PteKind.NONE):
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return -EEXIST
    if config.PT_RECLAIM and table_is_gone(mm, dst_addr, table):
        spin_unlock(pte_lockptr(table))
        put_page(p)
        return -EAGAIN
    page_add_new_anon_rmap(p, vma, dst_addr)
    writable = (vma.vm_flags & vm.WRITE) != 0
    set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=True, young=True))
    spin_unlock(pte_lockptr(table))
    return 0


# -- filling and write-protecting ranges (v6.18) ----------------------------------------------------------------------


@modelled(
    "mm/userfaultfd.c", function="uffd_mfill_lock, validate_dst_vma", versions="v6.9 .. v6.18", section="C.15", steps=3
)
def mfill_vma(mm: mm_struct, start: int, length: int, wp: bool = False) -> tuple[int, vm_area_struct | None]:
    """The VMA that a fill goes to: the whole range lies in it and it is registered, with whatever userfaultfd. wp: the
    page is to be protected.

    (0, VMA), (-ENOENT, None), (-EINVAL, None) or (-ENOMEM, None).
    """
    vma = find_vma(mm, start)
    if vma is None:
        return -ENOENT, None
    if era.fills_prepare_first and anon_vma_prepare(vma) != 0:
        return -ENOMEM, None
    if start + length > vma.vm_end or vma.ctx is None:
        return -ENOENT, None
    if not era.fills_prepare_first:
        if wp and not vma.vm_flags & vm.UFFD_WP:
            return -EINVAL, None
        if anon_vma_prepare(vma) != 0:
            return -ENOMEM, None
    return 0, vma


def mfill_table(mm: mm_struct, addr: int) -> page_table | None:
    """The page table to fill, or None if a huge page is there."""
    if pmd_trans_huge(pmd_offset(mm, addr).pmd):
        return None
    return pte_alloc(mm, addr)


@modelled("mm/userfaultfd.c", versions="v6.4 .. v6.18", section="C.15", steps=4, omits="shmem")
def mfill_atomic_install_pte(vma: vm_area_struct, addr: int, p: page, wp: bool) -> int:
    """Map a new page where nothing is, or only the mark of a hole: 0, -EEXIST or -ENOMEM. The reference goes to the mapping."""
    if pte_alloc_fails(vma.vm_mm, addr):
        return -ENOMEM
    table = mfill_table(vma.vm_mm, addr)
    if table is None:
        return -EEXIST
    ptep = pte_offset(table, addr)
    spin_lock(pte_lockptr(table))
    if not fillable(ptep.pte):
        spin_unlock(pte_lockptr(table))
        return -EEXIST
    if config.PT_RECLAIM and table_is_gone(vma.vm_mm, addr, table):
        spin_unlock(pte_lockptr(table))
        return -EAGAIN
    page_add_new_anon_rmap(p, vma, addr)
    writable = vma.vm_flags & vm.WRITE != 0 and not wp
    protnone = vma.vm_flags & (vm.READ | vm.WRITE | vm.EXEC) == 0
    set_pte(
        ptep,
        pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=True, young=True, uffd_wp=wp, protnone=protnone),
    )
    spin_unlock(pte_lockptr(table))
    return 0


def fillable(pte: pte_t) -> bool:
    """pte_none_mostly: a hole, marked or not. Poison and, in some kernels, even guards are overwritten."""
    return (
        pte.kind == PteKind.NONE
        or pte.kind == PteKind.WP_MARKER
        or pte.kind == PteKind.POISON_MARKER
        or (era.fills_replace_guards and pte.kind == PteKind.GUARD_MARKER)
    )


@modelled("mm/userfaultfd.c", function="mfill_atomic_pte_zeropage", versions="v4.3 .. v6.18", section="C.15", steps=3)
def mfill_zeropage(vma: vm_area_struct, addr: int) -> int:
    """Map the zero page in a hole: 0 or -EEXIST."""
    protnone = vma.vm_flags & (vm.READ | vm.WRITE | vm.EXEC) == 0
    return mfill_entry(vma, addr, pte_t(kind=PteKind.PRESENT, special=True, young=True, protnone=protnone))


@modelled("mm/userfaultfd.c", function="mfill_atomic_pte_poison", versions="v6.6 .. v6.18", section="C.15", steps=3)
def mfill_poison(vma: vm_area_struct, addr: int) -> int:
    """Mark a hole as poisoned: 0 or -EEXIST."""
    return mfill_entry(vma, addr, pte_t(kind=PteKind.POISON_MARKER))


def mfill_entry(vma: vm_area_struct, addr: int, pte: pte_t) -> int:
    if pte_alloc_fails(vma.vm_mm, addr):
        return -ENOMEM
    table = mfill_table(vma.vm_mm, addr)
    if table is None:
        return -EEXIST
    ptep = pte_offset(table, addr)
    spin_lock(pte_lockptr(table))
    if ptep.pte.kind != PteKind.NONE:
        spin_unlock(pte_lockptr(table))
        return -EEXIST
    if config.PT_RECLAIM and table_is_gone(vma.vm_mm, addr, table):
        spin_unlock(pte_lockptr(table))
        return -EAGAIN
    set_pte(ptep, pte)
    spin_unlock(pte_lockptr(table))
    return 0


@modelled(
    "mm/userfaultfd.c",
    function="mfill_atomic",
    versions="v6.9 .. v6.18",
    section="C.15",
    steps=5,
    omits="COPY, which needs bytes from user space (fs_userfaultfd.py); CONTINUE",
)
def mfill_atomic(mm: mm_struct, start: int, length: int, poison: bool) -> int:
    """Fill [start, start + length) with zero pages or poison: the bytes done, or the errno if none were."""
    if config.PER_VMA_LOCKS:
        locked, only = uffd_lock_vma(mm, start)
        if only is None:
            return locked
        filled = -ENOENT
        if start + length <= only.vm_end and only.ctx is not None:
            filled = -EAGAIN if mm.mmap_changing != 0 else mfill_each(only, start, length, poison)
        vma_end_read(only)
        return filled
    down_read(mm.mmap_sem)
    err, vma = mfill_vma(mm, start, length)
    if vma is None:
        up_read(mm.mmap_sem)
        return err
    if mm.mmap_changing != 0:
        up_read(mm.mmap_sem)
        return -EAGAIN
    done = mfill_each(vma, start, length, poison)
    up_read(mm.mmap_sem)
    return done


def mfill_each(vma: vm_area_struct, start: int, length: int, poison: bool) -> int:
    """The loop of mfill_atomic, whichever lock keeps the VMA."""
    err = 0
    done = 0
    for at in range(length >> config.PAGE_SHIFT):
        addr = start + (at << config.PAGE_SHIFT)
        err = mfill_poison(vma, addr) if poison else mfill_zeropage(vma, addr)
        if err != 0:
            break
        done = at + 1
    return done << config.PAGE_SHIFT if done > 0 else err


@modelled("mm/userfaultfd.c", versions="v6.1 .. v6.18", section="C.15", steps=3)
def mwriteprotect_range(mm: mm_struct, start: int, length: int, protect: bool) -> int:
    """Write-protect [start, start + length), or let go: 0, or -ENOENT where a VMA is not registered for it (those before are done).

    Up to v6.1 the range must lie in one VMA.
    """
    down_read(mm.mmap_sem)
    if mm.mmap_changing != 0:
        up_read(mm.mmap_sem)
        return -EAGAIN
    end = start + length
    err = -ENOENT
    for vma in mm.mmap:
        if vma.vm_end > start and vma.vm_start < end:
            whole = era.writeprotect_spans_vmas or (vma.vm_start <= start and end <= vma.vm_end)
            if not whole or not vma.vm_flags & vm.UFFD_WP:
                err = -ENOENT
                break
            uffd_wp_range(vma, max(start, vma.vm_start), min(end, vma.vm_end), protect)
            err = 0
    up_read(mm.mmap_sem)
    return err


@modelled("mm/userfaultfd.c", versions="v6.4 .. v6.18", section="C.15", steps=1)
def uffd_wp_range(vma: vm_area_struct, start: int, end: int, protect: bool) -> None:
    """Set or clear the write-protection of a part of a VMA."""
    flags = MM_CP_UFFD_WP if protect else MM_CP_UFFD_WP_RESOLVE
    if not protect and vma.vm_flags & vm.WRITE:
        flags |= MM_CP_TRY_CHANGE_WRITABLE
    change_protection(vma, start, end, flags)
