"""Details that a second reading of the kernel's source found missing: what is left behind on each way out."""

from __future__ import annotations

import pytest

from userfault.model import era as eras
from userfault.model import memory
from userfault.model.errno import EAGAIN, EEXIST, ENOENT
from userfault.model.fork import sys_fork
from userfault.model.gup import unpin_user_page
from userfault.model.ksm import ksm_make_stable, ksm_merge
from userfault.model.locks import down_write, up_write
from userfault.model.machine import attach, boot, machine, new_mm, new_page, new_swap_slot
from userfault.model.madvise import madvise_dontneed
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import PteKind, mm_struct, page, vm
from userfault.model.mmap import do_mmap, sys_mmap, sys_munmap
from userfault.model.pgtable import flush_tlb_range
from userfault.model.rmap import page_referenced_anon
from userfault.model.slab import alloc_page, get_page, put_page
from userfault.model.swap import swapcache_prepare
from userfault.model.swapfile import get_swap_page
from userfault.model.user import touch
from userfault.model.vma import vma_modify
from userfault.model.vmscan import shrink_page

from .scene import (
    CONTENT,
    PAGES,
    every_era,
    move,
    movers,
    page_at,
    pin,
    pte_at,
    read,
    run_in,
    settled,
    start,
    two_areas,
    write,
)


def one_page(era: str, flags: int = int(vm.WRITE)) -> tuple[mm_struct, page]:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    mm.mmap[0].vm_flags = flags
    return mm, page_at(mm, 0)


def swap_out_cached(p: page) -> None:
    """Swapped out, but somebody's reference keeps the page in the swap cache."""
    get_page(p)
    assert shrink_page(p) == 0
    put_page(p)
    run_in(machine.cpus[0].mm)


@every_era
def test_a_locked_page_is_not_reclaimed_but_migrated(era: str) -> None:
    mm, p = one_page(era, int(vm.WRITE | vm.LOCKED))
    assert shrink_page(p) == 0
    assert pte_at(mm, 0).kind == PteKind.PRESENT
    assert migrate_page(p) == 0
    settled()


@every_era
def test_an_unmap_that_is_undone_has_noted_the_dirty_bit(era: str) -> None:
    mm, p = one_page(era)
    pinned = pin(mm, 0)
    assert pinned is p
    assert not p.dirty
    assert migrate_page(p) == -EAGAIN
    assert p.dirty
    assert not any(slot.swap_map for slot in machine.swap_slots)
    unpin_user_page(p)
    settled()


@every_era
def test_migration_keeps_the_accessed_bit_since_v6_1(era: str) -> None:
    mm, p = one_page(era)
    assert migrate_page(p) == 0
    keeps = eras.era.migration_keeps_ad
    assert (pte_at(mm, 0).young, pte_at(mm, 0).dirty) == (keeps, keeps)
    assert read(mm, 0) == CONTENT


@every_era
def test_a_look_at_the_accessed_bit_flushes_only_before_v3_15(era: str) -> None:
    _, p = one_page(era)
    assert machine.cpus[0].tlb[0].page is p
    assert page_referenced_anon(p, False) == 1
    assert (machine.cpus[0].tlb[0].page is None) == (not eras.era.aging_leaves_tlb)


@every_era
def test_a_child_is_neither_locked_nor_registered(era: str) -> None:
    mm, _ = one_page(era, int(vm.WRITE | vm.LOCKED | vm.USERFAULT))
    child = new_mm(PAGES)
    assert sys_fork(mm, child) == 0
    assert not child.mmap[0].vm_flags & vm.LOCKED
    # MADV_USERFAULT is inherited, a registration with a userfaultfd is not.
    assert bool(child.mmap[0].vm_flags & vm.USERFAULT) == (not eras.era.uffdio_move)


@every_era
def test_reclaim_does_not_write_a_page_that_somebody_refers_to(era: str) -> None:
    mm, p = one_page(era)
    swap_out_cached(p)
    assert p.dirty
    assert p.swapcache.data == 0
    assert read(mm, 0) == CONTENT
    settled()


@every_era
def test_a_zapped_swap_entry_takes_its_cached_page_along(era: str) -> None:
    mm, p = one_page(era)
    swap_out_cached(p)
    slot = p.swapcache
    assert slot.swap_map == 1
    assert madvise_dontneed(mm, 0, 1) == 0
    assert (slot.swap_map, slot.has_cache, p.allocated) == (0, False, False)
    settled()


@every_era
def test_a_slot_that_is_being_filled_or_is_free_has_no_place_for_a_reader(era: str) -> None:
    start(era)
    for _ in range(2):
        new_page()
        new_swap_slot()
    taken = get_swap_page()
    free = next(each for each in machine.swap_slots if each is not taken)
    fresh = alloc_page()
    assert swapcache_prepare(fresh, taken) == -EEXIST
    assert swapcache_prepare(fresh, free) == -ENOENT
    assert fresh.locked == 0


