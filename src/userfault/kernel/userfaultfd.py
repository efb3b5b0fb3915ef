"""`Userfault`: a userfaultfd with its ioctls and events.

Every ioctl answers with a `Progress`: the errno and the field that the kernel wrote, as values. Which errors are worth another try
is a property of the protocol and not of a caller's policy, so it is here: `Progress.outcome`, and `*_all` helpers that loop.
Source: fs/userfaultfd.c, mm/userfaultfd.c of v6.18; ioctl_userfaultfd(2).
"""

from __future__ import annotations

import enum
import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from ctypes import Structure, addressof, get_errno
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from . import uapi
from .errors import Unavailable
from .syscalls import Result, errno_name, ioctl, libc, userfaultfd
from .uapi import (
    Event,
    Feature,
    Ioctl,
    PagefaultFlag,
    RegisterMode,
    WriteprotectMode,
)

UNTOUCHED = -0x5EAD_BEEF
"""What the field of an ioctl holds before the call: the kernel does not write it where it refuses the arguments at the door."""

DEVICE = "/dev/userfaultfd"

BUSY_S = 0.02
"""How long EBUSY is taken for something that passes."""
_PAUSE_S = 50e-6
_COPY, _ZEROPAGE, _MOVE = int(Ioctl.COPY), int(Ioctl.ZEROPAGE), int(Ioctl.MOVE)
_CONTINUE, _POISON = int(Ioctl.CONTINUE), int(Ioctl.POISON)


class Outcome(enum.Enum):
    """What a caller can do about the result of an ioctl."""

    DONE = "done"
    RETRY = "retry"
    """The same call may succeed: an event is queued, a lock was busy, a part was done."""
    LOST_RACE = "lost race"
    """Somebody else resolved the address first (EEXIST), or moved the source away (ENOENT of MOVE)."""
    GONE = "gone"
    """The memory, its registration or its process is gone (ENOENT, ESRCH)."""
    BUSY = "busy"
    """EBUSY of MOVE: the page is shared, pinned, or not anonymous. It may be for a moment only (O_DIRECT) or for good."""
    REFUSED = "refused"
    """The call is wrong, or not allowed: it fails again."""


_GENERAL = {
    0: Outcome.DONE,
    errno.EAGAIN: Outcome.RETRY,
    errno.EINTR: Outcome.RETRY,
    errno.EEXIST: Outcome.LOST_RACE,
    errno.ENOENT: Outcome.GONE,
    errno.ESRCH: Outcome.GONE,
    errno.EBUSY: Outcome.BUSY,
}


class Progress(NamedTuple):
    """What an ioctl did. `field` is what the kernel wrote into .copy, .move, .zeropage, .mapped or .updated: bytes done or
    -errno; None where it wrote nothing."""

    errno: int
    field: int | None
    moves: bool = False

    @property
    def bytes(self) -> int:
        """How many bytes were done, 0 or more."""
        return max(0, self.field or 0)

    @property
    def ok(self) -> bool:
        """Everything that was asked for is done."""
        return self.errno == 0

    @property
    def outcome(self) -> Outcome:
        """What a caller can do about it."""
        if self.moves and self.errno == errno.ENOENT:
            return Outcome.LOST_RACE
        return _GENERAL.get(self.errno, Outcome.REFUSED)

    def __str__(self) -> str:
        field = "-" if self.field is None else self.field if self.field >= 0 else f"-{errno_name(-self.field)}"
        return f"{errno_name(self.errno)}/{field}"


@dataclass(frozen=True)
class Pagefault:
    """Somebody touched `address` (bytes; exact with EXACT_ADDRESS, else the page's) and waits. `thread` is 0 without THREAD_ID."""

    address: int
    flags: PagefaultFlag
    thread: int


@dataclass(frozen=True)
class Forked:
    """The process forked; `child` is a userfaultfd for the child's memory, which the receiver must close."""

    child: Userfault


