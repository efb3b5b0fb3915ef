"""mm/rmap.c: anon_vmas, their lifetime, the VMAs linked to them, and the way from a page to its own."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import ENOMEM
from .lang import NULL, READ_ONCE, atomic, check, ghost, raw, reached
from .locks import down_read, down_read_trylock, down_write, rwsem_is_locked, spin_lock, spin_unlock, up_read, up_write
from .mm_types import anon_vma, anon_vma_chain, page, vm, vm_area_struct
from .page_flags import page_mapped
from .pgtable import linear_page_index
from .slab import (
    anon_vma_chain_alloc,
    anon_vma_chain_free,
    anon_vma_is_the_pages,
    atomic_dec_and_test,
    atomic_inc,
    atomic_inc_not_zero,
    kmem_cache_alloc_anon_vma,
    kmem_cache_free_anon_vma,
    out_of_memory,
    rcu_read_lock,
    rcu_read_unlock,
)

# -- locks and references ---------------------------------------------------------------------------------------------


def anon_vma_lock_write(av: anon_vma) -> None:
    down_write(av.root.rwsem)


def anon_vma_unlock_write(av: anon_vma) -> None:
    up_write(av.root.rwsem)


def anon_vma_lock_read(av: anon_vma) -> None:
    down_read(av.root.rwsem)


def anon_vma_unlock_read(av: anon_vma) -> None:
    up_read(av.root.rwsem)


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.4", steps=1)
def anon_vma_free(av: anon_vma) -> None:
    """Wait for walkers that hold the lock without a reference, then free.

    The caller's atomic decrement is the barrier between "the page is unmapped" and this look at the lock.
    """
    if rwsem_is_locked(av.root.rwsem):
        anon_vma_lock_write(av)
        anon_vma_unlock_write(av)
    kmem_cache_free_anon_vma(av)


@modelled("mm/rmap.c", versions="v3.15 .. v6.8", section="C.4", steps=3)
def __put_anon_vma(av: anon_vma) -> None:
    """The last reference is gone: the child first, then its reference to the root (624483f3ea82)."""
    root = av.root
    anon_vma_free(av)
    if root is not av and atomic_dec_and_test(root.refcount):
        anon_vma_free(root)


def put_anon_vma(av: anon_vma) -> None:
    if atomic_dec_and_test(av.refcount):
        __put_anon_vma(av)


def get_anon_vma(av: anon_vma) -> None:
    atomic_inc(av.refcount)


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.5", steps=7)
def page_get_anon_vma(p: page) -> anon_vma | None:
    """A reference to the page's anon_vma, which is not locked; since v6.2 folio_get_anon_vma."""
    rcu_read_lock()
    mapping = READ_ONCE(p.mapping)
    if not isinstance(mapping, anon_vma):
        rcu_read_unlock()
        return None
    if not page_mapped(p):
        rcu_read_unlock()
        return None
    av = mapping
    if not atomic_inc_not_zero(av.refcount):
        rcu_read_unlock()
        return None
    # Still mapped: the reference is to the page's anon_vma. If not, the slot may have been freed and reused.
    if not page_mapped(p):
        rcu_read_unlock()
        put_anon_vma(av)
        return None
    rcu_read_unlock()
    anon_vma_is_the_pages(p)
    return av


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.6", steps=11)
def page_lock_anon_vma_read(p: page, try_lock: bool = False) -> anon_vma | None:
    """The page's anon_vma, its root's rwsem held for reading; since v6.1 folio_lock_anon_vma_read.

    try_lock: rwc->try_lock (since v6.0): give up instead of sleeping.
    """
    while True:
        rcu_read_lock()
        mapping = READ_ONCE(p.mapping)
        if not isinstance(mapping, anon_vma):
            rcu_read_unlock()
            return None
        if not page_mapped(p):
            rcu_read_unlock()
            return None
        av = mapping
        root = READ_ONCE(av.root)  # once: the slot may be recycled under us and get another root
        if down_read_trylock(root.rwsem):
            if era.recheck_on_fast_path and p.mapping is not mapping:
                up_read(root.rwsem)
                rcu_read_unlock()
                reached("walker got a lock at once that the page had left")
                continue
            # Still mapped: the page keeps the anon_vma alive, and we hold its lock.
            if not page_mapped(p):
                up_read(root.rwsem)
                rcu_read_unlock()
                return None
            rcu_read_unlock()
            anon_vma_is_the_pages(p)
            reached("walker took the fast path")
            return av
        if era.folios and try_lock:
            rcu_read_unlock()
            return None
        # The lock is taken: sleep for it, which needs a reference instead of RCU.
        if not atomic_inc_not_zero(av.refcount):
            rcu_read_unlock()
            return None
        if not page_mapped(p):
            rcu_read_unlock()
            put_anon_vma(av)
            return None
        rcu_read_unlock()
        anon_vma_lock_read(av)
        if era.recheck_on_slow_path and p.mapping is not mapping:
            anon_vma_unlock_read(av)
            put_anon_vma(av)
            reached("walker slept for a lock that the page had left")
            continue
        if atomic_dec_and_test(av.refcount):
            # Oops, ours was the last reference. Not put_anon_vma under the lock: freeing waits for the lock.
            anon_vma_unlock_read(av)
            __put_anon_vma(av)
            reached("walker held the last reference")
            return None
        anon_vma_is_the_pages(p)
        reached("walker took the slow path")
        return av


