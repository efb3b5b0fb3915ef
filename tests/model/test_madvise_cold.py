"""MADV_COLD, MADV_PAGEOUT and MADV_FREE: what of a huge page is split, stays, or is skipped, and what comes between two steps."""

from __future__ import annotations

import pytest

from userfault.model import locks, madvise_cold, madvise_free, pgtable
from userfault.model.fork import sys_fork
from userfault.model.gup import unpin_user_page
from userfault.model.machine import config, new_mm
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.mm_types import PmdKind, PteKind, mm_struct, page, pte_slot, pte_t
from userfault.model.mmap import do_mmap
from userfault.model.pgtable import pte_offset, set_pte
from userfault.model.slab import get_page, put_page
from userfault.model.swap import add_to_swap_cache
from userfault.model.swapfile import get_swap_page

from .scene import (
    CONTENT,
    PAGES,
    RW,
    huge,
    kind_at,
    modern,
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


@modern
@both
def test_only_what_is_to_be_cold_is_old_since_reclaim_does_not_ask(era: str, advice: MADV) -> None:
    mm, p = huge(era)
    pinned = pin(mm, 0)
    assert sys_madvise(mm, 0, 2, advice) == 0
    assert p.compound and mm.pmd[0].pmd.young == (era == "v6.18" and advice == MADV.PAGEOUT)
    pinned.write_pins -= 1
    unpin_user_page(pinned)
    assert sys_madvise(mm, 0, 4, MADV.DONTNEED) == 0
    assert write(mm, 2, CONTENT) == 0
    pinned = pin(mm, 2)
    assert sys_madvise(mm, 2, 1, advice) == 0
    assert pte_at(mm, 2).young == (era == "v6.18" and advice == MADV.PAGEOUT) and pte_at(mm, 2).dirty
    pinned.write_pins -= 1
    unpin_user_page(pinned)
    settled()


@modern
def test_an_entry_is_taken_out_to_be_made_old_until_one_bit_is_cleared(
    era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PteKind] = []

    def set_pte(ptep: pte_slot, pte: pte_t) -> None:
        seen.append(ptep.pte.kind)
        pgtable.set_pte(ptep, pte)

    mm = start(era)
    do_mmap(mm, 0, 2, RW, 0)
    assert write(mm, 0, CONTENT) == 0
    monkeypatch.setattr(madvise_cold, "set_pte", set_pte)
    assert sys_madvise(mm, 0, 1, MADV.COLD) == 0
    assert seen == ([] if era == "v6.18" else [PteKind.NONE])
    assert sys_madvise(mm, 0, 1, MADV.COLD) == 0
    assert len(seen) < 2
    settled()


def test_what_is_on_no_list_is_not_made_old() -> None:
    mm, p = pte_mapped("v6.18")
    p.lru = False
    assert sys_madvise(mm, 0, 2, MADV.COLD) == 0
    assert pte_at(mm, 0).young and pte_at(mm, 1).young
    p.lru = True
    settled()


# -- MADV_FREE ------------------------------------------------------------------------------------------------------------


@modern
def test_what_is_written_after_the_look_at_its_entry_stays_written(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mm, p = cleaned(era)

    def somebody_stores(_: page) -> bool:
        set_pte(pte_slot_at(mm, 0), pte_at(mm, 0)._replace(dirty=True, young=True))
        return locks.trylock_page(p)

    monkeypatch.setattr(madvise_free, "trylock_page", somebody_stores)
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0
    assert pte_at(mm, 0).dirty and not p.dirty
    settled()


@modern
def test_what_reclaim_has_taken_since_is_not_freed_lazily(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mm, p = cleaned(era)

    def reclaim_comes(of: page) -> None:
        locks.unlock_page(of)
        add_to_swap_cache(of, get_swap_page())

    monkeypatch.setattr(madvise_free, "unlock_page", reclaim_comes)
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0
    assert p.swapcache is not None and not p.lazyfree


@modern
def test_a_table_is_flushed_again_when_it_is_locked_again(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """v6.8 flushes what reclaim has batched before it looks at the first entry, and not after a split."""
    mm, p = pte_mapped(era)
    assert sys_madvise(mm, 1, 1, MADV.DONTNEED) == 0
    flushes: list[bool] = []
    monkeypatch.setattr(madvise_free, "flush_tlb_batched_pending", lambda _: flushes.append(p.compound))
    monkeypatch.setattr(config, "BATCHED_UNMAP", True)
    assert sys_madvise(mm, 0, 2, MADV.FREE) == 0
    assert flushes == ([True, False] if era == "v6.18" else [True])


def cleaned(era: str) -> tuple[mm_struct, page]:
    """Page 0, which was written, and whose entry does not say so."""
    mm = start(era)
    do_mmap(mm, 0, 2, RW, 0)
    assert write(mm, 0, CONTENT) == 0
    p = page_at(mm, 0)
    p.dirty = True
    set_pte(pte_slot_at(mm, 0), pte_at(mm, 0)._replace(dirty=False, young=False))
    run_in(mm)
    return mm, p


def pte_slot_at(mm: mm_struct, addr: int) -> pte_slot:
    return pte_offset(mm.pmd[addr >> 1].pmd.table, addr)
