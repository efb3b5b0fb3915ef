"""The engine that answers requests from a source, with peers that only take notes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from userfault.paging import wire
from userfault.paging.retry import NO_RETRY, RetryPolicy
from userfault.paging.server import Engine, Peer
from userfault.paging.source import SourceError, Store
from userfault.paging.wire import Kind, Message, WireError

TIMEOUT_S = 20.0


class Data(Store):
    """1000 numbered bytes; each call first goes through `gate`, and is noted."""

    name, size_bytes = "data", 1000

    def __init__(self, gate: Callable[[int, int], object] = lambda offset, length: None) -> None:
        self.gate = gate
        self.reads: list[tuple[int, int]] = []
        self.written: dict[int, bytes] = {}
        self.flush_count = 0

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self.reads.append((offset_bytes, len(view)))
        self.gate(offset_bytes, len(view))
        view[:] = bytes(at % 256 for at in range(offset_bytes, offset_bytes + len(view)))

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self.written[offset_bytes] = bytes(view)

    def sync(self) -> None:
        self.flush_count += 1


class Notes(Peer):
    """A peer that keeps what it is answered; `fills` are the pages that were installed for it."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes | SourceError] = {}
        self.fills: list[int] = []
        self.changed = threading.Condition()

    def fill(self, address: int, view: memoryview, flags: int) -> None:
        self.fills.append(address)

    def send(self, number: int, message: Message, payload: memoryview | bytes = b"") -> None:
        with self.changed:
            assert number not in self.answers
            self.answers[number] = bytes(payload)
            self.changed.notify_all()

    def send_error(self, number: int, error: SourceError) -> None:
        with self.changed:
            assert number not in self.answers
            self.answers[number] = error
            self.changed.notify_all()

    def wait(self, count: int) -> dict[int, bytes | SourceError]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.answers) >= count, TIMEOUT_S)
        return self.answers

    def error(self, number: int) -> SourceError:
        answer = self.answers[number]
        assert isinstance(answer, SourceError)
        return answer


@contextmanager
def serving(source: Data, policy: RetryPolicy = NO_RETRY, *, writable: bool = True) -> Iterator[tuple[Engine, Notes]]:
    engine = Engine(source.open(), policy, writable=writable)
    yield engine, Notes()
    engine.close()


def ask(engine: Engine, peer: Peer, number: int, offset: int, length: int, kind: Kind = Kind.READ) -> None:
    engine.submit(peer, Message(kind, number, offset, number * 4096, length), bytearray())


def test_requests_that_pile_up_side_by_side_are_read_at_once() -> None:
    busy, go_on = threading.Event(), threading.Event()

    def gate(offset: int, length: int) -> None:
        busy.set()
        assert go_on.wait(TIMEOUT_S)

    source = Data(gate)
    source.coalesce_bytes, source.coalesce_gap_bytes = 100, 5
    with serving(source) as (engine, peer):
        ask(engine, peer, 1, 500, 10)
        assert busy.wait(TIMEOUT_S)
        for number, offset in enumerate([20, 0, 35, 10, 700], 2):
            ask(engine, peer, number, offset, 10)
        go_on.set()
        answers = peer.wait(6)
        assert source.reads == [(500, 10), (0, 45), (700, 10)]
        assert answers[4] == bytes(range(35, 45))


def test_a_request_that_fails_does_not_spoil_its_neighbours() -> None:
    busy, go_on = threading.Event(), threading.Event()

    def gate(offset: int, length: int) -> None:
        busy.set()
        assert go_on.wait(TIMEOUT_S)
        if offset <= 10 < offset + length:
            raise KeyError("bad sector")

    source = Data(gate)
    source.coalesce_bytes = 100
    with serving(source) as (engine, peer):
        ask(engine, peer, 1, 500, 10)
        assert busy.wait(TIMEOUT_S)
        for number, offset in enumerate([0, 10, 20], 2):
            ask(engine, peer, number, offset, 10)
        go_on.set()
        answers = peer.wait(4)
        assert (answers[2], answers[4]) == (bytes(range(10)), bytes(range(20, 30)))
        assert "bad sector" in peer.error(3).cause


def test_what_was_reported_late_is_not_installed_later() -> None:
    go_on, returned = threading.Event(), threading.Event()

    def gate(offset: int, length: int) -> None:
        assert go_on.wait(TIMEOUT_S)
        returned.set()

    with serving(Data(gate), RetryPolicy(deadline_s=0.5)) as (engine, peer):
        ask(engine, peer, 1, 0, 10, Kind.FILL)
        peer.wait(1)
        assert "did not return within 0.5 s" in peer.error(1).cause
        go_on.set()
        assert returned.wait(TIMEOUT_S)
        ask(engine, peer, 2, 0, 10, Kind.FILL)
        peer.wait(2)
    assert peer.fills == [2 * 4096]


def test_when_all_threads_are_stuck_that_is_said() -> None:
    go_on = threading.Event()
    with serving(Data(lambda offset, length: go_on.wait(TIMEOUT_S)), RetryPolicy(deadline_s=0.02)) as (engine, peer):
        for number in range(1, 8):
            ask(engine, peer, number, 0, 10)
            peer.wait(number)
        # One thread and four replacements.
        assert "did not return" in peer.error(5).cause
        assert "never got its turn" in peer.error(6).cause
        assert peer.error(7).transient
        go_on.set()


def test_a_page_that_was_damaged_on_its_way_is_not_stored() -> None:
    source = Data()
    with serving(source) as (engine, peer):
        engine.submit(peer, Message(Kind.WRITE_BACK, 1, 0, wire.checksum(b"abc"), 3), bytearray(b"abd"))
        peer.wait(1)
        assert "damaged on its way" in peer.error(1).cause
    assert source.written == {}


def test_what_was_written_is_flushed_in_the_end() -> None:
    source = Data()
    with serving(source) as (engine, peer):
        engine.submit(peer, Message(Kind.WRITE_BACK, 1, 5, wire.checksum(b"abc"), 3), bytearray(b"abc"))
    assert source.written == {5: b"abc"}
    assert source.flush_count == 1
    assert peer.answers == {1: b""}


def test_a_store_that_is_served_for_reading_is_neither_written_nor_flushed() -> None:
    source = Data()
    with serving(source, writable=False) as (engine, peer):
        engine.submit(peer, Message(Kind.WRITE_BACK, 1, 5, wire.checksum(b"abc"), 3), bytearray(b"abc"))
        ask(engine, peer, 2, 0, 0, Kind.FLUSH)
        peer.wait(2)
        assert all("not a store" in peer.error(number).cause for number in (1, 2))
    assert (source.written, source.flush_count) == ({}, 0)


def test_what_is_no_request_is_refused() -> None:
    with serving(Data()) as (engine, peer):
        for message in (Message(Kind.DONE), Message(Kind.READ, length_bytes=wire.PAYLOAD_BYTES_MAX + 1)):
            with pytest.raises(WireError):
                engine.submit(peer, message, bytearray())


def test_several_threads_serve_a_source_that_allows_it() -> None:
    together = threading.Barrier(3)
    source = Data(lambda offset, length: together.wait(TIMEOUT_S))
    source.parallel_count = 3
    with serving(source) as (engine, peer):
        for number in range(1, 4):
            ask(engine, peer, number, number, 1)
        assert all(isinstance(answer, bytes) for answer in peer.wait(3).values())
