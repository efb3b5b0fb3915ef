"""fs/userfaultfd.c: what a userfaultfd's monitor is told: faults, and the events of an address space, which wait until they are read.

A sequential run's monitor is `config.MONITOR`, which is called where the kernel would sleep until it has read the message. In a
checked program (`config.RACED_EVENTS`: which events the monitor asked for) another thread reads, and a message is its kind.
"""

from __future__ import annotations

from typing import NamedTuple

from .catalogue import modelled
from .lang import atomic, raw, reached, wait_until
from .locks import down_read, might_sleep, up_read
from .machine import config, machine, this_cpu
from .mm_types import PmdKind, PteKind, mm_struct, userfaultfd_ctx, vm, vm_area_struct
from .pgtable import pmd_offset, pte_offset

EVENT_PAGEFAULT, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
FEATURE_EVENT_FORK, FEATURE_EVENT_REMAP, FEATURE_EVENT_REMOVE, FEATURE_EVENT_UNMAP = 1 << 1, 1 << 2, 1 << 3, 1 << 6
FEATURE_SIGBUS, FEATURE_EXACT_ADDRESS = 1 << 7, 1 << 11
FAULT_WRITE, FAULT_WP = 1, 2
EARLY, LATER, LAST = 0, 1, 2
"""When a system call delivers what it has prepared: mremap unmaps what is in its way before it says that it moved."""


class uffd_msg(NamedTuple):
    """A message. FORK: child, the userfaultfd of the new process. REMAP: from, to and length; REMOVE and UNMAP: start and end;
    PAGEFAULT: the page's address and FAULT_* (all in bytes)."""

    event: int
    first: int = 0
    second: int = 0
    third: int = 0
    child: userfaultfd_ctx | None = None


prepared: list[tuple[int, userfaultfd_ctx, uffd_msg]] = []
"""What the system call that runs will deliver once its locks are free."""


def prepare(ctx: userfaultfd_ctx, message: uffd_msg, when: int = EARLY) -> None:
    """The address space is changing: no ioctl that maps something succeeds until the message is read."""
    ctx.mmap_changing += 1
    prepared.append((when, ctx, message))


@modelled("fs/userfaultfd.c", function="userfaultfd_event_wait_completion", versions="v4.11 .. v6.18", section="F.1")
def deliver() -> None:
    """Every message that was prepared, one after the other: each waits until it is read. No lock is held."""
    waiting = sorted(prepared, key=lambda each: each[0])
    prepared.clear()
    for _, ctx, message in waiting:
        config.MONITOR(ctx, message)
        ctx.mmap_changing -= 1


@modelled("fs/userfaultfd.c", function="dup_userfaultfd", versions="v4.11 .. v6.18", section="C.3", steps=2)
def dup_userfaultfd(vma: vm_area_struct, ctx: userfaultfd_ctx, flags: int, child: mm_struct) -> None:
    """A copied VMA stays registered where its monitor asked for fork events: with a userfaultfd of the child's, one for each."""
    if ctx is None or not ctx.features & FEATURE_EVENT_FORK:
        return
    new: userfaultfd_ctx | None = None
    for _, parent, message in prepared:
        if parent is ctx:
            new = message.child
    if new is None:
        new = userfaultfd_ctx(mm=child, features=ctx.features, wp_unpopulated=ctx.wp_unpopulated, wp_async=ctx.wp_async)
        prepare(ctx, uffd_msg(EVENT_FORK, child=new))
    vma.ctx = new
    vma.vm_flags |= flags & int(vm.USERFAULT | vm.UFFD_WP)


def is_watched(vma: vm_area_struct) -> bool:
    """Does a fork's new VMA keep its write-protection by userfaultfd?"""
    return config.EVENTS and vma.vm_flags & vm.UFFD_WP != 0


@modelled("fs/userfaultfd.c", versions="v4.11 .. v6.18", section="C.4", steps=2)
def userfaultfd_unmap_prep(mm: mm_struct, start: int, end: int, when: int = EARLY) -> None:
    """A range will be unmapped: one message, of all of it, for each monitor that asked."""
    told: list[userfaultfd_ctx] = []
    for vma in mm.mmap:
        ctx = vma.ctx
        if vma.vm_end > start and vma.vm_start < end and ctx is not None and ctx.features & FEATURE_EVENT_UNMAP:
            if ctx not in told:
                told.append(ctx)
                prepare(ctx, uffd_msg(EVENT_UNMAP, start, end), when)


