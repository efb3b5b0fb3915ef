"""What a userfaultfd's monitor is told, and when, with the model called as ordinary Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from userfault.model import era as eras
from userfault.model import fork, madvise
from userfault.model.errno import EAGAIN, EINVAL, ENOMEM, ESRCH
from userfault.model.events import (
    EVENT_FORK,
    EVENT_PAGEFAULT,
    EVENT_REMAP,
    EVENT_REMOVE,
    EVENT_UNMAP,
    FAULT_WRITE,
    FEATURE_EVENT_FORK,
    FEATURE_EVENT_REMAP,
    FEATURE_EVENT_REMOVE,
    FEATURE_EVENT_UNMAP,
    FEATURE_SIGBUS,
    read_event,
    uffd_msg,
)
from userfault.model.fork import sys_fork
from userfault.model.fs_userfaultfd import (
    UNWRITTEN,
    userfaultfd_register,
    userfaultfd_unregister,
    userfaultfd_zeropage,
)
from userfault.model.lang import WouldBlock
from userfault.model.machine import attach, boot, new_mm
from userfault.model.madvise import MADV, sys_madvise
from userfault.model.mlock import sys_mlock
from userfault.model.mm_types import mm_struct, userfaultfd_ctx, vm
from userfault.model.mmap import do_mmap, sys_mmap, sys_munmap
from userfault.model.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, mremap_fixed, sys_mremap
from userfault.model.user import store
from userfault.model.userfaultfd import uffdio_copy

RW = int(vm.READ | vm.WRITE)
EVERYTHING = FEATURE_EVENT_FORK | FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP | FEATURE_SIGBUS
PAGES = 16


class Monitor:
    """Reads everything at once, and tries to fill page 0 before it does."""

    def __init__(self) -> None:
        self.read: list[uffd_msg] = []
        self.refused: list[tuple[int, int]] = []

    def __call__(self, ctx: userfaultfd_ctx, message: uffd_msg) -> None:
        self.refused.append(userfaultfd_zeropage(ctx, 0, 1, 0))
        self.read.append(message)
        if message.event == EVENT_PAGEFAULT:
            assert userfaultfd_zeropage(ctx, message.first, 1, 0) == (0, 1)


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    eras.use("v6.18")
    reader = Monitor()
    boot(cpus=1, split_vmas=True, monitor=reader)
    yield reader
    boot(cpus=1)


def registered(features: int, *ranges: tuple[int, int]) -> tuple[mm_struct, userfaultfd_ctx]:
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
    ctx = userfaultfd_ctx(mm=mm, features=features)
    for start, length in ranges:
        assert sys_mmap(mm, start, length, RW) == 0
        assert userfaultfd_register(ctx, start, length, 1)[0] == 0
    return mm, ctx


def test_an_unmapping_is_told_once_and_as_a_whole(monitor: Monitor) -> None:
    mm, ctx = registered(EVERYTHING, (2, 2), (6, 2))
    assert sys_munmap(mm, 1, 8) == 0
    assert monitor.read == [uffd_msg(EVENT_UNMAP, 1, 9)]
    assert monitor.refused == [(-EAGAIN, -EAGAIN)]
    assert ctx.mmap_changing == 0
    assert sys_mmap(mm, 1, 8, RW) == 0
    assert len(monitor.read) == 1, "nothing was registered there any more"


def test_what_is_mapped_over_it_is_told_as_well(monitor: Monitor) -> None:
    mm, _ = registered(EVERYTHING, (2, 4))
    assert sys_mmap(mm, 3, 2, RW) == 0
    assert monitor.read == [uffd_msg(EVENT_UNMAP, 3, 5)]


def test_a_move_is_told_between_what_it_unmaps(monitor: Monitor) -> None:
    mm, ctx = registered(EVERYTHING, (0, 2), (6, 2))
    assert mremap_fixed(mm, 0, 2, MREMAP_MAYMOVE | MREMAP_FIXED, 6) == 0
    assert monitor.read == [
        uffd_msg(EVENT_UNMAP, 6, 8),
        uffd_msg(EVENT_REMAP, 0, 6, 2),
        uffd_msg(EVENT_UNMAP, 0, 2),
    ]
    assert [vma.ctx for vma in mm.mmap] == [ctx]
    monitor.read.clear()
    assert mremap_fixed(mm, 6, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 10) == 0
    assert monitor.read == [uffd_msg(EVENT_REMAP, 6, 10, 2)]


def test_what_nobody_asked_for_is_not_told_and_leaves_its_monitor(monitor: Monitor) -> None:
    mm, _ = registered(FEATURE_SIGBUS, (0, 2))
    child = new_mm(PAGES)
    assert sys_fork(mm, child) == 0
    assert child.mmap[0].ctx is None
    assert mremap_fixed(mm, 0, 2, MREMAP_MAYMOVE | MREMAP_FIXED, 6) == 0
    assert sys_madvise(mm, 6, 2, MADV.DONTNEED) == 0
    assert sys_munmap(mm, 6, 2) == 0
    assert monitor.read == []


@pytest.mark.parametrize("advice", [MADV.DONTNEED, MADV.FREE])
def test_what_will_be_forgotten_is_told_before_it_is(monitor: Monitor, advice: MADV) -> None:
    mm, _ = registered(EVERYTHING, (0, 2), (4, 2))
    assert sys_madvise(mm, 1, 4, advice) == -ENOMEM
    assert monitor.read == [uffd_msg(EVENT_REMOVE, 1, 2), uffd_msg(EVENT_REMOVE, 4, 5)]


def test_a_forks_child_has_a_userfaultfd_of_its_own(monitor: Monitor) -> None:
    mm, _ = registered(EVERYTHING, (0, 2), (4, 2))
    child = new_mm(PAGES)
    assert sys_fork(mm, child) == 0
    (told,) = monitor.read
    assert (told.event, monitor.refused) == (EVENT_FORK, [(-EAGAIN, -EAGAIN)])
    assert told.child is not None and told.child.mm is child
    assert [vma.ctx for vma in child.mmap] == [told.child] * 2
    assert userfaultfd_zeropage(told.child, 4, 1, 0) == (0, 1)
    child.allocated = False
    assert userfaultfd_zeropage(told.child, 5, 1, 0) == (-ESRCH, UNWRITTEN)
    assert userfaultfd_register(told.child, 4, 1, 1) == (-ENOMEM, UNWRITTEN)
    assert userfaultfd_unregister(told.child, 4, 1) == -ENOMEM


def test_a_fault_without_sigbus_is_a_message_and_is_resolved(monitor: Monitor) -> None:
    mm, _ = registered(EVERYTHING & ~FEATURE_SIGBUS, (2, 2))
    assert store(mm, 3, 7) == 0
    assert monitor.read == [uffd_msg(EVENT_PAGEFAULT, 3, FAULT_WRITE)]
    assert store(mm, 3, 8) == 0
    assert len(monitor.read) == 1


# -- raced: a thread of its own reads -----------------------------------------------------------------------------------


@pytest.fixture
def raced() -> Iterator[mm_struct]:
    eras.use("v6.18")
    boot(cpus=2, raced_events=EVERYTHING)
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
    do_mmap(mm, 0, 2, RW | int(vm.USERFAULT), 0)
    yield mm
    boot(cpus=1)


@pytest.mark.parametrize(
    ("change", "event"),
    [
        (lambda mm: sys_munmap(mm, 0, 2), EVENT_UNMAP),
        (lambda mm: sys_mremap(mm, 4, 0, 2), EVENT_REMAP),
        (lambda mm: sys_madvise(mm, 0, 2, MADV.DONTNEED), EVENT_REMOVE),
        (lambda mm: sys_madvise(mm, 0, 2, MADV.FREE), EVENT_REMOVE),
        (lambda mm: sys_fork(mm, new_mm(PAGES)), EVENT_FORK),
    ],
)
def test_who_changes_the_address_space_waits_until_somebody_reads(
    raced: mm_struct, change: Callable[[mm_struct], int], event: int
) -> None:
    with pytest.raises(WouldBlock):
        change(raced)
    assert raced.mmap_changing == 1
    assert uffdio_copy(raced, 0, 1) == -EAGAIN
    assert read_event(raced) == event
    with pytest.raises(WouldBlock):
        read_event(raced)


@pytest.mark.parametrize(
    ("advice", "result"), [(MADV.DONTNEED, -EINVAL), (MADV.DONTNEED_LOCKED, 0), (MADV.FREE, -EINVAL)]
)
def test_memory_that_was_locked_while_its_removal_was_told_is_not_forgotten(
    raced: mm_struct, monkeypatch: pytest.MonkeyPatch, advice: MADV, result: int
) -> None:
    def somebody_locks(mm: mm_struct, _: int) -> None:
        mm.mmap[0].vm_flags |= int(vm.LOCKED)
        mm.mmap_changing -= 1

    monkeypatch.setattr(madvise, "wait_for_reader", somebody_locks)
    assert sys_madvise(raced, 0, 2, advice) == result


def test_a_fork_that_failed_is_no_event_any_more_when_its_child_ends(
    raced: mm_struct, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing: list[int] = []
    monkeypatch.setattr(fork, "copy_page_range", lambda *_: -ENOMEM)
    monkeypatch.setattr(fork, "exit_mmap", lambda _: changing.append(raced.mmap_changing))
    assert sys_fork(raced, new_mm(PAGES)) == -ENOMEM
    assert changing == [0]


def test_what_no_monitor_asked_for_waits_for_nobody(raced: mm_struct) -> None:
    do_mmap(raced, 6, 2, RW, 6)
    assert sys_madvise(raced, 6, 2, MADV.DONTNEED) == 0
    assert sys_munmap(raced, 6, 2) == 0
    assert raced.mmap_changing == 0


@pytest.mark.parametrize("era", ["v6.8", "v6.18"])
def test_what_is_unmapped_while_its_monitor_is_asked_is_looked_up_again(era: str) -> None:
    asked: list[int] = []

    def unmaps(ctx: userfaultfd_ctx, message: uffd_msg) -> None:
        if message.event == EVENT_PAGEFAULT:
            assert asked == [], "asked again for what is no longer there"
            asked.append(message.first)
            assert sys_munmap(ctx.mm, 0, 2) == 0

    for populate, result in ((lambda mm: sys_madvise(mm, 0, 2, MADV.POPULATE_WRITE), -ENOMEM), (locks, 0)):
        eras.use(era)
        boot(cpus=1, split_vmas=True, monitor=unmaps)
        mm, _ = registered(0, (0, 2))
        asked.clear()
        assert populate(mm) == result
        assert asked == [0] and mm.mmap == []
    boot(cpus=1)


def locks(mm: mm_struct) -> int:
    return sys_mlock(mm, 0, 2, False)
