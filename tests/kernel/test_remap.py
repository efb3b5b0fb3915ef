"""remap_anon_pages and USERFAULT: the seed's contract on the running kernel, and where a stock kernel differs from it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.kernel import memory
from userfault.kernel.child import Child, ChildDied, call
from userfault.kernel.errors import KernelError
from userfault.kernel.machine import THP, setting
from userfault.kernel.maps import maps, vma_at
from userfault.kernel.memory import Mapping
from userfault.kernel.pagemap import Pagemap
from userfault.kernel.remap import DIFFERENCES, MissingPage, SeedAdvice, UserfaultMemory, madvise, remap_anon_pages
from userfault.kernel.snapshot import look
from userfault.kernel.syscalls import Result, libc
from userfault.kernel.uapi import HUGE_SIZE_BYTES, PAGE_SIZE_BYTES, Advice, Feature
from userfault.kernel.userfaultfd import Userfault, supported_features

PAGE = PAGE_SIZE_BYTES
OWN = "PX:c1:ANON,SWAPBACKED,ANON_EXCLUSIVE"


@pytest.fixture(scope="module", autouse=True)
def needs_move(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not supported_features() & Feature.MOVE:
        cannot_run("no UFFDIO_MOVE", "run on Linux 6.8 or newer")


@pytest.fixture
def src() -> Iterator[Mapping]:
    with Mapping(8 * PAGE) as mapping:
        mapping.tag_pages()
        yield mapping


@pytest.fixture
def dst() -> Iterator[Mapping]:
    with Mapping(8 * PAGE) as mapping:
        yield mapping


def failed(number: int) -> Result:
    return Result(-1, number)


def pieces(mapping: Mapping) -> list[tuple[int, int]]:
    """The mappings within: what else this process maps meanwhile, even next to it, does not count."""
    start, end = mapping.address, mapping.at(8)
    return [(max(each.start, start), min(each.end, end)) for each in maps() if each.start < end and start < each.end]


def test_pages_move_and_mappings_stay(src: Mapping, dst: Mapping) -> None:
    before = pieces(src), pieces(dst)
    assert [len(each) for each in before] == [1, 1]
    assert remap_anon_pages(dst.at(2), src.address, 4 * PAGE) == Result(4 * PAGE, 0)
    assert dst.words() == [0, 0, 0x1000, 0x1001, 0x1002, 0x1003, 0, 0]
    assert src.words()[:4] == [0] * 4
    assert (pieces(src), pieces(dst)) == before


def test_a_hole_stops_it_unless_holes_are_allowed(src: Mapping, dst: Mapping) -> None:
    src.madvise(Advice.DONTNEED, 2, 1)
    assert remap_anon_pages(dst.address, src.at(2), 2 * PAGE) == failed(errno.ENOENT)
    # After some progress the result is short; the call for the rest says why.
    assert remap_anon_pages(dst.address, src.address, 4 * PAGE) == Result(2 * PAGE, 0)
    assert remap_anon_pages(dst.at(2), src.at(2), 2 * PAGE) == failed(errno.ENOENT)
    assert remap_anon_pages(dst.at(2), src.at(2), 2 * PAGE, allow_holes=True) == Result(2 * PAGE, 0)
    with Pagemap() as pagemap:
        assert [entry.present for entry in pagemap.entries(dst.address, 4 * PAGE)] == [True, True, False, True]


def test_a_page_at_the_destination_stops_it(src: Mapping, dst: Mapping) -> None:
    dst.write(PAGE, b"there")
    assert remap_anon_pages(dst.at(1), src.at(1), PAGE) == failed(errno.EEXIST)
    assert remap_anon_pages(dst.address, src.address, 2 * PAGE) == Result(PAGE, 0)
    assert dst.read(PAGE, 5) == b"there" and src.words()[1] == 0x1001


def test_two_movers_one_wins(src: Mapping, dst: Mapping) -> None:
    answers: list[Result] = []
    threads = [
        threading.Thread(target=lambda at=at: answers.append(remap_anon_pages(dst.address, src.at(at), PAGE)))
        for at in (0, 1)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(answers) == [failed(errno.EEXIST), Result(PAGE, 0)]


def test_inside_one_mapping_also_with_overlap(src: Mapping) -> None:
    assert remap_anon_pages(src.address, src.address, PAGE) == failed(errno.EEXIST)
    src.madvise(Advice.DONTNEED, 0, 1)
    assert remap_anon_pages(src.address, src.address, PAGE) == failed(errno.ENOENT)
    # Every page slides into the hole that the one before it left.
    assert remap_anon_pages(src.address, src.at(1), 7 * PAGE) == Result(7 * PAGE, 0)
    assert src.words() == [*range(0x1001, 0x1008), 0]


def test_wrong_arguments(src: Mapping, dst: Mapping) -> None:
    invalid = failed(errno.EINVAL)
    assert remap_anon_pages(dst.address + 1, src.address, PAGE) == invalid
    assert remap_anon_pages(dst.address, src.address + 1, PAGE) == invalid
    assert remap_anon_pages(dst.address, src.address, PAGE + 1) == invalid
    assert remap_anon_pages(dst.address, src.address, 0) == invalid
    assert remap_anon_pages(dst.address, src.address, -PAGE) == invalid
    assert remap_anon_pages(dst.address, (1 << 64) - PAGE, 2 * PAGE) == invalid
    assert remap_anon_pages(dst.address, src.at(7), 2 * PAGE) == invalid  # out of its mapping
    assert remap_anon_pages(dst.at(7), src.address, 2 * PAGE) == invalid
    memory.munmap(src.at(4), PAGE)
    assert remap_anon_pages(dst.address, src.at(4), PAGE) == invalid  # not mapped
    memory.munmap(dst.at(4), PAGE)
    assert remap_anon_pages(dst.at(4), src.address, PAGE) == invalid


def test_mappings_that_do_not_match(src: Mapping, dst: Mapping) -> None:
    invalid = failed(errno.EINVAL)
    with Mapping(PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as shared:
        shared.tag_pages()
        assert remap_anon_pages(dst.address, shared.address, PAGE) == invalid
        assert remap_anon_pages(shared.address, src.address, PAGE) == invalid
    fd = os.open("/proc/self/exe", os.O_RDONLY)
    with Mapping(PAGE, fd=fd, flags=mmap.MAP_PRIVATE) as file:
        file.write(0, b"a page of its own")
        assert remap_anon_pages(dst.address, file.address, PAGE) == invalid
    os.close(fd)
    memory.mprotect(src.at(1), PAGE, memory.PROT_READ)
    assert remap_anon_pages(dst.address, src.at(1), PAGE) == invalid
    memory.mlock(src.at(2), PAGE)
    assert remap_anon_pages(dst.address, src.at(2), PAGE) == invalid
    memory.munlock(src.at(2), PAGE)
    assert remap_anon_pages(dst.address, src.at(2), PAGE).ok


def test_dontfork_keeps_a_fork_from_stopping_it(src: Mapping, dst: Mapping) -> None:
    src.madvise(Advice.DONTFORK, 0, 4)
    with Child(lambda: iter([0, 0])) as child:
        child.step()
        assert remap_anon_pages(dst.address, src.at(4), PAGE) == failed(errno.EBUSY)
        assert remap_anon_pages(dst.address, src.address, PAGE).ok


def test_a_huge_page_moves_whole_or_is_split(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not THP.is_dir() or setting(THP / "enabled") == "never":
        cannot_run("no transparent huge pages", f"echo madvise > {THP}/enabled")
    with Mapping.huge() as src, Mapping.huge(2) as dst:
        memory.store(src.address, b"huge")
        if "THP" not in look(src.address, PAGE).states[0]:
            cannot_run("no huge page was to be had", "compact memory: echo 1 > /proc/sys/vm/compact_memory")
        assert remap_anon_pages(dst.address, src.address, HUGE_SIZE_BYTES) == Result(HUGE_SIZE_BYTES, 0)
        vma = vma_at(dst.address)
        assert vma and vma.sizes_bytes["AnonHugePages"] == HUGE_SIZE_BYTES
        assert remap_anon_pages(src.address + PAGE, dst.address, PAGE) == Result(PAGE, 0)
        vma = vma_at(dst.address)
        assert vma and vma.sizes_bytes["AnonHugePages"] == 0
        assert src.read(PAGE, 4) == b"huge"


# ---- where a stock kernel differs: each key of DIFFERENCES has its test


def differs(key: str) -> None:
    assert key in DIFFERENCES


def test_differs_the_zero_page(src: Mapping, dst: Mapping) -> None:
    differs("the zero page")
    src.madvise(Advice.DONTNEED)
    src.read(0, 1)
    assert remap_anon_pages(dst.address, src.address, PAGE) in (Result(PAGE, 0), failed(errno.EBUSY))


def test_differs_a_page_that_was_shared(src: Mapping, dst: Mapping) -> None:
    differs("a page that was shared")
    call(lambda: None)
    assert remap_anon_pages(dst.address, src.address, PAGE) == failed(errno.EBUSY)
    src.write(0, b"mine")
    assert remap_anon_pages(dst.address, src.address, PAGE).ok


def test_differs_read_only_mappings(src: Mapping, dst: Mapping) -> None:
    differs("read-only mappings")
    for each in (src, dst):
        memory.mprotect(each.address, each.length_bytes, memory.PROT_READ)
    assert remap_anon_pages(dst.address, src.address, PAGE) == failed(errno.EINVAL)


def test_differs_dst_present_and_src_missing(src: Mapping, dst: Mapping) -> None:
    differs("dst present and src missing")
    src.madvise(Advice.DONTNEED)
    dst.tag_pages()
    assert remap_anon_pages(dst.address, src.address, PAGE) == failed(errno.EEXIST)


def test_differs_dst_of_another_userfaultfd(src: Mapping, dst: Mapping) -> None:
    differs("dst of another userfaultfd")
    with Userfault(Feature.SIGBUS) as uffd:
        uffd.register(dst.address, dst.length_bytes)
        with pytest.raises(KernelError, match="pass it as `uffd`"):
            remap_anon_pages(dst.address, src.address, PAGE)
        assert remap_anon_pages(dst.address, src.address, PAGE, uffd=uffd) == Result(PAGE, 0)
        vma = vma_at(dst.address)
        assert vma and "um" in vma.vm_flags


@contextmanager
def pinned(address: int, length: int, cannot_run: Callable[[str, str], NoReturn]) -> Iterator[None]:
    """Pages pinned for good, as a fixed buffer of an io_uring (io_uring_setup(2), io_uring_register(2): the same numbers everywhere)."""
    setup, register, buffers = 425, 427, 0
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(ctypes.c_long(setup), 1, parameters)
    if ring < 0:
        cannot_run("no io_uring to pin pages with", "sysctl kernel.io_uring_disabled=0, as root")
    try:
        vector = (ctypes.c_uint64 * 2)(address, length)
        assert libc.syscall(ctypes.c_long(register), ring, buffers, vector, 1) == 0
        yield
    finally:
        os.close(ring)


def test_differs_a_pinned_page(src: Mapping, dst: Mapping, cannot_run: Callable[[str, str], NoReturn]) -> None:
    differs("a pinned page")
    with pinned(src.address, PAGE, cannot_run):
        assert remap_anon_pages(dst.address, src.address, PAGE) == failed(errno.EBUSY)
        assert remap_anon_pages(dst.at(1), src.at(1), PAGE).ok


def test_differs_the_number(src: Mapping) -> None:
    differs("MADV_USERFAULT's number")
    assert (Advice.WIPEONFORK, Advice.KEEPONFORK) == (18, 19) == tuple(-each for each in SeedAdvice)


def test_differs_a_ranges_mapping(src: Mapping, dst: Mapping) -> None:
    differs("a range's mapping")
    remap_anon_pages(dst.at(2), src.address, PAGE)
    vma = vma_at(dst.address)
    assert vma and (vma.start, vma.end) == (dst.address, dst.end) and not {"um", "uw"} & vma.vm_flags


# ---- MADV_USERFAULT


def test_a_missing_page_is_an_exception_until_it_is_filled(src: Mapping) -> None:
    with UserfaultMemory(4 * PAGE) as region:
        with pytest.raises(MissingPage, match="fill it") as missing:
            region.read(10, 1)
        assert missing.value.address == region.address
        assert region.fill(0, b"\1" * PAGE).ok
        assert region.fill(0, b"\2" * PAGE).errno == errno.EEXIST
        with pytest.raises(MissingPage) as missing:
            region.read(PAGE - 1, 2)
        assert missing.value.address == region.at(1)
        with pytest.raises(MissingPage) as missing:
            region.write(PAGE - 1, b"xyz")
        assert missing.value.address == region.at(1)
        assert region.read(PAGE - 2, 2) == b"\1x"
        assert remap_anon_pages(region.at(1), src.at(5), PAGE) == Result(PAGE, 0)
        assert region.read(PAGE, 2) == b"\5\x10"
        # Still under USERFAULT: the move did not end that.
        with pytest.raises(MissingPage):
            region.read(2 * PAGE, 1)
        with pytest.raises(KernelError, match="has 16384"):
            region.read(4 * PAGE, 1)


def test_moving_a_page_out_makes_it_missing_again(src: Mapping, dst: Mapping) -> None:
    with UserfaultMemory(PAGE) as region:
        region.fill(0, b"\7" * PAGE)
        assert remap_anon_pages(dst.address, region.address, PAGE) == Result(PAGE, 0)
        with pytest.raises(MissingPage):
            region.read(0, 1)
    assert dst.read(0, 1) == b"\7"


def test_others_get_sigbus_or_efault() -> None:
    with UserfaultMemory(PAGE) as region:
        with pytest.raises(ChildDied) as died:
            call(lambda: memory.load(region.address, 1))
        assert died.value.signal == signal.SIGBUS
        read, write = os.pipe()
        os.write(write, b"x")
        with os.fdopen(read, "rb", 0) as pipe, pytest.raises(OSError, match="Bad address"):
            pipe.readinto(memory.buffer_at(region.address, 1))
        os.close(write)


def test_nouserfault_ends_it(dst: Mapping) -> None:
    assert madvise(dst.address, dst.length_bytes, SeedAdvice.USERFAULT).ok
    assert memory.read_memory(dst.address, 1)[0].errno == errno.EFAULT
    assert madvise(dst.at(2), 2 * PAGE, SeedAdvice.NOUSERFAULT).ok
    assert [memory.read_memory(dst.at(page), 1)[0].errno for page in (1, 2, 3, 4)] == [errno.EFAULT, 0, 0, errno.EFAULT]
    assert madvise(dst.address, dst.length_bytes, SeedAdvice.NOUSERFAULT).ok
    assert dst.words() == [0] * 8
    assert madvise(dst.address + 1, PAGE, SeedAdvice.USERFAULT).errno == errno.EINVAL
    assert madvise(dst.address, PAGE, Advice.DONTNEED).ok
    with Userfault(Feature.SIGBUS) as other:
        other.register(dst.address, PAGE)
        assert madvise(dst.address, PAGE, SeedAdvice.USERFAULT).errno == errno.EBUSY


def test_differs_fork() -> None:
    differs("MADV_USERFAULT and fork")
    with UserfaultMemory(2 * PAGE) as region:
        region.fill(0, b"\1" * PAGE)

        def child() -> tuple[bytes, int]:
            with pytest.raises(MissingPage) as missing:
                region.read(PAGE, 1)
            region.fill(PAGE, b"\2" * PAGE)
            return region.read(0, 1) + region.read(PAGE, 1), missing.value.address

        assert call(child) == (b"\1\2", region.at(1))
        with pytest.raises(MissingPage):
            region.read(PAGE, 1)


def test_differs_shared_memory() -> None:
    differs("MADV_USERFAULT of shared memory")
    with Mapping(PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as shared:
        assert madvise(shared.address, PAGE, SeedAdvice.USERFAULT).ok
        assert memory.read_memory(shared.address, 1)[0].errno == errno.EFAULT
        madvise(shared.address, PAGE, SeedAdvice.NOUSERFAULT)


def test_memory_mapped_where_a_region_was_is_not_under_userfault(src: Mapping) -> None:
    with UserfaultMemory(2 * PAGE) as region:
        fixed = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_FIXED
        assert memory.mmap(region.address, PAGE, flags=fixed).ok
        assert remap_anon_pages(region.address, src.address, PAGE) == Result(PAGE, 0)
        vma = vma_at(region.address)
        assert vma and not {"um", "uw"} & vma.vm_flags


def test_every_difference_has_a_test() -> None:
    assert len(DIFFERENCES) == len([name for name in globals() if name.startswith("test_differs_")])


@settings(max_examples=60, deadline=None)
@given(
    present=st.lists(st.booleans(), min_size=8, max_size=8),
    taken=st.lists(st.booleans(), min_size=8, max_size=8),
    start=st.integers(0, 7),
    count=st.integers(1, 8),
    allow_holes=st.booleans(),
)
def test_any_pattern_of_holes(
    present: list[bool], taken: list[bool], start: int, count: int, allow_holes: bool
) -> None:
    """The contract, page by page: it stops before the first page that can't be moved, and says why only where nothing was."""
    count = min(count, 8 - start)
    with Mapping(8 * PAGE) as src, Mapping(8 * PAGE) as dst:
        for page in range(8):
            if present[page]:
                memory.store(src.at(page), bytes([1 + page]))
            if taken[page]:
                memory.store(dst.at(page), b"\xff")
        expected, reason = 0, 0
        for page in range(start, start + count):
            reason = errno.EEXIST if taken[page] else 0 if present[page] or allow_holes else errno.ENOENT
            if reason:
                break
            expected += 1
        answer = remap_anon_pages(dst.at(start), src.at(start), count * PAGE, allow_holes=allow_holes)
        assert answer == (Result(expected * PAGE, 0) if expected else failed(reason))
        for page in range(8):
            moved = start <= page < start + expected
            want = 0xFF if taken[page] else 1 + page if moved and present[page] else 0
            assert dst.read(page * PAGE, 1)[0] == want
            assert src.read(page * PAGE, 1)[0] == (1 + page if present[page] and not moved else 0)
