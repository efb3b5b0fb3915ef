"""Faults and events of a userfaultfd. Everything here that could wait for ever runs in a child with a deadline."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import pytest

from userfault.kernel import memory
from userfault.kernel.child import Child, ChildDied, become, call
from userfault.kernel.machine import setting
from userfault.kernel.memory import Mapping
from userfault.kernel.pagemap import Pagemap
from userfault.kernel.uapi import (
    PAGE_SIZE_BYTES,
    Advice,
    CopyMode,
    Feature,
    MoveMode,
    PagefaultFlag,
    PageIs,
    RegisterMode,
    RemapFlag,
    ScanFlag,
    Syscall,
    WriteprotectMode,
)
from userfault.kernel.userfaultfd import (
    Forked,
    Message,
    Outcome,
    Pagefault,
    Progress,
    Remapped,
    Removed,
    Unmapped,
    Userfault,
    UserfaultError,
    supported_features,
)

PAGE = PAGE_SIZE_BYTES
NOBODY = 65534
T = TypeVar("T")


@pytest.fixture(autouse=True)
def needs_userfaultfd(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not supported_features() & Feature.MOVE:
        cannot_run("no userfaultfd with UFFDIO_MOVE", "run on Linux 6.8 or newer, as root")


@pytest.fixture
def area() -> Iterator[Mapping]:
    with Mapping(8 * PAGE) as mapping:
        yield mapping


@pytest.fixture
def full() -> Iterator[Mapping]:
    with Mapping(8 * PAGE) as mapping:
        mapping.tag_pages()
        yield mapping


class Toucher(threading.Thread):
    """Touches memory in a thread, without the GIL; what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.answer: object = None
        self.start()

    def run(self) -> None:
        self.answer = self.work()

    def done(self) -> object:
        self.join(60)
        assert not self.is_alive()
        return self.answer


def next_of(uffd: Userfault) -> Message:
    assert uffd.wait(60)
    (message,) = uffd.read()
    return message


def test_a_missing_page_is_reported_and_filled(area: Mapping, full: Mapping) -> None:
    def work() -> tuple[Message, bool, object, object]:
        with Userfault(Feature.THREAD_ID | Feature.EXACT_ADDRESS) as uffd:
            assert uffd.register(area.address, area.length_bytes).ok
            read = Toucher(lambda: memory.load(area.at(1) + 7, 1))
            first = next_of(uffd)
            mine = isinstance(first, Pagefault) and first.thread == read.native_id
            assert uffd.copy(area.at(1), full.at(1), PAGE).ok
            write = Toucher(lambda: memory.store(area.at(2) + 8, b"x"))
            second = next_of(uffd)
            assert uffd.zeropage(area.at(2), PAGE).ok
            read.done(), write.done()
            return first, mine, second, memory.load(area.at(2), 9)

    first, mine, second, after = call(work)
    assert isinstance(first, Pagefault) and isinstance(second, Pagefault)
    assert (first.address, first.flags, mine) == (area.at(1) + 7, PagefaultFlag(0), True)
    assert (second.address, second.flags) == (area.at(2) + 8, PagefaultFlag.WRITE)
    assert after == bytes(8) + b"x"


def test_without_exact_address_it_is_the_pages(area: Mapping) -> None:
    def work() -> Message:
        with Userfault() as uffd:
            uffd.register(area.address, area.length_bytes)
            Toucher(lambda: memory.load(area.at(1) + 7, 1))
            return next_of(uffd)

    assert call(work) == Pagefault(area.at(1), PagefaultFlag(0), 0)


def test_dontwake_leaves_the_thread_waiting_until_wake(area: Mapping, full: Mapping) -> None:
    def work() -> list[bool]:
        with Userfault() as uffd:
            uffd.register(area.address, area.length_bytes)
            touch = Toucher(lambda: memory.load(area.address, 8))
            next_of(uffd)
            assert uffd.move(area.address, full.address, PAGE, int(MoveMode.DONTWAKE)).ok
            touch.join(0.05)
            waits = touch.is_alive()
            assert uffd.wake(area.address, PAGE).ok
            return [waits, touch.done() == (0x1000).to_bytes(8, "little")]

    def filled() -> list[bool]:
        # Written anew, the pages are the child's own, and can be moved.
        full.tag_pages()
        return work()

    assert call(filled) == [True, True]


