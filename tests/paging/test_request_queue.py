from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userfault.paging.request_queue import Batch, Request, RequestQueue
from userfault.paging.server import Peer
from userfault.paging.wire import BACKGROUND, Kind, Message

NEVER_S = float("inf")
PEERS = [Peer(None) for _ in range(2)]  # type: ignore[arg-type]


def request(
    kind: Kind,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    deadline_s: float = NEVER_S,
    peer: Peer | None = None,
) -> Request:
    message = Message(kind, offset_bytes=offset, length_bytes=length, flags=flags)
    return Request(message, bytearray(), deadline_s, peer or PEERS[0])


def ranges(queue: Queue) -> list[tuple[int, int]]:
    """All that is taken until nothing is left, as (start, end), each done before the next."""
    queue.end_after_all()
    taken = []
    while batch := queue.take():
        taken.append((batch.start, batch.end))
        queue.done(batch)
    return taken


class Queue(RequestQueue):
    def end_after_all(self) -> None:
        """Like end(), but reads are still served."""
        with self._changed:
            self._ended = True


def queue_of(*requests: Request, coalesce: int = 0, gap: int = 0) -> Queue:
    queue = Queue(coalesce, gap)
    for each in requests:
        queue.put(each)
    return queue


def reads(*offsets: int, length: int = 10, flags: int = 0) -> list[Request]:
    return [request(Kind.FILL, offset, length, flags=flags) for offset in offsets]


def test_without_coalescing_requests_are_taken_in_their_order() -> None:
    assert ranges(queue_of(*reads(20, 0, 10))) == [(20, 30), (0, 10), (10, 20)]


def test_neighbours_on_both_sides_go_with_the_first() -> None:
    queue = queue_of(*reads(20, 50, 10, 30, 0), coalesce=1000)
    assert ranges(queue) == [(0, 40), (50, 60)]


def test_a_gap_is_read_over_up_to_its_limit() -> None:
    assert ranges(queue_of(*reads(0, 15, 30), coalesce=1000, gap=5)) == [(0, 40)]
    assert ranges(queue_of(*reads(0, 16), coalesce=1000, gap=5)) == [(0, 10), (16, 26)]


def test_no_batch_is_longer_than_asked() -> None:
    assert ranges(queue_of(*reads(0, 10, 20, 30, 40), coalesce=20)) == [(0, 20), (20, 40), (40, 50)]


def test_one_request_may_be_longer() -> None:
    assert ranges(queue_of(*reads(0, length=50), coalesce=20)) == [(0, 50)]


def test_what_nobody_waits_for_gives_way() -> None:
    assert ranges(queue_of(*reads(0, flags=BACKGROUND), *reads(50))) == [(50, 60), (0, 10)]


def test_a_read_waits_for_the_write_before_it() -> None:
    queue = queue_of(request(Kind.WRITE_BACK, 0, 10), *reads(5, 20, 9))
    write, other = queue.take(), queue.take()
    assert write and write.requests[0].message.kind is Kind.WRITE_BACK
    assert other and other.start == 20
    late: list[int] = []

    def taker() -> None:
        for _ in range(2):
            batch = queue.take()
            assert batch
            late.append(batch.start)

    thread = threading.Thread(target=taker)
    thread.start()
    thread.join(0.02)
    assert late == []
    queue.done(write)
    thread.join(60)
    assert late == [5, 9]


def test_a_flush_waits_for_all_writes_and_for_no_read() -> None:
    queue = queue_of(
        *reads(0), request(Kind.WRITE_BACK, 100, 10), request(Kind.FLUSH), request(Kind.WRITE_BACK, 200, 10)
    )
    kinds = []
    queue.end_after_all()
    running = queue.take()
    while batch := queue.take():
        kinds.append((batch.requests[0].message.kind, batch.start))
        queue.done(batch)
    assert running and kinds == [(Kind.WRITE_BACK, 100), (Kind.FLUSH, 0), (Kind.WRITE_BACK, 200)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Kind.FILL, Kind.FILL, Kind.WRITE_BACK, Kind.FLUSH]), st.integers(0, 30), st.integers(1, 8)
        ),
        max_size=12,
    ),
    st.sampled_from([0, 8, 16, 100]),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_whatever_runs_together_every_order_that_matters_is_kept(
    asked: list[tuple[Kind, int, int]], coalesce: int, gap: int, pick: object
) -> None:
    requests = [
        request(kind, 0 if kind is Kind.FLUSH else at, 0 if kind is Kind.FLUSH else size) for kind, at, size in asked
    ]
    queue = queue_of(*requests, coalesce=coalesce, gap=gap)
    queue.end_after_all()
    running: list[Batch] = []
    served: list[Request] = []
    while len(served) < len(requests):
        # As a thread would: take what may start, else finish something.
        may_start = any(queue._may_start(each, index) for index, each in enumerate(queue._waiting))
        if may_start and (not running or pick.random() < 0.7):  # type: ignore[attr-defined]
            batch = queue.take()
            assert batch
            assert len(batch.requests) == 1 or batch.end - batch.start <= coalesce
            for mine in batch.requests:
                assert not any(mine.must_wait_for(other) for each in running for other in each.requests)
                earlier = requests[: requests.index(mine)]
                assert not any(mine.must_wait_for(other) for other in earlier if other not in served)
            running.append(batch)
        else:
            batch = running.pop(pick.randrange(len(running)))  # type: ignore[attr-defined]
            served += batch.requests
            queue.done(batch)
    assert queue.take() is None


def test_overdue_requests_are_claimed_once() -> None:
    now_s = time.monotonic()
    queue = queue_of(
        request(Kind.READ, 0, 10, deadline_s=now_s + 0.01),
        request(Kind.READ, 10, 10, deadline_s=now_s + 0.5),
        request(Kind.READ, 20, 10),
    )
    batch = queue.take()
    assert batch
    (late,) = queue.claim_overdue()
    assert late == (batch.requests[0], batch)
    assert not queue.claim(late[0])
    ((second, running),) = queue.claim_overdue()
    assert (second.start, running) == (10, None)
    queue.done(batch)
    assert ranges(queue) == [(20, 30)]


def test_after_the_end_writes_are_served_and_reads_are_not() -> None:
    queue = queue_of(*reads(0), request(Kind.WRITE_BACK, 100, 10), *reads(5))
    first = queue.take()
    assert first
    queue.end()
    assert first.requests[0].claimed
    write = queue.take()
    assert write and write.start == 100
    queue.done(write)
    queue.done(first)
    assert queue.take() is None
    assert queue.claim_overdue() == []


def test_a_peer_that_is_gone_gets_no_answers_and_loses_no_writes() -> None:
    mine, other = PEERS
    queue = queue_of(
        request(Kind.READ, 0, 10, peer=mine),
        request(Kind.READ, 10, 10, peer=mine),
        request(Kind.READ, 20, 10, peer=other),
        request(Kind.WRITE_BACK, 30, 10, peer=mine),
    )
    running = queue.take()
    assert running
    queue.forget(mine)
    assert running.requests[0].claimed
    queue.done(running)
    assert ranges(queue) == [(20, 30), (30, 40)]


@pytest.mark.parametrize("late_s", [-1.0, 0.02])
def test_the_watchdog_wakes_for_what_arrives_after_it(late_s: float) -> None:
    queue = queue_of()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(each.start for each, _batch in queue.claim_overdue()))
    thread.start()
    queue.put(request(Kind.READ, 7, 1, deadline_s=time.monotonic() + late_s))
    thread.join(60)
    assert found == [7]
