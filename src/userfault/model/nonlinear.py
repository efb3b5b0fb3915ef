"""mm/fremap.c remap_file_pages and mm/rmap.c try_to_unmap_file: the contrast that the seed wants to be unlike (R11, R36).

In a linear VMA a page's address is computed from its index. In a VMA that remap_file_pages has shuffled it is not: the
reverse map can only scan, in clusters, and unmaps whatever it finds. Both costs are counted in PTEs looked at. Sequential runs only.
"""

from __future__ import annotations

from .catalogue import modelled
from .machine import config, machine, new_mm, new_page
from .memory import pte_alloc
from .mm_types import PteKind, address_space, mm_struct, page, pte_slot, pte_t, vm, vm_area_struct
from .pgtable import linear_page_index, pmd_offset, pte_offset, ptep_clear_young, set_pte, vma_address

CLUSTER = 32
"""PTEs that one step of the mini virtual scan looks at (CLUSTER_SIZE of mm/rmap.c)."""


@modelled(
    "mm/fremap.c",
    function="sys_remap_file_pages, install_file_pte",
    versions="v3.10 .. v3.19",
    section="A.6",
    omits="locks, the checks of its arguments, files whose dirty pages are counted (they get a linear VMA); the page is mapped "
    "at once, where the kernel leaves its offset to a fault",
)
def remap_file_pages(vma: vm_area_struct, addr: int, file_page: int) -> None:
    """Map another page of the file at an address: from now on the VMA is nonlinear, unless the page belongs there anyway."""
    mapping = vma.vm_file
    if not vma.vm_flags & vm.NONLINEAR:
        if linear_page_index(vma, addr) == file_page:
            return
        vma.vm_flags |= int(vm.NONLINEAR)
        mapping.i_mmap.remove(vma)
        mapping.i_mmap_nonlinear.append(vma)
    ptep = pte_offset(pte_alloc(vma.vm_mm, addr), addr)
    if ptep.pte.kind == PteKind.PRESENT:
        ptep.pte.page.mapcount.counter -= 1
    wanted = mapping.pages[file_page]
    if wanted is not None:
        wanted.mapcount.counter += 1
        set_pte(ptep, pte_t(kind=PteKind.PRESENT, page=wanted))


@modelled("mm/rmap.c", versions="v3.10 .. v3.19", section="A.6", omits="locks, mlock")
def try_to_unmap_file(p: page) -> int:
    """Unmap a file page, as far as it can be found; returns how many PTEs were looked at.

    A nonlinear VMA is not searched for the page: its PTEs are swept, from where the last sweep ended, until as many pages went as
    this one has mappings. Whether it was among them only its mapcount tells.
    """
    mapping = p.mapping
    if not isinstance(mapping, address_space):
        return 0
    looked = 0
    for vma in mapping.i_mmap:
        addr = vma_address(vma, p.index)
        if addr >= 0 and p.mapcount.counter > 0:
            looked += 1
            ptep = pte_offset(pmd_offset(vma.vm_mm, addr).pmd.table, addr)
            if ptep.pte.kind == PteKind.PRESENT and ptep.pte.page is p:
                unmap(vma, addr, ptep)
    budget = p.mapcount.counter
    step = CLUSTER << config.PAGE_SHIFT
    cursor = 0
    size = 0
    for vma in mapping.i_mmap_nonlinear:
        cursor = max(cursor, vma.cursor)
        size = max(size, vma.vm_end - vma.vm_start)
    cursor = max(cursor, step)
    while budget > 0 and cursor < size + step:
        for vma in mapping.i_mmap_nonlinear:
            while vma.cursor < min(cursor, vma.vm_end - vma.vm_start):
                seen, gone = try_to_unmap_cluster(vma)
                looked += seen
                budget -= gone
                vma.cursor += step
                if budget <= 0:
                    return looked
            vma.cursor = cursor
        cursor += step
    for vma in mapping.i_mmap_nonlinear:
        vma.cursor = 0
    return looked


@modelled(
    "mm/rmap.c",
    versions="v3.10 .. v3.19",
    section="A.6",
    omits="locks, mlock, what the cluster's boundaries are aligned to",
)
def try_to_unmap_cluster(vma: vm_area_struct) -> tuple[int, int]:
    """Sweep one cluster: whatever is mapped goes, unless it was used since the last sweep. (PTEs looked at, pages unmapped.)"""
    seen = 0
    gone = 0
    first = vma.vm_start + vma.cursor
    for number in range(first >> config.PAGE_SHIFT, (first >> config.PAGE_SHIFT) + CLUSTER):
        addr = number << config.PAGE_SHIFT
        if addr >= vma.vm_end:
            break
        seen += 1
        ptep = pte_offset(pmd_offset(vma.vm_mm, addr).pmd.table, addr)
        if ptep.pte.kind == PteKind.PRESENT and not ptep_clear_young(ptep):
            unmap(vma, addr, ptep)
            gone += 1
    return seen, gone


def unmap(vma: vm_area_struct, addr: int, ptep: pte_slot) -> None:
    """The hole keeps the page's offset in a nonlinear VMA, where it can't be computed either."""
    p = ptep.pte.page
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
        looked = 0
        while wanted.mapcount.counter > 0:
            looked += try_to_unmap_file(wanted)
        costs.append(looked)
    machine.mms.clear()
    return costs[0], costs[1]
