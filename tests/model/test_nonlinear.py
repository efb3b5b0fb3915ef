"""remap_file_pages' nonlinear VMAs: swept, not searched."""

from __future__ import annotations

import pytest

from userfault.model.machine import new_mm, new_page
from userfault.model.mm_types import PteKind, address_space, page, pte_slot, pte_t, vm, vm_area_struct
from userfault.model.nonlinear import CLUSTER, remap_file_pages, try_to_unmap_file

from .scene import start

PAGES = 4 * CLUSTER


@pytest.fixture
def vma() -> vm_area_struct:
    """A file of four clusters, mapped once, and each page where it belongs."""
    start("v3.10")
    mapping = address_space()
    made = vm_area_struct(vm_mm=new_mm(PAGES), vm_end=PAGES, vm_flags=int(vm.SHARED), vm_file=mapping, allocated=True)
    mapping.i_mmap.append(made)
    for number in range(PAGES):
        each = new_page()
        each.allocated = True
        each.mapping, each.index = mapping, number
        mapping.pages.append(each)
    made.vm_flags |= int(vm.NONLINEAR)
    for number in range(PAGES):
        remap_file_pages(made, number, number)
    made.vm_flags &= ~int(vm.NONLINEAR)
    return made


def slot(vma: vm_area_struct, addr: int) -> pte_slot:
    return vma.vm_mm.pmd[addr >> 1].pmd.table.pte[addr & 1]


def at(vma: vm_area_struct, number: int) -> page:
    found = vma.vm_file.pages[number]
    assert found is not None
    return found


def test_a_page_that_belongs_there_leaves_the_vma_linear(vma: vm_area_struct) -> None:
    remap_file_pages(vma, 3, 3)
    assert vma.vm_file.i_mmap == [vma] and not vma.vm_flags & vm.NONLINEAR
    remap_file_pages(vma, 3, 9)
    assert vma.vm_file.i_mmap_nonlinear == [vma]
    assert (at(vma, 3).mapcount.counter, at(vma, 9).mapcount.counter) == (0, 2)
    remap_file_pages(vma, 3, 3)
    assert vma.vm_file.i_mmap_nonlinear == [vma], "for ever"


def test_a_sweep_takes_what_it_finds_and_goes_on_where_it_ended(vma: vm_area_struct) -> None:
    remap_file_pages(vma, 0, PAGES - 1)
    wanted = at(vma, PAGES // 2)
    assert try_to_unmap_file(wanted) == CLUSTER and wanted.mapcount.counter == 1
    assert slot(vma, 0).pte == pte_t(kind=PteKind.FILE), "its offset can't be computed"
    assert all(slot(vma, addr).pte == pte_t() for addr in range(1, CLUSTER))
    assert slot(vma, CLUSTER).pte.kind == PteKind.PRESENT
    assert [try_to_unmap_file(wanted) for _ in range(2)] == [CLUSTER] * 2 and wanted.mapcount.counter == 0
    assert try_to_unmap_file(wanted) == 0


def test_what_was_used_since_is_spared_once(vma: vm_area_struct) -> None:
    remap_file_pages(vma, 0, PAGES - 1)
    for addr in range(PAGES):
        slot(vma, addr).pte = slot(vma, addr).pte._replace(young=True)
    assert try_to_unmap_file(at(vma, 1)) == PAGES
    assert all(slot(vma, addr).pte.kind == PteKind.PRESENT for addr in range(PAGES))
    assert try_to_unmap_file(at(vma, 1)) == CLUSTER
    assert at(vma, 1).mapcount.counter == 0
