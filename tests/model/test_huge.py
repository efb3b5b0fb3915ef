"""Huge pages: how they come, are written, shared, split and put together, in every era."""

from __future__ import annotations

import pytest

from userfault.model import era as eras
from userfault.model.anon_vma import anon_vma_lock_write, anon_vma_unlock_write
from userfault.model.errno import EAGAIN, EBUSY
from userfault.model.fork import sys_fork
from userfault.model.gup import unpin_user_page
from userfault.model.huge_split import remap_folio, split_folio, unmap_folio
from userfault.model.khugepaged import collapse_huge_page
from userfault.model.lang import ModelError
from userfault.model.locks import trylock_page, unlock_page
from userfault.model.machine import machine, new_mm
from userfault.model.madvise import MADV, madvise_dontneed, madvise_nouserfault, sys_madvise
from userfault.model.mm_types import PmdKind, PteKind, anon_vma, mm_struct, vm
from userfault.model.mmap import do_mmap, sys_munmap
from userfault.model.page_flags import folio_mapcount
from userfault.model.rmap import page_referenced_anon
from userfault.model.slab import get_page, put_page
from userfault.model.user import load, touch
from userfault.model.vmscan import shrink_page

from .scene import (
    CONTENT,
    PAGES,
    every_era,
    huge,
    kind_at,
    modern,
    move,
    movers,
    old,
    page_at,
    pin,
    pte_at,
    pte_mapped,
    read,
    run_in,
    settled,
    start,
    write,
)


def nothing_is_left(mm: mm_struct) -> None:
    assert sys_munmap(mm, 0, PAGES) == 0
    settled()
    assert not any(each.allocated for each in machine.pages)
    assert not any(each.allocated for each in machine.page_tables)
    assert not any(each.allocated for each in machine.anon_vmas)


@every_era
def test_a_read_maps_the_huge_zero_page_and_a_write_replaces_it(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE | vm.HUGEPAGE), 0)
    assert load(mm, 1) == 0
    assert kind_at(mm, 0) == PmdKind.HUGE_ZERO
    assert not any(each.allocated for each in machine.pages)
    settled()
    assert write(mm, 1, CONTENT) == 0
    # v3.10 allocates a whole huge page, as does v6.18; the kernels between them a small one.
    small = eras.era.pte_mapped_huge and not eras.era.huge_zero_page_is_replaced
    assert kind_at(mm, 0) == (PmdKind.TABLE if small else PmdKind.HUGE)
    assert load(mm, 0) == 0
    assert read(mm, 1) == CONTENT
    settled()
    nothing_is_left(mm)


@every_era
def test_the_huge_zero_page_is_forked_zapped_and_split(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE | vm.HUGEPAGE), 0)
    load(mm, 0)
    load(mm, 2)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert kind_at(child, 0) == PmdKind.HUGE_ZERO
    assert madvise_dontneed(mm, 0, 2) == 0
    assert kind_at(mm, 0) == PmdKind.NONE
    assert madvise_dontneed(mm, 3, 1) == 0
    assert kind_at(mm, 2) == PmdKind.TABLE
    assert pte_at(mm, 2).special
    assert not pte_at(mm, 3).special
    assert collapse_huge_page(mm, 2) == -EAGAIN
    settled()
    mm.mmap[0].vm_flags &= ~vm.HUGEPAGE
    run_in(child)
    child.mmap[0].vm_flags &= ~vm.HUGEPAGE
    assert write(child, 1, CONTENT) == 0
    assert kind_at(child, 0) == (PmdKind.HUGE if eras.era.huge_zero_page_is_replaced else PmdKind.TABLE)
    assert load(child, 0) == 0
    settled()
    nothing_is_left_of(child, mm)


@movers
@pytest.mark.parametrize("write_fault", [False, True])
def test_a_huge_fault_in_a_userfault_region_is_delivered(era: str, write_fault: bool) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE | vm.HUGEPAGE | vm.USERFAULT), 0)
    assert touch(mm, 1, write_fault) == -7
    assert kind_at(mm, 0) == PmdKind.NONE
    assert not any(each.allocated for each in machine.pages)
    assert not any(each.allocated for each in machine.page_tables)
    assert madvise_nouserfault(mm, 0) == 0
    assert touch(mm, 1, write_fault) == 0
    assert kind_at(mm, 0) == (PmdKind.HUGE if write_fault else PmdKind.HUGE_ZERO)
    settled()


