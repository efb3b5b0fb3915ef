"""The owner's end of a worker process, in which a source written in Python reads pages and installs them by itself.

A fault handler must never need the interpreter of the process that faults, so such a source lives in a process of its own. It gets the
userfaultfd (UFFDIO_COPY works from another process, userfaultfd(2)) and is asked over a socket, with the messages of `wire`.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from . import pickling, wire
from .retry import RetryPolicy
from .source import Source, SourceError, Store
from .tcp import DoorStore
from .wire import Kind, Message

# The worker looks for modules where its owner does.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from userfault.paging.worker_main import main; main(int(sys.argv[1]))"

START_TIMEOUT_S = 60.0


class Worker:
    """A process that serves `source` with the userfaultfd `uffd` (None: it can be read, but fills nothing).

    It is started without fork() of this process's memory. `wait_ready` must be called before the first request.

    `job` is what it was sent: whoever starts a successor sends that again.

    `fileno()` is the socket: requests go in, answers come out. End of stream means that the worker is dead, however it died. Whoever reads
    it must be one thread, and nobody else may while that one does.

    Raises SourceError where the source can't be pickled, OSError where no process can be started.
    """

    def __init__(self, source: Source, uffd: int | None = None, policy: RetryPolicy | None = None) -> None:
        self.source_name = source.name
        if pickling.is_loading:
            # Otherwise each worker would start another one, for ever.
            raise SourceError(
                "open",
                source.name,
                0,
                0,
                "the module that defines it opens it while it is imported, and the worker has to import it",
                remedy="open it in a function, or under `if __name__ == '__main__':`",
            )
        self.size_bytes, self.is_store = -1, False
        self.policy = policy or RetryPolicy()
        # Who may write back goes in by a side door, as the socket may be the C handler's. A successor has the same one.
        self._door = f"userfault-{secrets.token_hex(16)}" if isinstance(source, Store) else ""
        self.job = job = pickling.dumps((source, self.policy, self._door), source.name)
        if not sys.executable:
            raise OSError("this Python does not know its own executable (sys.executable), so no worker can be started")
        self._sock, theirs = socket.socketpair()
        try:
            with theirs:
                fd = theirs.fileno()
                command = [sys.executable, "-c", _BOOT, str(fd), json.dumps(sys.path)]
                self._process = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL)
            message = Message(Kind.START, id=wire.VERSION, address=wire.MAGIC, length_bytes=len(job))
            # A worker that dies at once is told from its answer that does not come, not here.
            with suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._sock, [message.pack()], [] if uffd is None else [uffd])
                self._sock.sendall(job)
        except BaseException:
            self._sock.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    @property
    def socket(self) -> socket.socket:
        """The socket, which stays this object's."""
        return self._sock

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the source is open; afterwards `size_bytes` and `is_store` are known.

        Raises SourceError: what opening raised in the worker, or why there is no worker.
        """
        try:
            answer = wire.receive(self._sock, time.monotonic() + timeout_s)
            payload = wire.receive_payload(self._sock, answer, time.monotonic() + timeout_s) if answer else b""
        except TimeoutError:
            remedy = "its import or acquire() takes too long"
            raise self._error(f"the worker (pid {self.pid}) is not ready after {timeout_s:g} s", remedy) from None
        except OSError as error:
            raise self._error(f"{error}; {self.how_it_ended()}", "see its messages on stderr") from error
        finally:
            self._sock.settimeout(None)
        if answer is None:
            raise self._error(self.how_it_ended(), "see its messages on stderr")
        if answer.kind is Kind.ERROR:
            raise SourceError.from_record(bytes(payload))
        if (answer.kind, answer.address, answer.id) != (Kind.READY, wire.MAGIC, wire.VERSION):
            raise self._error(f"the worker answered {answer.kind.name}", "install one version of userfault only")
        self.size_bytes, self.is_store = answer.offset_bytes, bool(answer.status)

    def store(self) -> Store:
        """The store in the worker, not open, for writing back: it may be used beside the socket, and finds the worker's successor.

        Where a worker died with writes that were not flushed, the next flush raises SourceError. Raises TypeError for a mere source.
        """
        if not self._door:
            raise TypeError(f"{self.source_name} is not a store: it can't be written")
        return DoorStore(self.source_name, self._door, timeout_s=self.policy.answer_s)

    def how_it_ended(self, timeout_s: float = 1.0) -> str:
        """One clause: whether the worker runs, or with which exit code or signal it ended; it may take until `timeout_s` to end."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"the worker (pid {self.pid}) runs"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the worker (pid {self.pid}) {how}"

    def kill(self) -> None:
        """End it at once: whatever it had not finished is lost."""
        self._process.kill()
        self._process.wait()
        self._sock.close()

    def close(self, timeout_s: float = 10.0) -> None:
        """Let it finish its writes, close the source and end. Raises SourceError where that fails or takes longer: then it is killed."""
        if self._sock.fileno() < 0:
            return
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._error(
                f"the worker (pid {self.pid}) did not end within {timeout_s:g} s", "it was killed"
            ) from None
        self._sock.close()
        if code:
            raise self._error(self.how_it_ended(), "see its messages on stderr")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._sock.fileno() >= 0:
            self.kill()

    def _error(self, cause: str, remedy: str) -> SourceError:
        return SourceError("open", self.source_name, 0, 0, cause, remedy=remedy)
