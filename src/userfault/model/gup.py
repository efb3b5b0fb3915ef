"""arch/x86/mm/gup.c (v3.10), mm/gup.c (v6.8): references to the pages of a user range, without any lock where that can be.

The pages are given to the CPU's `pinned`, which stands for the array of the caller: it is empty before the call, and again when
the pages are done with. What a device is left with afterwards is in `kept`.
"""

from __future__ import annotations

from typing import cast

from .catalogue import modelled
from .era import era
from .errno import EFAULT, ENOMEM
from .huge_split import wait_split_huge_page
from .lang import NULL, atomic, check, ghost, raw
from .locks import down_read, lock_page, spin_lock, spin_unlock, unlock_page, up_read
from .machine import config, this_cpu
from .memory import handle_mm_fault
from .mm_types import VM_FAULT_OOM, PmdKind, PteKind, mm_struct, page, pmd_slot, pmd_t, vm, vm_area_struct
from .mmap import find_vma
from .page_flags import PageAnon
from .pgtable import (
    pmd_lockptr,
    pmd_offset,
    pmd_trans_huge,
    pmd_trans_splitting,
    pte_lockptr,
    pte_offset,
    table_is_gone,
)
from .slab import PageTail, compound_head, get_page, head_of, hpage_nr, nth_page, put_compound_page, put_page
from .user import touch


@atomic
def local_irq_disable() -> None:
    this_cpu().irqs_off = True


@atomic
def local_irq_enable() -> None:
    this_cpu().irqs_off = False


# -- references -------------------------------------------------------------------------------------------------------


@atomic
@raw
def gup_get_page(p: page) -> None:
    """v3.10: a plain get_page. Its correctness rests on the flush's IPI: a freed page here is a use after free."""
    check(p.allocated, "use_after_free", "gup_fast took a reference to a freed page")
    p.refcount.counter += 1


@atomic
@raw
def get_huge_page_tail(p: page) -> None:
    """include/linux/mm.h, before v4.5: a tail remembers its users until the page is split and it has a count of its own."""
    check(
        p.allocated and p.compound,
        "use_after_free",
        "gup_fast took a part of a huge page for one that is no part any more",
    )
    p.tail_users += 1


@atomic
@raw
def get_head_page_multiple(head: page, refs: int) -> None:
    """arch/x86/mm/gup.c, before v4.5."""
    check(head.allocated, "use_after_free", "gup_fast took a reference to a freed page")
    head.refcount.counter += refs


@atomic
@raw
def try_grab_folio(p: page, refs: int) -> bool:
    """v6.8, FOLL_PIN: references and pins for some parts of a folio at once, unless its last reference is gone."""
    head = compound_head(p)
    if head.refcount.counter == 0:
        return False
    head.refcount.counter += refs
    head.pincount += refs
    return True


@atomic
def drop_pins(head: page, refs: int) -> None:
    """All pins, and all but one of the references that came with them."""
    check(head.pincount >= refs, "refcount", "a page was unpinned more often than pinned")
    head.pincount -= refs
    head.refcount.counter -= refs - 1


def gup_put_folio(p: page, refs: int) -> None:
    """Undo try_grab_folio."""
    head = compound_head(p)
    drop_pins(head, refs)
    put_page(head)


@ghost
def give(p: page) -> None:
    """Into the caller's array, which nobody else can see."""
    this_cpu().pinned.append(p)


@ghost
def pins_are_valid() -> None:
    """From here on the caller and the owner see the same pages, whatever happens to the addresses."""
    if era.anon_exclusive:
        for p in this_cpu().pinned:
            p.write_pins += 1


@ghost
def pin_is_valid(p: page) -> None:
    if era.anon_exclusive:
        p.write_pins += 1


@ghost
def pin_is_over(p: page) -> None:
    if era.anon_exclusive:
        p.write_pins -= 1


@modelled("mm/gup.c", versions="v5.6 .. v6.18 (v3.10: put_page)", section="C.18")
def unpin_user_page(p: page) -> None:
    """Let go of a page that get_user_pages_fast returned."""
    if era.anon_exclusive:
        gup_put_folio(p, 1)
    else:
        put_compound_page(p)


@modelled("mm/gup.c", versions="v5.6 .. v6.18 (v3.10: set_page_dirty_lock, put_page)", section="C.18", steps=3)
def unpin_user_pages_dirty_lock(p: page) -> None:
    """The same for a page that was written: only the page says so, its entry does not."""
    head = compound_head(p)
    if not head.dirty:
        lock_page(head)
        head.dirty = True
        unlock_page(head)
    unpin_user_page(p)


