"""The structs of mm (include/linux/mm_types.h, rmap.h, pgtable types), reduced to what the protocol needs.

The comment behind a field names the lock that protects it. `@struct` objects have identity; NamedTuples are values that one
load or store moves whole. Embedded structs (a lock in a struct) are objects of their own that never change place.
"""

from __future__ import annotations

import enum
from dataclasses import field
from typing import Annotated, NamedTuple

from .lang import NULL, CpuId, PerCpu, Range, struct

Owner = Annotated[int, CpuId(owned=True)]
Holders = Annotated[list[bool], PerCpu(owned=True)]
CpuFlags = Annotated[list[bool], PerCpu()]
Index = Annotated[int, Range(0, 15)]
"""A linear page offset, in pages."""
Content = Annotated[int | bytes, Range(0, 7)]
"""What a page holds: bytes in a sequential run, a small token in a checked one. Only copied, compared and replaced."""


class LockClass(enum.IntEnum):
    """Ranks: a blocking lock may be taken only while nothing of a higher rank is held (mm/rmap.c, header comment)."""

    MMAP_SEM = 0
    PAGE = 1
    ANON_VMA = 2
    PTL = 3
    SWAP = 4


@struct
class atomic_t:
    """A counter changed by atomic instructions only."""

    __embedded__ = True
    counter: Annotated[int, Range(0, 7)] = 0  # atomic
    within: anon_vma = NULL  # const


@struct
class spinlock_t:
    """A spinlock; nothing may sleep while it is held."""

    __embedded__ = True
    owner: Owner = 0  # the lock itself
    lock_class: LockClass = LockClass.PTL  # const
    within: page_table = NULL  # const


@struct
class rw_semaphore:
    """A sleeping reader/writer lock."""

    __embedded__ = True
    writer: Owner = 0  # the lock itself
    readers: Holders = field(default_factory=list)  # the lock itself
    lock_class: LockClass = LockClass.MMAP_SEM  # const
    within: anon_vma = NULL  # const


@struct
class cpu:
    """What a CPU knows of itself; only its own thread writes it."""

    __per_cpu__ = True
    held: list[HeldCount] = field(default_factory=lambda: [0] * len(LockClass))  # this CPU's own, by LockClass
    rcu_nesting: Annotated[int, Range(0, 3)] = 0  # this CPU's own
    irqs_off: bool = False  # this CPU's own: IPIs to it wait
    mm: mm_struct = NULL  # const: the address space that its user code runs in
    tlb: list[tlb_t] = field(default_factory=list)  # this CPU's own, by user page; flushes of others clear it
    flush_required: bool = False  # this CPU's own (tlb_ubc): translations of what it unmapped are left
    flush_dirty: bool = False  # this CPU's own: by one of them somebody may still write
    event: Annotated[int, Range(0, 31)] = (
        0  # a userfaultfd's message that this CPU waits for somebody to read; event_wqh.lock
    )
    gather: list[page] = field(default_factory=list)  # this CPU's own mmu_gather: pages to be freed after the flush
    pinned: list[page] = field(default_factory=list)  # this CPU's own: what get_user_pages_fast gave to the caller
    kept: list[page] = field(default_factory=list)  # this CPU's own: pinned pages that its device may read
    isolated: list[page] = field(default_factory=list)  # this CPU's own compound_pagelist: huge pages, locked
    walk_visited: Annotated[int, Range(0, 7)] = 0  # ghost: mappings that the rmap walk under way has visited
    walk_gained: Annotated[int, Range(0, 7)] = 0  # ghost: mappings its page has gained since the walk began
    walk_expected: Annotated[int, Range(0, 7)] = 0  # ghost: mappings that it had when the walk began
    walk_page: page = NULL  # ghost: the page being walked


HeldCount = Annotated[int, Range(0, 3)]


