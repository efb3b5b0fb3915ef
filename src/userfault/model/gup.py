"""arch/x86/mm/gup.c (v3.10), mm/gup.c (v6.8): references to the pages of a user range, without any lock."""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EFAULT
from .lang import atomic, check, ghost, raw
from .machine import config, this_cpu
from .mm_types import PmdKind, PteKind, mm_struct, page
from .pgtable import pmd_offset, pte_offset
from .slab import compound_head, hpage_nr, nth_page, put_page


@atomic
def local_irq_disable() -> None:
    this_cpu().irqs_off = True


@atomic
def local_irq_enable() -> None:
    this_cpu().irqs_off = False


@atomic
@raw
def gup_get_page(p: page) -> bool:
    """v3.10: a plain get_page. Its correctness rests on the flush's IPI: a freed page here is a use after free."""
    check(p.allocated, "use_after_free", "gup_fast took a reference to a freed page")
    p.refcount.counter += 1
    return True


@atomic
@raw
def gup_pin_page(p: page) -> bool:
    """v6.8 try_grab_folio(FOLL_PIN): reference and pin, unless the last reference is gone."""
    head = compound_head(p)
    if head.refcount.counter == 0:
        return False
    head.refcount.counter += 1
    head.pincount += 1
    return True


@modelled(
    "mm/gup.c",
    function="get_user_pages_fast",
    versions="v3.10 (arch/x86/mm/gup.c) .. v6.8",
    section="C.18",
    steps=6,
    omits="ranges; before v4.5 huge entries go the slow way",
    errs="missed bug",
)
def gup_fast(mm: mm_struct, addr: int) -> page | None:
    """Pin the page at `addr` for writing, by a walk with interrupts off. None: the fast way failed."""
    seq = 0
    if era.anon_exclusive:
        seq = mm.write_protect_seq
        if seq & 1:
            return None
    local_irq_disable()
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if config.TRANSPARENT_HUGEPAGE and era.pte_mapped_huge and pmd.kind == PmdKind.HUGE:
        p = nth_page(pmd.page, (addr >> config.PAGE_SHIFT) & (hpage_nr() - 1))
        if not pmd.write or not gup_pin_page(p):
            local_irq_enable()
            return None
        if pmdp.pmd != pmd:
            local_irq_enable()
            unpin_user_page(p)
            return None
        return gup_fast_end(mm, p, seq)
    if pmd.kind != PmdKind.TABLE:
        local_irq_enable()
        return None
    ptep = pte_offset(pmd.table, addr)
    pte = ptep.pte
    if pte.kind != PteKind.PRESENT or pte.special or not pte.write:
        local_irq_enable()
        return None
    p = pte.page
    if era.anon_exclusive:
        if not gup_pin_page(p):
            local_irq_enable()
            return None
        if pmdp.pmd != pmd or ptep.pte != pte:
            local_irq_enable()
            unpin_user_page(p)
            return None
    else:
        gup_get_page(p)
    return gup_fast_end(mm, p, seq)


def gup_fast_end(mm: mm_struct, p: page, seq: int) -> page | None:
    """The walk is over; the page is the caller's unless a fork came in between."""
    local_irq_enable()
    if era.anon_exclusive:
        # A fork that write-protects meanwhile may have shared the page before it could see the pin.
        if mm.write_protect_seq != seq:
            unpin_user_page(p)
            return None
        pin_is_valid(p)
    return p


@ghost
def pin_is_valid(p: page) -> None:
    """From here on the caller may write to the page, whatever happens to the address."""
    p.write_pins += 1


@ghost
def pin_is_over(p: page) -> None:
    if era.anon_exclusive:
        p.write_pins -= 1


@atomic
def drop_pin(p: page) -> None:
    head = compound_head(p)
    check(head.pincount > 0, "refcount", "a page was unpinned more often than pinned")
    head.pincount -= 1


@modelled("mm/gup.c", versions="v5.6 .. v6.8 (v3.10: put_page)", section="C.18")
def unpin_user_page(p: page) -> None:
    """Let go of a page that gup_fast returned."""
    if era.anon_exclusive:
        drop_pin(p)
    put_page(p)


def pin_and_write(mm: mm_struct, addr: int, value: int) -> int:
    """A device's write: pin the page, write to the page (not to the address), unpin. 0, or -EFAULT if it was not there."""
    p = gup_fast(mm, addr)
    if p is None:
        return -EFAULT
    p.data = value
    pin_is_over(p)
    unpin_user_page(p)
    return 0
