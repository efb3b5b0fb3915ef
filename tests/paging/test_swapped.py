"""A machine that has swap may swap a region's pages out, like all anonymous memory: they are written, kept and counted all the same."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from userfault import paging
from userfault.kernel.machine import Swap
from userfault.paging import Region
from userfault.paging.inject import inject
from userfault.paging.pytest_plugin import check

pytestmark = pytest.mark.usefixtures("can_page", "swap")

SIZE = 1 << 20
WRITTEN = 256 << 10
DATA = random.Random(13).randbytes(SIZE)
MADV_PAGEOUT = 21


def swapped_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSwap:"))


def open_swapped(path: Path, unit: str) -> tuple[Region, bytearray]:
    """A region whose first WRITTEN bytes were written and are in the kernel's swap, and what it holds."""
    path.write_bytes(DATA)
    expected = bytearray(DATA)
    memory = paging.open(path, access="r+", unit=unit, resident="512 KiB", prefetch_units=0)
    for at in range(0, WRITTEN, 4096):
        memory[at] = expected[at] = DATA[at] ^ 255
    memory.madvise(MADV_PAGEOUT, 0, WRITTEN)
    if not swapped_kib() >= WRITTEN >> 11:
        raise RuntimeError(f"MADV_PAGEOUT left all but {swapped_kib()} KiB in memory")
    return memory, expected


def evict_all(memory: Region) -> None:
    memory.evict()


def exceed_the_budget(memory: Region) -> None:
    for at in range(WRITTEN, SIZE, 4096):
        assert memory[at] == DATA[at]


def mark_and_evict(memory: Region) -> None:
    memory.mark()
    assert memory.dirty() == []
    memory.evict()
    assert memory.dirty() == []


def fail_to_evict(memory: Region) -> None:
    with inject(memory, "swap_write", "errno", 28, times=1 << 20), pytest.raises(paging.PagingError):
        memory.evict(0, WRITTEN)


def nothing(memory: Region) -> None:
    pass


@pytest.mark.parametrize("then", [evict_all, exceed_the_budget, mark_and_evict, fail_to_evict, nothing])
@pytest.mark.parametrize("unit", ["4 KiB", "64 KiB"])
def test_what_the_kernel_swapped_out_is_not_lost(
    tmp_path: Path, swap: Swap, unit: str, then: Callable[[Region], None]
) -> None:
    def child() -> None:
        memory, expected = open_swapped(tmp_path / "data", unit)
        assert memory.dirty() == [(0, WRITTEN)]
        then(memory)
        memory.flush()
        assert (tmp_path / "data").read_bytes() == expected
        assert memory[:] == expected
        memory.close()

    check(child)


def test_what_the_kernel_swapped_out_is_there(tmp_path: Path, swap: Swap) -> None:
    def child() -> None:
        memory, expected = open_swapped(tmp_path / "data", "64 KiB")
        before = memory.stats().copy_count
        assert memory.read_at(0, WRITTEN) == expected[:WRITTEN]
        assert memory.stats().copy_count == before
        memory.madvise(mmap.MADV_DONTNEED, 0, WRITTEN)
        assert memory[:] == DATA

    check(child)


def test_a_page_that_could_not_be_had_is_not_a_written_one(tmp_path: Path) -> None:
    """To the kernel's scan a poisoned page looks like one in swap."""

    def child() -> None:
        file = tmp_path / "data"
        file.write_bytes(DATA)
        with paging.open(file, access="r+", unit="4 KiB", prefetch_units=0) as memory:
            file.write_bytes(b"")
            with pytest.raises(paging.SourceError):
                memory.read_at(8192, 1)
            file.write_bytes(DATA)
            assert memory.dirty() == []
            memory.mark()
            assert memory.state_of(8192) == "poisoned"
            assert memory.dirty() == []
            assert memory.read_at(8192, 4096) == DATA[8192:12288]

    check(child)