@struct
class anon_vma:
    """include/linux/rmap.h: the head of the VMAs in which the pages created in one VMA may be mapped."""

    root: anon_vma = NULL  # set at allocation, constant until freed
    rwsem: rw_semaphore = field(default_factory=rw_semaphore)  # a lock; only the root's is used
    refcount: atomic_t = field(default_factory=atomic_t)  # atomic
    rb_root: list[anon_vma_chain] = field(default_factory=list)  # root->rwsem
    parent: anon_vma = NULL  # root->rwsem; since v3.19
    num_children: Annotated[int, Range(0, 7)] = 0  # root->rwsem; since v6.0
    num_active_vmas: Annotated[int, Range(0, 7)] = 0  # root->rwsem; since v6.0
    allocated: bool = False  # slab
    rcu_old: CpuFlags = field(default_factory=list)  # ghost: CPUs in an RCU section that began before the last free


@struct
class anon_vma_chain:
    """include/linux/rmap.h: the link between one VMA and one anon_vma."""

    vma: vm_area_struct = NULL  # mmap_sem
    anon_vma: anon_vma_p = NULL  # root->rwsem
    allocated: bool = False  # slab


@struct
class rmap_item:
    """mm/ksm.c: a place that was merged. Its VMA, and the copies that forks made of it, are found by the anon_vma."""

    mm: mm_struct = NULL  # ksmd's own
    address: Annotated[int, Range(0, 31)] = 0  # ksmd's own
    anon_vma: anon_vma_p = NULL  # ksmd's own; a reference is held
    allocated: bool = False  # slab


@struct
class stable_node:
    """mm/ksm.c: what page->mapping of a KSM page points to."""

    page: page_p = NULL  # page lock of the KSM page
    hlist: list[rmap_item] = field(default_factory=list)  # page lock of the KSM page: the places that were merged


class vm(enum.IntFlag):
    """VMA flags that the protocol reads. Several of them are a plain number: enum's operators look for a member each time."""

    __and__ = __rand__ = int.__and__  # type: ignore[assignment]
    __or__ = __ror__ = int.__or__  # type: ignore[assignment]

    WRITE = 1
    SHARED = 2
    DONTCOPY = 4
    LOCKED = 8
    USERFAULT = 16
    NONLINEAR = 32
    MERGEABLE = 64
    HUGEPAGE = 128
    READ = 256
    EXEC = 512
    UFFD_WP = 1024
    WIPEONFORK = 2048
    NOHUGEPAGE = 4096
    LOCKONFAULT = 8192
    MAYBE_GUARD = 16384
    DONTDUMP = 32768
    ACCOUNT = 65536


@struct
class vm_area_struct:
    """A mapping: [vm_start, vm_end) of one mm."""

    vm_mm: mm_struct = NULL  # const
    vm_start: Annotated[int, Range(0, 31)] = 0  # mmap_sem
    vm_end: Annotated[int, Range(0, 31)] = 0  # mmap_sem
    vm_pgoff: Index = 0  # mmap_sem
    vm_flags: Annotated[int, Range(0, 131071)] = 0  # mmap_sem
    ctx: userfaultfd_ctx = NULL  # mmap_sem: vm_userfaultfd_ctx
    anon_vma: anon_vma_p = NULL  # NULL -> x once: mmap_sem R + page_table_lock + rwsem W
    anon_vma_chain: list[anon_vma_chain_p] = field(default_factory=list)  # mmap_sem + root->rwsem; newest first
    vm_file: address_space = NULL  # const
    cursor: Annotated[int, Range(0, 0)] = (
        0  # vm_private_data of a nonlinear VMA: where the next sweep begins; i_mmap_mutex
    )
    vm_refcnt: Annotated[int, Range(0, 7)] = 0  # atomic: readers of the VMA's own lock, since v6.4
    vm_write_locked: bool = False  # until mmap_sem is let go, which its writer holds
    detached: Annotated[int, CpuId(owned=True)] = 0  # mmap_sem: whose munmap has taken it out of its mm
    allocated: bool = False  # slab


