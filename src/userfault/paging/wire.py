"""The one protocol between whoever waits for pages and whoever has them: a worker process, or a page server over TCP.

Each message is a HEADER of 40 bytes, little-endian, followed by `length_bytes` of payload where `KINDS_WITH_PAYLOAD` has its kind.
Requests carry an `id` that the answer repeats; answers come in any order. The stream is a SOCK_STREAM socket, blocking.

| kind       | asked by | fields                                                           | payload             |
| ---------- | -------- | ---------------------------------------------------------------- | ------------------- |
| START      | owner    | address=MAGIC, id=version                                        | the job, pickled    |
| READY      | worker   | address=MAGIC, id=version, offset=size, status=1 for a store     |                     |
| FILL       | owner    | offset, address, length to fill, flags=WRITE_PROTECT, BACKGROUND |                     |
| READ       | owner    | offset, length                                                   |                     |
| WRITE_BACK | owner    | offset, length, address=CRC-32 of the payload                    | what to store       |
| FLUSH      | owner    |                                                                  |                     |
| DONE       | worker   | answers FILL, WRITE_BACK, FLUSH: length=bytes filled or written  |                     |
| DATA       | worker   | answers READ: offset, address=CRC-32 of the payload              | what was read       |
| ERROR      | worker   | answers any: status=-errno                                       | a SourceError record |
"""

from __future__ import annotations

import enum
import socket
import struct
import time
import zlib
from dataclasses import dataclass

HEADER = struct.Struct("<IIQQQIi")
"""kind u32, id u32, offset u64, address u64, length u64, flags u32, status i32."""

MAGIC = int.from_bytes(b"usrfault", "little")
VERSION = 1

ERROR_BYTES_MAX = 8192
"""An error record is never longer, so that a handler without malloc can keep one in a fixed place."""
PAYLOAD_BYTES_MAX = 64 << 20
"""No payload is longer; a longer one means a stream out of step."""

WRITE_PROTECT = 1
"""FILL with UFFDIO_COPY_MODE_WP: the page arrives clean for dirty tracking."""
BACKGROUND = 4
"""FILL or READ that nobody waits for yet (a prefetch): it gives way to those without."""


class Kind(enum.IntEnum):
    START = 1
    READY = 2
    FILL = 3
    READ = 4
    WRITE_BACK = 5
    FLUSH = 6
    DONE = 7
    DATA = 8
    ERROR = 9


KINDS_WITH_PAYLOAD = frozenset({Kind.START, Kind.WRITE_BACK, Kind.DATA, Kind.ERROR})


class WireError(ConnectionError):
    """The stream ended in the middle of a message, or carries what is not this protocol; it can't be used any more."""


@dataclass(frozen=True)
class Message:
    """One header; the payload travels beside it."""

    kind: Kind
    id: int = 0
    offset_bytes: int = 0
    address: int = 0
    length_bytes: int = 0
    flags: int = 0
    status: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(
            self.kind, self.id, self.offset_bytes, self.address, self.length_bytes, self.flags, self.status
        )

    @staticmethod
    def unpack(data: bytes | bytearray | memoryview) -> Message:
        """Raises WireError for an unknown kind or an impossible length."""
        kind, *fields = HEADER.unpack(data)
        try:
            message = Message(Kind(kind), *fields)
        except ValueError:
            raise WireError(f"message of unknown kind {kind}: the other end speaks another protocol") from None
        if message.payload_bytes > PAYLOAD_BYTES_MAX:
            raise WireError(f"{message.kind.name} with {message.length_bytes} bytes: more than {PAYLOAD_BYTES_MAX}")
        return message

    @property
    def payload_bytes(self) -> int:
        """How many bytes follow the header."""
        return self.length_bytes if self.kind in KINDS_WITH_PAYLOAD else 0


def send(sock: socket.socket, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
    """Send all of it. Raises OSError; afterwards the stream can't be used."""
    assert message.payload_bytes == len(payload)
    sock.sendall(message.pack() + payload if len(payload) <= 4096 else message.pack())
    if len(payload) > 4096:
        sock.sendall(payload)


def block(sock: socket.socket, send_timeout_s: float) -> None:
    """Make `sock` blocking, with a limit on how long the other end may leave what is sent unread: then sends raise OSError."""
    sock.settimeout(None)
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(send_timeout_s), int(send_timeout_s % 1 * 1e6))
    )


def receive(sock: socket.socket, deadline_s: float | None = None) -> Message | None:
    """The next header, or None where the stream ended between two messages.

    Raises TimeoutError at `deadline_s` (of time.monotonic()), WireError for a broken stream.
    """
    data = bytearray(HEADER.size)
    if not receive_into(sock, memoryview(data), deadline_s, may_end=True):
        return None
    return Message.unpack(data)


def receive_payload(sock: socket.socket, message: Message, deadline_s: float | None = None) -> bytearray:
    """What follows the header `message`. Raises TimeoutError, WireError."""
    payload = bytearray(message.payload_bytes)
    receive_into(sock, memoryview(payload), deadline_s)
    return payload


def receive_into(
    sock: socket.socket, view: memoryview, deadline_s: float | None = None, *, may_end: bool = False
) -> bool:
    """Fill `view`; False where the stream ended before its first byte and `may_end` allows it. Raises TimeoutError, WireError."""
    done = 0
    while done < len(view):
        if deadline_s is not None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("no answer within the time allowed")
            sock.settimeout(left_s)
        count = sock.recv_into(view[done:])
        if not count:
            if may_end and not done:
                return False
            raise WireError(f"the stream ended after {done} of {len(view)} bytes")
        done += count
    return True


def checksum(payload: bytes | bytearray | memoryview) -> int:
    """CRC-32, as it travels in `address`."""
    return zlib.crc32(payload)
