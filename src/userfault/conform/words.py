"""What is compared of a page: one word of bits, the same for the model and for the kernel (native/agent_pages.c makes the kernel's)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache

PAGEMAP = ("P", "S", "F", "G", "W", "X")
SCAN = ("WPALLOWED", "WRITTEN", "FILE", "PRESENT", "SWAPPED", "PFNZERO", "HUGE", "SOFT_DIRTY", "GUARD")
FLAGS = ("ANON", "AE", "THP", "HEAD", "TAIL", "KSM", "ZERO", "SWAPCACHE")
SCAN_AT, COUNT_AT, FLAGS_AT, CLASS_AT = 6, 15, 23, 40

P, S, F, G, W, X = (1 << at for at in range(6))
WPALLOWED, WRITTEN, FILE, PRESENT, SWAPPED, PFNZERO, HUGE, SOFT_DIRTY, SCAN_GUARD = (
    1 << (SCAN_AT + at) for at in range(9)
)
ANON, AE, THP, HEAD, TAIL, KSM, ZERO, SWAPCACHE = (1 << (FLAGS_AT + at) for at in range(8))

ALL = (1 << 64) - 1
ALL_SCAN = (1 << COUNT_AT) - (1 << SCAN_AT)


def names(bits: int) -> str:
    """The names of bits of pagemap and of PAGEMAP_SCAN."""
    return ", ".join(name for at, name in enumerate(PAGEMAP + SCAN) if bits >> at & 1)


def describe(word: int, alike: bool = False) -> str:
    """A word in the letters of its sources: `PX:c1:ANON,AE #17 [PRESENT,WRITTEN]`; `-` for nothing at all.

    alike: without what neighbours can't have in common: the class, head and tail.
    """
    if alike:
        word &= (1 << CLASS_AT) - 1 & ~(HEAD | TAIL)
    pagemap = "".join(name for at, name in enumerate(PAGEMAP) if word >> at & 1)
    scan = ",".join(name for at, name in enumerate(SCAN) if word >> (SCAN_AT + at) & 1)
    flags = ",".join(name for at, name in enumerate(FLAGS) if word >> (FLAGS_AT + at) & 1)
    out = pagemap or "-"
    if word & P:
        out += f":c{word >> COUNT_AT & 255}:{flags}"
    if word >> CLASS_AT:
        out += f" #{word >> CLASS_AT}"
    return f"{out} [{scan}]" if scan else out


def classes_of(known: array[int], parts: range, first: int) -> Sequence[int]:
    """The places where these were seen first, if they are at place `first` and the next ones now; `known` tells from here on."""
    begin, end = parts.start, parts.stop
    before, now = known[begin:end], ascending(first, 1, len(parts))
    if before == array("Q", bytes(8 * len(parts))):
        known[begin:end] = now
        return range(first, first + len(parts))
    # Seen as neighbours, mostly.
    if before[0] and before == ascending(before[0], 1, len(parts)):
        return range(before[0], before[0] + len(parts))
    known[begin:end] = array("Q", [old or new for old, new in zip(before, now, strict=True)])
    return known[begin:end]


def with_classes(word: int, classes: Sequence[int]) -> array[int]:
    """A word for each class, to be read only."""
    if isinstance(classes, range):
        return ascending(word | classes.start << CLASS_AT, 1 << CLASS_AT, len(classes))
    return array("Q", [word | each << CLASS_AT for each in classes])


@lru_cache(maxsize=1024)
def ascending(first: int, step: int, count: int) -> array[int]:
    """So many numbers, to be read only: huge pages show the same again and again."""
    return array("Q", range(first, first + count * step, step))
