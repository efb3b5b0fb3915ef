"""mm/madvise.c and mm/gup.c: pages that are faulted in because somebody asks for them, not because they are touched."""

from __future__ import annotations

from .catalogue import modelled
from .errno import EFAULT, EHWPOISON, EINVAL, ENOMEM
from .events import handle_userfault
from .lang import reached
from .locks import down_read, spin_lock, spin_unlock, up_read
from .machine import config
from .memory import handle_mm_fault
from .mm_types import (
    VM_FAULT_HWPOISON,
    VM_FAULT_OOM,
    VM_FAULT_USERFAULT,
    PmdKind,
    PteKind,
    mm_struct,
    vm,
    vm_area_struct,
)
from .mmap import find_vma, vma_at_or_after
from .pgtable import pmd_lockptr, pmd_offset, pmd_trans_huge, pte_lockptr, pte_offset, set_pmd, table_is_gone
from .slab import compound_head


@modelled(
    "mm/madvise.c, mm/gup.c",
    function="madvise_populate, faultin_page_range",
    versions="v5.14 .. v6.18",
    section="C.1",
    steps=3,
    omits="signals; a fault that lets mmap_sem go, unless a userfaultfd's monitor is asked",
)
def madvise_populate(mm: mm_struct, start: int, end: int, write: bool) -> int:
    """Fault every page of the range in, under one hold of mmap_sem.

    0; -ENOMEM: not mapped; -EINVAL: not for this access; -EFAULT: a signal; -EHWPOISON. What lies before it is done.
    """
    down_read(mm.mmap_sem)
    err = populate_locked(mm, start, end, write)
    up_read(mm.mmap_sem)
    if err == 0:
        reached("a range was populated")
    return err


def populate_locked(mm: mm_struct, start: int, end: int, write: bool) -> int:
    """Page by page. mmap_sem is held for reading."""
    err = 0
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        err = populate_one(mm, number << config.PAGE_SHIFT, write)
        if err != 0:
            break
    return err


@modelled(
    "mm/madvise.c", function="madvise_walk_vmas, madvise_populate", versions="v5.14 .. v6.8", section="C.1", steps=3
)
def populate_vmas(mm: mm_struct, start: int, end: int, write: bool) -> int:
    """The same, VMA by VMA: also what lies behind a hole is faulted in."""
    at = start
    hole = False
    err = 0
    down_read(mm.mmap_sem)
    while at < end and err == 0:
        vma = vma_at_or_after(mm, at)
        if vma is None or vma.vm_start >= end:
            hole = True
            break
        if vma.vm_start > at:
            hole = True
            at = vma.vm_start
        last = min(end, vma.vm_end)
        err = populate_locked(mm, at, last, write)
        at = last
    up_read(mm.mmap_sem)
    if err == 0 and hole:
        err = -ENOMEM
    if err == 0:
        reached("a range was populated")
    return err


def populate_one(mm: mm_struct, addr: int, write: bool) -> int:
    """Look the VMA up, and fault its page in: again where a monitor was asked, since the lock was let go meanwhile."""
    while True:
        vma = find_vma(mm, addr)
        if vma is None:
            return -ENOMEM
        if not vma.vm_flags & (vm.WRITE if write else vm.READ):
            return -EINVAL
        err, again = faultin_page(mm, vma, addr, write)
        if not again:
            return err


def faultin_page(mm: mm_struct, vma: vm_area_struct, addr: int, write: bool) -> tuple[int, bool]:
    """Faults until the page can be accessed, or no more can be done: (0 or an errno, is the VMA to be looked up again?).

    mmap_sem is held for reading; it was let go if the second is true.
    """
    while not touch_mapped(mm, addr, write):
        result = handle_mm_fault(vma, addr, write)
        if config.EVENTS and result == VM_FAULT_USERFAULT:
            up_read(mm.mmap_sem)
            resolved = handle_userfault(vma, addr, write)
            down_read(mm.mmap_sem)
            if resolved:
                return 0, True
        if result == VM_FAULT_HWPOISON:
            return -EHWPOISON, False
        if result == VM_FAULT_OOM:
            return -ENOMEM, False
        if result != 0:
            return -EFAULT, False
    return 0, False


@modelled(
    "mm/gup.c",
    function="follow_page_pte, follow_huge_pmd, touch_pmd (FOLL_TOUCH, without a reference)",
    versions="v5.14 .. v6.18",
    section="C.18",
    steps=3,
    omits="marking the page used",
)
def touch_mapped(mm: mm_struct, addr: int, write: bool) -> bool:
    """Is a page mapped for this access? One that will be written by another way than its entry is dirty from now on."""
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    mapped = False
    if pmd_trans_huge(pmd):
        spin_lock(pmd_lockptr(pmdp))
        pmd = pmdp.pmd
        mapped = (pmd.kind == PmdKind.HUGE and (pmd.write or not write)) or (
            pmd.kind == PmdKind.HUGE_ZERO and not write
        )
        if mapped:
            set_pmd(pmdp, pmd._replace(young=True, dirty=pmd.dirty or write))
        spin_unlock(pmd_lockptr(pmdp))
    elif pmd.kind == PmdKind.TABLE:
        spin_lock(pte_lockptr(pmd.table))
        pte = pte_offset(pmd.table, addr).pte
        gone = config.PT_RECLAIM and table_is_gone(mm, addr, pmd.table)
        mapped = pte.kind == PteKind.PRESENT and not pte.protnone and (pte.write or not write) and not gone
        if mapped and write and not pte.special and not pte.dirty:
            compound_head(pte.page).dirty = True
        spin_unlock(pte_lockptr(pmd.table))
    return mapped