@modelled(
    "mm/internal.h",
    versions="v5.19 (include/linux/mm.h) .. v6.18",
    section="C.18",
    steps=2,
    omits="FOLL_LONGTERM, hugetlb",
)
def gup_must_unshare(p: page, write: bool) -> bool:
    """Is a page that is read-only here one that a pin can't have, because a write would put another in its place?

    No before v5.19: a pin for reading keeps what is shared, and may be left with a page that a write has replaced.
    """
    return era.anon_exclusive and not write and PageAnon(p) and not p.anon_exclusive


# -- the fast way -----------------------------------------------------------------------------------------------------


@modelled("mm/gup.c", versions="v3.10 (arch/x86/mm/gup.c) .. v6.18", section="C.18", steps=4, function="gup_pte_range")
def gup_pte_range(pmdp: pmd_slot, pmd: pmd_t, addr: int, nr: int, write: bool) -> int:
    """The pages below one page table, as far as they may be accessed: how many."""
    for at in range(nr):
        ptep = pte_offset(pmd.table, addr + (at << config.PAGE_SHIFT))
        pte = ptep.pte
        if pte.kind != PteKind.PRESENT or pte.special or pte.protnone or (write and not pte.write):
            return at
        p = pte.page
        if era.anon_exclusive:
            if not try_grab_folio(p, 1):
                return at
            if pmdp.pmd != pmd or ptep.pte != pte:
                gup_put_folio(p, 1)
                return at
            if not pte.write and gup_must_unshare(p, write):
                gup_put_folio(p, 1)
                return at
        else:
            gup_get_page(p)
        give(p)
    return nr


@modelled("mm/gup.c", versions="v3.10 (arch/x86/mm/gup.c) .. v6.18", section="C.18", steps=3, function="gup_huge_pmd")
def gup_huge_pmd(pmdp: pmd_slot, pmd: pmd_t, addr: int, nr: int, write: bool) -> int:
    """Parts of a huge page that a PMD maps, all with one count: all of them, or none."""
    if write and not pmd.write:
        return 0
    first = nth_page(pmd.page, (addr >> config.PAGE_SHIFT) & (hpage_nr() - 1))
    if era.pte_mapped_huge:
        if not try_grab_folio(first, nr):
            return 0
        if pmdp.pmd != pmd:
            gup_put_folio(first, nr)
            return 0
        if not pmd.write and gup_must_unshare(pmd.page, write):
            gup_put_folio(first, nr)
            return 0
    else:
        # The entry was no splitting one, and who makes it one waits for us (the flush's IPI).
        for at in range(nr):
            if PageTail(nth_page(first, at)):
                get_huge_page_tail(nth_page(first, at))
        get_head_page_multiple(pmd.page, nr)
    for at in range(nr):
        give(nth_page(first, at))
    return nr


@modelled(
    "mm/gup.c",
    function="lockless_pages_from_mm, get_user_pages_fast_only",
    versions="v3.10 (arch/x86/mm/gup.c) .. v6.18",
    section="C.18",
    steps=5,
    omits="hugetlb, devices, the levels above",
)
def gup_fast(mm: mm_struct, start: int, nr: int = 1, write: bool = True) -> int:
    """Pin `nr` pages from `start` on, by a walk with interrupts off: how many, up to the first that it can't. For reading: since v5.7."""
    seq = 0
    if era.anon_exclusive:
        seq = mm.write_protect_seq
        if seq & 1:
            return 0
    local_irq_disable()
    done = 0
    for at in range(nr):
        # A whole PMD's pages are taken at once.
        if at < done:
            continue
        addr = start + (at << config.PAGE_SHIFT)
        wanted = min(nr - at, hpage_nr() - ((addr >> config.PAGE_SHIFT) & (hpage_nr() - 1)))
        pmdp = pmd_offset(mm, addr)
        pmd = pmdp.pmd
        got = 0
        if pmd.kind == PmdKind.TABLE:
            got = gup_pte_range(pmdp, pmd, addr, wanted, write)
        elif config.TRANSPARENT_HUGEPAGE and pmd.kind == PmdKind.HUGE:
            got = gup_huge_pmd(pmdp, pmd, addr, wanted, write)
        done = at + got
        if got < wanted:
            break
    local_irq_enable()
    if era.anon_exclusive:
        # A fork that write-protects meanwhile may have shared a page before it could see the pin.
        if mm.write_protect_seq != seq:
            while len(this_cpu().pinned) != 0:
                unpin_user_page(taken())
            return 0
        pins_are_valid()
    return done


