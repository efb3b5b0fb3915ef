"""No operation of Python's on paged memory deadlocks or is wrong, whatever the other threads do meanwhile."""

from __future__ import annotations

import gc
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed: pip install 'userfault[dev]'")

from userfault import paging  # noqa: E402
from userfault.paging.memory import MemorySource  # noqa: E402
from userfault.paging.pytest_plugin import check  # noqa: E402
from userfault.paging.tcp import PageServer  # noqa: E402

from .operations import OPERATIONS, SYSTEM_CALLS  # noqa: E402

pytestmark = pytest.mark.usefixtures("can_page")

DATA = random.Random(3).randbytes(400_000)


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


class Case(NamedTuple):
    mode: str
    user_mode_only: bool
    source: str
    unit: str
    disturbance: Disturbance | None

    def __str__(self) -> str:
        mode = self.mode + " for user mode only" * self.user_mode_only
        return f"{mode}, {self.source}, {self.unit}, {self.disturbance.__name__ if self.disturbance else 'calm'}"


CASES = [
    Case(mode, user_mode_only, source, unit, disturbance)
    for mode in ("threads", "sigbus")
    for user_mode_only in (False, True)
    for source in ("memory", "file", "worker", "page server")
    for unit in ("4 KiB", "64 KiB", "2 MiB")
    for disturbance in (None, busy, collecting, forking)
]
SHORT = [
    case
    for case in CASES
    if not case.user_mode_only and (case[2:4] == ("memory", "4 KiB") or case[2:] == ("worker", "64 KiB", busy))
]


@contextmanager
def opened(case: Case, data: bytes) -> Iterator[paging.Region]:
    def fill(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)]

    with ExitStack() as stack:
        source: Any = data
        if case.source == "worker":
            source = fill
        elif case.source == "file":
            source = stack.enter_context(tempfile.NamedTemporaryFile()).name
            Path(source).write_bytes(data)
        elif case.source == "page server":
            server = stack.enter_context(PageServer.listen(MemorySource(data), "127.0.0.1:0"))
            source = f"tcp://{server.address}"
            # A process of its own: a thread here would need the GIL to serve the fault of whoever holds it.
            pid = os.fork()
            if not pid:
                server.serve()
                os._exit(0)
            stack.callback(os.waitpid, pid, 0)
            stack.callback(os.kill, pid, signal.SIGKILL)
        yield paging.open(
            source,
            size_bytes=len(data) if case.source == "worker" else None,
            access="c",
            unit=case.unit,
            mode=case.mode,  # type: ignore[arg-type]
            resident="4 MiB" if case.unit == "2 MiB" else "256 KiB",
            prefetch_units=0,
            user_mode_only=case.user_mode_only,
        )


@pytest.mark.parametrize("case", CASES if os.environ.get("USERFAULT_LONG") else SHORT, ids=str)
def test_operations(case: Case) -> None:
    def child() -> None:
        data = DATA if case.unit != "2 MiB" else DATA * 16
        size = len(data)
        expected = bytearray(data)
        plain, plain_view = np.frombuffer(expected, dtype=np.uint8), memoryview(expected)
        stop = threading.Event()
        with opened(case, data) as memory:
            a, mv = np.frombuffer(memory, dtype=np.uint8), memoryview(memory)
            thread = threading.Thread(target=case.disturbance, args=(stop,)) if case.disturbance else None
            if thread:
                thread.start()
            try:
                for name, operation in OPERATIONS.items():
                    memory.evict()
                    # The kernel's own accesses fail there instead of faulting.
                    if (case.mode == "sigbus" or case.user_mode_only) and name in SYSTEM_CALLS:
                        memory.ensure(0, 32_768)
                    got, wanted = operation(a, mv, size), operation(plain, plain_view, size)
                    assert np.array_equal(got, wanted) if isinstance(wanted, np.ndarray) else got == wanted, name
                memory.evict()
                assert mv == plain_view
            finally:
                stop.set()
                if thread:
                    thread.join()

    check(child, deadline_s=60)
