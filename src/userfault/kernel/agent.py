"""The process that operations are done to (native/agent*.c): lists of system calls and accesses, and what was seen after each."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..native import library, why_missing
from .errors import KernelError, Unavailable, limit_met
from .pagemap import known_categories
from .uapi import PageIs
from .workers import end_with

PROCESSES = 8
SCRATCH = 8
SYSCALL, LOAD, STORE, FORK, EXIT, MEANWHILE, PIN, UNPIN, HOLD, RELEASE, KSM, VMREAD = range(12)
SLOTS = 4
"""How many pages a process can keep pinned, and how many held."""
MEANWHILE_DONE, RESOLVED = 1, 2
"""Messages of the agent's own among those of userfaultfds: what was done while one was unread, and what ended a fault."""

VM_FLAGS = ("rd", "wr", "ex", "dc", "lo", "lf", "um", "uw", "hg", "nh", "wf", "dd", "ac", "mg")
"""What smaps calls the flags of VMAs that are compared."""

OP = struct.Struct("<IIQ6QQ8Q")
RESULT = struct.Struct("<qq8Q")
VMAS_BYTES = 8 + 64 * 16
HEADER_BYTES = VMAS_BYTES + 8 + 64 * 24
CONTROL_BYTES = 8192
MESSAGE = struct.Struct("<5q")
MESSAGES = 32
RECORD_HEAD_BYTES = 16 + MESSAGES * MESSAGE.size
MASK = (1 << 64) - 1


class Command(NamedTuple):
    """One operation. kind: SYSCALL, LOAD, STORE, FORK, EXIT, MEANWHILE, PIN, UNPIN, HOLD, RELEASE, KSM or VMREAD; process: who does it.

    number, arguments: the system call's; arguments whose bit is set in `pointers` are byte offsets into the scratch words, which
    the call reads and writes. LOAD and STORE take an address and a word; FORK the new process's number. MEANWHILE is an ioctl
    (descriptor, request, 0, the scratch word with its output field or -1) that is done when the next message of a userfaultfd
    waits to be read. PIN and HOLD take a slot and an address: the page is pinned for writing (FOLL_PIN, a registered buffer of an
    io_uring), or only referred to (a pipe, vmsplice); UNPIN and RELEASE take the slot, and the latter answers with the word that
    stands for what the page holds then (hash_page). KSM takes what ksmd shall do: 1, whole scans until nothing changes any more; 2,
    to unmerge everything. It needs an area that may be merged in every process. VMREAD takes an address, whose word process_vm_readv
    puts in the first scratch word: the page is pinned for reading (FOLL_PIN) as long as that takes.
    """

    kind: int
    process: int
    number: int = 0
    arguments: tuple[int, ...] = ()
    pointers: int = 0
    scratch: tuple[int, ...] = ()


NOT_SET_UP, WHY_BYTES = 1, 512
"""The exit code of a process that could not begin, and the room that its reason gets where records would be."""


class Answer(NamedTuple):
    """What an operation returned. value: the system call's result or -errno, or the word loaded; signal: what an access raised."""

    value: int
    signal: int
    scratch: tuple[int, ...]


class Message(NamedTuple):
    """What a userfaultfd said: its number, and UFFD_EVENT_* with three words, addresses among them relative to the origin.

    PAGEFAULT: address, flags, process. FORK: the number of the child's userfaultfd. REMAP: from, to, length. REMOVE, UNMAP: start,
    end. MEANWHILE_DONE, RESOLVED: result and output field of an ioctl.
    """

    event: int
    fd: int
    first: int = 0
    second: int = 0
    third: int = 0


@dataclass(frozen=True)
class Seen:
    """What was seen of one process after an operation: its VMAs (first page, end page, flags) and two words a page.

    areas: what smaps says of each VMA, where it was looked at: its flags (as bits in the order of VM_FLAGS), pages that are
    resident, swapped out, mapped as huge pages and lazily freed, KiB locked.
    """

    process: int
    vmas: tuple[tuple[int, int, int], ...]
    words: memoryview
    contents: memoryview
    areas: tuple[tuple[int, ...], ...] = ()


class AgentError(KernelError):
    """The agent could not do its work: what failed, and what to do."""