def test_wake_delivers_the_fault_again(area: Mapping) -> None:
    def work() -> list[Message]:
        with Userfault() as uffd:
            uffd.register(area.address, area.length_bytes)
            touch = Toucher(lambda: memory.load(area.address, 1))
            first = next_of(uffd)
            nothing = uffd.read()
            uffd.wake(area.address, PAGE)
            second = next_of(uffd)
            uffd.zeropage(area.address, PAGE)
            touch.done()
            return [first, *nothing, second]

    assert call(work) == [Pagefault(area.address, PagefaultFlag(0), 0)] * 2


def test_write_protection(area: Mapping) -> None:
    def work() -> tuple[Message, object]:
        with Userfault(Feature.PAGEFAULT_FLAG_WP) as uffd:
            assert uffd.register(area.address, area.length_bytes, RegisterMode.WP).ok
            area.tag_pages()
            assert uffd.writeprotect(area.address, PAGE).ok
            with Pagemap() as pagemap:
                assert pagemap.entry(area.address).uffd_wp and not pagemap.entry(area.at(1)).uffd_wp
            touch = Toucher(lambda: memory.store(area.address, b"w"))
            fault = next_of(uffd)
            assert uffd.writeprotect(area.address, PAGE, 0).ok
            touch.done()
            return fault, memory.load(area.address, 1)

    assert call(work) == (Pagefault(area.address, PagefaultFlag.WRITE | PagefaultFlag.WP, 0), b"w")


@pytest.mark.parametrize(
    ("mode", "where", "wp", "answer"),
    [
        (RegisterMode.WP, 0, WriteprotectMode.WP, 0),
        (RegisterMode.MISSING, 0, WriteprotectMode.WP, errno.ENOENT),
        (RegisterMode.WP, 0, 4, errno.EINVAL),
        (RegisterMode.WP, 0, WriteprotectMode.WP | WriteprotectMode.DONTWAKE, errno.EINVAL),
        (RegisterMode.WP, 1, WriteprotectMode.WP, errno.EINVAL),
    ],
)
def test_write_protection_refused(area: Mapping, mode: RegisterMode, where: int, wp: int, answer: int) -> None:
    with Userfault(Feature.PAGEFAULT_FLAG_WP) as uffd:
        assert uffd.register(area.address, area.length_bytes, mode).ok
        assert uffd.writeprotect(area.address + where, PAGE, int(wp)).errno == answer


def test_a_hole_is_protected_by_a_marker_only_where_that_was_asked_for(area: Mapping) -> None:
    for features, marked in ((Feature(0), False), (Feature.WP_UNPOPULATED, True)):
        with Userfault(Feature.PAGEFAULT_FLAG_WP | features) as uffd, Pagemap() as pagemap:
            assert uffd.register(area.address, area.length_bytes, RegisterMode.WP).ok
            assert uffd.writeprotect(area.address, PAGE).ok
            entry = pagemap.entry(area.address)
            assert (entry.uffd_wp, entry.swapped) == (marked, marked)
            uffd.unregister(area.address, area.length_bytes)


def test_copy_can_protect_at_once(area: Mapping, full: Mapping) -> None:
    with Userfault(Feature.PAGEFAULT_FLAG_WP) as uffd, Pagemap() as pagemap:
        assert uffd.register(area.address, area.length_bytes, RegisterMode.MISSING).ok
        assert uffd.copy(area.address, full.address, PAGE, int(CopyMode.WP)).errno == errno.EINVAL
        assert uffd.register(area.address, area.length_bytes, RegisterMode.MISSING | RegisterMode.WP).ok
        assert uffd.copy(area.address, full.address, PAGE, int(CopyMode.WP)).ok
        assert pagemap.entry(area.address).uffd_wp


def test_asynchronous_protection_is_dirty_tracking(area: Mapping) -> None:
    with Userfault(Feature.WP_ASYNC | Feature.WP_UNPOPULATED | Feature.PAGEFAULT_FLAG_WP) as uffd, Pagemap() as own:
        assert uffd.register(area.address, area.length_bytes, RegisterMode.WP).ok
        protect = ScanFlag.WP_MATCHING | ScanFlag.CHECK_WPASYNC
        own.scan(area.address, area.end, all_of=PageIs.WRITTEN, flags=protect)
        assert own.scan(area.address, area.end, all_of=PageIs.WRITTEN) == []
        memory.store(area.at(3), b"dirty")
        (dirty,) = own.scan(area.address, area.end, all_of=PageIs.WRITTEN, flags=protect)
        assert (dirty.start, dirty.end) == (area.at(3), area.at(4))
        assert own.scan(area.address, area.end, all_of=PageIs.WRITTEN) == []


