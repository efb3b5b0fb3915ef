"""A region: memory whose pages are fetched at the first touch, and leave when others need their place."""

from __future__ import annotations

import atexit
import ctypes
import errno
import mmap
import operator
import os
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, Self

from ..kernel import memory
from . import flush as flushing
from .errors import PagingError
from .memory import address_of
from .native import PAGE_BYTES, POISONED, STATE_MASK, Pager, error_text, pager_library
from .retry import RetryPolicy
from .runs import runs_of
from .sizes import format_bytes
from .source import Source, SourceError, Store, is_transient
from .stats import Stats
from .worker import Worker

Mode = Literal["threads", "sigbus"]
Policy = Literal["clock", "fifo", "lru", "rank"]
Access = Literal["r", "r+", "c"]

HUGE_BYTES = 2 << 20
PLACES_MAX = 4096
"""How many places in the address space are tried."""

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
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory.MAP_NORESERVE
        fillers: list[tuple[int, int]] = []
        try:
            for _ in range(PLACES_MAX):
                try:
                    region = super().__new__(cls, -1, size_bytes, flags=flags, prot=prot)
                except (OSError, OverflowError) as error:
                    raise PagingError(
                        f"no address range of {format_bytes(size_bytes)} can be had: {error}", "page a part of it"
                    ) from error
                at = mapped_at(region)
                excess = at % unit_bytes if unit_bytes >= HUGE_BYTES else 0
                if not excess:
                    return region
                # The kernel took the end of the highest hole that is large enough: fill that up to a boundary, or all of it, and ask again.
                mmap.mmap.close(region)
                end = at + -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
                while (
                    excess
                    and not memory.mmap(end - excess, excess, memory.PROT_NONE, flags | memory.MAP_FIXED_NOREPLACE).ok
                ):
                    excess = excess // 2 // PAGE_BYTES * PAGE_BYTES
                fillers.append((end - excess, excess))
        finally:
            for at, length in fillers:
                memory.munmap(at, length)
        raise PagingError(
            f"no address range of {format_bytes(size_bytes)} at a multiple of {format_bytes(unit_bytes)} was found",
            "use a smaller unit",
        )

    def __init__(self, size_bytes: int, unit_bytes: int, writable: bool) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pager = 0

    def _adopt(
        self,
        pager: int,
        source: Source,
        worker: Worker | None,
        access: Access,
        retry: RetryPolicy,
        ranks: mmap.mmap | None,
    ) -> None:
        """From here on the pager serves it; before, it is a plain mapping, and `close()` of it is that of a mapping."""
        self._source, self._worker, self._access, self._retry, self._ranks = source, worker, access, retry, ranks
        self._store: Store | None = source if isinstance(source, Store) and not worker else None
        self._pager = pager
        self._control = Pager.from_address(pager)
        self._finalizer = weakref.finalize(self, _end, pager, self._pid, source, worker, ranks)
        # Not when the interpreter exits: its memory may still be touched then, and nobody would fill it.
        self._finalizer.atexit = False
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
    def ranks(self) -> memoryview:
        """A rank for each unit, as unsigned 32-bit numbers, all 0 at first: with policy="rank" the lowest of 16 candidates leaves.

        It is ordinary memory (`numpy.asarray(memory.ranks)[hot] = 9`): write to it whenever you like, from any thread. It outlives the
        region. Raises PagingError where the policy is another one.
        """
        if self._ranks is None:
            raise PagingError(
                f"{self._source.name} has no ranks: its policy is another one", 'open it with policy="rank"'
            )
        return memoryview(self._ranks).cast("I")

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
        self._have(offset, length, None)

    def _have(self, offset: int, length: int, content: int | None) -> None:
        """Have it in memory. `content`, an address, is what it is about to be overwritten with: whole units of it are then not fetched."""
        failed = self._call("pager_ensure", offset, length, content)
        if failed:
            raise self._failure(failed - 1)

    def will_need(self, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Begin to fetch a range in the background. It returns at once; what can't be fetched is met again at its first touch."""
        offset, length = self._range(offset_bytes, length_bytes)
        if length:
            self._call("pager_will_need", offset, length)

    def evict(self, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Let the units of a range leave memory now; what was written is kept. Units in use (pinned, being filled) stay."""
        offset, length = self._range(offset_bytes, length_bytes)
        code = self._call("pager_evict", offset, length)
        if code < 0 and -code not in (errno.EAGAIN, errno.EBUSY):
            raise PagingError(
                f"evicting from {self._source.name} failed: {error_text(code)}", "is the swap directory full?"
            )

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """A copy of a range. Where a page can't be had, SourceError instead of SIGBUS; a later call tries again."""
        self._range(offset_bytes, length_bytes)
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, data)
        return bytes(data)

    def read_into(self, offset_bytes: int, target: Any) -> None:
        """Copy the range that begins at `offset_bytes` into a writable buffer. Raises as `read_at`."""
        with memoryview(target).cast("B") as view:
            offset, length = self._range(offset_bytes, len(view))
            if length:
                here = (ctypes.c_char * length).from_buffer(view)
                for at, count in self._pieces(offset, length):
                    self._have(at, count, None)
                    self._copy(ctypes.addressof(here) + at - offset, self._base + at, count)
                del here

    def write_at(self, offset_bytes: int, data: Any) -> None:
        """Copy `data` to `offset_bytes`. Units that it overwrites whole are not fetched.

        Raises as `read_at`, and TypeError where the region is read-only.
        """
        if self._access == "r":
            raise TypeError(f"{self._source.name} was opened read-only: open it with access='c' or 'r+'")
        with memoryview(data).cast("B") as view:
            offset, length = self._range(offset_bytes, len(view))
            # What lies in the region itself would be overwritten while it is copied.
            inside = address_of(view) < self._base + self._control.length and address_of(view) + length > self._base
            rest = memoryview(bytes(view)) if inside else view
            for at, count in self._pieces(offset, length):
                # The pager copies it while it owns a unit, when nothing may fault: data may be paged themselves.
                piece = bytes(rest[at - offset : at - offset + count])
                here = ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p).value or 0
                self._have(at, count, here)
                self._copy(self._base + at, here, count)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """A range larger than the budget passes through it piece by piece, and what was made ready is still there when it is copied."""
        end, unit_bytes = offset + length, self.unit_bytes
        budget_bytes = self._control.budget_units * unit_bytes or 2 << 20
        most = max(1, min(1 << 20, budget_bytes // 2) // unit_bytes) * unit_bytes
        while offset < end:
            count = min(end, offset // unit_bytes * unit_bytes + most) - offset
            yield offset, count
            offset += count

    def _copy(self, to: int, source: int, length: int) -> None:
        with self._held():
            fault = pager_library().pager_copy(to, source, length)
        if fault:
            raise self._failure(fault - 1 - self._base)

    # -- dirty pages ----------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """From here on `dirty()` tells what is written from here on. Writes that run at the same time may count either way."""
        self._writable("mark")
        with self._lock:
            self._check(self._call("pager_mark"), "mark")

    def dirty(self) -> list[tuple[int, int]]:
        """The pages written since the last `mark()`, or since the region was opened: sorted (offset_bytes, length_bytes), 4 KiB exact.

        A write that leaves a page as it was, in the very moment of its eviction, may not be listed.
        """
        self._writable("dirty")
        with self._lock:
            bits = self._bits()
            self._check(self._call("pager_dirty", bits), "dirty")
        size = self._control.size
        return [(at, min(length, size - at)) for at, length in runs_of(bits, self._control.pages)]

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
            with self._held():
                self._check(self._call("pager_take_unsaved", bits), "flush")
                stored = False
                try:
                    self._write_back(runs_of(bits, self._control.pages))
                    stored = True
                finally:
                    self._call("pager_flushed", stored)

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
        with self._held():
            count = min(self._control.record_count, self._control.record_capacity)
            units = (ctypes.c_uint32 * count).from_address(self._pager + self._control.record_offset) if count else []
            return list(dict.fromkeys(units))

    def replay(self, working_set: list[int]) -> None:
        """Fetch a working set of an earlier run in the background, in its order. Raises ValueError for units that there are not."""
        if working_set and min(working_set) < 0:
            raise ValueError(f"unit {min(working_set)}: units count from 0")
        start = previous = -2
        for unit in [*working_set, -2]:
            if unit != previous + 1 or unit < 0:
                if start >= 0:
                    self.will_need(start * self.unit_bytes, (previous - start) * self.unit_bytes + 1)
                start = unit
            previous = unit

    # -- ending it ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush, and give the memory back. Raises BufferError while a view of it lives (an array, a memoryview): delete that first.

        The same while another thread is in a call of it.
        """
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
                f"{self._source.name} can't be closed while views of it live (memoryviews, arrays): delete them first, "
                "and let calls of it return"
            ) from None
        if self._store is not None and self._worker is not None:
            self._store.close()
        # What the finalizer needs of the control block is copied: stats() of a closed region are its last ones.
        pager, self._control = self._pager, Pager.from_buffer_copy(self._control)
        self._finalizer.detach()
        _end(pager, self._pid, self._source, self._worker, self._ranks)
        _living.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it, or, where views of it still live, flush it: it then ends with its last view."""
        with suppress(BufferError):
            self.close()

    def __del__(self) -> None:
        """Flushing can't wait for a collection, which may come at any moment and in any thread; losing something in silence must not be."""
        if not getattr(self, "_pager", 0) or self.closed_for_good or self._access != "r+" or self._pid != os.getpid():
            return
        bits = self._bits()
        pager_library().pager_take_unsaved(self._pager, bits)
        lost = sum(length for _, length in runs_of(bits, self._control.pages))
        if lost:
            warnings.warn(
                f"{format_bytes(lost)} written to {self._source.name} since its last flush are lost with its last view: "
                "call flush() or close() before that",
                RuntimeWarning,
                stacklevel=2,
            )

    def resize(self, newsize: int) -> None:
        """Refused: a region keeps its size."""
        raise TypeError("a region can't be resized: open another one")

    # -- inside ---------------------------------------------------------------------------------------------------------

    @property
    def _base(self) -> int:
        return int(self._control.base)

    def _held(self) -> memoryview:
        """Whoever has it keeps other threads from closing the region. Raises ValueError where it is closed."""
        if self._pid != os.getpid():
            raise self._forked()
        if self.closed_for_good or self.closed:
            raise ValueError("the region is closed")
        return memoryview(self)

    def _call(self, function: str, *arguments: Any) -> Any:
        """A function of the C pager."""
        with self._held():
            return getattr(pager_library(), function)(self._pager, *arguments)

    def _forked(self) -> PagingError:
        return PagingError(
            f"{self._source.name} is not in this process, which was forked from the one that opened it (pid {self._pid})",
            "open it again in the child",
        )

    def _range(self, offset: int, length: int | None) -> tuple[int, int]:
        size, offset = self._control.size, operator.index(offset)
        length = max(0, size - offset) if length is None else operator.index(length)
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
        """`absent`, `filling`, `present`, `evicting`, `poisoned`, `gone` or `limbo`: what the pager thinks of the unit at an offset."""
        with self._held():
            unit = self._range(offset_bytes, 1)[0] // self.unit_bytes
            word = ctypes.c_uint32.from_address(self._pager + self._control.state_offset + 4 * unit).value
        return ("absent", "filling", "present", "evicting", "poisoned", "gone", "limbo")[word & STATE_MASK]


def _end(pager: int, pid: int, source: Source, worker: Worker | None, _ranks: mmap.mmap | None) -> None:
    """The region's memory is gone, or going: stop its threads, which may look at the ranks until then, and close its source."""
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


def mapped_at(region: mmap.mmap) -> int:
    """The address that a mapping begins at."""
    with memoryview(region) as view:
        return address_of(view)


def _flush_at_exit() -> None:
    for region in list(_living):
        if region._pid == os.getpid() and region._access == "r+" and not region.closed_for_good:
            try:
                region.flush()
            except Exception:
                traceback.print_exc()


def _after_fork_in_child() -> None:
    """The range that the child does not have stays reserved: its own mappings must not land where the parent's region is thought to be."""
    for region in list(_living):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory.MAP_NORESERVE | memory.MAP_FIXED_NOREPLACE
        memory.mmap(region._control.base, region._control.length, memory.PROT_NONE, flags)


atexit.register(_flush_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)

assert POISONED == 4
