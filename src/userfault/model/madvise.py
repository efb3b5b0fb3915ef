"""mm/madvise.c: advice on ranges of addresses."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EINVAL, ENOMEM
from .lang import reached
from .locks import down_read, down_write, up_read, up_write
from .machine import config
from .memory import zap_page_range
from .mm_types import mm_struct, vm
from .mmap import find_vma


@modelled("mm/madvise.c", versions="v3.10 .. v6.8", section="C.4", steps=3, omits="hugetlb and PFN mappings")
def madvise_dontneed(mm: mm_struct, addr: int, length: int) -> int:
    """MADV_DONTNEED: forget the contents of [addr, addr + length) (bytes), holding mmap_sem for reading only.

    Returns 0; -EINVAL: not aligned, or a locked VMA was met (those before it are done); -ENOMEM: not all is mapped (what is
    mapped is done).
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if addr & mask or length < 0 or length > config.WRAP_AT - addr:
        return -EINVAL
    end = addr + ((length + mask) & ~mask)
    if end >= config.WRAP_AT:
        return -EINVAL
    down_read(mm.mmap_sem)
    at = addr
    hole = False
    for vma in mm.mmap:
        if vma.vm_end <= at or vma.vm_start >= end:
            continue
        if vma.vm_start > at:
            hole = True
            at = vma.vm_start
        if vma.vm_flags & vm.LOCKED:
            up_read(mm.mmap_sem)
            return -EINVAL
        zap_page_range(mm, vma, at, min(end, vma.vm_end))
        at = vma.vm_end
    up_read(mm.mmap_sem)
    reached("a range was forgotten")
    return -ENOMEM if hole or at < end else 0


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
    vma.vm_flags = (vma.vm_flags & ~clear) | add
    up_write(mm.mmap_sem)
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
    if not era.remap_anon_pages and not era.uffdio_move:
        # v3.10 knows no such advice.
        return -EINVAL
    return change_flags(mm, addr, 0, int(vm.USERFAULT))


@modelled("mm/madvise.c", versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 08/17)", section="A.3", steps=1)
def madvise_nouserfault(mm: mm_struct, addr: int) -> int:
    """MADV_NOUSERFAULT: undo."""
    if not era.remap_anon_pages and not era.uffdio_move:
        return -EINVAL
    return change_flags(mm, addr, int(vm.USERFAULT), 0)