def keeps_monitor(vma: vm_area_struct) -> bool:
    """Did the VMA's monitor ask to be told when it moves?"""
    return config.EVENTS and vma.ctx is not None and vma.ctx.features & FEATURE_EVENT_REMAP != 0


@modelled("fs/userfaultfd.c", versions="v4.11 .. v6.18", section="C.16", steps=1)
def mremap_userfaultfd_prep(vma: vm_area_struct, source: int, target: int, length: int) -> None:
    prepare(vma.ctx, uffd_msg(EVENT_REMAP, source, target, length), LATER)


@modelled(
    "fs/userfaultfd.c", versions="v4.11 .. v6.18", section="C.4", steps=2, omits="what becomes of the VMA meanwhile"
)
def userfaultfd_remove(mm: mm_struct, vma: vm_area_struct, start: int, end: int) -> None:
    """A range will be forgotten: its monitor reads that before it is, while mmap_lock (held for reading) is let go."""
    if vma.ctx is not None and vma.ctx.features & FEATURE_EVENT_REMOVE:
        prepare(vma.ctx, uffd_msg(EVENT_REMOVE, start, end))
        up_read(mm.mmap_sem)
        deliver()
        down_read(mm.mmap_sem)


@modelled(
    "fs/userfaultfd.c",
    function="handle_userfault",
    versions="v4.3 .. v6.18",
    section="C.1",
    omits="who waits: the monitor resolves the fault at once",
)
def handle_userfault(vma: vm_area_struct, addr: int, write: bool) -> bool:
    """A fault is a message, unless SIGBUS was asked for: then false. No lock is held."""
    ctx = vma.ctx
    if ctx.features & FEATURE_SIGBUS:
        return False
    page = addr if ctx.features & FEATURE_EXACT_ADDRESS else addr >> config.PAGE_SHIFT << config.PAGE_SHIFT
    pmd = pmd_offset(vma.vm_mm, addr).pmd
    protected = pmd.kind == PmdKind.TABLE and pte_offset(pmd.table, addr).pte.kind == PteKind.PRESENT
    flags = (FAULT_WRITE if write else 0) | (FAULT_WP if protected else 0)
    config.MONITOR(ctx, uffd_msg(EVENT_PAGEFAULT, page, flags))
    return True


# -- raced: who changes the address space, and who reads ----------------------------------------------------------------


def is_registered(mm: mm_struct, start: int, end: int) -> bool:
    """Does a VMA of the range have a monitor?"""
    for vma in mm.mmap:
        if vma.vm_start < end and vma.vm_end > start and vma.vm_flags & vm.USERFAULT:
            return True
    return False


@atomic
def event_begins(mm: mm_struct) -> None:
    """mmap_changing, under mmap_lock: from now on whoever fills or moves is told to try again."""
    mm.mmap_changing += 1


@modelled(
    "fs/userfaultfd.c",
    function="userfaultfd_event_wait_completion",
    versions="v4.11 .. v6.18",
    section="F.1",
    steps=3,
    omits="signals; a userfaultfd that is closed meanwhile; of several events, the order in which they came",
    errs="both",
)
def wait_for_reader(mm: mm_struct, event: int) -> None:
    """A message is there to be read; when it was, fills and moves go on. No lock is held."""
    queue_event(event)
    event_is_read()
    event_ends(mm)


@atomic
def queue_event(event: int) -> None:
    might_sleep()
    this_cpu().event = event


@atomic
def event_is_read() -> None:
    wait_until(this_cpu().event == 0)


@atomic
def event_ends(mm: mm_struct) -> None:
    mm.mmap_changing -= 1


@atomic
@raw
def read_event(mm: mm_struct) -> int:
    """userfaultfd_ctx_read: sleeps until there is an event, and wakes who waits for it to be read. Its kind."""
    wait_until(has_event(mm))
    event = 0
    for each in machine.cpus:
        if event == 0 and each.event != 0 and each.mm is mm:
            event = each.event
            each.event = 0
    reached("an event was read")
    return event


@raw
def has_event(mm: mm_struct) -> bool:
    for each in machine.cpus:
        if each.event != 0 and each.mm is mm:
            return True
    return False