@struct
class userfaultfd_ctx:
    """fs/userfaultfd.c: an open userfaultfd."""

    mm: mm_struct = NULL  # const: the address space that it was opened in
    wp_unpopulated: bool = False  # const: UFFD_FEATURE_WP_UNPOPULATED
    wp_async: bool = False  # const: UFFD_FEATURE_WP_ASYNC
    features: int = 0  # const: UFFD_FEATURE_*, of which events.py reads some
    mmap_changing: int = 0  # atomic: events that are prepared and not read; since v4.11


@struct
class address_space:
    """A file's pages and the VMAs that map it: the contrast object of remap_file_pages (protocol.md A.6)."""

    i_mmap: list[vm_area_struct] = field(default_factory=list)  # i_mmap_mutex: linear VMAs
    i_mmap_nonlinear: list[vm_area_struct] = field(default_factory=list)  # i_mmap_mutex
    i_mmap_mutex: rw_semaphore = field(default_factory=rw_semaphore)  # a lock
    pages: list[page | None] = field(default_factory=list)  # const, by file page


@struct
class page:
    """struct page / folio: one physical page. `pfn` is its place in `machine.pages`."""

    pfn: Annotated[int, Range(0, 31)] = 0  # const
    mapping: anon_vma | stable_node | address_space = NULL  # page lock (+ see protocol.md D.3)
    index: Index = 0  # page lock, as mapping
    mapping_stale: bool = False  # ghost: the slot that mapping points to serves another anon_vma by now
    mapcount: atomic_t = field(default_factory=atomic_t)  # 0 = unmapped; PTL of the PTE that changes it
    refcount: atomic_t = field(default_factory=atomic_t)  # atomic
    entire_mapcount: Annotated[int, Range(0, 7)] = 0  # a huge page's head: PMDs that map it; PMD lock; since v4.5
    pincount: Annotated[int, Range(0, 3)] = 0  # atomic: FOLL_PIN users; since v5.7
    tail_users: Annotated[int, Range(0, 3)] = 0  # a tail's references (in its _mapcount); compound_lock; before v4.5
    write_pins: Annotated[int, Range(0, 3)] = 0  # ghost: pins that were handed out, for writing or (v5.19) for reading
    locked: Owner = 0  # PG_locked: the lock itself
    swapcache: swap_slot = NULL  # PG_swapcache + private: page lock
    anon_exclusive: bool = False  # PageAnonExclusive: PTL; since v5.19
    compound: bool = False  # part of a huge page; page lock / compound lock
    lru: bool = False  # lru_lock
    dirty: bool = False  # PG_dirty: atomic; under the PTL of an entry that was dirty, or the page lock
    lazyfree: bool = False  # MADV_FREE was said: PG_swapbacked is clear; lru_lock
    referenced: bool = False  # ghost of PG_referenced
    allocated: bool = False  # buddy
    data: Content = 0  # no lock: the memory itself


VM_FAULT_OOM = 1
VM_FAULT_SIGBUS = 2
VM_FAULT_USERFAULT = 4
"""v6.8: the fault goes to the userfaultfd's monitor (handle_userfault)."""
VM_FAULT_HWPOISON = 16
VM_FAULT_SIGSEGV = 64
VM_FAULT_FALLBACK = 2048
"""No huge page: small ones will do."""


class PteKind(enum.IntEnum):
    NONE = 0
    PRESENT = 1
    SWAP = 2
    MIGRATION = 3
    FILE = 4
    HWPOISON = 5
    WP_MARKER = 6
    POISON_MARKER = 7
    GUARD_MARKER = 8