@ghost
def taken() -> page:
    """Out of the caller's array."""
    p = this_cpu().pinned[0]
    this_cpu().pinned.remove(p)
    return p


@ghost
def keep(p: page) -> None:
    """What a device may read from now on, whatever else is pinned."""
    this_cpu().kept.append(p)


# -- the slow way -----------------------------------------------------------------------------------------------------


@atomic
def grab_locked(p: page) -> None:
    """get_page_foll (v3.10), try_grab_page (v6.8): the entry's lock is held, so the page can't go."""
    if era.anon_exclusive:
        head = compound_head(p)
        head.refcount.counter += 1
        head.pincount += 1
    elif config.TRANSPARENT_HUGEPAGE and PageTail(p):
        p.tail_users += 1
        head_of(p).refcount.counter += 1
    else:
        p.refcount.counter += 1


@modelled(
    "mm/gup.c",
    versions="v3.10 (mm/memory.c) .. v6.18",
    section="C.18",
    steps=3,
    omits="marking the page dirty and used; an entry that is another one once its lock is held is faulted, then asked again",
)
def follow_page_mask(vma: vm_area_struct, addr: int, write: bool) -> tuple[bool, bool, page]:
    """A reference to the page that an entry lets access, taken under its lock.

    Returns (is it there? if not, it needs a fault; one that unshares?; the page, NULL for the zero page).
    """
    pmdp = pmd_offset(vma.vm_mm, addr)
    pmd = pmdp.pmd
    found = False
    unshare = False
    p: page = NULL
    if pmd_trans_huge(pmd):
        spin_lock(pmd_lockptr(pmdp))
        pmd = pmdp.pmd
        if pmd.kind == PmdKind.HUGE and (pmd.write or not write):
            unshare = not pmd.write and gup_must_unshare(pmd.page, write)
            found = not unshare
            if found:
                p = nth_page(pmd.page, (addr >> config.PAGE_SHIFT) & (hpage_nr() - 1))
                grab_locked(p)
        if pmd.kind == PmdKind.HUGE_ZERO and not write:
            found = True
        spin_unlock(pmd_lockptr(pmdp))
        if pmd_trans_splitting(pmd):
            wait_split_huge_page(vma)
    elif pmd.kind == PmdKind.TABLE:
        spin_lock(pte_lockptr(pmd.table))
        pte = pte_offset(pmd.table, addr).pte
        gone = config.PT_RECLAIM and table_is_gone(vma.vm_mm, addr, pmd.table)
        if pte.kind == PteKind.PRESENT and (pte.write or not (write or pte.protnone)) and not gone:
            if pte.special:
                found = not write
            else:
                unshare = not pte.write and gup_must_unshare(pte.page, write)
                found = not unshare
                if found:
                    p = pte.page
                    grab_locked(p)
        spin_unlock(pte_lockptr(pmd.table))
    return found, unshare, p


@modelled(
    "mm/gup.c",
    function="__get_user_pages",
    versions="v3.10 (mm/memory.c) .. v6.18",
    section="C.18",
    steps=4,
    omits="forced writes; a fault that lets mmap_sem go, which the caller takes again; since v6.5, that the rest of a huge page is taken"
    " with its first part, without another look at the entry: here it is asked for page by page, between which MADV_DONTNEED may come",
    errs="both",
)
def get_user_pages(mm: mm_struct, start: int, nr: int, done: int, write: bool = True) -> int:
    """Pin the pages of the range but for the first `done`, faulting them in; mmap_sem is held for reading. (The zero page has no pins.)

    How many, up to the first that can't be had; -EFAULT or -ENOMEM if that is the first.
    """
    got = 0
    for at in range(nr):
        if at < done:
            continue
        addr = start + (at << config.PAGE_SHIFT)
        vma = find_vma(mm, addr)
        if vma is None or not vma.vm_flags & (vm.WRITE if write else vm.READ):
            return got if got > 0 else -EFAULT
        while True:
            found, unshare, p = follow_page_mask(vma, addr, write)
            if found:
                break
            fault = handle_mm_fault(vma, addr, write, unshare)
            if fault != 0:
                err = -ENOMEM if fault == VM_FAULT_OOM else -EFAULT
                return got if got > 0 else err
        if p is not None:
            give(p)
            pin_is_valid(p)
        got += 1
    return got


