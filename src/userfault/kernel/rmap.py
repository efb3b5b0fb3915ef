"""The reverse map of real pages, from outside: which processes map a page, where, and whether that is all.

The kernel walks from a page to its mappings; user space can't, but it can look into the page tables of everybody else for the same
frame number, or the same swap slot. It looks first where the kernel's own rule says that a page must be: at the same offset of the
same file, or at the same address in a relative by fork. Only for pages whose map count says that somebody is missing (mremap moved them,
or KSM merged them) it looks everywhere. Several looks take time, and pages move: what changed meanwhile is looked for anew, and where
that does not end it is said.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from .errors import KernelError, Unavailable
from .machine import swap_devices
from .maps import Vma, maps
from .pagemap import Entry, Frames, Pagemap, Region, flag_names
from .syscalls import process_name, syscall
from .uapi import (
    ANON_EXCLUSIVE,
    HUGE_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    PM_PFN_MASK,
    PageBit,
    PageFlag,
    PageIs,
    Syscall,
)

MOST_PAGES = 1 << 18
"""Pages of one question: 1 GiB of small ones."""
_TRIES = 3
_FIRST_SPECIAL_SWAP_TYPE = 23
"""From here on a swap entry's type is no device: migration, poison, markers (MAX_SWAPFILES of include/linux/swap.h, at its least)."""
_KCMP_VM = 1
_PRESENT, _SWAP = int(PageBit.PRESENT), int(PageBit.SWAP)
_CHUNK_PAGES = 1 << 16

Key = int
"""What identifies a page while one looks for it: its entry's presence or swap bit, with the frame number or the slot."""


@dataclass(frozen=True)
class Mapper:
    """One place where a page is mapped. huge: by one entry together with its neighbours (PAGEMAP_SCAN; False where this kernel has
    none). also: other processes with the same address space (threads by clone, vfork)."""

    pid: int
    command: str
    address: int
    entry: Entry
    vma: Vma
    huge: bool = False
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class MappedPage:
    """A page, and everybody who maps it.

    kind: anonymous, KSM, file, shared memory, hugetlb, zero page, swap, marker, or none. map_count: what the kernel counts; None of a
    page in swap. complete: whether `mappers` is everybody; None where that can't be told. why: the reason, or what else to know.
    compound: the first frame and the number of frames of the large page that it is a part of.
    """

    address: int
    entry: Entry
    kind: str
    map_count: int | None
    flags: PageFlag
    mappers: tuple[Mapper, ...]
    complete: bool | None
    why: str = ""
    compound: tuple[int, int] | None = None

    @property
    def exclusive(self) -> bool | None:
        """Whether one process owns this anonymous page alone (PG_anon_exclusive); None for all others."""
        return bool(self.flags & ANON_EXCLUSIVE) if self.flags & PageFlag.ANON and self.entry.present else None

    @property
    def flag_names(self) -> list[str]:
        """The names of its frame's flags."""
        return flag_names(self.flags)

    @property
    def swap_device(self) -> str:
        """`/dev/zram1:1234`: where in swap it is; empty for a page that is not."""
        if self.kind != "swap" or self.entry.swap_slot is None:
            return ""
        number, offset = self.entry.swap_slot
        # /proc/swaps lists them by number, and leaves out those that are off.
        devices = [path for path, _, _ in swap_devices()]
        known = (
            devices[0] if len(devices) == 1 else devices[number] if number < len(devices) else f"swap device {number}"
        )
        return f"{known}:{offset}"

    def json(self) -> dict[str, object]:
        """As an object of `userfault rmap --json`. Addresses are numbers of bytes."""
        return {
            "address": self.address,
            "state": self.entry.letters,
            "kind": self.kind,
            "pfn": self.entry.pfn,
            "swap": self.swap_device or None,
            "map_count": self.map_count,
            "exclusive": self.exclusive,
            "flags": self.flag_names,
            "compound": list(self.compound) if self.compound else None,
            "complete": self.complete,
            "why": self.why,
            "mappers": [
                {
                    "pid": each.pid,
                    "command": each.command,
                    "address": each.address,
                    "state": each.entry.letters,
                    "huge": each.huge,
                    "vma": [each.vma.start, each.vma.end],
                    "permissions": each.vma.permissions,
                    "name": each.vma.name,
                    "also": list(each.also),
                }
                for each in self.mappers
            ],
        }


Hit = tuple[Key, int, Entry, bool]
"""A wanted page that was found: which, at what address, its entry, and whether the entry is a huge one."""


