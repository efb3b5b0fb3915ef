"""Workers as their owner sees them; what they do to faults is tested with regions."""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from userfault.paging import wire
from userfault.paging.callables import CallableSource
from userfault.paging.client import Connection
from userfault.paging.retry import RetryPolicy
from userfault.paging.source import Source, SourceError, Store
from userfault.paging.wire import Kind, Message, WireError
from userfault.paging.worker import Worker

TIMEOUT_S = 20.0


@contextmanager
def asking(worker: Worker) -> Iterator[Connection]:
    connection = Connection(socket.socket(fileno=os.dup(worker.fileno())), TIMEOUT_S)
    try:
        yield connection
    finally:
        connection.close()


def read(connection: Connection, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    connection.read(offset, memoryview(buffer), TIMEOUT_S)
    return bytes(buffer)


def test_a_closure_sees_what_it_closed_over() -> None:
    table = {0: b"zero", 4: b"four"}
    with Worker(CallableSource(lambda offset, length: table[offset], 8)) as worker:
        worker.wait_ready()
        assert (worker.size_bytes, worker.is_store) == (8, False)
        with asking(worker) as connection:
            assert read(connection, 4, 4) == b"four"


def test_a_read_beyond_the_end_is_filled_with_zeros() -> None:
    with Worker(CallableSource(lambda offset, length: b"x" * length, 10)) as worker:
        worker.wait_ready()
        with asking(worker) as connection:
            assert read(connection, 8, 8) == b"xx" + bytes(6)
            assert read(connection, 4096, 8) == bytes(8)


def test_a_source_that_hangs_is_reported_with_its_stack_and_others_go_on() -> None:
    def fill(offset: int, view: memoryview) -> None:
        if offset == 0:
            time.sleep(1000)
        view[:] = b"x" * len(view)

    with Worker(CallableSource(fill, 100), policy=RetryPolicy(deadline_s=0.2)) as worker:
        worker.wait_ready()
        with asking(worker) as connection:
            with pytest.raises(SourceError, match=r"did not return within 0\.2 s; allow more time.*\n") as caught:
                read(connection, 0, 10)
            assert "time.sleep(1000)" in caught.value.details
            assert read(connection, 10, 1) == b"x"


def test_a_source_that_is_not_to_be_pickled_is_refused_at_once() -> None:
    lock = threading.Lock()
    with pytest.raises(SourceError, match=r"cannot pickle.*open files, locks and connections in acquire\(\)"):
        Worker(CallableSource(lambda offset, length: lock, 10))


def test_an_open_source_does_not_travel() -> None:
    with CallableSource(lambda offset, length: b"", 10) as source, pytest.raises(SourceError, match="before that"):
        Worker(source)


def test_what_fails_in_acquire_is_raised_by_wait_ready() -> None:
    class Refusing(Source):
        name = "refusing"

        def acquire(self) -> None:
            raise PermissionError(13, "no entry", "/secret")

        def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
            raise AssertionError

    with (
        Worker(Refusing()) as worker,
        pytest.raises(SourceError, match=r"open refusing failed: PermissionError: .*'/secret'; check who may read"),
    ):
        worker.wait_ready()


def test_a_module_that_the_worker_cannot_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text("def fill(offset, view): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import elsewhere  # type: ignore[import-not-found]

    source = CallableSource(elsewhere.fill, 10)
    with Worker(source) as worker:
        worker.wait_ready()
    monkeypatch.undo()
    with (
        Worker(source) as worker,
        pytest.raises(SourceError, match=r"No module named 'elsewhere'.*must be able to import"),
    ):
        worker.wait_ready()


def test_a_module_that_opens_its_source_when_it_is_imported_does_not_start_workers_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eager.py").write_text(
        "from userfault.paging.callables import CallableSource\n"
        "from userfault.paging.worker import Worker\n"
        "def fill(offset, view): pass\n"
        "with Worker(CallableSource(fill, 10)) as worker: worker.wait_ready()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"while it is imported.*open it in a function"):
        importlib.import_module("eager")


def test_a_worker_that_dies_while_it_opens_is_reported() -> None:
    class Deadly(Source):
        name = "deadly"

        def acquire(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
            raise AssertionError

    worker = Worker(Deadly())
    with pytest.raises(SourceError, match=r"open deadly failed: the worker \(pid \d+\) was killed by signal 9"):
        worker.wait_ready()
    worker.kill()


def test_a_killed_worker_is_noticed_by_whoever_waits() -> None:
    worker = Worker(CallableSource(lambda offset, length: os.kill(os.getpid(), signal.SIGKILL), 10))
    worker.wait_ready()
    with asking(worker) as connection, pytest.raises((WireError, ConnectionResetError)):
        read(connection, 0, 1)
    assert "signal 9" in worker.how_it_ended()
    worker.kill()


@pytest.mark.parametrize("source", ["lambda offset, length: b''", "stuck"])
def test_a_worker_ends_when_its_owner_is_killed(source: str) -> None:
    """Also one whose source keeps the interpreter to itself."""
    owner = (
        "from userfault.paging.worker import Worker\n"
        "from userfault.paging.callables import CallableSource\n"
        "from userfault.paging.retry import RetryPolicy\n"
        "from userfault.paging import wire\n"
        "import os, sys\n"
        "def stuck(offset, length):\n"
        "    import ctypes\n"
        "    print('stuck', flush=True)\n"
        "    ctypes.PyDLL(None).sleep(1000)\n"
        f"worker = Worker(CallableSource({source}, 10), policy=RetryPolicy(deadline_s=0.2))\n"
        "worker.wait_ready()\n"
        "print(worker.pid, flush=True)\n"
        "wire.send(worker.socket, wire.Message(wire.Kind.READ, 1, length_bytes=1))\n"
        f"assert {source!r} != 'stuck' or sys.stdin.readline()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin and run.stdout
        pid = int(run.stdout.readline())
        if source == "stuck":
            assert run.stdout.readline() == "stuck\n"
            run.stdin.write("go\n")
            run.stdin.flush()
        assert run.wait(TIMEOUT_S) == -signal.SIGKILL
        end_s = time.monotonic() + TIMEOUT_S
        while os.path.exists(f"/proc/{pid}/stat") and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < end_s
            time.sleep(0.005)


def test_writes_that_were_sent_are_finished_after_the_owner_has_closed(tmp_path: Path) -> None:
    class Slow(Store):
        name, size_bytes = "slow", 100

        def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
            raise AssertionError

        def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
            time.sleep(0.05)
            (tmp_path / str(offset_bytes)).write_bytes(view)

        def release(self) -> None:
            (tmp_path / "released").touch()

    with Worker(Slow()) as worker:
        worker.wait_ready()
        assert worker.is_store
        for offset in range(4):
            message = Message(Kind.WRITE_BACK, offset + 1, offset, wire.checksum(b"x"), 1)
            wire.send(worker.socket, message, b"x")
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3", "released"]


def test_an_owner_that_ends_with_answers_unread_is_an_end_like_any_other() -> None:
    worker = Worker(CallableSource(lambda offset, length: b"x" * length, 8))
    worker.wait_ready()
    wire.send(worker.socket, Message(Kind.READ, 1, 0, 0, 8))
    assert select.select([worker.socket], [], [], TIMEOUT_S)[0]
    worker.socket.close()
    assert worker.how_it_ended(TIMEOUT_S).endswith("ended with exit code 0")


def test_a_source_that_is_written_is_no_store() -> None:
    with Worker(CallableSource(lambda offset, length: b"", 10)) as worker:
        worker.wait_ready()
        with asking(worker) as connection, pytest.raises(SourceError, match="not a store") as caught:
            connection.write_back(0, memoryview(b"x"), TIMEOUT_S)
        assert caught.value.operation == "write"
