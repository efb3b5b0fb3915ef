"""Work done in a forked child with a deadline: it may hang in a missing page, or die of a signal, and the parent goes on.

A child shares the parent's memory as fork(2) does: private pages until one of the two writes, shared mappings for good.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from .errors import KernelError
from .syscalls import libc

T = TypeVar("T")
_PR_SET_DUMPABLE = 4
_LENGTH = struct.Struct("=Q")


class ChildHung(KernelError):
    """A child did not answer before its deadline, and was killed."""


class ChildDied(KernelError):
    """A child ended before it answered. signal: what killed it, 0 where it exited."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple[type[ChildDied], tuple[str, int]]:
        return type(self), (str(self), self.signal)


class Child:
    """A generator that runs in a child process, a step at a time; a context manager that kills it, and what it forked.

    `step()` lets it run to its next `yield` and answers what it yielded (which must be picklable). An exception there is raised here,
    with the child's traceback as a note. deadline_s: how long a step may take.
    """

    def __init__(self, work: Callable[[], Iterator[Any]], *, deadline_s: float = 10.0) -> None:
        self.deadline_s = deadline_s
        self._status: int | None = None
        go_read, self._go = os.pipe()
        self._answers, answer_write = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            for each in (go_read, self._go, self._answers, answer_write):
                os.close(each)
            raise
        # A group of its own: what it forks ends with it. Both sides set it, because either may be first.
        with suppress(OSError):
            os.setpgid(self.pid, 0)
        if self.pid == 0:
            os.close(self._go)
            os.close(self._answers)
            _serve(work, go_read, answer_write)
        os.close(go_read)
        os.close(answer_write)

    def step(self) -> Any:
        """What the child yields next, None where it ended.

        Raises ChildHung, ChildDied, or what the child raised.
        """
        self.go()
        return self.answer()

    def go(self) -> None:
        """Let it run to its next `yield`, and do not wait for that."""
        try:
            os.write(self._go, b"g")
        except BrokenPipeError:
            raise self._death() from None

    def answer(self) -> Any:
        """What it yielded after `go`. Raises as `step`."""
        end = time.monotonic() + self.deadline_s
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, end))
        good, value = pickle.loads(self._read(length, end))
        if not good:
            raise value
        return value

    def _read(self, length: int, end: float) -> bytes:
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        data = b""
        while len(data) < length:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self.kill()
                raise ChildHung(f"the child did not answer within {self.deadline_s:g} s and was killed")
            part = os.read(self._answers, length - len(data))
            if not part:
                raise self._death()
            data += part
        return data

    def _death(self) -> ChildDied:
        status = self.wait()
        number = -status if status < 0 else 0
        how = f"was killed by {signal.Signals(number).name}" if number else f"exited with {status}"
        return ChildDied(f"the child {how} before it answered", number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that killed it, when it has ended; it is killed at the deadline."""
        if self._status is None:
            end = time.monotonic() + self.deadline_s
            handle = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                    os.kill(self.pid, signal.SIGKILL)
                    poll.poll()
                # Not reaped yet, it keeps the number of its group from being used again.
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            finally:
                os.close(handle)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        """End it at once."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        os.close(self._go)
        os.close(self._answers)


def call(work: Callable[[], T], *, deadline_s: float = 10.0) -> T:
    """`work()` in a child process: what it returned (which must be picklable).

    Raises ChildHung when the deadline passes (the child is killed), ChildDied where a signal ended it, or what it raised.
    """

    def once() -> Iterator[T]:
        yield work()

    with Child(once, deadline_s=deadline_s) as child:
        answer: T = child.step()
        return answer


def become(uid: int, gid: int | None = None) -> None:
    """Give up all privilege of this process for good: for children that try what an ordinary user may do.

    Raises OSError where this process may not change its user.
    """
    os.setgroups([])
    os.setgid(uid if gid is None else gid)
    os.setuid(uid)
    # A change of user makes /proc/self belong to root until the next execve(2), which is not what a user's process sees.
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _serve(work: Callable[[], Iterator[Any]], go: int, answers: int) -> NoReturn:
    """The child's life. It never returns into the parent's code."""
    status = 0
    # A child that dies of a signal is an answer, not a crash to report.
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        steps = work()
        while os.read(go, 1):
            good, value = True, None
            try:
                value = next(steps)
            except StopIteration:
                pass
            except BaseException as error:
                error.add_note("".join(["In the child process:\n", *traceback.format_tb(error.__traceback__)]))
                good, value = False, error
            data = _pickled(good, value)
            _write_all(answers, _LENGTH.pack(len(data)) + data)
    except BaseException:
        status = 1
    os._exit(status)


def _pickled(good: bool, value: Any) -> bytes:
    try:
        data = pickle.dumps((good, value))
        pickle.loads(data)
        return data
    except Exception as error:
        return pickle.dumps((False, KernelError(f"the child's answer {value!r} can't be sent to the parent: {error}")))


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
