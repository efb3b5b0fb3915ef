"""kernel/fork.c dup_mmap, mm/rmap.c anon_vma_fork, mm/memory.c copy_page_range."""

from __future__ import annotations

from .anon_vma import (
    anon_vma_alloc,
    anon_vma_chain_link,
    anon_vma_clone,
    anon_vma_lock_write,
    anon_vma_unlock_write,
    get_anon_vma,
    put_anon_vma,
    unlink_anon_vmas,
)
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, ENOMEM
from .events import (
    EVENT_FORK,
    FEATURE_EVENT_FORK,
    deliver,
    dup_userfaultfd,
    event_begins,
    event_ends,
    is_watched,
    wait_for_reader,
)
from .huge_memory import copy_huge_pmd
from .lang import NULL, atomic, reached
from .locks import down_write, down_write_nested, spin_lock, spin_lock_nested, spin_unlock, up_write
from .machine import config
from .memory import pte_alloc, pte_alloc_fails
from .mm_types import PmdKind, PteKind, mm_struct, page, page_table, pte_slot, pte_t, vm, vm_area_struct
from .mmap import exit_mmap
from .pgtable import flush_tlb_mm, pmd_is_huge, pmd_offset, pte_lockptr, pte_offset, set_pte
from .rmap import page_add_new_anon_rmap, page_mapcount_inc
from .slab import (
    alloc_page,
    anon_vma_chain_alloc,
    compound_head,
    get_page,
    hpage_nr,
    hpage_size,
    out_of_memory,
    put_page,
    vm_area_alloc,
    vm_area_free,
)
from .swapfile import swap_duplicate
from .vma_lock import mmap_write_unlock, vma_start_write


@modelled("mm/rmap.c", versions="v3.10 .. v6.18", section="C.3", steps=4)
def anon_vma_fork(vma: vm_area_struct, pvma: vm_area_struct) -> int:
    """From here on the child's VMA is visible to walkers, before any of its PTEs is there. 0 or -ENOMEM."""
    if pvma.anon_vma is None:
        return 0
    vma.anon_vma = NULL
    if anon_vma_clone(vma, pvma) != 0:
        return -ENOMEM
    if vma.anon_vma is not None:
        return 0
    if out_of_memory():
        unlink_anon_vmas(vma)
        return -ENOMEM
    av = anon_vma_alloc()
    if out_of_memory():
        put_anon_vma(av)
        unlink_anon_vmas(vma)
        return -ENOMEM
    avc = anon_vma_chain_alloc()
    parent = pvma.anon_vma
    av.root = parent.root
    av.parent = parent
    if era.anon_vma_reuse:
        av.num_active_vmas += 1
    get_anon_vma(av.root)
    vma.anon_vma = av
    anon_vma_lock_write(av)
    anon_vma_chain_link(vma, avc, av)
    if era.anon_vma_reuse:
        parent.num_children += 1
    anon_vma_unlock_write(av)
    return 0


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.3",
    steps=3,
    omits="file pages; soft-dirty and uffd-wp",
)
def copy_one_pte(dst: page_table, src: page_table, vma: vm_area_struct, new_vma: vm_area_struct, addr: int) -> int:
    """One PTE, both PTLs held: shared read-only from now on. 0, or -ENOMEM: it must be copied, and no page is to be had."""
    src_ptep, dst_ptep = pte_offset(src, addr), pte_offset(dst, addr)
    pte = src_ptep.pte
    if pte.kind == PteKind.NONE:
        return 0
    if era.markers:
        if pte.kind == PteKind.POISON_MARKER or pte.kind == PteKind.GUARD_MARKER:
            set_pte(dst_ptep, pte)
            return 0
        if pte.kind == PteKind.WP_MARKER:
            # The child may have no monitor.
            if is_watched(new_vma):
                set_pte(dst_ptep, pte)
            return 0
    if pte.kind == PteKind.SWAP:
        swap_duplicate(pte.slot)
        shared = pte._replace(exclusive=False)
        if pte.exclusive:
            set_pte(src_ptep, shared)
        set_pte(dst_ptep, shared._replace(uffd_wp=pte.uffd_wp and is_watched(new_vma)))
        return 0
    if pte.kind == PteKind.MIGRATION:
        shared = pte._replace(write=False, exclusive=False)
        set_pte(src_ptep, shared)
        set_pte(dst_ptep, shared)
        return 0
    if era.anon_exclusive:
        if not pte.special:
            get_page(pte.page)
            if not folio_try_dup_anon_rmap_pte(pte.page):
                # It may be pinned: the child gets its copy now, and the parent keeps the page.
                put_page(pte.page)
                if out_of_memory():
                    return -ENOMEM
                copy_present_page(dst, new_vma, pte, addr, pte.uffd_wp and is_watched(new_vma))
                return 0
        if pte.write:
            write_protect(src_ptep)
    else:
        write_protect(src_ptep)
        if not pte.special:
            get_page(pte.page)
            page_mapcount_inc(pte.page)
    protected = pte.uffd_wp and is_watched(new_vma)
    set_pte(dst_ptep, pte._replace(write=False, young=False, uffd_wp=protected))
    return 0


