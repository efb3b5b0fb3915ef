"""mm/mremap.c: a mapping moves to other addresses, and its pages' mapping and index stay as they are."""

from __future__ import annotations

from .anon_vma import anon_vma_clone, anon_vma_lock_write, anon_vma_unlock_write, unlink_anon_vmas
from .catalogue import modelled
from .era import era
from .errno import EFAULT, EINVAL, ENOMEM
from .events import (
    EVENT_REMAP,
    FEATURE_EVENT_REMAP,
    LAST,
    deliver,
    event_begins,
    keeps_monitor,
    mremap_userfaultfd_prep,
    wait_for_reader,
)
from .ghost import walk_put_back
from .huge_split import split_huge_pmd
from .ksm import unmerge_ksm_pages
from .lang import NULL, atomic, exhausted, reached
from .locks import down_write, spin_lock, spin_lock_nested, spin_unlock, up_write
from .machine import config
from .memory import pte_alloc, pte_alloc_fails
from .mlock import mm_populate
from .mm_types import PmdKind, PteKind, mm_struct, page_table, pte_t, vm, vm_area_struct
from .mmap import detach_vma, do_munmap, find_vma, unmap_detached
from .pgtable import (
    flush_tlb_batched_pending,
    flush_tlb_page,
    flush_tlb_range,
    is_swap_pmd,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    ptep_get_and_clear,
    set_pte,
)
from .slab import out_of_memory, vm_area_alloc, vm_area_free
from .vma import anon_vma_clone_split, copied_range_merged, split_vma, vma_link, vma_merge_extend
from .vma_lock import mmap_write_unlock, vma_start_write

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
UFFD_FLAGS = int(vm.USERFAULT | vm.UFFD_WP)


@modelled(
    "mm/mmap.c",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=3,
    omits="the merge with a neighbour, and need_rmap_locks with it",
    errs="missed bug",
)
def copy_vma(mm: mm_struct, vma: vm_area_struct, addr: int) -> vm_area_struct | None:
    """A VMA at the new address, in the same trees and behind the old one, in which every page has the same index.

    None: there was no memory for it.
    """
    if out_of_memory():
        return None
    new = vm_area_alloc()
    dup_vma_at(new, vma, addr)
    if anon_vma_clone(new, vma) != 0:
        vm_area_free(new)
        return None
    if era.maple_tree and out_of_memory():
        unlink_anon_vmas(new)
        vm_area_free(new)
        return None
    vma_start_write(new)
    vma_link(mm, new)
    return new


@atomic
def dup_vma_at(new: vm_area_struct, vma: vm_area_struct, addr: int) -> None:
    """The fields; the page offset stays, unless no page can know of it yet."""
    new.vm_mm = vma.vm_mm
    new.vm_start = addr
    new.vm_end = addr + (vma.vm_end - vma.vm_start)
    new.vm_pgoff = vma.vm_pgoff
    if vma.anon_vma is None:
        new.vm_pgoff = addr >> config.PAGE_SHIFT
    new.vm_flags = vma.vm_flags
    new.vm_file = vma.vm_file
    new.anon_vma = vma.anon_vma


@modelled(
    "mm/mremap.c",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=6,
    omits="the run of PTEs under one hold of the locks: here they are let go after each",
    errs="false alarm",
)
def move_ptes(
    mm: mm_struct, old: page_table, old_addr: int, new: page_table, new_addr: int, forget: bool = False
) -> None:
    """One PTE to its new place. The order of the two locks is free: mmap_sem is held for writing.

    forget: the monitor did not ask for remap events, so that its write-protection stays behind.
    """
    old_ptep, new_ptep = pte_offset(old, old_addr), pte_offset(new, new_addr)
    spin_lock(pte_lockptr(old))
    if new is not old:
        spin_lock_nested(pte_lockptr(new))
    if config.BATCHED_UNMAP:
        flush_tlb_batched_pending(mm)
    if old_ptep.pte.kind != PteKind.NONE:
        pte = ptep_get_and_clear(old_ptep)
        if era.mremap_drops_protection and forget:
            pte = without_write_protection(pte)
        set_pte(new_ptep, pte)
        if pte.kind == PteKind.PRESENT and not pte.special:
            walk_put_back(pte.page)
        if era.mremap_flushes_early and pte.kind == PteKind.PRESENT:
            # Before the locks are let go: who unmaps the page at its new place does not know of the old one (E-17).
            flush_tlb_page(mm, old_addr)
    if new is not old:
        spin_unlock(pte_lockptr(new))
    spin_unlock(pte_lockptr(old))


