"""include/linux/mmap_lock.h, mm/mmap_lock.c: a lock for each VMA, with config.PER_VMA_LOCKS (v6.4).

Faults and UFFDIO_MOVE hold the locks of their VMAs for reading, and no mmap_lock. Who holds mmap_lock for writing takes the
lock of each VMA that it changes, until it lets mmap_lock go.
"""

from __future__ import annotations

from .catalogue import modelled
from .lang import atomic, check, ghost, raw, smp_processor_id, wait_until
from .locks import might_sleep, up_write
from .machine import config, machine
from .mm_types import mm_struct, vm_area_struct


@modelled(
    "mm/mmap_lock.c",
    versions="v6.4 .. v6.18",
    section="C.13",
    omits="the walk, the count and the second looks are one step: a VMA that is freed and used again in between",
    errs="missed bug",
)
@atomic
@raw
def lock_vma_under_rcu(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The VMA of an address, locked for reading; None without one, or while a writer has it."""
    for vma in mm.mmap:
        if vma.vm_start <= addr and addr < vma.vm_end:
            if vma.vm_write_locked:
                return None
            vma.vm_refcnt += 1
            return vma
    return None


@atomic
def vma_start_read_locked(vma: vm_area_struct) -> None:
    """mmap_lock is held for reading, so that nobody has the VMA for writing."""
    check(not vma.vm_write_locked, "lock_misuse", "vma_start_read_locked of a VMA that a writer has")
    vma.vm_refcnt += 1


@atomic
def vma_end_read(vma: vm_area_struct) -> None:
    check(vma.vm_refcnt > 0, "lock_misuse", "vma_end_read of a VMA that nobody reads")
    vma.vm_refcnt -= 1


@modelled("mm/mmap_lock.c", function="__vma_start_write", versions="v6.4 .. v6.18", section="C.3")
def vma_start_write(vma: vm_area_struct) -> None:
    """Keep new readers out and wait until the old ones are gone; mmap_lock is held for writing."""
    if config.PER_VMA_LOCKS:
        mmap_assert_write_locked(vma.vm_mm)
        keep_readers_out(vma)
        wait_for_readers(vma)


@ghost
def mmap_assert_write_locked(mm: mm_struct) -> None:
    """include/linux/mmap_lock.h: a VMA's lock is let go with mmap_lock, so who takes it without would never let it go."""
    check(
        mm.mmap_sem.writer == smp_processor_id() + 1,
        "lock_misuse",
        "a VMA was locked without mmap_lock held for writing",
    )


@atomic
def keep_readers_out(vma: vm_area_struct) -> None:
    vma.vm_write_locked = True


@atomic
def wait_for_readers(vma: vm_area_struct) -> None:
    might_sleep()
    wait_until(vma.vm_refcnt == 0)


def mmap_write_unlock(mm: mm_struct) -> None:
    """Let mmap_lock go, and with it the locks of the VMAs that were changed."""
    vma_end_write_all(mm)
    up_write(mm.mmap_sem)


def vma_end_write_all(mm: mm_struct) -> None:
    """Part of letting mmap_lock go: mm_lock_seq moves on, and no VMA of the mm is locked for writing any more."""
    if config.PER_VMA_LOCKS:
        end_write_all(mm)


@atomic
@raw
def end_write_all(mm: mm_struct) -> None:
    for vma in machine.vmas:
        if vma.vm_mm is mm:
            vma.vm_write_locked = False