def page_unlock_anon_vma_read(av: anon_vma) -> None:
    anon_vma_unlock_read(av)


# -- linking VMAs -----------------------------------------------------------------------------------------------------


@atomic
def anon_vma_chain_link(vma: vm_area_struct, avc: anon_vma_chain, av: anon_vma) -> None:
    """One AVC into the VMA's list (newest first) and the anon_vma's tree, under the root's rwsem."""
    avc.vma = vma
    avc.anon_vma = av
    vma.anon_vma_chain.insert(0, avc)
    av.rb_root.append(avc)


@modelled(
    "mm/mmap.c",
    versions="v3.10 .. v6.8",
    section="C.1",
    steps=1,
    omits="mempolicy and flags that must match; only the neighbours in the same mm, as there",
)
def find_mergeable_anon_vma(vma: vm_area_struct) -> anon_vma | None:
    """The anon_vma of an adjacent, compatible VMA that has only its own: sharing it keeps a later merge possible."""
    for near in vma.vm_mm.mmap:
        if vma.vm_end == near.vm_start:
            av = reusable_anon_vma(near, vma)
            if av is not None:
                return av
    for near in vma.vm_mm.mmap:
        if near.vm_end == vma.vm_start:
            av = reusable_anon_vma(near, vma)
            if av is not None:
                return av
    return None


@modelled("mm/mmap.c", versions="v3.10 .. v6.8", section="C.1", steps=1, omits="mempolicy and flags not modelled")
def reusable_anon_vma(near: vm_area_struct, vma: vm_area_struct) -> anon_vma | None:
    """The neighbour's, if the two could be merged but for their protection, and it has no ancestors."""
    if (near.vm_flags ^ vma.vm_flags) & ~(
        vm.READ | vm.WRITE | vm.EXEC | vm.MAYBE_GUARD
    ) or near.vm_file is not vma.vm_file:
        return None
    if linear_page_index(near, vma.vm_start) != vma.vm_pgoff:
        return None
    av = READ_ONCE(near.anon_vma)
    if av is not None and len(near.anon_vma_chain) == 1:
        return av
    return None


@modelled("mm/rmap.c", versions="v3.10 .. v6.8", section="C.1", steps=8)
def anon_vma_prepare(vma: vm_area_struct) -> int:
    """Give a VMA its anon_vma, once; the caller holds mmap_sem, for reading at least. 0 or -ENOMEM."""
    if READ_ONCE(vma.anon_vma) is not None:
        return 0
    mm = vma.vm_mm
    if out_of_memory():
        return -ENOMEM
    avc = anon_vma_chain_alloc()
    allocated = False
    av = find_mergeable_anon_vma(vma)
    if av is None:
        if out_of_memory():
            anon_vma_chain_free(avc)
            return -ENOMEM
        av = anon_vma_alloc()
        if era.anon_vma_reuse:
            av.num_children += 1  # a root counts itself: it is never reused
        allocated = True
    anon_vma_lock_write(av)
    spin_lock(mm.page_table_lock)
    linked = False
    if vma.anon_vma is None:
        vma.anon_vma = av
        anon_vma_chain_link(vma, avc, av)
        if era.anon_vma_reuse:
            av.num_active_vmas += 1
        linked = True
    spin_unlock(mm.page_table_lock)
    anon_vma_unlock_write(av)
    if not linked:
        if allocated:
            put_anon_vma(av)
        anon_vma_chain_free(avc)
    return 0


