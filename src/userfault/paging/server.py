"""Answers the requests of one connection from one source: the worker process and the page server are both built on it."""

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


class Server:
    """Serves `source`, which is open, to whoever is at the other end of `sock`, in `source.parallel_count` threads.

    Every request is answered within `policy.deadline_s`, even where the source never returns: then by an error that shows where its
    thread stands. A thread that is stuck this way is replaced, a few times over.
    """

    def __init__(self, sock: socket.socket, source: Source, policy: RetryPolicy, fill: Fill | None = None) -> None:
        self._sock, self._source, self._policy, self._fill = sock, source, policy, fill
        self._queue = RequestQueue(source.coalesce_bytes, source.coalesce_gap_bytes)
        self._send_lock = threading.Lock()
        self._thread_limit = max(1, min(source.parallel_count, THREADS_MAX))
        self._replacements_left = 4 * self._thread_limit
        self._threads: list[threading.Thread] = []
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def run(self, first: Message | None = None) -> None:
        """Receive requests, `first` being one received already, until the stream ends; then finish writes and flushes.

        Raises WireError where the stream breaks or carries a request that no owner sends.
        """
        self._watchdog.start()
        try:
            while message := first or wire.receive(self._sock):
                first = None
                payload = wire.receive_payload(self._sock, message)
                self._accept(Request(message, payload, time.monotonic() + self._policy.deadline_s))
        finally:
            self._queue.end()
            self._watchdog.join()
            for thread in self._threads:
                # After the watchdog, what still runs is stuck.
                thread.join(timeout=0.05)

    def _accept(self, request: Request) -> None:
        message = request.message
        if message.kind not in (Kind.FILL, Kind.READ, Kind.WRITE_BACK, Kind.FLUSH):
            raise wire.WireError(f"a {message.kind.name} where a request was due")
        if message.length_bytes > wire.PAYLOAD_BYTES_MAX:
            raise wire.WireError(
                f"{message.kind.name} of {message.length_bytes} bytes: more than {wire.PAYLOAD_BYTES_MAX}"
            )
        self._queue.put(request)
        if len(self._threads) < self._thread_limit:
            self._add_thread()

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
                self._store(request)
                self._answer(request, Message(Kind.DONE, length_bytes=length))
            else:
                self._retrying(request, self._as_store().flush)
                self._answer(request, Message(Kind.DONE))
        except BaseException as error:
            if len(batch.requests) == 1:
                self._answer_error(request, error)
                return
            # One of them may have spoilt it for the others.
            for each in batch.requests:
                self._serve(Batch([each]), buffer)

    def _read(self, batch: Batch, buffer: _Buffer) -> None:
        with buffer.view(batch.end - batch.start) as view:
            count = self._retrying(batch.requests[0], lambda: self._source.read_into(batch.start, view))
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
            if self._fill is None:
                raise OSError(errno.EINVAL, "this connection came without a userfaultfd")
            self._fill(message.address, data, message.flags)
        except OSError as error:
            self._send_error(request, error)
        else:
            self._send(request, Message(Kind.DONE, length_bytes=len(data)))

    def _store(self, request: Request) -> None:
        if wire.checksum(request.payload) != request.message.address:
            raise wire.WireError("the page was damaged on its way: its checksum is wrong")
        with memoryview(request.payload) as view:
            self._retrying(request, lambda: self._as_store().write_from(request.start, view))

    def _as_store(self) -> Store:
        if not isinstance(self._source, Store):
            raise OSError(errno.EROFS, f"{self._source.name} is not a store: it can't be written")
        return self._source

    def _retrying(self, request: Request, function: Callable[[], T]) -> T:
        left_s = max(0.0, request.deadline_s - time.monotonic())
        return replace(self._policy, deadline_s=left_s).call(function, is_transient)

    def _watch(self) -> None:
        while late := self._queue.claim_overdue():
            frames = sys._current_frames()
            for request, batch in late:
                cause, details = "it never got its turn: all threads were busy", ""
                if batch:
                    cause = f"it did not return within {self._policy.deadline_s:g} s"
                    frame = frames.get(batch.thread_id)
                    details = "It stands here:\n" + "".join(traceback.format_stack(frame)) if frame else ""
                self._send_error(request, self._timeout(request, cause, details))
            for batch in {id(batch): batch for _request, batch in late if batch}.values():
                if all(request.claimed for request in batch.requests) and self._replacements_left:
                    self._replacements_left -= 1
                    self._thread_limit += 1
                    self._add_thread()

    def _timeout(self, request: Request, cause: str, details: str) -> SourceError:
        return SourceError(
            _OPERATIONS[request.message.kind],
            self._source.name,
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
            self._send(request, message, payload)

    def _answer_error(self, request: Request, error: BaseException) -> None:
        if self._queue.claim(request):
            self._send_error(request, error)

    def _send_error(self, request: Request, error: BaseException) -> None:
        message = request.message
        operation = _OPERATIONS[message.kind]
        typed = SourceError.of(operation, self._source, message.offset_bytes, message.length_bytes, error)
        send_error(lambda answer, payload: self._send(request, answer, payload), typed)

    def _send(self, request: Request, message: Message, payload: memoryview | bytes = b"") -> None:
        try:
            with self._send_lock:
                wire.send(self._sock, replace(message, id=request.message.id), payload)
        except OSError:
            # Half a message may be out, so this ends the stream; it is noticed where requests are received.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)


_OPERATIONS = {Kind.FILL: "read", Kind.READ: "read", Kind.WRITE_BACK: "write", Kind.FLUSH: "flush"}


def send_error(send: Callable[[Message, bytes], object], error: SourceError) -> None:
    """Hand `error` as a message to `send`."""
    record = error.to_record(wire.ERROR_BYTES_MAX)
    send(Message(Kind.ERROR, length_bytes=len(record), status=-error.errno), record)


class _Buffer:
    """A thread's buffer: whole pages, kept for the next request."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, 1 << 16)

    def view(self, length_bytes: int) -> memoryview:
        if length_bytes > len(self._pages):
            self._pages = mmap.mmap(-1, length_bytes)
        return memoryview(self._pages)[:length_bytes]