@atomic
def write_protect(ptep: pte_slot) -> None:
    """ptep_set_wrprotect: one atomic instruction, so that no accessed or dirty bit is lost."""
    ptep.pte = ptep.pte._replace(write=False)


@modelled("include/linux/rmap.h", versions="v5.19 .. v6.8", section="C.3", steps=3)
def folio_try_dup_anon_rmap_pte(p: page) -> bool:
    """One mapping more for a page that is then nobody's alone; false if it is pinned and must stay somebody's."""
    if compound_head(p).pincount > 0 and p.anon_exclusive:
        return False
    p.anon_exclusive = False
    page_mapcount_inc(p)
    return True


@modelled(
    "mm/memory.c",
    versions="v5.10 .. v6.8",
    section="C.3",
    steps=3,
    omits="the page is allocated before the locks are taken",
)
def copy_present_page(dst: page_table, vma: vm_area_struct, pte: pte_t, addr: int, protected: bool) -> None:
    """A copy for the child; both PTLs are held."""
    new = alloc_page()
    new.data = pte.page.data
    page_add_new_anon_rmap(new, vma, addr)
    writable = (vma.vm_flags & vm.WRITE) != 0 and not protected
    copy = pte_t(kind=PteKind.PRESENT, page=new, write=writable, dirty=True, uffd_wp=protected, protnone=pte.protnone)
    set_pte(pte_offset(dst, addr), copy)


@modelled(
    "mm/memory.c",
    versions="v3.10 .. v6.8",
    section="C.3",
    steps=1,
    omits="the locks are let go between any two PTEs, in the kernel between some; in a sequential run between none",
    errs="both",
)
def copy_page_range(child: mm_struct, mm: mm_struct, vma: vm_area_struct, new_vma: vm_area_struct) -> int:
    """Every entry of one VMA, under the child's PTL and then the parent's. 0 or -ENOMEM.

    A VMA without an anon_vma is left to the child's faults: at most the zero page is there, unless it had guards.
    """
    if vma.anon_vma is None and not (era.markers and vma.vm_flags & vm.MAYBE_GUARD) and not is_watched(new_vma):
        return 0
    err = 0
    if era.anon_exclusive:
        write_protect_count(mm)
    done = 0
    for number in range(vma.vm_start >> config.PAGE_SHIFT, vma.vm_end >> config.PAGE_SHIFT):
        # A huge page may have taken us further already.
        if number < done or err != 0:
            continue
        addr = number << config.PAGE_SHIFT
        while True:
            pmd = pmd_offset(mm, addr).pmd
            if not pmd_is_huge(pmd):
                break
            err = copy_huge_pmd(mm, child, vma, new_vma, addr)
            if err != -EAGAIN:
                done = number + hpage_nr()
                break
        if pmd.kind == PmdKind.TABLE:
            if pte_alloc_fails(child, addr):
                err = -ENOMEM
                continue
            dst = pte_alloc(child, addr)
            spin_lock(pte_lockptr(dst))
            spin_lock_nested(pte_lockptr(pmd.table))
            err = copy_one_pte(dst, pmd.table, vma, new_vma, addr)
            if config.ALONE:
                # Nobody waits for the locks, so they are held to the end of the table.
                done = min(vma.vm_end, (addr & -hpage_size()) + hpage_size()) >> config.PAGE_SHIFT
                for next_number in range(number + 1, done):
                    addr = next_number << config.PAGE_SHIFT
                    if err == 0 and pte_offset(pmd.table, addr).pte.kind != PteKind.NONE:
                        err = copy_one_pte(dst, pmd.table, vma, new_vma, addr)
            spin_unlock(pte_lockptr(pmd.table))
            spin_unlock(pte_lockptr(dst))
    if era.anon_exclusive:
        write_protect_count(mm)
    return err


