"""What a program may do to the memory that it was given, and what then happens: defined, and never silent zeros."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from userfault import paging
from userfault.paging import PagingError
from userfault.paging.inject import inject
from userfault.paging.pytest_plugin import check, run

pytestmark = pytest.mark.usefixtures("can_page")

SIZE = 256 << 10
DATA = random.Random(11).randbytes(SIZE)
MODES = ("threads", "sigbus")

libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2


def peek(address: int, count: int = 16) -> bytes:
    return ctypes.string_at(address, count)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    return file


@pytest.mark.parametrize("mode", MODES)
def test_fork_the_child_has_no_such_memory(mode: str) -> None:
    def child() -> None:
        memory = paging.open(DATA, mode=mode, unit="4 KiB")  # type: ignore[arg-type]
        pid = os.fork()
        if not pid:
            for call in (memory.stats, memory.close, lambda: memory.read_at(0, 1)):
                with pytest.raises(PagingError, match="not in this process"):
                    call()
            # Its own mappings keep out of the range, so that what ends there can't end something of the child's.
            assert libc.mmap(memory._control.base, 4096, 0, 0x100022, -1, 0) == ctypes.c_void_p(-1).value
            sys.stderr.flush()
            print(memory[0])
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSEGV
        assert memory[:] == DATA
        memory.close()

    check(child)


def test_fork_the_childs_end_leaves_the_parents_region_alone() -> None:
    def child() -> None:
        memory = paging.open(DATA, access="c", unit="4 KiB", resident="64 KiB")
        memory[0] = 1
        for _ in range(3):
            done = os.fork()
            if not done:
                sys.exit(0)
            os.waitpid(done, 0)
            memory.evict()
            assert memory[0] == 1
        memory.close()

    check(child)


@pytest.mark.parametrize("mode", MODES)
def test_close_range(path: Path, mode: str) -> None:
    def child() -> None:
        memory = paging.open(path, access="c", mode=mode, unit="4 KiB", resident="64 KiB")  # type: ignore[arg-type]
        memory[0] = DATA[0] ^ 1
        os.closerange(3, 1 << 16)
        # Numbers that were ours name other files now.
        others = [os.open("/dev/zero", os.O_RDWR) for _ in range(40)]
        assert memory[1:] == DATA[1:]
        for at in range(0, SIZE, 4096):
            memory[at] = DATA[at] ^ 1
        for at in range(0, SIZE, 4096):
            assert memory[at] == DATA[at] ^ 1
        assert others
        os._exit(0)

    check_exit(child)


def test_a_descriptor_that_names_another_file_just_before_the_read(path: Path) -> None:
    def child() -> None:
        memory = paging.open(path, mode="sigbus", unit="4 KiB")
        ours = memory._control.source_fd
        zeros = os.open(path.with_name("zeros"), os.O_RDWR | os.O_CREAT)
        os.truncate(zeros, SIZE)
        with inject(memory, "source_read", "delay", 200_000) as struck:
            # Not by an access, which would hold the GIL meanwhile.
            reader = threading.Thread(target=memory.ensure, args=[4096, 1])
            reader.start()
            while not struck.struck_count:
                time.sleep(0.001)
            os.dup2(zeros, ours)
            reader.join(60)
        assert memory[:] == DATA
        os._exit(0)

    check_exit(child)


def check_exit(child: object) -> None:
    """As `check`, for children whose pipe to us is closed as well."""
    ended = run(child)  # type: ignore[arg-type]
    assert (ended.signal, ended.code) == (0, 0), ended.stderr


@pytest.mark.parametrize("mode", MODES)
def test_mremap_what_moved_is_filled_at_its_new_place(path: Path, mode: str) -> None:
    def child() -> None:
        memory = paging.open(path, access="c", mode=mode, unit="4 KiB", resident="64 KiB")  # type: ignore[arg-type]
        base = memory._control.base
        memory[0] = memory[8192] = 200
        memory.evict(0, 4096)
        there = libc.mmap(None, 65536, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert libc.mremap(base, 65536, 65536, MREMAP_MAYMOVE | MREMAP_FIXED, there) == there
        assert peek(there)[0] == 200
        assert peek(there)[1:] == DATA[1:16]
        assert peek(there + 8192)[0] == 200
        assert peek(there + 40_000) == DATA[40_000:40_016]
        assert memory[65536:] == DATA[65536:]
        assert memory.state_of(0) == "gone"
        os._exit(0)

    check_exit(child)


def test_mremap_the_old_place_is_loud() -> None:
    def child() -> None:
        memory = paging.open(DATA, unit="4 KiB")
        there = libc.mmap(None, 65536, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        libc.mremap(memory._control.base, 65536, 65536, MREMAP_MAYMOVE | MREMAP_FIXED, there)
        print(memory[0])

    assert run(child).signal == signal.SIGSEGV


@pytest.mark.parametrize("unit", ["4 KiB", "64 KiB"])
@pytest.mark.parametrize("mode", MODES)
def test_dontneed_drops_what_was_written_since(path: Path, mode: str, unit: str) -> None:
    def child() -> None:
        with paging.open(path, access="c", mode=mode, unit=unit, prefetch_units=0) as memory:  # type: ignore[arg-type]
            memory[0] = memory[5000] = DATA[0] ^ 1
            memory.evict()
            memory[0], memory[70_000] = 7, 7
            memory.madvise(mmap.MADV_DONTNEED, 0, 131_072)
            assert memory[0] == memory[5000] == DATA[0] ^ 1
            assert memory[70_000] == DATA[70_000]
            assert memory[100_000] == DATA[100_000]
            assert memory.stats().refill_count

    check(child)


def test_dontneed_while_it_is_filled_and_read() -> None:
    def child() -> None:
        stop = threading.Event()
        with paging.open(DATA, unit="64 KiB", resident="128 KiB") as memory:

            def drop() -> None:
                while not stop.is_set():
                    memory.madvise(mmap.MADV_DONTNEED, 0, SIZE)

            thread = threading.Thread(target=drop)
            thread.start()
            places = random.Random(1)
            try:
                for _ in range(3000):
                    at = places.randrange(SIZE)
                    assert memory[at] == DATA[at]
            finally:
                stop.set()
                thread.join()

    check(child)


def test_munmap_touching_it_is_sigsegv_and_the_rest_lives() -> None:
    def child() -> None:
        memory = paging.open(DATA, unit="64 KiB", prefetch_units=0)
        base = memory._control.base
        assert memory[70_000] == DATA[70_000]
        libc.munmap(base + 65536 + 4096, 4096)
        assert memory[200_000] == DATA[200_000]
        assert memory[65536] == DATA[65536]
        assert memory[131_071] == DATA[131_071]
        while memory.state_of(65536) == "filling":
            pass
        assert memory.state_of(65536) == "gone"
        # What comes to lie there is not ours to evict.
        libc.mmap(base + 65536 + 4096, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10, -1, 0)
        ctypes.memset(base + 65536 + 4096, 5, 4096)
        memory.evict()
        assert memory[65536 + 4096] == 5
        libc.munmap(base + 65536 + 4096, 4096)
        print(memory[65536 + 4096])

    assert run(child).signal == signal.SIGSEGV


def test_unmapped_while_it_is_filled() -> None:
    def child() -> None:
        with paging.open(DATA, unit="64 KiB", prefetch_units=0) as memory:
            base = memory._control.base
            with inject(memory, "installed", "delay", 100_000):
                # It goes on when the page is there, while its unit is still in work.
                assert memory[0] == DATA[0]
                libc.munmap(base + 4096, 4096)
                while memory.state_of(0) == "filling":
                    time.sleep(0.001)
            assert memory.state_of(0) == "gone"
            assert memory.stats().resident_bytes == 0

    check(child)


def test_daemonize(path: Path, tmp_path: Path) -> None:
    """The usual double fork: the region stays with the process that opened it, the daemon opens its own."""

    def child() -> None:
        memory = paging.open(path, unit="4 KiB")
        result = tmp_path / "result"
        pid = os.fork()
        if not pid:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.closerange(0, 1 << 16)
            with paging.open(path, unit="4 KiB") as own:
                result.write_bytes(own[:])
            os._exit(0)
        os.waitpid(pid, 0)
        while not result.exists() or result.stat().st_size < SIZE:
            pass
        assert result.read_bytes() == memory[:] == DATA

    check(child)


@pytest.mark.parametrize("mode", MODES)
def test_subprocesses_are_not_disturbed(mode: str) -> None:
    def child() -> None:
        with paging.open(DATA, mode=mode, unit="4 KiB", resident="64 KiB") as memory:  # type: ignore[arg-type]
            reader, writer = os.pipe()
            assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\n"
            os.close(writer)
            # The handlers hold no copy of the pipe's other end.
            assert os.read(reader, 1) == b""
            assert memory[:] == DATA

    check(child)


def test_faulthandler_before_and_after() -> None:
    def child() -> None:
        faulthandler.enable()
        memory = paging.open(DATA, mode="sigbus", unit="4 KiB", prefetch_units=0)
        assert memory[0] == DATA[0]
        faulthandler.disable()
        faulthandler.enable()
        time.sleep(0.2)
        assert memory[:] == DATA
        os.kill(os.getpid(), signal.SIGBUS)

    ended = run(child)
    assert ended.signal == signal.SIGBUS
    assert ended.stderr.count("Fatal Python error: Bus error") == 1


def test_a_handler_of_the_program_gets_the_failures(tmp_path: Path) -> None:
    def child() -> None:
        file = tmp_path / "short"
        file.write_bytes(DATA)
        faulthandler.enable()
        memory = paging.open(file, unit="4 KiB")
        os.truncate(file, 0)
        print(memory[0])

    ended = run(child)
    assert ended.signal == signal.SIGBUS
    assert "offset 0 of region" in ended.stderr
    assert "Fatal Python error: Bus error" in ended.stderr
    assert "test_application.py" in ended.stderr


def test_a_sigbus_of_somebody_elses_is_handed_on(tmp_path: Path) -> None:
    def child() -> None:
        file = tmp_path / "mapped"
        file.write_bytes(bytes(8192))
        with paging.open(DATA), open(file, "r+b") as opened:
            mapped = mmap.mmap(opened.fileno(), 8192)
            os.truncate(file, 0)
            print(mapped[0])

    ended = run(child)
    assert ended.signal == signal.SIGBUS
    assert "region" not in ended.stderr


def test_two_regions_do_not_meet() -> None:
    def child() -> None:
        other = bytes(reversed(DATA))
        with (
            paging.open(DATA, unit="4 KiB", resident="64 KiB") as one,
            paging.open(other, unit="4 KiB", mode="sigbus") as two,
        ):
            for at in range(0, SIZE, 1000):
                assert (one[at], two[at]) == (DATA[at], other[at])
            # A region can be the source of another one only through its accessors.
            assert one.read_at(5, 5) == DATA[5:10]

    check(child)
