"""A huge page is migrated whole, and what others do at its entry meanwhile."""

from __future__ import annotations

import pytest

from userfault.model.errno import EAGAIN, EBUSY, EEXIST
from userfault.model.fork import sys_fork
from userfault.model.gup import gup_fast, taken, unpin_user_page
from userfault.model.huge_memory import do_huge_pmd_anonymous_page
from userfault.model.huge_migrate import pmd_migration_entry_wait, try_to_migrate
from userfault.model.huge_split import split_folio, split_huge_pmd
from userfault.model.lang import ModelError, WouldBlock
from userfault.model.locks import trylock_page, unlock_page
from userfault.model.machine import config, new_mm
from userfault.model.madvise import madvise_dontneed
from userfault.model.migrate import migrate_page, no_migration_entry_is_left, remove_migration_ptes
from userfault.model.mm_types import PmdKind, PteKind, mm_struct, page, vm
from userfault.model.mmap import do_mmap
from userfault.model.mprotect import sys_mprotect
from userfault.model.properties import ALWAYS
from userfault.model.slab import get_page, put_page
from userfault.model.userfaultfd import uffdio_copy

from .scene import (
    CONTENT,
    PAGES,
    huge,
    kind_at,
    modern,
    move,
    old,
    page_at,
    pte_at,
    pte_mapped,
    read,
    run_in,
    settled,
    write,
)


def under_migration(era: str) -> tuple[mm_struct, page]:
    """A huge page at 0 that another CPU has begun to migrate: locked, referenced, and unmapped."""
    mm, p = huge(era)
    begin_migration(p)
    assert kind_at(mm, 0) == PmdKind.MIGRATION
    assert p.entire_mapcount == 0
    return mm, p


def begin_migration(p: page) -> None:
    get_page(p)
    p.locked = 2
    try_to_migrate(p)
    settled()
    with pytest.raises(ModelError, match="migration entry"):
        no_migration_entry_is_left(p)


def end_migration(p: page) -> None:
    remove_migration_ptes(p, p)
    no_migration_entry_is_left(p)
    p.locked = 0
    put_page(p)
    for each in ALWAYS:
        each()


@modern
def test_a_huge_page_is_migrated_whole(era: str) -> None:
    mm, p = huge(era)
    assert migrate_page(p) == 0
    new = mm.pmd[0].pmd.page
    assert new is not p
    assert not p.allocated
    assert mm.pmd[0].pmd.write
    assert new.anon_exclusive
    run_in(mm)
    assert [read(mm, 0), read(mm, 1)] == [CONTENT, b"second part"]
    write(mm, 1, b"more")
    settled()


@modern
def test_all_that_map_it_find_it(era: str) -> None:
    mm, p = huge(era)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    split_huge_pmd(child.mmap[0], child.pmd[0])
    assert migrate_page(p) == 0
    settled()
    new = mm.pmd[0].pmd.page
    assert page_at(child, 0) is new
    assert not new.anon_exclusive
    for each in (mm, child):
        run_in(each)
        assert [read(each, 0), read(each, 1)] == [CONTENT, b"second part"]


@modern
def test_parts_that_ptes_map_stay_parts(era: str) -> None:
    mm, p = pte_mapped(era)
    madvise_dontneed(mm, 0, 1)
    assert migrate_page(p) == 0
    assert pte_at(mm, 0).kind == PteKind.NONE
    assert page_at(mm, 1).compound
    assert read(mm, 1) == b"second part"
    settled()


@modern
def test_a_pinned_one_stays(era: str) -> None:
    mm, p = huge(era)
    assert gup_fast(mm, 1) == 1
    assert migrate_page(p) == -EAGAIN
    assert mm.pmd[0].pmd.page is p
    assert p.anon_exclusive
    pinned = taken()
    pinned.write_pins -= 1
    unpin_user_page(pinned)
    assert migrate_page(p) == 0
    settled()


@modern
def test_a_fault_waits_for_the_page(era: str) -> None:
    mm, p = under_migration(era)
    with pytest.raises(WouldBlock):
        pmd_migration_entry_wait(mm.pmd[0])
    end_migration(p)
    pmd_migration_entry_wait(mm.pmd[0])
    run_in(mm)
    assert read(mm, 1) == b"second part"
    settled()


@modern
def test_a_fork_shares_the_entry(era: str) -> None:
    mm, p = under_migration(era)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert kind_at(child, 0) == PmdKind.MIGRATION
    end_migration(p)
    assert p.entire_mapcount == 2
    assert not p.anon_exclusive
    assert not mm.pmd[0].pmd.write
    run_in(mm)
    write(mm, 0, b"mine")
    run_in(child)
    assert read(child, 0) == CONTENT