class Control(ctypes.Structure):
    """struct agent."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("ops", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("contents", ctypes.c_uint64),
        ("areas", ctypes.c_uint64),
        ("record_bytes", ctypes.c_uint64),
        ("look", ctypes.c_uint64),
        ("categories", ctypes.c_uint64),
        ("procmap_query", ctypes.c_uint64),
        ("origin", ctypes.c_uint64),
        ("contexts", ctypes.c_uint64),
        ("first_context", ctypes.c_uint64),
        ("meanwhile", ctypes.c_uint64),
        ("messages", ctypes.c_uint64),
        ("message", ctypes.c_uint64 * 5 * MESSAGES),
        ("pid", ctypes.c_int64 * PROCESSES),
        ("parent_pid", ctypes.c_int64 * PROCESSES),
        ("parent", ctypes.c_int32 * PROCESSES),
        ("command", ctypes.c_int32 * 2 * PROCESSES),
        ("answer", ctypes.c_int32 * 2 * PROCESSES),
        ("pagemap", ctypes.c_int32 * PROCESSES),
        ("maps", ctypes.c_int32 * PROCESSES),
        ("mem", ctypes.c_int32 * PROCESSES),
        ("smaps", ctypes.c_int32 * PROCESSES),
        ("kpagecount", ctypes.c_int32),
        ("kpageflags", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Run:
    """What came of a list of operations. done: how many were finished; hung: the deadline passed in the next one."""

    answers: list[Answer]
    records: list[list[Seen]]
    done: int
    hung: bool
    status: int
    messages: list[list[Message]]
    """Of each operation."""


class Agent:
    """Shared memory for runs of up to `capacity` operations in a window of `pages` pages at `base` (bytes).

    Raises AgentError where the native library is missing.
    """

    def __init__(self, base: int, pages: int, capacity: int) -> None:
        lib = library()
        if lib is None:
            raise AgentError(why_missing())
        self._lib = lib
        lib.uf_agent_sizes.restype = ctypes.c_uint64
        sizes = [lib.uf_agent_sizes(what) for what in range(6)]
        known = [OP.size, RESULT.size, HEADER_BYTES, ctypes.sizeof(Control), PROCESSES, RECORD_HEAD_BYTES]
        if sizes != known:
            raise AgentError("the native library is of another version: reinstall userfault")
        self.base, self.pages, self.capacity = base, pages, capacity
        self._categories = int(known_categories() & ~PageIs.SOFT_DIRTY)
        self._seen_bytes = HEADER_BYTES + pages * 16
        self._record_bytes = RECORD_HEAD_BYTES + PROCESSES * self._seen_bytes
        self._ops_at = CONTROL_BYTES
        self._results_at = self._ops_at + capacity * OP.size
        self._records_at = -(-(self._results_at + capacity * RESULT.size) // 4096) * 4096
        self._memory = mmap.mmap(-1, self._records_at + capacity * self._record_bytes)
        self._view = memoryview(self._memory)
        self._control = Control.from_buffer(self._memory)
        self._at = ctypes.addressof(self._control)

    def run(
        self,
        commands: Sequence[Command],
        setup: Callable[[], None],
        *,
        seconds: float,
        observed: bool = True,
        slice: int = 0,
        areas: int = 0,
        userfaultfds: tuple[int, int, int] = (0, 0, 0),
    ) -> Run:
        """Do the operations in a fresh process, after `setup` in it; kill it and its children when `seconds` are over.

        slice: pages whose contents are looked at after each operation, a different part each time (0: all).
        areas: operations between two looks at smaps, which is also looked at after the last one (0: never).
        userfaultfds: (how many, the descriptor of the first, the origin of addresses in their messages): a thread reads what they
        say, resolves faults, and leaves the userfaultfds of children at the next descriptors (0: nobody reads).

        Raises AgentError for too many operations, Unavailable where this user or kernel does not have what the process needs.
        """
        if len(commands) > self.capacity:
            raise AgentError(
                f"{len(commands)} operations are more than the {self.capacity} that the agent was made for"
            )
        for number, each in enumerate(commands):
            arguments = [value & MASK for value in each.arguments]
            scratch = [value & MASK for value in each.scratch]
            OP.pack_into(
                self._memory,
                self._ops_at + number * OP.size,
                each.kind,
                each.process,
                each.number,
                *arguments,
                *(0,) * (6 - len(arguments)),
                each.pointers,
                *scratch,
                *(0,) * (SCRATCH - len(scratch)),
            )
        control = self._control
        ctypes.memset(self._at, 0, ctypes.sizeof(control))
        control.base, control.pages, control.ops = self.base, self.pages, len(commands)
        control.contents, control.areas, control.record_bytes = slice, areas, self._record_bytes
        control.categories = self._categories
        control.contexts, control.first_context, control.origin = userfaultfds
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            end_with(parent)
            self._child(setup, observed)
        try:
            status, hung = wait_for(pid, seconds)
        except BaseException:
            kill(pid)
            os.waitpid(pid, 0)
            raise
        finally:
            for child in control.pid[1:]:
                if child > 0:
                    kill(child)
        done = int(control.done)
        answers = []
        for number in range(done):
            value, raised, *scratch = RESULT.unpack_from(self._memory, self._results_at + number * RESULT.size)
            answers.append(Answer(value, raised, tuple(scratch)))
        if not done and os.waitstatus_to_exitcode(status) == NOT_SET_UP:
            said = bytes(self._view[self._records_at : self._records_at + WHY_BYTES])
            why, _, remedy = said.rstrip(b"\0").decode(errors="replace").partition("\0")
            raise Unavailable(f"the process that operations are done to could not be set up: {why}", remedy)
        records = [self._record(number) for number in range(done)] if observed else []
        messages = [self._messages(number) for number in range(done)] if observed else []
        return Run(answers, records, done, hung, status, messages)

    def _child(self, setup: Callable[[], None], observed: bool) -> None:
        try:
            setup()
            failed = self._lib.uf_agent_open(ctypes.c_void_p(self._at))
            if failed:
                raise OSError(-failed, f"/proc/self/pagemap, kpagecount, kpageflags: {os.strerror(-failed)}")
        except BaseException as error:
            missing = limit_met(error) or (error if isinstance(error, Unavailable) else None)
            missing = missing or Unavailable(
                str(getattr(error, "strerror", None) or error),
                "run as root; `userfault probe --missing` says what else is not there",
            )
            why = f"{missing.reason}\0{missing.remedy}".encode()[:WHY_BYTES]
            self._view[self._records_at : self._records_at + WHY_BYTES] = why.ljust(WHY_BYTES, b"\0")
            os._exit(NOT_SET_UP)
        self._lib.uf_agent_run(
            ctypes.c_void_p(self._at),
            ctypes.c_void_p(self._at + self._ops_at),
            ctypes.c_void_p(self._at + self._results_at),
            ctypes.c_void_p(self._at + self._records_at),
            int(observed),
        )
        os._exit(0)

    def _messages(self, number: int) -> list[Message]:
        at = self._records_at + number * self._record_bytes
        (told,) = struct.unpack_from("<Q", self._memory, at + 8)
        return [Message(*MESSAGE.unpack_from(self._memory, at + 16 + each * MESSAGE.size)) for each in range(told)]

    def _record(self, number: int) -> list[Seen]:
        at = self._records_at + number * self._record_bytes
        (live,) = struct.unpack_from("<Q", self._memory, at)
        out = []
        for which in range(live):
            start = at + RECORD_HEAD_BYTES + which * self._seen_bytes
            process, vmas = struct.unpack_from("<II", self._memory, start)
            listed = struct.unpack_from(f"<{4 * vmas}I", self._memory, start + 8)
            (areas,) = struct.unpack_from("<I", self._memory, start + VMAS_BYTES)
            fields = struct.unpack_from(f"<{6 * areas}I", self._memory, start + VMAS_BYTES + 8)
            words = start + HEADER_BYTES
            contents = words + self.pages * 8
            out.append(
                Seen(
                    process,
                    tuple(zip(listed[0::4], listed[1::4], listed[2::4], strict=True)),
                    self._view[words:contents].cast("Q"),
                    self._view[contents : contents + self.pages * 8].cast("Q"),
                    tuple(fields[at : at + 6] for at in range(0, 6 * areas, 6)),
                )
            )
        return out

    def hash_page(self, data: bytes) -> int:
        """The word that stands for a page's contents."""
        function = self._lib.uf_hash_page
        function.restype = ctypes.c_uint64
        return int(function(data.ljust(4096, b"\0")))


def wait_for(pid: int, seconds: float) -> tuple[int, bool]:
    """Wait for a process, which is killed when the time is over: its status, and whether it was."""
    with open_pidfd(pid) as handle:
        poll = select.poll()
        poll.register(handle.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            if time.monotonic() >= end:
                kill(pid)
                return os.waitpid(pid, 0)[1], True
    return os.waitpid(pid, 0)[1], False


class open_pidfd:
    """A file descriptor of a process, closed at the end."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._fd

    def __enter__(self) -> open_pidfd:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
