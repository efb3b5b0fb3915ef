from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userfault.paging import wire
from userfault.paging.wire import Kind, Message, WireError

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@given(st.sampled_from([Kind.FILL, Kind.READ, Kind.DONE]), U32, U64, U64, U64, U32, st.integers(-(2**31), 2**31 - 1))
def test_headers_survive(kind: Kind, id: int, offset: int, address: int, length: int, flags: int, status: int) -> None:
    message = Message(kind, id, offset, address, length, flags, status)
    assert Message.unpack(message.pack()) == message
    assert len(message.pack()) == wire.HEADER.size == 40


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 3_000_000])
def test_a_payload_arrives_behind_its_header(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    message = Message(Kind.DATA, id=7, length_bytes=size, address=wire.checksum(payload[:size]))
    sender = threading.Thread(target=wire.send, args=(pair[0], message, payload[:size]))
    sender.start()
    received = wire.receive(pair[1], time.monotonic() + 60)
    assert received == message
    assert wire.receive_payload(pair[1], message) == payload[:size]
    sender.join(60)


def test_the_end_between_messages_is_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert wire.receive(pair[1]) is None


def test_the_end_inside_a_message_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(Message(Kind.FLUSH).pack()[:39])
    pair[0].close()
    with pytest.raises(WireError, match="ended after 39 of 40 bytes"):
        wire.receive(pair[1])


def test_silence_times_out(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        wire.receive(pair[1], time.monotonic() + 0.01)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n".ljust(40), "unknown kind"),
        (Message(Kind.DATA, length_bytes=wire.PAYLOAD_BYTES_MAX + 1).pack(), "more than"),
    ],
)
def test_another_protocol_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        Message.unpack(data)