@movers
def test_a_page_that_lies_elsewhere_is_copied_in_and_a_reader_may_not_write_the_copy(era: str) -> None:
    mm = start(era, ksm=True)
    two_areas(mm)
    write(mm, 0, CONTENT)
    p = page_at(mm, 0)
    swap_out_cached(p)
    assert move(mm, 4, 0) == 1
    assert read(mm, 4) == CONTENT
    # Since v6.14 the cached page moves along, and is where it says.
    assert (page_at(mm, 4) is p) == eras.era.move_swap_cache
    assert pte_at(mm, 4).write == eras.era.swapin_maps_writable
    assert write(mm, 4, b"mine") == 0
    settled()


def test_the_last_owner_of_a_shared_entry_gets_the_page_for_himself() -> None:
    mm, p = one_page("v6.8")
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert shrink_page(p) == 1
    assert not pte_at(mm, 0).exclusive
    assert sys_munmap(child, 0, PAGES) == 0
    mm.mmap[0].vm_flags |= int(vm.LOCKED)
    run_in(mm)
    # A locked VMA gives its swap back at once, so that the mapping's reference is the only one.
    assert read(mm, 0) == CONTENT
    assert page_at(mm, 0).swapcache is None
    assert page_at(mm, 0).anon_exclusive
    settled()


@every_era
def test_a_write_fault_gives_the_swap_back(era: str) -> None:
    mm, p = one_page(era)
    assert shrink_page(p) == 1
    run_in(mm)
    assert touch(mm, 0, True) == 0
    assert page_at(mm, 0).swapcache is None
    assert pte_at(mm, 0).write
    settled()


@every_era
def test_pages_that_are_unmapped_together_are_freed_after_one_flush(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    write(mm, 1, CONTENT)
    write(mm, 2, CONTENT)
    pages = [page_at(mm, addr) for addr in range(3)]
    flushed = []

    def flush(mm: mm_struct, first: int, end: int) -> None:
        flushed.append((first, end, [(each.allocated, each.mapcount.counter) for each in pages]))
        flush_tlb_range(mm, first, end)

    monkeypatch.setattr(memory, "flush_tlb_range", flush)
    assert madvise_dontneed(mm, 0, 3) == 0
    assert flushed == [(0, 3, [(True, 0)] * 3)]
    assert not any(each.allocated for each in pages)
    assert machine.cpus[0].gather == []
    settled()


@every_era
def test_a_page_that_becomes_a_ksm_page_stops_being_exclusive_though_it_is_read_only_and_clean(era: str) -> None:
    mm, p = one_page(era)
    assert shrink_page(p) == 1
    run_in(mm)
    assert read(mm, 0) == CONTENT
    assert pte_at(mm, 0).write == eras.era.swapin_maps_writable
    assert ksm_make_stable(mm, 0) == 0
    assert not page_at(mm, 0).anon_exclusive
    assert not pte_at(mm, 0).write
    settled()


@every_era
def test_a_page_that_is_merged_gives_its_swap_back(era: str) -> None:
    mm, p = one_page(era)
    write(mm, 1, CONTENT)
    kpage = page_at(mm, 1)
    assert ksm_make_stable(mm, 1) == 0
    swap_out_cached(p)
    assert read(mm, 0) == CONTENT
    assert page_at(mm, 0) is p
    assert p.swapcache is not None
    assert ksm_merge(mm, 0, kpage) == 0
    assert not p.allocated
    assert not any(slot.has_cache or slot.swap_map for slot in machine.swap_slots)
    settled()


@every_era
def test_neighbours_with_an_anon_vma_of_their_own_are_merged(era: str) -> None:
    """I14: the merge rule. Since v6.16 a fork's child keeps its VMAs apart from untouched ones."""
    eras.use(era)
    boot(cpus=1, split_vmas=True)
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    assert madvise_dontfork_part(mm, 2, 2) == 0
    assert [each.vm_end for each in mm.mmap] == [2, 4]
    assert len(mm.mmap[1].anon_vma_chain) == 1
    assert mm.mmap[1].anon_vma is mm.mmap[0].anon_vma
    settled()
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert len(child.mmap) == 1
    assert len(child.mmap[0].anon_vma_chain) == 2
    sys_mmap(child, 2, 2, child.mmap[0].vm_flags & ~vm.ACCOUNT)
    settled()
    assert sys_munmap(child, 0, PAGES) == 0
    assert sys_munmap(mm, 1, 2) == 0
    assert read(mm, 0) == CONTENT
    settled()


def madvise_dontfork_part(mm: mm_struct, start: int, length: int) -> int:
    down_write(mm.mmap_sem)
    vma = mm.mmap[0]
    part = vma_modify(mm, vma, start, start + length, vma.vm_flags | vm.DONTCOPY, vma.ctx)
    assert part is not None
    part.vm_flags |= int(vm.DONTCOPY)
    up_write(mm.mmap_sem)
    return 0
