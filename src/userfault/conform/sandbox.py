"""The process in which operations are done to the kernel, and the machine around it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..kernel.machine import THP, VM, machine
from ..kernel.uapi import Feature
from ..kernel.userfaultfd import Userfault
from .operations import CONTEXT_FD, PIDFD

PR_SET_THP_DISABLE = 41
SWAP_BYTES = 512 << 20
VMA_READAHEAD = "/sys/kernel/mm/swap/vma_ra_enabled"


def prepare(huge: bool, lacking: Feature, contexts: Sequence[Feature]) -> None:
    """In the agent's process: one CPU, huge pages only where advised or (not `huge`) nowhere, a pidfd of it, and the userfaultfds,
    without the features that the kernel is lacking. Raises OSError.
    """
    # Batches of pages that are on their way to the LRU lists are kept by CPU.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    libc = ctypes.CDLL(None, use_errno=True)
    if not huge and libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")
    for number, features in enumerate(contexts):
        # The descriptor is the agent's from here on: it has its own number and is not closed.
        os.dup2(Userfault(features & ~lacking).fileno(), CONTEXT_FD + number)
    os.dup2(os.pidfd_open(os.getpid()), PIDFD)


@contextmanager
def swap() -> Iterator[None]:
    """Swap of our own on a RAM disk, without readahead: what is swapped in, and how, then depends on the operations alone."""
    with machine(timeout_s=600) as held:
        held.private_swap(SWAP_BYTES, kinds=("zram", "brd"))
        held.set(VM / "page-cluster", 0)
        held.set(VMA_READAHEAD, "false")
        yield


@contextmanager
def huge_pages() -> Iterator[None]:
    """Huge pages where they are advised, and a khugepaged that sleeps: what becomes huge then depends on the operations alone."""
    with machine(timeout_s=600) as held:
        held.set(THP / "enabled", "madvise")
        held.set(THP / "use_zero_page", 1)
        held.set(THP / "khugepaged" / "scan_sleep_millisecs", 1 << 30)
        yield
