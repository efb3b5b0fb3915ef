"""Opening a region: its arguments are checked, its descriptors made, its pager started."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import operator
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..kernel import memory
from ..kernel.maps import maps
from . import journal
from .errors import PagingError
from .files import FileSource
from .native import MODES, PAGE_BYTES, POLICIES, Settings, error_text, pager_library
from .region import HUGE_BYTES, Access, Mode, Policy, Region, mapped_at
from .retry import RetryPolicy, milliseconds
from .sizes import format_bytes, parse_bytes
from .source import NativeKind, NativeSource, Source, Store
from .worker import _BOOT, Worker

UNITS = (4 << 10, 64 << 10, 2 << 20)
RECORD_CAPACITY = 1 << 20
HANDLERS_MAX = 13
PREFETCH_UNITS_MAX = 1024
UNITS_MAX = 1 << 31
"""The C pager numbers units, and pages and their places in the swap file, with 32 bits."""
_KIND_WORKER = 3
_LOCAL = (NativeKind.ZERO, NativeKind.FILE, NativeKind.MEMORY)
_PROBE = "`userfault probe` says what this kernel and this user may do, and how to get more"


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
    if isinstance(policy, str) and policy not in POLICIES[:4]:
        raise ValueError(f"policy={policy!r}: it is 'clock', 'fifo', 'lru', 'rank' or a C function")
    for argument, value, least, most in (
        ("handlers", handlers, 1, HANDLERS_MAX),
        ("prefetch_units", prefetch_units, 0, PREFETCH_UNITS_MAX),
    ):
        if value is not None and not least <= operator.index(value) <= most:
            raise ValueError(f"{argument}={value!r}: it is {least} to {most}, or None for the default")
    for argument, given, kind in (
        ("retry", retry, RetryPolicy | None),
        ("name", name, str | None),
        ("stall_s", stall_s, float | int),
    ):
        if not isinstance(given, kind):
            raise TypeError(f"{argument}={given!r} is no {kind}".replace(" | None", ""))
    if not stall_s > 0:
        raise ValueError(f"stall_s={stall_s!r}: it is more than 0 seconds; math.inf says nothing of stalls")
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
        if size_bytes > UNITS_MAX * (PAGE_BYTES if access != "r" else unit_bytes):
            raise PagingError(
                f"{source.name} has {format_bytes(size_bytes)}: "
                + (
                    f"at most {format_bytes(UNITS_MAX * PAGE_BYTES)} can be written to"
                    if access != "r"
                    else f"with units of {format_bytes(unit_bytes)} it may have {format_bytes(UNITS_MAX * unit_bytes)}"
                ),
                "page a part of it" if access != "r" else "use a larger unit",
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
        ranks = None
        if policy == "rank":
            ranks = mmap.mmap(
                -1, -(-size_bytes // unit_bytes) * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory.MAP_NORESERVE
            )
        pager = _start(
            region,
            source,
            worker,
            access=access,
            unit_bytes=unit_bytes,
            resident_bytes=resident_bytes,
            mode=mode,
            policy=policy if isinstance(policy, str) else _function_address(policy),
            ranks=ranks,
            handlers=handlers,
            swap_directory=os.fspath(swap_directory) if swap_directory is not None else None,
            prefetch_units=prefetch_units,
            retry=retry,
            stall_s=stall_s,
            uffd=uffd,
            user_mode_only=user_mode_only,
            name=name or source.name,
        )
        region._adopt(pager, source, worker, access, retry, ranks)
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


def _start(
    region: Region,
    source: Source,
    worker: Worker | None,
    *,
    access: Access,
    unit_bytes: int,
    resident_bytes: int,
    mode: Mode,
    policy: Policy | int,
    ranks: mmap.mmap | None,
    handlers: int,
    swap_directory: str | None,
    prefetch_units: int,
    retry: RetryPolicy,
    stall_s: float,
    uffd: int,
    user_mode_only: bool,
    name: str,
) -> int:
    """The pager of a region that is mapped and untouched, started."""
    size = len(region)
    native = NativeSource(NativeKind.ZERO, source.size_bytes) if worker else source.native()
    assert native is not None
    settings = Settings(
        base=mapped_at(region),
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
        policy_context=mapped_at(ranks) if ranks else 0,
        direct=native.direct,
        align=native.alignment_bytes,
        retries=retry.attempt_count - 1,
        retry_us=int(retry.first_wait_s * 1e6),
        stall_ms=milliseconds(stall_s),
        prefetch_units=prefetch_units,
        source_fd=native.fd,
        uffd=uffd,
        swap_fd=-1,
        worker_fd=worker.fileno() if worker else -1,
        worker_pid=worker.pid if worker else 0,
        user_mode_only=user_mode_only,
        source_offset=native.offset_bytes,
        source_address=native.address,
        record_capacity=RECORD_CAPACITY,
        name=name.encode()[:255],
        peer_bytes=len(native.peer),
        peer_timeout_ms=milliseconds(worker.policy.answer_s if worker else native.timeout_s),
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
        memory.mprotect(settings.base, settings.length, memory.READ_WRITE).or_raise("mprotect of the region")
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
        raise PagingError(f"memory can't be paged here: {step.value.decode()} failed: {error_text(code.value)}", _PROBE)
    return int(pager)


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
    address = getattr(policy, "address", policy)  # numba's cfunc
    if isinstance(address, int):
        if not any(address in each and "x" in each.permissions for each in maps()):
            raise ValueError(f"policy={policy!r}: there is no function at that address")
        return address
    # A Python function behind a ctypes prototype keeps its thunk; a library's keeps the library.
    kept = (getattr(policy, "_objects", None) or {}).values()
    thunk = any(type(each).__name__ == "CThunkObject" for each in kept)
    if isinstance(policy, ctypes._CFuncPtr) and not thunk:  # type: ignore[attr-defined]
        return ctypes.cast(policy, ctypes.c_void_p).value or 0
    raise TypeError(
        'an eviction policy runs where no Python can: set ranks (policy="rank"), or pass a C function '
        "`u32 choose(void *, const u32 *units, u32 count)` (its address, a function of a ctypes library, or numba's cfunc), "
        "which returns the index of the one to evict"
    )
