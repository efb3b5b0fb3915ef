"""The machine that model code runs on: its CPUs, its memory, and the pools that allocations come from.

There is one, as there is one kernel; `boot` starts it afresh. A checked configuration has pools of fixed size; a
sequential run grows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any

from .lang import NULL, TOUCHED, Range, smp_processor_id, struct
from .mm_types import (
    LockClass,
    address_space,
    anon_vma,
    anon_vma_chain,
    atomic_t,
    cpu,
    mm_struct,
    page,
    page_table,
    pmd_slot,
    pte_slot,
    register,
    rmap_item,
    rw_semaphore,
    spinlock_t,
    stable_node,
    swap_slot,
    tlb_t,
    vm_area_struct,
)


@struct
class Machine:
    """Everything there is. The lists are constant while a program is checked; what they hold is not."""

    cpus: list[cpu] = field(default_factory=list)
    pages: list[page] = field(default_factory=list)
    anon_vmas: list[anon_vma] = field(default_factory=list)
    anon_vma_chains: list[anon_vma_chain] = field(default_factory=list)
    mms: list[mm_struct] = field(default_factory=list)
    vmas: list[vm_area_struct] = field(default_factory=list)
    page_tables: list[page_table] = field(default_factory=list)
    swap_slots: list[swap_slot] = field(default_factory=list)
    stable_nodes: list[stable_node] = field(default_factory=list)
    rmap_items: list[rmap_item] = field(default_factory=list)
    files: list[address_space] = field(default_factory=list)
    registers: list[register] = field(default_factory=list)
    swap_lock: spinlock_t = field(default_factory=spinlock_t)
    failures: Annotated[int, Range(0, 3)] = 0
    """How many allocations may still fail, with config.MEMORY_IS_SHORT."""


machine = Machine()


class Config:
    """Compile-time constants of the kernel, folded by the checker.

    Checked configurations are small: a page is one address, two pages are a huge page, and the VMAs are what they are: an
    operation on part of one is refused unless SPLIT_VMAS. No allocation fails unless MEMORY_IS_SHORT. Addresses are relative, so
    user addresses end at TASK_SIZE and begin at MMAP_MIN_ADDR, which may be negative; at WRAP_AT they wrap.
    """

    PAGE_SHIFT = 0
    HPAGE_PMD_ORDER = 1
    CONFIG_KSM = False
    TRANSPARENT_HUGEPAGE = True
    SPLIT_VMAS = False
    ALONE = False
    SYNCHRONOUS_SWAP = False
    MEMORY_IS_SHORT = False
    PT_RECLAIM = False
    BATCHED_UNMAP = False
    EVENTS = False
    MONITOR: Any = None
    RACED_EVENTS = 0
    PER_VMA_LOCKS = False
    TASK_SIZE = 1 << 30
    MMAP_MIN_ADDR = 0
    WRAP_AT = 1 << 30
    ZEROES: int | bytes = 0


config = Config()


def boot(
    *,
    cpus: int = 1,
    pages: int = 0,
    anon_vmas: int = 0,
    anon_vma_chains: int = 0,
    vmas: int = 0,
    page_tables: int = 0,
    swap_slots: int = 0,
    stable_nodes: int = 0,
    page_shift: int = 0,
    huge_order: int = 1,
    ksm: bool = False,
    huge: bool = True,
    split_vmas: bool = False,
    alone: bool = False,
    synchronous_swap: bool = False,
    pt_reclaim: bool = False,
    vma_locks: bool = False,
    batched_unmap: bool = False,
    monitor: Callable[..., None] | None = None,
    raced_events: int = 0,
    addresses: tuple[int, int, int] = (0, 1 << 30, 1 << 30),
) -> Machine:
    """Start the machine afresh with these pools (counts of free objects).

    page_shift: log2 of the page size in bytes (0: addresses count pages). huge_order: log2 of the pages of a huge page.
    ksm, huge: CONFIG_KSM and CONFIG_TRANSPARENT_HUGEPAGE; without the latter nothing may make a huge page.
    split_vmas: an operation on part of a VMA splits it, and equal neighbours are merged. alone: nobody else runs, so that locks need
    not be let go for others. synchronous_swap: swap is on a RAM disk, and a slot with one user is read past the swap cache.
    pt_reclaim: CONFIG_PT_RECLAIM, where the era has it: MADV_DONTNEED frees page tables, also with split_vmas.
    vma_locks: CONFIG_PER_VMA_LOCK. batched_unmap: reclaim flushes late.
    monitor: reads the messages of userfaultfds (events.py), in sequential runs; without one there are none.
    addresses: the lowest for users, the first that is none, and where they wrap.
    """
    config.ZEROES = bytes(1 << page_shift) if page_shift else 0
    config.SPLIT_VMAS, config.SYNCHRONOUS_SWAP, config.ALONE = split_vmas, synchronous_swap, alone
    config.MMAP_MIN_ADDR, config.TASK_SIZE, config.WRAP_AT = addresses
    config.PAGE_SHIFT, config.HPAGE_PMD_ORDER = page_shift, huge_order
    config.CONFIG_KSM, config.TRANSPARENT_HUGEPAGE = ksm, huge
    config.MEMORY_IS_SHORT = False
    config.PT_RECLAIM = pt_reclaim or split_vmas
    config.PER_VMA_LOCKS = vma_locks
    config.BATCHED_UNMAP = batched_unmap
    config.EVENTS, config.MONITOR = monitor is not None, monitor
    config.RACED_EVENTS = raced_events
    TOUCHED.clear()
    fresh = Machine(cpus=[cpu() for _ in range(cpus)], swap_lock=spinlock_t(lock_class=LockClass.SWAP))
    machine.__dict__.update(fresh.__dict__)
    for _ in range(pages):
        new_page()
    for _ in range(anon_vmas):
        new_anon_vma()
    for _ in range(anon_vma_chains):
        machine.anon_vma_chains.append(anon_vma_chain())
    for _ in range(vmas):
        machine.vmas.append(vm_area_struct())
    for _ in range(page_tables):
        new_page_table().allocated = False
    for _ in range(swap_slots):
        new_swap_slot()
    for _ in range(stable_nodes):
        machine.stable_nodes.append(stable_node())
        machine.rmap_items.append(rmap_item())
    return machine


def pools() -> dict[type, tuple[str, ...]]:
    """The structs whose objects are as good as one another, for the checker, and the fields that are zero in a free one.

    Their slots are handed out first free first, and nothing else looks at which slot an object has. Not so VMAs, which an
    unmapping takes in the order of their slots, and pages where some of them are neighbours.
    """
    found: dict[type, tuple[str, ...]] = {
        anon_vma: ("allocated",),
        anon_vma_chain: ("allocated",),
        page_table: ("allocated",),
        swap_slot: ("swap_map", "has_cache"),
    }
    if not config.TRANSPARENT_HUGEPAGE:
        found[page] = ("allocated",)
    return found


def new_semaphore(lock_class: LockClass, within: anon_vma = NULL) -> rw_semaphore:
    return rw_semaphore(readers=[False] * len(machine.cpus), lock_class=lock_class, within=within)


def new_page() -> page:
    """One more physical page, free."""
    made = page(pfn=len(machine.pages))
    machine.pages.append(made)
    return made


def new_anon_vma() -> anon_vma:
    """One more slab object, free."""
    made = anon_vma(rcu_old=[False] * len(machine.cpus))
    made.rwsem = new_semaphore(LockClass.ANON_VMA, made)
    made.refcount = atomic_t(within=made)
    machine.anon_vmas.append(made)
    return made


def new_swap_slot() -> swap_slot:
    """One more page of swap, free."""
    made = swap_slot()
    machine.swap_slots.append(made)
    return made


def new_mm(pages: int) -> mm_struct:
    """An empty address space for this many user pages, its page tables allocated."""
    made = mm_struct(mmap_sem=new_semaphore(LockClass.MMAP_SEM))
    span = 1 << config.HPAGE_PMD_ORDER
    for first in range(0, pages, span):
        made.pmd.append(pmd_slot(mm=made, first_page=first))
    machine.mms.append(made)
    return made


def new_page_table() -> page_table:
    """A table of empty PTEs."""
    made = page_table(number=len(machine.page_tables), allocated=True)
    made.ptl = spinlock_t(within=made)
    made.pte = [pte_slot(table=made) for _ in range(1 << config.HPAGE_PMD_ORDER)]
    machine.page_tables.append(made)
    return made


def this_cpu() -> cpu:
    """The CPU that runs this code."""
    return machine.cpus[smp_processor_id()]


def attach(cpu_number: int, mm: mm_struct, pages: int) -> None:
    """User code on this CPU runs in `mm`; its TLB covers the first `pages` pages."""
    machine.cpus[cpu_number].mm = mm
    machine.cpus[cpu_number].tlb = [tlb_t()] * pages
