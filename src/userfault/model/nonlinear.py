"""mm/fremap.c remap_file_pages and mm/rmap.c try_to_unmap_file: the contrast that the seed wants to be unlike (R11, R36).

In a linear VMA a page's address is computed from its index. In a VMA that remap_file_pages has shuffled it is not: the
reverse map can only scan, in clusters, and unmaps whatever it finds. Both costs are counted in PTEs looked at.
"""

from __future__ import annotations

from .catalogue import modelled
from .machine import config, machine, new_mm, new_page
from .memory import pte_alloc
from .mm_types import PteKind, address_space, mm_struct, page, pte_t, vm, vm_area_struct
from .pgtable import linear_page_index, pmd_offset, pte_offset, set_pte, vma_address

CLUSTER = 32
"""PTEs that one step of the mini virtual scan looks at (CLUSTER_SIZE of mm/rmap.c)."""


@modelled(
    "mm/fremap.c", function="sys_remap_file_pages", versions="v3.10 .. v3.19", section="A.6", omits="locks, population"
)
def remap_file_pages(vma: vm_area_struct, addr: int, file_page: int) -> None:
    """Map another page of the file at an address: from now on the VMA is nonlinear."""
    mapping = vma.vm_file
    if not vma.vm_flags & vm.NONLINEAR:
        vma.vm_flags |= int(vm.NONLINEAR)
        mapping.i_mmap.remove(vma)
        mapping.i_mmap_nonlinear.append(vma)
    table = pte_alloc(vma.vm_mm, addr)
    set_pte(pte_offset(table, addr), pte_t(kind=PteKind.PRESENT, page=mapping.pages[file_page]))  # type: ignore[arg-type]


@modelled("mm/rmap.c", versions="v3.10 .. v3.19", section="A.6", omits="locks, the cursor kept in the VMA, mlock")
def try_to_unmap_file(p: page) -> int:
    """Unmap a file page everywhere; returns how many PTEs had to be looked at."""
    mapping = p.mapping
    if not isinstance(mapping, address_space):
        return 0
    looked = 0
    for vma in mapping.i_mmap:
        addr = vma_address(vma, p.index)
        if addr >= 0:
            looked += 1
            unmap_if(p, vma, addr)
    for vma in mapping.i_mmap_nonlinear:
        addr = vma.vm_start
        while addr < vma.vm_end and p.mapcount.counter > 0:
            for _ in range(CLUSTER):
                if addr < vma.vm_end:
                    looked += 1
                    unmap_if(p, vma, addr)
                addr += 1 << config.PAGE_SHIFT
    return looked


def unmap_if(p: page, vma: vm_area_struct, addr: int) -> None:
    ptep = pte_offset(pmd_offset(vma.vm_mm, addr).pmd.table, addr)
    if ptep.pte.kind == PteKind.PRESENT and ptep.pte.page is p:
        # The hole keeps the offset in a nonlinear VMA: it can't be computed either.
        linear = linear_page_index(vma, addr) == p.index
        set_pte(ptep, pte_t() if linear else pte_t(kind=PteKind.FILE))
        p.mapcount.counter -= 1


def cost_of_unmapping(pages: int, target: int) -> tuple[int, int]:
    """(linear, nonlinear): PTEs looked at to unmap one page of a file of `pages` pages, mapped once in either way."""
    costs = []
    for shuffled in (False, True):
        mm: mm_struct = new_mm(pages)
        mapping = address_space()
        vma = vm_area_struct(
            vm_mm=mm,
            vm_start=0,
            vm_end=pages << config.PAGE_SHIFT,
            vm_flags=int(vm.SHARED),
            vm_file=mapping,
            allocated=True,
        )
        mapping.i_mmap.append(vma)
        for number in range(pages):
            each = new_page()
            each.allocated = True
            each.mapping = mapping
            each.index = number
            each.mapcount.counter = 1
            mapping.pages.append(each)
            table = pte_alloc(mm, number << config.PAGE_SHIFT)
            set_pte(pte_offset(table, number << config.PAGE_SHIFT), pte_t(kind=PteKind.PRESENT, page=each))
        if shuffled:
            for number in range(pages):
                remap_file_pages(vma, number << config.PAGE_SHIFT, pages - 1 - number)
        wanted = mapping.pages[target]
        assert wanted is not None
        costs.append(try_to_unmap_file(wanted))
    machine.mms.clear()
    return costs[0], costs[1]