def anon_vma_alloc() -> anon_vma:
    """A root: field by field, so that a lockless reader of a recycled slot may see any mixture (2.6.39's bug E-13)."""
    av = kmem_cache_alloc_anon_vma()
    av.refcount.counter = 1
    if era.anon_vma_reuse:
        av.num_children = 0
        av.num_active_vmas = 0
    av.parent = av
    av.root = av
    return av


@modelled("mm/rmap.c", versions="v3.10 .. v6.18", section="C.3", steps=2)
def anon_vma_clone(dst: vm_area_struct, src: vm_area_struct) -> int:
    """Link a VMA into every tree that another is in, the oldest first: a fork's child, or what is split off. 0 or -ENOMEM."""
    root: anon_vma | None = None
    count = len(src.anon_vma_chain)
    while count > 0:
        count -= 1
        parent_avc = src.anon_vma_chain[count]
        if out_of_memory():
            # None without sleeping, and nobody sleeps for memory under the lock: half of the links are there meanwhile.
            if root is not None:
                up_write(root.rwsem)
                root = None
            if out_of_memory():
                if era.anon_vma_reuse:
                    # Not counted yet, so it must not be uncounted (E-24).
                    dst.anon_vma = NULL
                unlink_anon_vmas(dst)
                return -ENOMEM
        avc = anon_vma_chain_alloc()
        av = parent_avc.anon_vma
        if root is None:
            # All of a VMA's anon_vmas share a root: it is locked once, with the first.
            root = av.root
            down_write(root.rwsem)
        anon_vma_chain_link(dst, avc, av)
        if era.anon_vma_reuse and dst.anon_vma is None and av.num_children < 2 and av.num_active_vmas == 0:
            dst.anon_vma = av
    if era.anon_vma_reuse and dst.anon_vma is not None:
        dst.anon_vma.num_active_vmas += 1
    if root is not None:
        up_write(root.rwsem)
    return 0


@modelled(
    "mm/rmap.c",
    versions="v3.10 .. v6.8",
    section="C.4",
    steps=5,
    omits="the batching of root locks: one lock per call, since all of a VMA's anon_vmas share a root",
)
def unlink_anon_vmas(vma: vm_area_struct) -> None:
    """Take a VMA out of the trees of its anon_vmas; put those whose tree got empty, after the lock is let go."""
    if len(vma.anon_vma_chain) == 0:
        return
    root = vma.anon_vma_chain[0].anon_vma.root
    down_write(root.rwsem)
    kept = 0
    while kept < len(vma.anon_vma_chain):
        avc = vma.anon_vma_chain[kept]
        if unlink_avc(avc):
            if era.anon_vma_reuse:
                avc.anon_vma.parent.num_children -= 1
            kept += 1
        else:
            drop_avc(vma, avc)
    if era.anon_vma_reuse and vma.anon_vma is not None:
        av = vma.anon_vma
        anon_vma_is_active(av)
        av.num_active_vmas -= 1
        vma.anon_vma = NULL
    up_write(root.rwsem)
    while len(vma.anon_vma_chain) != 0:
        avc = vma.anon_vma_chain[0]
        av = avc.anon_vma
        anon_vma_is_unused(av)
        put_anon_vma(av)
        drop_avc(vma, avc)


@ghost
def anon_vma_is_active(av: anon_vma) -> None:
    check(av.num_active_vmas > 0, "accounting", "an anon_vma's count of active VMAs fell below zero")


@ghost
def anon_vma_is_unused(av: anon_vma) -> None:
    """The kernel's own warning when the last link is gone."""
    if era.anon_vma_reuse:
        check(av.num_children == 0, "accounting", "an anon_vma without links has children")
        check(av.num_active_vmas == 0, "accounting", "an anon_vma without links has active VMAs")


@atomic
def unlink_avc(avc: anon_vma_chain) -> bool:
    """Out of the tree; true if it is empty now: the anon_vma is to be put, and only without its lock."""
    avc.anon_vma.rb_root.remove(avc)
    return len(avc.anon_vma.rb_root) == 0


@atomic
@raw
def drop_avc(vma: vm_area_struct, avc: anon_vma_chain) -> None:
    """Off the VMA's list, and freed."""
    vma.anon_vma_chain.remove(avc)
    avc.allocated = False
    avc.vma = NULL
    avc.anon_vma = NULL
