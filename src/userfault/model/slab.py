"""Slab and page allocation, freeing, RCU, and the memory sanitizer of the model.

The anon_vma cache is SLAB_TYPESAFE_BY_RCU (DESTROY_BY_RCU before v4.12): a freed slot may be handed out at once as another
anon_vma, and it stops being an anon_vma at all only after an RCU grace period. So touching a freed slot is legal for a CPU
whose RCU read section began before the free, and a use after free for everybody else: some run has the slab page returned.
"""

from __future__ import annotations

from .era import era
from .lang import NULL, atomic, check, choose, exhausted, ghost, raw, reached, smp_processor_id
from .machine import config, machine, new_anon_vma, new_page, this_cpu
from .mm_types import (
    anon_vma,
    anon_vma_chain,
    atomic_t,
    page,
    pte_slot,
    rw_semaphore,
    spinlock_t,
    vm_area_struct,
)


@ghost
def kasan_anon_vma(obj: anon_vma) -> None:
    """An access to an anon_vma, or to the lock or counter within it (I2)."""
    check(
        obj.allocated or obj.rcu_old[smp_processor_id()],
        "use_after_free",
        "an anon_vma was touched after it was freed",
    )


@ghost
def kasan_counter(obj: atomic_t) -> None:
    if obj.within is not None:
        kasan_anon_vma(obj.within)


@ghost
def kasan_rwsem(obj: rw_semaphore) -> None:
    if obj.within is not None:
        kasan_anon_vma(obj.within)


anon_vma.__on_access__ = kasan_anon_vma  # type: ignore[attr-defined]
atomic_t.__on_access__ = kasan_counter  # type: ignore[attr-defined]
rw_semaphore.__on_access__ = kasan_rwsem  # type: ignore[attr-defined]


@ghost
def kasan_avc(obj: anon_vma_chain) -> None:
    check(obj.allocated, "use_after_free", "an anon_vma_chain was touched after it was freed")


@ghost
def kasan_vma(obj: vm_area_struct) -> None:
    check(obj.allocated, "use_after_free", "a vm_area_struct was touched after it was freed")


@ghost
def kasan_pte(obj: pte_slot) -> None:
    """A PTE that lies in a page table which was freed."""
    if obj.table is not None:
        check(obj.table.allocated, "use_after_free", "a page table was touched after it was freed")


@ghost
def kasan_ptl(obj: spinlock_t) -> None:
    if obj.within is not None:
        check(obj.within.allocated, "use_after_free", "a page table was touched after it was freed")


pte_slot.__on_access__ = kasan_pte  # type: ignore[attr-defined]
spinlock_t.__on_access__ = kasan_ptl  # type: ignore[attr-defined]
anon_vma_chain.__on_access__ = kasan_avc  # type: ignore[attr-defined]
vm_area_struct.__on_access__ = kasan_vma  # type: ignore[attr-defined]


# -- RCU --------------------------------------------------------------------------------------------------------------


@atomic
def rcu_read_lock() -> None:
    this_cpu().rcu_nesting += 1


@atomic
def rcu_read_unlock() -> None:
    here = this_cpu()
    check(here.rcu_nesting > 0, "lock_misuse", "rcu_read_unlock without rcu_read_lock")
    here.rcu_nesting -= 1
    if here.rcu_nesting == 0:
        forget_old_slabs()


@raw
def forget_old_slabs() -> None:
    """This CPU's RCU section is over: what was freed during it may now be gone."""
    for each in machine.anon_vmas:
        each.rcu_old[smp_processor_id()] = False


# -- no memory --------------------------------------------------------------------------------------------------------


def out_of_memory() -> bool:
    """Does the allocation that comes next fail? Asked by what allocates anon_vmas, their links and VMAs."""
    return config.MEMORY_IS_SHORT and allocation_fails()


@atomic
@raw
def allocation_fails() -> bool:
    """Any of the allocations may be among those that the test lets fail."""
    if machine.failures == 0 or choose(2) == 0:
        return False
    machine.failures -= 1
    reached("an allocation failed")
    return True


# -- anon_vma slab ----------------------------------------------------------------------------------------------------


@atomic
@raw
def kmem_cache_alloc_anon_vma() -> anon_vma:
    """A free slot, which may be one that was freed a moment ago. Its fields are what the last user left (no constructor)."""
    for each in machine.anon_vmas:
        if not each.allocated:
            each.allocated = True
            for number in range(len(machine.cpus)):
                each.rcu_old[number] = False
            for p in machine.pages:
                if p.mapping is each:
                    p.mapping_stale = True
                    reached("a page's anon_vma gave its slot to another")
            return each
    exhausted("anon_vma")
    fresh = new_anon_vma()
    fresh.allocated = True
    return fresh


