"""`Userfault` against the running kernel: what each ioctl answers, as values."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from userfault.kernel.uapi import Feature, Ioctl, MoveMode, RegisterMode
from userfault.kernel.userfaultfd import Outcome, Progress, Userfault, UserfaultError, supported_features

PAGE = mmap.PAGESIZE


class Memory:
    """Private anonymous pages."""

    def __init__(self, pages: int) -> None:
        self.map = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def at(self, page: int) -> int:
        return self.address + page * PAGE


@pytest.fixture
def uffd(cannot_run: Callable[[str, str], NoReturn]) -> Iterator[Userfault]:
    try:
        opened = Userfault(Feature.SIGBUS)
    except OSError as error:
        cannot_run("no userfaultfd", str(error))
    if not opened.supported & Feature.MOVE:
        opened.close()
        cannot_run("no UFFDIO_MOVE", "run on Linux 6.8 or newer")
    with opened:
        yield opened


@pytest.fixture
def two(uffd: Userfault) -> tuple[Memory, Memory]:
    """A source of four written pages, and a registered destination of four missing ones."""
    src, dst = Memory(4), Memory(4)
    for page in range(4):
        src.map[page * PAGE] = page + 1
    answer = uffd.register(dst.address, 4 * PAGE)
    assert answer.ok and answer.value & Ioctl.COPY.bit
    return src, dst


def test_a_move_takes_the_pages(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    moved = uffd.move(dst.address, src.address, 4 * PAGE)
    assert moved == Progress(0, 4 * PAGE, True) and moved.ok and moved.outcome is Outcome.DONE
    assert [dst.map[page * PAGE] for page in range(4)] == [1, 2, 3, 4]
    assert [src.map[page * PAGE] for page in range(4)] == [0, 0, 0, 0]


def test_a_part_of_a_move_is_reported(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    src.map.madvise(mmap.MADV_DONTNEED, 2 * PAGE, PAGE)
    moved = uffd.move(dst.address, src.address, 4 * PAGE)
    assert (moved.errno, moved.bytes, moved.outcome) == (errno.EAGAIN, 2 * PAGE, Outcome.RETRY)
    again = uffd.move(dst.at(2), src.at(2), 2 * PAGE)
    assert (again.errno, again.field, again.outcome) == (errno.ENOENT, -errno.ENOENT, Outcome.LOST_RACE)
    rest = uffd.move(dst.at(2), src.at(2), 2 * PAGE, int(MoveMode.ALLOW_SRC_HOLES))
    assert rest.ok and rest.bytes == 2 * PAGE


def test_move_all_goes_on_after_a_part_and_stops_at_the_hole(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    src.map.madvise(mmap.MADV_DONTNEED, 2 * PAGE, PAGE)
    assert uffd.move_all(dst.address, src.address, 4 * PAGE) == Progress(errno.ENOENT, 2 * PAGE, True)


def test_arguments_refused_at_the_door_leave_the_field_alone(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    assert uffd.move(dst.address + 1, src.address, PAGE) == Progress(errno.EINVAL, None, True)
    assert uffd.move(dst.address, src.address, 0).outcome is Outcome.REFUSED
    assert uffd.copy(dst.address, src.address, PAGE, 1 << 40) == Progress(errno.EINVAL, None)


def test_the_second_resolver_loses(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    assert uffd.copy(dst.address, src.address, PAGE).ok
    for lost in (
        uffd.copy(dst.address, src.address, PAGE),
        uffd.zeropage(dst.address, PAGE),
        uffd.poison(dst.address, PAGE),
        uffd.move(dst.address, src.address, PAGE),
    ):
        assert (lost.errno, lost.field, lost.outcome) == (errno.EEXIST, -errno.EEXIST, Outcome.LOST_RACE)


def test_what_is_not_registered_is_gone(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    assert uffd.unregister(dst.address, 4 * PAGE).ok
    assert uffd.copy(dst.address, src.address, PAGE).outcome is Outcome.GONE
    assert uffd.move(dst.address, src.address, PAGE).outcome is Outcome.REFUSED


def test_a_page_shared_by_fork_is_busy(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    src, dst = two
    go, wait = os.pipe()
    if not (child := os.fork()):
        os.close(wait)
        os.read(go, 1)
        os._exit(0)
    try:
        assert uffd.move(dst.address, src.address, PAGE).outcome is Outcome.BUSY
    finally:
        os.close(wait)
        os.close(go)
        os.waitpid(child, 0)


def test_writeprotect_needs_its_registration(uffd: Userfault, two: tuple[Memory, Memory]) -> None:
    _, dst = two
    assert uffd.writeprotect(dst.address, PAGE).errno == errno.ENOENT
    assert uffd.register(dst.address, 4 * PAGE, RegisterMode.MISSING | RegisterMode.WP).ok
    assert uffd.zeropage(dst.address, PAGE).ok
    assert uffd.writeprotect(dst.address, PAGE).ok


def test_reading_an_empty_descriptor_answers_nothing(uffd: Userfault) -> None:
    assert uffd.read() == [] and not uffd.wait(0)


def test_a_blocking_descriptor_cannot_be_polled(uffd: Userfault) -> None:
    with Userfault(nonblocking=False) as blocking, pytest.raises(UserfaultError, match="nonblocking=True"):
        blocking.wait(0)


def test_a_closed_descriptor_says_so(uffd: Userfault) -> None:
    uffd.close()
    uffd.close()
    with pytest.raises(UserfaultError, match="is closed"):
        uffd.register(0, PAGE)


def test_a_feature_that_the_kernel_lacks_is_named(uffd: Userfault) -> None:
    assert supported_features() & Feature.SIGBUS
    with pytest.raises(UserfaultError, match="has no userfaultfd feature"):
        Userfault(Feature(1 << 60))
