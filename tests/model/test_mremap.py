"""mremap, called as ordinary Python in every era."""

from __future__ import annotations

import pytest

from userfault.model import mremap
from userfault.model.anon_vma import anon_vma_lock_write
from userfault.model.errno import EFAULT, EINVAL
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import anon_vma, vm
from userfault.model.mmap import do_mmap
from userfault.model.mremap import MREMAP_FIXED, MREMAP_MAYMOVE, mremap_fixed, sys_mremap
from userfault.model.rmap import page_referenced_anon
from userfault.model.user import load
from userfault.model.vmscan import shrink_page

from .scene import CONTENT, every_era, page_at, read, settled, start, two_vmas, write


@every_era
def test_a_mapping_moves_with_its_pages_which_the_walkers_find(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 1, CONTENT)
    p = page_at(mm, 1)
    index = p.index
    assert sys_mremap(mm, 4, 0, 2) == 0
    assert read(mm, 5) == CONTENT
    assert load(mm, 1) == -11
    assert page_at(mm, 5) is p
    assert p.index == index
    assert page_referenced_anon(p, False) == 1
    settled()
    assert migrate_page(p) == 0
    assert shrink_page(page_at(mm, 5)) == 1
    assert read(mm, 5) == CONTENT
    settled()


@every_era
def test_a_mapping_that_nobody_touched_gets_the_page_offset_of_its_new_place(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    assert sys_mremap(mm, 4, 0, 2) == 0
    assert [vma.vm_pgoff for vma in mm.mmap] == [4]
    write(mm, 4, CONTENT)
    assert read(mm, 4) == CONTENT
    settled()


@every_era
def test_what_can_not_be_moved_is_refused(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    do_mmap(mm, 4, 2, int(vm.WRITE), 4)
    assert sys_mremap(mm, 4, 0, 2) == -EINVAL
    assert sys_mremap(mm, 6, 0, 0) == -EINVAL
    assert sys_mremap(mm, 6, 2, 1) == -EFAULT
    settled()


def test_walkers_are_kept_out_only_where_they_could_come_to_the_new_place_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mm/vma.c, copy_vma: a new VMA stands behind its source in the trees, a merged one may stand before it."""
    mm = two_vmas(32, 4)
    for page in range(4):
        write(mm, page, CONTENT)
    locked = []

    def noted(held: anon_vma) -> None:
        locked.append(held)
        anon_vma_lock_write(held)

    monkeypatch.setattr(mremap, "anon_vma_lock_write", noted)

    def moved(addr: int, new_addr: int) -> int:
        locked.clear()
        assert mremap_fixed(mm, addr, 2, MREMAP_MAYMOVE | MREMAP_FIXED, new_addr) == 0
        return len(locked)

    assert moved(2, 20) == 0, "a copy"
    assert moved(0, 18) == 2, "merged with what begins where it does"
    assert moved(18, 24) == 0, "a copy again"
    assert [read(mm, page) for page in (20, 21, 24, 25)] == [CONTENT] * 4
    settled()