def without_write_protection(pte: pte_t) -> pte_t:
    return pte_t() if pte.kind == PteKind.WP_MARKER else pte._replace(uffd_wp=False)


@modelled(
    "mm/mremap.c",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=4,
    omits="huge entries (a bound), the move of whole tables (v5.0), the mmu notifier",
    errs="missed bug",
)
def move_page_tables(
    mm: mm_struct, vma: vm_area_struct, new_vma: vm_area_struct, length: int, need_rmap_locks: bool = False
) -> int:
    """The entries of the first `length` bytes of one VMA into another: how many bytes, up to where no page table can be had.

    need_rmap_locks: the walks come to the VMA that is left after the other, and would miss what moves between the two.
    """
    moved = length
    for at in range(length >> config.PAGE_SHIFT):
        old_addr = vma.vm_start + (at << config.PAGE_SHIFT)
        new_addr = new_vma.vm_start + (at << config.PAGE_SHIFT)
        pmd = pmd_offset(mm, old_addr).pmd
        if pmd.kind == PmdKind.NONE:
            continue
        if pmd.kind != PmdKind.TABLE:
            exhausted("mremap of a huge page")
            continue
        if pte_alloc_fails(mm, new_addr):
            moved = at << config.PAGE_SHIFT
            break
        table = pte_alloc(mm, new_addr)
        if table is None:
            exhausted("mremap of a huge page")
            continue
        if need_rmap_locks and vma.anon_vma is not None:
            anon_vma_lock_write(vma.anon_vma)
        move_ptes(mm, pmd.table, old_addr, table, new_addr)
        if need_rmap_locks and vma.anon_vma is not None:
            anon_vma_unlock_write(vma.anon_vma)
    if not era.mremap_flushes_early:
        flush_tlb_range(mm, vma.vm_start, vma.vm_end)
    return moved


