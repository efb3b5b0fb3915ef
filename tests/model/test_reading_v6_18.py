"""Details that the second reading of v6.18's source found missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from userfault.model import era as eras
from userfault.model import fs_userfaultfd, locks, madvise, memory, populate, userfaultfd, userfaultfd_move
from userfault.model.errno import EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM
from userfault.model.fork import sys_fork
from userfault.model.fs_userfaultfd import (
    userfaultfd_copy,
    userfaultfd_register,
    userfaultfd_release,
    userfaultfd_writeprotect,
    userfaultfd_zeropage,
)
from userfault.model.gup import get_user_page
from userfault.model.huge_split import split_huge_pmd, split_huge_pmd_locked
from userfault.model.khugepaged import collapse_huge_page
from userfault.model.lang import ModelError, WouldBlock
from userfault.model.locks import spin_lock, spin_unlock
from userfault.model.machine import attach, boot, config, machine, new_mm
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.memory import handle_mm_fault, pte_alloc
from userfault.model.mincore import sys_mincore
from userfault.model.mlock import sys_mlock, sys_munlock
from userfault.model.mm_types import (
    VM_FAULT_OOM,
    PmdKind,
    PteKind,
    mm_struct,
    pmd_t,
    pte_slot,
    pte_t,
    rw_semaphore,
    spinlock_t,
    userfaultfd_ctx,
    vm,
    vm_area_struct,
)
from userfault.model.mmap import do_mmap, sys_mmap
from userfault.model.mprotect import sys_mprotect
from userfault.model.pgtable import pmd_lockptr, ptep_get_and_clear
from userfault.model.slab import get_page, nth_page, vm_area_alloc, vm_area_free
from userfault.model.user import load, store
from userfault.model.userfaultfd import uffdio_copy
from userfault.model.userfaultfd_move import uffdio_move
from userfault.model.vma_lock import vma_start_write

from .scene import RW, SIGBUS, SIGSEGV, pte_at, settled, two_vmas

PAGES = 16


@pytest.fixture
def mm() -> mm_struct:
    """Pages 0-3 plain, 4-7 registered for missing pages and for write-protection; addresses count pages."""
    return two_vmas(PAGES, 4)


@pytest.fixture
def ctx(mm: mm_struct) -> userfaultfd_ctx:
    made = userfaultfd_ctx(mm=mm)
    assert userfaultfd_register(made, 4, 4, 3)[0] == 0
    return made


def changes_while_it_waits(monkeypatch: pytest.MonkeyPatch, module: object, mm: mm_struct) -> None:
    """An event begins between an ioctl's first look and its lock."""

    def down_read(rwsem: rw_semaphore) -> None:
        locks.down_read(rwsem)
        mm.mmap_changing = 1

    monkeypatch.setattr(module, "down_read", down_read)


