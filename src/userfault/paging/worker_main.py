"""What runs in a worker process: receive a source, open it, serve it until the owner is gone."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress

from . import pickling, wire
from .native import pager_library
from .retry import RetryPolicy, milliseconds
from .server import Engine, Fill, Peer
from .source import Source, SourceError, is_transient
from .tcp import PageServer, open_door
from .wire import Kind, Message

OPEN_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 10.0
"""How long a source may take to open, and to close, once the owner is gone."""


def main(fd: int) -> None:
    """Serve the owner at the other end of the socket `fd`, and exit: 0 where all went well."""
    # Ctrl-C reaches the owner as well, which decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    try:
        with socket.socket(fileno=fd) as sock:
            code = _serve(sock)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that are stuck in a source must not keep the process.
        os._exit(code)


def _serve(sock: socket.socket) -> int:
    start, uffd = _receive_start(sock)
    job = wire.receive_payload(sock, start)
    peer = Peer(sock)
    try:
        _end_with_owner(sock, OPEN_TIMEOUT_S)
        peer.fill = _filler(uffd)
        source, policy, door = _open(job)
    except SourceError as error:
        peer.send_error(start.id, error)
        return 0
    engine = Engine(source, policy)
    page_server = _page_server(engine, door) if door else None
    wire.send(sock, Message(Kind.READY, wire.VERSION, source.size_bytes, wire.MAGIC, status=int(bool(engine.store))))
    # As long as its owner would wait for what it works on.
    _end_with_owner(sock, policy.answer_s)
    try:
        # An owner that ends with answers unread resets the stream: that is an end like any other.
        with suppress(ConnectionResetError):
            peer.run(engine)
    finally:
        _end_with_owner(sock, CLOSE_TIMEOUT_S)
        if page_server:
            page_server.close()
        # What was acknowledged reaches the store even where the owner did not live to flush it.
        engine.close()
    return 0


def _end_with_owner(sock: socket.socket, grace_s: float) -> None:
    """This process ends `grace_s` after its owner, whatever its interpreter does: a source may keep that to itself."""
    code = pager_library().pager_end_with_owner(sock.fileno(), milliseconds(grace_s))
    if code:
        raise OSError(-code, f"no thread that watches the owner: {os.strerror(-code)}")


def _page_server(engine: Engine, door: str) -> PageServer:
    end_s = time.monotonic() + engine.policy.deadline_s
    while True:
        try:
            listener = open_door(door)
            break
        except OSError:
            # The predecessor may still be dying.
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)
    page_server = PageServer(engine, listener)
    threading.Thread(target=page_server.serve, name="door", daemon=True).start()
    return page_server


def _receive_start(sock: socket.socket) -> tuple[Message, int | None]:
    data, fds, _flags, _address = socket.recv_fds(sock, wire.HEADER.size, 1)
    rest = bytearray(wire.HEADER.size - len(data))
    wire.receive_into(sock, memoryview(rest))
    message = Message.unpack(data + rest)
    if (message.kind, message.id, message.address) != (Kind.START, wire.VERSION, wire.MAGIC):
        raise wire.WireError(
            f"{message.kind.name} of version {message.id} where START of version {wire.VERSION} was due"
        )
    for fd in fds:
        os.set_inheritable(fd, False)
    return message, fds[0] if fds else None


def _open(job: bytearray) -> tuple[Source, RetryPolicy, str]:
    source, policy, door = pickling.loads(job)
    policy.call(source.open, is_transient)
    return source, policy, door


def _filler(uffd: int | None) -> Fill | None:
    if uffd is None:
        return None
    from .filler import Filler

    return Filler(uffd).fill