def test_poison_kills_and_copy_heals(area: Mapping, full: Mapping) -> None:
    with Userfault(Feature.POISON) as uffd:
        assert uffd.register(area.address, area.length_bytes).ok
        assert uffd.poison(area.address, 2 * PAGE) == Progress(0, 2 * PAGE)
        assert uffd.poison(area.address, PAGE).outcome is Outcome.LOST_RACE
        with pytest.raises(ChildDied) as died:
            call(lambda: memory.load(area.address, 1))
        assert died.value.signal == signal.SIGBUS
        assert memory.read_memory(area.address, 1)[0].errno == errno.EFAULT
        assert uffd.move(area.address, full.address, PAGE).errno == errno.EEXIST
        # The copy replaces the marker: that is how a page is healed.
        assert uffd.copy(area.address, full.address, PAGE).ok
    assert memory.load(area.address, 2) == b"\0\x10"
    assert memory.read_memory(area.at(1), 1)[0].errno == errno.EFAULT


def test_sigbus_instead_of_messages(area: Mapping) -> None:
    with Userfault(Feature.SIGBUS) as uffd:
        assert uffd.register(area.address, area.length_bytes).ok
        assert memory.read_memory(area.address, 1)[0].errno == errno.EFAULT

        def touch() -> None:
            # A child without EVENT_FORK is not registered: it does this to memory of its own.
            with Userfault(Feature.SIGBUS) as own, Mapping(PAGE) as mine:
                own.register(mine.address, PAGE)
                memory.load(mine.address, 1)

        with pytest.raises(ChildDied) as died:
            call(touch)
        assert died.value.signal == signal.SIGBUS


def test_minor_faults_of_shared_memory() -> None:
    fd = os.memfd_create("minor")
    os.ftruncate(fd, 4 * PAGE)
    with Mapping(4 * PAGE, flags=mmap.MAP_SHARED, fd=fd) as area:

        def work() -> tuple[Message, list[Progress]]:
            with Userfault(Feature.MINOR_SHMEM) as uffd:
                assert uffd.register(area.address, area.length_bytes, RegisterMode.MINOR).ok
                nothing = uffd.continue_(area.address, PAGE)
                os.pwrite(fd, b"cache", 0)
                touch = Toucher(lambda: memory.load(area.address, 5))
                fault = next_of(uffd)
                answers = [nothing, uffd.continue_all(area.address, PAGE), uffd.continue_(area.address, PAGE)]
                assert touch.done() == b"cache"
                return fault, answers

        fault, answers = call(work)
    os.close(fd)
    assert fault == Pagefault(area.address, PagefaultFlag.MINOR, 0)
    assert answers == [
        Progress(errno.EFAULT, -errno.EFAULT),
        Progress(0, PAGE),
        Progress(errno.EEXIST, -errno.EEXIST),
    ]


def test_events_of_the_owner(area: Mapping, full: Mapping) -> None:
    """Each waits for its reader, and while it is unread nothing is installed."""

    def work() -> list[tuple[Message, list[int]]]:
        seen: list[tuple[Message, list[int]]] = []
        events = Feature.EVENT_REMAP | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP
        # The descriptor is closed first: an unmapping would wait for its reader.
        with Mapping(PAGE, prot=memory.PROT_NONE) as target, Userfault(events) as uffd:
            assert uffd.register(area.address, area.length_bytes, RegisterMode.MISSING | RegisterMode.WP).ok
            spare = memory.mmap(0, 2 * PAGE).value
            assert uffd.register(spare, PAGE).ok
            fixed = RemapFlag.MAYMOVE | RemapFlag.FIXED
            for act in (
                lambda: memory.madvise(area.at(1), 2 * PAGE, Advice.DONTNEED),
                lambda: memory.mremap(spare, PAGE, PAGE, fixed, target.address),
                lambda: memory.munmap(area.at(6), PAGE),
            ):
                acting = Toucher(act)
                assert uffd.wait(60)
                blocked = [
                    uffd.move(area.address, full.address, PAGE).errno,
                    uffd.copy(area.address, full.address, PAGE).errno,
                    uffd.zeropage(area.address, PAGE).errno,
                    uffd.poison(area.address, PAGE).errno,
                    uffd.writeprotect(area.address, PAGE).errno,
                    uffd.wake(area.address, PAGE).errno,
                ]
                seen.append((next_of(uffd), blocked))
                # A mapping that mremap empties is unmapped, which is an event of its own.
                while acting.is_alive():
                    if uffd.wait(0.01):
                        uffd.read()
            assert uffd.copy(target.address, full.address, PAGE).ok  # the registration went along
            return seen

    blocked = [errno.EAGAIN] * 5 + [0]
    (removed, one), (remapped, two), (unmapped, three) = call(work)
    assert [one, two, three] == [blocked] * 3
    assert removed == Removed(area.at(1), area.at(3))
    assert unmapped == Unmapped(area.at(6), area.at(7))
    assert isinstance(remapped, Remapped) and remapped.length == PAGE