def test_a_move_looks_for_its_vmas_before_it_asks_for_events(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes_while_it_waits(monkeypatch, userfaultfd_move, mm)
    assert uffdio_move(mm, 4, 8, 1, 0, ctx) == -ENOENT
    mm.mmap_changing = 0
    assert uffdio_move(mm, 4, 0, 1, 0, ctx) == -EAGAIN


def test_a_shared_destination_gets_no_anon_vma(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    mm.mmap[1].vm_flags |= int(vm.SHARED)
    assert uffdio_move(mm, 4, 0, 1, 0, ctx) < 0
    assert mm.mmap[1].anon_vma is None


def test_fills_ask_again_for_events_under_the_lock(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store(mm, 0, 1) == 0
    changes_while_it_waits(monkeypatch, userfaultfd, mm)
    assert userfaultfd_zeropage(ctx, 4, 1, 0) == (-EAGAIN, -EAGAIN)
    mm.mmap_changing = 0
    assert userfaultfd_zeropage(ctx, 9, 1, 0) == (-ENOENT, -ENOENT)
    mm.mmap_changing = 0
    assert userfaultfd_writeprotect(ctx, 4, 1, 1) == -EAGAIN
    mm.mmap_changing = 0
    changes_while_it_waits(monkeypatch, fs_userfaultfd, mm)
    assert userfaultfd_copy(ctx, mm, 4, 0, 1, 0) == (-EAGAIN, -EAGAIN)


@pytest.mark.parametrize("era", ["v6.8", "v6.18"])
def test_a_copy_makes_its_vma_ready_before_it_asks_whether_it_is_registered(mm: mm_struct, era: str) -> None:
    eras.use(era)
    assert uffdio_copy(mm, 0, 1) == -ENOENT
    assert (mm.mmap[0].anon_vma is not None) == (era == "v6.18")


def test_a_copy_under_a_vma_lock_asks_for_events_last(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    found = userfaultfd.uffd_lock_vma

    def event_begins(of: mm_struct, addr: int) -> tuple[int, vm_area_struct | None]:
        of.mmap_changing = 1
        return found(of, addr)

    monkeypatch.setattr(userfaultfd, "uffd_lock_vma", event_begins)
    assert uffdio_copy(mm, 0, 1) == -ENOENT
    mm.mmap_changing = 0
    assert uffdio_copy(mm, 4, 1) == -EAGAIN
    assert mm.mmap[0].vm_refcnt == mm.mmap[1].vm_refcnt == 0


def test_a_copy_looks_at_its_place_before_it_wants_a_page(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert userfaultfd_zeropage(ctx, 4, 1, 0) == (0, 1)
    monkeypatch.setattr(userfaultfd, "out_of_memory", lambda: True)
    assert uffdio_copy(mm, 5, 1) == -ENOMEM
    table = mm.pmd[2].pmd
    mm.pmd[2].pmd = pmd_t(kind=PmdKind.HUGE_ZERO)
    assert uffdio_copy(mm, 4, 1) == -EEXIST
    mm.pmd[2].pmd = table
    settled()


def test_what_comes_into_a_place_is_young(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    """On x86 the protection of a VMA has the accessed bit: only what ages an entry takes it away."""
    for addr in (0, 1):
        assert store(mm, addr, 1) == 0
    assert load(mm, 2) == 0
    for addr in (0, 1, 2):
        slot = mm.pmd[addr >> 1].pmd.table.pte[addr & 1]
        slot.pte = slot.pte._replace(young=False)
    assert uffdio_move(mm, 4, 0, 3, 0, ctx) == 3
    assert userfaultfd_zeropage(ctx, 7, 1, 0) == (0, 1)
    assert [pte_at(mm, addr).young for addr in (4, 5, 6, 7)] == [True] * 4


def test_a_pinned_page_is_put_back_without_a_flush(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store(mm, 0, 1) == 0
    flushed: list[int] = []

    def pinned_in_time(ptep: pte_slot) -> pte_t:
        old = ptep_get_and_clear(ptep)
        old.page.pincount += 1
        return old

    monkeypatch.setattr(userfaultfd_move, "ptep_get_and_clear", pinned_in_time)
    monkeypatch.setattr(userfaultfd_move, "flush_tlb_range", lambda *_: flushed.append(1))
    assert uffdio_move(mm, 4, 0, 1, 0, ctx) == -EBUSY
    assert pte_at(mm, 0).kind == PteKind.PRESENT and flushed == []


def test_the_lock_is_let_go_before_the_huge_zero_page_moves(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    mm.pmd[0].pmd = pmd_t(kind=PmdKind.HUGE_ZERO)
    mm.pmd[0].deposited = pte_alloc(mm, 4)
    mm.pmd[2].pmd = pmd_t()

    def a_fill_is_faster(lock: spinlock_t) -> None:
        spin_unlock(lock)
        if mm.pmd[2].pmd.kind == PmdKind.NONE:
            assert userfaultfd.mfill_zeropage(mm.mmap[1], 4) == 0

    monkeypatch.setattr(userfaultfd_move, "spin_unlock", a_fill_is_faster)
    assert uffdio_move(mm, 4, 0, 2, 0, ctx) == -EEXIST
    assert pte_at(mm, 4).special


@pytest.mark.parametrize("access", [int(vm.READ), 0])
def test_a_protection_is_the_huge_entrys_too(mm: mm_struct, access: int) -> None:
    mm.mmap[0].vm_flags |= int(vm.HUGEPAGE)
    assert store(mm, 0, 1) == 0 and mm.pmd[0].pmd.kind == PmdKind.HUGE
    assert sys_mprotect(mm, 0, 2, access) == 0
    assert store(mm, 0, 2) == SIGSEGV
    assert load(mm, 0) == (1 if access else SIGSEGV)
    assert sys_mprotect(mm, 0, 2, RW) == 0
    assert store(mm, 0, 2) == 0 and load(mm, 0) == 2
    if access:
        assert mm.pmd[0].pmd == pmd_t(kind=PmdKind.HUGE, page=mm.pmd[0].pmd.page, write=True, dirty=True, young=True), (
            "it is not split"
        )
    settled()


def test_a_shared_huge_page_does_not_become_writable(mm: mm_struct) -> None:
    mm.mmap[0].vm_flags |= int(vm.HUGEPAGE)
    assert store(mm, 0, 1) == 0
    assert sys_fork(mm, new_mm(PAGES)) == 0
    assert sys_mprotect(mm, 0, 2, int(vm.READ)) == 0
    assert sys_mprotect(mm, 0, 2, RW) == 0
    assert not mm.pmd[0].pmd.write


def test_a_huge_page_is_write_protected_whole_or_its_parts_are(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    mm.mmap[1].vm_flags |= int(vm.HUGEPAGE)
    mm.mmap[1].vm_flags &= ~int(vm.USERFAULT)
    assert store(mm, 4, 1) == 0 and mm.pmd[2].pmd.kind == PmdKind.HUGE
    assert userfaultfd_writeprotect(ctx, 4, 2, 1) == 0
    assert mm.pmd[2].pmd.kind == PmdKind.HUGE and mm.pmd[2].pmd.uffd_wp and not mm.pmd[2].pmd.write
    assert store(mm, 4, 2) == SIGBUS and store(mm, 5, 2) == SIGBUS
    assert userfaultfd_writeprotect(ctx, 4, 1, 1) == 0
    assert [pte_at(mm, addr).uffd_wp and not pte_at(mm, addr).write for addr in (4, 5)] == [True] * 2


def test_a_write_protected_page_is_not_dirty_when_it_comes_back(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    mm.mmap[1].vm_flags &= ~int(vm.USERFAULT)
    assert store(mm, 4, 1) == 0
    assert userfaultfd_writeprotect(ctx, 4, 1, 1) == 0
    assert sys_madvise(mm, 4, 1, MADV.PAGEOUT) == 0 and pte_at(mm, 4).kind == PteKind.SWAP
    assert store(mm, 4, 2) == SIGBUS
    back = pte_at(mm, 4)
    assert back == pte_t(kind=PteKind.PRESENT, page=back.page, young=True, uffd_wp=True)


def test_a_range_is_flushed_once_and_without_a_userfaultfd_after_the_lock(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[tuple[int, int, bool]] = []

    def tlb_finish_mmu(of: mm_struct, start: int, end: int) -> None:
        flushes.append((start, end, any(of.mmap_sem.readers)))
        memory.tlb_finish_mmu(of, start, end)

    monkeypatch.setattr(madvise, "tlb_finish_mmu", tlb_finish_mmu)
    assert store(mm, 1, 1) == 0
    assert sys_madvise(mm, 0, 4, MADV.DONTNEED) == 0
    assert sys_madvise(mm, 4, 2, MADV.DONTNEED) == 0
    assert sys_madvise(mm, 2, 4, MADV.DONTNEED) == 0
    assert flushes == [(0, 4, False), (4, 6, True), (2, 6, True)]
    settled()


# -- the VMAs' own locks, and the rest of madvise -------------------------------------------------------------------------


def somebody_else_writes(mm: mm_struct) -> None:
    """Another CPU holds mmap_lock for writing, but none of the VMAs yet."""
    mm.mmap_sem.writer = 2


def test_page_tables_that_go_are_flushed_with_the_rest(mm: mm_struct, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store(mm, 0, 1) == 0 and machine.cpus[0].tlb[0].page is not None
    table = mm.pmd[0].pmd.table
    translations: list[bool] = []

    def tlb_finish_mmu(of: mm_struct, start: int, end: int) -> None:
        translations.append(machine.cpus[0].tlb[0].page is not None)
        memory.tlb_finish_mmu(of, start, end)

    monkeypatch.setattr(madvise, "tlb_finish_mmu", tlb_finish_mmu)
    assert sys_madvise(mm, 0, 2, MADV.DONTNEED) == 0
    assert translations == [True] and mm.pmd[0].pmd.kind == PmdKind.NONE and not table.allocated


def test_memory_that_is_not_needed_is_flushed_once_at_the_end(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[tuple[int, int, bool]] = []

    def flush_tlb_range(_: mm_struct, start: int, end: int) -> None:
        flushes.append((start, end, any(mm.mmap_sem.readers)))

    monkeypatch.setattr(madvise, "flush_tlb_range", flush_tlb_range)
    monkeypatch.setattr(memory, "flush_tlb_range", flush_tlb_range)
    assert sys_madvise(mm, 0, 3, MADV.FREE) == 0
    assert sys_madvise(mm, 2, 4, MADV.FREE) == 0
    assert flushes == [(0, 3, False), (2, 6, True)]


def test_what_is_freed_lazily_stays_so_while_it_is_on_no_list(mm: mm_struct) -> None:
    assert store(mm, 0, 1) == 0
    p = pte_at(mm, 0).page
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0 and p.lazyfree
    p.lru = False
    assert sys_madvise(mm, 0, 1, MADV.FREE) == 0 and p.lazyfree


def test_no_memory_is_told_from_a_signal(mm: mm_struct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populate, "handle_mm_fault", lambda *_: VM_FAULT_OOM)
    assert sys_madvise(mm, 0, 1, MADV.POPULATE_WRITE) == -ENOMEM
    assert sys_mlock(mm, 0, 1, False) == -EAGAIN


def test_a_vma_whose_lock_is_held_may_not_be_accessed_more_than_it_allows(
    mm: mm_struct, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store(mm, 0, 1) == 0
    assert sys_mprotect(mm, 0, 4, 0) == 0
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    assert load(mm, 1) == SIGSEGV and store(mm, 1, 1) == SIGSEGV
    settled()


def test_a_fault_takes_mmap_lock_only_for_an_anon_vma(mm: mm_struct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    somebody_else_writes(mm)
    assert load(mm, 0) == 0 and mm.mmap[0].anon_vma is None
    with pytest.raises(WouldBlock):
        store(mm, 0, 1)
    mm.mmap_sem.writer = 0
    assert store(mm, 0, 1) == 0
    somebody_else_writes(mm)
    assert store(mm, 1, 1) == 0
    assert mm.mmap[0].vm_refcnt == 0


@pytest.mark.parametrize("advice", [MADV.DONTNEED, MADV.FREE])
def test_some_advice_needs_only_the_lock_of_its_vma(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch, advice: MADV
) -> None:
    assert store(mm, 0, 1) == 0
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    somebody_else_writes(mm)
    assert sys_madvise(mm, 0, 4, advice) == 0
    assert mm.mmap[0].vm_refcnt == 0
    for start, length in ((4, 2), (2, 4)):
        with pytest.raises(WouldBlock):
            sys_madvise(mm, start, length, advice)
    assert mm.mmap[0].vm_refcnt == 0 and mm.mmap[1].vm_refcnt == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda mm, ctx: sys_mprotect(mm, 4, 4, int(vm.READ)),
        lambda mm, ctx: sys_madvise(mm, 4, 4, MADV.DONTFORK),
        lambda mm, ctx: madvise.madvise_dontfork(mm, 4),
        lambda mm, ctx: sys_mlock(mm, 4, 4, True),
        lambda mm, ctx: userfaultfd_register(ctx, 4, 4, 1),
        lambda mm, ctx: fs_userfaultfd.userfaultfd_unregister(ctx, 4, 4),
    ],
)
def test_who_changes_a_vma_waits_for_its_readers(
    mm: mm_struct,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[mm_struct, userfaultfd_ctx], object],
) -> None:
    ctx = userfaultfd_ctx(mm=mm)
    assert userfaultfd_register(ctx, 4, 4, 2)[0] == 0
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    change(mm, ctx)
    assert not any(each.vm_write_locked for each in mm.mmap), "the locks go with mmap_lock"
    assert userfaultfd_register(ctx, 4, 4, 2)[0] == 0
    sys_mprotect(mm, 4, 4, RW)
    sys_madvise(mm, 4, 4, MADV.DOFORK)
    sys_munlock(mm, 4, 4)
    mm.mmap[1].vm_refcnt = 1
    with pytest.raises(WouldBlock):
        change(mm, ctx)


def test_a_vma_that_is_used_again_is_not_locked(mm: mm_struct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    locks.down_write(mm.mmap_sem)
    vma_start_write(mm.mmap[0])
    vm_area_free(mm.mmap[0])
    assert not vm_area_alloc().vm_write_locked


@pytest.mark.parametrize("lock", [lambda _: None, locks.down_read], ids=["unlocked", "read"])
def test_a_vma_is_locked_only_by_who_holds_mmap_lock_for_writing(
    mm: mm_struct, lock: Callable[[rw_semaphore], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    lock(mm.mmap_sem)
    with pytest.raises(ModelError, match="without mmap_lock held for writing"):
        vma_start_write(mm.mmap[0])


def test_the_destination_gets_its_anon_vma_before_the_source_is_missed(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    asked = iter([mm.mmap[1], None])
    mm.mmap[1].vm_flags |= int(vm.SHARED)
    monkeypatch.setattr(userfaultfd, "lock_vma_under_rcu", lambda *_: next(asked))
    monkeypatch.setattr(userfaultfd_move, "lock_vma_under_rcu", lambda *_: next(asked))
    mm.mmap[1].vm_refcnt = 1

    def down_read(rwsem: rw_semaphore) -> None:
        locks.down_read(rwsem)
        mm.mmap[1].vm_flags &= ~int(vm.SHARED)

    monkeypatch.setattr(userfaultfd_move, "down_read", down_read)
    assert uffdio_move(mm, 4, 8, 1, 0, ctx) == -ENOENT
    assert mm.mmap[1].anon_vma is not None


# -- what the hardware notes in an entry that changes -------------------------------------------------------------------------


def test_a_huge_entry_that_is_split_keeps_what_was_noted_since_it_was_looked_at(mm: mm_struct) -> None:
    mm.mmap[0].vm_flags |= int(vm.HUGEPAGE)
    assert store(mm, 0, 1) == 0
    pmdp = mm.pmd[0]
    spin_lock(pmd_lockptr(pmdp))
    split_huge_pmd_locked(mm.mmap[0], pmdp, pmdp.pmd._replace(dirty=False), False)
    spin_unlock(pmd_lockptr(pmdp))
    assert pte_at(mm, 0).dirty and pte_at(mm, 0).page.dirty


def test_a_read_fault_at_a_page_that_is_there_leaves_its_entry_alone(mm: mm_struct) -> None:
    assert store(mm, 0, 1) == 0
    slot = mm.pmd[0].pmd.table.pte[0]
    slot.pte = slot.pte._replace(young=False, dirty=False)
    assert handle_mm_fault(mm.mmap[0], 0, False) == 0
    assert not slot.pte.young and not slot.pte.dirty
    assert handle_mm_fault(mm.mmap[0], 0, True) == 0
    assert slot.pte.young and slot.pte.dirty


def test_mincore_takes_what_is_on_its_way_for_resident(mm: mm_struct) -> None:
    assert store(mm, 0, 1) == 0
    slot = mm.pmd[0].pmd.table.pte[0]
    for kind, resident in ((PteKind.MIGRATION, True), (PteKind.HWPOISON, True), (PteKind.GUARD_MARKER, False)):
        slot.pte = slot.pte._replace(kind=kind)
        assert sys_mincore(mm, 0, 2) == (0, [resident, False])


def test_mincore_answers_nothing_beyond_the_users_addresses(mm: mm_struct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "TASK_SIZE", 12)
    assert sys_mincore(mm, 0, 12) == (-ENOMEM, [False] * 8)
    assert sys_mincore(mm, 0, 13) == (-ENOMEM, [])


# -- khugepaged ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("era", "result"), [("v6.8", -EAGAIN), ("v6.18", 0)])
def test_khugepaged_takes_pages_of_which_none_is_writable(era: str, result: int) -> None:
    eras.use(era)
    boot()
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
    do_mmap(mm, 0, 4, RW, 0)
    assert store(mm, 0, 1) == 0 and store(mm, 1, 2) == 0
    assert sys_fork(mm, new_mm(PAGES)) == 0
    assert not pte_at(mm, 0).write
    assert collapse_huge_page(mm, 0) == result
    assert [load(mm, 0), load(mm, 1)] == [1, 2]
    settled()


def test_khugepaged_fills_no_hole_of_a_range_that_is_write_protected(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    mm.mmap[1].vm_flags &= ~int(vm.USERFAULT)
    assert store(mm, 4, 1) == 0
    assert collapse_huge_page(mm, 4) == -EAGAIN
    assert store(mm, 5, 2) == 0
    assert collapse_huge_page(mm, 4) == 0
    settled()


def test_a_mapping_that_was_never_written_is_not_put_together(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    """thp_vma_allowable_orders asks for an anon_vma; a fault that goes to the monitor leaves a page table all the same."""
    assert load(mm, 4) == SIGBUS and mm.pmd[2].pmd.kind == PmdKind.TABLE
    assert sys_madvise(mm, 4, 2, MADV.COLLAPSE) == -EINVAL
    assert store(mm, 4, 1) == SIGBUS
    assert sys_madvise(mm, 4, 2, MADV.COLLAPSE) == -EBUSY


@pytest.mark.parametrize("used", [False, True])
def test_khugepaged_makes_a_huge_page_of_one_that_is_mapped_part_by_part(mm: mm_struct, used: bool) -> None:
    mm.mmap[0].vm_flags |= int(vm.HUGEPAGE)
    assert store(mm, 0, 1) == 0 and store(mm, 1, 2) == 0
    head = mm.pmd[0].pmd.page
    split_huge_pmd(mm.mmap[0], mm.pmd[0])
    if used:
        get_page(head)
    assert collapse_huge_page(mm, 0) == (-EAGAIN if used else 0)
    assert [load(mm, 0), load(mm, 1)] == [1, 2]
    assert head.allocated == used and head.locked == 0
    settled()


# -- a userfaultfd is closed ----------------------------------------------------------------------------------------------------


def test_what_a_closed_userfaultfd_had_is_ordinary_memory_again(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    other = userfaultfd_ctx(mm=mm)
    assert sys_mmap(mm, 8, 2, RW) == 0 and userfaultfd_register(other, 8, 2, 1)[0] == 0
    assert userfaultfd_zeropage(ctx, 5, 1, 0) == (0, 1)
    assert userfaultfd_writeprotect(ctx, 4, 2, 1) == 0
    assert (store(mm, 5, 1), load(mm, 6)) == (SIGBUS, SIGBUS)
    userfaultfd_release(ctx)
    assert not pte_at(mm, 5).uffd_wp
    assert (store(mm, 5, 1), load(mm, 6)) == (0, 0)
    assert [(each.vm_start, each.vm_end, each.ctx) for each in mm.mmap] == [(0, 8, None), (8, 10, other)]
    assert load(mm, 8) == SIGBUS
    userfaultfd_release(ctx)
    settled()


def test_a_close_waits_for_the_faults_under_the_locks_of_its_vmas(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PER_VMA_LOCKS", True)
    mm.mmap[1].vm_refcnt = 1
    with pytest.raises(WouldBlock):
        userfaultfd_release(ctx)


def test_an_address_space_that_is_gone_has_nothing_to_close(mm: mm_struct, ctx: userfaultfd_ctx) -> None:
    mm.allocated = False
    userfaultfd_release(ctx)
    assert mm.mmap_sem.writer == 0 and mm.mmap[1].ctx is ctx


@pytest.mark.parametrize(("length", "result"), [(4, 0), (2, -ENOMEM)])
def test_a_vma_leaves_its_userfaultfd_whole_without_memory(
    mm: mm_struct, ctx: userfaultfd_ctx, monkeypatch: pytest.MonkeyPatch, length: int, result: int
) -> None:
    monkeypatch.setattr(fs_userfaultfd, "vma_modify", lambda *_: None)
    assert fs_userfaultfd.userfaultfd_unregister(ctx, 4, length) == result
    assert (mm.mmap[1].ctx is None) == (result == 0)


# -- references for reading ---------------------------------------------------------------------------------------------------


def test_a_reference_for_reading_is_to_a_part_of_a_huge_page_too(mm: mm_struct) -> None:
    mm.mmap[0].vm_flags |= int(vm.HUGEPAGE)
    assert get_user_page(mm, 1) == (True, None) and mm.pmd[0].pmd.kind == PmdKind.HUGE_ZERO
    assert store(mm, 1, 1) == 0
    head = mm.pmd[0].pmd.page
    assert get_user_page(mm, 1) == (True, nth_page(head, 1)) and head.refcount.counter == 2
