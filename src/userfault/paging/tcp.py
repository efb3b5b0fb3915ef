"""Another process or host as source: a server that gives out pages over TCP, and the source that asks it.

There is no authentication and no encryption: whoever reaches the port reads the data, and writes it where the server allows it. The server
therefore listens on the loopback interface unless told otherwise; between hosts, put it behind ssh -L or WireGuard.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from . import wire
from .client import Connection
from .retry import RetryPolicy
from .server import Server
from .source import Source, SourceError, Store
from .wire import Kind, Message, WireError

HELLO = Message(Kind.START, id=wire.VERSION, address=wire.MAGIC)
"""What a client says first: START, and nothing to be unpickled."""


class Address(NamedTuple):
    """A TCP endpoint."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @staticmethod
    def parse(text: str) -> Address:
        """`host:port`, `[::1]:port` or `tcp://host:port`. Raises ValueError."""
        parts = urlsplit(text if "://" in text else f"tcp://{text}")
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None
        if parts.scheme != "tcp" or not parts.hostname or port is None or parts.path not in ("", "/"):
            raise ValueError(
                f"{text!r} is no TCP address: write tcp://HOST:PORT, with an IPv6 address as tcp://[::1]:PORT"
            )
        return Address(parts.hostname, port)


class RemoteSource(Source):
    """The pages of a page server (`userfault page serve`). A broken connection is made anew by the next attempt of the retry policy.

    `timeout_s` is how long one request may take before its connection is given up.
    """

    parallel_count = 8
    coalesce_bytes = 1 << 20

    _connection: Connection | None = None
    _server_id = 0
    _unflushed = False
    _lost = False

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        self.address = Address.parse(address)
        self.name = f"tcp://{self.address}"
        self.timeout_s = timeout_s

    def acquire(self) -> None:
        self._lock = threading.Lock()
        self._connected()

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        with _naming(self):
            self._connected().read(offset_bytes, view, self.timeout_s)

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection and not self._connection.is_broken:
                return self._connection
            if self._connection:
                self._connection.close()
                self._connection = None
            self._connection = self._connect()
            return self._connection

    def _connect(self) -> Connection:
        sock = socket.create_connection(self.address, self.timeout_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.send(sock, HELLO)
            answer = wire.receive(sock, time.monotonic() + self.timeout_s)
            if answer is None:
                raise WireError("the server closed the connection")
            if answer.kind is Kind.ERROR:
                record = wire.receive_payload(sock, answer, time.monotonic() + self.timeout_s)
                raise SourceError.from_record(bytes(record))
            if (answer.kind, answer.address, answer.id) != (Kind.READY, wire.MAGIC, wire.VERSION):
                raise WireError(f"{self.name} is no page server of version {wire.VERSION}")
            self._meet(answer)
            return Connection(sock, self.timeout_s)
        except BaseException:
            sock.close()
            raise

    def _meet(self, ready: Message) -> None:
        if self.size_bytes not in (-1, ready.offset_bytes):
            raise OSError(f"it now has {ready.offset_bytes} bytes where it had {self.size_bytes}")
        self.size_bytes = ready.offset_bytes
        if isinstance(self, Store) and not ready.status:
            raise PermissionError("it only lets itself be read: start it with --writable")
        self._lost |= self._unflushed and self._server_id != ready.length_bytes
        self._server_id = ready.length_bytes


class RemoteStore(RemoteSource, Store):
    """The same, written back. Raises SourceError where the server only lets itself be read.

    Where the server is started anew between a write and its flush, that flush fails: what the old one had not flushed may be lost.
    """

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        with _naming(self):
            connection = self._connected()
            self._unflushed = True
            connection.write_back(offset_bytes, view, self.timeout_s)

    def sync(self) -> None:
        with _naming(self):
            connection = self._connected()
            self._unflushed = False
            if self._lost:
                self._lost = False
                raise OSError("it was started anew since the last flush: what was written in between may be lost")
            try:
                connection.flush(self.timeout_s)
            except BaseException:
                self._unflushed = True
                raise


class _naming:
    """An error of the far end says where that is."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SourceError) and self._source.name not in error.source:
            error.source = f"{error.source} at {self._source.name}"


class PageServer:
    """Gives out the pages of `source`, which it opens and closes, on a TCP port until `close()`.

    `address` is where it listens; port 0 takes a free one. A store is written only with `writable`. Every connection has a thread that
    receives and up to `source.parallel_count` ones that read. Raises SourceError, OSError where the port can't be had.
    """

    def __init__(
        self, source: Source, address: str = "127.0.0.1:0", *, writable: bool = False, policy: RetryPolicy | None = None
    ) -> None:
        host, port = Address.parse(address)
        if writable and not isinstance(source, Store):
            raise TypeError(f"{source!r} is not a store, so it can't be served writable")
        self._source = source.open()
        self._shared = _SharedStore(source) if writable and isinstance(source, Store) else _Shared(source)
        self._policy = policy or RetryPolicy(deadline_s=8.0)
        self._id = secrets.randbits(64)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family)
        except BaseException:
            source.close()
            raise
        bound = self._listener.getsockname()
        self.address = Address(bound[0], bound[1])
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def serve(self) -> None:
        """Accept connections until `close()` is called, in another thread or by a signal."""
        while not self._closing:
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                # Out of descriptors, or a peer that gave up: neither ends the server.
                time.sleep(0.05)
                continue
            thread = threading.Thread(target=self._serve_one, args=[connection], daemon=True)
            with self._lock:
                self._connections.add(connection)
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def close(self) -> None:
        """Stop listening, let what was asked be finished, close the source."""
        if self._closing:
            return
        self._closing = True
        # accept() in another thread only notices a shutdown, not a close.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
            threads = list(self._threads)
        for thread in threads:
            thread.join(self._policy.deadline_s + 1)
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve_one(self, connection: socket.socket) -> None:
        # A peer that breaks the protocol or the connection loses that, nothing else.
        with connection, suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            hello = wire.receive(connection, time.monotonic() + 5)
            if hello == HELLO:
                wire.block(connection, self._policy.deadline_s)
                source, is_store = self._shared, isinstance(self._shared, Store)
                ready = Message(Kind.READY, wire.VERSION, source.size_bytes, wire.MAGIC, self._id, status=int(is_store))
                wire.send(connection, ready)
                Server(connection, source, self._policy).run()
        with self._lock:
            self._connections.discard(connection)


class _Shared(Source):
    """A source that is used by several connections; it decides how many calls run at once all the same."""

    def __init__(self, source: Source) -> None:
        self._source, self.name, self.size_bytes = source, source.name, source.size_bytes
        self.parallel_count = source.parallel_count
        self.coalesce_bytes, self.coalesce_gap_bytes = source.coalesce_bytes, source.coalesce_gap_bytes
        self._turns = threading.BoundedSemaphore(source.parallel_count)
        self._state = "open"

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        with self._turns:
            self._source.read_into(offset_bytes, view)


class _SharedStore(_Shared, Store):
    """The same for a store."""

    _source: Store

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        with self._turns:
            self._source.write_from(offset_bytes, view)

    def sync(self) -> None:
        with self._turns:
            self._source.flush()
