"""Modelled functions called as ordinary Python, on real page contents, in every era."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.model import era as eras
from userfault.model.errno import EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT
from userfault.model.fork import sys_fork
from userfault.model.gup import pin_and_write, unpin_user_page
from userfault.model.huge_memory import do_huge_pmd_anonymous_page
from userfault.model.huge_split import split_huge_page
from userfault.model.khugepaged import collapse_huge_page
from userfault.model.ksm import ksm_make_stable, ksm_merge
from userfault.model.lang import ModelError, WouldBlock
from userfault.model.locks import check_no_locks_held, down_read, lock_page, spin_lock, spin_unlock, up_read
from userfault.model.machine import machine, new_mm
from userfault.model.madvise import madvise_dontfork, madvise_dontneed, madvise_nouserfault, madvise_userfault
from userfault.model.memory_failure import memory_failure
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import PmdKind, vm
from userfault.model.mmap import do_mmap, sys_munmap
from userfault.model.nonlinear import cost_of_unmapping
from userfault.model.rmap import page_referenced_anon
from userfault.model.slab import get_page, put_page, rcu_read_lock, rcu_read_unlock
from userfault.model.user import load
from userfault.model.userfaultfd import uffdio_copy
from userfault.model.vmscan import shrink_page

from .scene import (
    CONTENT,
    PAGES,
    every_era,
    kind_at,
    move,
    movers,
    page_at,
    pin,
    read,
    run_in,
    settled,
    start,
    two_areas,
    write,
)


@every_era
def test_a_page_is_filled_on_first_touch_and_keeps_its_content(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    assert read(mm, 1) == 0
    assert write(mm, 1, CONTENT) == 0
    assert read(mm, 1) == CONTENT
    assert load(mm, 9) == -11
    settled()


@every_era
def test_a_page_survives_swap_and_migration(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    assert shrink_page(page_at(mm, 0)) == 1
    assert not any(each.allocated for each in machine.pages)
    assert read(mm, 0) == CONTENT
    old = page_at(mm, 0)
    assert migrate_page(old) == 0
    assert page_at(mm, 0) is not old
    assert read(mm, 0) == CONTENT
    settled()


@every_era
def test_a_pinned_page_is_neither_swapped_nor_migrated(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    pinned = pin(mm, 0)
    assert pinned is page_at(mm, 0)
    assert migrate_page(pinned) == -EAGAIN
    assert shrink_page(pinned) == 0
    assert read(mm, 0) == CONTENT
    unpin_user_page(pinned)
    assert pin_and_write(mm, 9, 1) < 0
    settled()


@every_era
def test_after_fork_neither_side_sees_the_others_writes(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    do_mmap(mm, 4, 2, int(vm.WRITE), 4)
    write(mm, 0, CONTENT)
    write(mm, 4, b"kept from the child")
    assert madvise_dontfork(mm, 4) == 0
    child = new_mm(PAGES)
    assert sys_fork(mm, child) == 0
    settled()
    assert page_at(mm, 0).mapcount.counter == 2
    write(mm, 0, b"parent")
    run_in(child)
    assert read(child, 0) == CONTENT
    assert load(child, 4) == -11
    write(child, 0, b"child")
    run_in(mm)
    assert read(mm, 0) == b"parent"
    assert sys_munmap(child, 0, PAGES) == 0
    assert sys_munmap(mm, 0, PAGES) == 0
    settled()
    assert not any(each.allocated for each in machine.pages)
    assert not any(each.allocated for each in machine.anon_vmas)
    assert not any(each.allocated for each in machine.anon_vma_chains)


@movers
def test_a_move_is_the_errno_table(era: str) -> None:
    mm = start(era)
    two_areas(mm)
    write(mm, 0, CONTENT)
    write(mm, 1, b"one")
    assert load(mm, 4) == -7
    assert move(mm, 4, 0) == 1
    assert read(mm, 4) == CONTENT
    assert page_at(mm, 4).index == 4
    assert move(mm, 4, 1) == -EEXIST
    assert move(mm, 5, 0) == -ENOENT
    assert move(mm, 5, 0, 1, holes=True) == 1
    assert move(mm, 5, 1, 2) == 1
    assert move(mm, 9, 2) == (-ENOENT if eras.era.per_vma_locks else -EINVAL)
    assert move(mm, 4, 2, 9) == -EINVAL
    assert move(mm, 4, 2, 0) == -EINVAL
    settled()


@movers
def test_what_must_not_be_moved_is_busy(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    do_mmap(mm, 4, 4, int(vm.WRITE), 4)
    madvise_userfault(mm, 4)
    assert read(mm, 0) == 0
    assert move(mm, 4, 0) == (1 if eras.era.move_zero_page else -EBUSY), "the zero page"
    write(mm, 1, CONTENT)
    sys_fork(mm, new_mm(PAGES))
    assert move(mm, 5, 1) == -EBUSY, "a shared page"
    assert madvise_nouserfault(mm, 4) == 0
    settled()


@movers
def test_a_huge_page_is_moved_whole_or_split(era: str) -> None:
    mm = start(era)
    two_areas(mm)
    assert do_huge_pmd_anonymous_page(mm.mmap[0], 0) == 0
    write(mm, 0, CONTENT)
    head = mm.pmd[0].pmd.page
    assert move(mm, 4, 0, 2) == 2
    assert mm.pmd[2].pmd.kind == PmdKind.HUGE
    assert read(mm, 4) == CONTENT
    settled()
    assert head.index == 4
    assert move(mm, 4, 2, 1) == (-EEXIST if eras.era.uffdio_move else -ENOENT), "a huge page at the destination"
    assert sys_munmap(mm, 0, PAGES) == 0
    assert not head.allocated


@every_era
def test_a_huge_page_is_split_and_put_together_again(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    do_huge_pmd_anonymous_page(mm.mmap[0], 0)
    write(mm, 0, CONTENT)
    head = mm.pmd[0].pmd.page
    get_page(head)
    assert split_huge_page(head) == 0
    put_page(head)
    assert kind_at(mm, 0) == PmdKind.TABLE
    assert read(mm, 0) == CONTENT
    settled()
    assert collapse_huge_page(mm, 0) == 0
    assert kind_at(mm, 0) == PmdKind.HUGE
    assert read(mm, 0) == CONTENT
    assert collapse_huge_page(mm, 0) == -EAGAIN
    settled()


@every_era
def test_equal_pages_become_one(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    write(mm, 1, CONTENT)
    kpage = page_at(mm, 0)
    assert ksm_make_stable(mm, 0) == 0
    assert ksm_make_stable(mm, 0) == -EAGAIN
    assert ksm_merge(mm, 1, kpage) == 0
    assert page_at(mm, 1) is kpage
    assert kpage.mapcount.counter == 2
    write(mm, 1, b"mine again")
    assert read(mm, 0) == CONTENT
    settled()


def test_a_hole_is_filled_once() -> None:
    mm = start("v6.8")
    two_areas(mm)
    assert uffdio_copy(mm, 5, CONTENT) == 0  # type: ignore[arg-type]
    assert uffdio_copy(mm, 5, CONTENT) == -EEXIST  # type: ignore[arg-type]
    assert uffdio_copy(mm, 0, CONTENT) == -ENOENT  # type: ignore[arg-type]
    assert read(mm, 5) == CONTENT
    settled()


@every_era
def test_a_look_at_the_accessed_bit_clears_it(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    assert page_referenced_anon(page_at(mm, 0), False) == 1
    assert page_referenced_anon(page_at(mm, 0), False) == 0
    run_in(mm)
    read(mm, 0)
    assert page_referenced_anon(page_at(mm, 0), False) == 1


@every_era
def test_a_memory_failure_finds_every_vma_that_maps_the_page(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    p = page_at(mm, 0)
    assert memory_failure(p) == 1
    child = new_mm(PAGES)
    assert sys_fork(mm, child) == 0
    assert memory_failure(p) == 2
    write(mm, 0, b"a page of its own")
    assert memory_failure(p) == memory_failure(page_at(mm, 0)) == 1
    settled()


def test_locks_know_their_misuse() -> None:
    mm = start("v3.10")
    with pytest.raises(ModelError, match="lock_misuse"):
        up_read(mm.mmap_sem)
    spin_lock(mm.page_table_lock)
    with pytest.raises(ModelError, match="may sleep while a spinlock is held"):
        down_read(mm.mmap_sem)
    with pytest.raises(ModelError, match="lock_leak"):
        check_no_locks_held()
    spin_unlock(mm.page_table_lock)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    page_at(mm, 0).locked = 2
    with pytest.raises(WouldBlock):
        lock_page(page_at(mm, 0))
    page_at(mm, 0).locked = 0
    lock_page(page_at(mm, 0))
    with pytest.raises(ModelError, match="lock_order"):
        down_read(mm.mmap_sem)
    start("v3.10")
    with pytest.raises(ModelError, match="rcu_read_unlock without"):
        rcu_read_unlock()
    rcu_read_lock()


def test_a_nonlinear_vma_must_be_scanned_where_a_linear_one_is_computed() -> None:
    start("v3.10")
    linear, nonlinear = cost_of_unmapping(pages=64, target=17)
    assert linear == 1
    assert nonlinear >= 17


steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "load", "move", "reclaim", "migrate", "dontneed"]),
        st.integers(0, 3),
        st.integers(4, 7),
        st.integers(1, 250),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["v3.10+seed", "v6.8", "v6.18"]), steps)
def test_random_sequences_agree_with_a_dictionary(era: str, sequence: list[tuple[str, int, int, int]]) -> None:
    mm = start(era)
    two_areas(mm)
    expected: dict[int, bytes] = {}
    for what, src, dst, value in sequence:
        content = bytes([value]) * 16
        if what == "store":
            assert write(mm, src, content) == 0
            expected[src] = content
        elif what == "load":
            where = src if value % 2 else dst
            if where in expected:
                assert read(mm, where) == expected[where]
            elif where >= 4:
                assert load(mm, where) == -7
        elif what == "move":
            result = move(mm, dst, src)
            if dst in expected:
                # A source without even a page table is missed before the destination is looked at.
                assert result == -EEXIST or (result == -ENOENT and src not in expected)
            elif src in expected:
                assert result == 1
                expected[dst] = expected.pop(src)
        elif what == "dontneed":
            assert madvise_dontneed(mm, src, 1) == 0
            expected.pop(src, None)
        else:
            pmd = mm.pmd[src >> 1].pmd
            if pmd.kind == PmdKind.TABLE and page_at(mm, src) is not None:
                (shrink_page if what == "reclaim" else migrate_page)(page_at(mm, src))
        settled()
    for where, content in expected.items():
        assert read(mm, where) == content