@atomic
def write_protect_count(mm: mm_struct) -> None:
    """raw_write_seqcount_begin and _end of mm->write_protect_seq: gup_fast does not trust what it pins in between."""
    mm.write_protect_seq += 1


@modelled(
    "kernel/fork.c",
    function="dup_mmap",
    versions="v3.10 .. v6.8",
    section="C.3",
    steps=8,
    omits="file VMAs, mempolicy, per-VMA locks (v6.4)",
)
def sys_fork(mm: mm_struct, child: mm_struct) -> int:
    """Copy an address space into a free one. 0; or -ENOMEM, and the child is gone again."""
    err = 0
    told = False
    down_write(mm.mmap_sem)
    down_write_nested(child.mmap_sem)
    for vma in mm.mmap:
        vma_start_write(vma)
        if vma.vm_flags & vm.DONTCOPY:
            continue
        if out_of_memory():
            err = -ENOMEM
            break
        tmp = vm_area_alloc()
        dup_vma(tmp, vma, child)
        if config.EVENTS:
            dup_userfaultfd(tmp, vma.ctx, vma.vm_flags, child)
        if config.RACED_EVENTS & FEATURE_EVENT_FORK and vma.vm_flags & vm.USERFAULT:
            tmp.vm_flags |= vma.vm_flags & int(vm.USERFAULT | vm.UFFD_WP)
            if not told:
                event_begins(mm)
            told = True
        if vma.vm_flags & vm.WIPEONFORK:
            tmp.anon_vma = NULL
            child.mmap.append(tmp)
            continue
        if anon_vma_fork(tmp, vma) != 0:
            vm_area_free(tmp)
            err = -ENOMEM
            break
        child.mmap.append(tmp)
        err = copy_page_range(child, mm, vma, tmp)
        if err != 0:
            break
    up_write(child.mmap_sem)
    flush_tlb_mm(mm)
    mmap_write_unlock(mm)
    if err != 0:
        if config.RACED_EVENTS & FEATURE_EVENT_FORK and told:
            event_ends(mm)
        # mmput: what was copied until then goes as at any exit.
        exit_mmap(child)
        return err
    if config.EVENTS:
        deliver()
    if config.RACED_EVENTS & FEATURE_EVENT_FORK and told:
        wait_for_reader(mm, EVENT_FORK)
    reached("a fork was done")
    return 0


@atomic
def dup_vma(tmp: vm_area_struct, vma: vm_area_struct, child: mm_struct) -> None:
    """vm_area_dup: the fields; not yet linked anywhere."""
    tmp.vm_mm = child
    tmp.vm_start = vma.vm_start
    tmp.vm_end = vma.vm_end
    tmp.vm_pgoff = vma.vm_pgoff
    tmp.vm_flags = vma.vm_flags & ~(vm.LOCKED | vm.LOCKONFAULT)
    if era.userfaultfd:
        # userfaultfd_reset_ctx, unless dup_userfaultfd puts them back.
        tmp.vm_flags &= ~(vm.USERFAULT | vm.UFFD_WP)
    tmp.ctx = NULL
    tmp.vm_file = vma.vm_file
    tmp.anon_vma = vma.anon_vma
