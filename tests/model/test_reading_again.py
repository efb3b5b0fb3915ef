"""Details that another reader found missing, in functions that came after the second reading."""

from __future__ import annotations

import pytest

from userfault.model import migrate
from userfault.model.fork import sys_fork
from userfault.model.gup import get_user_pages_fast, taken
from userfault.model.huge_split import split_folio
from userfault.model.locks import lock_page, unlock_page
from userfault.model.machine import machine, new_mm
from userfault.model.madvise import madvise_dontneed
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import mm_struct, page, vm
from userfault.model.mmap import do_mmap, exit_mmap
from userfault.model.mprotect import sys_mprotect
from userfault.model.slab import get_page, put_page
from userfault.model.swap import read_swap_cache
from userfault.model.user import store
from userfault.model.vmscan import shrink_page

from .scene import (
    CONTENT,
    PAGES,
    RW,
    every_era,
    huge,
    modern,
    old,
    page_at,
    pte_at,
    pte_mapped,
    read,
    run_in,
    settled,
    start,
    write,
)


@old
def test_a_huge_page_that_nobody_maps_needs_no_migration(era: str) -> None:
    mm, p = huge(era)
    get_page(p)
    madvise_dontneed(mm, 0, 2)
    run_in(mm)
    assert migrate_page(p) == 0
    assert [each for each in machine.pages if each.allocated and not each.compound] == []
    put_page(p)
    settled()


@every_era
def test_what_was_read_from_swap_and_is_not_mapped_yet_is_migrated(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    assert shrink_page(page_at(mm, 0)) == 1
    slot = pte_at(mm, 0).slot
    p = read_swap_cache(slot)
    assert p is not None
    assert p.mapping is None
    put_page(p)
    assert migrate_page(p) == 0
    assert slot.cache is not p
    assert not p.allocated
    run_in(mm)
    assert read(mm, 0) == CONTENT
    settled()


@old
def test_the_old_page_is_described_no_more_when_the_new_one_is_unlocked(
    era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, CONTENT)
    p = page_at(mm, 0)
    seen = []

    def unlocked(which: page) -> None:
        seen.append((which is p, p.mapping is None))
        unlock_page(which)

    monkeypatch.setattr(migrate, "unlock_page", unlocked)
    assert migrate_page(p) == 0
    assert seen == [(False, True), (True, True)]


def shared_once(era: str, parts: int) -> tuple[mm_struct, page]:
    """A huge page of which PTEs map the last `parts`, and which a child has had: no part is flagged as the process's own."""
    mm, p = pte_mapped(era)
    mm.mmap[0].vm_flags = RW
    if parts == 1:
        madvise_dontneed(mm, 0, 1)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    exit_mmap(child)
    run_in(mm)
    assert not page_at(mm, 1).anon_exclusive
    return mm, p


@modern
@pytest.mark.parametrize(("parts", "keeps"), [(2, {"v6.18"}), (1, {"v6.8"})])
@pytest.mark.parametrize("reading", [False, True])
def test_a_write_keeps_a_part_in_place(era: str, parts: int, keeps: set[str], reading: bool) -> None:
    mm, _ = shared_once(era, parts)
    part = page_at(mm, 1)
    if reading:
        assert get_user_pages_fast(mm, 1, 1, False) == 1
        assert taken() is page_at(mm, 1)
    else:
        write(mm, 1, b"more")
    assert (page_at(mm, 1) is part) == (era in keeps)
    assert page_at(mm, 1).anon_exclusive
    assert pte_at(mm, 1).write != reading
    assert read(mm, 1) == (b"second part" if reading else b"more")


def test_a_part_is_not_kept_beside_another_reference() -> None:
    mm, p = shared_once("v6.18", 2)
    part = page_at(mm, 1)
    get_page(p)
    write(mm, 1, b"more")
    assert page_at(mm, 1) is not part
    put_page(p)
    settled()


def test_a_part_is_not_kept_while_a_child_has_another() -> None:
    mm, _ = pte_mapped("v6.18")
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(child)
    madvise_dontneed(child, 1, 1)
    run_in(mm)
    part = page_at(mm, 1)
    write(mm, 1, b"more")
    assert page_at(mm, 1) is not part
    settled()


def test_a_page_that_nobody_may_use_is_migrated_to_one_that_nobody_may_use() -> None:
    mm = start("v6.18")
    do_mmap(mm, 0, 2, RW, 0)
    write(mm, 0, CONTENT)
    assert sys_mprotect(mm, 0, 1, 0) == 0
    old_page = pte_at(mm, 0).page
    assert migrate_page(old_page) == 0
    assert pte_at(mm, 0).page is not old_page and pte_at(mm, 0).protnone


@pytest.mark.parametrize("zeroed", [False, True])
def test_a_split_leaves_what_nobody_may_use_so(zeroed: bool) -> None:
    mm, p = huge("v6.18")
    if zeroed:
        store(mm, 1, 0)
    assert sys_mprotect(mm, 1, 1, 0) == 0
    get_page(p)
    lock_page(p)
    assert split_folio(p) == 0
    unlock_page(p)
    put_page(p)
    assert pte_at(mm, 1).protnone and pte_at(mm, 1).special == zeroed
