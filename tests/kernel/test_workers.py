"""Processes that share work, and how they end."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from userfault.kernel.child import call
from userfault.kernel.workers import workers


def test_each_begins_with_what_it_is_told_to() -> None:
    def work() -> list[int]:
        with workers(2, lambda: os.nice(1)) as pool:
            return list(pool.map(os.nice, [0] * 4))

    here = os.nice(0)
    assert call(work) == [min(here + 1, 19)] * 4


def test_who_leaves_by_an_exception_does_not_wait_for_the_work() -> None:
    def interrupted() -> None:
        with workers(2) as pool:
            for _ in range(5):
                pool.submit(time.sleep, 60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted, deadline_s=30)


def test_they_end_with_whoever_started_them() -> None:
    alive, held = os.pipe()
    parent = os.fork()
    if not parent:
        os.close(alive)
        with workers(2) as pool:
            pool.submit(os.write, held, b"!").result()
            pool.submit(time.sleep, 60).result()
        os._exit(0)
    os.close(held)
    try:
        assert os.read(alive, 1) == b"!"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        # Each worker holds the other end of the pipe: it is closed when the last one is gone.
        assert select.select([alive], [], [], 10)[0]
        assert os.read(alive, 1) == b""
    finally:
        os.close(alive)
