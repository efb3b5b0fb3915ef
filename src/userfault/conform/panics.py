"""What is known to end a kernel: it can't be found by trying, so it is told from what the kernel said last."""

from __future__ import annotations

import re
from typing import NamedTuple


class Panic(NamedTuple):
    """parts: the litmus tests and the profiles that can come to it; complaint: a pattern of what the kernel says then; seen: on
    which of the kernels that were run.
    """

    finding: str
    what: str
    parts: tuple[str, ...]
    complaint: str
    seen: str


PANICS = (
    Panic(
        "F-19",
        "UFFDIO_MOVE of the huge zero page maps a page frame that does not exist",
        ("R25-zero", "huge", "families", "merges"),
        r"Corrupted page table at address|Bad page map in process|Bad pagetable",
        "Debian 6.18.15",
    ),
)


def known(part: str, complaint: str) -> Panic | None:
    """The one that a kernel died of, where it did so in `part` (a test or a profile) and `complaint` is its word."""
    return next((each for each in PANICS if part in each.parts and re.search(each.complaint, complaint)), None)


def table() -> list[str]:
    """The table of docs/kernel.md."""
    rows = [
        f"| [{p.finding}](../findings/{p.finding}.md) | {p.what} | {', '.join(f'`{each}`' for each in p.parts)} | {p.seen} |"
        for p in PANICS
    ]
    return ["| finding | what | in | seen |", "| --- | --- | --- | --- |", *rows]
