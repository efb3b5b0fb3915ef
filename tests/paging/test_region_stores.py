"""Regions over sources and stores that live in a worker: what was flushed is what is read again."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from userfault import paging
from userfault.paging import RetryPolicy
from userfault.paging.pytest_plugin import check
from userfault.paging.source import SourceError
from userfault.paging.tcp import HELLO
from userfault.paging.worker import Worker
from userfault.paging.zstd import ZstdSource, ZstdStore, compress_file

pytestmark = pytest.mark.usefixtures("can_page")

UNIT = 65536
SIZE = 20 * UNIT + 777


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(random.Random(1).randbytes(SIZE))
    compress_file(tmp_path / "data", tmp_path / "data.zst", frame_bytes=3 * UNIT, level=1)
    return tmp_path / "data.zst"


@pytest.mark.parametrize("resident", ["256 KiB", None])
@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_what_was_flushed_to_a_store_with_a_cache_is_read_again(path: Path, mode: str, resident: str | None) -> None:
    def child() -> None:
        oracle = bytearray((path.parent / "data").read_bytes())
        pick = random.Random(2)
        with paging.open(path, access="r+", resident=resident, mode=mode) as memory:  # type: ignore[arg-type]
            assert memory[:] == oracle
            for _round in range(5):
                for _ in range(20):
                    at = pick.randrange(SIZE)
                    memory[at] = oracle[at] = pick.randrange(256)
                memory.flush()
                memory.evict()
                assert memory[:] == oracle
        with ZstdSource(path) as source:
            buffer = bytearray(SIZE)
            source.read_into(0, memoryview(buffer))
            assert buffer == oracle

    check(child)


def test_a_worker_that_dies_with_unflushed_writes_makes_the_flush_fail_and_the_next_one_whole(path: Path) -> None:
    def child() -> None:
        oracle = bytearray((path.parent / "data").read_bytes())
        with paging.open(path, access="r+") as memory:
            memory[0] = oracle[0] = oracle[0] ^ 1
            memory.flush()
            memory[UNIT] = oracle[UNIT] = oracle[UNIT] ^ 1
            assert memory._store and memory._worker
            # As in the middle of a flush: the worker has acknowledged a page, which is in its memory only.
            memory._store.write_from(UNIT, memoryview(oracle)[UNIT : UNIT + 4096])
            os.kill(memory._worker.pid, signal.SIGKILL)
            with pytest.raises(SourceError, match="may be lost"):
                memory.flush()
            memory.flush()
            memory.evict()
            assert memory[:] == oracle

    check(child)


@pytest.mark.parametrize("is_atomic", [True, False])
def test_half_of_a_flush_whose_owner_died_is_dropped_where_flushes_are_atomic(path: Path, is_atomic: bool) -> None:
    store = ZstdStore(path)
    store.sync_is_atomic = is_atomic
    with Worker(store) as worker:
        worker.wait_ready()
        with worker.store() as remote:
            remote.write_from(0, memoryview(b"half"))
    with ZstdSource(path) as source:
        buffer = bytearray(4)
        source.read_into(0, memoryview(buffer))
        assert (buffer == b"half") is not is_atomic


def test_the_side_door_is_for_this_user_only(path: Path) -> None:
    if os.geteuid():
        pytest.skip("another user is needed to try: run as root")
    with Worker(ZstdStore(path)) as worker:
        worker.wait_ready()
        stranger = (
            "import os, socket, sys\n"
            "os.setuid(65534)\n"
            "sock = socket.socket(socket.AF_UNIX)\n"
            f"sock.connect('\\0{worker._door}')\n"
            "try:\n"
            f"    sock.sendall({HELLO.pack()!r})\n"
            "    print(len(sock.recv(100)))\n"
            "except (ConnectionResetError, BrokenPipeError): print(0)\n"
        )
        done = subprocess.run([sys.executable, "-c", stranger], capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("0\n", "")
        with worker.store() as store:
            assert store.size_bytes == SIZE


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_after_a_workers_death_the_programs_own_threads_ask_its_successor(mode: str) -> None:
    """In the program's table of descriptors the socket still leads to the dead one."""

    def numbered(offset: int, view: memoryview) -> None:
        view[:] = bytes([offset // UNIT]) * len(view)

    def child() -> None:
        with paging.open(numbered, size_bytes=9 * UNIT, mode=mode, prefetch_units=0) as memory:  # type: ignore[arg-type]
            assert memory.read_at(0, 1) == b"\0"
            assert memory._worker
            os.kill(memory._worker.pid, signal.SIGKILL)
            memory.ensure(UNIT, 1)
            assert memory.read_at(2 * UNIT, 1) == b"\2"
            assert memory[3 * UNIT] == 3
            assert memory.stats().worker_restart_count == 1
            # Closed, or another socket by now: it must not get what is meant for the worker.
            ours, theirs = socket.socketpair()
            os.dup2(ours.fileno(), memory._control.worker_fd)
            assert memory.read_at(4 * UNIT, 1) == b"\4"
            assert memory[5 * UNIT] == 5
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)

    check(child)


def test_a_transient_error_is_tried_again_and_never_seen() -> None:
    def child() -> None:
        attempts: list[int] = []

        def flaky(offset: int, view: memoryview) -> None:
            attempts.append(offset)
            if len(attempts) < 3:
                raise ConnectionResetError(errno.ECONNRESET, "peer")
            view[:] = bytes([len(attempts)]) * len(view)

        retry = RetryPolicy(first_wait_s=0.001)
        with paging.open(flaky, size_bytes=UNIT, retry=retry) as memory:
            assert memory[UNIT - 1] == 3
            assert not memory.stats().error_count

    check(child)


def test_a_source_that_never_returns_is_an_error_that_shows_where_it_stands() -> None:
    def sleepy(offset: int, view: memoryview) -> None:
        if offset:
            time.sleep(1000)
        view[:] = b"x" * len(view)

    def child() -> None:
        retry = RetryPolicy(deadline_s=0.2)
        with paging.open(sleepy, size_bytes=2 * UNIT, retry=retry, prefetch_units=0) as memory:
            with pytest.raises(SourceError, match=r"did not return within 0\.2 s") as caught:
                memory.read_at(UNIT, 1)
            assert "time.sleep(1000)" in caught.value.details
            assert memory[0] == ord("x")

    check(child)


def test_data_that_end_inside_a_page_are_followed_by_zeros() -> None:
    def child() -> None:
        with paging.open(lambda offset, length: b"x" * length, size_bytes=UNIT + 100) as memory:
            assert memory[:] == b"x" * (UNIT + 100)
            # What the mapping has beyond the buffer's end, up to the end of its page.
            rest = ctypes.string_at(memory._control.base + UNIT + 100, 4096 - 100)
            assert rest == bytes(4096 - 100)

    check(child)
