"""mm/madvise.c: advice on ranges of addresses."""

from __future__ import annotations

import enum

from .anon_vma import anon_vma_prepare
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EINVAL, ENOMEM
from .events import EVENT_REMOVE, FEATURE_EVENT_REMOVE, event_begins, userfaultfd_remove, wait_for_reader
from .khugepaged import madvise_collapse
from .ksm import unmerge_ksm_pages
from .lang import reached
from .locks import (
    down_read,
    down_write,
    spin_lock,
    spin_unlock,
    up_read,
    up_write,
)
from .machine import config
from .madvise_cold import madvise_cold_or_pageout
from .madvise_free import madvise_free
from .memory import pte_alloc, pte_alloc_fails, tlb_finish_mmu, zap_page_range
from .mm_types import (
    PmdKind,
    PteKind,
    mm_struct,
    pte_t,
    vm,
    vm_area_struct,
)
from .mmap import find_vma, vma_at_or_after
from .pgtable import (
    flush_tlb_range,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    set_pte,
    table_is_gone,
)
from .populate import madvise_populate, populate_vmas
from .pt_reclaim import free_emptied_tables
from .vma import vma_modify
from .vma_lock import lock_vma_under_rcu, mmap_write_unlock, vma_end_read, vma_start_write


class MADV(enum.IntEnum):
    """Advice (include/uapi/asm-generic/mman-common.h)."""

    DONTNEED = 4
    FREE = 8
    DONTFORK = 10
    DOFORK = 11
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    DONTNEED_LOCKED = 24
    COLLAPSE = 25
    GUARD_INSTALL = 102
    GUARD_REMOVE = 103
    MERGEABLE = 12
    UNMERGEABLE = 13


