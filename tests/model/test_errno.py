"""The movers' results, row by row: remap_anon_pages as in its posting, UFFDIO_MOVE as in v6.8, first match wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from userfault.model import era as eras
from userfault.model.errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT
from userfault.model.fork import sys_fork
from userfault.model.fremap import remap_anon_pages
from userfault.model.gup import gup_fast
from userfault.model.huge_memory import do_huge_pmd_anonymous_page
from userfault.model.ksm import ksm_make_stable
from userfault.model.lang import WouldBlock
from userfault.model.machine import new_mm
from userfault.model.memory import pte_alloc
from userfault.model.mm_types import PmdKind, PteKind, address_space, mm_struct, pte_t, vm
from userfault.model.mmap import do_mmap
from userfault.model.pgtable import pte_offset, set_pte
from userfault.model.user import touch
from userfault.model.userfaultfd import uffdio_copy
from userfault.model.userfaultfd_move import uffdio_move
from userfault.model.vmscan import shrink_page

from .scene import PAGES, move, page_at, run_in, settled, start, write

SEED, V68 = "v3.10+seed", "v6.8"
DST, SRC = 4, 0


@dataclass(frozen=True)
class Row:
    """A state, a call, and its result in each era.

    None: the era has no such row (or, for the KSM page, no result: the seed tries again for ever, which is finding F-5).
    """

    what: str
    set_up: Callable[[mm_struct], object]
    seed: int | None
    v68: int | None
    dst: int = DST
    src: int = SRC
    length: int = 1
    holes: bool = False


def nothing(mm: mm_struct) -> None:
    """The page at SRC is written, the one at DST is missing."""


def entry(mm: mm_struct, addr: int, pte: pte_t) -> None:
    set_pte(pte_offset(pte_alloc(mm, addr), addr), pte)


def flags(mm: mm_struct, at: int, *, add: int = 0, clear: int = 0) -> None:
    vma = mm.mmap[at]
    vma.vm_flags = (vma.vm_flags | add) & ~clear


def huge(mm: mm_struct, addr: int, *, write: bool = True) -> None:
    """A huge page where small ones were."""
    for vma in mm.mmap:
        if vma.vm_start <= addr < vma.vm_end:
            pmdp = mm.pmd[addr >> 1]
            assert pmdp.pmd.kind == PmdKind.NONE
            userfault = vma.vm_flags & vm.USERFAULT
            vma.vm_flags &= ~vm.USERFAULT
            assert do_huge_pmd_anonymous_page(vma, addr, write) == 0
            vma.vm_flags |= userfault


def forked(mm: mm_struct) -> None:
    sys_fork(mm, new_mm(PAGES))


def swapped(mm: mm_struct) -> None:
    assert shrink_page(page_at(mm, SRC)) == 1


def swapped_and_forked(mm: mm_struct) -> None:
    swapped(mm)
    forked(mm)


def huge_shared(mm: mm_struct) -> None:
    huge(mm, 2)
    forked(mm)


def filled(mm: mm_struct) -> None:
    assert uffdio_copy(mm, DST, 1) == 0


def read_only(mm: mm_struct) -> None:
    flags(mm, 0, clear=vm.WRITE)
    flags(mm, 1, clear=vm.WRITE)


def file_backed(mm: mm_struct) -> None:
    mm.mmap[0].vm_file = address_space()


def changing(mm: mm_struct) -> None:
    mm.mmap_changing = 1


ROWS = [
    # Before mmap_sem.
    Row("the address space is changing", changing, None, -EAGAIN),
    Row("the length is not a number of pages", nothing, -EINVAL, -EINVAL, length=0),
    Row("a flag that nobody knows", nothing, -EINVAL, -EINVAL, length=-1),
    # The VMAs.
    Row("no VMA at the source", nothing, -EINVAL, -EINVAL, src=10),
    Row("the source is shared", lambda mm: flags(mm, 0, add=vm.SHARED), -EINVAL, -EINVAL),
    Row("the source reaches beyond its VMA", nothing, -EINVAL, -EINVAL, src=3, length=2),
    Row("no VMA at the destination", nothing, -EINVAL, -EINVAL, dst=10),
    Row("the destination is shared", lambda mm: flags(mm, 1, add=vm.SHARED), -EINVAL, -EINVAL),
    Row("the destination reaches beyond its VMA", nothing, -EINVAL, -EINVAL, dst=7, length=2),
    Row("one of the two may not be written", lambda mm: flags(mm, 1, clear=vm.WRITE), -EINVAL, -EINVAL),
    Row("neither may be written", read_only, 1, -EINVAL),
    Row("one of the two is locked", lambda mm: flags(mm, 1, add=vm.LOCKED), -EINVAL, -EINVAL),
    Row("the destination is not registered", lambda mm: flags(mm, 1, clear=vm.USERFAULT), 1, -EINVAL),
    Row("the source is a file's", file_backed, -EINVAL, -EINVAL),
    # The PMDs.
    Row("a huge page at the destination", lambda mm: huge(mm, DST), -EEXIST, -EEXIST),
    Row("the huge zero page at the destination", lambda mm: huge(mm, DST, write=False), -EEXIST, -EEXIST),
    Row("a huge page at the destination, no table at the source", lambda mm: huge(mm, DST), -ENOENT, -EEXIST, src=2),
    Row("the same, with holes", lambda mm: huge(mm, DST), -EEXIST, -EEXIST, src=2, holes=True),
    Row("no table at the source", nothing, -ENOENT, -ENOENT, src=2),
    Row("no table at the source, with holes", nothing, 1, 1, src=2, holes=True),
    Row("the huge zero page at the source, whole", lambda mm: huge(mm, 2, write=False), -EBUSY, -EBUSY, 4, 2, 2),
    Row("the huge zero page at the source, in part", lambda mm: huge(mm, 2, write=False), -EBUSY, -EBUSY, 4, 2, 1),
    Row("a shared huge page, whole", huge_shared, -EBUSY, -EBUSY, 4, 2, 2),
    Row("a shared huge page, in part", huge_shared, -EBUSY, -EBUSY, 4, 2, 1),
    Row("a huge page, whole", lambda mm: huge(mm, 2), 2, 2, 4, 2, 2),
    Row("a huge page, in part", lambda mm: huge(mm, 2), 1, 1, 4, 2, 1),
    # The PTEs.
    Row("a page at the destination", filled, -EEXIST, -EEXIST),
    Row("a swap entry at the destination", lambda mm: entry(mm, DST, pte_t(kind=PteKind.SWAP)), -EEXIST, -EEXIST),
    Row("a page at the destination, a hole at the source", filled, -EEXIST, -EEXIST, src=1),
    Row("the same, no table at the source, with holes", filled, -EEXIST, -EEXIST, src=2, holes=True),
    Row("a hole at the source", nothing, -ENOENT, -ENOENT, src=1),
    Row("a hole at the source, allowed", nothing, 1, 1, src=1, holes=True),
    Row("the zero page", lambda mm: touch(mm, 1), -EBUSY, -EBUSY, src=1),
    Row("a page of two processes", forked, -EBUSY, -EBUSY),
    Row("a pinned page", lambda mm: gup_fast(mm, SRC), 1, -EBUSY),
    Row("a KSM page", lambda mm: ksm_make_stable(mm, SRC), None, -EBUSY),
    Row("a page", nothing, 1, 1),
    # What is not present.
    Row("a swap entry", swapped, 1, 1),
    Row("a swap entry of two processes", swapped_and_forked, -EBUSY, -EBUSY),
    Row("a poisoned page", lambda mm: entry(mm, 1, pte_t(kind=PteKind.HWPOISON)), -EFAULT, -EFAULT, src=1),
    Row("a file PTE", lambda mm: entry(mm, 1, pte_t(kind=PteKind.FILE)), -EFAULT, None, src=1),
    # Short moves.
    Row("two pages, of which the second is missing", nothing, 1, 1, length=2),
    Row("two pages, of which the second is missing, with holes", nothing, 2, 2, length=2, holes=True),
]


CASES = [(row, SEED, row.seed) for row in ROWS if row.seed is not None]
CASES += [(row, V68, row.v68) for row in ROWS if row.v68 is not None]


@pytest.mark.parametrize(("row", "era", "expected"), CASES, ids=[f"{row.what}@{era}" for row, era, _ in CASES])
def test_the_result_is_the_tables(row: Row, era: str, expected: int) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    do_mmap(mm, 4, 4, int(vm.WRITE | vm.USERFAULT), 4)
    write(mm, SRC, b"content")
    run_in(mm)
    row.set_up(mm)
    if "a flag" in row.what:
        call = uffdio_move if eras.era.uffdio_move else remap_anon_pages
        assert call(mm, row.dst, row.src, 1, 4) == expected
    else:
        assert move(mm, row.dst, row.src, row.length, row.holes) == expected
    if "entry at the destination" not in row.what:
        settled()


@pytest.mark.parametrize("era", [SEED, V68])
def test_a_migration_entry_is_waited_for(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.WRITE), 0)
    do_mmap(mm, 4, 4, int(vm.WRITE | vm.USERFAULT), 4)
    write(mm, SRC, b"content")
    p = page_at(mm, SRC)
    p.locked = 2
    entry(mm, SRC, pte_t(kind=PteKind.MIGRATION, page=p))
    with pytest.raises(WouldBlock):
        move(mm, DST, SRC)
