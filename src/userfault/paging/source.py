"""What fills a page and where it goes when it leaves: the contracts `Source` and `Store`.

A source is a run of `size_bytes` bytes that can be read at any offset; a store can be written back as well. Whoever writes one
fills in the `*_exactly` methods; range checks, the end of the data, and typed errors are here, once, for all of them.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import re
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self


class NativeKind(enum.IntEnum):
    """How the C handler serves a source by itself."""

    ZERO = 0
    """Zero pages."""
    FILE = 1
    """pread(2) from `fd` at `offset_bytes`; `direct` says that it was opened with O_DIRECT."""
    MEMORY = 2
    """memcpy from `address` in this process."""
    PEER = 4
    """A page server at `peer`, asked with the messages of `wire`."""


@dataclass(frozen=True)
class NativeSource:
    """A source as the C handler sees it. It is valid until the source is closed, which keeps descriptor and memory alive.

    `size_bytes` is the length of the data; `alignment_bytes` is what O_DIRECT asks of offset, length and address (1 otherwise).
    A direct file's last read may be longer than the data: the handler reads whole blocks and takes `size_bytes` as the end.
    """

    kind: NativeKind
    size_bytes: int
    fd: int = -1
    offset_bytes: int = 0
    direct: bool = False
    alignment_bytes: int = 1
    address: int = 0
    peer: bytes = b""
    """Where a page server listens, as a `struct sockaddr_in` or `sockaddr_in6`."""
    timeout_s: float = 0.0
    """How long a page server may take for one request."""


class SourceError(Exception):
    """Reading from a source, writing to a store or opening one failed.

    `operation` is "read", "write", "flush", "open" or "close"; `source` names it; `offset_bytes` and `length_bytes` say which part;
    `cause` is one line; `remedy` is what to do; `details` is the traceback as text where the error comes from another process;
    `errno` is what a system call would say (`errno.EIO` where nothing fits better); `transient` says that a retry may help.
    """

    def __init__(
        self,
        operation: str,
        source: str,
        offset_bytes: int,
        length_bytes: int,
        cause: str,
        *,
        remedy: str = "",
        details: str = "",
        errno: int = errno.EIO,
        transient: bool = False,
    ) -> None:
        self.operation, self.source = operation, source
        self.offset_bytes, self.length_bytes = offset_bytes, length_bytes
        self.cause, self.remedy, self.details = cause, remedy, details
        self.errno, self.transient = errno, transient
        super().__init__(operation, source, offset_bytes, length_bytes, cause)

    @property
    def summary(self) -> str:
        """The message without the traceback."""
        where = f" {self.length_bytes} bytes at offset {self.offset_bytes} of" if self.operation in _WITH_RANGE else ""
        text = f"{self.operation}{where} {self.source} failed: {self.cause}"
        if self.remedy:
            text = f"{text.rstrip('.')}; {self.remedy}"
        return text

    def __str__(self) -> str:
        return f"{self.summary}\n{self.details.rstrip()}" if self.details else self.summary

    def __reduce__(self) -> tuple[Any, ...]:
        return SourceError.from_record, (self.to_record(),)

    def to_record(self, limit_bytes: int | None = None) -> bytes:
        """The error as JSON text, at most `limit_bytes` long: the middle of the traceback goes first."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        record = json.dumps(fields).encode()
        while limit_bytes is not None and len(record) > limit_bytes:
            # Escapes make JSON longer than its text, so the text is halved until it fits.
            longest = max(("details", "cause", "source", "remedy"), key=lambda name: len(fields[name]))
            text = fields[longest]
            keep = max(0, len(text) // 4 - 4)
            fields[longest] = f"{text[:keep]} ... {text[len(text) - keep :]}" if keep else ""
            record = json.dumps(fields).encode()
        return record

    @staticmethod
    def from_record(record: bytes) -> SourceError:
        """Raises ValueError for bytes that are no record."""
        try:
            fields = json.loads(record)
            positional = [fields.pop(name) for name in _FIELDS[:5]]
            return SourceError(*positional, **fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no error record: {record[:80]!r}") from error

    @staticmethod
    def of(
        operation: str, source: Source | str, offset_bytes: int, length_bytes: int, error: BaseException
    ) -> SourceError:
        """`error` as it happened in `operation` on `source`, with its traceback as text."""
        if isinstance(error, SourceError):
            error.cause += _notes(error)
            error.__notes__ = []
            return error
        name = source if isinstance(source, str) else source.name
        transient = is_transient(error) if isinstance(source, str) else source.is_transient(error)
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        if isinstance(error, TimeoutError):
            number = errno.ETIMEDOUT
        return SourceError(
            operation,
            name,
            offset_bytes,
            length_bytes,
            redacted(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":") + _notes(error)),
            remedy=remedy_for(error),
            details=redacted("".join(traceback.format_exception(error))),
            errno=number,
            transient=transient,
        )


def _notes(error: BaseException) -> str:
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


_WITH_RANGE = ("read", "write")
_FIELDS = (
    "operation",
    "source",
    "offset_bytes",
    "length_bytes",
    "cause",
    "remedy",
    "details",
    "errno",
    "transient",
)

_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ESTALE,
        errno.EBUSY,
    }
)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help, for the errors of the standard library: connections, time-outs, busy devices."""
    if isinstance(error, SourceError):
        return error.transient
    if isinstance(error, OSError):
        return isinstance(error, (TimeoutError, ConnectionError)) or error.errno in _TRANSIENT_ERRNOS
    return isinstance(error, EOFError)


def remedy_for(error: BaseException) -> str:
    """One clause for the user, or nothing where only the source's author can tell."""
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name} into the environment that runs this program"
    if isinstance(error, FileNotFoundError):
        return "check the path"
    if isinstance(error, PermissionError):
        return "check who may read it, and the credentials in use"
    if isinstance(error, (TimeoutError, ConnectionError)):
        return "check that the other end is up and reachable, or allow more time with RetryPolicy(deadline_s=...)"
    return ""