@modelled(
    "mm/mremap.c",
    function="sys_mremap (MREMAP_FIXED, move_vma)",
    versions="v3.10 .. v6.8",
    section="C.16",
    steps=6,
    omits="parts of a VMA, growing and shrinking, what lies at the destination (-EINVAL here), MREMAP_DONTUNMAP, KSM",
    errs="missed bug",
)
def sys_mremap(mm: mm_struct, new_addr: int, old_addr: int, length: int) -> int:
    """Move the VMA at [old_addr, old_addr + length) (bytes) to `new_addr`.

    0; -EINVAL: not aligned, or not free there; -EFAULT; -ENOMEM.
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if (new_addr | old_addr | length) & mask or length <= 0:
        return -EINVAL
    down_write(mm.mmap_sem)
    for other in mm.mmap:
        if other.vm_start < new_addr + length and other.vm_end > new_addr:
            up_write(mm.mmap_sem)
            return -EINVAL
    vma = find_vma(mm, old_addr)
    if vma is None or vma.vm_start != old_addr or vma.vm_end != old_addr + length:
        up_write(mm.mmap_sem)
        return -EFAULT
    vma_start_write(vma)
    new_vma = copy_vma(mm, vma, new_addr)
    if new_vma is None:
        mmap_write_unlock(mm)
        return -ENOMEM
    moved = move_page_tables(mm, vma, new_vma, length)
    if moved < length:
        # The tables of the old place are still there.
        move_page_tables(mm, new_vma, vma, moved, True)
        detach_vma(mm, new_vma)
        unmap_detached(mm, new_addr, new_addr + length)
        mmap_write_unlock(mm)
        return -ENOMEM
    told = False
    if config.RACED_EVENTS & FEATURE_EVENT_REMAP:
        told = new_vma.vm_flags & vm.USERFAULT != 0
        if told:
            event_begins(mm)
    elif era.userfaultfd:
        # mremap_userfaultfd_prep: a monitor that did not ask loses the VMA.
        new_vma.vm_flags = new_vma.vm_flags & ~UFFD_FLAGS
    detach_vma(mm, vma)
    unmap_detached(mm, old_addr, old_addr + length)
    mmap_write_unlock(mm)
    if config.RACED_EVENTS & FEATURE_EVENT_REMAP and told:
        wait_for_reader(mm, EVENT_REMAP)
    reached("a mapping was moved")
    return 0


# -- parts of VMAs, several VMAs, and what lies at the new place (v6.18) --------------------------------------------------


@modelled(
    "mm/mremap.c",
    function="move_page_tables (part of a VMA)",
    versions="v6.13 .. v6.18",
    section="C.16",
    steps=3,
    omits="whole tables and huge pages, which are split",
)
def move_range(vma: vm_area_struct, old_addr: int, new_addr: int, length: int, need_rmap_locks: bool) -> int:
    """Move what is mapped in a range: how many bytes, up to where no page table can be had."""
    mm = vma.vm_mm
    drops = vma.ctx is not None and not keeps_monitor(vma)
    for at in range(length >> config.PAGE_SHIFT):
        offset = at << config.PAGE_SHIFT
        pmdp = pmd_offset(mm, old_addr + offset)
        pmd = pmdp.pmd
        if pmd.kind == PmdKind.HUGE or is_swap_pmd(pmd):
            split_huge_pmd(vma, pmdp)
            pmd = pmdp.pmd
        if pmd.kind == PmdKind.TABLE:
            if pte_alloc_fails(mm, new_addr + offset):
                return offset
            table = pte_alloc(mm, new_addr + offset)
            if need_rmap_locks and vma.anon_vma is not None:
                anon_vma_lock_write(vma.anon_vma)
            move_ptes(mm, pmd.table, old_addr + offset, table, new_addr + offset, drops)
            if need_rmap_locks and vma.anon_vma is not None:
                anon_vma_unlock_write(vma.anon_vma)
    return length


@modelled(
    "mm/vma.c",
    function="copy_vma (with the merge)",
    versions="v6.13 .. v6.18",
    section="C.16",
    steps=3,
)
def copy_or_merge_vma(
    vma: vm_area_struct, addr: int, length: int, pgoff: int, keep_source: bool
) -> tuple[vm_area_struct | None, bool]:
    """The VMA that will hold what moves: a neighbour of the new place made longer, or a copy. None: no memory.

    And need_rmap_locks: a copy stands behind its source in the trees, what was merged may stand before it.
    """
    mm = vma.vm_mm
    start = vma.vm_start
    apart = NULL
    if vma.anon_vma is None:
        pgoff = addr >> config.PAGE_SHIFT
        if keep_source and era.dontunmap_keeps_source_apart:
            apart = vma
    if not (era.mremap_spares_neighbours and vma.ctx is not None and not keeps_monitor(vma)):
        merged = copied_range_merged(mm, vma, addr, addr + length, pgoff, apart)
        if merged is not None:
            if merged.vm_start <= start and start < merged.vm_end:
                # The new place was merged with the old one.
                return merged, True
            return merged, merged.vm_pgoff <= vma.vm_pgoff
    if out_of_memory():
        return None, False
    new = vm_area_alloc()
    new.vm_mm = mm
    new.vm_start = addr
    new.vm_end = addr + length
    new.vm_pgoff = pgoff
    new.vm_flags = vma.vm_flags
    new.vm_file = vma.vm_file
    new.ctx = vma.ctx
    if anon_vma_clone_split(new, vma) != 0:
        vm_area_free(new)
        return None, False
    if era.maple_tree and out_of_memory():
        unlink_anon_vmas(new)
        vm_area_free(new)
        return None, False
    vma_start_write(new)
    vma_link(mm, new)
    return new, False


@modelled("mm/mremap.c", versions="v6.17 .. v6.18", section="C.16", steps=4, omits="accounting")
def move_vma(
    mm: mm_struct, vma: vm_area_struct, addr: int, new_addr: int, length: int, new_length: int, dontunmap: bool
) -> int:
    """Move a part of a VMA to a place where nothing is mapped, and where it may be longer. 0 or -ENOMEM."""
    if era.dontunmap_splits_locked and dontunmap and vma.vm_flags & vm.LOCKED:
        if vma.vm_start < addr:
            upper = split_vma(mm, vma, addr)
            if upper is None:
                return -ENOMEM
            vma = upper
        if addr + length < vma.vm_end and split_vma(mm, vma, addr + length) is None:
            return -ENOMEM
    unmerge_ksm_pages(vma, addr, addr + length)
    vma_start_write(vma)
    pgoff = vma.vm_pgoff + ((addr - vma.vm_start) >> config.PAGE_SHIFT)
    new, need_rmap_locks = copy_or_merge_vma(vma, new_addr, new_length, pgoff, dontunmap)
    if new is None:
        return -ENOMEM
    if new.vm_start <= addr and addr < new.vm_end:
        vma = new
    moved = move_range(vma, addr, new_addr, length, need_rmap_locks)
    if moved < length:
        # The tables of the old place are still there.
        move_range(new, new_addr, addr, moved, True)
        do_munmap(mm, new_addr, new_length, LAST)
        return -ENOMEM
    if config.EVENTS and keeps_monitor(new):
        mremap_userfaultfd_prep(new, addr, new_addr, length)
    elif new.ctx is not None:
        # mremap_userfaultfd_prep: the whole VMA leaves its monitor, also what was there before.
        new.ctx = NULL
        new.vm_flags = new.vm_flags & ~UFFD_FLAGS
    if dontunmap:
        vma.vm_flags = vma.vm_flags & ~int(vm.LOCKED | vm.LOCKONFAULT)
        if new is not vma and addr == vma.vm_start and addr + length == vma.vm_end:
            unlink_anon_vmas(vma)
            vma.anon_vma = NULL
            if era.dontunmap_resets_offset:
                vma.vm_pgoff = vma.vm_start >> config.PAGE_SHIFT
        return 0
    # If the old place can't be split off it stays mapped, and empty (vms_abort; accounting apart).
    do_munmap(mm, addr, length, LAST)
    return 0


@modelled(
    "mm/mremap.c",
    function="do_mremap, remap_move, mremap_to",
    versions="v6.17 .. v6.18",
    section="C.16",
    steps=5,
    omits="everything but MREMAP_FIXED with an unchanged length",
)
def mremap_fixed(mm: mm_struct, addr: int, length: int, flags: int, new_addr: int) -> int:
    """Move [addr, addr + length) to `new_addr`, in place of what is there. 0, -EINVAL, -EFAULT.

    Several VMAs are moved one after the other (since v6.17), unless one of them is registered with a userfaultfd.
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    length = (length + mask) & ~mask
    if not era.mremap_moves_several:
        return mremap_one(mm, addr, length, flags, new_addr)
    if flags & ~7 or addr & mask or length == 0 or length > config.TASK_SIZE:
        return -EINVAL
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        # Neither a new length nor a new address.
        return 0 if find_vma(mm, addr) is not None else -EFAULT
    if (
        new_addr < config.MMAP_MIN_ADDR
        or new_addr > config.TASK_SIZE - length
        or new_addr & mask
        or not flags & MREMAP_MAYMOVE
    ):
        return -EINVAL
    if addr + length > new_addr and new_addr + length > addr:
        return -EINVAL
    down_write(mm.mmap_sem)
    err = remap_move(mm, addr, addr + length, new_addr, flags & MREMAP_DONTUNMAP != 0)
    mmap_write_unlock(mm)
    if config.EVENTS:
        deliver()
    return err