@modern
@pytest.mark.parametrize("length", [1, 2])
def test_it_can_be_forgotten(era: str, length: int) -> None:
    mm, p = under_migration(era)
    madvise_dontneed(mm, 0, length)
    assert kind_at(mm, 0) == (PmdKind.NONE if length == 2 else PmdKind.TABLE)
    end_migration(p)
    run_in(mm)
    assert read(mm, 0) == 0
    assert read(mm, 1) == (b"second part" if length == 1 else 0)
    assert p.allocated == (length == 1)


@modern
def test_a_split_mapping_is_one_migration_entry_for_each_part(era: str) -> None:
    mm, p = under_migration(era)
    split_huge_pmd(mm.mmap[0], mm.pmd[0])
    assert [pte_at(mm, addr).kind for addr in (0, 1)] == [PteKind.MIGRATION] * 2
    assert pte_at(mm, 1).page.pfn == p.pfn + 1
    end_migration(p)
    assert page_at(mm, 1).anon_exclusive
    assert pte_at(mm, 1).write


def test_a_change_of_protection_reaches_it() -> None:
    mm, p = under_migration("v6.18")
    config.SPLIT_VMAS = True
    try:
        assert sys_mprotect(mm, 0, 4, int(vm.READ)) == 0
    finally:
        config.SPLIT_VMAS = False
    assert kind_at(mm, 0) == PmdKind.MIGRATION
    end_migration(p)
    assert not mm.pmd[0].pmd.write
    assert p.anon_exclusive


@modern
def test_what_is_under_migration_is_no_hole_for_a_fill(era: str) -> None:
    mm, p = under_migration(era)
    mm.mmap[0].vm_flags |= int(vm.USERFAULT)
    assert uffdio_copy(mm, 0, 7) == (-EEXIST if era == "v6.18" else -EAGAIN)
    end_migration(p)
    run_in(mm)
    assert read(mm, 0) == CONTENT


@old
def test_it_is_split_first_before_v4_14(era: str) -> None:
    mm, p = huge(era)
    assert migrate_page(p) == 0
    assert kind_at(mm, 0) == PmdKind.TABLE
    assert page_at(mm, 0) is not p
    assert [read(mm, 0), read(mm, 1)] == [CONTENT, b"second part"]
    settled()


@modern
def test_the_split_of_another_page_meets_it(era: str) -> None:
    """CVE-2025-37958: parent and child have huge pages of their own in one place, and trees in common."""
    mm, p = huge(era)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(mm)
    madvise_dontneed(mm, 0, 2)
    assert do_huge_pmd_anonymous_page(mm.mmap[0], 0) == 0
    other = mm.pmd[0].pmd.page
    assert other.mapping is p.mapping
    begin_migration(other)
    get_page(p)
    trylock_page(p)
    if era == "v6.8":
        with pytest.raises(ModelError, match="not_present"):
            split_folio(p)
        return
    assert split_folio(p) == 0
    assert kind_at(mm, 0) == PmdKind.MIGRATION
    unlock_page(p)
    put_page(p)
    end_migration(other)
    run_in(child)
    assert read(child, 1) == b"second part"


def moved(mm: mm_struct, length: int) -> int:
    do_mmap(mm, 4, 4, int(vm.WRITE | vm.USERFAULT), 4)
    return move(mm, 4, 0, length)


@pytest.mark.parametrize(
    ("era", "length", "broken"),
    [("v6.8", 2, "lock_misuse"), ("v6.18", 2, "lock_misuse"), ("v6.8", 1, "not_present")],
)
def test_a_mover_gets_it_wrong(era: str, length: int, broken: str) -> None:
    mm, _ = under_migration(era)
    with pytest.raises(ModelError, match=broken):
        moved(mm, length)


def test_a_mover_of_a_part_waits_since_v6_17() -> None:
    mm, _ = under_migration("v6.18")
    with pytest.raises(WouldBlock):
        moved(mm, 1)
    assert kind_at(mm, 0) == PmdKind.TABLE


@modern
def test_a_destination_under_migration_is_asked_again(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from userfault.model import userfaultfd_move

    mm, p = under_migration(era)
    mm.mmap[0].vm_flags |= int(vm.USERFAULT)
    do_mmap(mm, 4, 2, int(vm.WRITE), 4)
    write(mm, 4, b"source")
    tried = []
    one = userfaultfd_move.move_one

    def then_it_ends(*args: object) -> tuple[int, int, bool]:
        result: tuple[int, int, bool] = one(*args)  # type: ignore[arg-type]
        tried.append(result[0])
        if len(tried) == 1:
            end_migration(p)
        return result

    monkeypatch.setattr(userfaultfd_move, "move_one", then_it_ends)
    assert move(mm, 0, 4) == -EEXIST
    assert tried == [-EAGAIN, -EEXIST]
    settled()


def test_busy_is_no_errno_of_a_migration() -> None:
    """A shared page is refused before anything waits."""
    mm, _ = huge("v6.18")
    sys_fork(mm, new_mm(PAGES))
    assert moved(mm, 1) == -EBUSY
    settled()