@dataclass
class _Process:
    """A process that is looked into, its mappings as they were when it was first."""

    pid: int
    pagemap: Pagemap

    @cached_property
    def vmas(self) -> list[Vma]:
        return maps(self.pid)

    def find(self, wanted: set[Key], start: int, end: int) -> Iterator[Hit]:
        """Every entry of [start, end) that is one of the wanted pages, and whether a huge entry maps it."""
        hits = list(self._entries(wanted, start, end))
        huge: list[Region] = []
        if hits:
            with suppress(OSError):
                huge = self.pagemap.scan(
                    hits[0][1], hits[-1][1] + PAGE_SIZE_BYTES, all_of=PageIs.HUGE, report=PageIs(0)
                )
        for key, address, entry in hits:
            yield key, address, entry, any(region.start <= address < region.end for region in huge)

    def _entries(self, wanted: set[Key], start: int, end: int) -> Iterator[tuple[Key, int, Entry]]:
        mask = PM_PFN_MASK | _PRESENT | _SWAP
        for first in range(start, end, _CHUNK_PAGES * PAGE_SIZE_BYTES):
            words = self.pagemap.words(first, min(end - first, _CHUNK_PAGES * PAGE_SIZE_BYTES))
            for index, word in enumerate(words):
                if word & mask in wanted:
                    yield word & mask, first + index * PAGE_SIZE_BYTES, Entry(word)

    def populated(self, vma: Vma) -> Iterator[tuple[int, int]]:
        """The parts of a mapping that have entries: a terabyte of nothing is common, and must not be read."""
        try:
            for region in self.pagemap.scan(
                vma.start, vma.end, any_of=PageIs.PRESENT | PageIs.SWAPPED, report=PageIs(0)
            ):
                yield region.start, region.end
        except OSError as error:
            # [vsyscall] lies above what a process can map, and has no entries of its own.
            if error.errno == errno.EFAULT:
                return
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            yield vma.start, vma.end


@dataclass
class _Search:
    """One look for some pages. found: key -> (pid, address) -> (entry, mapping, huge). hidden: processes that may not be looked into."""

    found: dict[Key, dict[tuple[int, int], tuple[Entry, Vma, bool]]] = field(default_factory=lambda: defaultdict(dict))
    hidden: int = 0

    def note(self, process: _Process, vma: Vma, hits: Iterable[Hit]) -> None:
        for key, address, entry, huge in hits:
            self.found[key][process.pid, address] = entry, vma, huge