def redacted(text: str) -> str:
    """`text` with the passwords in its URLs blotted out: `redis://user:***@host`."""
    return re.sub(r"(\w+://[^\s/:@'\"]*):[^\s/@'\"]+@", r"\1:***@", text)


class Source(ABC):
    """Bytes that fill pages.

    To write one: set `size_bytes` and `name`, implement `read_exactly`, and inherit `userfault.paging.testing.SourceContract` in
    its tests. A source in Python is pickled (with cloudpickle) into a worker process, so connections and descriptors are opened in
    `acquire()`, which runs there, and not in `__init__`.
    """

    name: str = "source"
    """For people: a path, a URL without its password, a function's name."""
    size_bytes: int = -1
    """How much there is, known once it is open; it never changes afterwards."""
    parallel_count: int = 1
    """How many `read_exactly` and `write_exactly` calls may run at once, in as many threads."""
    coalesce_bytes: int = 0
    """Requests that lie side by side are read as one, up to this many bytes; 0 reads each by itself."""
    coalesce_gap_bytes: int = 0
    """Requests at most this far apart count as side by side: what lies between is read and thrown away."""

    in_worker: bool = True
    """Whether it is opened and read in a worker process. Only a source with `native()` may say False."""

    _state: Literal["new", "open", "closed"] = "new"

    @abstractmethod
    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        """Fill the whole of `view` with the bytes from `offset_bytes` on. All of it lies inside the data and it is not empty.

        `view` is valid during the call only. Any exception is reported to whoever waits for the page.
        """

    def acquire(self) -> None:  # noqa: B027 (most need it, some don't)
        """Connect, open, look up the size: called by `open()`, once, in the process that will read."""

    def release(self) -> None:  # noqa: B027
        """Give back what `acquire` took, all of it or the part until it raised: called once, after the last read."""

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same call may succeed if it is tried again."""
        return is_transient(error)

    def native(self) -> NativeSource | None:
        """How the C handler serves this source by itself; asked after `open()`, where `in_worker` is False."""
        return None

    def open(self) -> Self:
        """Get ready to read; opening twice is fine. Raises SourceError; it may then be tried again."""
        if self._state == "open":
            return self
        if self._state == "closed":
            raise self._error("open", 0, 0, "it is closed", "make a new one", errno.EBADF)
        try:
            self.acquire()
            if self.size_bytes < 0:
                raise ValueError(f"{type(self).__name__}.acquire() left size_bytes at {self.size_bytes}")
        except Exception as error:
            with contextlib.suppress(Exception):
                self.release()
            raise SourceError.of("open", self, 0, 0, error) from error
        self._state = "open"
        return self

    def read_into(self, offset_bytes: int, view: memoryview) -> int:
        """Read from `offset_bytes` into `view` (writable, contiguous, of bytes); the count of bytes read.

        It is less than `len(view)` only where the data end; the rest of `view` is left alone, and the caller zeroes it.
        Raises SourceError where the source fails or is closed, ValueError for a negative offset.
        """
        count = self._clip("read", offset_bytes, len(view))
        if count:
            part = view[:count]
            try:
                self.read_exactly(offset_bytes, part)
                # The buffer is used again: who kept a view of it would write into other pages.
                part.release()
            except Exception as error:
                raise SourceError.of("read", self, offset_bytes, count, error) from error
        return count

    def close(self) -> None:
        """Give everything back; closing twice is fine. Raises SourceError where the release fails."""
        was, self._state = self._state, "closed"
        if was != "open":
            return
        try:
            self.release()
        except Exception as error:
            raise SourceError.of("close", self, 0, 0, error) from error

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> object:
        if self._state == "open":
            raise TypeError(f"{self!r} is open: it can be sent to another process only before that")
        return super().__getstate__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def _clip(self, operation: str, offset_bytes: int, length_bytes: int) -> int:
        if offset_bytes < 0:
            raise ValueError(f"{operation} at offset {offset_bytes} of {self.name}: offsets start at 0")
        if self._state != "open":
            cause, remedy = {
                "new": ("it is not open", "call its open() first"),
                "closed": ("it is closed", "keep it open for as long as the memory that it fills"),
            }[self._state]
            raise self._error(operation, offset_bytes, length_bytes, cause, remedy, errno.EBADF)
        return max(0, min(length_bytes, self.size_bytes - offset_bytes))

    def _error(
        self, operation: str, offset_bytes: int, length_bytes: int, cause: str, remedy: str, number: int
    ) -> SourceError:
        return SourceError(operation, self.name, offset_bytes, length_bytes, cause, remedy=remedy, errno=number)


class Store(Source):
    """A source that takes pages back. To write one, implement `write_exactly` too, and `sync` if writes are not durable at once."""

    sync_is_atomic: bool = False
    """Whether what was written since the last `sync` becomes durable by the next one, all of it at once. Then the writes of one who died
    before it are dropped; otherwise they are stored as far as they came."""

    @abstractmethod
    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        """Store the whole of `view` at `offset_bytes`. All of it lies inside the data and it is not empty.

        Later reads see it; after `sync` it survives a crash.
        """

    def sync(self) -> None:
        """Make everything that was written durable."""

    def write_from(self, offset_bytes: int, view: memoryview) -> None:
        """Store the whole of `view` (contiguous, of bytes) at `offset_bytes`.

        Raises SourceError where the store fails, is closed, or the range leaves the data: then nothing is written.
        """
        count = self._clip("write", offset_bytes, len(view))
        if count < len(view):
            cause, remedy = f"it ends at {self.size_bytes}", "write only the bytes that a read of this range returns"
            raise self._error("write", offset_bytes, len(view), cause, remedy, errno.ENOSPC)
        if count:
            try:
                self.write_exactly(offset_bytes, view)
            except Exception as error:
                raise SourceError.of("write", self, offset_bytes, count, error) from error

    def flush(self) -> None:
        """Make everything that was written durable. Raises SourceError."""
        self._clip("flush", 0, 0)
        try:
            self.sync()
        except Exception as error:
            raise SourceError.of("flush", self, 0, 0, error) from error


class ZeroSource(Source):
    """`size_bytes` zeros: what anonymous memory would have held."""

    parallel_count = 1024
    in_worker = False

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.name = size_bytes, f"{size_bytes} zero bytes"

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        view[:] = bytes(len(view))

    def native(self) -> NativeSource:
        return NativeSource(NativeKind.ZERO, self.size_bytes)
