"""mm/mprotect.c: the protection of entries changes, for mprotect and for userfaultfd's write-protection."""

from __future__ import annotations

from itertools import takewhile

from .catalogue import modelled
from .era import era
from .errno import EINVAL, ENOMEM
from .ghost import walk_put_back
from .huge_split import split_huge_pmd
from .lang import raw
from .locks import down_write, spin_lock, spin_unlock
from .machine import config
from .madvise_cold import batch
from .madvise_free import maps_part
from .memory import pte_alloc
from .mlock import populate_vma_page_range
from .mm_types import PmdKind, PteKind, mm_struct, page_table, pmd_slot, pte_t, vm, vm_area_struct
from .page_flags import PageAnon
from .pgtable import (
    flush_tlb_range,
    is_swap_pmd,
    pmd_is_huge,
    pmd_lockptr,
    pmd_offset,
    pmd_trans_huge,
    pte_lockptr,
    pte_offset,
    ptep_get_and_clear,
    set_pmd,
    set_pte,
    table_is_gone,
)
from .slab import hpage_nr, hpage_size
from .vma import vma_modify
from .vma_lock import mmap_write_unlock, vma_start_write

ACCESS = int(vm.READ | vm.WRITE | vm.EXEC)
MM_CP_TRY_CHANGE_WRITABLE, MM_CP_UFFD_WP, MM_CP_UFFD_WP_RESOLVE = 1, 2, 4


@raw
def can_change_writable(vma: vm_area_struct, pte: pte_t) -> bool:
    """May the entry be made writable without a fault? A page that is the process's alone may, unless it is write-protected."""
    if not vma.vm_flags & vm.WRITE or pte.special:
        return False
    if pte.uffd_wp and vma.vm_flags & vm.UFFD_WP:
        return False
    return PageAnon(pte.page) and pte.page.anon_exclusive


@modelled("mm/mprotect.c", versions="v6.4 .. v6.18", section="C.2", steps=4, omits="NUMA hints, soft-dirty")
def change_pte(vma: vm_area_struct, addr: int, table: page_table, flags: int) -> None:
    """One entry; its PTL is held."""
    ptep = pte_offset(table, addr)
    pte = ptep.pte
    if pte.kind == PteKind.PRESENT:
        # ptep_modify_prot_start: no bit that the hardware sets is lost.
        pte = ptep_get_and_clear(ptep)
        changed = pte._replace(write=False, protnone=vma.vm_flags & ACCESS == 0)
        if flags & MM_CP_UFFD_WP:
            changed = changed._replace(uffd_wp=True)
        elif flags & MM_CP_UFFD_WP_RESOLVE:
            changed = changed._replace(uffd_wp=False)
        if flags & MM_CP_TRY_CHANGE_WRITABLE and can_change_writable(vma, changed):
            changed = changed._replace(write=True)
        set_pte(ptep, changed)
        if not pte.special:
            walk_put_back(pte.page)
    elif pte.kind == PteKind.SWAP or pte.kind == PteKind.MIGRATION:
        changed = pte._replace(write=False)
        if flags & MM_CP_UFFD_WP:
            changed = changed._replace(uffd_wp=True)
        elif flags & MM_CP_UFFD_WP_RESOLVE:
            changed = changed._replace(uffd_wp=False)
        set_pte(ptep, changed)
    elif pte.kind == PteKind.WP_MARKER:
        if flags & MM_CP_UFFD_WP_RESOLVE:
            set_pte(ptep, pte_t())
    elif pte.kind == PteKind.NONE:
        if flags & MM_CP_UFFD_WP and vma.ctx.wp_unpopulated:
            set_pte(ptep, pte_t(kind=PteKind.WP_MARKER, uffd_wp=True))


@modelled(
    "mm/mprotect.c",
    function="mprotect_folio_pte_batch, modify_prot_start_ptes",
    versions="v6.17 .. v6.18",
    section="C.2",
    omits="while others run, entries are changed one by one",
)
def collect_dirty(table: page_table, addr: int, border: int) -> int:
    """How many entries from addr on are changed at once; the PTL is held. What one of them says of its use, all do then."""
    first = pte_offset(table, addr).pte
    if not maps_part(first):
        return 1
    slots = [pte_offset(table, addr + (at << config.PAGE_SHIFT)) for at in range(batch(table, addr, border))]
    alike = list(takewhile(lambda each: each.pte.write == first.write, slots))
    dirty, young = any(each.pte.dirty for each in alike), any(each.pte.young for each in alike)
    for each in alike:
        set_pte(each, each.pte._replace(dirty=dirty, young=young))
    return len(alike)


