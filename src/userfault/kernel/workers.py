"""Work shared among processes, which do not outlive whoever waits for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

from .syscalls import libc

_PR_SET_PDEATHSIG = 1
_THREADS_OF_POOL = 2


@contextmanager
def workers(count: int, initializer: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """`count` forked processes, each of which calls `initializer` first.

    They end with this process (or the thread that hands in the first work), however it ends. Where the block ends by an exception, they
    are killed, and what they had to do is dropped. Raises RuntimeError where there is no room for them (limit_met).
    """
    _room_for(count + _THREADS_OF_POOL)
    others = active_children()
    pool = ProcessPoolExecutor(count, get_context("fork"), _begin, (os.getpid(), initializer))
    try:
        yield pool
    except BaseException:
        # An interrupted worker takes the next piece of work, and each may take minutes.
        for each in active_children():
            if each not in others:
                each.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _room_for(count: int) -> None:
    """As many threads as there will be threads and processes: a pool that gets only some of its own waits for ever."""
    over = threading.Event()
    trial = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=over.wait)
            thread.start()
            trial.append(thread)
    finally:
        over.set()
        for thread in trial:
            thread.join()


def end_with(parent: int) -> None:
    """Called in a child: it is killed when the process `parent`, or the thread of it that forked, ends."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _begin(parent: int, initializer: Callable[[], object] | None) -> None:
    end_with(parent)
    if initializer:
        initializer()
