"""Allocations that fail: what was begun is undone, nothing is lost, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from userfault.model import era as eras
from userfault.model import slab
from userfault.model.anon_vma import anon_vma_prepare
from userfault.model.errno import EAGAIN, ENOMEM, SIGSEGV
from userfault.model.fork import sys_fork
from userfault.model.gup import device_write
from userfault.model.huge_split import split_huge_page
from userfault.model.khugepaged import collapse_huge_page
from userfault.model.lang import ModelError
from userfault.model.machine import config, machine, new_mm
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import PteKind, anon_vma_chain, mm_struct, vm
from userfault.model.mmap import do_mmap, exit_mmap, sys_munmap
from userfault.model.mprotect import sys_mprotect
from userfault.model.mremap import MREMAP_FIXED, MREMAP_MAYMOVE, mremap_fixed, sys_mremap
from userfault.model.properties import anon_vmas_are_accounted, pages_are_accounted
from userfault.model.slab import get_page, put_page
from userfault.model.vmscan import shrink_page

from .scene import PAGES, every_era, move, page_at, pte_at, read, run_in, settled, start, two_areas, write


@pytest.fixture(autouse=True)
def _enough_again() -> Iterator[None]:
    yield
    config.MEMORY_IS_SHORT = False


class Short:
    """From now on the allocations with these numbers fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> None:
        self.failing, self.asked, self.failed = failing, 0, 0
        config.MEMORY_IS_SHORT = True
        monkeypatch.setattr(slab, "allocation_fails", self)

    def __call__(self) -> bool:
        self.asked += 1
        fails = self.asked - 1 in self.failing
        self.failed += fails
        return fails


def accounted() -> None:
    settled()
    anon_vmas_are_accounted()
    pages_are_accounted()


def forked(mm: mm_struct) -> mm_struct | None:
    """A child, or none and no trace of it."""
    child = new_mm(PAGES)
    result = sys_fork(mm, child)
    accounted()
    if result == 0:
        return child
    assert result == -ENOMEM
    assert len(child.mmap) == 0
    return None