@modelled(
    "mm/huge_memory.c",
    versions="v6.4 .. v6.18",
    section="C.2",
    steps=3,
    omits="the moment in which the entry is invalid; NUMA hints",
)
def change_huge_pmd(vma: vm_area_struct, pmdp: pmd_slot, flags: int) -> bool:
    """A huge entry that lies whole in the range; False if it is none any more."""
    spin_lock(pmd_lockptr(pmdp))
    pmd = pmdp.pmd
    changed = pmd._replace(write=False)
    if flags & MM_CP_UFFD_WP:
        changed = changed._replace(uffd_wp=True)
    elif flags & MM_CP_UFFD_WP_RESOLVE:
        changed = changed._replace(uffd_wp=False)
    if is_swap_pmd(pmd):
        # What is made writable again later is its process's alone still: `exclusive` stays.
        set_pmd(pmdp, changed)
        spin_unlock(pmd_lockptr(pmdp))
        return True
    if not pmd_trans_huge(pmd):
        spin_unlock(pmd_lockptr(pmdp))
        return False
    writable = (
        flags & MM_CP_TRY_CHANGE_WRITABLE != 0
        and vma.vm_flags & vm.WRITE != 0
        and pmd.page is not None
        and pmd.page.anon_exclusive
        and not (changed.uffd_wp and vma.vm_flags & vm.UFFD_WP)
    )
    set_pmd(pmdp, changed._replace(write=writable))
    spin_unlock(pmd_lockptr(pmdp))
    return True


@modelled(
    "mm/mprotect.c",
    versions="v6.4 .. v6.18",
    section="C.2",
    steps=3,
    omits="the mmu notifier; huge entries that nobody may use, which are split",
)
def change_protection(vma: vm_area_struct, start: int, end: int, flags: int) -> None:
    """Every entry of [start, end) (bytes) within a VMA; holes without a page table get one if they are to be marked."""
    mm = vma.vm_mm
    done = 0
    batched = 0
    for number in range(start >> config.PAGE_SHIFT, end >> config.PAGE_SHIFT):
        if number < done:
            continue
        addr = number << config.PAGE_SHIFT
        pmdp = pmd_offset(mm, addr)
        pmd = pmdp.pmd
        if pmd_is_huge(pmd):
            part = addr & (hpage_size() - 1) != 0 or addr + hpage_size() > end
            if part or vma.vm_flags & ACCESS == 0:
                split_huge_pmd(vma, pmdp)
            elif change_huge_pmd(vma, pmdp, flags):
                done = number + hpage_nr()
                continue
        while True:
            if flags & MM_CP_UFFD_WP and vma.ctx.wp_unpopulated:
                pte_alloc(mm, addr)
            pmd = pmdp.pmd
            if pmd.kind != PmdKind.TABLE:
                break
            spin_lock(pte_lockptr(pmd.table))
            gone = config.PT_RECLAIM and table_is_gone(mm, addr, pmd.table)
            if not gone:
                if config.ALONE and era.protection_goes_by_batches and number >= batched:
                    border = min(end, (addr & -hpage_size()) + hpage_size())
                    batched = number + collect_dirty(pmd.table, addr, border)
                change_pte(vma, addr, pmd.table, flags)
            spin_unlock(pte_lockptr(pmd.table))
            if not gone:
                break
    flush_tlb_range(mm, start, end)


@modelled("mm/mprotect.c", versions="v6.6 .. v6.18", section="C.2", steps=3, omits="limits")
def mprotect_fixup(mm: mm_struct, vma: vm_area_struct, start: int, end: int, flags: int) -> int:
    """Give a part of a VMA new access flags. 0 or -ENOMEM."""
    if flags == vma.vm_flags:
        return 0
    old = vma.vm_flags
    if flags & vm.WRITE:
        if not vma.vm_flags & (vm.ACCOUNT | vm.WRITE | vm.SHARED):
            flags |= int(vm.ACCOUNT)
    elif vma.anon_vma is None and era.mprotect_unaccounts:
        flags &= ~int(vm.ACCOUNT)
    changed = vma_modify(mm, vma, start, end, flags, vma.ctx)
    if changed is None:
        return -ENOMEM
    vma = changed
    vma_start_write(vma)
    vma.vm_flags = flags | (vma.vm_flags & int(vm.MAYBE_GUARD))
    change_protection(vma, start, end, MM_CP_TRY_CHANGE_WRITABLE if flags & vm.WRITE else 0)
    if old & (vm.WRITE | vm.SHARED | vm.LOCKED) == vm.LOCKED and flags & vm.WRITE:
        populate_vma_page_range(mm, vma, start, end)
    return 0


@modelled(
    "mm/mprotect.c", versions="v6.6 .. v6.18", section="C.2", steps=4, omits="protection keys, files, PROT_GROWSDOWN"
)
def sys_mprotect(mm: mm_struct, start: int, length: int, access: int) -> int:
    """Change the access flags of [start, start + length).

    0; -EINVAL: not aligned; -ENOMEM: not all mapped (up to the hole is done), or a VMA can't be split or merged for want of memory.
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if start & mask:
        return -EINVAL
    if length == 0:
        return 0
    end = start + ((length + mask) & ~mask)
    if end >= config.WRAP_AT or end <= start:
        return -ENOMEM
    down_write(mm.mmap_sem)
    at = start
    err = 0
    while at < end and err == 0:
        err = -ENOMEM
        for vma in mm.mmap:
            if vma.vm_start <= at and at < vma.vm_end:
                last = min(end, vma.vm_end)
                err = mprotect_fixup(mm, vma, at, last, (vma.vm_flags & ~ACCESS) | access)
                at = last
                break
    mmap_write_unlock(mm)
    return err