def test_loops_wait_for_the_reader_of_an_event(area: Mapping, full: Mapping) -> None:
    def work() -> list[bool]:
        full.tag_pages()
        with Userfault(Feature.EVENT_REMOVE) as uffd:
            assert uffd.register(area.address, area.length_bytes, RegisterMode.MISSING | RegisterMode.WP).ok
            acting = Toucher(lambda: area.madvise(Advice.DONTNEED))
            assert uffd.wait(60)
            given_up = [
                uffd.writeprotect_all(area.address, PAGE, deadline_s=0.01).errno,
                uffd.copy_all(area.address, full.address, PAGE, deadline_s=0.01).errno,
            ]
            reader = threading.Timer(0.05, uffd.read)
            reader.start()
            done = [
                uffd.move_all(area.address, full.address, PAGE, deadline_s=60).ok,
                uffd.writeprotect_all(area.address, PAGE, deadline_s=60).ok,
            ]
            reader.join()
            acting.done()
            return [given_up == [errno.EAGAIN] * 2, *done]

    assert call(work) == [True] * 3


def test_a_fork_brings_the_childs_userfaultfd(area: Mapping, full: Mapping) -> None:
    def work() -> tuple[bytes, list[str]]:
        full.tag_pages()
        with Userfault(Feature.EVENT_FORK) as uffd:

            def handle() -> Iterator[list[str]]:
                message = next_of(uffd)
                assert isinstance(message, Forked)
                fault = next_of(message.child)
                assert isinstance(fault, Pagefault)
                # Moves are within one process; copies are not.
                moved = message.child.move(fault.address, full.address, PAGE)
                copied = message.child.copy(fault.address, full.address, PAGE)
                yield [str(moved), str(copied)]
                yield [str(message.child.copy(area.at(1), full.address, PAGE))]

            # Python's fork keeps the GIL while it waits for the handler, which must be another process.
            with Child(handle) as handler:
                uffd.register(area.address, area.length_bytes)
                handler.go()
                read, write = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.write(write, memory.load(area.address, 8))
                    os._exit(0)
                os.waitpid(pid, 0)
                answers = handler.answer()
                return os.read(read, 8), answers + handler.step()

    assert call(work) == ((0x1000).to_bytes(8, "little"), ["EINVAL/-", f"0/{PAGE}", "ESRCH/-"])


def test_registration(area: Mapping) -> None:
    with Userfault() as uffd, Userfault() as other, Mapping(PAGE, prot=memory.PROT_NONE) as none:
        cases = [
            (area.address, PAGE, RegisterMode(0), errno.EINVAL),
            (area.address, PAGE, RegisterMode(8), errno.EINVAL),
            (area.address + 1, PAGE, RegisterMode.MISSING, errno.EINVAL),
            (area.address, 0, RegisterMode.MISSING, errno.EINVAL),
            (area.address, PAGE, RegisterMode.MINOR, errno.EINVAL),
            (0, PAGE, RegisterMode.MISSING, errno.EINVAL),
            (none.address, PAGE, RegisterMode.MISSING, 0),
            (area.address, PAGE, RegisterMode.MISSING, 0),
            (area.address, PAGE, RegisterMode.MISSING, 0),
        ]
        assert [uffd.register(*case[:3]).errno for case in cases] == [case[3] for case in cases]
        assert other.register(area.address, PAGE).errno == errno.EBUSY
        assert other.unregister(area.address, PAGE).errno == errno.EINVAL
        assert uffd.unregister(area.at(4), PAGE).ok
        assert uffd.unregister(area.address, PAGE).ok


