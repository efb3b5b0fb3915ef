"""Regions: what faults in is what the source has, within the budget, in every mode and unit."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import random
import re
import resource
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from userfault import paging
from userfault.kernel import memory
from userfault.kernel.maps import maps
from userfault.paging import PagingError, Region, SourceError
from userfault.paging.pytest_plugin import check, run

SIZE = (2 << 20) + 3 * 4096 + 123
MODES = ("threads", "sigbus")
UNITS = ("4 KiB", "64 KiB", "2 MiB")

pytestmark = pytest.mark.usefixtures("can_page")


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> Path:
    file = tmp_path_factory.mktemp("region") / "data"
    file.write_bytes(data)
    return file


def region_rss(region: Region, field: str = "Rss") -> int:
    """What the kernel counts as resident of the mapping (or another field of smaps), in bytes."""
    base = region._control.base
    found = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(head[1], 16) <= base < int(head[2], 16)
        elif found and line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the region is not mapped")


@pytest.mark.parametrize("resident", [None, "1 MiB", "256 KiB"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mode", MODES)
def test_reads_are_the_source(path: Path, data: bytes, mode: str, unit: str, resident: str | None) -> None:
    if resident and unit == "2 MiB":
        resident = "4 MiB"

    def child() -> None:
        with paging.open(path, mode=mode, unit=unit, resident=resident) as memory:  # type: ignore[arg-type]
            places = random.Random(2)
            for _ in range(300):
                at = places.randrange(SIZE)
                assert memory[at] == data[at]
            assert memory[:] == data
            assert len(memory) == SIZE
            stats = memory.stats()
            assert stats.fault_count
            if stats.budget_bytes:
                assert stats.resident_max_bytes <= stats.budget_bytes + 4 * stats.unit_bytes
                assert region_rss(memory) <= stats.budget_bytes + 4 * stats.unit_bytes

    check(child)


@pytest.mark.parametrize("mode", MODES)
def test_units_of_2_mib_are_huge_pages(mode: str, cannot_run: Callable[[str, str], NoReturn]) -> None:
    """Those that come back into a place that was used before, too."""
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        cannot_run("huge pages are switched off", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root")

    def child() -> None:
        with paging.open(
            bytes(range(256)) * (12 << 12),
            mode=mode,  # type: ignore[arg-type]
            unit="2 MiB",
            resident="4 MiB",
            prefetch_units=0,
        ) as memory:
            for at in [*range(0, 12 << 20, 2 << 20)] * 2:
                assert memory[at + 5] == 5
            end = time.monotonic() + 60
            while memory.state_of(at) != "present" and time.monotonic() < end:
                time.sleep(0.001)
            # Where memory is in pieces the kernel makes do with small pages.
            assert region_rss(memory, "AnonHugePages") > 0

    check(child)


@pytest.mark.parametrize("policy", ["clock", "fifo", "lru"])
@pytest.mark.parametrize("unit", UNITS[:2])
@pytest.mark.parametrize("mode", MODES)
def test_writes_survive_eviction(path: Path, data: bytes, mode: str, unit: str, policy: str) -> None:
    def child() -> None:
        places = random.Random(3)
        expected = bytearray(data)
        with paging.open(path, access="c", mode=mode, unit=unit, policy=policy, resident="256 KiB") as memory:  # type: ignore[arg-type]
            for _ in range(1000):
                at, count = places.randrange(SIZE - 50), places.randrange(1, 50)
                if places.random() < 0.5:
                    chunk = places.randbytes(count)
                    memory[at : at + count] = chunk
                    expected[at : at + count] = chunk
                else:
                    assert memory[at : at + count] == expected[at : at + count]
            assert memory[:] == expected
            stats = memory.stats()
            assert stats.evict_dirty_count
            assert region_rss(memory) <= stats.budget_bytes + 4 * stats.unit_bytes
        assert path.read_bytes() == data

    check(child)


def test_views_keep_it_open(path: Path, data: bytes) -> None:
    def child() -> None:
        memory = paging.open(path)
        view = memoryview(memory)
        with pytest.raises(BufferError, match="delete them first"):
            memory.close()
        assert view[SIZE - 1] == data[-1]
        with memory:
            pass
        assert view[4096] == data[4096]
        view.release()
        memory.close()
        memory.close()
        assert memory.stats().fault_count
        with pytest.raises(ValueError, match="closed"):
            memory.read_at(0, 1)

    check(child)


def test_arrow_sees_it_without_a_copy(path: Path, data: bytes) -> None:
    def child() -> None:
        import pyarrow
        import pyarrow.compute

        memory = paging.open(path, unit="4 KiB", prefetch_units=0)
        count = SIZE // 8
        buffer = pyarrow.py_buffer(memory)
        array = pyarrow.Array.from_buffers(pyarrow.int64(), count, [None, buffer])
        assert memory.stats().fault_count == 0
        assert array[count // 2].as_py() == int.from_bytes(data[count // 2 * 8 :][:8], "little", signed=True)
        assert memory.stats().fault_count == 1
        assert (buffer.size, buffer.is_mutable) == (SIZE, False)
        with pytest.raises(BufferError, match="delete them first"):
            memory.close()
        # Its own threads fault as well.
        assert pyarrow.compute.sum(array.cast(pyarrow.float64(), safe=False)).as_py() == pytest.approx(
            sum(memoryview(data)[: count * 8].cast("q"))
        )
        del array, buffer
        memory.close()

    check(child)


def test_it_ends_with_its_last_view(path: Path) -> None:
    def child() -> None:
        before = threads_of_ours()
        memory = paging.open(path)
        view = memoryview(memory)
        del memory
        assert view[0] is not None
        assert threads_of_ours() > before
        del view
        end = time.monotonic() + 60
        while threads_of_ours() > before and time.monotonic() < end:
            time.sleep(0.001)
        assert threads_of_ours() == before

    def threads_of_ours() -> int:
        count = 0
        for tid in os.listdir("/proc/self/task"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                count += Path(f"/proc/self/task/{tid}/comm").read_text().startswith("uf-")
        return count

    check(child)


@pytest.mark.parametrize("mode", MODES)
def test_threads_fault_at_once(path: Path, data: bytes, mode: str) -> None:
    def child() -> None:
        wrong: list[int] = []
        with paging.open(path, mode=mode, unit="4 KiB", resident="128 KiB") as memory:  # type: ignore[arg-type]

            def walk(seed: int) -> None:
                places = random.Random(seed)
                for _ in range(2000):
                    at = places.randrange(SIZE)
                    if memory[at] != data[at]:
                        wrong.append(at)

            threads = [threading.Thread(target=walk, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong

    check(child)


def test_read_only_is_read_only(path: Path) -> None:
    def child() -> None:
        with paging.open(path) as memory:
            assert memoryview(memory).readonly
            with pytest.raises(TypeError):
                memory[0] = 1
            with pytest.raises(TypeError, match="read-only"):
                memory.write_at(0, b"x")
            with pytest.raises(PagingError, match="read-only"):
                memory.mark()
            with pytest.raises(TypeError, match="interpreted as an integer"):
                memory.read_at(0.5, 1)  # type: ignore[arg-type]

    check(child)


def test_a_truncated_file_is_an_exception_at_read_at(path: Path, tmp_path: Path, data: bytes) -> None:
    def child() -> None:
        short = tmp_path / "short"
        short.write_bytes(data)
        with paging.open(short, unit="4 KiB") as memory:
            os.truncate(short, 8192)
            assert memory.read_at(0, 8192) == data[:8192]
            for _ in range(2):
                with pytest.raises(SourceError, match="ends before the size"):
                    memory.read_at(8192, 1)
            assert memory.state_of(8192) == "poisoned"
            short.write_bytes(data)
            assert memory.read_at(8192, 4096) == data[8192:12288]
            assert memory[8192] == data[8192]

    check(child)


@pytest.mark.parametrize("mode", MODES)
def test_a_truncated_file_is_a_loud_sigbus_elsewhere(tmp_path: Path, data: bytes, mode: str) -> None:
    def child() -> None:
        short = tmp_path / "short"
        short.write_bytes(data)
        memory = paging.open(short, unit="4 KiB", mode=mode)  # type: ignore[arg-type]
        os.truncate(short, 8192)
        assert memory[0] == data[0]
        print(memory[8192])

    ended = run(child)
    assert ended.signal == signal.SIGBUS
    assert re.search(
        r"SIGBUS in thread \d+ at 0x[0-9a-f]+, offset 8192 of region '.*short': .*ends before the size", ended.stderr
    )


def test_dirty_is_exact(path: Path) -> None:
    def child() -> None:
        with paging.open(path, access="c", unit="64 KiB", resident="256 KiB", prefetch_units=0) as memory:
            assert memory.dirty() == []
            memory[5000] = 1
            memory[100_000] = 1
            memory[100_001 + 4096] = 1
            assert memory.dirty() == [(4096, 4096), (98304, 8192)]
            memory.evict()
            assert memory.resident_bytes() == 0
            assert memory.dirty() == [(4096, 4096), (98304, 8192)]
            memory.mark()
            assert memory.dirty() == []
            assert memory[5000] == memory[100_000] == 1
            memory[0] = 7
            memory.mark()
            memory.evict()
            assert memory.dirty() == []
            assert memory[0] == 7
            memory[SIZE - 1] = 9
            memory.evict()
            assert memory.dirty() == [(SIZE // 4096 * 4096, SIZE % 4096)]

    check(child)


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_a_page_that_a_write_fetches_counts_as_written_until_the_next_mark(mode: Any) -> None:
    def child() -> None:
        pages = 200
        with paging.open(None, size_bytes=2 * pages * 4096, access="c", unit="4 KiB", mode=mode) as memory:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            for page in range(pages):
                memory[page * 4096] = 1
            # It is not armed to be written at once, which would be a second fault. Those that are SIGBUS are not counted.
            if mode == "sigbus":
                assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < pages / 2
            assert memory.dirty() == [(0, pages * 4096)]
            memory.mark()
            assert memory.dirty() == []
            memory[4096] = 2
            assert memory[pages * 4096] == 0
            assert memory.dirty() == [(4096, 4096)]

    check(child)


@pytest.mark.parametrize("unit", ["4 KiB", "64 KiB"])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_overwritten_whole_is_not_fetched(data: bytes, mode: Any, unit: str) -> None:
    def nothing(offset: int, view: memoryview) -> None:
        raise LookupError(f"nothing at {offset}")

    def child() -> None:
        options: dict[str, Any] = {"mode": mode, "unit": unit, "access": "c", "resident": "256 KiB"}
        with paging.open(nothing, size_bytes=SIZE, **options) as memory:
            size = memory.unit_bytes
            first, last = SIZE // 2 // size * size, SIZE // size * size
            for _ in range(2):  # what is there, and what was evicted, is overwritten as well
                memory.write_at(first, data[first:])
                assert memory.dirty() == [(first, SIZE - first)]
                assert memory.read_at(first, SIZE - first) == data[first:]
            memory.write_at(last, bytes(SIZE - last))
            assert memory.read_at(last, SIZE - last) == bytes(SIZE - last)
            for at, length in ((0, size - 1), (1, size - 1), (size + 1, 2 * size)):
                with pytest.raises(SourceError, match="nothing at"):
                    memory.write_at(at, data[at : at + length])
            memory.write_at(0, data[: 4 * size])  # where it failed before as well
            assert memory.read_at(0, 4 * size) == data[: 4 * size]

    check(child)


def test_what_is_written_may_be_large_or_the_region_itself(data: bytes) -> None:
    def child() -> None:
        with paging.open(data, access="c", unit="4 KiB", resident="256 KiB") as memory:
            large = bytes(SIZE)
            tracemalloc.start()
            memory.write_at(0, large)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
            memory.write_at(0, data)
            with memoryview(memory) as view:
                memory.write_at(5000, view[: SIZE - 5000])
            assert memory.read_at(0, SIZE) == data[:5000] + data[: SIZE - 5000]

    check(child)


@pytest.mark.parametrize("write", [False, True])
def test_a_range_larger_than_the_budget_is_fetched_once(data: bytes, write: bool) -> None:
    def child() -> None:
        access: Any = "c" if write else "r"
        with paging.open(data, access=access, resident="256 KiB", prefetch_units=0) as memory:
            if write:
                memory.write_at(1, data[1:-1])
                assert memory.stats().in_bytes == 65536 + SIZE % 65536
            else:
                assert memory.read_at(0, SIZE) == data
                assert memory.stats().in_bytes == SIZE
            assert memory.stats().fill_count == -(-SIZE // 65536)

    check(child)


def test_flush_writes_what_was_written(tmp_path: Path, data: bytes) -> None:
    def child() -> None:
        file = tmp_path / "stored"
        file.write_bytes(data)
        expected = bytearray(data)
        places = random.Random(5)
        with paging.open(file, access="r+", unit="4 KiB", resident="128 KiB") as memory:
            for round_ in range(4):
                for _ in range(100):
                    at = places.randrange(SIZE)
                    memory[at] = expected[at] = places.randrange(256)
                if round_ != 2:
                    memory.flush()
                    assert file.read_bytes() == expected
            assert memory[:] == expected
        assert file.read_bytes() == expected

    check(child)


def test_a_function_is_a_source() -> None:
    def child() -> None:
        def squares(offset: int, view: memoryview) -> None:
            for i in range(len(view)):
                view[i] = (offset + i) % 251

        with paging.open(squares, size_bytes=300_000, unit="4 KiB", resident="64 KiB") as memory:
            for at in (0, 299_999, 123_456, 4095, 4096):
                assert memory[at] == at % 251
            os.kill(memory._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
            assert memory[200_000] == 200_000 % 251
            assert memory.stats().worker_restart_count == 1

    check(child)


def test_an_exception_in_a_function_reaches_the_reader() -> None:
    def child() -> None:
        def broken(offset: int, view: memoryview) -> None:
            raise LookupError(f"nothing at {offset}")

        with (
            paging.open(broken, size_bytes=100_000, unit="4 KiB") as memory,
            pytest.raises(SourceError, match=r"LookupError: nothing at 8192[\s\S]*in broken"),
        ):
            memory.read_at(8200, 4)

    check(child)


def test_system_calls_on_missing_pages(path: Path, data: bytes, tmp_path: Path) -> None:
    def child() -> None:
        with paging.open(path, access="c", unit="4 KiB", resident="128 KiB") as memory:
            out = tmp_path / "out"
            out.write_bytes(memory)
            assert out.read_bytes() == data
            with open(path, "rb") as file, memoryview(memory) as view:
                file.seek(1)
                file.readinto(view[:1000])
            assert memory[:1000] == data[1:1001]
        with paging.open(path, mode="sigbus") as memory:
            reader, writer = os.pipe()
            with pytest.raises(OSError, match="Bad address"), memoryview(memory) as view:
                os.write(writer, view[:100])
            memory.ensure(0, 100)
            with memoryview(memory) as view:
                os.write(writer, view[:100])
            assert os.read(reader, 100) == data[:100]

    check(child)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "5 KiB"}, "a unit is"),
        ({"resident": "64 KiB"}, "at least two units"),
        ({"mode": "magic"}, "threads, sigbus"),
        ({"policy": "best"}, "clock"),
        ({"access": "w"}, "read-only"),
        ({"resident": "lots"}, "is no size"),
        ({"resident": 1e6}, "is no size"),
        ({"handlers": 0}, "1 to 13"),
        ({"handlers": 14}, "1 to 13"),
        ({"prefetch_units": -1}, "0 to 1024"),
        ({"stall_s": -1.0}, "more than 0 seconds"),
        ({"stall_s": "1"}, "stall_s='1' is no float"),
        ({"retry": 3}, "retry=3 is no .*RetryPolicy"),
        ({"name": 3}, "name=3 is no "),
        ({"policy": 0}, "no function at that address"),
        ({"policy": -1}, "no function at that address"),
        ({"policy": id(object)}, "no function at that address"),
    ],
)
def test_bad_arguments(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        paging.open(path, **options)


def test_too_large_to_be_numbered() -> None:
    for access, unit, message in (("r", "4 KiB", "use a larger unit"), ("c", "64 KiB", "page a part of it")):
        with pytest.raises(PagingError, match=message):
            paging.open(None, size_bytes=(8 << 40) + 1, access=access, unit=unit)  # type: ignore[arg-type]
    with pytest.raises(PagingError, match="no address range"):
        paging.open(None, size_bytes=128 << 40, unit="2 MiB")


def test_a_boundary_is_found_among_many_holes(path: Path, data: bytes) -> None:
    def child() -> None:
        reserved = memory.mmap(0, 32 << 20, memory.PROT_NONE).value

        def taken() -> int:
            return sum(each.end - each.start for each in maps() if reserved <= each.start < reserved + (32 << 20))

        above: list[int] = []
        for index in range(15):  # a region fits into each of them, and never at a multiple of its unit
            memory.munmap(-reserved % (2 << 20) + reserved + (index << 21) + (512 << 10), 1 << 20)
        while not above or not reserved <= above[-1] < reserved + (32 << 20):
            above.append(memory.mmap(0, 300_000, memory.PROT_NONE).value)
        before = taken()
        with paging.open(path, unit="2 MiB", size_bytes=300_000) as region:
            assert region._control.base % (2 << 20) == 0
            assert region.read_at(0, 300_000) == data[:300_000]
        assert taken() < before + (8 << 20), "what filled the holes is given back; others may have taken one"

    check(child)


def test_no_wait_is_too_long_to_be_allowed(path: Path) -> None:
    with paging.open(path, stall_s=math.inf) as memory:
        assert memory[0] is not None


def test_a_python_function_is_no_policy(path: Path) -> None:
    prototype = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    for policy in (lambda *_: 0, prototype(lambda *_: 0)):
        with pytest.raises(TypeError, match="no Python can"):
            paging.open(path, policy=policy)


def test_mapping_methods_that_move_it_are_refused(path: Path) -> None:
    def child() -> None:
        with paging.open(path) as memory, pytest.raises(TypeError, match="can't be resized"):
            memory.resize(1)
        assert isinstance(memory, mmap.mmap)

    check(child)


def run_as_nobody(child: Callable[[], None]) -> None:
    os.setgid(65534)
    os.setuid(65534)
    child()


@pytest.mark.skipif(os.getuid() != 0, reason="to become nobody: run the tests as root")
@pytest.mark.parametrize("mode", MODES)
def test_an_ordinary_user(data: bytes, mode: str) -> None:
    def child() -> None:
        with paging.open(data, mode=mode, unit="4 KiB", resident="64 KiB") as memory:  # type: ignore[arg-type]
            assert memory._control.user_mode_only
            assert memory[:] == data
            memory.evict()
            reader, writer = os.pipe()
            with pytest.raises(OSError, match="Bad address"), memoryview(memory) as view:
                os.write(writer, view[:100])
            memory.ensure(0, 100)
            with memoryview(memory) as view:
                os.write(writer, view[:100])
            assert os.read(reader, 100) == data[:100]

    check(run_as_nobody, child)
