"""mm/mmap.c: VMAs come, are found, and go."""

from __future__ import annotations

from .catalogue import modelled
from .errno import EINVAL
from .lang import NULL, atomic, exhausted, raw
from .locks import down_write, up_write
from .machine import machine
from .memory import zap_page_range
from .mm_types import mm_struct, vm_area_struct
from .rmap import unlink_anon_vmas


@atomic
@raw
def vm_area_alloc() -> vm_area_struct:
    """A free vm_area_struct, its fields empty."""
    for each in machine.vmas:
        if not each.allocated:
            each.allocated = True
            each.anon_vma = NULL
            return each
    exhausted("vm_area_struct")
    return vm_area_new()


def vm_area_new() -> vm_area_struct:
    made = vm_area_struct(allocated=True)
    machine.vmas.append(made)
    return made


@atomic
@raw
def vm_area_free(vma: vm_area_struct) -> None:
    vma.allocated = False


def find_vma(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The VMA that contains an address (bytes); mmap_sem held."""
    for vma in mm.mmap:
        if vma.vm_start <= addr and addr < vma.vm_end:
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
    return vma


@modelled(
    "mm/mmap.c",
    function="do_munmap",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=7,
    omits="splitting of VMAs (whole VMAs only), accounting, freeing of page tables: they stay, empty",
    errs="missed bug",
)
def sys_munmap(mm: mm_struct, addr: int, length: int) -> int:
    """Unmap every VMA that lies in [addr, addr + length). Returns 0, or -EINVAL if one lies there only in part."""
    down_write(mm.mmap_sem)
    for vma in mm.mmap:
        if vma.vm_end > addr and vma.vm_start < addr + length and (vma.vm_start < addr or vma.vm_end > addr + length):
            up_write(mm.mmap_sem)
            return -EINVAL
    while True:
        gone = vma_within(mm, addr, length)
        if gone is None:
            break
        mm.mmap.remove(gone)
        zap_page_range(mm, gone, addr, addr + length)
        unlink_anon_vmas(gone)
        vm_area_free(gone)
    up_write(mm.mmap_sem)
    return 0


def vma_within(mm: mm_struct, addr: int, length: int) -> vm_area_struct | None:
    for vma in mm.mmap:
        if vma.vm_start >= addr and vma.vm_end <= addr + length:
            return vma
    return None
