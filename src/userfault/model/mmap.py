"""mm/mmap.c: VMAs come, are found, and go."""

from __future__ import annotations

from .anon_vma import unlink_anon_vmas
from .catalogue import modelled
from .era import era
from .errno import EINVAL, ENOMEM
from .events import (
    EARLY,
    EVENT_UNMAP,
    FEATURE_EVENT_UNMAP,
    deliver,
    event_begins,
    is_registered,
    userfaultfd_unmap_prep,
    wait_for_reader,
)
from .lang import atomic, ghost, raw, smp_processor_id
from .locks import down_read, down_write, downgrade_write, up_read, up_write
from .machine import config, machine
from .memory import free_pgd_range, tlb_finish_mmu, zap_page_range
from .mm_types import mm_struct, vm, vm_area_struct
from .slab import vm_area_alloc, vm_area_free
from .vma import mmap_region, split_vma
from .vma_lock import mmap_write_unlock, vma_end_write_all, vma_start_write


def find_vma(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The VMA that contains an address (bytes); mmap_sem held."""
    for vma in mm.mmap:
        if vma.vm_start <= addr and addr < vma.vm_end:
            return vma
    return None


def vma_at_or_after(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The kernel's find_vma: the first VMA that ends above the address."""
    for vma in mm.mmap:
        if vma.vm_end > addr:
            return vma
    return None


def do_mmap(mm: mm_struct, start: int, length: int, flags: int, pgoff: int) -> vm_area_struct:
    """An anonymous VMA at [start, start + length), to set up a machine: not raced, so without its steps."""
    vma = vm_area_alloc()
    vma.vm_mm = mm
    vma.vm_start = start
    vma.vm_end = start + length
    vma.vm_pgoff = pgoff
    vma.vm_flags = flags
    mm.mmap.append(vma)
    mm.mmap.sort(key=lambda each: each.vm_start)
    return vma


def sys_munmap(mm: mm_struct, addr: int, length: int) -> int:
    """Unmap [addr, addr + length) (bytes): as unmap_range, whose monitors then read of it."""
    err = unmap_range(mm, addr, length)
    if config.EVENTS:
        deliver()
    return err


@modelled(
    "mm/mmap.c",
    function="do_munmap",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=7,
    omits="accounting; page tables of distant VMAs are freed after all are unlinked; checked programs unmap whole VMAs",
    errs="missed bug",
)
def unmap_range(mm: mm_struct, addr: int, length: int) -> int:
    """Unmap every VMA that lies in [addr, addr + length) (bytes): zap, unlink from rmap, free tables, free the VMAs.

    Returns 0; -EINVAL: not aligned, empty, beyond the end of user addresses, or (unless config.SPLIT_VMAS) a VMA lies there
    only in part; -ENOMEM: such a VMA can't be split.
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if addr & mask or length <= 0 or addr > config.TASK_SIZE or length > config.TASK_SIZE - addr:
        return -EINVAL
    end = addr + ((length + mask) & ~mask)
    down_write(mm.mmap_sem)
    if config.SPLIT_VMAS and (split_at(mm, addr) != 0 or split_at(mm, end) != 0):
        mmap_write_unlock(mm)
        return -ENOMEM
    for vma in mm.mmap:
        if vma.vm_end > addr and vma.vm_start < end and (vma.vm_start < addr or vma.vm_end > end):
            up_write(mm.mmap_sem)
            return -EINVAL
    if config.EVENTS:
        userfaultfd_unmap_prep(mm, addr, end)
    told = False
    if config.RACED_EVENTS & FEATURE_EVENT_UNMAP:
        told = is_registered(mm, addr, end)
        if told:
            event_begins(mm)
    while True:
        gone = vma_within(mm, addr, end)
        if gone is None:
            break
        vma_start_write(gone)
        detach_vma(mm, gone)
    vma_end_write_all(mm)
    if era.munmap_downgrades:
        # Nobody finds the VMAs any more: faults elsewhere in the address space may go on.
        downgrade_write(mm.mmap_sem)
    unmap_detached(mm, addr, end)
    if era.munmap_downgrades:
        up_read(mm.mmap_sem)
    else:
        up_write(mm.mmap_sem)
    if config.RACED_EVENTS & FEATURE_EVENT_UNMAP and told:
        wait_for_reader(mm, EVENT_UNMAP)
    return 0


@modelled("mm/mmap.c", function="unmap_region", versions="v3.10 .. v6.8", section="C.4", steps=4)
def unmap_detached(mm: mm_struct, addr: int, end: int) -> None:
    """What becomes of VMAs that nobody finds any more: zap, unlink, free the page tables, free."""
    for vma in machine.vmas:
        if detached_here(vma):
            zap_page_range(mm, vma, vma.vm_start, vma.vm_end)
    for vma in machine.vmas:
        if detached_here(vma):
            unlink_anon_vmas(vma)
    free_pgd_range(mm, addr, end)
    tlb_finish_mmu(mm, addr, end)
    for vma in machine.vmas:
        if detached_here(vma):
            vm_area_free(vma)


def do_munmap(mm: mm_struct, addr: int, length: int, when: int = EARLY) -> int:
    """As sys_munmap, for who holds mmap_sem for writing already, and goes on to. 0 or -ENOMEM."""
    end = addr + length
    if split_at(mm, addr) != 0 or split_at(mm, end) != 0:
        return -ENOMEM
    if config.EVENTS:
        userfaultfd_unmap_prep(mm, addr, end, when)
    while True:
        gone = vma_within(mm, addr, end)
        if gone is None:
            break
        vma_start_write(gone)
        detach_vma(mm, gone)
    unmap_detached(mm, addr, end)
    return 0


def split_at(mm: mm_struct, addr: int) -> int:
    """No VMA crosses the address any more. 0 or -ENOMEM."""
    vma = find_vma(mm, addr)
    if vma is not None and vma.vm_start < addr and split_vma(mm, vma, addr) is None:
        return -ENOMEM
    return 0


@modelled(
    "mm/mmap.c",
    function="do_mmap (MAP_FIXED, private, anonymous)",
    versions="v6.13 .. v6.18",
    section="C.1",
    steps=2,
    omits="the choice of an address, limits, accounting, population; the old mapping goes in a step of its own",
)
def sys_mmap(mm: mm_struct, addr: int, length: int, flags: int) -> int:
    """An anonymous private mapping in place of whatever is there. 0, -EINVAL or -ENOMEM."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if length == 0:
        return -EINVAL
    length = (length + mask) & ~mask
    # Before the alignment: __get_unmapped_area.
    if length > config.TASK_SIZE or addr > config.TASK_SIZE - length:
        return -ENOMEM
    if addr & mask:
        return -EINVAL
    if flags & vm.WRITE:
        flags |= int(vm.ACCOUNT)
    if unmap_range(mm, addr, length) != 0:
        return -ENOMEM
    down_write(mm.mmap_sem)
    made = mmap_region(mm, addr, addr + length, flags)
    mmap_write_unlock(mm)
    if config.EVENTS:
        deliver()
    return 0 if made is not None else -ENOMEM


def vma_within(mm: mm_struct, start: int, end: int) -> vm_area_struct | None:
    for vma in mm.mmap:
        if vma.vm_start >= start and vma.vm_end <= end:
            return vma
    return None


@atomic
def detach_vma(mm: mm_struct, vma: vm_area_struct) -> None:
    """Out of the address space, on to the caller's own list."""
    mm.mmap.remove(vma)
    vma.detached = smp_processor_id() + 1


@ghost
@raw
def detached_here(vma: vm_area_struct) -> bool:
    """Is the VMA on this CPU's list of those that its munmap took out?"""
    return vma.detached == smp_processor_id() + 1


@modelled(
    "mm/mmap.c",
    versions="v3.10 .. v6.18",
    section="C.4",
    steps=5,
    omits="the mmu notifier, mlock, the OOM reaper",
)
def exit_mmap(mm: mm_struct) -> None:
    """The last user of an address space is gone: everything in it goes. v3.10 takes no lock for it."""
    if era.folios:
        down_read(mm.mmap_sem)
    for vma in mm.mmap:
        zap_page_range(mm, vma, vma.vm_start, vma.vm_end)
    if era.folios:
        up_read(mm.mmap_sem)
        down_write(mm.mmap_sem)
    while len(mm.mmap) != 0:
        detach_vma(mm, mm.mmap[0])
    for vma in machine.vmas:
        if detached_here(vma):
            unlink_anon_vmas(vma)
    end = len(mm.pmd) << (config.PAGE_SHIFT + config.HPAGE_PMD_ORDER)
    free_pgd_range(mm, 0, end)
    tlb_finish_mmu(mm, 0, end)
    for vma in machine.vmas:
        if detached_here(vma):
            vm_area_free(vma)
    if era.folios:
        up_write(mm.mmap_sem)
