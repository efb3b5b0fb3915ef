"""mremap, called as ordinary Python in every era."""

from __future__ import annotations

from userfault.model.errno import EFAULT, EINVAL
from userfault.model.migrate import migrate_page
from userfault.model.mm_types import vm
from userfault.model.mmap import do_mmap
from userfault.model.mremap import sys_mremap
from userfault.model.rmap import page_referenced_anon
from userfault.model.user import load
from userfault.model.vmscan import shrink_page

from .scene import CONTENT, every_era, page_at, read, settled, start, write


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
