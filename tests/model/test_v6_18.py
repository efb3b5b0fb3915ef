"""What the era v6.18 has beyond v6.8, as user space sees it."""

from __future__ import annotations

import pytest

from userfault.model.errno import EAGAIN, EBUSY, EEXIST, EFAULT, EHWPOISON, EINVAL, ENOENT, ENOMEM
from userfault.model.fork import sys_fork
from userfault.model.fs_userfaultfd import (
    UNWRITTEN,
    userfaultfd_copy,
    userfaultfd_move,
    userfaultfd_poison,
    userfaultfd_register,
    userfaultfd_unregister,
    userfaultfd_writeprotect,
    userfaultfd_zeropage,
)
from userfault.model.machine import new_mm
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.mincore import sys_mincore
from userfault.model.mlock import sys_mlock, sys_munlock
from userfault.model.mm_types import PteKind, mm_struct, userfaultfd_ctx, vm
from userfault.model.mmap import sys_mmap, sys_munmap
from userfault.model.mprotect import sys_mprotect
from userfault.model.mremap import mremap_fixed
from userfault.model.user import load, peek, poke, store

from .scene import RW, SIGBUS, SIGSEGV, pte_at, settled, two_vmas

PAGES = 32


@pytest.fixture
def mm() -> mm_struct:
    """Pages 0-7 plain, 8-15 registered for missing pages with the context of `ctx`; addresses count pages."""
    return two_vmas(PAGES, 8)


@pytest.fixture
def ctx(mm: mm_struct) -> userfaultfd_ctx:
    made = userfaultfd_ctx(mm=mm)
    assert userfaultfd_register(made, 8, 8, 1) == (0, 0x13C)
    return made


def layout(mm: mm_struct) -> list[tuple[int, int]]:
    return [(vma.vm_start, vma.vm_end) for vma in mm.mmap]