@every_era
@pytest.mark.parametrize("flags", [int(vm.WRITE), int(vm.WRITE | vm.HUGEPAGE)])
def test_a_shared_huge_page_is_copied_on_write(era: str, flags: int) -> None:
    mm, p = huge(era, flags)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert folio_mapcount(p) == 2
    settled()
    run_in(mm)
    assert write(mm, 1, b"parent") == 0
    settled()
    if eras.era.pte_mapped_huge or not flags & vm.HUGEPAGE:
        assert kind_at(mm, 0) == PmdKind.TABLE
    else:
        assert kind_at(mm, 0) == PmdKind.HUGE
    assert read(mm, 0) == CONTENT
    assert read(mm, 1) == b"parent"
    run_in(child)
    assert read(child, 1) == b"second part"
    # v3.10: the child is the only one left, and has the page to itself.
    before = child.pmd[0].pmd.page
    assert write(child, 1, b"child") == 0
    if not eras.era.pte_mapped_huge:
        assert child.pmd[0].pmd.page is before
    assert read(child, 0) == CONTENT
    settled()
    nothing_is_left_of(mm, child)


def nothing_is_left_of(*mms: mm_struct) -> None:
    for each in mms[:-1]:
        assert sys_munmap(each, 0, PAGES) == 0
        settled()
    nothing_is_left(mms[-1])


@modern
def test_the_last_mapper_reuses_a_huge_page(era: str) -> None:
    mm, p = huge(era)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert not p.anon_exclusive
    assert sys_munmap(child, 0, PAGES) == 0
    run_in(mm)
    assert write(mm, 0, b"again") == 0
    assert mm.pmd[0].pmd.page is p
    assert p.anon_exclusive
    settled()


@modern
def test_a_mapping_is_split_and_the_page_stays_huge(era: str) -> None:
    mm, p = pte_mapped(era)
    settled()
    assert (p.compound, p.entire_mapcount, folio_mapcount(p)) == (True, 0, 2)
    assert (page_at(mm, 0), page_at(mm, 1).pfn) == (p, p.pfn + 1)
    assert p.refcount.counter == 2
    assert page_at(mm, 1).anon_exclusive
    assert (read(mm, 0), read(mm, 1)) == (CONTENT, b"second part")
    assert page_referenced_anon(p, False) == 1
    run_in(mm)
    assert page_referenced_anon(p, False) == 0
    assert shrink_page(p) == 0
    assert collapse_huge_page(mm, 0) == 0
    assert kind_at(mm, 0) == PmdKind.HUGE and not p.allocated
    assert (read(mm, 0), read(mm, 1)) == (CONTENT, b"second part")
    settled()
    nothing_is_left(mm)


@modern
def test_part_of_a_huge_page_is_forgotten(era: str) -> None:
    mm, p = huge(era)
    assert madvise_dontneed(mm, 1, 1) == 0
    assert (p.compound, folio_mapcount(p), p.refcount.counter) == (True, 1, 1)
    assert load(mm, 1) == 0
    assert read(mm, 0) == CONTENT
    settled()
    # The page goes with its last part.
    assert madvise_dontneed(mm, 0, 1) == 0
    assert not p.allocated
    settled()


@old
def test_part_of_a_huge_page_is_forgotten_by_splitting_it(era: str) -> None:
    mm, p = huge(era)
    assert madvise_dontneed(mm, 1, 1) == 0
    assert not p.compound
    assert page_at(mm, 0) is p
    assert read(mm, 0) == CONTENT
    settled()


@modern
def test_a_pte_mapped_huge_page_is_split_later(era: str) -> None:
    mm, p = pte_mapped(era)
    get_page(p)
    assert trylock_page(p)
    assert split_folio(p) == 0
    unlock_page(p)
    put_page(p)
    assert not p.compound
    assert page_at(mm, 1).refcount.counter == 1
    assert page_at(mm, 1).index == 1
    assert (read(mm, 0), read(mm, 1)) == (CONTENT, b"second part")
    settled()
    nothing_is_left(mm)


@modern
def test_a_huge_page_that_has_a_strangers_reference_is_not_split(era: str) -> None:
    mm, p = huge(era)
    get_page(p)
    get_page(p)
    assert trylock_page(p)
    assert split_folio(p) == -EAGAIN
    assert mm.pmd[0].pmd.page is p
    # A reference that comes too late to be counted: the mapping falls apart, the page does not.
    put_page(p)
    av = p.mapping
    assert isinstance(av, anon_vma)
    p.pincount += 1
    anon_vma_lock_write(av)
    unmap_folio(p, av)
    assert kind_at(mm, 0) == PmdKind.TABLE
    assert pte_at(mm, 0).kind == PteKind.PRESENT
    remap_folio(p, av)
    anon_vma_unlock_write(av)
    p.pincount -= 1
    unlock_page(p)
    put_page(p)
    assert p.compound
    assert read(mm, 1) == b"second part"
    settled()