def reverse_map(pid: int, start: int, length: int, *, present_only: bool = False) -> list[MappedPage]:
    """Who maps the pages of [start, start+length) (bytes) of process `pid`, one page after the other.

    present_only: leave out what is neither in memory nor in swap.

    Raises Unavailable where frame numbers are hidden or there is no such process, KernelError for a range that is too large.
    """
    start &= -PAGE_SIZE_BYTES
    end = -(-(start + length) // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES
    with Pagemap(pid) as target, Frames() as frames:
        spans = _spans(target, pid, start, end)
        count = sum(stop - begin for begin, stop in spans) // PAGE_SIZE_BYTES
        if count > MOST_PAGES or (not present_only and (end - start) // PAGE_SIZE_BYTES > MOST_PAGES):
            raise KernelError(
                f"{max(count, (end - start) // PAGE_SIZE_BYTES)} pages are too many for one question: "
                f"ask for a part of at most {MOST_PAGES}"
            )
        addresses = [at for begin, stop in spans for at in range(begin, stop, PAGE_SIZE_BYTES)]
        settled: dict[int, MappedPage] = {}
        for attempt in range(_TRIES):
            wanted = [address for address in addresses if address not in settled]
            if not wanted:
                break
            for page, steady in _look(target, frames, pid, wanted):
                if (steady and (page.complete is not False or attempt)) or attempt == _TRIES - 1:
                    settled[page.address] = page
        for address in range(start, end, PAGE_SIZE_BYTES) if not present_only else ():
            settled.setdefault(address, MappedPage(address, Entry(0), "none", None, PageFlag(0), (), True))
        return [settled[address] for address in sorted(settled)]


def _spans(target: Pagemap, pid: int, start: int, end: int) -> list[tuple[int, int]]:
    process = _Process(pid, target)
    inside = [vma for vma in process.vmas if vma.start < end and vma.end > start]
    return [
        (max(begin, start), min(stop, end))
        for vma in inside
        for begin, stop in process.populated(vma)
        if begin < end and stop > start
    ]


def _look(target: Pagemap, frames: Frames, pid: int, addresses: list[int]) -> list[tuple[MappedPage, bool]]:
    """One look for the pages at these addresses: each page, and whether it stayed what and where it was."""
    entries = {address: target.entry(address) for address in addresses}
    if any(entry.present and entry.pfn is None for entry in entries.values()):
        raise Unavailable("frame numbers are hidden", "run as root (CAP_SYS_ADMIN)")
    pfns = [entry.pfn for entry in entries.values() if entry.pfn is not None]
    flags = {pfn: PageFlag(word) for pfn, word in frames.flags_of(pfns).items()}
    own = maps(pid)
    kinds = {at: _kind(entry, flags.get(entry.pfn or 0, PageFlag(0)), _at(own, at)) for at, entry in entries.items()}
    searched = {at: _key(entry) for at, entry in entries.items() if kinds[at] not in ("zero page", "marker", "none")}
    before = frames.counts_of(pfns)
    search = _search(searched, kinds, own, before)
    after = frames.counts_of(pfns)
    compounds = _Compounds(frames)
    pages = []
    for address, entry in entries.items():
        hits = search.found.get(searched.get(address, 0), {})
        mappers = _mappers(hits)
        count = after.get(entry.pfn, 0) if entry.pfn is not None else None
        steady = target.entry(address) == entry and (entry.pfn is None or before.get(entry.pfn) == count)
        complete, why = _judge(kinds[address], count, mappers, search, steady, flags.get(entry.pfn or 0, PageFlag(0)))
        pages.append(
            (
                MappedPage(
                    address,
                    entry,
                    kinds[address],
                    count,
                    flags.get(entry.pfn or 0, PageFlag(0)),
                    mappers,
                    complete,
                    why,
                    compounds.of(entry.pfn) if entry.pfn is not None else None,
                ),
                steady,
            )
        )
    return pages


def _search(searched: dict[int, Key], kinds: dict[int, str], own: list[Vma], counts: dict[int, int]) -> _Search:
    """Look where the pages must be; then everywhere, for those that somebody else has as well."""
    search = _Search()
    places = _places(searched, own)
    for process in _processes(search):
        _look_at_places(search, process, places)
    short = {
        key
        for address, key in searched.items()
        if kinds[address] == "swap" or len(search.found[key]) < counts.get(key & PM_PFN_MASK, 0)
    }
    if short:
        search.hidden = 0
        for process in _processes(search):
            # One that ends meanwhile has no memory to be scanned.
            with suppress(ProcessLookupError):
                _look_everywhere(search, process, short)
    return search


def _processes(search: _Search) -> Iterator[_Process]:
    """All that this user may look into, one open at a time; the others are counted."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with Pagemap(int(name)) as pagemap:
                process = _Process(int(name), pagemap)
                if process.vmas:
                    yield process
        except (Unavailable, OSError) as error:
            # One that ended meanwhile, and a thread of the kernel, map nothing (ESRCH, ENOENT).
            search.hidden += isinstance(error.__cause__ or error, PermissionError)


class _Compounds:
    """Which large page a frame is a part of: heads and tails of kpageflags, read a huge page's worth at a time."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._blocks: dict[int, list[int]] = {}

    def of(self, pfn: int) -> tuple[int, int] | None:
        """First frame and number of frames; None of a small page, and of one that is larger than a PMD maps."""
        size = HUGE_SIZE_BYTES // PAGE_SIZE_BYTES
        first = pfn - pfn % size
        if first not in self._blocks:
            flags = self._frames.flags_of(range(first, first + size))
            self._blocks[first] = [flags.get(frame, 0) for frame in range(first, first + size)]
        block, at = self._blocks[first], pfn - first
        head, tail = int(PageFlag.COMPOUND_HEAD), int(PageFlag.COMPOUND_TAIL)
        while at and block[at] & tail:
            at -= 1
        if not block[at] & head:
            return None
        end = at + 1
        while end < size and block[end] & tail:
            end += 1
        return first + at, end - at


Places = tuple[dict[tuple[str, int], list[tuple[int, int, Key]]], list[tuple[int, int, set[Key]]]]


def _places(searched: dict[int, Key], own: list[Vma]) -> Places:
    """Where the kernel's rule puts the pages: by (device, inode) the offsets in that file, and the ranges of addresses."""
    files: dict[tuple[str, int], list[tuple[int, int, Key]]] = defaultdict(list)
    ranges: list[tuple[int, int, set[Key]]] = []
    for address, key in searched.items():
        vma = _at(own, address)
        if vma is not None and vma.inode:
            files[vma.device, vma.inode].append((vma.offset_bytes + address - vma.start, PAGE_SIZE_BYTES, key))
        if ranges and ranges[-1][1] == address:
            ranges[-1][2].add(key)
            ranges[-1] = (ranges[-1][0], address + PAGE_SIZE_BYTES, ranges[-1][2])
        else:
            ranges.append((address, address + PAGE_SIZE_BYTES, {key}))
    return files, ranges


def _look_at_places(search: _Search, process: _Process, places: Places) -> None:
    files, ranges = places
    for vma in process.vmas:
        for start, end, keys in ranges:
            if vma.start < end and vma.end > start:
                search.note(process, vma, process.find(keys, max(start, vma.start), min(end, vma.end)))
        for offset, length, key in files.get((vma.device, vma.inode), ()) if vma.inode else ():
            address = vma.start + offset - vma.offset_bytes
            if vma.start <= address < vma.end:
                search.note(process, vma, process.find({key}, address, address + length))


def _look_everywhere(search: _Search, process: _Process, wanted: set[Key]) -> None:
    for vma in process.vmas:
        if vma.name in ("[vvar]", "[vsyscall]", "[vdso]"):
            continue
        for start, end in process.populated(vma):
            search.note(process, vma, process.find(wanted, start, end))


def _mappers(hits: dict[tuple[int, int], tuple[Entry, Vma, bool]]) -> tuple[Mapper, ...]:
    """The places where a page is mapped; processes that share an address space are one."""
    places: dict[int, list[int]] = defaultdict(list)
    for pid, address in sorted(hits):
        places[address].append(pid)
    found = []
    for address, pids in places.items():
        spaces: list[list[int]] = []
        for pid in pids:
            same = next((space for space in spaces if _same_memory(space[0], pid)), None)
            if same is None:
                spaces.append([pid])
            else:
                same.append(pid)
        for first, *others in spaces:
            entry, vma, huge = hits[first, address]
            command = process_name(first).rpartition(" (")[0]
            found.append(Mapper(first, command, address, entry, vma, huge, tuple(others)))
    return tuple(sorted(found, key=lambda each: (each.pid, each.address)))


def _same_memory(one: int, other: int) -> bool:
    """kcmp(2): whether two processes have the same address space; taken for no where that can't be asked."""
    return syscall(Syscall.KCMP, one, other, _KCMP_VM, 0, 0) == (0, 0)


def _judge(
    kind: str, count: int | None, mappers: tuple[Mapper, ...], search: _Search, steady: bool, flags: PageFlag
) -> tuple[bool | None, str]:
    """Whether these are all of a page's mappers, and what there is to know about that."""
    hidden = f"; {search.hidden} processes may not be looked into" if search.hidden else ""
    if kind == "none":
        return True, ""
    if kind == "zero page":
        return None, "everybody maps it and the kernel does not count that: its mappers are not looked for"
    if kind == "marker":
        return True, "no page: a marker of userfaultfd, of a guard or of poison, or a page in migration"
    if not steady:
        return None, f"the page or its count changed while it was looked for, {_TRIES} times"
    if kind == "swap":
        return None, f"the kernel does not show how many share a swap slot{hidden}"
    if count == len(mappers):
        return (
            True,
            "other processes may have it in swap: it is in the swap cache" if flags & PageFlag.SWAPCACHE else "",
        )
    if count is not None and len(mappers) < count:
        return (
            False,
            f"the kernel counts {count} mappings, {len(mappers)} were found{hidden or '; other PID namespaces?'}",
        )
    return False, f"the kernel counts {count} mappings, {len(mappers)} were found: it changed meanwhile"


def _kind(entry: Entry, flags: PageFlag, vma: Vma | None) -> str:
    if entry.swapped:
        slot = entry.swap_slot
        return "swap" if slot is not None and slot[0] < _FIRST_SPECIAL_SWAP_TYPE else "marker"
    if not entry.present:
        return "none"
    for flag, name in (
        (PageFlag.ZERO_PAGE, "zero page"),
        (PageFlag.KSM, "KSM"),
        (PageFlag.HUGE, "hugetlb"),
        (PageFlag.ANON, "anonymous"),
        (PageFlag.SWAPBACKED, "shared memory"),
    ):
        if flags & flag:
            return name
    return "file" if vma is not None and vma.inode else "other"


def _key(entry: Entry) -> Key:
    return entry & (PM_PFN_MASK | _PRESENT | _SWAP)


def _at(vmas: list[Vma], address: int) -> Vma | None:
    return next((vma for vma in vmas if vma.start <= address < vma.end), None)
