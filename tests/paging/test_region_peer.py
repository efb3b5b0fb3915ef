"""Regions over a page server, which the C handler asks by itself."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from userfault import paging
from userfault.paging import Region, RetryPolicy, SourceError, Store, wire
from userfault.paging.callables import CallableSource
from userfault.paging.inject import inject
from userfault.paging.memory import MemorySource, MemoryStore
from userfault.paging.pytest_plugin import check
from userfault.paging.tcp import PageServer
from userfault.paging.wire import Kind, Message

pytestmark = pytest.mark.usefixtures("can_page")

SIZE = (1 << 20) + 777
DATA = random.Random(1).randbytes(SIZE)


@contextmanager
def serving(source: Any, address: str = "127.0.0.1:0") -> Iterator[PageServer]:
    """In a thread of this process: it never touches the region."""
    with PageServer.listen(source, address, writable=isinstance(source, Store)) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.close()
        thread.join(60)


@contextmanager
def acting(act: Callable[[socket.socket, Message], None]) -> Iterator[str]:
    """A page server that says READY, and then whatever `act` does with each request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def one(connection: socket.socket) -> None:
            with connection:
                wire.receive(connection)
                wire.send(connection, Message(Kind.READY, wire.VERSION, SIZE, wire.MAGIC))
                while request := wire.receive(connection):
                    act(connection, request)

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def looked_at(memory: Region, at: int) -> int:
    """Without the interpreter's lock, as the server is in this process."""
    return memory.read_at(at, 1)[0]


@pytest.mark.parametrize("unit", ["4 KiB", "64 KiB"])
@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_reads_are_the_source(mode: str, unit: str) -> None:
    def child() -> None:
        with serving(MemorySource(DATA)) as server:
            url = f"tcp://{server.address}"
            with paging.open(url, mode=mode, unit=unit, resident="256 KiB") as memory:  # type: ignore[arg-type]
                assert memory.read_at(0, SIZE) == DATA
                pick = random.Random(2)
                for _ in range(50):
                    at = pick.randrange(SIZE)
                    assert looked_at(memory, at) == DATA[at]
                stats = memory.stats()
                assert (stats.source_kind, stats.poison_count, stats.worker_restart_count) == ("page server", 0, 0)

    check(child)


def test_over_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here ({error}): enable it with sysctl net.ipv6.conf.lo.disable_ipv6=0")

    def child() -> None:
        with (
            serving(MemorySource(DATA), "[::1]:0") as server,
            paging.open(f"tcp://{server.address}") as memory,
        ):
            assert memory.read_at(0, SIZE) == DATA

    check(child)


def test_what_was_flushed_is_at_the_server_and_is_read_again() -> None:
    def child() -> None:
        held, oracle = bytearray(DATA), bytearray(DATA)
        with serving(MemoryStore(held)) as server, paging.open(f"tcp://{server.address}", access="r+") as memory:
            for at in (0, 70_000, SIZE - 1):
                oracle[at] ^= 1
                memory.write_at(at, oracle[at : at + 1])
            memory.flush()
            assert held == oracle
            memory.evict()
            assert memory.read_at(0, SIZE) == oracle

    check(child)


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_a_server_that_was_started_anew_is_found(mode: str) -> None:
    def child() -> None:
        with serving(MemorySource(DATA)) as server:
            memory = paging.open(f"tcp://{server.address}", mode=mode, prefetch_units=0)  # type: ignore[arg-type]
            assert looked_at(memory, 0) == DATA[0]
        with serving(MemorySource(DATA), str(server.address)):
            assert memory.read_at(0, SIZE) == DATA
            assert not memory.stats().poison_count
            memory.close()

    check(child)


def test_a_server_that_is_gone_is_an_error_until_it_is_back() -> None:
    def child() -> None:
        with serving(MemorySource(DATA)) as server:
            retry = RetryPolicy(attempt_count=2, first_wait_s=0.001)
            memory = paging.open(f"tcp://{server.address}", retry=retry, prefetch_units=0)
        with pytest.raises(SourceError, match="connecting to the page server: Connection refused"):
            memory.read_at(0, 1)
        with serving(MemorySource(DATA), str(server.address)):
            assert memory.read_at(0, SIZE) == DATA
            memory.close()

    check(child)


def test_another_size_is_an_error() -> None:
    def child() -> None:
        with serving(MemorySource(DATA)) as server:
            memory = paging.open(f"tcp://{server.address}", prefetch_units=0)
        with serving(MemorySource(DATA + b"x"), str(server.address)):
            with pytest.raises(SourceError, match="another size"):
                memory.read_at(0, 1)
            memory.close()

    check(child)


def test_an_error_of_the_far_end_arrives_with_its_traceback() -> None:
    def failing(offset: int, view: memoryview) -> None:
        if offset:
            raise KeyError("no such chunk")
        view[:] = b"x" * len(view)

    def child() -> None:
        with (
            serving(CallableSource(failing, SIZE)) as server,
            paging.open(f"tcp://{server.address}", prefetch_units=0) as memory,
        ):
            with pytest.raises(SourceError, match="KeyError: 'no such chunk'") as caught:
                memory.read_at(100_000, 1)
            assert 'raise KeyError("no such chunk")' in caught.value.details
            assert looked_at(memory, 0) == ord("x")

    check(child)


def test_a_damaged_page_is_read_again() -> None:
    def child() -> None:
        answers = iter([b"damaged!"])

        def act(connection: socket.socket, request: Message) -> None:
            data = DATA[request.offset_bytes : request.offset_bytes + request.length_bytes]
            sent = next(answers, b"") + data
            message = Message(Kind.DATA, request.id, request.offset_bytes, wire.checksum(data), len(data))
            wire.send(connection, message, sent[: len(data)])

        with acting(act) as url, paging.open(url, prefetch_units=0) as memory:
            assert memory.read_at(0, 100) == DATA[:100]
            assert memory.stats().retry_count == 1

    check(child)


def test_a_silent_server_is_given_up() -> None:
    def child() -> None:
        retry = RetryPolicy(attempt_count=2, first_wait_s=0.001)
        with (
            acting(lambda connection, request: None) as url,
            paging.open(url, timeout_s=0.5, retry=retry, prefetch_units=0) as memory,
        ):
            with pytest.raises(SourceError, match="reading from the page server: Connection timed out"):
                memory.read_at(0, 1)
            assert memory.stats().retry_count == 1

    check(child)


def test_a_region_closes_while_a_server_is_silent() -> None:
    def child() -> None:
        with acting(lambda connection, request: None) as url:
            memory = paging.open(url, timeout_s=1000.0)
            memory.will_need()
            time.sleep(0.02)
            memory.close()

    check(child, deadline_s=60)


def test_a_handler_dies_between_question_and_answer() -> None:
    def child() -> None:
        with (
            serving(MemorySource(DATA)) as server,
            paging.open(f"tcp://{server.address}", prefetch_units=0) as memory,
        ):
            expected = hashlib.sha256(DATA).digest()
            for skip in (0, 3):
                with inject(memory, "source_read", "die", skip=skip) as injection:
                    # It lets go of the interpreter's lock.
                    assert hashlib.sha256(memory).digest() == expected
                    assert injection.struck_count == 1
                memory.evict()
            assert memory.stats().handler_restart_count == 2

    check(child)
