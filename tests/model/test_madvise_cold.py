"""MADV_COLD and MADV_PAGEOUT of huge pages: what is split, what stays, and what is skipped with it."""

from __future__ import annotations

import pytest

from userfault.model.fork import sys_fork
from userfault.model.gup import unpin_user_page
from userfault.model.machine import new_mm
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.mm_types import PmdKind, PteKind
from userfault.model.slab import get_page, put_page

from .scene import CONTENT, PAGES, huge, kind_at, modern, pin, pte_at, pte_mapped, read, run_in, settled, write

both = pytest.mark.parametrize("advice", [MADV.COLD, MADV.PAGEOUT])


@modern
@both
def test_a_part_of_a_huge_page_splits_it(era: str, advice: MADV) -> None:
    mm, p = huge(era)
    assert sys_madvise(mm, 1, 1, advice) == 0
    assert kind_at(mm, 0) == PmdKind.TABLE and not p.compound
    assert (pte_at(mm, 1).kind == PteKind.SWAP) == (advice == MADV.PAGEOUT)
    assert pte_at(mm, 0).young and (advice == MADV.PAGEOUT or not pte_at(mm, 1).young)
    run_in(mm)
    assert [read(mm, 0), read(mm, 1)] == [CONTENT, b"second part"]
    settled()


@modern
def test_a_whole_one_is_old_and_stays(era: str) -> None:
    mm, p = huge(era)
    assert sys_madvise(mm, 0, 2, MADV.COLD) == 0
    pmd = mm.pmd[0].pmd
    assert pmd.page is p and pmd.kind == PmdKind.HUGE
    assert not pmd.young and pmd.dirty and pmd.write
    settled()


@modern
@both
@pytest.mark.parametrize("length", [1, 2])
def test_what_others_map_stays(era: str, advice: MADV, length: int) -> None:
    mm, p = huge(era)
    sys_fork(mm, new_mm(PAGES))
    assert sys_madvise(mm, 0, length, advice) == 0
    assert mm.pmd[0].pmd.page is p
    settled()


@modern
def test_one_that_ptes_map_whole_stays_whole_since_it_is_a_batch(era: str) -> None:
    mm, p = pte_mapped(era)
    assert sys_madvise(mm, 0, 2, MADV.COLD) == 0
    assert p.compound == (era == "v6.18")
    assert not pte_at(mm, 0).young and not pte_at(mm, 1).young
    settled()


@modern
@both
def test_one_that_ptes_map_in_part_is_split(era: str, advice: MADV) -> None:
    mm, p = pte_mapped(era)
    assert sys_madvise(mm, 1, 1, MADV.DONTNEED) == 0
    assert p.compound
    assert sys_madvise(mm, 0, 2, advice) == 0
    assert not p.compound
    run_in(mm)
    assert read(mm, 0) == CONTENT
    settled()


@modern
def test_one_that_can_not_be_split_is_passed_by(era: str) -> None:
    mm, p = pte_mapped(era)
    assert sys_madvise(mm, 1, 1, MADV.DONTNEED) == 0
    assert write(mm, 1, b"small") == 0
    get_page(p)
    assert sys_madvise(mm, 0, 2, MADV.COLD) == 0
    assert p.compound and pte_at(mm, 0).young
    # v6.8 ends there.
    assert pte_at(mm, 1).young == (era == "v6.8")
    put_page(p)
    settled()


@modern
def test_a_pinned_one_stays_huge(era: str) -> None:
    mm, p = huge(era)
    pinned = pin(mm, 0)
    assert sys_madvise(mm, 1, 1, MADV.COLD) == 0
    assert p.compound
    pinned.write_pins -= 1
    unpin_user_page(pinned)
    settled()
