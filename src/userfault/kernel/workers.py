"""Work shared among processes, which do not outlive whoever waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

from .syscalls import libc

_PR_SET_PDEATHSIG = 1


@contextmanager
def workers(count: int, initializer: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """`count` forked processes, each of which calls `initializer` first.

    They end with this process (or the thread that hands in the first work), however it ends. Where the block ends by an exception, they
    are killed, and what they had to do is dropped.
    """
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


def end_with(parent: int) -> None:
    """Called in a child: it is killed when the process `parent`, or the thread of it that forked, ends."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _begin(parent: int, initializer: Callable[[], object] | None) -> None:
    end_with(parent)
    if initializer:
        initializer()
