"""mm/madvise.c: advice on ranges of whole VMAs."""

from __future__ import annotations

from .catalogue import modelled
from .errno import EINVAL, ENOMEM
from .locks import down_read, down_write, up_read, up_write
from .memory import zap_page_range
from .mm_types import mm_struct, vm
from .mmap import find_vma


@modelled("mm/madvise.c", versions="v3.10 .. v6.8", section="C.4", steps=3, omits="ranges over several VMAs, hugetlb")
def madvise_dontneed(mm: mm_struct, addr: int, length: int) -> int:
    """MADV_DONTNEED: forget the contents, holding mmap_sem for reading only."""
    down_read(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None or addr + length > vma.vm_end:
        up_read(mm.mmap_sem)
        return -ENOMEM
    if vma.vm_flags & vm.LOCKED:
        up_read(mm.mmap_sem)
        return -EINVAL
    zap_page_range(mm, vma, addr, addr + length)
    up_read(mm.mmap_sem)
    return 0


def change_flags(mm: mm_struct, addr: int, clear: int, add: int) -> int:
    """madvise_behavior: change a VMA's flags under mmap_sem for writing (whole VMAs: no split)."""
    down_write(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None:
        up_write(mm.mmap_sem)
        return -ENOMEM
    if add & vm.USERFAULT and vma.vm_file is not None:
        up_write(mm.mmap_sem)
        return -EINVAL
    vma.vm_flags = (vma.vm_flags & ~clear) | add
    up_write(mm.mmap_sem)
    return 0


@modelled("mm/madvise.c", versions="v3.10 .. v6.8", section="A.1", steps=1)
def madvise_dontfork(mm: mm_struct, addr: int) -> int:
    """MADV_DONTFORK: a fork does not copy the VMA, so its pages' mapcounts can't rise by one (R13)."""
    return change_flags(mm, addr, 0, int(vm.DONTCOPY))


@modelled("mm/madvise.c", versions="v3.10 .. v6.8", section="A.1", steps=1)
def madvise_dofork(mm: mm_struct, addr: int) -> int:
    """MADV_DOFORK: undo."""
    return change_flags(mm, addr, int(vm.DONTCOPY), 0)


@modelled("mm/madvise.c", versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 08/17)", section="A.3", steps=1)
def madvise_userfault(mm: mm_struct, addr: int) -> int:
    """MADV_USERFAULT: a touch of a missing page raises SIGBUS (R21). v6.8: registration with a userfaultfd."""
    return change_flags(mm, addr, 0, int(vm.USERFAULT))


@modelled("mm/madvise.c", versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 08/17)", section="A.3", steps=1)
def madvise_nouserfault(mm: mm_struct, addr: int) -> int:
    """MADV_NOUSERFAULT: undo."""
    return change_flags(mm, addr, int(vm.USERFAULT), 0)
