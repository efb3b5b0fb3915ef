"""No operation of Python's on paged memory deadlocks or is wrong, whatever the other threads do meanwhile."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed: pip install 'userfault[dev]'")

from userfault import paging  # noqa: E402
from userfault.paging.pytest_plugin import check  # noqa: E402

from .operations import OPERATIONS, SYSTEM_CALLS  # noqa: E402

pytestmark = pytest.mark.usefixtures("can_page")

SIZE = 400_000
DATA = random.Random(3).randbytes(SIZE)


def busy(stop: threading.Event) -> None:
    """Holds the GIL as much as it gets it."""
    x = 0
    while not stop.is_set():
        x = (x * 31 + 7) % 1_000_003


def collecting(stop: threading.Event) -> None:
    # A collection holds the GIL for as long as there are objects: those of all tests before are not this test's storm.
    gc.freeze()
    while not stop.is_set():
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        gc.collect()


def forking(stop: threading.Event) -> None:
    while not stop.wait(0.002):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)


def test_there_are_all_of_them() -> None:
    assert len(OPERATIONS) >= 51


Disturbance = Callable[[threading.Event], None]
CASES: list[tuple[str, str, Disturbance | None]] = [
    (mode, source, disturbance)
    for mode in ("threads", "sigbus")
    for source in ("memory", "worker")
    for disturbance in (None, busy, collecting, forking)
]
SHORT = [case for case in CASES if case[1] == "memory" or case[2] is busy]


@pytest.mark.parametrize(("mode", "source", "disturbance"), CASES if os.environ.get("USERFAULT_LONG") else SHORT)
def test_operations(mode: str, source: str, disturbance: Disturbance | None) -> None:
    def child() -> None:
        data = DATA

        def fill(offset: int, view: memoryview) -> None:
            view[:] = data[offset : offset + len(view)]

        expected = bytearray(DATA)
        plain, plain_view = np.frombuffer(expected, dtype=np.uint8), memoryview(expected)
        stop = threading.Event()
        thread = threading.Thread(target=disturbance, args=(stop,)) if disturbance else None
        memory = paging.open(
            DATA if source == "memory" else fill,
            size_bytes=None if source == "memory" else SIZE,
            access="c",
            unit="4 KiB" if source == "memory" else "64 KiB",
            mode=mode,  # type: ignore[arg-type]
            resident="256 KiB",
            prefetch_units=0,
        )
        a, mv = np.frombuffer(memory, dtype=np.uint8), memoryview(memory)
        if thread:
            thread.start()
        try:
            for name, operation in OPERATIONS.items():
                memory.evict()
                if mode == "sigbus" and name in SYSTEM_CALLS:
                    memory.ensure(0, 32_768)
                got, wanted = operation(a, mv, SIZE), operation(plain, plain_view, SIZE)
                assert np.array_equal(got, wanted) if isinstance(wanted, np.ndarray) else got == wanted, name
            memory.evict()
            assert mv == plain_view
        finally:
            stop.set()
            if thread:
                thread.join()

    check(child)
