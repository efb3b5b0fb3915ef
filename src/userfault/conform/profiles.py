"""Profiles of random sequences: where they happen, and which operations come how often."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..kernel.uapi import Feature
from .operations import MEANWHILES
from .world import CONTEXTS, HUGE_PAGES, WATCHED, Window

BASE = 0x2000_0000_0000


@dataclass(frozen=True)
class Profile:
    """What sequences are like. length: operations in one; weights: how often each operation comes.

    swap: the machine must have swap on a RAM disk. huge: huge pages are allowed. ksm: ksmd is driven, and few contents are written, so that
    pages are equal. children: how many live at once, at most. slice: pages whose contents are looked at after
    each operation (0: all). cost: of an operation, in operations of other profiles. contexts: the userfaultfds' features.
    """

    name: str
    doc: str
    window: Window
    length: int
    weights: dict[str, int] = field(default_factory=dict)
    swap: bool = False
    huge: bool = False
    ksm: bool = False
    children: int = 3
    slice: int = 0
    cost: int = 1
    contexts: tuple[Feature, ...] = CONTEXTS


MOVES = Profile(
    "moves",
    "small pages in one process: mappings, registrations, touches and moves, across a border of page tables",
    Window(BASE, HUGE_PAGES - 24, 40),
    120,
    {
        "mmap": 6,
        "munmap": 3,
        "load": 14,
        "store": 20,
        "populate_write": 6,
        "populate_read": 2,
        "dontneed": 8,
        "register": 10,
        "unregister": 3,
        "move": 30,
    },
)
FILLS = Profile(
    "fills",
    "everything that userfaultfd does to small pages of one process, with protections, guards and advice",
    Window(BASE, HUGE_PAGES - 20, 32),
    120,
    {
        "mmap": 5,
        "munmap": 2,
        "load": 12,
        "store": 18,
        "dontneed": 6,
        "register": 12,
        "unregister": 3,
        "move": 14,
        "copy": 12,
        "zeropage": 6,
        "poison": 4,
        "writeprotect": 12,
        "mincore": 4,
        "free": 3,
        "mprotect": 6,
        "populate_write": 4,
        "populate_read": 2,
        "guard_install": 3,
        "guard_remove": 3,
        "dontdump": 1,
        "dodump": 1,
        "process_madvise": 3,
    },
)
FORKS = Profile(
    "forks",
    "small pages that processes share after forks: copy on write, what is exclusive, what may move",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        "mmap": 3,
        "munmap": 1,
        "load": 12,
        "store": 30,
        "dontneed": 5,
        "register": 6,
        "move": 30,
        "copy": 4,
        "zeropage": 2,
        "poison": 1,
        "writeprotect": 4,
        "mprotect": 4,
        "guard_install": 1,
        "populate_write": 4,
        "populate_read": 2,
        "dontfork": 1,
        "dofork": 1,
        "wipeonfork": 1,
        "keeponfork": 1,
        "fork": 8,
        "exit": 6,
    },
)
SWAPS = Profile(
    "swaps",
    "the same with swap: entries that are exclusive or not, moved, shared, write-protected",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        **FORKS.weights,
        "free": 8,
        "pageout": 16,
        "process_madvise": 8,
        "cold": 3,
        "mincore": 8,
        "load": 24,
        "writeprotect": 8,
    },
    swap=True,
)
REMAPS = Profile(
    "remaps",
    "mappings that change their address, are locked, split and merged, with forks and userfaultfds",
    Window(BASE, HUGE_PAGES - 16, 28),
    120,
    {
        "mmap": 4,
        "munmap": 2,
        "load": 12,
        "store": 24,
        "populate_write": 5,
        "dontneed": 5,
        "register": 8,
        "unregister": 2,
        "move": 16,
        "copy": 4,
        "zeropage": 2,
        "poison": 1,
        "writeprotect": 6,
        "mprotect": 5,
        "guard_install": 2,
        "guard_remove": 1,
        "mremap": 24,
        "mincore": 3,
        "mlock": 6,
        "munlock": 4,
        "dontneed_locked": 3,
        "cold": 2,
        "fork": 3,
        "exit": 3,
    },
)
HUGE = Profile(
    "huge",
    "huge pages that appear, move whole or in part, are split and forgotten in part",
    Window(BASE, 0, 4 * HUGE_PAGES),
    60,
    {
        "mmap": 2,
        "hugepage": 5,
        "collapse": 5,
        "munmap": 2,
        "load": 14,
        "store": 22,
        "dontneed": 8,
        "register": 3,
        "move": 30,
        "populate_write": 2,
        "cold": 6,
        "free": 6,
    },
    huge=True,
    slice=256,
    cost=4,
)
FAMILIES = Profile(
    "families",
    "huge pages that processes share after forks, some as a whole and some in parts, pinned, referred to and write-protected",
    Window(BASE, 0, 4 * HUGE_PAGES),
    60,
    {
        "mmap": 1,
        "munmap": 1,
        "hugepage": 2,
        "collapse": 6,
        "load": 12,
        "store": 24,
        "dontneed": 8,
        "register": 2,
        "move": 20,
        "populate_write": 2,
        "mprotect": 2,
        "writeprotect": 10,
        "cold": 5,
        "free": 6,
        "fork": 10,
        "exit": 7,
        "pin": 5,
        "unpin": 4,
        "vmread": 4,
        "hold": 5,
        "release": 4,
    },
    huge=True,
    children=1,
    slice=256,
    cost=4,
)
PINS = Profile(
    "pins",
    "forks and swap with pages that somebody keeps: pinned for writing or for reading, or referred to",
    Window(BASE, HUGE_PAGES - 10, 16),
    120,
    {
        **FORKS.weights,
        "move": 24,
        "fork": 10,
        "pageout": 14,
        "free": 4,
        "mincore": 3,
        "mremap": 4,
        "munmap": 2,
        "pin": 16,
        "unpin": 8,
        "vmread": 12,
        "hold": 12,
        "release": 8,
    },
    swap=True,
)
EVENTS = Profile(
    "events",
    "userfaultfds with a reader: what they say, in which order, and what is refused while it is unread; their children's after forks",
    Window(BASE, HUGE_PAGES - 14, 24),
    120,
    {
        "mmap": 5,
        "munmap": 5,
        "load": 14,
        "store": 18,
        "populate_write": 3,
        "populate_read": 2,
        "dontneed": 10,
        "free": 4,
        "dontneed_locked": 1,
        "register": 12,
        "unregister": 2,
        "move": 14,
        "copy": 10,
        "zeropage": 5,
        "poison": 2,
        "writeprotect": 10,
        "wake": 1,
        "continue": 1,
        "mprotect": 3,
        "mremap": 12,
        "guard_install": 1,
        "process_madvise": 2,
        "fork": 6,
        "exit": 5,
        **dict.fromkeys(MEANWHILES, 2),
    },
    contexts=WATCHED,
)
KSM = Profile(
    "ksm",
    "equal pages that ksmd makes one, in one process and several: what becomes of them in moves, forks, writes, swap and under pins",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        "mmap": 3,
        "munmap": 1,
        "load": 8,
        "store": 20,
        "dontneed": 4,
        "register": 5,
        "move": 16,
        "copy": 5,
        "zeropage": 2,
        "writeprotect": 6,
        "mprotect": 4,
        "mremap": 5,
        "populate_write": 3,
        "populate_read": 2,
        "mergeable": 16,
        "unmergeable": 4,
        "ksmd": 14,
        "pageout": 16,
        "mincore": 2,
        "dontfork": 1,
        "dofork": 1,
        "fork": 7,
        "exit": 4,
        "pin": 5,
        "unpin": 4,
        "vmread": 4,
        "hold": 12,
        "release": 4,
    },
    ksm=True,
    swap=True,
    cost=4,
)
MERGES = Profile(
    "merges",
    "huge pages whose parts ksmd makes one, with parts of others and with small pages: split for it, put together again, held and shared",
    Window(BASE, 0, 4 * HUGE_PAGES),
    60,
    {
        "mmap": 1,
        "munmap": 1,
        "hugepage": 3,
        "collapse": 9,
        "load": 6,
        "store": 24,
        "dontneed": 5,
        "register": 2,
        "move": 10,
        "populate_write": 2,
        "mprotect": 2,
        "writeprotect": 5,
        "cold": 2,
        "free": 3,
        "mergeable": 12,
        "unmergeable": 3,
        "ksmd": 12,
        "fork": 5,
        "exit": 5,
        "pin": 3,
        "unpin": 3,
        "vmread": 2,
        "hold": 4,
        "release": 3,
    },
    huge=True,
    ksm=True,
    children=1,
    slice=256,
    cost=8,
)
PROFILES = {each.name: each for each in (MOVES, FILLS, FORKS, SWAPS, REMAPS, PINS, KSM, EVENTS, HUGE, FAMILIES, MERGES)}
