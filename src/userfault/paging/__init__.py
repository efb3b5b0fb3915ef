"""Memory that is paged in user space: regions, sources, eviction, dirty tracking."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .errors import PagingError
from .opening import open_region
from .region import Access, Mode, Policy, Region
from .retry import RetryPolicy
from .source import Source, SourceError, Store, ZeroSource
from .sources import open_source
from .stats import Stats

__all__ = [
    "PagingError",
    "Region",
    "RetryPolicy",
    "Source",
    "SourceError",
    "Stats",
    "Store",
    "ZeroSource",
    "open",
    "open_source",
]


def open(  # shadows the built-in on purpose, as gzip.open and others do
    source: Any,
    *,
    access: Access = "r",
    resident: int | str | None = None,
    unit: int | str = "64 KiB",
    mode: Mode = "threads",
    policy: Policy | Callable[..., Any] | int = "clock",
    size_bytes: int | None = None,
    handlers: int | None = None,
    swap_directory: str | os.PathLike[str] | None = None,
    prefetch_units: int | None = None,
    retry: RetryPolicy | None = None,
    stall_s: float = 10.0,
    user_mode_only: bool = False,
    name: str | None = None,
    **options: Any,
) -> Region:
    """A region over `source`, of which nothing is read yet.

    - `source`: a path, a URL, a buffer, a function of (offset, view), a Source, or None for zeros: see `open_source`, which also gets
      `size_bytes` and `options`.
    - `access`: `"r"` read-only; `"r+"` written back by `flush()`; `"c"` copy-on-write, the source stays as it is.
    - `resident`: how much of it may be in memory at once (bytes, or "256 MiB"); None: all of it. A hard budget: the region's RSS stays
      below it plus one unit per handler that is filling one.
    - `unit`: what one fault fetches and one eviction frees: 4 KiB for scattered small reads, 64 KiB by default, 2 MiB huge pages
      (writable regions are tracked by 4 KiB pages, so they have small ones).
    - `mode`: `"threads"`, the default, serves every access, system calls included; `"sigbus"` resolves a fault in the faulting
      thread and is faster, but a system call on a page that is not there gets EFAULT: call `ensure()` first.
    - `policy`: who leaves: `"clock"`, `"fifo"`, `"lru"` (of 16 random candidates), `"rank"` (the one of the lowest `Region.ranks`, which
      you set), or a C function `u32 (void *, const u32 *units, u32 count)`, given a null pointer and up to 16 candidates, that
      returns which. No hardware tells of accesses: "used" means faulted, `ensure`d, or read by `read_at`.
    - `swap_directory`: where what was written and evicted waits, in an unlinked file; `$USERFAULT_SWAP_DIRECTORY`, or the
      temporary directory.
    - `prefetch_units`: how far a sequential or strided run is fetched ahead; 0: not at all.
    - `handlers`: handler threads (2). `stall_s`: after how long a wait is reported on stderr. `retry`: for sources that fail at times.
    - `user_mode_only`: ask for no more than an unprivileged process gets; it is also what happens where nothing better is allowed.

    Raises SourceError where the source can't be opened, PagingError where this kernel or user can't page memory, ValueError and
    TypeError for arguments that make no sense.
    """
    opened = open_source(source, writable=access == "r+", size_bytes=size_bytes, **options)
    return open_region(
        opened,
        access=access,
        resident=resident,
        unit=unit,
        mode=mode,
        policy=policy,
        handlers=handlers,
        swap_directory=swap_directory,
        prefetch_units=prefetch_units,
        retry=retry,
        stall_s=stall_s,
        user_mode_only=user_mode_only,
        name=name,
    )
