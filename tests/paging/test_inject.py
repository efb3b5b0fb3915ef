"""Whatever fails or dies, at whichever step: the data are right, or the failure is loud; nothing hangs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from userfault import paging
from userfault.paging import Region, SourceError
from userfault.paging.files import FileSource
from userfault.paging.inject import STEPS, Effect, Injection, Point, inject
from userfault.paging.pytest_plugin import check, run

pytestmark = pytest.mark.usefixtures("can_page")

SIZE = 1 << 20
DATA = random.Random(7).randbytes(SIZE)


def exercise(memory: Region, expected: bytearray, *, seed: int = 1, count: int = 300, writes: bool = True) -> None:
    """Random reads and writes; every read is compared."""
    places = random.Random(seed)
    for _ in range(count):
        at = places.randrange(SIZE - 64)
        if writes and places.random() < 0.5:
            chunk = places.randbytes(places.randrange(1, 64))
            memory[at : at + len(chunk)] = chunk
            expected[at : at + len(chunk)] = chunk
        else:
            assert memory[at : at + 64] == expected[at : at + 64]


def survive(point: Point, effect: Effect, value: int, mode: str, options: dict[str, Any]) -> tuple[int, paging.Stats]:
    """Exercise a region while `effect` strikes now and then, and look at all of it at the end."""
    expected = bytearray(DATA)
    writes = options.get("access", "r") != "r"
    with paging.open(DATA, mode=mode, **options) as memory:  # type: ignore[arg-type]
        struck = 0
        for seed in range(4):
            with inject(memory, point, effect, value, times=3, skip=seed) as injection:
                exercise(memory, expected, seed=seed, count=100, writes=writes)
                struck += injection.struck_count
        assert memory[:] == expected
        return struck, memory.stats()


libc = ctypes.CDLL(None)
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

BOUNDED: dict[str, Any] = {"resident": "128 KiB", "unit": "4 KiB", "prefetch_units": 0}
WRITABLE: dict[str, Any] = {**BOUNDED, "access": "c"}
BIG: dict[str, Any] = {"resident": "256 KiB", "unit": "64 KiB", "prefetch_units": 0}

FAILURES: list[tuple[Point, Effect, int, dict[str, Any], str]] = [
    ("copy", "errno", errno.EAGAIN, WRITABLE, "eagain_count"),
    ("copy", "rival", 0, WRITABLE, "eexist_count"),
    ("copy", "partial", 4096, {**BIG, "access": "c"}, "partial_count"),
    ("move_in", "errno", errno.EAGAIN, BIG, "eagain_count"),
    ("move_in", "errno", errno.EBUSY, BIG, "ebusy_count"),
    ("move_in", "errno", errno.EINVAL, BIG, "move_fallback_count"),
    ("move_in", "rival", 0, BIG, "eexist_count"),
    ("move_in", "partial", 8192, BIG, "partial_count"),
    ("move_out", "errno", errno.EAGAIN, WRITABLE, "eagain_count"),
    ("move_out", "errno", errno.EBUSY, WRITABLE, "ebusy_count"),
    ("move_out", "partial", 8192, {**BIG, "access": "c"}, "partial_count"),
    ("move_out", "errno", errno.EBUSY, BIG, "evict_clean_count"),
    ("scan", "errno", errno.EINVAL, WRITABLE, "evict_dirty_count"),
    ("drop", "errno", errno.EPERM, BOUNDED, "evict_clean_count"),
    ("swap_write", "partial", 1024, WRITABLE, "evict_dirty_count"),
    ("swap_read", "partial", 1024, WRITABLE, "swap_in_bytes"),
    ("swap_read", "errno", errno.EINTR, WRITABLE, "swap_in_bytes"),
]


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
@pytest.mark.parametrize(("point", "effect", "value", "options", "sign"), FAILURES)
def test_the_kernel_refuses(
    mode: str, point: Point, effect: Effect, value: int, options: dict[str, Any], sign: str
) -> None:
    struck, stats = check(survive, point, effect, value, mode, options)
    assert struck
    assert getattr(stats, sign)
    assert not stats.poison_count


KINDS = {
    "4K-r": BOUNDED,
    "4K-c": WRITABLE,
    "64K-fifo": {**BIG, "policy": "fifo"},
    "64K-limbo": {**BIG, "direct": True},
    "64K-c": {**BIG, "access": "c"},
}
DEATHS = [
    (step, kind)
    for step in STEPS
    for kind in KINDS
    if step != "submitted"
    and (step != "tick" or kind == "4K-c")
    and (not step.startswith("limbo") or kind == "64K-limbo")
    and (step != "saved" or kind != "64K-limbo")
]


@pytest.mark.parametrize(("step", "kind"), DEATHS)
def test_a_handler_dies_at_every_step(step: Point, kind: str, tmp_path: Path) -> None:
    options = KINDS[kind]
    source: Any = DATA
    if "direct" in options:
        source = tmp_path / "data"
        source.write_bytes(DATA)
    never = not options.get("access") and step in ("taken", "before_take")

    def child() -> None:
        expected = bytearray(DATA)
        writes = "access" in options
        with paging.open(source, **options) as memory:
            for skip in (0, 5):
                with inject(memory, step, "die", skip=skip) as injection:
                    exercise(memory, expected, count=60, writes=writes)
                    while step == "tick" and not injection.struck_count:
                        time.sleep(0.01)
                    assert injection.struck_count == (not never)
            assert memory[:] == expected
            if not never:
                end = time.monotonic() + 60
                while memory.stats().handler_restart_count < 2 and time.monotonic() < end:
                    time.sleep(0.01)
                assert memory.stats().handler_restart_count == 2
            assert not memory.stats().poison_count

    check(child)


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_a_direct_read_of_less_than_a_block_is_tried_again(mode: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA[:-1000])

    def child() -> None:
        with paging.open(tmp_path / "data", direct=True, mode=mode, unit="4 KiB") as memory:  # type: ignore[arg-type]
            with inject(memory, "source_read", "partial", 777) as injection:
                assert memory[4096:8192] == DATA[4096:8192]
            assert injection.struck_count == 1
            assert memory.stats().retry_count == 1
            os.truncate(tmp_path / "data", 9000)
            with pytest.raises(SourceError, match="the file ends before the size"):
                memory.read_at(8192, 4096)

    check(child)


def test_all_handlers_die_at_once() -> None:
    def child() -> None:
        expected = bytearray(DATA)
        with paging.open(DATA, **WRITABLE, handlers=3) as memory:
            with inject(memory, "claimed", "die", times=3):
                exercise(memory, expected)
            assert memory[:] == expected
            assert memory.stats().handler_restart_count == 3

    check(child)


def test_the_guardian_and_a_handler_die() -> None:
    def child() -> None:
        expected = bytearray(DATA)
        with paging.open(DATA, **WRITABLE) as memory:
            with inject(memory, "tick", "die") as first:
                while not first.struck_count:
                    time.sleep(0.01)
            with inject(memory, "filled", "die"):
                exercise(memory, expected)
            assert memory[:] == expected
            assert memory.stats().handler_restart_count == 2

    check(child)


def test_a_handler_that_can_not_be_started_anew_is_told_of() -> None:
    """Once, and as soon as there may be threads again the faults are served."""

    def child() -> None:
        expected = bytearray(DATA)
        with paging.open(DATA, **WRITABLE, handlers=1, name="poor one") as memory:
            with inject(memory, "spawn", "errno", errno.EAGAIN, times=3) as injection:
                with inject(memory, "claimed", "die"):
                    exercise(memory, expected)
                assert injection.struck_count == 3
            assert memory[:] == expected
            assert memory.stats().handler_restart_count == 1

    ended = run(child)
    assert (ended.signal, ended.code) == (0, 0), ended.stderr
    assert ended.stderr.count("region 'poor one': a thread of it can't be started") == 1
    assert "ulimit -u" in ended.stderr


@pytest.mark.parametrize("step", ["event_read", "claimed", "reserved", "submitted"])
def test_a_handler_dies_while_it_asks_a_worker(step: Point) -> None:
    def child() -> None:
        def fill(offset: int, view: memoryview) -> None:
            view[:] = bytes([offset // 4096 % 256]) * len(view)

        with paging.open(fill, size_bytes=1 << 20, unit="4 KiB", resident="64 KiB", prefetch_units=0) as memory:
            with inject(memory, step, "die", skip=2) as injection:
                for page in range(0, 256, 3):
                    assert memory[page * 4096] == page
            assert injection.struck_count == 1

    check(child)


def test_a_worker_dies_again_and_again(tmp_path: Path) -> None:
    def child() -> None:
        deaths = str(tmp_path)

        def fill(offset: int, view: memoryview) -> None:
            import os
            import signal

            if offset % 40960 == 0 and len(os.listdir(deaths)) < 3:
                os.mkdir(f"{deaths}/{os.getpid()}")
                os.kill(os.getpid(), signal.SIGKILL)
            view[:] = bytes([offset // 4096 % 256]) * len(view)

        with paging.open(fill, size_bytes=1 << 17, unit="4 KiB", prefetch_units=0) as memory:
            for page in range(32):
                assert memory[page * 4096] == page
            assert memory.stats().worker_restart_count == 3

    check(child)


def test_a_worker_that_always_dies_is_loud() -> None:
    def child() -> None:
        def fill(offset: int, view: memoryview) -> None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

        memory = paging.open(fill, size_bytes=1 << 17, unit="4 KiB", prefetch_units=0)
        with pytest.raises(SourceError, match="died"):
            memory.read_at(0, 1)
        print(memory[8192])

    ended = run(child)
    assert ended.signal == signal.SIGBUS
    assert "page worker" in ended.stderr


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_threads_of_the_program_find_the_workers_successor(mode: str) -> None:
    """Their descriptors are not the handlers': theirs is still the dead worker's, or the program let it name something else."""

    def child() -> None:
        def fill(offset: int, view: memoryview) -> None:
            view[:] = bytes([offset // 4096 % 256]) * len(view)

        memory = paging.open(fill, size_bytes=1 << 20, unit="4 KiB", prefetch_units=0, mode=mode)  # type: ignore[arg-type]
        assert memory.read_at(4096, 1) == b"\x01"
        os.kill(memory._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
        while not memory.stats().worker_restart_count:
            time.sleep(0.01)
        for page in range(2, 70):
            assert memory.read_at(page * 4096, 1) == bytes([page])
            assert memory[(page + 100) * 4096] == page + 100
        memory._worker._sock.close()  # type: ignore[union-attr]
        here, there = socket.socketpair()
        os.dup2(here.fileno(), memory._control.worker_fd)
        assert memory.read_at(71 * 4096, 1) == b"\x47"
        assert memory[200 * 4096] == 200
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(1)
        os._exit(0)

    ended = run(child)
    assert (ended.signal, ended.code) == (0, 0), ended.stderr


def test_a_request_is_not_sent_in_the_name_of_the_next() -> None:
    """Who is slow to send finds that another has, and that the entry is the next request's: what it had seen is nobody's any more."""

    def child() -> None:
        def fill(offset: int, view: memoryview) -> None:
            view[:] = bytes([offset // 4096 % 256]) * len(view)

        with paging.open(
            fill, size_bytes=1 << 17, unit="4 KiB", prefetch_units=0, retry=paging.RetryPolicy(deadline_s=1.0)
        ) as memory:
            with (
                inject(memory, "send", "delay", 200_000) as slow,
                inject(memory, "send", "errno", errno.EIO, skip=1, times=1 << 20) as refused,
            ):
                assert memory.read_at(4096, 1) == b"\x01"
                assert slow.struck_count == 1
                second = threading.Thread(target=lambda: memory.read_at(8192, 1))
                second.start()
                while not refused.struck_count:
                    time.sleep(0.001)
                second.join(1.0)
            assert memory.read_at(8192, 1) == b"\x02"
            second.join()

    check(child)


def test_a_worker_that_says_nothing_is_replaced(tmp_path: Path) -> None:
    """Its own deadline needs its interpreter: a source that keeps that to itself, or a stopped process, is told from outside."""

    def child() -> None:
        marker = tmp_path / "kept"

        def fill(offset: int, view: memoryview) -> None:
            import ctypes

            if offset == 8192 and not marker.exists():
                marker.touch()
                ctypes.PyDLL(None).sleep(1000)
            view[:] = bytes([offset // 4096 % 256]) * len(view)

        with paging.open(
            fill, size_bytes=1 << 17, unit="4 KiB", prefetch_units=0, retry=paging.RetryPolicy(deadline_s=1.0)
        ) as memory:
            with pytest.raises(SourceError, match="did not answer in time") as caught:
                memory.read_at(8192, 1)
            assert caught.value.errno == errno.ETIMEDOUT
            assert memory.read_at(8192, 1) == b"\x02"
            assert memory[4096] == 1
            assert memory.stats().worker_restart_count == 1

    check(child)


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_a_source_that_fails_now_and_then(mode: str, tmp_path: Any) -> None:
    def child() -> None:
        path = tmp_path / "data"
        path.write_bytes(DATA)
        with paging.open(path, **BOUNDED, mode=mode) as memory:  # type: ignore[arg-type]
            with (
                inject(memory, "source_read", "errno", errno.EAGAIN, times=3),
                inject(memory, "source_read", "partial", 100, times=2, skip=5),
            ):
                assert memory[:] == DATA
            assert memory.stats().retry_count == 3
            memory.evict()
            with (
                inject(memory, "source_read", "errno", errno.EIO),
                pytest.raises(SourceError, match="Input/output error") as caught,
            ):
                memory.read_at(40_960, 10)
            assert (caught.value.errno, caught.value.offset_bytes) == (errno.EIO, 40_960)
            assert memory.read_at(40_960, 10) == DATA[40_960:40_970]
            assert memory[40_960] == DATA[40_960]

    check(child)


def test_a_full_swap_disk_is_loud_and_loses_nothing() -> None:
    def child() -> None:
        expected = bytearray(DATA)
        with paging.open(DATA, **WRITABLE) as memory:
            exercise(memory, expected)
            with inject(memory, "swap_write", "errno", errno.ENOSPC, times=1 << 30):
                places = iter(range(0, SIZE, 4096))
                with pytest.raises(SourceError, match="No space left"):
                    for at in places:
                        memory.write_at(at, b"\x01")
                        expected[at] = 1
            for at in range(0, SIZE, 4096):
                assert memory.read_at(at, 4096) == expected[at : at + 4096]

    check(child)


@pytest.mark.parametrize("successor", [True, False])
def test_a_region_ends_without_its_guardian(successor: bool) -> None:
    """It has just died, or nobody could be put in its place."""

    def child() -> None:
        for _ in range(3):
            memory = paging.open(DATA, **BOUNDED)
            with contextlib.ExitStack() as stack:
                if not successor:
                    failed = stack.enter_context(inject(memory, "spawn", "errno", errno.EAGAIN, times=1 << 20))
                died = stack.enter_context(inject(memory, "tick", "die"))
                while not died.struck_count or not (successor or failed.struck_count):
                    time.sleep(0.001)
                memory.close()

    check(child)


def test_a_stall_is_named() -> None:
    def child() -> None:
        with (
            paging.open(DATA, **BOUNDED, stall_s=0.1, name="slow one") as memory,
            inject(memory, "filled", "delay", 400_000),
        ):
            assert memory[0] == DATA[0]
            assert memory.stats().stall_count == 1

    ended = run(child)
    assert not ended.code
    assert re.search(r"has waited 0\.\d s for offset 0 of region 'slow one'", ended.stderr)


@pytest.mark.parametrize("step", ["claimed", "installed"])
def test_a_mark_while_a_write_fetches_its_page(step: Point) -> None:
    """The write comes after the mark, or shows before the next one; no later one shows it again."""

    def child() -> None:
        with paging.open(DATA, **WRITABLE) as memory:
            with inject(memory, step, "delay", 100_000) as struck:
                # Not by an access, which would hold the GIL meanwhile.
                writer = threading.Thread(target=libc.memset, args=[memory._control.base + 8192, 7, 10])
                writer.start()
                while not struck.struck_count:
                    time.sleep(0.001)
                memory.mark()
                writer.join()
            if step == "claimed":
                assert memory.dirty() == [(8192, 4096)]
            memory.mark()
            memory.evict()
            assert memory.dirty() == []
            assert memory[8192:8203] == bytes([7]) * 10 + DATA[8202:8203]

    check(child)


def test_a_write_between_look_and_move_is_not_lost() -> None:
    """The window that the count of faults closes: without it the write is lost."""

    def child() -> None:
        with paging.open(DATA, **WRITABLE) as memory:
            for _ in range(5):
                memory.evict()
                assert memory[0] is not None
                before = memory[0]
                with inject(memory, "before_take", "delay", 100_000):
                    evicting = threading.Thread(target=memory.evict, args=(0, 1))
                    evicting.start()
                    time.sleep(0.03)
                    memory[0] = before ^ 255
                    evicting.join()
                assert memory.state_of(0) == "absent"
                assert memory[0] == before ^ 255
                assert memory.dirty() == [(0, 4096)]

    check(child)


@pytest.mark.parametrize("kind", ["memory", "worker"])
@pytest.mark.parametrize("unit", ["4 KiB", "64 KiB"])
def test_what_others_fault_meanwhile_makes_no_page_a_written_one(kind: str, unit: str, tmp_path: Path) -> None:
    """Between the look and the move others fault, which may be writes to what looked clean; and one of them is."""

    class InWorker(FileSource):
        in_worker = True

    path = tmp_path / "data"
    path.write_bytes(DATA)

    def child() -> None:
        with paging.open(
            DATA if kind == "memory" else InWorker(path), access="c", unit=unit, prefetch_units=0
        ) as memory:
            size = memory.unit_bytes
            for written in (None, 3 * 4096 % size, 3 * size - 4096):
                memory[0 : 2 * size] = bytes(2 * size)  # nowhere else, and not written since the mark
                assert memory[2 * size] == DATA[2 * size]  # in the source or the swap file, and never written
                memory.mark()
                with inject(memory, "before_take", "delay", 20_000, times=8):
                    evicting = threading.Thread(target=memory.evict, args=(0, 3 * size))
                    evicting.start()
                    time.sleep(0.005)
                    if written is not None:
                        memory[written] = 255
                    while evicting.is_alive():
                        mmap.mmap(-1, 4096).write(b"a fault of this process")
                        time.sleep(0.001)
                assert memory.stats().suspicious_count
                assert memory.dirty() == ([] if written is None else [(written, 4096)])
                if written is not None:
                    assert memory[written] == 255

    check(child)


def test_what_the_program_dropped_does_not_keep_who_looks_before_an_eviction(tmp_path: Path) -> None:
    """Nobody waits for a hole to be filled, and the pages beside it are compared."""
    path = tmp_path / "data"
    path.write_bytes(DATA)

    def child() -> None:
        with paging.open(path, direct=True, access="c", unit="64 KiB", prefetch_units=0, handlers=1) as memory:
            assert memory[0] == DATA[0]
            memory.madvise(mmap.MADV_DONTNEED, 4096, 8192)
            with inject(memory, "before_take", "delay", 20_000):
                evicting = threading.Thread(target=memory.evict, args=(0, 1))
                evicting.start()
                while evicting.is_alive():
                    mmap.mmap(-1, 4096).write(b"a fault of this process")
                    time.sleep(0.001)
            assert memory.stats().suspicious_count == 1
            assert memory.dirty() == []
            assert memory[:65536] == DATA[:65536]

    check(child)


def test_rules_that_make_no_sense() -> None:
    with paging.open(DATA) as memory:
        for bad in [("nowhere", "die", 0), ("copy", "explode", 0), ("copy", "partial", 5), ("copy", "errno", 99999)]:
            with pytest.raises(ValueError), inject(memory, *bad):  # type: ignore[arg-type]
                pass


def test_the_fixture(page_fault_injection: Callable[..., Injection], in_child: Callable[..., Any]) -> None:
    memory = paging.open(DATA)
    rule = page_fault_injection(memory, "copy", "errno", errno.EAGAIN)
    assert rule.struck_count == 0
    assert in_child(os.getpid) != os.getpid()
    memory.close()


def test_a_fault_on_a_unit_that_is_leaving_waits_and_is_served() -> None:
    def child() -> None:
        with paging.open(DATA, **WRITABLE) as memory:
            memory[0] = 7
            with inject(memory, "taken", "delay", 200_000):
                leaving = threading.Thread(target=memory.evict, args=(0, 1))
                leaving.start()
                while memory.state_of(0) != "evicting":
                    pass
                time.sleep(0.05)
                assert memory[0] == 7
                leaving.join()

    check(child)


def test_the_background_leaves_faults_to_the_handlers() -> None:
    def child() -> None:
        with paging.open(DATA, **WRITABLE) as memory:
            for at in range(0, SIZE, 4096):
                memory[at] = 1
            with inject(memory, "move_out", "errno", errno.EAGAIN, times=20_000):
                for at in range(0, SIZE, 4096):
                    memory.will_need(at, 4096)
                    assert memory[(at * 7 + 4096) % SIZE] == 1

    check(child)


def test_an_older_state_in_the_swap_file_is_forgotten() -> None:
    def child() -> None:
        with paging.open(DATA, **WRITABLE) as memory:
            for how in (memory.mark, memory.dirty):
                for read_first in (False, True):  # written by the fault that filled it, or later, without one
                    memory[0] = 1
                    memory.evict()
                    if read_first:
                        assert memory[0] == 1
                    memory[0] = 2
                    how()
                    memory.evict()
                    assert memory[0] == 2
            memory[0] = 3
            memory.evict()
            memory[0] = 4
            with inject(memory, "swap_write", "errno", errno.ENOSPC), contextlib.suppress(paging.PagingError):
                memory.evict()
            memory.evict()
            assert memory[0] == 4

    check(child)