@modelled(
    "mm/mremap.c",
    function="sys_mremap, mremap_to, vma_to_resize",
    versions="v5.7 .. v6.16",
    section="C.16",
    steps=4,
    omits="everything but MREMAP_FIXED with an unchanged length",
)
def mremap_one(mm: mm_struct, addr: int, length: int, flags: int, new_addr: int) -> int:
    """As mremap_fixed, of one VMA. What is mapped at `addr` is asked first, how far it reaches when the new place is unmapped."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if flags & ~7 or addr & mask or length == 0:
        return -EINVAL
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        return -EINVAL
    if find_vma(mm, addr) is None:
        return -EFAULT
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return 0
    if new_addr & mask or length > config.TASK_SIZE or new_addr < 0 or new_addr > config.TASK_SIZE - length:
        return -EINVAL
    if addr + length > new_addr and new_addr + length > addr:
        return -EINVAL
    down_write(mm.mmap_sem)
    err = do_munmap(mm, new_addr, length)
    if err != 0:
        mmap_write_unlock(mm)
        return err
    vma = find_vma(mm, addr)
    if vma is None or addr + length > vma.vm_end:
        mmap_write_unlock(mm)
        if config.EVENTS:
            deliver()
        return -EFAULT
    err = move_vma(mm, vma, addr, new_addr, length, length, flags & MREMAP_DONTUNMAP != 0)
    mmap_write_unlock(mm)
    if config.EVENTS:
        deliver()
    return err


@modelled(
    "mm/mremap.c",
    function="do_mremap, check_mremap_params, check_prep_vma",
    versions="v6.17 .. v6.18",
    section="C.16",
    steps=6,
    omits="limits; a new place of the kernel's choice, without MREMAP_FIXED (here as if it might not be moved)",
)
def mremap_resize(mm: mm_struct, addr: int, length: int, new_length: int, flags: int, new_addr: int) -> int:
    """As mremap_fixed, of one VMA that becomes shorter or longer. 0, -EINVAL, -EFAULT, -ENOMEM: there is no room where it is.

    Lengths that come to the same number of pages are mremap_fixed's.
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    length, new_length = page_align(length), page_align(new_length)
    fixed = flags & MREMAP_FIXED != 0
    if flags & ~7 or addr & mask or new_length == 0 or new_length > config.TASK_SIZE:
        return -EINVAL
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        if not is_user_range(new_addr, new_length) or new_addr & mask or not flags & MREMAP_MAYMOVE:
            return -EINVAL
        # A length that wraps does not overlap anything.
        if flags & MREMAP_DONTUNMAP or (wrapped(addr + length) > new_addr and new_addr + new_length > addr):
            return -EINVAL
    down_write(mm.mmap_sem)
    vma = find_vma(mm, addr)
    err = 0
    if vma is None:
        err = -EFAULT
    elif fixed or new_length > length:
        if length == 0:
            err = -EINVAL
        elif min(length, new_length) > vma.vm_end - addr:
            err = -EFAULT
    locked = vma is not None and vma.vm_flags & vm.LOCKED != 0
    if err == 0 and fixed:
        err = mremap_to(mm, addr, length, new_length, new_addr)
    elif err == 0 and vma is not None:
        err = mremap_at(mm, vma, addr, length, new_length)
    mmap_write_unlock(mm)
    if config.EVENTS:
        deliver()
    if err == 0 and locked and new_length > length:
        start = new_addr if fixed else addr
        mm_populate(mm, start + length, start + new_length)
    return err