@modelled("mm/gup.c", versions="v3.10 (arch/x86/mm/gup.c) .. v6.18", section="C.18", steps=3)
def get_user_pages_fast(mm: mm_struct, start: int, nr: int, write: bool = True) -> int:
    """Pin the pages of a range: what the fast way can't, the slow way does.

    How many, which may be fewer than asked for; -EFAULT or -ENOMEM if none.
    """
    done = gup_fast(mm, start, nr, write)
    if done == nr:
        return done
    down_read(mm.mmap_sem)
    more = get_user_pages(mm, start, nr, done, write)
    up_read(mm.mmap_sem)
    if more < 0:
        # The caller has pages to let go of: it has to hear of them.
        return done if done > 0 else more
    return done + more


@modelled("mm/gup.c", function="get_user_pages_fast (for reading)", versions="v5.6 .. v6.18", section="C.18", steps=3)
def get_user_page(mm: mm_struct, addr: int) -> tuple[bool, page | None]:
    """A reference, and no pin, to what can be read at `addr`, faulted in: (whether there is a page, the page; None: the zero page).

    Sequential runs only.
    """
    while True:
        pmd = pmd_offset(mm, addr).pmd
        if pmd.kind == PmdKind.TABLE:
            pte = pte_offset(pmd.table, addr).pte
            # The fast way does not ask the VMA.
            if pte.kind == PteKind.PRESENT and not pte.special and not pte.protnone:
                get_page(pte.page)
                return True, pte.page
        if pmd.kind == PmdKind.HUGE:
            p = nth_page(pmd.page, (addr >> config.PAGE_SHIFT) & (hpage_nr() - 1))
            get_page(p)
            return True, p
        vma = find_vma(mm, addr)
        if vma is None or not vma.vm_flags & vm.READ or touch(mm, addr) != 0:
            return False, None
        pmd = pmd_offset(mm, addr).pmd
        if pmd.kind == PmdKind.HUGE_ZERO or (pmd.kind == PmdKind.TABLE and pte_offset(pmd.table, addr).pte.special):
            return True, None


# -- users of it ------------------------------------------------------------------------------------------------------


def write_pinned(value: int) -> None:
    """A device writes to the pages that were pinned (not to their addresses), and lets go of them."""
    while len(this_cpu().pinned) != 0:
        p = taken()
        p.data = value
        pin_is_over(p)
        unpin_user_pages_dirty_lock(p)


def pin_and_write(mm: mm_struct, addr: int, value: int) -> int:
    """A device's write to a page that the fast way finds: 0, or -EFAULT if it was not there."""
    if gup_fast(mm, addr) == 0:
        return -EFAULT
    write_pinned(value)
    return 0


def device_write(mm: mm_struct, start: int, value: int, nr: int) -> int:
    """A device's write to a range: how many pages it wrote, or -errno."""
    done = get_user_pages_fast(mm, start, nr)
    write_pinned(value)
    return done


def read_pin(mm: mm_struct, addr: int) -> int:
    """A device is given a page to read, and keeps it: 0 or -errno."""
    done = get_user_pages_fast(mm, addr, 1, False)
    if len(this_cpu().pinned) != 0:
        keep(taken())
    return 0 if done == 1 else done


def pinned_content() -> int:
    """What a device finds in the page that it was given first, to keep."""
    return content(this_cpu().kept[0])


@atomic
@raw
def content(p: page) -> int:
    """By a pin: no page table is asked."""
    check(p.allocated, "use_after_free", "a pinned page was freed")
    return cast(int, p.data)


@modelled(
    "mm/process_vm_access.c",
    function="process_vm_rw_single_vec, pin_user_pages_remote",
    versions="v5.6 .. v6.18 (v3.10: get_user_pages, put_page)",
    section="C.18",
    steps=4,
    omits="more than a page",
)
def process_vm_read(mm: mm_struct, addr: int) -> int:
    """process_vm_readv of one page: a pin for reading, by the slow way only. Its content, or -EFAULT."""
    down_read(mm.mmap_sem)
    done = get_user_pages(mm, addr, 1, 0, False)
    up_read(mm.mmap_sem)
    if done < 0:
        return -EFAULT
    if len(this_cpu().pinned) == 0:
        return 0
    p = taken()
    value = content(p)
    pin_is_over(p)
    unpin_user_page(p)
    return value
