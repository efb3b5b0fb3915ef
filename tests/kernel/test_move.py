"""UFFDIO_MOVE, case by case: what it answers, and what can be seen of both sides afterwards.

docs/kernel.md has the summary. States are printed as `userfault.kernel.snapshot` prints them.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import pytest

from userfault.kernel import memory
from userfault.kernel.child import Child, call
from userfault.kernel.machine import KSM, THP, Machine, Swap, setting
from userfault.kernel.maps import vma_at
from userfault.kernel.memory import Mapping
from userfault.kernel.snapshot import Observer
from userfault.kernel.uapi import HUGE_SIZE_BYTES, PAGE_SIZE_BYTES, Advice, Feature, MoveMode, RegisterMode
from userfault.kernel.userfaultfd import Progress, Userfault, supported_features

pytestmark = pytest.mark.usefixtures("one_cpu")

PAGE = PAGE_SIZE_BYTES
HOLES = int(MoveMode.ALLOW_SRC_HOLES)
OWN = "PX:c1:ANON,SWAPBACKED,ANON_EXCLUSIVE"
ZERO = "P:c0:ZERO_PAGE"
SHARED = "P:c2:ANON,SWAPBACKED"
HUGE = (
    "PX:c1:ANON,SWAPBACKED,COMPOUND_HEAD,THP,ANON_EXCLUSIVE PX:c1:ANON,SWAPBACKED,COMPOUND_TAIL,THP,ANON_EXCLUSIVE*511"
)
SPLIT = "PX:c1:DIRTY,ANON,SWAPBACKED,ANON_EXCLUSIVE"


@dataclass
class Bench:
    """Four written pages at `src`, four missing ones at `dst`, registered MISSING and WP with `uffd`."""

    uffd: Userfault
    src: Mapping
    dst: Mapping
    observer: Observer

    def move(self, count: int = 4, mode: int = 0, *, src: int = 0, dst: int = 0) -> Progress:
        return self.uffd.move(self.dst.at(dst), self.src.at(src), count * PAGE, mode)

    def seen(self, mapping: Mapping) -> str:
        return str(self.observer.look(mapping.address, mapping.length_bytes, mappings=False))

    @property
    def both(self) -> tuple[str, str]:
        return self.seen(self.src), self.seen(self.dst)


@pytest.fixture
def bench(cannot_run: Callable[[str, str], NoReturn]) -> Iterator[Bench]:
    if not supported_features() & Feature.MOVE:
        cannot_run("no UFFDIO_MOVE", "run on Linux 6.8 or newer, as root")
    features = Feature.SIGBUS | Feature.WP_UNPOPULATED | Feature.PAGEFAULT_FLAG_WP
    with (
        Mapping(4 * PAGE) as src,
        Mapping(4 * PAGE) as dst,
        Userfault(features) as uffd,
        Observer() as observer,
    ):
        if observer.frames is None:
            cannot_run("page frames can't be looked at", "run as root")
        assert uffd.register(dst.address, dst.length_bytes, RegisterMode.MISSING | RegisterMode.WP).ok
        src.read(0, 1)
        if not uffd.move(dst.address, src.address, PAGE).ok:
            cannot_run(
                "a zero page does not move: this kernel's UFFDIO_MOVE is an older one", "run on Linux 6.18 or newer"
            )
        dst.madvise(Advice.DONTNEED)
        src.tag_pages()
        yield Bench(uffd, src, dst, observer)


def moved(count: int) -> Progress:
    return Progress(0, count * PAGE, True)


def stopped(count: int) -> Progress:
    """After some pages: EAGAIN, whatever the reason, and how far it came."""
    return Progress(errno.EAGAIN, count * PAGE, True)


def refused(number: int) -> Progress:
    return Progress(number, -number, True)


def at_the_door(number: int) -> Progress:
    return Progress(number, None, True)


def test_pages_move_and_are_the_same_pages(bench: Bench) -> None:
    frames = [page.entry.pfn for page in bench.observer.look(bench.src.address, 4 * PAGE).pages]
    assert bench.move() == moved(4)
    assert bench.both == ("-*4", f"{OWN}*4")
    assert [page.entry.pfn for page in bench.observer.look(bench.dst.address, 4 * PAGE).pages] == frames
    assert bench.dst.words() == [0x1000, 0x1001, 0x1002, 0x1003]
    assert bench.src.words() == [0] * 4


@pytest.mark.parametrize(
    ("dst", "src", "length", "mode"),
    [(0, 0, 0, 0), (0, 0, 100, 0), (1, 0, PAGE, 0), (0, 1, PAGE, 0), (0, 0, PAGE, 4), (0, 0, PAGE, 1 << 63)],
)
def test_wrong_arguments_leave_the_field_alone(bench: Bench, dst: int, src: int, length: int, mode: int) -> None:
    answer = bench.uffd.move(bench.dst.address + dst, bench.src.address + src, length, mode)
    assert answer == at_the_door(errno.EINVAL)


def test_addresses_outside_of_everything(bench: Bench) -> None:
    top = (1 << 64) - PAGE
    assert bench.uffd.move(bench.dst.address, top, 2 * PAGE) == at_the_door(errno.EINVAL)
    assert bench.uffd.move(bench.dst.address, top, PAGE) == at_the_door(errno.EINVAL)
    memory.munmap(bench.src.address, PAGE)
    # No mapping and a hole are one answer (v6.8: EINVAL for the first).
    assert bench.move(1) == refused(errno.ENOENT)
    assert bench.move(2, src=3) == refused(errno.EINVAL)


def test_holes(bench: Bench) -> None:
    bench.src.madvise(Advice.DONTNEED, 2, 1)
    assert bench.move(1, src=2) == refused(errno.ENOENT)
    assert bench.move(4) == stopped(2)
    assert bench.both == (f"-*3 {OWN}", f"{OWN}*2 -*2")
    assert bench.move(2, HOLES, src=2, dst=2) == moved(2)
    assert bench.both == ("-*4", f"{OWN}*2 - {OWN}")


def test_a_taken_destination_is_looked_at_first(bench: Bench) -> None:
    bench.src.madvise(Advice.DONTNEED, 0, 1)
    assert bench.uffd.zeropage(bench.dst.address, PAGE).ok
    assert bench.move(1) == refused(errno.EEXIST)
    assert bench.uffd.zeropage(bench.dst.at(2), PAGE).ok
    assert bench.move(3, src=1, dst=1) == stopped(1)


def test_the_same_place(bench: Bench) -> None:
    place = bench.dst.address
    assert bench.uffd.move(place, place, PAGE) == refused(errno.ENOENT)
    assert bench.uffd.move(place, place, PAGE, HOLES) == moved(1)
    bench.uffd.zeropage(place, PAGE)
    assert bench.uffd.move(place, place, PAGE) == refused(errno.EEXIST)


def test_registrations(bench: Bench) -> None:
    with Mapping(PAGE) as plain, Userfault(Feature.SIGBUS) as other:
        assert bench.uffd.move(plain.address, bench.src.address, PAGE) == refused(errno.EINVAL)
        assert other.register(plain.address, PAGE, RegisterMode.WP).ok
        assert bench.uffd.move(plain.address, bench.src.address, PAGE) == refused(errno.EINVAL)
        # Neither MISSING nor UFFD_FEATURE_MOVE is needed.
        assert other.move(plain.address, bench.src.address, PAGE) == moved(1)
    # The source may be registered too.
    assert bench.uffd.register(bench.src.address, 4 * PAGE).ok
    assert bench.move(2, src=1) == moved(2)
    assert memory.read_memory(bench.src.at(1), 1)[0].errno == errno.EFAULT


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda m: memory.mprotect(m.address, PAGE, memory.PROT_READ), refused(errno.EINVAL)),
        (
            lambda m: memory.mprotect(m.address, PAGE, memory.READ_WRITE | memory.PROT_EXEC),
            refused(errno.EINVAL),
        ),
        (lambda m: memory.mlock(m.address, PAGE), refused(errno.EINVAL)),
        (lambda m: memory.mseal(m.address, PAGE), moved(1)),
        *[
            (lambda m, advice=advice: m.madvise(advice, 0, 1), moved(1))
            for advice in (
                Advice.DONTFORK,
                Advice.WIPEONFORK,
                Advice.MERGEABLE,
                Advice.DONTDUMP,
                Advice.SEQUENTIAL,
                Advice.RANDOM,
                Advice.NOHUGEPAGE,
                Advice.COLD,
                Advice.FREE,
            )
        ],
    ],
)
def test_mappings_that_differ(bench: Bench, change: Callable[[Mapping], object], answer: Progress) -> None:
    with Mapping(2 * PAGE) as src:
        src.tag_pages()
        change(src)
        assert bench.uffd.move(bench.dst.address, src.address, PAGE) == answer


def test_both_locked(bench: Bench) -> None:
    for each in (bench.src, bench.dst):
        assert memory.mlock(each.address, each.length_bytes, onfault=True).ok
    assert bench.move() == moved(4)
    for each in (bench.src, bench.dst):
        memory.munlock(each.address, each.length_bytes)


def test_two_mappings_at_once(bench: Bench) -> None:
    memory.mprotect(bench.src.at(2), PAGE, memory.READ_WRITE | memory.PROT_EXEC)
    assert bench.move(4) == refused(errno.EINVAL)
    assert bench.both == (f"{OWN}*4", "-*4")


def test_memory_that_is_not_anonymous(bench: Bench) -> None:
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGE)
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        with Mapping(PAGE, flags=flags, fd=fd) as other:
            other.tag_pages()
            assert bench.uffd.move(bench.dst.address, other.address, PAGE) == refused(errno.EINVAL)
            assert bench.uffd.register(other.address, PAGE, RegisterMode.WP).errno in (0, errno.EINVAL)
            assert bench.uffd.move(other.address, bench.src.address, PAGE) == refused(errno.EINVAL)
    os.close(fd)


def test_a_zero_page_moves(bench: Bench) -> None:
    bench.src.madvise(Advice.DONTNEED)
    bench.src.read(0, 1)
    assert bench.move(1) == moved(1)
    assert bench.both == ("-*4", f"{ZERO} -*3")


def test_markers(bench: Bench) -> None:
    bench.src.madvise(Advice.GUARD_INSTALL, 0, 1)
    assert bench.move(1) == refused(errno.EFAULT)
    bench.dst.madvise(Advice.GUARD_INSTALL, 0, 1)
    assert bench.move(1, src=1) == refused(errno.EEXIST)
    assert bench.uffd.poison(bench.dst.at(1), PAGE).ok
    assert bench.move(1, src=1, dst=1) == refused(errno.EEXIST)
    assert bench.uffd.move(bench.dst.at(3), bench.dst.at(1), PAGE) == refused(errno.EFAULT)
    assert bench.uffd.writeprotect(bench.dst.at(2), PAGE).ok
    assert bench.move(1, src=1, dst=2) == refused(errno.EEXIST)


def test_write_protection_is_left_behind(bench: Bench) -> None:
    assert bench.uffd.register(bench.src.address, 4 * PAGE, RegisterMode.MISSING | RegisterMode.WP).ok
    assert bench.uffd.writeprotect(bench.src.address, PAGE).ok
    assert bench.seen(bench.src) == f"PWX{OWN[2:]} {OWN}*3"
    assert bench.move(1) == moved(1)
    assert bench.seen(bench.dst) == f"{OWN} -*3"


def test_shared_pages_stay_until_they_are_written(bench: Bench) -> None:
    with Child(lambda: iter([0, 0])) as child:
        child.step()
        assert bench.move(1) == refused(errno.EBUSY)
        assert bench.both == (f"{SHARED}*4", "-*4")
    # Mapped once, and still not known to be alone.
    assert bench.move(1) == refused(errno.EBUSY)
    assert bench.seen(bench.src) == "PX:c1:ANON,SWAPBACKED*4"
    bench.src.write(0, b"mine")
    assert bench.move(2) == stopped(1)


def test_it_works_in_its_own_process_only(bench: Bench) -> None:
    assert call(lambda: bench.move(1)) == at_the_door(errno.EINVAL)


def test_swapped_pages_move(bench: Bench, swap: Swap) -> None:
    bench.src.madvise(Advice.PAGEOUT)
    assert bench.seen(bench.src) == "S*4"
    assert bench.move(3) == moved(3)
    assert bench.both == ("-*3 S", "S*3 -")
    assert bench.dst.read(2 * PAGE, 2) == b"\2\x10"
    call(lambda: None)
    # A slot that was shared is not known to be one's own, before it is read back and written.
    assert bench.move(1, src=3, dst=3) == refused(errno.EBUSY)
    bench.src.write(3 * PAGE, b"mine")
    assert bench.move(1, src=3, dst=3) == moved(1)


def test_everything_at_once(bench: Bench, swap: Swap) -> None:
    bench.src.madvise(Advice.DONTNEED, 2, 2)
    bench.src.read(2 * PAGE, 1)
    bench.src.madvise(Advice.PAGEOUT, 1, 1)
    assert bench.seen(bench.src) == f"{OWN} S {ZERO} -"
    assert bench.move(4, HOLES) == moved(4)
    assert bench.both == ("-*4", f"{OWN} S {ZERO} -")


def test_merged_pages_stay(bench: Bench, held: Machine) -> None:
    held.set(KSM / "sleep_millisecs", 5)
    held.set(KSM / "pages_to_scan", 5000)
    for page in range(4):
        memory.store(bench.src.at(page), b"equal in all four of these pages!" * 100)
    bench.src.madvise(Advice.MERGEABLE)
    held.set(KSM / "run", 1)
    for _ in range(400):
        if "KSM" in bench.seen(bench.src).split(" ")[0]:
            break
        time.sleep(0.02)
    assert bench.move(1) == refused(errno.EBUSY)
    bench.src.write(0, b"apart")
    assert bench.move(1) == moved(1)


# ---- huge pages


@dataclass
class HugeBench:
    """A huge page at `src`, and room for two, empty, at `dst`."""

    uffd: Userfault
    src: Mapping
    dst: Mapping
    observer: Observer

    def move(self, src: int, dst: int, length: int) -> Progress:
        return self.uffd.move(self.dst.address + dst, self.src.address + src, length)

    def seen(self, mapping: Mapping) -> str:
        return str(self.observer.look(mapping.address, HUGE_SIZE_BYTES, mappings=False))

    def huge_bytes(self, mapping: Mapping) -> int:
        vma = vma_at(mapping.address)
        assert vma
        return vma.sizes_bytes["AnonHugePages"]


@pytest.fixture
def huge(bench: Bench, cannot_run: Callable[[str, str], NoReturn]) -> Iterator[HugeBench]:
    if not THP.is_dir() or setting(THP / "enabled") == "never":
        cannot_run("no transparent huge pages", f"echo madvise > {THP}/enabled")
    with Mapping.huge() as src, Mapping.huge(2, advise=False) as dst:
        memory.store(src.address, (0x1000).to_bytes(8, "little"))
        memory.store(src.at(511), (0x11FF).to_bytes(8, "little"))
        assert bench.uffd.register(dst.address, dst.length_bytes).ok
        found = HugeBench(bench.uffd, src, dst, bench.observer)
        if not found.huge_bytes(src):
            cannot_run("no huge page was to be had", "echo 1 > /proc/sys/vm/compact_memory")
        yield found


def test_a_huge_page_moves_whole(huge: HugeBench) -> None:
    assert huge.seen(huge.src) == HUGE
    assert huge.move(0, 0, HUGE_SIZE_BYTES) == Progress(0, HUGE_SIZE_BYTES, True)
    assert huge.seen(huge.src) == "-*512" and huge.seen(huge.dst) == HUGE
    # Although nobody advised huge pages there.
    assert huge.huge_bytes(huge.dst) == HUGE_SIZE_BYTES
    assert huge.dst.read(0, 2) == b"\0\x10" and huge.dst.read(511 * PAGE, 2) == b"\xff\x11"


def test_a_huge_page_is_split_where_it_does_not_fit(huge: HugeBench) -> None:
    huge.src.tag_pages()
    assert huge.move(0, PAGE, HUGE_SIZE_BYTES) == Progress(0, HUGE_SIZE_BYTES, True)
    states = [str(page) for page in huge.observer.look(huge.dst.address, HUGE_SIZE_BYTES + PAGE).pages]
    assert states == ["-", *[SPLIT] * 512]
    assert huge.dst.read(PAGE, 2) == b"\0\x10" and huge.dst.read(512 * PAGE, 2) == b"\xff\x11"


def test_a_part_of_a_huge_page_splits_it(huge: HugeBench) -> None:
    assert huge.move(0, 0, PAGE) == Progress(0, PAGE, True)
    assert huge.huge_bytes(huge.src) == 0 and "THP" not in huge.seen(huge.src)
    # What is full of zeroes becomes the zero page.
    assert huge.seen(huge.src) == f"- {ZERO}*510 {SPLIT}"
    assert huge.src.read(511 * PAGE, 2) == b"\xff\x11"


def test_a_huge_page_whose_mapping_was_split(huge: HugeBench) -> None:
    memory.mprotect(huge.src.address, PAGE, memory.PROT_READ)
    memory.mprotect(huge.src.address, PAGE, memory.READ_WRITE)
    assert huge.huge_bytes(huge.src) == 0 and "THP" in huge.seen(huge.src)
    assert huge.move(0, 0, PAGE) == Progress(0, PAGE, True)
    assert "THP" not in huge.seen(huge.src)


def test_a_huge_page_at_the_destination(huge: HugeBench) -> None:
    assert huge.move(0, 0, HUGE_SIZE_BYTES).ok
    memory.store(huge.src.address, b"another")
    assert huge.move(0, 0, HUGE_SIZE_BYTES) == refused(errno.EEXIST)
    assert huge.seen(huge.dst) == HUGE


def test_a_shared_huge_page_stays(huge: HugeBench) -> None:
    with Child(lambda: iter([0, 0])) as child:
        child.step()
        assert huge.move(0, 0, HUGE_SIZE_BYTES) == refused(errno.EBUSY)
        assert huge.move(0, 0, PAGE) == refused(errno.EBUSY)
        assert huge.huge_bytes(huge.src) == HUGE_SIZE_BYTES


def test_the_huge_zero_page_moves_whole_and_is_split(
    huge: HugeBench, cannot_run: Callable[[str, str], NoReturn]
) -> None:
    huge.src.madvise(Advice.DONTNEED)
    huge.src.read(0, 1)
    if "THP" not in huge.seen(huge.src):
        cannot_run("use_zero_page is off", "echo 1 > /sys/kernel/mm/transparent_hugepage/use_zero_page")
    before = huge.seen(huge.src)
    assert huge.move(0, 0, HUGE_SIZE_BYTES) == Progress(0, HUGE_SIZE_BYTES, True)
    assert huge.seen(huge.dst) == before
    huge.src.read(0, 1)
    assert huge.move(0, HUGE_SIZE_BYTES, PAGE) == Progress(0, PAGE, True)
    assert huge.seen(huge.src) == f"- {ZERO}*511"


def test_a_swapped_huge_page_moves(huge: HugeBench, swap: Swap) -> None:
    huge.src.madvise(Advice.PAGEOUT)
    assert huge.seen(huge.src) == "S*512"
    assert huge.move(0, 0, HUGE_SIZE_BYTES) == Progress(0, HUGE_SIZE_BYTES, True)
    assert huge.seen(huge.src) == "-*512" and huge.seen(huge.dst) == "S*512"
    assert huge.dst.read(511 * PAGE, 2) == b"\xff\x11"
