"""mm/mlock.c: ranges whose pages stay in memory."""

from __future__ import annotations

from .catalogue import modelled
from .errno import EAGAIN, EFAULT, EINVAL, ENOMEM
from .locks import down_read, down_write, up_read
from .machine import config
from .mm_types import mm_struct, vm, vm_area_struct
from .mmap import find_vma, vma_at_or_after
from .populate import faultin_page
from .vma import vma_modify
from .vma_lock import mmap_write_unlock, vma_start_write

LOCKED_MASK = int(vm.LOCKED | vm.LOCKONFAULT)


@modelled("mm/mlock.c", function="apply_vma_lock_flags, mlock_fixup", versions="v6.6 .. v6.18", section="C.4", steps=3)
def apply_vma_lock_flags(mm: mm_struct, start: int, end: int, flags: int) -> int:
    """Set or clear VM_LOCKED VMA by VMA: 0, or -ENOMEM at the first hole (what lies before it is done)."""
    at = start
    while at < end:
        vma = find_vma(mm, at)
        if vma is None:
            return -ENOMEM
        wanted = (vma.vm_flags & ~LOCKED_MASK) | flags
        last = min(end, vma.vm_end)
        if wanted != vma.vm_flags:
            changed = vma_modify(mm, vma, at, last, wanted, vma.ctx)
            if changed is None:
                return -ENOMEM
            vma = changed
            vma_start_write(vma)
            vma.vm_flags = wanted | (vma.vm_flags & int(vm.MAYBE_GUARD))
        at = last
    return 0


@modelled(
    "mm/gup.c", function="populate_vma_page_range, faultin_page", versions="v4.5 .. v6.18", section="C.1", steps=2
)
def populate_vma_page_range(mm: mm_struct, vma: vm_area_struct, start: int, end: int) -> tuple[int, int]:
    """Fault a part of a VMA in, for writing if it may be written: (up to where, 0, -EFAULT or -ENOMEM).

    Short of the end, without an error: a monitor was asked, and the VMA is to be looked up again.
    """
    if vma.vm_flags & vm.LOCKONFAULT:
        return end, 0
    if vma.vm_flags & (vm.READ | vm.WRITE | vm.EXEC) == 0:
        return start, -EFAULT
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        addr = number << config.PAGE_SHIFT
        err, again = faultin_page(mm, vma, addr, vma.vm_flags & vm.WRITE != 0)
        if again:
            return addr, 0
        if err != 0:
            return addr, -ENOMEM if err == -ENOMEM else -EFAULT
    return end, 0


@modelled("mm/gup.c", function="__mm_populate", versions="v4.5 .. v6.18", section="C.1", steps=2)
def mm_populate(mm: mm_struct, start: int, end: int) -> int:
    """Fault in what is mapped of a range: 0, -EFAULT or -ENOMEM."""
    down_read(mm.mmap_sem)
    at = start
    err = 0
    while at < end and err == 0:
        vma = vma_at_or_after(mm, at)
        if vma is None or vma.vm_start >= end:
            break
        at, err = populate_vma_page_range(mm, vma, max(at, vma.vm_start), min(end, vma.vm_end))
    up_read(mm.mmap_sem)
    return err


@modelled(
    "mm/mlock.c",
    function="do_mlock",
    versions="v4.4 .. v6.18",
    section="C.4",
    steps=3,
    omits="limits; pages on the unevictable list",
)
def sys_mlock(mm: mm_struct, addr: int, length: int, onfault: bool) -> int:
    """mlock2(2): 0; -EINVAL: it wraps; -ENOMEM: a hole, or a page that could not be faulted in; -EAGAIN: no memory for it."""
    mask = (1 << config.PAGE_SHIFT) - 1
    end = (addr + length + mask) & ~mask
    start = addr & ~mask
    if end >= config.WRAP_AT:
        return -EINVAL
    down_write(mm.mmap_sem)
    err = apply_vma_lock_flags(mm, start, end, LOCKED_MASK if onfault else int(vm.LOCKED))
    mmap_write_unlock(mm)
    if err != 0:
        return err
    err = mm_populate(mm, start, end)
    if err == -ENOMEM:
        return -EAGAIN
    return -ENOMEM if err != 0 else 0


@modelled("mm/mlock.c", versions="v3.10 .. v6.18", section="C.4", steps=1)
def sys_munlock(mm: mm_struct, addr: int, length: int) -> int:
    """munlock(2): 0 or -ENOMEM at the first hole."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if addr + length >= config.WRAP_AT:
        return -EINVAL
    down_write(mm.mmap_sem)
    err = apply_vma_lock_flags(mm, addr & ~mask, (addr + length + mask) & ~mask, 0)
    mmap_write_unlock(mm)
    return err