def test_vmas_are_split_and_merged(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    assert layout(mm) == [(0, 8), (8, 16)]
    assert sys_mprotect(mm, 2, 2, int(vm.READ)) == 0
    assert layout(mm) == [(0, 2), (2, 4), (4, 8), (8, 16)]
    assert sys_mprotect(mm, 2, 2, RW) == 0
    assert layout(mm) == [(0, 8), (8, 16)]
    assert sys_munmap(mm, 3, 2) == 0
    assert layout(mm) == [(0, 3), (5, 8), (8, 16)]
    assert sys_mmap(mm, 3, 2, RW) == 0
    assert layout(mm) == [(0, 8), (8, 16)]
    assert userfaultfd_unregister(ctx, 8, 4) == 0
    assert layout(mm) == [(0, 12), (12, 16)]
    assert sys_mprotect(mm, 20, 1, RW) == -ENOMEM
    settled()


def test_vmas_with_pages_of_their_own_are_not_merged(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    store(mm, 0, 1)
    assert userfaultfd_zeropage(ctx, 8, 1, 0) == (0, 1)
    store(mm, 8, 1)
    assert userfaultfd_unregister(ctx, 8, 8) == 0
    assert layout(mm) == [(0, 8), (8, 16)]
    settled()


def test_a_move_is_partial_and_says_so(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    for page in (0, 1, 3):
        store(mm, page, page + 1)
    assert userfaultfd_move(ctx, mm, 8, 0, 4, 0) == (-EAGAIN, 2)
    assert userfaultfd_move(ctx, mm, 10, 2, 2, 2) == (0, 2)
    assert [load(mm, page) for page in (8, 9, 11)] == [1, 2, 4]
    assert load(mm, 10) == SIGBUS
    assert userfaultfd_move(ctx, mm, 8, 5, 1, 2) == (-EEXIST, -EEXIST)
    assert userfaultfd_move(ctx, mm, 12, 5, 1, 0) == (-ENOENT, -ENOENT)
    assert userfaultfd_move(ctx, mm, 30, 5, 1, 0) == (-ENOENT, -ENOENT)
    assert userfaultfd_move(ctx, mm, 12, 5, 1, 4) == (-EINVAL, UNWRITTEN)
    assert userfaultfd_move(ctx, new_mm(PAGES), 12, 5, 1, 0) == (-EINVAL, UNWRITTEN)
    assert userfaultfd_move(userfaultfd_ctx(mm=mm), mm, 12, 5, 1, 0) == (-EINVAL, -EINVAL)
    settled()


def test_a_shared_page_is_busy_until_it_is_written_again(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    store(mm, 0, 1)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert userfaultfd_move(ctx, mm, 8, 0, 1, 0) == (-EBUSY, -EBUSY)
    assert sys_munmap(child, 0, PAGES) == 0
    assert userfaultfd_move(ctx, mm, 8, 0, 1, 0) == (-EBUSY, -EBUSY)
    store(mm, 0, 2)
    assert userfaultfd_move(ctx, mm, 8, 0, 1, 0) == (0, 1)
    settled()


def test_fills_and_poison(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    poke(mm, 0, b"a")
    assert userfaultfd_copy(ctx, mm, 8, 0, 1, 0) == (0, 1)
    assert peek(mm, 8, 1) == b"a"
    assert userfaultfd_copy(ctx, mm, 8, 0, 1, 0) == (-EEXIST, -EEXIST)
    assert userfaultfd_copy(ctx, mm, 9, 20, 1, 0) == (-EFAULT, -EFAULT)
    assert userfaultfd_copy(ctx, mm, 9, 0, 1, 2) == (-EINVAL, -EINVAL)
    assert userfaultfd_poison(ctx, 9, 2, 0) == (0, 2)
    assert userfaultfd_zeropage(ctx, 9, 1, 0) == (-EEXIST, -EEXIST)
    assert load(mm, 9) == SIGBUS
    assert userfaultfd_copy(ctx, mm, 9, 0, 1, 0) == (0, 1), "poison is overwritten"
    assert userfaultfd_move(ctx, mm, 11, 10, 1, 0) == (-EFAULT, -EFAULT)
    settled()


def test_write_protection(mm: mm_struct) -> None:
    ctx = userfaultfd_ctx(mm=mm, wp_unpopulated=True)
    store(mm, 8, 1)
    assert userfaultfd_register(ctx, 8, 8, 2) == (0, 0x17C)
    assert userfaultfd_writeprotect(ctx, 8, 2, 1) == 0
    assert store(mm, 8, 2) == SIGBUS
    assert load(mm, 8) == 1
    assert pte_at(mm, 9).kind == PteKind.WP_MARKER
    assert load(mm, 9) == 0
    assert store(mm, 9, 2) == SIGBUS
    assert userfaultfd_writeprotect(ctx, 8, 2, 0) == 0
    assert store(mm, 8, 2) == 0 and store(mm, 9, 2) == 0
    assert userfaultfd_writeprotect(ctx, 7, 2, 1) == -ENOENT
    assert userfaultfd_writeprotect(ctx, 8, 2, 3) == -EINVAL
    settled()


def test_guards(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    store(mm, 0, 1)
    assert sys_madvise(mm, 0, 2, MADV.GUARD_INSTALL) == 0
    assert load(mm, 0) == SIGSEGV
    assert sys_madvise(mm, 0, 2, MADV.DONTNEED) == 0
    assert load(mm, 1) == SIGSEGV, "guards outlive MADV_DONTNEED"
    assert userfaultfd_move(ctx, mm, 8, 0, 1, 0) == (-EFAULT, -EFAULT)
    assert sys_madvise(mm, 0, 2, MADV.GUARD_REMOVE) == 0
    assert load(mm, 0) == 0
    assert sys_madvise(mm, 0, PAGES, MADV.GUARD_REMOVE) == -ENOMEM
    settled()


def test_a_swap_entry_is_exclusive_until_it_is_shared(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    store(mm, 0, 1)
    store(mm, 1, 2)
    assert sys_madvise(mm, 0, 2, MADV.PAGEOUT) == 0
    assert pte_at(mm, 0).kind == PteKind.SWAP and pte_at(mm, 0).exclusive
    assert userfaultfd_move(ctx, mm, 8, 0, 1, 0) == (0, 1)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    assert userfaultfd_move(ctx, mm, 9, 1, 1, 0) == (-EBUSY, -EBUSY)
    assert (load(mm, 8), load(mm, 1)) == (1, 2)
    assert pte_at(mm, 1).page.swapcache is not None, "the child's entry keeps the page in the swap cache"
    settled()


def test_protections_are_the_entries_too(mm: mm_struct) -> None:
    store(mm, 0, 1)
    assert sys_mprotect(mm, 0, 1, 0) == 0
    assert load(mm, 0) == SIGSEGV
    assert sys_mprotect(mm, 0, 1, int(vm.READ)) == 0
    assert load(mm, 0) == 1
    assert store(mm, 0, 2) == SIGSEGV
    assert sys_mprotect(mm, 0, 1, RW) == 0
    assert pte_at(mm, 0).write, "a page that is the process's alone is made writable at once"
    settled()


def test_a_mapping_moves_with_its_pages(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    store(mm, 0, 1)
    page = pte_at(mm, 0).page
    assert mremap_fixed(mm, 0, 2, 3, 20) == 0
    assert pte_at(mm, 20).page is page and load(mm, 20) == 1
    assert load(mm, 0) == SIGSEGV
    assert layout(mm) == [(2, 8), (8, 16), (20, 22)]
    assert mremap_fixed(mm, 20, 2, 7, 24) == 0
    assert load(mm, 24) == 1 and load(mm, 20) == 0, "MREMAP_DONTUNMAP leaves an empty mapping"
    assert mremap_fixed(mm, 8, 8, 3, 9) == -EINVAL, "they overlap"
    assert mremap_fixed(mm, 18, 2, 3, 28) == -EFAULT, "a hole at the start"
    assert mremap_fixed(mm, 7, 2, 3, 28) == -EFAULT, "a registered one does not move together with others"
    settled()


def test_a_registered_mapping_that_moves_leaves_its_monitor_and_takes_its_neighbour_along(
    mm: mm_struct, ctx: userfaultfd_ctx
) -> None:
    """F-15: the kernel does so."""
    assert userfaultfd_register(ctx, 0, 2, 1)[0] == 0
    assert load(mm, 9) == SIGBUS
    assert mremap_fixed(mm, 0, 2, 3, 16) == 0
    assert layout(mm) == [(2, 8), (8, 18)]
    assert load(mm, 9) == 0
    settled()


def test_mincore_tells_pages_from_entries_and_markers(mm: mm_struct) -> None:
    assert store(mm, 0, 5) == 0 and load(mm, 1) == 0 and store(mm, 2, 6) == 0
    assert sys_madvise(mm, 2, 1, MADV.PAGEOUT) == 0
    assert sys_madvise(mm, 3, 1, MADV.GUARD_INSTALL) == 0
    assert sys_mincore(mm, 0, 5) == (0, [True, True, False, False, False])
    assert sys_munmap(mm, 1, 1) == 0
    assert sys_mincore(mm, 0, 3) == (-ENOMEM, [True]), "what lies before the hole is answered"
    settled()


def test_locked_pages_are_there_and_stay(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    assert sys_mlock(mm, 0, 2, False) == 0
    assert pte_at(mm, 1).kind == PteKind.PRESENT
    assert sys_madvise(mm, 0, 2, MADV.PAGEOUT) == -EINVAL
    assert sys_madvise(mm, 0, 2, MADV.DONTNEED) == -EINVAL
    assert userfaultfd_move(ctx, mm, 8, 0, 1, 0) == (-EINVAL, -EINVAL), "locked and not locked"
    assert sys_mlock(mm, 8, 1, False) == -ENOMEM, "a page that is missing can't be locked"
    assert sys_mlock(mm, 9, 1, True) == 0
    assert userfaultfd_move(ctx, mm, 9, 0, 1, 0) == (0, 1)
    assert sys_munlock(mm, 0, 20) == -ENOMEM
    assert layout(mm) == [(0, 8), (8, 16)]
    settled()


def test_populate(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    assert sys_madvise(mm, 0, 2, MADV.POPULATE_READ) == 0
    assert pte_at(mm, 1).special
    assert sys_madvise(mm, 0, 2, MADV.POPULATE_WRITE) == 0
    assert not pte_at(mm, 1).special
    assert sys_madvise(mm, 7, 2, MADV.POPULATE_WRITE) == -EFAULT
    assert sys_madvise(mm, 15, 2, MADV.POPULATE_READ) == -EFAULT
    assert userfaultfd_poison(ctx, 8, 1, 0) == (0, 1)
    assert sys_madvise(mm, 8, 1, MADV.POPULATE_READ) == -EHWPOISON
    assert sys_madvise(mm, 20, 1, MADV.POPULATE_READ) == -ENOMEM
    assert sys_mprotect(mm, 0, 1, int(vm.READ)) == 0
    assert sys_madvise(mm, 0, 1, MADV.POPULATE_WRITE) == -EINVAL
    settled()
