"""Answers requests from one source: the worker process and the page server are both built on it."""

from __future__ import annotations

import errno
import mmap
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from . import wire
from .request_queue import Batch, Request, RequestQueue
from .retry import RetryPolicy
from .source import Source, SourceError, Store, is_transient
from .wire import Kind, Message

T = TypeVar("T")

THREADS_MAX = 64
"""A source may ask for more threads, it does not get them."""

Fill = Callable[[int, memoryview, int], None]
"""`fill(address, view, flags)` installs pages; raises OSError."""


class Engine:
    """Serves `source`, which is open and closed with this, to any number of connections, with `source.parallel_count` threads in all.

    Every request is answered within `policy.deadline_s`, even where the source never returns: then by an error that shows where its
    thread stands. A thread that is stuck this way is replaced, a few times over. A store is written only where `writable`.
    """

    def __init__(self, source: Source, policy: RetryPolicy, *, writable: bool = True) -> None:
        self.source, self.policy = source, policy
        self.store = source if writable and isinstance(source, Store) else None
        self._queue = RequestQueue(source.coalesce_bytes, source.coalesce_gap_bytes)
        self._thread_limit = max(1, min(source.parallel_count, THREADS_MAX))
        self._replacements_left = 4 * self._thread_limit
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watchdog.start()

    def submit(self, peer: Peer, message: Message, payload: bytearray) -> None:
        """A request from `peer`, which will get the answer. Raises WireError for what is none."""
        if message.kind not in _OPERATIONS:
            raise wire.WireError(f"a {message.kind.name} where a request was due")
        if message.length_bytes > wire.PAYLOAD_BYTES_MAX:
            raise wire.WireError(
                f"{message.kind.name} of {message.length_bytes} bytes: more than {wire.PAYLOAD_BYTES_MAX}"
            )
        self._queue.put(Request(message, payload, time.monotonic() + self.policy.deadline_s, peer))
        with self._lock:
            if len(self._threads) < self._thread_limit:
                self._add_thread()

    def forget(self, peer: Peer) -> None:
        """`peer` is gone: its reads need no answer. What it wrote is still stored."""
        self._queue.forget(peer)

    def close(self) -> None:
        """Finish what was written, flush it unless a flush is all or nothing, and close the source. Raises SourceError where that fails."""
        self._queue.end()
        self._watchdog.join()
        for thread in self._threads:
            # After the watchdog, what still runs is stuck.
            thread.join(timeout=0.05)
        try:
            # Half of a flush whose owner died is not for such a store.
            if self.store and not self.store.sync_is_atomic:
                self.store.flush()
        finally:
            self.source.close()

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"source {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        buffer = _Buffer()
        while batch := self._queue.take():
            try:
                self._serve(batch, buffer)
            finally:
                self._queue.done(batch)

    def _serve(self, batch: Batch, buffer: _Buffer) -> None:
        request = batch.requests[0]
        kind, length = request.message.kind, request.message.length_bytes
        try:
            if request.is_read:
                self._read(batch, buffer)
            elif kind is Kind.WRITE_BACK:
                self._write(request)
                self._answer(request, Message(Kind.DONE, length_bytes=length))
            else:
                self._retrying(request, self._writable().flush)
                self._answer(request, Message(Kind.DONE))
        except BaseException as error:
            if len(batch.requests) == 1:
                if self._queue.claim(request):
                    self._send_error(request, error)
                return
            # One of them may have spoilt it for the others.
            for each in batch.requests:
                self._serve(Batch([each]), buffer)

    def _read(self, batch: Batch, buffer: _Buffer) -> None:
        with buffer.view(batch.end - batch.start) as view:
            count = self._retrying(batch.requests[0], lambda: self.source.read_into(batch.start, view))
            view[count:] = bytes(len(view) - count)
            for request in batch.requests:
                with view[request.start - batch.start : request.end - batch.start] as part:
                    self._deliver(request, part)

    def _deliver(self, request: Request, data: memoryview) -> None:
        message = request.message
        if message.kind is Kind.READ:
            crc = wire.checksum(data)
            done = Message(Kind.DATA, offset_bytes=message.offset_bytes, address=crc, length_bytes=len(data))
            self._answer(request, done, data)
            return
        # Claimed before the page is installed: once it is reported as failed, it must not appear any more.
        if not self._queue.claim(request):
            return
        try:
            if request.peer.fill is None:
                raise OSError(errno.EINVAL, "this connection came without a userfaultfd")
            request.peer.fill(message.address, data, message.flags)
        except OSError as error:
            self._send_error(request, error)
        else:
            request.peer.send(message.id, Message(Kind.DONE, length_bytes=len(data)))

    def _write(self, request: Request) -> None:
        if wire.checksum(request.payload) != request.message.address:
            raise wire.WireError("the page was damaged on its way: its checksum is wrong")
        with memoryview(request.payload) as view:
            self._retrying(request, lambda: self._writable().write_from(request.start, view))

    def _writable(self) -> Store:
        if self.store is None:
            raise OSError(errno.EROFS, f"{self.source.name} is not a store: it can't be written")
        return self.store

    def _retrying(self, request: Request, function: Callable[[], T]) -> T:
        left_s = max(0.0, request.deadline_s - time.monotonic())
        return replace(self.policy, deadline_s=left_s).call(function, is_transient)

    def _watch(self) -> None:
        while late := self._queue.claim_overdue():
            frames = sys._current_frames()
            for request, batch in late:
                cause, details = "it never got its turn: all threads were busy", ""
                if batch:
                    cause = f"it did not return within {self.policy.deadline_s:g} s"
                    frame = frames.get(batch.thread_id)
                    details = "It stands here:\n" + "".join(traceback.format_stack(frame)) if frame else ""
                self._send_error(request, self._timeout(request, cause, details))
            for batch in {id(batch): batch for _request, batch in late if batch}.values():
                if all(request.claimed for request in batch.requests):
                    self._replace_thread()

    def _replace_thread(self) -> None:
        with self._lock:
            if self._replacements_left:
                self._replacements_left -= 1
                self._thread_limit += 1
                self._add_thread()

    def _timeout(self, request: Request, cause: str, details: str) -> SourceError:
        return SourceError(
            _OPERATIONS[request.message.kind],
            self.source.name,
            request.message.offset_bytes,
            request.message.length_bytes,
            cause,
            remedy="allow more time with RetryPolicy(deadline_s=...), or more parallel_count",
            details=details,
            errno=errno.ETIMEDOUT,
            transient=True,
        )

    def _answer(self, request: Request, message: Message, payload: memoryview | bytes = b"") -> None:
        if self._queue.claim(request):
            request.peer.send(request.message.id, message, payload)

    def _send_error(self, request: Request, error: BaseException) -> None:
        message = request.message
        operation = _OPERATIONS[message.kind]
        request.peer.send_error(
            message.id,
            SourceError.of(operation, self.source, message.offset_bytes, message.length_bytes, error),
        )