@every_era
@given(failing=st.sets(st.integers(0, 24)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_nothing_is_lost_and_nothing_left_over(
    era: str, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    do_mmap(mm, 4, 2, int(vm.WRITE), 4)
    Short(monkeypatch, failing)
    assert write(mm, 0, b"ours") == 0
    accounted()
    alive = [mm]
    for _ in range(3):
        child = forked(alive[-1])
        if child is None:
            break
        alive.append(child)
    for number, each in enumerate(alive):
        run_in(each)
        assert read(each, 0) == b"ours"
        assert write(each, 4, bytes([number])) == 0
        accounted()
    # An anon_vma without VMAs of its own is what the next fork may take.
    if len(alive) > 2:
        exit_mmap(alive.pop(1))
        accounted()
    last = forked(alive[-1])
    run_in(alive[-1])
    moved = sys_mremap(alive[-1], 8, 0, 2)
    assert moved in (0, -ENOMEM)
    run_in(alive[-1])
    assert read(alive[-1], 8 if moved == 0 else 0) == b"ours"
    accounted()
    for each in [*alive, *([last] if last else [])]:
        exit_mmap(each)
    accounted()
    assert not any(av.allocated for av in machine.anon_vmas)


@every_era
@given(failing=st.sets(st.integers(0, 16)), ops=st.lists(st.integers(0, 7), max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_and_tables_that_can_not_be_had_lose_nothing(
    era: str, monkeypatch: pytest.MonkeyPatch, failing: set[int], ops: list[int]
) -> None:
    """A huge page, a small one and a swapped one, and whatever happens to them."""
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE | vm.HUGEPAGE), 0)
    do_mmap(mm, 4, 2, int(vm.WRITE), 4)
    do_mmap(mm, 8, 2, int(vm.WRITE), 8)
    Short(monkeypatch, failing)
    for addr in (0, 1, 4, 8):
        assert write(mm, addr, bytes([addr])) == 0
        accounted()
    child: mm_struct | None = None
    for op in ops:
        table = mm.pmd[0].pmd.table
        if op == 0 and child is None:
            child = forked(mm)
            run_in(mm)
        elif op == 1:
            shrink_page(page_at(mm, 4) if pte_at(mm, 4).kind == PteKind.PRESENT else machine.pages[0])
        elif op == 2:
            p = mm.pmd[0].pmd.page if table is None else page_at(mm, 1)
            # What was swapped out has no page.
            if p is not None:
                migrate_page(p)
        elif op == 3:
            collapse_huge_page(mm, 8)
        elif op == 4 and table is None:
            p = mm.pmd[0].pmd.page
            get_page(p)
            split_huge_page(p)
            put_page(p)
        elif op == 5:
            assert device_write(mm, 4, 7, 1) in (1, -ENOMEM)
            machine.cpus[0].pinned.clear()
            assert write(mm, 4, bytes([4])) == 0
        elif op == 6 and child is not None:
            run_in(child)
            assert write(child, 1, b"child") == 0
        elif op == 7:
            assert write(mm, 1, bytes([1])) == 0
        run_in(mm)
        accounted()
    for addr in (0, 1, 4, 8):
        assert read(mm, addr) == bytes([addr])
    accounted()
    for each in [mm, *([child] if child else [])]:
        exit_mmap(each)
    accounted()
    assert not any(p.allocated for p in machine.pages)


@pytest.mark.parametrize("era", ["v6.8", "v6.18"])
@given(failing=st.sets(st.integers(0, 12)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_vmas_are_split_and_merged_whole_or_not_at_all(
    era: str, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    mm = start(era)
    config.SPLIT_VMAS = True
    try:
        do_mmap(mm, 0, 8, int(vm.READ | vm.WRITE | vm.ACCOUNT), 0)
        write(mm, 6, b"ours")
        Short(monkeypatch, failing)
        for at, length, access in ((2, 4, vm.READ), (2, 2, vm.READ | vm.WRITE), (4, 2, vm.READ | vm.WRITE)):
            result = sys_mprotect(mm, at, length, int(access))
            assert result in (0, -ENOMEM)
            accounted()
            run_in(mm)
            if result == 0:
                assert (write(mm, at, b"x") == 0) == bool(access & vm.WRITE)
        result = sys_munmap(mm, 5, 2)
        assert result in (0, -ENOMEM)
        accounted()
        run_in(mm)
        assert read(mm, 6) == (b"ours" if result != 0 else -SIGSEGV)
        assert sys_madvise(mm, 0, 1, MADV.DONTFORK) in (0, -EAGAIN)
        accounted()
        assert [vma.vm_end for vma in mm.mmap][:-1] == [vma.vm_start for vma in mm.mmap][1:] or result == 0
    finally:
        config.SPLIT_VMAS = False


@pytest.mark.parametrize(("era", "result"), [("v6.8", 0), ("v6.18", -ENOMEM)])
def test_a_merge_that_fails_is_no_merge_or_an_error(era: str, result: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mm = start(era)
    for at, flags in ((0, vm.READ), (1, vm.WRITE), (2, vm.READ)):
        do_mmap(mm, at, 1, int(flags), at)
    read(mm, 2)
    anon_vma_prepare(mm.mmap[2])
    # The clone needs one link, and the tree its nodes.
    for failing in ({0, 1}, {1}):
        for vma, flags in zip(mm.mmap, (vm.READ, vm.WRITE, vm.READ), strict=True):
            vma.vm_flags = int(flags)
        short = Short(monkeypatch, failing)
        assert sys_mprotect(mm, 1, 1, int(vm.READ)) == result
        assert short.failed == len(failing)
        assert [vma.anon_vma is not None for vma in mm.mmap] == [False, False, True]
        accounted()
    Short(monkeypatch, set())
    mm.mmap[1].vm_flags = int(vm.WRITE)
    assert sys_mprotect(mm, 1, 1, int(vm.READ)) == 0
    (only,) = mm.mmap
    assert (only.vm_start, only.vm_end) == (0, 3)
    assert only.anon_vma is not None
    accounted()


@pytest.mark.parametrize("era", ["v3.10+seed", "v6.8", "v6.18"])
def test_a_mover_without_memory_moves_nothing(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mm = start(era)
    two_areas(mm)
    write(mm, 0, b"here")
    short = Short(monkeypatch, {0})
    assert move(mm, 4, 0) == -ENOMEM
    assert read(mm, 0) == b"here"
    accounted()
    assert move(mm, 4, 0) == 1
    assert read(mm, 4) == b"here"
    assert short.failed == 1
    accounted()


@every_era
@pytest.mark.parametrize("parts", [False, True])
def test_a_mapping_whose_second_page_has_no_table_moves_back(
    era: str, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts and not eras.ERAS[era].mremap_moves_several:
        return
    failed = 0
    for failing in range(8):
        mm = start(era)
        config.MEMORY_IS_SHORT = False
        do_mmap(mm, 1, 2, int(vm.WRITE), 1)
        assert write(mm, 1, b"first") == 0 and write(mm, 2, b"second") == 0
        short = Short(monkeypatch, {failing})
        err = mremap_fixed(mm, 1, 2, MREMAP_MAYMOVE | MREMAP_FIXED, 7) if parts else sys_mremap(mm, 7, 1, 2)
        # A link that can't be had in a hurry is asked for again.
        assert err == 0 or (err == -ENOMEM and short.failed)
        failed += err != 0
        at = 1 if err != 0 else 7
        assert [(vma.vm_start, vma.vm_end) for vma in mm.mmap] == [(at, at + 2)]
        assert [read(mm, at), read(mm, at + 1)] == [b"first", b"second"]
        accounted()
    # The VMA, and the two page tables at least.
    assert failed >= 3


def test_without_a_test_that_asks_for_it_no_allocation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    mm = start("v6.8")
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    short = Short(monkeypatch, {0, 1, 2})
    config.MEMORY_IS_SHORT = False
    assert write(mm, 0, b"x") == 0
    assert short.asked == 0


def test_what_is_left_over_is_found() -> None:
    mm = start("v6.8")
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, b"x")
    anon_vmas_are_accounted()
    av = mm.mmap[0].anon_vma
    av.num_active_vmas += 1
    with pytest.raises(ModelError, match="active VMAs"):
        anon_vmas_are_accounted()
    av.num_active_vmas -= 1
    machine.anon_vma_chains.append(anon_vma_chain(allocated=True))
    with pytest.raises(ModelError, match="memory_leak"):
        anon_vmas_are_accounted()
    assert eras.era.anon_vma_reuse
