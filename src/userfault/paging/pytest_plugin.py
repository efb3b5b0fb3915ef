"""pytest fixtures for whoever tests on paged memory: faults on purpose, and children that may hang or die.

Loaded by pytest on its own where userfault is installed. A region's missing page that nobody resolves blocks its thread for ever, so
tests that provoke such things belong `in_child`.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from .inject import Effect, Injection, Point
    from .region import Region


class Inject(Protocol):
    """The fixture `page_fault_injection`: as `inject.inject`, until the test ends."""

    def __call__(
        self, region: Region, point: Point, effect: Effect, value: int = 0, *, times: int = 1, skip: int = 0
    ) -> Injection: ...


@pytest.fixture
def page_fault_injection() -> Iterator[Inject]:
    """Arms `userfault.paging.inject` rules that are disarmed when the test ends."""
    from .inject import inject

    with ExitStack() as stack:

        def arm(
            region: Region, point: Point, effect: Effect, value: int = 0, *, times: int = 1, skip: int = 0
        ) -> Injection:
            return stack.enter_context(inject(region, point, effect, value, times=times, skip=skip))

        yield arm


@pytest.fixture
def in_child() -> Callable[..., Any]:
    """`in_child(function, *args, deadline_s=20)`: what it returns in a forked child; the test fails where it raises, dies or hangs."""
    return check


@pytest.fixture
def ended_child() -> Callable[..., Ended]:
    """As `in_child`, but tells how the child ended; the test fails only where it hangs."""
    return run


@dataclass(frozen=True)
class Ended:
    """How a child ended: `signal` that killed it or 0, its exit code, what it wrote to stderr, and what its function returned."""

    signal: int
    code: int
    stderr: str
    result: Any


def run(function: Callable[..., Any], *args: Any, deadline_s: float = 20.0) -> Ended:
    """Run `function` in a fork of this process. Fails the test where it does not end in time, with where its threads were."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if not pid:
            _child(function, args, writer, errors.fileno(), deadline_s)
        os.close(writer)
        data, end = b"", time.monotonic() + deadline_s + 2
        while (left := end - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
            piece = os.read(reader, 1 << 16)
            if not piece:
                break
            data += piece
        os.close(reader)
        late = True
        while late and time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            late = not done
            if late:
                time.sleep(0.002)
        if late:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        errors.seek(0)
        stderr = errors.read().decode(errors="replace")
    if late:
        pytest.fail(f"hung for {deadline_s} s:\n{stderr}", pytrace=False)
    result = pickle.loads(data) if data else None
    ended = os.waitstatus_to_exitcode(status)
    return Ended(max(0, -ended), max(0, ended), stderr, result)


def check(function: Callable[..., Any], *args: Any, deadline_s: float = 20.0) -> Any:
    """What `function` returns in a child; the test fails where it raises, dies or hangs."""
    ended = run(function, *args, deadline_s=deadline_s)
    if ended.signal or ended.code:
        pytest.fail(f"signal {ended.signal}, exit code {ended.code}:\n{ended.stderr}", pytrace=False)
    return ended.result


def _child(function: Callable[..., Any], args: tuple[Any, ...], writer: int, errors: int, deadline_s: float) -> None:
    code = 1
    try:
        os.dup2(errors, 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        faulthandler.disable()
        faulthandler.dump_traceback_later(deadline_s, exit=True, file=sys.stderr)
        result = function(*args)
        os.write(writer, pickle.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
