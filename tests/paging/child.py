"""Children with a deadline: a test that may hang, or that is to die, does so in a process of its own."""

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


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