@dataclass(frozen=True)
class Remapped:
    """mremap(2) moved `length` bytes from `source` to `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Removed:
    """madvise(2) DONTNEED or REMOVE emptied [start, end)."""

    start: int
    end: int


@dataclass(frozen=True)
class Unmapped:
    """munmap(2) took [start, end) away."""

    start: int
    end: int


Message = Pagefault | Forked | Remapped | Removed | Unmapped


class UserfaultError(Unavailable, OSError):
    """A userfaultfd can't be had or used: an errno, the reason, and what to do about it."""

    def __init__(self, number: int, reason: str, remedy: str) -> None:
        OSError.__init__(self, number, f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy

    def __reduce__(self) -> tuple[type[UserfaultError], tuple[int, str, str]]:  # type: ignore[override]
        return type(self), (self.errno or 0, self.reason, self.remedy)


class Userfault:
    """An open userfaultfd of this process; a context manager that closes it. It may be used by several threads.

    It handles the memory of the process that opened it, also after a fork: the child's memory is handled by the userfaultfd that a
    `Forked` message brings. Closing the last descriptor of it makes the kernel fill missing pages with zeroes and wake all waiters,
    so it is never closed by the garbage collector.

    `supported`: the features that the running kernel has; `features`: those that were asked for. `user_mode_only`: how it was opened.

    features: what UFFDIO_API is asked for (events, SIGBUS, WP_*, THREAD_ID and EXACT_ADDRESS must be). user_mode_only: None tries
    without first, then with (which needs no privilege, and in which system calls on a missing page fail with EFAULT). device: None
    tries the system call, then /dev/userfaultfd; True and False take one of them only. nonblocking: reads answer "nothing there";
    a blocking descriptor can't be polled (POLLERR). fd: take over an open one, of whatever process, that had its UFFDIO_API.

    Raises UserfaultError (an OSError): EPERM, EACCES (no privilege), ENOSYS (no such kernel), EINVAL (a feature that this kernel
    lacks), each with its remedy.
    """

    def __init__(
        self,
        features: Feature = Feature(0),  # noqa: B008 (a constant)
        *,
        user_mode_only: bool | None = None,
        device: bool | None = None,
        nonblocking: bool = True,
        fd: int | None = None,
    ) -> None:
        self.user_mode_only = user_mode_only
        if fd is None:
            self._fd, self.user_mode_only = _open(user_mode_only, device, nonblocking)
        else:
            self._fd = fd
        self.features = features
        self.supported = Feature(0)
        if fd is None:
            try:
                self._handshake(features)
            except BaseException:
                self.close()
                raise

    def _handshake(self, features: Feature) -> None:
        it = uapi.uffdio_api(uapi.UFFD_API, int(features))
        answer = ioctl(self._fd, Ioctl.API, addressof(it))
        if answer.errno == errno.EINVAL and features:
            lacking = features & ~supported_features()
            names = ", ".join(each.name or "?" for each in Feature if each & lacking) or "this combination"
            raise UserfaultError(
                errno.EINVAL,
                f"the running kernel has no userfaultfd feature {names}",
                "see `userfault probe` for what it has",
            )
        if answer.errno == errno.EPERM:
            raise UserfaultError(
                errno.EPERM,
                "EVENT_FORK needs CAP_SYS_PTRACE",
                "run as root, or grant it with `setcap cap_sys_ptrace+ep`",
            )
        answer.or_raise("UFFDIO_API")
        self.supported = Feature(it.features)

    def fileno(self) -> int:
        """The descriptor. Raises UserfaultError (EBADF) once closed."""
        if self._fd < 0:
            raise UserfaultError(errno.EBADF, "this userfaultfd is closed", "open a new one")
        return self._fd

    def close(self) -> None:
        """Close the descriptor; closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def detach(self) -> int:
        """Give the descriptor away: the caller closes it."""
        fd, self._fd = self.fileno(), -1
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _errno_of(self, request: int, it: Structure) -> int:
        """Of the ioctls that are called by the thousand: the errno, with nothing around it."""
        fd = self._fd if self._fd >= 0 else self.fileno()
        return get_errno() if libc.ioctl(fd, request, addressof(it)) else 0

    def register(self, start: int, length: int, mode: RegisterMode = RegisterMode.MISSING) -> Result:
        """UFFDIO_REGISTER: faults of [start, start+length) come here. The value is the mask of ioctls for the range (`Ioctl.bit`)."""
        it = uapi.uffdio_register((start, length), int(mode))
        answer = ioctl(self.fileno(), Ioctl.REGISTER, addressof(it))
        return Result(it.ioctls, 0) if answer.ok else answer

    def unregister(self, start: int, length: int) -> Result:
        """UFFDIO_UNREGISTER: faults are the kernel's again; waiters are woken."""
        return self._on_range(Ioctl.UNREGISTER, start, length)

    def wake(self, start: int, length: int) -> Result:
        """UFFDIO_WAKE: whoever waits for these pages tries again (and waits again where they are still missing)."""
        return self._on_range(Ioctl.WAKE, start, length)

    def _on_range(self, request: Ioctl, start: int, length: int) -> Result:
        it = uapi.uffdio_range(start, length)
        return ioctl(self.fileno(), request, addressof(it))

    def copy(self, dst: int, src: int, length: int, mode: int = 0) -> Progress:
        """UFFDIO_COPY: fill missing pages at `dst` with what is at `src` in this process."""
        it = uapi.uffdio_copy(dst, src, length, mode, UNTOUCHED)
        return Progress(self._errno_of(_COPY, it), None if it.copy == UNTOUCHED else it.copy)

    def zeropage(self, start: int, length: int, mode: int = 0) -> Progress:
        """UFFDIO_ZEROPAGE: map the zero page at missing pages."""
        it = uapi.uffdio_zeropage((start, length), mode, UNTOUCHED)
        return Progress(self._errno_of(_ZEROPAGE, it), None if it.zeropage == UNTOUCHED else it.zeropage)

    def move(self, dst: int, src: int, length: int, mode: int = 0) -> Progress:
        """UFFDIO_MOVE: the pages at `src` become those at `dst`, and `src` becomes missing. Both lie in this process."""
        it = uapi.uffdio_move(dst, src, length, mode, UNTOUCHED)
        return Progress(self._errno_of(_MOVE, it), None if it.move == UNTOUCHED else it.move, True)

    def writeprotect(self, start: int, length: int, mode: int = int(WriteprotectMode.WP)) -> Result:
        """UFFDIO_WRITEPROTECT: set (WP) or clear (0) the protection of the pages. It reports no progress: all or an errno."""
        it = uapi.uffdio_writeprotect((start, length), mode)
        return ioctl(self.fileno(), Ioctl.WRITEPROTECT, addressof(it))

    def continue_(self, start: int, length: int, mode: int = 0) -> Progress:
        """UFFDIO_CONTINUE: map what the page cache of the shared memory holds (minor faults)."""
        it = uapi.uffdio_continue((start, length), mode, UNTOUCHED)
        return Progress(self._errno_of(_CONTINUE, it), None if it.mapped == UNTOUCHED else it.mapped)

    def poison(self, start: int, length: int, mode: int = 0) -> Progress:
        """UFFDIO_POISON: whoever touches these missing pages gets SIGBUS, also after the userfaultfd is closed."""
        it = uapi.uffdio_poison((start, length), mode, UNTOUCHED)
        return Progress(self._errno_of(_POISON, it), None if it.updated == UNTOUCHED else it.updated)

    def copy_all(self, dst: int, src: int, length: int, mode: int = 0, *, deadline_s: float = 1.0) -> Progress:
        """`copy` until all is copied or an error is final: see `until_done`."""
        return until_done(lambda done: self.copy(dst + done, src + done, length - done, mode), length, deadline_s)

    def zeropage_all(self, start: int, length: int, mode: int = 0, *, deadline_s: float = 1.0) -> Progress:
        """`zeropage` until all is done or an error is final: see `until_done`."""
        return until_done(lambda done: self.zeropage(start + done, length - done, mode), length, deadline_s)

    def move_all(self, dst: int, src: int, length: int, mode: int = 0, *, deadline_s: float = 1.0) -> Progress:
        """`move` until all is moved or an error is final: see `until_done`."""
        return until_done(lambda done: self.move(dst + done, src + done, length - done, mode), length, deadline_s)

    def continue_all(self, start: int, length: int, mode: int = 0, *, deadline_s: float = 1.0) -> Progress:
        """`continue_` until all is mapped or an error is final: see `until_done`."""
        return until_done(lambda done: self.continue_(start + done, length - done, mode), length, deadline_s)

    def poison_all(self, start: int, length: int, mode: int = 0, *, deadline_s: float = 1.0) -> Progress:
        """`poison` until all is done or an error is final: see `until_done`."""
        return until_done(lambda done: self.poison(start + done, length - done, mode), length, deadline_s)

    def writeprotect_all(
        self, start: int, length: int, mode: int = int(WriteprotectMode.WP), *, deadline_s: float = 1.0
    ) -> Result:
        """`writeprotect`, tried again for `deadline_s` seconds where the mappings are being changed or an event is unread (EAGAIN)."""
        deadline = time.monotonic() + deadline_s
        while True:
            answer = self.writeprotect(start, length, mode)
            if answer.errno != errno.EAGAIN or time.monotonic() >= deadline:
                return answer
            time.sleep(_PAUSE_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether a message can be read; waits for one, at most `timeout_s`. The descriptor must be non-blocking."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        for _fd, events in poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000))):
            if events & select.POLLERR:
                raise UserfaultError(
                    errno.EINVAL, "a blocking userfaultfd can't be polled", "open it with nonblocking=True"
                )
            return True
        return False

    def read(self, most: int = 1) -> list[Message]:
        """Up to `most` messages; none where nothing is there (non-blocking). Reading a FORK lets fork(2) return."""
        try:
            data = os.read(self.fileno(), most * uapi.UFFD_MSG.size)
        except BlockingIOError:
            return []
        return list(_decode(data))


def until_done(
    step: Callable[[int], Progress], length: int, deadline_s: float = 1.0, busy_s: float = BUSY_S
) -> Progress:
    """`step(bytes done so far)` until `length` bytes are done or an error is final.

    An ioctl that stopped half-way says EAGAIN and how far it came: it is called again for the rest, and then says why. EAGAIN without
    progress (an event waits to be read, a lock was busy) is tried again for `deadline_s` seconds: whoever reads the events must not
    be the caller. EBUSY may pass (a page under I/O) or not (a page shared by fork): it is tried again for `busy_s` seconds.

    The result's field are the bytes of all calls together, if any, and its errno that of the last.
    """
    done = 0
    started = time.monotonic()
    while True:
        each = step(done)
        done += each.bytes
        if each.ok or done >= length:
            return Progress(0, done, each.moves)
        patience_s = {Outcome.RETRY: deadline_s, Outcome.BUSY: busy_s}.get(each.outcome, 0.0)
        if each.bytes:
            started = time.monotonic()
        elif time.monotonic() - started >= patience_s:
            return Progress(each.errno, done or each.field, each.moves)
        else:
            time.sleep(_PAUSE_S)


def _decode(data: bytes) -> Iterator[Message]:
    for event, one, two, three in uapi.UFFD_MSG.iter_unpack(data):
        match event:
            case Event.PAGEFAULT:
                yield Pagefault(two, PagefaultFlag(one), three & 0xFFFF_FFFF)
            case Event.FORK:
                yield Forked(Userfault(fd=one & 0xFFFF_FFFF))
            case Event.REMAP:
                yield Remapped(one, two, three)
            case Event.REMOVE:
                yield Removed(one, two)
            case Event.UNMAP:
                yield Unmapped(one, two)
            case _:
                raise UserfaultError(
                    errno.EPROTO,
                    f"unknown userfaultfd event {event:#x}",
                    "this version of userfault is too old for this kernel",
                )


def supported_features() -> Feature:
    """What the running kernel offers this user; none where no userfaultfd can be had."""
    try:
        with Userfault() as uffd:
            return uffd.supported
    except OSError:
        return Feature(0)


def _open(user_mode_only: bool | None, device: bool | None, nonblocking: bool) -> tuple[int, bool]:
    flags = os.O_CLOEXEC | (os.O_NONBLOCK if nonblocking else 0)
    refused = Result(-1, errno.ENOSYS)
    for only in (False, True) if user_mode_only is None else (user_mode_only,):
        if device is not True:
            refused = userfaultfd(flags | (uapi.USER_MODE_ONLY if only else 0))
            if refused.ok:
                return refused.value, only
        if device is not False and not only:
            answer = _open_device(flags)
            if answer.ok:
                return answer.value, only
            refused = answer if device else refused
    remedies = {
        errno.EPERM: "run as root, grant CAP_SYS_PTRACE, set vm.unprivileged_userfaultfd=1, or ask for user_mode_only",
        errno.EACCES: f"give this user access to {DEVICE} (udev rule or setfacl)",
        errno.ENOENT: f"this kernel has no {DEVICE} (since v6.1): use the system call",
        errno.ENOSYS: "this kernel is built without CONFIG_USERFAULTFD, or a seccomp filter hides it (containers): allow it there",
    }
    raise UserfaultError(
        refused.errno,
        f"no userfaultfd to be had ({errno_name(refused.errno)})",
        remedies.get(refused.errno, os.strerror(refused.errno)),
    )


def _open_device(flags: int) -> Result:
    try:
        control = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Result(-1, error.errno or errno.EIO)
    try:
        # The flags are the argument itself, not a pointer to it.
        return ioctl(control, Ioctl.NEW, flags)
    finally:
        os.close(control)