class pte_t(NamedTuple):
    """A page-table entry. `special`: the zero page. A migration entry names the page in `page`.

    `exclusive`: of a swap or migration entry. `uffd_wp`: write-protected by userfaultfd. `protnone`: nobody may use it.
    """

    kind: PteKind = PteKind.NONE
    page: page_p = NULL
    slot: swap_slot = NULL
    write: bool = False
    dirty: bool = False
    young: bool = False
    special: bool = False
    exclusive: bool = False
    uffd_wp: bool = False
    protnone: bool = False


class PmdKind(enum.IntEnum):
    NONE = 0
    TABLE = 1
    HUGE = 2
    SPLITTING = 3
    HUGE_ZERO = 4
    MIGRATION = 5
    INVALID = 6


class pmd_t(NamedTuple):
    """A page-middle-directory entry: a table of PTEs or a huge page. A migration entry names the page in `page`.

    `exclusive`: of a migration entry. `uffd_wp`: write-protected by userfaultfd.

    SPLITTING: huge, and being split (before v4.5). INVALID: huge, but the hardware may not use it (pmdp_invalidate).
    """

    kind: PmdKind = PmdKind.NONE
    table: page_table = NULL
    page: page_p = NULL
    write: bool = False
    dirty: bool = False
    young: bool = False
    exclusive: bool = False
    uffd_wp: bool = False


class tlb_t(NamedTuple):
    """A translation that a CPU remembers; page None: none."""

    page: page_p = NULL
    write: bool = False


@struct
class pte_slot:
    """Where a PTE lives: what a `pte_t *` points to."""

    __embedded__ = True
    pte: pte_t = pte_t()  # PTL of the table
    table: page_table = NULL  # const


@struct
class pmd_slot:
    """Where a PMD lives: what a `pmd_t *` points to."""

    __embedded__ = True
    pmd: pmd_t = pmd_t()  # page_table_lock (PMD lock since v3.13)
    mm: mm_struct = NULL  # const
    first_page: Annotated[int, Range(0, 31)] = 0  # const: the number of the first user page that it covers
    deposited: page_table = NULL  # page_table_lock: the table that a split will need


@struct
class page_table:
    """A page of PTEs."""

    ptl: spinlock_t = field(default_factory=spinlock_t)  # a lock
    pte: list[pte_slot] = field(default_factory=list)  # const list of slots
    number: Annotated[int, Range(0, 31)] = 0  # const: its address, for lock order
    allocated: bool = False  # buddy
    detached: bool = False  # PMD lock and ptl: freed, but for RCU readers


@struct
class mm_struct:
    """An address space."""

    mmap_sem: rw_semaphore = field(default_factory=rw_semaphore)  # a lock
    page_table_lock: spinlock_t = field(default_factory=spinlock_t)  # a lock
    pmd: list[pmd_slot] = field(default_factory=list)  # const list of slots
    mmap: list[vm_area_struct] = field(default_factory=list)  # mmap_sem, in address order
    allocated: bool = True  # slab: in use; a free one waits for a fork
    tlb_flush_batched: bool = False  # PTL: reclaim has not flushed what it unmapped here; since v4.4
    write_protect_seq: Annotated[int, Range(0, 15)] = 0  # odd while a fork write-protects; mmap_sem W; since v5.11
    mmap_changing: Annotated[int, Range(0, 3)] = 0  # atomic: the userfaultfd context's counter; since v4.11


@struct
class swap_slot:
    """One page of swap: its entry is its identity. `swap_map` counts swap PTEs, without the cache."""

    swap_map: Annotated[int, Range(0, 7)] = 0  # swap lock
    has_cache: bool = False  # SWAP_HAS_CACHE: swap lock
    cache: page = NULL  # the swap cache: page lock + tree_lock
    data: Content = 0  # page lock of the cached page: what is on the device


@struct
class register:
    """A litmus register: what a thread's operation returned."""

    value: Annotated[int, Range(-64, 63)] = 0  # no lock: its thread's own


# Names of types for fields that bear their type's name.
anon_vma_p = anon_vma
page_p = page
anon_vma_chain_p = anon_vma_chain