_OPERATIONS = {Kind.FILL: "read", Kind.READ: "read", Kind.WRITE_BACK: "write", Kind.FLUSH: "flush"}


class Peer:
    """Who asks at the other end of `sock`, and gets the answers; `fill` installs the pages that it wants filled."""

    def __init__(self, sock: socket.socket, fill: Fill | None = None) -> None:
        self._sock, self.fill = sock, fill
        self._lock = threading.Lock()

    def run(self, engine: Engine) -> None:
        """Receive requests until the stream ends.

        Raises WireError where the stream breaks or carries a request that no owner sends.
        """
        try:
            while message := wire.receive(self._sock):
                engine.submit(self, message, wire.receive_payload(self._sock, message))
        finally:
            engine.forget(self)

    def send(self, number: int, message: Message, payload: memoryview | bytes = b"") -> None:
        """Answer request `number`."""
        try:
            with self._lock:
                wire.send(self._sock, replace(message, id=number), payload)
        except OSError:
            # Half a message may be out, so this ends the stream; it is noticed where requests are received.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def send_error(self, number: int, error: SourceError) -> None:
        """Answer request `number` with `error`."""
        record = error.to_record(wire.ERROR_BYTES_MAX)
        self.send(number, Message(Kind.ERROR, length_bytes=len(record), status=-error.errno), record)


class _Buffer:
    """A thread's buffer: whole pages, kept for the next request."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, 1 << 16)

    def view(self, length_bytes: int) -> memoryview:
        if length_bytes > len(self._pages):
            self._pages = mmap.mmap(-1, length_bytes)
        return memoryview(self._pages)[:length_bytes]
