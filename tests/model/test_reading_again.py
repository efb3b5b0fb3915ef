"""Details that another reader found missing, in functions that came after the second reading."""

from __future__ import annotations

import pytest

from userfault.model import migrate
from userfault.model.locks import unlock_page
from userfault.model.machine import machine
from userfault.model.madvise import madvise_dontneed
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import page, vm
from userfault.model.mmap import do_mmap
from userfault.model.slab import get_page, put_page
from userfault.model.swap import read_swap_cache
from userfault.model.vmscan import shrink_page

from .scene import CONTENT, every_era, huge, old, page_at, pte_at, read, run_in, settled, start, write


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