@modelled(
    "mm/madvise.c",
    function="do_madvise, madvise_walk_vmas",
    versions="v3.10 .. v6.18",
    section="C.4",
    steps=3,
    omits="hugetlb and PFN mappings",
)
def sys_madvise(mm: mm_struct, addr: int, length: int, advice: int) -> int:
    """Advice on [addr, addr + length) (bytes), VMA by VMA.

    Returns 0; -EINVAL: not aligned, it wraps, or a VMA was met for which it is none (those before it are done); -ENOMEM: not
    all is mapped (what is mapped is done).
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if addr & mask or length < 0 or length > config.WRAP_AT - addr:
        return -EINVAL
    end = addr + ((length + mask) & ~mask)
    if end >= config.WRAP_AT:
        return -EINVAL
    if end == addr:
        return 0
    if advice == MADV.POPULATE_READ or advice == MADV.POPULATE_WRITE:
        if era.populate_stops_at_holes:
            return madvise_populate(mm, addr, end, advice == MADV.POPULATE_WRITE)
        return populate_vmas(mm, addr, end, advice == MADV.POPULATE_WRITE)
    if config.PER_VMA_LOCKS and gathers(advice):
        alone, only_err = madvise_under_vma_lock(mm, addr, end, advice)
        if alone:
            return only_err
    writer = takes_write_lock(advice)
    if writer:
        down_write(mm.mmap_sem)
    else:
        down_read(mm.mmap_sem)
    at = addr
    hole = False
    err = 0
    flush_late = False
    while at < end and err == 0:
        vma = vma_at_or_after(mm, at)
        if vma is None or vma.vm_start >= end:
            break
        if vma.vm_start > at:
            hole = True
            at = vma.vm_start
        last = min(end, vma.vm_end)
        if era.dontneed_flushes_late and gathers(advice):
            flush_late = at == addr and last == end and not vma.vm_flags & (vm.USERFAULT | vm.UFFD_WP)
        err = madvise_vma_behavior(mm, vma, at, last, advice)
        at = last
    if era.dontneed_flushes_late and gathers(advice) and not flush_late:
        tlb_finish_mmu(mm, addr, end)
    if writer:
        mmap_write_unlock(mm)
    else:
        up_read(mm.mmap_sem)
    if flush_late:
        # The VMA's lock is gone by now: others may have changed it.
        tlb_finish_mmu(mm, addr, end)
    if err != 0:
        return err
    return -ENOMEM if hole or at < end else 0


@modelled("mm/madvise.c", function="try_vma_read_lock", versions="v6.16 .. v6.18", section="C.4", steps=3)
def madvise_under_vma_lock(mm: mm_struct, addr: int, end: int, advice: int) -> tuple[bool, int]:
    """(True, 0 or -errno) if the range lies in one VMA whose lock can be had, and which has no userfaultfd; else (False, 0)."""
    vma = lock_vma_under_rcu(mm, addr)
    if vma is None:
        return False, 0
    if end > vma.vm_end or vma.vm_flags & (vm.USERFAULT | vm.UFFD_WP):
        vma_end_read(vma)
        return False, 0
    err = madvise_vma_behavior(mm, vma, addr, end, advice)
    vma_end_read(vma)
    tlb_finish_mmu(mm, addr, end)
    return True, err


@modelled(
    "mm/madvise.c",
    function="process_madvise, vector_madvise",
    versions="v6.13 .. v6.18",
    section="C.4",
    steps=3,
    omits="permissions, one lock and one flush for all ranges, addresses beyond the user's",
)
def process_madvise(
    caller: mm_struct, mm: mm_struct, addr: int, length: int, other: int, other_length: int, advice: int
) -> int:
    """Advice on two ranges of a process: the bytes of those before the first that fails, or its errno.

    Of another process, only advice that changes nothing that it can see but by its timing.
    """
    if length >= 1 << 63 or other_length >= 1 << 63:
        return -EINVAL
    if caller is not mm and advice not in (MADV.COLD, MADV.PAGEOUT, MADV.COLLAPSE):
        return -EINVAL
    err = sys_madvise(mm, addr, length, advice)
    if err != 0:
        return err
    err = sys_madvise(mm, other, other_length, advice)
    if err == 0:
        return length + other_length
    return length if length > 0 else err


def takes_write_lock(advice: int) -> bool:
    """Does the advice change VMAs? The others work under mmap_sem for reading, since v6.17 some under the VMA's lock."""
    return advice in (
        MADV.DONTFORK,
        MADV.DOFORK,
        MADV.HUGEPAGE,
        MADV.NOHUGEPAGE,
        MADV.DONTDUMP,
        MADV.DODUMP,
        MADV.WIPEONFORK,
        MADV.KEEPONFORK,
        MADV.MERGEABLE,
        MADV.UNMERGEABLE,
    )


def forgets(advice: int) -> bool:
    return advice == MADV.DONTNEED or advice == MADV.DONTNEED_LOCKED


def gathers(advice: int) -> bool:
    """What is flushed once, at the end, and needs only the lock of the VMA (since v6.16)."""
    return forgets(advice) or advice == MADV.FREE


@modelled(
    "mm/madvise.c",
    function="madvise_dontneed_free (after the event)",
    versions="v4.11 .. v6.18",
    section="F.1",
    steps=3,
    omits="what is left of a range whose VMA has become shorter: no VMA of a checked program does",
)
def removal_is_read(
    mm: mm_struct, vma: vm_area_struct, start: int, end: int, advice: int
) -> tuple[int, vm_area_struct, int]:
    """A range will be forgotten: (0 or -errno, its VMA, its end) when its monitor has read that, without mmap_lock meanwhile."""
    event_begins(mm)
    up_read(mm.mmap_sem)
    wait_for_reader(mm, EVENT_REMOVE)
    down_read(mm.mmap_sem)
    found = find_vma(mm, start)
    if found is None:
        return -ENOMEM, vma, end
    if not may_forget(found, advice):
        return -EINVAL, vma, end
    return 0, found, min(end, found.vm_end)


def may_forget(vma: vm_area_struct, advice: int) -> bool:
    """madvise_dontneed_free_valid_vma."""
    return advice == MADV.DONTNEED_LOCKED or not vma.vm_flags & vm.LOCKED