@atomic
@raw
def kmem_cache_free_anon_vma(obj: anon_vma) -> None:
    """Free at once; readers that are in an RCU section now may still look."""
    check(obj.allocated, "use_after_free", "an anon_vma was freed twice")
    # Its rwsem may be held: a walker on the fast path may just be finding out that the page is unmapped.
    obj.allocated = False
    for number in range(len(machine.cpus)):
        obj.rcu_old[number] = machine.cpus[number].rcu_nesting > 0


@ghost
def anon_vma_is_the_pages(p: page) -> None:
    """I2: whoever got a reference or a lock by a page's mapping has that of its own anon_vma, not of one that took its slot."""
    check(not p.mapping_stale, "anon_vma_is_the_pages", "an anon_vma was had that took the place of the page's")


@ghost
def any_reader(sem: rw_semaphore) -> bool:
    return True in sem.readers


@atomic
@raw
def anon_vma_chain_alloc() -> anon_vma_chain:
    """mm/rmap.c anon_vma_chain_alloc."""
    for each in machine.anon_vma_chains:
        if not each.allocated:
            each.allocated = True
            return each
    exhausted("anon_vma_chain")
    fresh = anon_vma_chain_new()
    return fresh


def anon_vma_chain_new() -> anon_vma_chain:
    made = anon_vma_chain(allocated=True)
    machine.anon_vma_chains.append(made)
    return made


@atomic
@raw
def anon_vma_chain_free(avc: anon_vma_chain) -> None:
    check(avc.allocated, "use_after_free", "an anon_vma_chain was freed twice")
    avc.allocated = False
    avc.vma = NULL
    avc.anon_vma = NULL


# -- VMAs ---------------------------------------------------------------------------------------------------------------


@atomic
@raw
def vm_area_alloc() -> vm_area_struct:
    """A free vm_area_struct, its fields empty."""
    for each in machine.vmas:
        if not each.allocated:
            each.allocated = True
            each.anon_vma = NULL
            return each
    exhausted("vm_area_struct")
    return vm_area_new()


def vm_area_new() -> vm_area_struct:
    made = vm_area_struct(allocated=True)
    machine.vmas.append(made)
    return made


@atomic
@raw
def vm_area_free(vma: vm_area_struct) -> None:
    check(vma.allocated, "use_after_free", "a vm_area_struct was freed twice")
    check(len(vma.anon_vma_chain) == 0, "bad_free", "a vm_area_struct was freed while linked to an anon_vma")
    vma.detached = 0
    if config.PER_VMA_LOCKS:
        vma.vm_write_locked = False
    vma.allocated = False


# -- pages ------------------------------------------------------------------------------------------------------------


@ghost
def kasan_page(obj: page) -> None:
    check(obj.allocated, "use_after_free", "a page was touched after it was freed")


page.__on_access__ = kasan_page  # type: ignore[attr-defined]


@atomic
@raw
def alloc_page() -> page:
    """mm/page_alloc.c: one page with one reference, its contents whatever they were."""
    for each in machine.pages:
        if not each.allocated:
            prep_new_page(each)
            return each
    exhausted("page")
    fresh = new_page()
    prep_new_page(fresh)
    return fresh


@raw
def prep_new_page(each: page) -> None:
    each.allocated = True
    each.refcount.counter = 1


@atomic
@raw
def free_page(each: page) -> None:
    """mm/page_alloc.c free_pages_check: what may not be true of a page that is freed (I13)."""
    check(each.allocated, "use_after_free", "a page was freed twice")
    check(each.mapcount.counter == 0, "bad_free", "a page was freed while mapped")
    check(each.locked == 0, "bad_free", "a page was freed while locked")
    check(each.swapcache is None, "bad_free", "a page was freed while in the swap cache")
    check(each.pincount == 0, "bad_free", "a page was freed while pinned")
    each.mapping = NULL
    each.mapping_stale = False
    each.lru = False
    each.dirty = False
    if each.lazyfree:
        each.lazyfree = False
    each.anon_exclusive = False
    each.allocated = False


def get_page(each: page) -> None:
    """include/linux/mm.h get_page / folio_get."""
    take_reference(compound_head(each))


@atomic
def take_reference(head: page) -> None:
    head.refcount.counter += 1


@atomic
@raw
def get_page_unless_zero(each: page) -> bool:
    """A reference from somebody who has none: by PFN, or from a PTE whose lock is not held."""
    if each.refcount.counter == 0:
        return False
    each.refcount.counter += 1
    return True


