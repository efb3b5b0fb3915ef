"""Everything that user space can see of a range of memory, at once, as values that can be compared.

The parts are read one after the other: of memory that somebody else is changing, they need not fit together.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby

from .errors import Unavailable
from .maps import Vma, smaps
from .memory import mincore
from .pagemap import Entry, Frames, Pagemap, Region, flag_names
from .uapi import PAGE_SIZE_BYTES, PageBit, PageFlag, PageIs

STEADY_FLAGS = (
    PageFlag.DIRTY
    | PageFlag.ANON
    | PageFlag.SWAPCACHE
    | PageFlag.SWAPBACKED
    | PageFlag.COMPOUND_HEAD
    | PageFlag.COMPOUND_TAIL
    | PageFlag.HUGE
    | PageFlag.HWPOISON
    | PageFlag.KSM
    | PageFlag.THP
    | PageFlag.ZERO_PAGE
    | PageFlag.MLOCKED
    | PageFlag.OWNER_2
)
"""Flags that do not come and go by themselves. REFERENCED, IDLE, LRU and ACTIVE do: aging, and batches on their way to the LRU lists."""


@dataclass(frozen=True)
class Page:
    """What was seen of one page.

    entry: of pagemap. categories: of PAGEMAP_SCAN, None where this kernel has none. map_count, flags: of the frame; None where there
    is no frame, or this user may not know. resident: of mincore; None of another process.
    """

    address: int
    entry: Entry
    categories: PageIs | None
    map_count: int | None
    flags: PageFlag | None
    resident: bool | None

    def __str__(self) -> str:
        """`PX:c1:ANON,SWAPBACKED,ANON_EXCLUSIVE`: the letters of pagemap but D, the map count, the flags that stay."""
        # Soft-dirty is said of every page of a new mapping, and not by every kernel.
        parts = [Entry(self.entry & ~PageBit.SOFT_DIRTY).letters]
        if self.map_count is not None:
            parts.append(f"c{self.map_count}")
        if self.flags is not None:
            parts.append(",".join(flag_names(self.flags & STEADY_FLAGS)))
        return ":".join(parts)


@dataclass(frozen=True)
class Snapshot:
    """What was seen of [start, end): its pages in order, and the mappings that overlap it."""

    start: int
    end: int
    pages: tuple[Page, ...]
    vmas: tuple[Vma, ...]

    @property
    def states(self) -> list[str]:
        """Each page in letters (`Page`)."""
        return [str(page) for page in self.pages]

    def __str__(self) -> str:
        """Runs of equal pages: `PX:c1:ANON,SWAPBACKED,ANON_EXCLUSIVE*3 -`."""
        runs = [(state, len(list(same))) for state, same in groupby(self.states)]
        return " ".join(state if count == 1 else f"{state}*{count}" for state, count in runs)


class Observer:
    """Takes snapshots of a process (0: this one) with its files kept open; a context manager.

    What this user may not see is None in the pages.

    Raises Unavailable where the process can't be looked into at all.
    """

    def __init__(self, pid: int = 0) -> None:
        self.pid = pid
        self._open = ExitStack()
        self.pagemap = self._open.enter_context(Pagemap(pid))
        self.frames: Frames | None = None
        with suppress(Unavailable):
            self.frames = self._open.enter_context(Frames())
        self._scans = True

    def look(self, start: int, length: int, *, mappings: bool = True) -> Snapshot:
        """A snapshot of [start, start+length). mappings: with smaps, by far the dearest part."""
        end = start + length
        entries = self.pagemap.entries(start, length)
        addresses = range(start, start + len(entries) * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)
        categories = self._categories(start, end)
        frames = [entry.pfn for entry in entries]
        known = [pfn for pfn in frames if pfn is not None]
        counts = self.frames.counts_of(known) if self.frames else {}
        flags = self.frames.flags_of(known) if self.frames else {}
        answer, resident = (None, b"") if self.pid else mincore(start, length)
        pages = tuple(
            Page(
                address,
                entry,
                None if categories is None else categories.get(address, PageIs(0)),
                None if pfn is None else counts.get(pfn),
                PageFlag(flags[pfn]) if pfn is not None and pfn in flags else None,
                bool(resident[index] & 1) if answer is not None and answer.ok else None,
            )
            for index, (address, entry, pfn) in enumerate(zip(addresses, entries, frames, strict=True))
        )
        return Snapshot(start, end, pages, tuple(smaps(self.pid, start, end)) if mappings else ())

    def _categories(self, start: int, end: int) -> dict[int, PageIs] | None:
        if not self._scans:
            return None
        try:
            regions: list[Region] = self.pagemap.scan(start, end)
        except OSError:
            self._scans = False
            return None
        return {
            address: region.categories
            for region in regions
            for address in range(region.start, region.end, PAGE_SIZE_BYTES)
        }

    def close(self) -> None:
        """Close its files; closing twice is fine."""
        self._open.close()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def look(start: int, length: int, pid: int = 0) -> Snapshot:
    """One snapshot of [start, start+length) of a process (0: this one). Whoever takes many keeps an `Observer`."""
    with Observer(pid) as observer:
        return observer.look(start, length)
