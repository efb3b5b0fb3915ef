"""Requests that wait for a source: which go together, which must wait for others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .wire import BACKGROUND, Kind, Message

if TYPE_CHECKING:
    from .server import Peer

READS = (Kind.FILL, Kind.READ)


@dataclass(eq=False)
class Request:
    """One request, from its arrival to its answer, which `peer` gets. `deadline_s` is in time.monotonic()."""

    message: Message
    payload: bytearray
    deadline_s: float
    peer: Peer
    claimed: bool = False
    """Somebody is answering it, or has; nobody else may."""

    @property
    def start(self) -> int:
        return self.message.offset_bytes

    @property
    def end(self) -> int:
        return self.message.offset_bytes + self.message.length_bytes

    @property
    def is_read(self) -> bool:
        return self.message.kind in READS

    @property
    def is_background(self) -> bool:
        return bool(self.message.flags & BACKGROUND)

    def must_wait_for(self, earlier: Request) -> bool:
        """Reads go past each other; a write keeps its place among what it overlaps, a flush among all writes."""
        if self.is_read and earlier.is_read:
            return False
        if Kind.FLUSH in (self.message.kind, earlier.message.kind):
            return not (self.is_read or earlier.is_read)
        return self.start < earlier.end and earlier.start < self.end


@dataclass(eq=False)
class Batch:
    """Requests that one call serves: a single one, or reads that lie side by side."""

    requests: list[Request]
    thread_id: int = field(default_factory=threading.get_ident)

    @property
    def start(self) -> int:
        return min(request.start for request in self.requests)

    @property
    def end(self) -> int:
        return max(request.end for request in self.requests)


class RequestQueue:
    """Requests in their order of arrival, taken out by several threads.

    While all threads are busy, requests pile up here; whoever is free next takes the first one and all that lie side by side with it. So
    coalescing costs no waiting and grows with the load.
    """

    def __init__(self, coalesce_bytes: int, gap_bytes: int) -> None:
        self._coalesce_bytes, self._gap_bytes = coalesce_bytes, gap_bytes
        self._waiting: list[Request] = []
        self._running: list[Batch] = []
        self._write_count = 0
        lock = threading.Lock()
        # Two conditions on one lock, so that a notify never wakes the wrong kind of waiter.
        self._changed = threading.Condition(lock)
        self._arrived = threading.Condition(lock)
        self._ended = False

    def put(self, request: Request) -> None:
        with self._changed:
            self._waiting.append(request)
            self._write_count += not request.is_read
            self._changed.notify()
            self._arrived.notify()

    def forget(self, peer: Peer) -> None:
        """Nobody waits for this peer's reads any more."""
        with self._changed:
            self._drop_reads(lambda request: request.peer is peer)

    def end(self) -> None:
        """No more will come, and nobody waits for reads: takers get None once the writes and flushes are taken."""
        with self._changed:
            self._ended = True
            self._drop_reads(lambda request: True)

    def _drop_reads(self, chosen: Callable[[Request], bool]) -> None:
        self._waiting = [request for request in self._waiting if not (request.is_read and chosen(request))]
        for batch in self._running:
            for request in batch.requests:
                request.claimed |= request.is_read and chosen(request)
        self._changed.notify_all()
        self._arrived.notify_all()

    def take(self) -> Batch | None:
        """The next batch, or None after the end."""
        with self._changed:
            while True:
                first = self._first()
                if first:
                    break
                if self._ended and not self._waiting:
                    self._changed.notify_all()
                    return None
                self._changed.wait()
            batch = Batch(self._with_neighbours(first))
            chosen = set(batch.requests)
            self._waiting = [request for request in self._waiting if request not in chosen]
            self._running.append(batch)
            return batch

    def done(self, batch: Batch) -> None:
        """`batch` no longer runs: what waited for it may start."""
        with self._changed:
            self._running.remove(batch)
            self._write_count -= sum(not request.is_read for request in batch.requests)
            self._changed.notify_all()
            if self._ended:
                self._arrived.notify_all()

    def claim(self, request: Request) -> bool:
        """Whether the caller is the one to answer `request`: each is answered once."""
        with self._changed:
            was, request.claimed = request.claimed, True
            return not was

    def claim_overdue(self) -> list[tuple[Request, Batch | None]]:
        """Wait until requests are past their deadline, and claim them: each with the batch that runs it, None if it still waited.

        After the end it returns nothing once nothing is left.
        """
        with self._arrived:
            while True:
                open_requests = [
                    *self._waiting,
                    *(r for batch in self._running for r in batch.requests if not r.claimed),
                ]
                if not open_requests and self._ended:
                    return []
                now_s = time.monotonic()
                first_s = min((request.deadline_s for request in open_requests), default=None)
                if first_s is not None and first_s <= now_s:
                    return self._claim_overdue(now_s)
                self._arrived.wait(None if first_s is None else first_s - now_s)

    def _claim_overdue(self, now_s: float) -> list[tuple[Request, Batch | None]]:
        late: list[tuple[Request, Batch | None]] = [
            (request, batch)
            for batch in self._running
            for request in batch.requests
            if not request.claimed and request.deadline_s <= now_s
        ]
        unstarted = [request for request in self._waiting if request.deadline_s <= now_s]
        self._waiting = [request for request in self._waiting if request.deadline_s > now_s]
        self._write_count -= sum(not request.is_read for request in unstarted)
        late += [(request, None) for request in unstarted]
        for request, _batch in late:
            request.claimed = True
        self._changed.notify_all()
        return late

    def _first(self) -> Request | None:
        for background in (False, True):
            for index, request in enumerate(self._waiting):
                if request.is_background == background and self._may_start(request, index):
                    return request
        return None

    def _may_start(self, request: Request, index: int) -> bool:
        if not self._write_count:
            return True
        return not any(
            request.must_wait_for(earlier)
            for earlier in [*self._waiting[:index], *(r for batch in self._running for r in batch.requests)]
        )

    def _with_neighbours(self, first: Request) -> list[Request]:
        if not (first.is_read and self._coalesce_bytes):
            return [first]
        near = sorted(
            (
                request
                for index, request in enumerate(self._waiting)
                if request.is_read
                and abs(request.start - first.start) <= self._coalesce_bytes
                and (request is first or self._may_start(request, index))
            ),
            key=_start,
        )
        at = near.index(first)
        chosen, start, end = [first], first.start, first.end
        for request in near[at + 1 :]:
            if request.start > end + self._gap_bytes or max(end, request.end) - start > self._coalesce_bytes:
                break
            chosen.append(request)
            end = max(end, request.end)
        for request in reversed(near[:at]):
            if request.end + self._gap_bytes < start or max(end, request.end) - request.start > self._coalesce_bytes:
                break
            chosen.append(request)
            start, end = request.start, max(end, request.end)
        return chosen


_start: Callable[[Request], int] = lambda request: request.start  # noqa: E731