@atomic
def put_page_testzero(each: page) -> bool:
    check(each.refcount.counter > 0, "refcount", "a page's reference count fell below zero")
    each.refcount.counter -= 1
    return each.refcount.counter == 0


def put_page(each: page) -> None:
    """mm/swap.c put_page / folio_put: the last reference frees the page, or the huge page that it is part of."""
    head = compound_head(each)
    if put_page_testzero(head):
        if config.TRANSPARENT_HUGEPAGE and head.compound:
            free_hugepage(head)
        else:
            free_page(head)


# -- huge pages -------------------------------------------------------------------------------------------------------


def hpage_nr() -> int:
    return 1 << config.HPAGE_PMD_ORDER


def hpage_size() -> int:
    return 1 << (config.PAGE_SHIFT + config.HPAGE_PMD_ORDER)


def nth_page(head: page, at: int) -> page:
    """The page `at` places after another: pages are one array."""
    return machine.pages[head.pfn + at]


def compound_head(p: page) -> page:
    """include/linux/page-flags.h compound_head / page_folio: who counts, locks and is described for a page.

    Before v4.5 only gup_fast meets a part of a huge page by itself: see put_compound_page.
    """
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and p.compound:
        return head_of(p)
    return p


def head_of(p: page) -> page:
    """The head of the huge page that a page is, or was, part of."""
    return machine.pages[p.pfn & -hpage_nr()]


def PageTail(p: page) -> bool:
    return p.compound and p.pfn & (hpage_nr() - 1) != 0


def put_compound_page(p: page) -> None:
    """mm/swap.c, before v4.5: put_page of what may be a tail. Only who walks page tables without their locks meets one."""
    if config.TRANSPARENT_HUGEPAGE and PageTail(p) and get_page_unless_zero(head_of(p)):
        counted = put_tail(p)
        put_page(head_of(p))
        if counted:
            return
    put_page(p)


@atomic
def put_tail(p: page) -> bool:
    """Under the head's compound_lock: a split has happened or it waits. False: the page is no tail any more."""
    if not p.compound:
        return False
    check(p.tail_users > 0, "refcount", "a part of a huge page was let go of more often than taken")
    p.tail_users -= 1
    head_of(p).refcount.counter -= 1
    return True


@atomic
@raw
def alloc_hugepage() -> page:
    """Aligned neighbours from the pool, one reference, held by the head."""
    for head in machine.pages:
        if head.pfn & (hpage_nr() - 1) == 0 and head.pfn + hpage_nr() <= len(machine.pages):
            free = True
            for at in range(hpage_nr()):
                if nth_page(head, at).allocated:
                    free = False
            if free:
                for at in range(hpage_nr()):
                    nth_page(head, at).allocated = True
                    nth_page(head, at).compound = True
                head.refcount.counter = 1
                return head
    exhausted("huge page")
    return new_hugepage()


def new_hugepage() -> page:
    while len(machine.pages) & (hpage_nr() - 1):
        new_page()
    head = new_page()
    for _ in range(hpage_nr() - 1):
        new_page()
    for at in range(hpage_nr()):
        nth_page(head, at).allocated = True
        nth_page(head, at).compound = True
    head.refcount.counter = 1
    return head


@atomic
@raw
def free_hugepage(head: page) -> None:
    """The last reference of a compound page is gone: all of it is free (free_pages_check for each, I13)."""
    check(head.entire_mapcount == 0, "bad_free", "a huge page was freed while mapped")
    check(head.locked == 0, "bad_free", "a page was freed while locked")
    check(head.pincount == 0, "bad_free", "a page was freed while pinned")
    if head.lazyfree:
        head.lazyfree = False
    for at in range(hpage_nr()):
        each = nth_page(head, at)
        check(each.mapcount.counter == 0, "bad_free", "a page was freed while mapped")
        each.compound = False
        each.allocated = False
        each.lru = False
        each.mapping = NULL
        each.mapping_stale = False
        each.dirty = False
        each.anon_exclusive = False


# -- atomic_t ---------------------------------------------------------------------------------------------------------


@atomic
def atomic_read(v: atomic_t) -> int:
    return v.counter


@atomic
def atomic_inc(v: atomic_t) -> None:
    v.counter += 1


@atomic
def atomic_inc_not_zero(v: atomic_t) -> bool:
    """Take a reference unless the last one is gone."""
    if v.counter == 0:
        return False
    v.counter += 1
    return True


@atomic
def atomic_dec_and_test(v: atomic_t) -> bool:
    check(v.counter > 0, "refcount", "a counter fell below zero")
    v.counter -= 1
    return v.counter == 0
