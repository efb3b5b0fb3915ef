"""What is compared of a page: one word of bits, the same for the model and for the kernel (native/agent_pages.c makes the kernel's)."""

from __future__ import annotations

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
