"""The kernel's freedom: what two runs of the same sequence may show differently, and what is done about it.

Whatever is not in this table is compared after every operation, and must be equal.
"""

from __future__ import annotations

from typing import NamedTuple


class Free(NamedTuple):
    """what: may differ; why; instead: what is compared, or done so that it does not differ."""

    what: str
    why: str
    instead: str


FREEDOM = (
    Free(
        "physical addresses",
        "Which page frame is allocated depends on everything else that runs.",
        "Only which places show the same frame is compared, within and across processes.",
    ),
    Free(
        "accessed and referenced bits, idle pages, LRU membership",
        "Aging, DAMON and per-CPU batches change them at any time.",
        "Not looked at.",
    ),
    Free(
        "lazily freed and locked flags of pages (SWAPBACKED, MLOCKED, UNEVICTABLE)",
        "They change when a per-CPU batch drains.",
        "Not looked at; what follows from them is: whether reclaim drops a page or swaps it out.",
    ),
    Free(
        "when a batch of new pages reaches the LRU lists",
        "A page in another CPU's batch has one reference more, so that a write copies it instead of reusing it.",
        "A sequence and its processes stay on one CPU, whose batches are drained before each operation and each look.",
    ),
    Free(
        "who else looks at a page",
        "Reclaim, DAMON and compaction may hold a reference to any page for a moment: what splits a huge page is EBUSY then, "
        "reclaim keeps the page, and a write copies it.",
        "An outcome of a litmus test that the model rules out must be allowed with one thread more, which does that to one page. A "
        "sequence that parts is done again at once: only what comes again is a divergence, the rest is listed with the run.",
    ),
    Free(
        "pages under migration",
        "Compaction moves any page, and for that moment there is a migration entry. pagemap has its bit for swapped pages for every entry "
        "that is neither present nor none (fs/proc/task_mmu.c, pte_to_pagemap_entry), also where no swap is on.",
        "Like what somebody holds: such a sequence is done again.",
    ),
    Free(
        "soft-dirty bits",
        "Kernels without CONFIG_MEM_SOFT_DIRTY have none, those with it set them in new VMAs; the model has none either.",
        "Not looked at; what WP_ASYNC says of writes is.",
    ),
    Free(
        "huge pages appear and go",
        "khugepaged collapses in its own time, and an allocation may find no huge page.",
        "PR_SET_THP_DISABLE in profiles of small pages; a khugepaged that sleeps in the others.",
    ),
    Free(
        "when equal pages are merged",
        "ksmd scans all of the machine in its own time, and a page of an unrelated process is as good to it as one of ours.",
        "In profile ksm it is told when, and does whole scans until nothing changes; which pages are merged then, and into which, is "
        "compared. It is refused where another process has memory that may be merged. In the other profiles none may be; litmus tests wait "
        "until a page is.",
    ),
    Free(
        "how a page comes back from swap",
        "Readahead brings neighbours into the swap cache; a device with asynchronous reads leaves pages there.",
        "A RAM disk of our own, with readahead off: then nothing differs.",
    ),
    Free(
        "which swap slot is taken",
        "The allocator has clusters by CPU.",
        "Only which entries name the same slot is compared.",
    ),
    Free(
        "the contents of pages that are swapped out, or that the process may not read",
        "To look is to change.",
        "They are compared when the page is read in, or may be read again.",
    ),
)