@modelled("mm/madvise.c", versions="v3.10 .. v6.18", section="C.4", steps=3)
def madvise_vma_behavior(mm: mm_struct, vma: vm_area_struct, start: int, end: int, advice: int) -> int:
    """The advice on a part of one VMA: 0 or -errno."""
    if gathers(advice):
        if not may_forget(vma, advice):
            return -EINVAL
        if config.EVENTS:
            userfaultfd_remove(mm, vma, start, end)
        if config.RACED_EVENTS & FEATURE_EVENT_REMOVE and vma.vm_flags & vm.USERFAULT:
            changed_err, vma, end = removal_is_read(mm, vma, start, end, advice)
            if changed_err != 0:
                return changed_err
    if forgets(advice):
        zap_page_range(mm, vma, start, end, True)
        if not era.dontneed_flushes_late:
            tlb_finish_mmu(mm, start, end)
        if config.PT_RECLAIM and era.empty_tables_are_freed:
            free_emptied_tables(mm, start, end)
        reached("a range was forgotten")
        return 0
    if advice == MADV.FREE:
        madvise_free(mm, start, end)
        if not era.dontneed_flushes_late:
            flush_tlb_range(mm, start, end)
        return 0
    if advice == MADV.COLLAPSE:
        return madvise_collapse(mm, vma, start, end)
    if advice == MADV.COLD or advice == MADV.PAGEOUT:
        if vma.vm_flags & vm.LOCKED:
            return -EINVAL
        madvise_cold_or_pageout(mm, start, end, advice == MADV.PAGEOUT)
        return 0
    if advice == MADV.GUARD_INSTALL:
        if vma.vm_flags & vm.LOCKED:
            return -EINVAL
        return madvise_guard_install(mm, vma, start, end)
    if advice == MADV.GUARD_REMOVE:
        madvise_guard_remove(mm, start, end)
        return 0
    if advice == MADV.UNMERGEABLE:
        unmerge_ksm_pages(vma, start, end)
    flags = advised_flags(vma.vm_flags, advice)
    changed = vma_modify(mm, vma, start, end, flags, vma.ctx)
    if changed is None:
        return -EAGAIN
    vma = changed
    vma_start_write(vma)
    vma.vm_flags = flags | (vma.vm_flags & int(vm.MAYBE_GUARD))
    return 0


def advised_flags(flags: int, advice: int) -> int:
    """What the flags of a VMA become."""
    if advice == MADV.DONTFORK:
        return flags | int(vm.DONTCOPY)
    if advice == MADV.DOFORK:
        return flags & ~int(vm.DONTCOPY)
    if advice == MADV.WIPEONFORK:
        return flags | int(vm.WIPEONFORK)
    if advice == MADV.KEEPONFORK:
        return flags & ~int(vm.WIPEONFORK)
    if advice == MADV.DONTDUMP:
        return flags | int(vm.DONTDUMP)
    if advice == MADV.DODUMP:
        return flags & ~int(vm.DONTDUMP)
    if advice == MADV.MERGEABLE:
        return flags | int(vm.MERGEABLE)
    if advice == MADV.UNMERGEABLE:
        return flags & ~int(vm.MERGEABLE)
    if advice == MADV.HUGEPAGE:
        return (flags & ~int(vm.NOHUGEPAGE)) | int(vm.HUGEPAGE)
    return (flags & ~int(vm.HUGEPAGE)) | int(vm.NOHUGEPAGE)


@modelled("mm/madvise.c", versions="v6.13 .. v6.18", section="C.4", steps=5, omits="restarting after too many retries")
def madvise_guard_install(mm: mm_struct, vma: vm_area_struct, start: int, end: int) -> int:
    """Every page of the range becomes a marker that no access passes; what was mapped goes first. 0 or -ENOMEM."""
    if anon_vma_prepare(vma) != 0:
        return -ENOMEM
    vma.vm_flags |= int(vm.MAYBE_GUARD)
    zap_page_range(mm, vma, start, end, True)
    tlb_finish_mmu(mm, start, end)
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        addr = number << config.PAGE_SHIFT
        while True:
            if pte_alloc_fails(mm, addr):
                return -ENOMEM
            table = pte_alloc(mm, addr)
            if table is None:
                break
            ptep = pte_offset(table, addr)
            spin_lock(pte_lockptr(table))
            vacant = ptep.pte.kind == PteKind.NONE or ptep.pte.kind == PteKind.GUARD_MARKER
            if config.PT_RECLAIM and table_is_gone(mm, addr, table):
                spin_unlock(pte_lockptr(table))
                continue
            if vacant:
                set_pte(ptep, pte_t(kind=PteKind.GUARD_MARKER))
            spin_unlock(pte_lockptr(table))
            if vacant:
                break
            # A fault, or a fill, was faster: zap and try again.
            zap_page_range(mm, vma, start, end, True)
            tlb_finish_mmu(mm, start, end)
    return 0