def page_align(length: int) -> int:
    """PAGE_ALIGN of an unsigned length."""
    mask = (1 << config.PAGE_SHIFT) - 1
    return (length + mask) % (1 << 64) & ~mask


def wrapped(addr: int) -> int:
    """A sum of 64 bits, as an address relative to the base."""
    return addr - (1 << 64) if addr >= config.WRAP_AT else addr


def is_user_range(addr: int, length: int) -> bool:
    return addr >= config.MMAP_MIN_ADDR and addr <= config.TASK_SIZE - length


@modelled(
    "mm/mremap.c", function="mremap_at, expand_vma, shrink_vma", versions="v6.17 .. v6.18", section="C.16", steps=2
)
def mremap_at(mm: mm_struct, vma: vm_area_struct, addr: int, length: int, new_length: int) -> int:
    """A new length where it is."""
    if new_length < length:
        return shrink_vma(mm, addr, length, new_length)
    if vma.vm_end - addr != length:
        return -ENOMEM
    end = addr + new_length
    if end > config.TASK_SIZE or first_vma(mm, vma.vm_end, end) is not None:
        return -ENOMEM
    return vma_merge_extend(mm, vma, new_length - length)


@modelled("mm/mremap.c", versions="v6.17 .. v6.18", section="C.16", steps=1)
def shrink_vma(mm: mm_struct, addr: int, length: int, new_length: int) -> int:
    """Unmap what is beyond the new length, of whatever VMAs it is."""
    start = addr + new_length
    if start > config.TASK_SIZE or length - new_length > config.TASK_SIZE - start:
        return -EINVAL
    return do_munmap(mm, start, length - new_length, LAST)


@modelled("mm/mremap.c", versions="v6.17 .. v6.18", section="C.16", steps=3)
def mremap_to(mm: mm_struct, addr: int, length: int, new_length: int, new_addr: int) -> int:
    """A new length at a new place, in place of what is there."""
    err = do_munmap(mm, new_addr, new_length)
    if err != 0:
        return err
    if find_vma(mm, addr) is None:
        # It lay where it was to go.
        return -EFAULT
    if new_length < length:
        err = shrink_vma(mm, addr, length, new_length)
        if err != 0:
            return err
        length = new_length
    vma = find_vma(mm, addr)
    if vma is None:
        return -EFAULT
    return move_vma(mm, vma, addr, new_addr, length, new_length, False)


def remap_move(mm: mm_struct, start: int, end: int, new_addr: int, dontunmap: bool) -> int:
    """Each VMA of the range in turn, the gaps between them kept."""
    at = start
    seen = False
    while at < end:
        vma = first_vma(mm, at, end)
        if vma is None:
            break
        if not seen and start < vma.vm_start:
            return -EFAULT
        addr = max(at, vma.vm_start)
        length = min(end, vma.vm_end) - addr
        if vma.vm_flags & UFFD_FLAGS and (seen or vma.vm_end < end):
            return -EFAULT
        target = new_addr + (addr - start)
        at = min(end, vma.vm_end)
        err = do_munmap(mm, target, length)
        if err != 0:
            return err
        again = find_vma(mm, addr)
        if again is None:
            return -EFAULT
        err = move_vma(mm, again, addr, target, length, length, dontunmap)
        if err != 0:
            return err
        seen = True
    return 0 if seen else -EFAULT


def first_vma(mm: mm_struct, start: int, end: int) -> vm_area_struct | None:
    for vma in mm.mmap:
        if vma.vm_end > start and vma.vm_start < end:
            return vma
    return None
