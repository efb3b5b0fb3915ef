"""The asking side of the wire, for Python code that is no fault handler: several threads may ask at once."""

from __future__ import annotations

import itertools
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace

from . import wire
from .source import SourceError
from .wire import Kind, Message


@dataclass(eq=False)
class _Waiter:
    into: memoryview | None
    answered: threading.Event = field(default_factory=threading.Event)
    message: Message | None = None
    payload: bytes = b""


class Connection:
    """Requests over `sock`, which it owns from here on. A request that gets no answer in time breaks the connection, for all."""

    def __init__(self, sock: socket.socket, send_timeout_s: float) -> None:
        self._sock = sock
        wire.block(sock, send_timeout_s)
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._waiters: dict[int, _Waiter] = {}
        self._broken: Exception | None = None
        self._receiver = threading.Thread(target=self._receive, name="receiver", daemon=True)
        self._receiver.start()

    @property
    def is_broken(self) -> bool:
        """Whether every further request fails."""
        return self._broken is not None

    def read(self, offset_bytes: int, view: memoryview, timeout_s: float) -> None:
        """Fill `view`. Raises SourceError as the other end reports it, WireError, TimeoutError."""
        message = Message(Kind.READ, offset_bytes=offset_bytes, length_bytes=len(view))
        answer = self._ask(message, b"", view, timeout_s)
        if wire.checksum(view) != answer.address:
            raise wire.WireError("the page was damaged on its way: its checksum is wrong")

    def write_back(self, offset_bytes: int, view: memoryview, timeout_s: float) -> None:
        """Store `view`. Raises as `read` does."""
        crc = wire.checksum(view)
        message = Message(Kind.WRITE_BACK, offset_bytes=offset_bytes, address=crc, length_bytes=len(view))
        self._ask(message, view, None, timeout_s)

    def flush(self, timeout_s: float) -> None:
        """Make what was stored durable. Raises as `read` does."""
        self._ask(Message(Kind.FLUSH), b"", None, timeout_s)

    def close(self) -> None:
        """Whoever still waits gets a WireError."""
        self._break(wire.WireError("the connection was closed"))
        self._receiver.join()
        self._sock.close()

    def _ask(self, message: Message, payload: memoryview | bytes, into: memoryview | None, timeout_s: float) -> Message:
        waiter = _Waiter(into)
        with self._lock:
            if self._broken:
                raise self._broken
            number = next(self._ids) & 0xFFFFFFFF
            self._waiters[number] = waiter
            try:
                wire.send(self._sock, replace(message, id=number), payload)
            except OSError as error:
                self._break(error)
        if not waiter.answered.wait(timeout_s):
            self._break(TimeoutError(f"no answer within {timeout_s:g} s"))
        if waiter.message is None:
            # Until the receiver has ended, `into` may still be written.
            self._receiver.join()
            assert self._broken
            raise self._broken
        if waiter.message.kind is Kind.ERROR:
            raise SourceError.from_record(waiter.payload)
        return waiter.message

    def _receive(self) -> None:
        try:
            while message := wire.receive(self._sock):
                waiter = self._waiters.get(message.id)
                if waiter is None:
                    raise wire.WireError(f"{message.kind.name} answers {message.id}, which nobody asked")
                if message.kind is Kind.DATA and waiter.into is not None and len(waiter.into) == message.length_bytes:
                    wire.receive_into(self._sock, waiter.into)
                else:
                    waiter.payload = bytes(wire.receive_payload(self._sock, message))
                with self._lock:
                    del self._waiters[message.id]
                waiter.message = message
                waiter.answered.set()
            self._break(wire.WireError("the other end closed the connection"))
        except Exception as error:
            self._break(error)
        with self._lock:
            for waiter in self._waiters.values():
                waiter.answered.set()

    def _break(self, error: Exception) -> None:
        self._broken = self._broken or error
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