@pytest.mark.parametrize(
    ("what", "errnos"),
    [
        ("copy", [0, errno.EEXIST, errno.EINVAL, errno.EINVAL, errno.EFAULT]),
        ("zeropage", [0, errno.EEXIST, errno.EINVAL, errno.EINVAL, errno.ENOENT]),
        ("poison", [0, errno.EEXIST, errno.EINVAL, errno.EINVAL, errno.ENOENT]),
    ],
)
def test_filling(area: Mapping, full: Mapping, what: str, errnos: list[int]) -> None:
    """In order: done, again, length 0, unaligned, and a source that can't be read or a range that is not registered."""
    with Userfault() as uffd:
        uffd.register(area.address, 4 * PAGE)
        if what == "copy":
            answers = [
                uffd.copy(area.address, full.address + 1, PAGE),  # the source need not be aligned
                uffd.copy(area.address, full.address, PAGE),
                uffd.copy(area.at(1), full.address, 0),
                uffd.copy(area.at(1) + 1, full.address, PAGE),
                uffd.copy(area.at(1), 0, PAGE),
            ]
        else:
            fill = getattr(uffd, what)
            answers = [
                fill(area.address, PAGE),
                fill(area.address, PAGE),
                fill(area.at(1), 0),
                fill(area.at(1) + 1, PAGE),
                fill(area.at(5), PAGE),
            ]
        assert [each.errno for each in answers] == errnos
        assert [each.field for each in answers] == [PAGE, -errno.EEXIST, None, None, -errnos[-1]]
        # Half-way: two pages are free before the one that is not.
        assert uffd.zeropage(area.at(3), PAGE).ok
        source = (full.address,) if what == "copy" else ()
        fill_all = getattr(uffd, f"{what}_all")
        assert fill_all(area.at(1), *source, 3 * PAGE) == Progress(errno.EEXIST, 2 * PAGE)


def as_nobody(work: Callable[[], T], cannot_run: Callable[[str, str], NoReturn]) -> T:
    if os.geteuid():
        cannot_run("this test becomes an ordinary user", "run it as root")

    def unprivileged() -> T:
        become(NOBODY)
        return work()

    return call(unprivileged)


def test_an_ordinary_user_gets_user_mode_only(cannot_run: Callable[[str, str], NoReturn], full: Mapping) -> None:
    if setting("/proc/sys/vm/unprivileged_userfaultfd") == "1":
        cannot_run("vm.unprivileged_userfaultfd is 1 here", "sysctl vm.unprivileged_userfaultfd=0")

    def work() -> tuple[bool | None, bool, int, str, str]:
        with Userfault() as uffd, Mapping(PAGE) as mine:
            only, moves = uffd.user_mode_only, bool(uffd.supported & Feature.MOVE)
            uffd.register(mine.address, PAGE)
            by_kernel = memory.read_memory(mine.address, 1)[0].errno
        refusals = []
        for kind in (False, True):
            try:
                Userfault(user_mode_only=False, device=kind)
            except UserfaultError as error:
                refusals.append(str(error))
        return only, moves, by_kernel, *refusals  # type: ignore[return-value]

    only, moves, by_kernel, plain, device = as_nobody(work, cannot_run)
    assert (only, moves, by_kernel) == (True, True, errno.EFAULT)
    assert "EPERM" in plain and "CAP_SYS_PTRACE" in plain
    assert "EACCES" in device and "/dev/userfaultfd" in device


def test_an_ordinary_user_gets_no_fork_events(cannot_run: Callable[[str, str], NoReturn]) -> None:
    with pytest.raises(UserfaultError, match="EVENT_FORK needs CAP_SYS_PTRACE"):
        as_nobody(lambda: Userfault(Feature.EVENT_FORK), cannot_run)


def test_the_device_does_what_the_system_call_does(cannot_run: Callable[[str, str], NoReturn], area: Mapping) -> None:
    if not os.path.exists("/dev/userfaultfd"):
        cannot_run("no /dev/userfaultfd", "run on Linux 6.1 or newer")
    with Userfault(device=True) as uffd:
        assert uffd.register(area.address, PAGE).ok and uffd.zeropage(area.address, PAGE).ok


def test_a_hidden_system_call_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from userfault.kernel import userfaultfd as module
    from userfault.kernel.syscalls import Result

    monkeypatch.setattr(module, "userfaultfd", lambda flags: Result(-1, errno.ENOSYS))
    with pytest.raises(UserfaultError, match="seccomp"):
        Userfault(device=False)
    assert Syscall.USERFAULTFD > 0
