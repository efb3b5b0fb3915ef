"""Another process or host as source: a server that gives out pages over TCP, and the source that asks it.

There is no authentication and no encryption: whoever reaches the port reads the data, and writes it where the server allows it. The server
therefore listens on the loopback interface unless told otherwise; between hosts, put it behind ssh -L or WireGuard.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from . import wire
from .client import Connection
from .retry import RetryPolicy
from .server import Engine, Peer
from .source import NativeKind, NativeSource, Source, SourceError, Store
from .wire import Kind, Message, WireError

HELLO = Message(Kind.START, id=wire.VERSION, address=wire.MAGIC)
"""What a client says first: START, and nothing to be unpickled."""


SUCCESSOR_S = 15.0
"""How long a writer waits for the successor of a worker that died."""


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

    `timeout_s` is how long one request may take before its connection is given up. Faults are served by the C handler, with a connection
    for each of its threads. Where a round trip takes long, a subclass with `in_worker = True` has more of them under way, and joins
    those that lie side by side.
    """

    parallel_count = 8
    coalesce_bytes = 1 << 20
    in_worker = False

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

    def native(self) -> NativeSource:
        return NativeSource(NativeKind.PEER, self.size_bytes, peer=self._sockaddr, timeout_s=self.timeout_s)

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

    def _dial(self) -> socket.socket:
        return socket.create_connection(self.address, self.timeout_s)

    def _connect(self) -> Connection:
        sock = self._dial()
        try:
            _tune(sock)
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
            self._sockaddr = _sockaddr(sock)
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


class DoorStore(RemoteStore):
    """A store that lives in a worker process of this user, by the side door that the worker keeps open: see `open_door`."""

    def __init__(self, name: str, door: str, *, timeout_s: float) -> None:
        self.name, self._door, self.timeout_s = name, door, timeout_s

    def _dial(self) -> socket.socket:
        end_s = time.monotonic() + SUCCESSOR_S
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(self.timeout_s)
                sock.connect(f"\0{self._door}")
                return sock
            except ConnectionRefusedError:
                # The worker died, and its successor has to start and to open the store first.
                sock.close()
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.01)
            except BaseException:
                sock.close()
                raise


def _sockaddr(sock: socket.socket) -> bytes:
    """Where `sock` is connected to, as the kernel has it (ip(7), ipv6(7)); nothing for other than IP."""
    if sock.family == socket.AF_INET:
        host, port = sock.getpeername()
        return struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2, "big"), socket.inet_aton(host))
    if sock.family == socket.AF_INET6:
        host, port, flow, scope = sock.getpeername()
        address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return struct.pack("=H2sI16sI", socket.AF_INET6, port.to_bytes(2, "big"), socket.htonl(flow), address, scope)
    return b""


def open_door(name: str) -> socket.socket:
    """A listener on the abstract UNIX address `name` (unix(7)): it vanishes with its process, whatever ends that. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(f"\0{name}")
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _tune(sock: socket.socket) -> None:
    """Raises PermissionError where the other end is another user's process."""
    if sock.family == socket.AF_UNIX:
        _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise PermissionError(f"the other end belongs to user {uid}")
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


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
    """Gives out the pages of a source until `close()`, to whoever connects to the socket `listener`, which it owns from here on.

    `engine` serves all connections, and stays the caller's. `address` is where it listens, if that is on TCP.
    """

    address: Address

    def __init__(self, engine: Engine, listener: socket.socket) -> None:
        self._engine, self._listener = engine, listener
        self._id = secrets.randbits(64)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False

    @classmethod
    @contextmanager
    def listen(
        cls, source: Source, address: str = "127.0.0.1:0", *, writable: bool = False, policy: RetryPolicy | None = None
    ) -> Iterator[Self]:
        """Open `source` and serve it on a TCP port; port 0 takes a free one. A store is written only with `writable`.

        Raises SourceError, OSError where the port can't be had, TypeError where what should be written is no store.
        """
        host, port = Address.parse(address)
        if writable and not isinstance(source, Store):
            raise TypeError(f"{source!r} is not a store, so it can't be served writable")
        source.open()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
        except BaseException:
            source.close()
            raise
        engine = Engine(source, policy or RetryPolicy(deadline_s=8.0), writable=writable)
        server = cls(engine, listener)
        server.address = Address(*listener.getsockname()[:2])
        try:
            yield server
        finally:
            server.close()
            engine.close()

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
        """Stop listening and end all connections. What was written over them is the engine's to finish."""
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
            thread.join(self._engine.policy.deadline_s + 1)

    def _serve_one(self, connection: socket.socket) -> None:
        # A peer that breaks the protocol or the connection loses that, nothing else.
        with connection, suppress(OSError):
            _tune(connection)
            hello = wire.receive(connection, time.monotonic() + 5)
            if hello == HELLO:
                wire.block(connection, self._engine.policy.deadline_s)
                size_bytes, status = self._engine.source.size_bytes, int(self._engine.store is not None)
                wire.send(
                    connection, Message(Kind.READY, wire.VERSION, size_bytes, wire.MAGIC, self._id, status=status)
                )
                Peer(connection).run(self._engine)
        with self._lock:
            self._connections.discard(connection)