@modelled("mm/madvise.c", versions="v6.13 .. v6.18", section="C.4", steps=2)
def madvise_guard_remove(mm: mm_struct, start: int, end: int) -> None:
    """Markers become holes again; everything else stays."""
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        addr = number << config.PAGE_SHIFT
        pmd = pmd_offset(mm, addr).pmd
        if pmd.kind == PmdKind.TABLE:
            ptep = pte_offset(pmd.table, addr)
            spin_lock(pte_lockptr(pmd.table))
            if ptep.pte.kind == PteKind.GUARD_MARKER:
                set_pte(ptep, pte_t())
            spin_unlock(pte_lockptr(pmd.table))


def madvise_dontneed(mm: mm_struct, addr: int, length: int) -> int:
    """MADV_DONTNEED: forget the contents of [addr, addr + length) (bytes), holding mmap_sem for reading only."""
    return sys_madvise(mm, addr, length, MADV.DONTNEED)


@modelled(
    "mm/madvise.c",
    function="madvise_behavior",
    versions="v3.10 .. v6.8",
    section="A.1",
    steps=3,
    omits="splitting and merging of VMAs: the whole VMA around the address changes",
)
def change_flags(mm: mm_struct, addr: int, clear: int, add: int) -> int:
    """Change a VMA's flags under mmap_sem for writing. 0; -EINVAL: not aligned, or not for this VMA; -ENOMEM: none there."""
    if addr & ((1 << config.PAGE_SHIFT) - 1):
        return -EINVAL
    down_write(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None:
        up_write(mm.mmap_sem)
        return -ENOMEM
    if (add | clear) & vm.USERFAULT and vma.vm_file is not None:
        # R22: a VMA with vm_ops is not anonymous.
        up_write(mm.mmap_sem)
        return -EINVAL
    vma_start_write(vma)
    vma.vm_flags = (vma.vm_flags & ~clear) | add
    mmap_write_unlock(mm)
    return 0


@modelled("mm/madvise.c", versions="v3.10 .. v6.8", section="A.1", steps=1)
def madvise_dontfork(mm: mm_struct, addr: int) -> int:
    """MADV_DONTFORK: a fork does not copy the VMA, so its pages' mapcounts can't rise by one (R13)."""
    return change_flags(mm, addr, 0, int(vm.DONTCOPY))


@modelled("mm/madvise.c", versions="v3.10 .. v6.8", section="A.1", steps=1, omits="VM_IO, which refuses")
def madvise_dofork(mm: mm_struct, addr: int) -> int:
    """MADV_DOFORK: undo."""
    return change_flags(mm, addr, int(vm.DONTCOPY), 0)


@modelled("mm/madvise.c", versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 08/17)", section="A.3", steps=1)
def madvise_userfault(mm: mm_struct, addr: int) -> int:
    """MADV_USERFAULT: a touch of a missing page raises SIGBUS (R21). v6.8: registration with a userfaultfd."""
    if not era.remap_anon_pages and not era.userfaultfd:
        # v3.10 knows no such advice.
        return -EINVAL
    return change_flags(mm, addr, 0, int(vm.USERFAULT))


@modelled("mm/madvise.c", versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 08/17)", section="A.3", steps=1)
def madvise_nouserfault(mm: mm_struct, addr: int) -> int:
    """MADV_NOUSERFAULT: undo."""
    if not era.remap_anon_pages and not era.userfaultfd:
        return -EINVAL
    return change_flags(mm, addr, int(vm.USERFAULT), 0)
