"""Pages that are asked for, and pages that need not be kept."""

from __future__ import annotations

import pytest

from userfault.model.errno import EFAULT, EINVAL, ENOMEM
from userfault.model.gup import device_write
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.mm_types import mm_struct, vm
from userfault.model.mmap import do_mmap
from userfault.model.slab import get_page, put_page
from userfault.model.vmscan import shrink_page

from .scene import CONTENT, huge, modern, page_at, pte_at, read, settled, start, write


def written(era: str) -> mm_struct:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.READ | vm.WRITE), 0)
    assert write(mm, 0, CONTENT) == 0
    return mm


def is_lazy(mm: mm_struct) -> bool:
    return page_at(mm, 0).lazyfree


@modern
def test_a_page_that_is_not_needed_goes_unless_it_is_written(era: str) -> None:
    mm = written(era)
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0
    assert not pte_at(mm, 0).dirty and is_lazy(mm)
    assert write(mm, 0, CONTENT) == 0
    assert shrink_page(page_at(mm, 0)) == 0
    assert not is_lazy(mm)
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0
    assert shrink_page(page_at(mm, 0)) == 1
    assert read(mm, 0) == 0
    settled()


@pytest.mark.parametrize(("era", "lazy"), [("v6.8", False), ("v6.18", True)])
def test_who_has_a_reference_keeps_it(era: str, lazy: bool) -> None:
    mm = written(era)
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0
    get_page(page_at(mm, 0))
    assert shrink_page(page_at(mm, 0)) == 0
    assert is_lazy(mm) == lazy
    put_page(page_at(mm, 0))
    settled()


@modern
def test_what_a_device_wrote_is_dirty(era: str) -> None:
    mm = written(era)
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0
    assert device_write(mm, 0, 7, 1) == 1
    assert shrink_page(page_at(mm, 0)) == 0
    assert read(mm, 0) == 7
    settled()


@modern
def test_a_huge_entry_that_is_populated_is_used(era: str) -> None:
    mm, _ = huge(era, int(vm.READ | vm.WRITE))
    mm.pmd[0].pmd = mm.pmd[0].pmd._replace(young=False, dirty=False)
    assert sys_madvise(mm, 0, 2, MADV.POPULATE_READ) == 0
    assert mm.pmd[0].pmd.young and not mm.pmd[0].pmd.dirty
    assert sys_madvise(mm, 0, 2, MADV.POPULATE_WRITE) == 0
    assert mm.pmd[0].pmd.dirty
    settled()


def test_what_lies_before_the_trouble_is_done() -> None:
    mm = written("v6.18")
    do_mmap(mm, 6, 2, int(vm.READ), 6)
    assert sys_madvise(mm, 0, 8, MADV.POPULATE_WRITE) == -ENOMEM
    assert not pte_at(mm, 3).special
    assert sys_madvise(mm, 6, 1, MADV.POPULATE_WRITE) == -EINVAL
    mm.mmap[1].vm_flags |= int(vm.USERFAULT)
    assert sys_madvise(mm, 6, 1, MADV.POPULATE_READ) == -EFAULT
    settled()
