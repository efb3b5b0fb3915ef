"""KSM pages: merged, found again by the places that were merged, unmapped, migrated."""

from __future__ import annotations

import pytest

from userfault.model import era as eras
from userfault.model.fork import sys_fork
from userfault.model.ksm import ksm_make_stable, ksm_merge
from userfault.model.ksmd import PAGE, Ksmd
from userfault.model.machine import attach, boot, machine, new_mm
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import PteKind, mm_struct, page, stable_node, vm
from userfault.model.mmap import do_mmap, sys_mmap, sys_munmap
from userfault.model.page_flags import page_mapped
from userfault.model.pgtable import pte_offset
from userfault.model.slab import get_page, put_page
from userfault.model.user import poke
from userfault.model.vmscan import shrink_page

from .scene import CONTENT, PAGES, every_era, page_at, pte_at, read, run_in, settled, start, write

old = pytest.mark.parametrize("era", [name for name, era in eras.ERAS.items() if not era.folios])


def merged(era: str) -> tuple[mm_struct, page, mm_struct]:
    """Pages 0 and 1 are one KSM page, which a forked child maps at both places too."""
    mm = start(era, ksm=True)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    do_mmap(mm, 4, 2, int(vm.WRITE | vm.DONTCOPY), 9)
    write(mm, 0, CONTENT)
    write(mm, 4, CONTENT)
    kpage = page_at(mm, 0)
    assert ksm_make_stable(mm, 0) == 0
    assert ksm_merge(mm, 4, kpage) == 0
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert kpage.mapcount.counter == 3
    settled()
    run_in(mm)
    return mm, kpage, child


@every_era
def test_a_ksm_page_is_found_wherever_it_is_mapped(era: str) -> None:
    mm, kpage, child = merged(era)
    node = kpage.mapping
    assert isinstance(node, stable_node)
    assert [each.address for each in node.hlist] == [0, 4]
    assert migrate_page(kpage) == 0
    moved = page_at(mm, 0)
    assert moved is not kpage
    assert moved is page_at(mm, 4)
    assert moved is page_at(child, 0)
    assert moved.mapping is node
    assert node.page is moved
    assert not kpage.allocated
    assert read(mm, 4) == CONTENT
    settled()


@every_era
def test_a_ksm_page_is_swapped_out_of_every_place_and_back(era: str) -> None:
    mm, kpage, child = merged(era)
    assert shrink_page(kpage) == 1
    assert {pte_at(mm, 0).kind, pte_at(mm, 4).kind, pte_at(child, 0).kind} == {PteKind.SWAP}
    assert machine.swap_slots[0].swap_map == 3
    assert write(mm, 0, b"first") == 0
    assert write(mm, 4, b"second") == 0
    run_in(child)
    assert read(child, 0) == CONTENT
    run_in(mm)
    assert (read(mm, 0), read(mm, 4)) == (b"first", b"second")
    settled()


@every_era
def test_a_merged_place_keeps_its_anon_vma(era: str) -> None:
    mm, kpage, _ = merged(era)
    before = [each.refcount.counter for each in machine.anon_vmas if each.allocated]
    assert sum(before) >= 5
    write(mm, 4, b"apart")
    assert page_at(mm, 4) is not kpage
    assert kpage.mapcount.counter == 2
    settled()


def test_a_ksm_page_that_nobody_maps_loses_its_node_when_everything_is_unmerged() -> None:
    eras.use("v6.18")
    boot(page_shift=12, ksm=True, split_vmas=True)
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
    ksmd = Ksmd()
    ksmd.enter(mm)
    assert sys_mmap(mm, 0, 3 * PAGE, int(vm.READ | vm.WRITE)) == 0
    mm.mmap[0].vm_flags |= int(vm.MERGEABLE)
    for at in range(3):
        assert poke(mm, at * PAGE, b"all the same") == 12
    ksmd.run()
    kpage = pte_offset(mm.pmd[0].pmd.table, 0).pte.page
    node = ksmd.node_of(kpage)
    assert node is not None and ksmd.merged[id(node)] == 3 == kpage.mapcount.counter
    get_page(kpage)
    assert sys_munmap(mm, 0, 2 * PAGE) == 0
    ksmd.unmerge()
    assert ksmd.node_of(kpage) is None and not page_mapped(kpage)
    put_page(kpage)
    ksmd.run()
    settled()