@modern
def test_a_pinned_part_stays_where_it_is(era: str) -> None:
    mm, p = pte_mapped(era)
    pinned = pin(mm, 1)
    assert pinned is page_at(mm, 1)
    assert p.pincount == 1
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert page_at(child, 1) is not pinned
    assert page_at(child, 0) is not p
    unpin_user_page(pinned)
    settled()


@modern
def test_fork_of_a_pinned_huge_page_splits_its_mapping(era: str) -> None:
    mm, p = huge(era)
    get_page(p)
    p.pincount += 1
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert kind_at(mm, 0) == PmdKind.TABLE
    assert page_at(mm, 1).pfn == p.pfn + 1
    assert page_at(mm, 1).anon_exclusive
    assert page_at(child, 1).pfn != p.pfn + 1
    run_in(child)
    assert read(child, 1) == b"second part"
    settled()


@modern
def test_a_part_is_moved_by_splitting_the_page(era: str) -> None:
    mm, p = pte_mapped(era)
    do_mmap(mm, 4, 2, int(vm.WRITE | vm.USERFAULT), 4)
    assert move(mm, 4, 1) == 1
    assert not p.compound
    assert read(mm, 4) == b"second part"
    assert read(mm, 0) == CONTENT
    settled()


@modern
def test_the_exclusive_flag_asked_for_is_the_first_parts(era: str) -> None:
    mm, _ = pte_mapped(era)
    do_mmap(mm, 4, 2, int(vm.WRITE | vm.USERFAULT), 4)
    sys_fork(mm, new_mm(PAGES))
    run_in(mm)
    write(mm, 1, b"mine")
    assert move(mm, 4, 0) == -EBUSY
    assert move(mm, 4, 1) == 1
    assert read(mm, 4) == b"mine"
    settled()


@every_era
def test_holes_are_filled_with_zeroes_by_collapse(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    write(mm, 1, CONTENT)
    assert collapse_huge_page(mm, 0) == 0
    assert load(mm, 0) == 0
    assert read(mm, 1) == CONTENT
    settled()
    write(mm, 3, b"x")
    load(mm, 2)
    # The zero page is a hole only for later kernels.
    assert collapse_huge_page(mm, 2) == (0 if eras.era.folios else -EAGAIN)
    nothing_is_left(mm)


@modern
def test_shared_and_read_only_pages_are_collapsed_too(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(mm)
    if not eras.era.collapse_takes_read_only:
        assert collapse_huge_page(mm, 0) == -EAGAIN
        write(mm, 1, b"mine")
    assert collapse_huge_page(mm, 0) == 0
    assert read(mm, 0) == CONTENT
    assert page_at(child, 0).mapcount.counter == 1
    settled()


@old
def test_v3_10_collapses_what_it_can_write_only(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    sys_fork(mm, new_mm(PAGES))
    run_in(mm)
    write(mm, 1, b"mine")
    assert collapse_huge_page(mm, 0) == -EAGAIN
    assert not any(each.locked for each in machine.pages)
    settled()


@modern
def test_a_huge_page_is_not_freed_while_a_part_is_mapped(era: str) -> None:
    _, p = pte_mapped(era)
    put_page(p)
    with pytest.raises(ModelError, match="bad_free"):
        put_page(p)


def test_a_huge_page_is_paged_out_by_its_parts() -> None:
    mm, p = huge("v6.18")
    assert sys_madvise(mm, 0, 2, MADV.PAGEOUT) == 0
    assert [pte_at(mm, addr).kind for addr in (0, 1)] == [PteKind.SWAP] * 2
    assert not p.allocated
    run_in(mm)
    assert [read(mm, 0), read(mm, 1)] == [CONTENT, b"second part"]
    settled()


def test_a_part_is_paged_out_alone_and_a_shared_or_pinned_huge_page_not() -> None:
    mm, p = huge("v6.18")
    assert sys_madvise(mm, 1, 1, MADV.PAGEOUT) == 0
    assert [pte_at(mm, addr).kind for addr in (0, 1)] == [PteKind.PRESENT, PteKind.SWAP]
    settled()
    for holder in ("child", "device"):
        mm, p = huge("v6.18")
        if holder == "child":
            sys_fork(mm, new_mm(PAGES))
        else:
            pin(mm, 0)
        assert sys_madvise(mm, 0, 2, MADV.PAGEOUT) == 0
        assert mm.pmd[0].pmd.page is p
        settled()
