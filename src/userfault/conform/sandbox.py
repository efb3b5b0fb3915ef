"""The process in which operations are done to the kernel, and the machine around it."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..kernel.errors import Unavailable
from ..kernel.machine import KSM, THP, VM, Machine
from ..kernel.memory import Mapping, mlock, store
from ..kernel.pagemap import Pagemap
from ..kernel.uapi import PAGE_SIZE_BYTES, Advice, Feature
from ..kernel.userfaultfd import Userfault
from .needs import NEEDS, missing
from .operations import CONTEXT_FD, PIDFD
from .quirk_probes import AT_ONCE

PR_SET_THP_DISABLE = 41
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SWAP_BYTES = 512 << 20
FILES = CONTEXT_FD + 256
"""How many the agent's process may need: userfaultfds of children have the numbers from CONTEXT_FD on (MOST_CONTEXTS of
native/agent_messages.c)."""
LOCKED_BYTES = 64 << 20
"""More than all processes of a sequence have mapped."""
VMA_READAHEAD = "/sys/kernel/mm/swap/vma_ra_enabled"


def allowed() -> None:
    """Whether this user may do to the kernel what the model does. Raises Unavailable: its EPERM would look like the kernel's answer."""
    if problem := missing("userfaultfd"):
        raise Unavailable(problem, NEEDS["userfaultfd"].remedy)
    with Mapping(PAGE_SIZE_BYTES) as area, Pagemap() as pagemap:
        store(area.address, b"1")
        if pagemap.entry(area.address).pfn is None:
            raise Unavailable("/proc/self/pagemap hides which frame a page has", "run as root (CAP_SYS_ADMIN)")
    with Mapping(LOCKED_BYTES) as area:
        if not mlock(area.address, area.length_bytes, onfault=True).ok:
            raise Unavailable(
                f"this user may not lock {LOCKED_BYTES >> 20} MiB of memory", "run as root (CAP_IPC_LOCK)"
            )


def prepare(huge: bool, ksm: bool, lacking: Feature, contexts: Sequence[Feature]) -> None:
    """In the agent's process: one CPU, huge pages only where advised or (not `huge`) nowhere, a pidfd of it, and the userfaultfds,
    without the features that the kernel is lacking. Raises OSError, Unavailable.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most < FILES:
        raise Unavailable(f"a process may have {most} open files, and it needs {FILES}", f"`ulimit -n {FILES}`")
    # Batches of pages that are on their way to the LRU lists are kept by CPU.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    if not huge and libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")
    for number, features in enumerate(contexts):
        # The descriptor is the agent's from here on: it has its own number and is not closed.
        os.dup2(Userfault(features & ~lacking, user_mode_only=False).fileno(), CONTEXT_FD + number)
    os.dup2(os.pidfd_open(os.getpid()), PIDFD)
    if ksm:
        # A process without an area that may be merged loses its place among those that are scanned.
        area = libc.mmap(None, ctypes.c_size_t(PAGE_SIZE_BYTES), 0, PRIVATE, -1, ctypes.c_long(0))
        if libc.madvise(ctypes.c_void_p(area), ctypes.c_size_t(PAGE_SIZE_BYTES), int(Advice.MERGEABLE)):
            raise OSError(ctypes.get_errno(), "madvise(MADV_MERGEABLE)")


def swap(held: Machine) -> None:
    """Swap of our own on a RAM disk, without readahead: what is swapped in, and how, then depends on the operations alone."""
    held.private_swap(SWAP_BYTES, kinds=("zram", "brd"))
    held.set(VM / "page-cluster", 0)
    held.set(VMA_READAHEAD, "false")


def huge_pages(held: Machine) -> None:
    """Huge pages where they are advised, and a khugepaged that sleeps: what becomes huge then depends on the operations alone."""
    held.set(THP / "enabled", "madvise")
    held.set(THP / "use_zero_page", 1)
    held.set(THP / "khugepaged" / "scan_sleep_millisecs", 1 << 30)


def mergeable_elsewhere() -> list[str]:
    """Processes with memory that ksmd scans: their names and numbers."""
    source, mark = ("ksm_stat", "ksm_mergeable: yes") if "ksm_mergeable:" in own_ksm_stat() else ("smaps", " mg")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / source).read_text():
                found.append(f"{(folder / 'comm').read_text().strip()} ({folder.name})")
    return found


def own_ksm_stat() -> str:
    """Empty on kernels before v6.1."""
    path = Path("/proc/self/ksm_stat")
    return path.read_text() if path.exists() else ""


def merging(held: Machine) -> None:
    """A ksmd that is driven, and then does whole scans: what is merged then depends on the operations alone."""
    # The agent starts and stops it, and may be killed in between.
    held.keep(KSM / "run")
    held.set(KSM / "run", 0)
    if others := mergeable_elsewhere():
        raise Unavailable(
            f"memory of {', '.join(others)} may be merged: ksmd would scan it, and merge pages of a sequence with it",
            "wait for its end, or start it without MADV_MERGEABLE (qemu: -machine mem-merge=off)",
        )
    # It can't be changed, or put back, while anything is merged.
    held.set(KSM / "run", 2)
    held.set(KSM / "max_page_sharing", 1 << 20)
    held.set(KSM / "run", 0)
    scan_tirelessly(held, AT_ONCE)
    held.set(KSM / "use_zero_pages", 0)
    held.set(KSM / "stable_node_chains_prune_millisecs", 1 << 30)


def scan_tirelessly(held: Machine, pages_at_once: int) -> None:
    """A ksmd that does not sleep, and leaves out no page that it has often seen in vain."""
    for newer, value in (("smart_scan", 0), ("advisor_mode", "none")):
        if (KSM / newer).exists():
            held.set(KSM / newer, value)
    held.set(KSM / "sleep_millisecs", 0)
    held.set(KSM / "pages_to_scan", pages_at_once)
