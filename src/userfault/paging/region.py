"""A region: memory whose pages are fetched at the first touch, and leave when others need their place."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, Self

from . import flush as flushing
from . import journal
from .errors import PagingError
from .files import FileSource
from .native import MODES, PAGE_BYTES, POISONED, POLICIES, STATE_MASK, Pager, Settings, error_text, pager_library
from .retry import RetryPolicy
from .sizes import format_bytes, parse_bytes
from .source import NativeKind, NativeSource, Source, SourceError, Store, is_transient
from .stats import Stats
from .worker import _BOOT, Worker

Mode = Literal["threads", "sigbus"]
Policy = Literal["clock", "fifo", "lru"]
Access = Literal["r", "r+", "c"]

MAP_NORESERVE = 0x4000
HUGE_BYTES = 2 << 20
UNITS = (4 << 10, 64 << 10, 2 << 20)
RECORD_CAPACITY = 1 << 20
_KIND_WORKER = 3
_LOCAL = (NativeKind.ZERO, NativeKind.FILE, NativeKind.MEMORY)
_PROBE = "`userfault probe` says what this kernel and this user may do, and how to get more"

_living: weakref.WeakSet[Region] = weakref.WeakSet()


class Region(mmap.mmap):
    """Memory that a source fills at the first touch; anything that takes a buffer takes it (memoryview, numpy, Arrow).

    It is anonymous private memory: a missing page is never filled by the kernel, and a page that can't be filled is SIGBUS with a report,
    or an exception where the access is `read_at` or `write_at`; it is never zeros. Make one with `userfault.paging.open`.

    - **fork**: the child has no such memory (MADV_DONTFORK): touching it there is SIGSEGV, the methods raise PagingError.
    - **close_range, daemonize**: the handlers have descriptors of their own and go on.
    - **mremap**: what is moved away is filled at its new place, and is neither evicted nor flushed any more.
    - **madvise(MADV_DONTNEED)**: drops what was written since the page last left; the next touch reads it anew.
    - **munmap**: touching it is SIGSEGV.

    The inherited methods of `mmap.mmap` that would change its place or size are refused.
    """

    _pager: int
    _control: Pager

    def __new__(cls, size_bytes: int, unit_bytes: int, writable: bool) -> Self:
        """Reserve the address range; use `userfault.paging.open`."""
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        spacers = []
        for _ in range(8):
            region = super().__new__(cls, -1, size_bytes, flags=flags, prot=prot)
            excess = _address_of(region) % unit_bytes if unit_bytes >= HUGE_BYTES else 0
            if not excess:
                break
            # The kernel places mappings downwards, one below the other: fill up to a boundary, and try again.
            mmap.mmap.close(region)
            spacers.append(mmap.mmap(-1, excess, flags=flags, prot=0))
        else:
            raise PagingError(
                f"no address range of {format_bytes(size_bytes)} at a multiple of {format_bytes(unit_bytes)} was found",
                "use a smaller unit",
            )
        return region

    def __init__(self, size_bytes: int, unit_bytes: int, writable: bool) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pager = 0

    # Set up by `open_region`; separate so that a failure leaves a plain mapping to clean up.
    def _start(
        self,
        source: Source,
        worker: Worker | None,
        *,
        access: Access,
        unit_bytes: int,
        resident_bytes: int,
        mode: Mode,
        policy: Policy | int,
        handlers: int,
        swap_directory: str | None,
        prefetch_units: int,
        retry: RetryPolicy,
        stall_s: float,
        uffd: int,
        user_mode_only: bool,
        name: str,
    ) -> None:
        self._source, self._worker, self._access, self._retry = source, worker, access, retry
        self._store: Store | None = source if isinstance(source, Store) and not worker else None
        size = len(self)
        native = NativeSource(NativeKind.ZERO, source.size_bytes) if worker else source.native()
        assert native is not None
        settings = Settings(
            base=_address_of(self),
            length=-(-size // PAGE_BYTES) * PAGE_BYTES,
            size=size,
            unit=unit_bytes,
            budget_units=resident_bytes // unit_bytes,
            mode=MODES.index(mode),
            writable=access != "r",
            kind=_KIND_WORKER if worker else int(native.kind),
            handlers=handlers,
            policy=POLICIES.index(policy) if isinstance(policy, str) else POLICIES.index("custom"),
            policy_function=0 if isinstance(policy, str) else policy,
            direct=native.direct,
            align=native.alignment_bytes,
            retries=retry.attempt_count - 1,
            retry_us=int(retry.first_wait_s * 1e6),
            stall_ms=int(stall_s * 1000),
            prefetch_units=prefetch_units,
            source_fd=native.fd,
            uffd=uffd,
            swap_fd=-1,
            worker_fd=worker.fileno() if worker else -1,
            user_mode_only=user_mode_only,
            source_offset=native.offset_bytes,
            source_address=native.address,
            record_capacity=RECORD_CAPACITY,
            name=name.encode()[:255],
            peer_bytes=len(native.peer),
            peer_timeout_ms=max(1, int(native.timeout_s * 1000)),
        )
        # A ctypes char array assigned as a whole would end at the address's first zero.
        ctypes.memmove(ctypes.addressof(settings) + Settings.peer.offset, native.peer, len(native.peer))
        job = b""
        if worker:
            arguments = [sys.executable, "-c", _BOOT, "3", json.dumps(sys.path)]
            packed = b"".join(argument.encode() + b"\0" for argument in arguments)
            job = worker.job
            settings.spawn_argc = len(arguments)
            settings.arguments = ctypes.cast(ctypes.c_char_p(packed), ctypes.c_void_p).value or 0
            settings.arguments_bytes = len(packed)
            settings.job = ctypes.cast(ctypes.c_char_p(job), ctypes.c_void_p).value or 0
            settings.job_bytes = len(job)
        lib = pager_library()
        if access == "r":
            # The buffer stays read-only; moving pages in needs a mapping that is not.
            _protect(settings.base, settings.length)
        swap_fd = -1
        try:
            if access != "r":
                settings.swap_fd = swap_fd = _swap_file(swap_directory)
            code, step = ctypes.c_int(0), ctypes.create_string_buffer(256)
            pager = lib.pager_start(settings, code, step, 256)
        finally:
            if swap_fd >= 0:
                os.close(swap_fd)
        if not pager:
            raise PagingError(
                f"memory can't be paged here: {step.value.decode()} failed: {error_text(code.value)}", _PROBE
            )
        self._pager = pager
        self._control = Pager.from_address(pager)
        self._finalizer = weakref.finalize(self, _end, pager, self._pid, source, worker)
        _living.add(self)

    # -- looking at it --------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """Where the pages come from."""
        return self._source

    @property
    def unit_bytes(self) -> int:
        """How much one fault fetches."""
        return int(self._control.unit)

    @property
    def closed_for_good(self) -> bool:
        """Whether its memory is given back and its handlers have ended."""
        return not self._pager or not self._finalizer.alive

    def stats(self) -> Stats:
        """Counts and latencies since the region was opened; works on a closed region too. Raises PagingError in a forked child."""
        if self._pid != os.getpid():
            raise self._forked()
        return Stats.of(self._control)

    def resident_bytes(self) -> int:
        """How much of it is in memory now, as the pager counts (whole units)."""
        return self.stats().resident_bytes

    def __repr__(self) -> str:
        return f"<Region {self._source.name} of {format_bytes(self._control.size)}>" if self._pager else "<Region>"

    # -- asking for pages -----------------------------------------------------------------------------------------------

    def ensure(self, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Have a range in memory, so that system calls may use it where the region is served by SIGBUS or for user mode only.

        Under a budget the range must fit into it, and others may evict it again. Raises SourceError where a page can't be had,
        ValueError for a range outside.
        """
        offset, length = self._range(offset_bytes, length_bytes)
        failed = self._lib.pager_ensure(self._pager, offset, length)
        if failed:
            raise self._failure(failed - 1)

    def will_need(self, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Begin to fetch a range in the background. It returns at once; what can't be fetched is met again at its first touch."""
        offset, length = self._range(offset_bytes, length_bytes)
        if length:
            self._lib.pager_will_need(self._pager, offset, length)

    def evict(self, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Let the units of a range leave memory now; what was written is kept. Units in use (pinned, being filled) stay."""
        offset, length = self._range(offset_bytes, length_bytes)
        code = self._lib.pager_evict(self._pager, offset, length)
        if code < 0 and -code not in (errno.EAGAIN, errno.EBUSY):
            raise PagingError(
                f"evicting from {self._source.name} failed: {error_text(code)}", "is the swap directory full?"
            )

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """A copy of a range. Where a page can't be had, SourceError instead of SIGBUS; a later call tries again."""
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, data)
        return bytes(data)

    def read_into(self, offset_bytes: int, target: Any) -> None:
        """Copy the range that begins at `offset_bytes` into a writable buffer. Raises as `read_at`."""
        with memoryview(target).cast("B") as view:
            offset, length = self._range(offset_bytes, len(view))
            if length:
                here = (ctypes.c_char * length).from_buffer(view)
                self._copy(ctypes.addressof(here), offset, length, to_region=False)
                del here

    def write_at(self, offset_bytes: int, data: Any) -> None:
        """Copy `data` to `offset_bytes`. Raises as `read_at`, and TypeError where the region is read-only."""
        if self._access == "r":
            raise TypeError(f"{self._source.name} was opened read-only: open it with access='c' or 'r+'")
        payload = bytes(memoryview(data).cast("B"))
        offset, length = self._range(offset_bytes, len(payload))
        if length:
            at = ctypes.cast(ctypes.c_char_p(payload), ctypes.c_void_p).value or 0
            self._copy(at, offset, length, to_region=True)

    def _copy(self, other: int, offset: int, length: int, *, to_region: bool) -> None:
        end = offset + length
        while offset < end:
            # Piece by piece: a range larger than the budget passes through it.
            piece = min(end - offset, max(self.unit_bytes, 1 << 20))
            self.ensure(offset, piece)
            mine = self._base + offset
            fault = self._lib.pager_copy(mine, other, piece) if to_region else self._lib.pager_copy(other, mine, piece)
            if fault:
                raise self._failure(fault - 1 - self._base)
            offset, other = offset + piece, other + piece

    # -- dirty pages ----------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """From here on `dirty()` tells what is written from here on. Writes that run at the same time may count either way."""
        self._writable("mark")
        with self._lock:
            self._check(self._lib.pager_mark(self._pager), "mark")

    def dirty(self) -> list[tuple[int, int]]:
        """The pages written since the last `mark()`, or since the region was opened: sorted (offset_bytes, length_bytes), 4 KiB exact.

        Where an eviction met a concurrent fault and the old content can't be compared, a page may be listed that was not written.
        """
        self._writable("dirty")
        with self._lock:
            bits = self._bits()
            self._check(self._lib.pager_dirty(self._pager, bits), "dirty")
        size = self._control.size
        return [(at, min(length, size - at)) for at, length in _runs(bits, self._control.pages)]

    def flush(self, *_range: int) -> None:
        """Write back what was written since the last flush, and nothing else; it is durable when this returns.

        A file is changed all or nothing: a crash at any moment leaves the old state or, at the next open, the new one. Raises
        SourceError where the store fails (the pages stay dirty), PagingError for a copy-on-write region, which has no store.
        """
        if self._access == "r":
            return
        if self._access == "c":
            raise PagingError(
                f"{self._source.name} is opened copy-on-write: there is nowhere to flush to", "open it with access='r+'"
            )
        with self._lock:
            bits = self._bits()
            self._check(self._lib.pager_take_unsaved(self._pager, bits), "flush")
            stored = False
            try:
                self._write_back(_runs(bits, self._control.pages))
                stored = True
            finally:
                self._lib.pager_flushed(self._pager, stored)

    def _write_back(self, runs: Iterator[tuple[int, int]]) -> None:
        size = self._control.size
        pieces = [(at, min(length, size - at)) for at, length in runs]
        if not pieces:
            return
        if self._store is None:
            assert self._worker
            # Beside the faults, but into the same process: what it stores is what it reads.
            store = self._worker.store()
            self._retry.call(store.open, is_transient)
            self._store = store
        flushing.write_back(self._store, self.read_into, pieces, self._retry)

    # -- working sets ---------------------------------------------------------------------------------------------------

    def working_set(self) -> list[int]:
        """The units that were faulted in so far, in that order, each once: pass it to `replay` of a later run."""
        count = min(self._control.record_count, self._control.record_capacity)
        units = (ctypes.c_uint32 * count).from_address(self._pager + self._control.record_offset) if count else []
        return list(dict.fromkeys(units))

    def replay(self, working_set: list[int]) -> None:
        """Fetch a working set of an earlier run in the background, in its order."""
        start = previous = -2
        for unit in [*working_set, -2]:
            if unit != previous + 1 or unit < 0:
                if start >= 0:
                    self.will_need(start * self.unit_bytes, (previous - start) * self.unit_bytes + 1)
                start = unit
            previous = unit

    # -- ending it ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush, and give the memory back. Raises BufferError while a view of it lives (an array, a memoryview): delete that first."""
        if self._pid != os.getpid():
            raise self._forked()
        if not self._pager or not self._finalizer.alive:
            mmap.mmap.close(self)
            return
        if self._access == "r+":
            self.flush()
        try:
            mmap.mmap.close(self)
        except BufferError:
            raise BufferError(
                f"{self._source.name} can't be closed while views of it live (memoryviews, arrays): delete them first"
            ) from None
        if self._store is not None and self._worker is not None:
            self._store.close()
        # What the finalizer needs of the control block is copied: stats() of a closed region are its last ones.
        control = Pager.from_buffer_copy(self._control)
        self._finalizer()
        self._control = control
        _living.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it, or, where views of it still live, flush it: it then ends with its last view."""
        with suppress(BufferError):
            self.close()

    def resize(self, newsize: int) -> None:
        """Refused: a region keeps its size."""
        raise TypeError("a region can't be resized: open another one")

    # -- inside ---------------------------------------------------------------------------------------------------------

    @property
    def _base(self) -> int:
        return int(self._control.base)

    @property
    def _lib(self) -> ctypes.CDLL:
        if self._pid != os.getpid():
            raise self._forked()
        if not self._pager or not self._finalizer.alive:
            raise ValueError("the region is closed")
        return pager_library()

    def _forked(self) -> PagingError:
        return PagingError(
            f"{self._source.name} is not in this process, which was forked from the one that opened it (pid {self._pid})",
            "open it again in the child",
        )

    def _range(self, offset: int, length: int | None) -> tuple[int, int]:
        size = self._control.size
        if length is None:
            length = max(0, size - offset)
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"offset {offset}, length {length}: {self._source.name} has bytes 0 to {size}")
        return offset, length

    def _writable(self, what: str) -> None:
        if self._access == "r":
            raise PagingError(
                f"{what}() of a read-only region: nothing can be written to it", "open it with access='c' or 'r+'"
            )

    def _bits(self) -> ctypes.Array[ctypes.c_uint64]:
        words: int = -(-self._control.pages // 64)
        return (ctypes.c_uint64 * words)()

    def _check(self, code: int, what: str) -> None:
        if code:
            raise PagingError(f"{what}() of {self._source.name} failed: {error_text(code)}", "is it still mapped?")

    def _failure(self, offset: int) -> SourceError:
        """The last error that covers `offset`, as the exception that it is."""
        best = None
        for failure in self._control.errors:
            covers = failure.sequence and failure.offset <= offset < failure.offset + failure.length
            if covers and (best is None or failure.sequence > best.sequence):
                best = failure
        length = min(self.unit_bytes, self._control.size - offset)
        if best is None:
            return SourceError("read", self._source.name, offset, length, "the page is no longer part of the region")
        if best.worker:
            with suppress(ValueError):
                return SourceError.from_record(best.text)
        cause = f"{best.text.decode(errors='replace')}: {error_text(best.code)}" if best.code else best.text.decode()
        return SourceError("read", self._source.name, best.offset, best.length, cause, errno=best.code)

    def state_of(self, offset_bytes: int) -> str:
        """`absent`, `filling`, `present`, `evicting`, `poisoned` or `gone`: what the pager thinks of the unit at an offset."""
        unit = offset_bytes // self.unit_bytes
        word = ctypes.c_uint32.from_address(self._pager + self._control.state_offset + 4 * unit).value
        return ("absent", "filling", "present", "evicting", "poisoned", "gone")[word & STATE_MASK]


def open_region(
    source: Source,
    *,
    access: Access = "r",
    resident: int | str | None = None,
    unit: int | str = "64 KiB",
    mode: Mode = "threads",
    policy: Policy | Callable[..., Any] | int = "clock",
    handlers: int | None = None,
    swap_directory: str | os.PathLike[str] | None = None,
    prefetch_units: int | None = None,
    retry: RetryPolicy | None = None,
    stall_s: float = 10.0,
    user_mode_only: bool = False,
    name: str | None = None,
) -> Region:
    """What `userfault.paging.open` does once it has a source; that one's docstring explains the arguments."""
    unit_bytes = parse_bytes(unit, "unit")
    if unit_bytes not in UNITS:
        raise ValueError(f"unit={unit!r}: a unit is 4 KiB, 64 KiB or 2 MiB")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: it is one of {', '.join(MODES)}")
    if access not in ("r", "r+", "c"):
        raise ValueError(f"access={access!r}: it is 'r' (read-only), 'r+' (written back) or 'c' (copy-on-write)")
    resident_bytes = 0 if resident is None else parse_bytes(resident, "resident")
    if resident is not None and resident_bytes < 2 * unit_bytes:
        raise ValueError(
            f"resident={resident!r}: the budget must hold at least two units of {format_bytes(unit_bytes)}"
        )
    if isinstance(policy, str) and policy not in POLICIES[:3]:
        raise ValueError(f"policy={policy!r}: it is 'clock', 'fifo', 'lru' or a C function")
    retry = retry or RetryPolicy()
    pager_library()
    worker: Worker | None = None
    region: Region | None = None
    uffd, user_mode_only = _userfaultfd(mode, access, user_mode_only)
    try:
        if source.in_worker:
            worker = Worker(source, uffd, retry)
            worker.wait_ready()
            size_bytes, is_store = worker.size_bytes, worker.is_store
        else:
            if isinstance(source, FileSource):
                journal.recover(source.path)
            source.open()
            size_bytes, is_store = source.size_bytes, isinstance(source, Store)
        if not size_bytes:
            raise PagingError(
                f"{source.name} is empty: there is no memory of 0 bytes", "page something with data in it"
            )
        if access == "r+" and not is_store:
            raise ValueError(f"{source.name} can't be written back: open it with access='c' to write to a copy")
        if prefetch_units is None:
            # Copying 4 KiB from this machine costs less than handing it to another thread.
            native = None if worker else source.native()
            cheap = unit_bytes == PAGE_BYTES and native is not None and native.kind in _LOCAL
            prefetch_units = 0 if cheap or unit_bytes >= HUGE_BYTES else max(4, (256 << 10) // unit_bytes)
        if handlers is None:
            handlers = 2
        region = Region(size_bytes, unit_bytes, access != "r")
        region._start(
            source,
            worker,
            access=access,
            unit_bytes=unit_bytes,
            resident_bytes=resident_bytes,
            mode=mode,
            policy=policy if isinstance(policy, str) else _function_address(policy),
            handlers=max(1, min(handlers, 13)),
            swap_directory=os.fspath(swap_directory) if swap_directory is not None else None,
            prefetch_units=prefetch_units,
            retry=retry,
            stall_s=stall_s,
            uffd=uffd,
            user_mode_only=user_mode_only,
            name=name or source.name,
        )
        return region
    except BaseException:
        if region is None or not region._pager:
            os.close(uffd)
        if region is not None:
            mmap.mmap.close(region)
        if worker is not None:
            worker.kill()
        else:
            source.close()
        raise


def _end(pager: int, pid: int, source: Source, worker: Worker | None) -> None:
    """The region's memory is gone, or going: stop its threads, close its source."""
    if pid != os.getpid():
        return
    lib = pager_library()
    lib.pager_stop(pager)
    replaced = Pager.from_address(pager).count.worker_restart_count
    lib.pager_free(pager)
    if worker is not None and replaced:
        worker.kill()
    elif worker is not None:
        try:
            worker.close()
        except SourceError as error:
            warnings.warn(str(error), ResourceWarning, stacklevel=2)
    source.close()


def _userfaultfd(mode: str, access: str, user_mode_only: bool) -> tuple[int, bool]:
    """A userfaultfd with the features that a region needs, and whether it is for user mode only."""
    only = ctypes.c_int(user_mode_only)
    fd = pager_library().pager_userfaultfd(MODES.index(mode), access != "r", only)
    if fd == -errno.ENOSYS:
        raise PagingError(
            "this kernel can't move, poison and write-protect pages by userfaultfd", f"run Linux 6.8 or newer; {_PROBE}"
        )
    if fd < 0:
        raise PagingError(f"no userfaultfd can be opened: {error_text(fd)}", _PROBE)
    return fd, bool(only.value)


def _address_of(region: mmap.mmap) -> int:
    from .memory import address_of

    with memoryview(region) as view:
        return address_of(view)


def _protect(base: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(base, length, mmap.PROT_READ | mmap.PROT_WRITE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _swap_file(directory: str | None) -> int:
    """A file without a name: whatever happens to this process, it leaves nothing behind."""
    directory = directory or os.environ.get("USERFAULT_SWAP_DIRECTORY") or tempfile.gettempdir()
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        with suppress(OSError):
            fd, path = tempfile.mkstemp(prefix="userfault-", dir=directory)
            os.unlink(path)
            return fd
        raise PagingError(
            f"no swap file can be made in {directory}: {error.strerror}",
            "pass swap_directory= with room for what you write",
        ) from error


def _function_address(policy: Callable[..., Any] | int) -> int:
    """Of a C function. A Python one would need the interpreter of the process that faults."""
    if isinstance(policy, int):
        return policy
    address = getattr(policy, "address", None)  # numba's cfunc
    if isinstance(address, int):
        return address
    # A Python function behind a ctypes prototype keeps its thunk; a library's keeps the library.
    kept = (getattr(policy, "_objects", None) or {}).values()
    thunk = any(type(each).__name__ == "CThunkObject" for each in kept)
    if isinstance(policy, ctypes._CFuncPtr) and not thunk:  # type: ignore[attr-defined]
        return ctypes.cast(policy, ctypes.c_void_p).value or 0
    raise TypeError(
        "an eviction policy runs where no Python can: pass a C function `u32 choose(void *, const u32 *units, u32 count)` "
        "(its address, a function of a ctypes library, or numba's cfunc), which returns the index of the one to evict"
    )


def _runs(bits: ctypes.Array[ctypes.c_uint64], pages: int) -> Iterator[tuple[int, int]]:
    """(offset_bytes, length_bytes) of the runs of ones."""
    start = None
    for index, word in enumerate(bits):
        if word == 0:
            if start is not None:
                yield start * PAGE_BYTES, (index * 64 - start) * PAGE_BYTES
                start = None
            continue
        if word == 0xFFFFFFFFFFFFFFFF:
            if start is None:
                start = index * 64
            continue
        for at in range(64):
            page = index * 64 + at
            if word >> at & 1 and page < pages:
                if start is None:
                    start = page
            elif start is not None:
                yield start * PAGE_BYTES, (page - start) * PAGE_BYTES
                start = None
    if start is not None:
        yield start * PAGE_BYTES, (pages - start) * PAGE_BYTES


def _after_fork_in_child() -> None:
    """The range that the child does not have stays reserved: its own mappings must not land where the parent's region is thought to be."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    MAP_FIXED_NOREPLACE = 0x100000
    for region in list(_living):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
        libc.mmap(region._control.base, region._control.length, 0, flags, -1, 0)


os.register_at_fork(after_in_child=_after_fork_in_child)

assert POISONED == 4
