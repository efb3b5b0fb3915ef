"""mm/userfaultfd.c since v6.8: UFFDIO_MOVE, what remap_anon_pages became."""

from __future__ import annotations

from .anon_vma import anon_vma_lock_write, anon_vma_prepare, anon_vma_unlock_write, page_get_anon_vma, put_anon_vma
from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM
from .fremap import double_pt_lock, double_pt_unlock, pmd_trans_huge_lock
from .ghost import walk_put_back
from .huge_migrate import pmd_migration_entry_wait
from .huge_split import split_folio, split_huge_pmd
from .lang import NULL, check, reached
from .locks import down_read, down_write_trylock, lock_page, spin_lock, spin_unlock, trylock_page, unlock_page, up_read
from .machine import config
from .memory import pte_alloc, pte_alloc_fails
from .migrate import migration_entry_wait
from .mm_types import (
    PmdKind,
    PteKind,
    anon_vma,
    mm_struct,
    page,
    page_table,
    pmd_slot,
    pmd_t,
    pte_slot,
    pte_t,
    userfaultfd_ctx,
    vm,
    vm_area_struct,
)
from .mmap import find_vma
from .pgtable import (
    flush_tlb_pmd,
    flush_tlb_range,
    is_swap_pmd,
    linear_page_index,
    pmd_lockptr,
    pmd_offset,
    pmd_trans_huge,
    pte_lockptr,
    pte_offset,
    ptep_clear_flush,
    ptep_get_and_clear,
    set_pmd,
    set_pte,
    table_is_gone,
    table_now,
)
from .slab import compound_head, get_page, hpage_size, put_page, put_page_testzero
from .swap import lookup_swap_cache
from .userfaultfd import uffd_lock_vma
from .vma_lock import lock_vma_under_rcu, vma_end_read, vma_start_read_locked

UFFDIO_MOVE_MODE_DONTWAKE = 1
UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES = 2


@modelled(
    "mm/userfaultfd.c",
    function="move_pages_pte (since v6.18 move_pages_ptes)",
    versions="v6.8 .. v6.9, v6.18",
    section="C.13",
    steps=19,
    omits="the mmu notifier, pte_unmap, PTE tables that vanish, get_swap_device",
    errs="missed bug",
)
def move_pages_pte(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    src_vma: vm_area_struct,
    dst_table: page_table,
    src_table: page_table,
    dst_addr: int,
    src_addr: int,
    left: int,
    mode: int,
) -> tuple[int, int]:
    """Move small pages: one, or since v6.18 a run within the two tables; or one swap entry. (error, pages moved)."""
    p: page | None = None
    src_anon_vma: anon_vma | None = None
    remembered = pte_t()
    err = 0
    pages = 1
    while True:
        dst, src = table_now(mm, dst_addr, dst_table), table_now(mm, src_addr, src_table)
        if dst is None or src is None:
            err = -EAGAIN
            break
        if config.PT_RECLAIM:
            # What was found is looked at once more (F-17).
            if pmd_offset(mm, dst_addr).pmd.kind != PmdKind.TABLE or pmd_offset(mm, src_addr).pmd.kind != PmdKind.TABLE:
                err = -EINVAL
                break
        src_ptep, dst_ptep = pte_offset(src, src_addr), pte_offset(dst, dst_addr)
        spin_lock(pte_lockptr(dst))
        dst_pte = dst_ptep.pte
        spin_unlock(pte_lockptr(dst))
        if dst_pte.kind != PteKind.NONE:
            err = -EEXIST
            break
        spin_lock(pte_lockptr(src))
        src_pte = src_ptep.pte
        spin_unlock(pte_lockptr(src))
        if src_pte.kind == PteKind.NONE:
            err = 0 if mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES else -ENOENT
            break
        if p is not None and src_pte != remembered:
            err = -EAGAIN
            break
        if src_pte.kind != PteKind.PRESENT:
            if era.move_swap_cache and p is None and src_pte.kind == PteKind.SWAP and src_pte.exclusive:
                p = lookup_swap_cache(src_pte.slot)
                if p is not None:
                    if p.compound:
                        put_page(p)
                        p = None
                        err = -EBUSY
                        break
                    remembered = src_pte
                    if not trylock_page(p):
                        lock_page(p)
                        continue
            err = move_swap_pte(mm, dst_vma, p, src_ptep, dst_ptep, src_pte, dst_pte, dst_addr, src_addr)
            break
        if era.move_zero_page and src_pte.special:
            err = move_zeropage_pte(mm, dst_ptep, src_ptep, dst_pte, src_pte, dst_addr, src_addr)
            break
        if p is None:
            spin_lock(pte_lockptr(src))
            if src_ptep.pte != src_pte:
                spin_unlock(pte_lockptr(src))
                err = -EAGAIN
                break
            # The flag of the folio's first page, whichever of its pages lies here.
            if src_pte.special or not compound_head(src_pte.page).anon_exclusive:
                spin_unlock(pte_lockptr(src))
                err = -EBUSY
                break
            p = compound_head(src_pte.page)
            if era.move_batches:
                locked = trylock_page(p)
                if not locked and p.compound:
                    # A reference would make the split fail that somebody else is at.
                    spin_unlock(pte_lockptr(src))
                    p = None
                    err = -EAGAIN
                    break
                get_page(p)
                remembered = src_pte
                spin_unlock(pte_lockptr(src))
            else:
                get_page(p)
                remembered = src_pte
                spin_unlock(pte_lockptr(src))
                locked = trylock_page(p)
            if not locked:
                lock_page(p)
                continue
        if config.TRANSPARENT_HUGEPAGE and p.compound:
            err = split_folio(p)
            if era.move_split_is_busy and err == -EAGAIN:
                err = -EBUSY
            if err != 0:
                break
            unlock_page(p)
            put_page(p)
            p = None
            continue
        if src_anon_vma is None:
            src_anon_vma = page_get_anon_vma(p)
            if src_anon_vma is None:
                err = -EAGAIN
                break
            if not down_write_trylock(src_anon_vma.root.rwsem):
                anon_vma_lock_write(src_anon_vma)
                continue
        if era.move_batches:
            err, pages, p = move_present_ptes(
                mm, dst_vma, p, src_anon_vma, dst_ptep, src_ptep, dst_pte, src_pte, dst_addr, src_addr, left
            )
        else:
            err = move_present_pte(mm, dst_vma, p, dst_ptep, src_ptep, dst_pte, src_pte, dst_addr, src_addr)
        break
    if src_anon_vma is not None:
        anon_vma_unlock_write(src_anon_vma)
        put_anon_vma(src_anon_vma)
    if p is not None:
        unlock_page(p)
        put_page(p)
    return err, pages


@modelled("mm/userfaultfd.c", versions="v6.8 .. v6.17", section="C.13a", steps=8)
def move_present_pte(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    p: page,
    dst_ptep: pte_slot,
    src_ptep: pte_slot,
    dst_pte: pte_t,
    src_pte: pte_t,
    dst_addr: int,
    src_addr: int,
) -> int:
    """Both PTLs, the last tests, and the move. The folio and its anon_vma are locked."""
    double_pt_lock(dst_ptep.table, src_ptep.table)
    if src_ptep.pte != src_pte or dst_ptep.pte != dst_pte:
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EAGAIN
    if p.compound or p.pincount > 0 or not p.anon_exclusive:
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EBUSY
    orig = ptep_clear_flush(mm, src_addr, src_ptep)
    # The folio may have been pinned until the PTE was gone.
    if p.pincount > 0:
        set_pte(src_ptep, orig)
        walk_put_back(p)
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EBUSY
    p.mapping = dst_vma.anon_vma
    p.index = linear_page_index(dst_vma, dst_addr)
    writable = (dst_vma.vm_flags & vm.WRITE) != 0
    set_pte(dst_ptep, pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=True, young=True))
    double_pt_unlock(dst_ptep.table, src_ptep.table)
    reached("a page was moved")
    return 0


@modelled("mm/userfaultfd.c", versions="v6.18", section="C.13a", steps=9)
def move_present_ptes(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    first: page,
    src_anon_vma: anon_vma,
    dst_ptep: pte_slot,
    src_ptep: pte_slot,
    dst_pte: pte_t,
    src_pte: pte_t,
    dst_addr: int,
    src_addr: int,
    left: int,
) -> tuple[int, int, page | None]:
    """Move a run of pages under both PTLs: the first folio and its anon_vma are locked, the others are tried.

    Returns (error, pages moved, the first folio if it is still locked and referenced by the caller).
    """
    p = first
    held = True
    err = 0
    done = 0
    double_pt_lock(dst_ptep.table, src_ptep.table)
    if (
        src_ptep.pte != src_pte
        or dst_ptep.pte != dst_pte
        or (config.PT_RECLAIM and table_is_gone(mm, dst_addr, dst_ptep.table))
    ):
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EAGAIN, 0, first
    if first.compound or first.pincount > 0 or not first.anon_exclusive:
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EBUSY, 0, first
    # The page table holds a reference.
    put_page_testzero(first)
    mask = (1 << config.HPAGE_PMD_ORDER) - 1
    dst_number, src_number = (dst_addr >> config.PAGE_SHIFT) & mask, (src_addr >> config.PAGE_SHIFT) & mask
    while True:
        src, dst = src_ptep.table.pte[src_number + done], dst_ptep.table.pte[dst_number + done]
        orig = ptep_get_and_clear(src)
        if p.pincount > 0:
            set_pte(src, orig)
            err = -EBUSY
            break
        p.mapping = dst_vma.anon_vma
        p.index = linear_page_index(dst_vma, dst_addr + (done << config.PAGE_SHIFT))
        writable = (dst_vma.vm_flags & vm.WRITE) != 0
        set_pte(dst, pte_t(kind=PteKind.PRESENT, page=p, write=writable, dirty=orig.dirty, young=True))
        reached("a page was moved")
        done += 1
        if done << config.PAGE_SHIFT >= left or src_number + done > mask or dst_number + done > mask:
            break
        unlock_page(p)
        following = batched_move_candidate(
            src_ptep.table.pte[src_number + done], dst_ptep.table.pte[dst_number + done], src_anon_vma
        )
        if following is None:
            held = False
            break
        p = following
    if done > 0:
        flush_tlb_range(mm, src_addr, src_addr + (done << config.PAGE_SHIFT))
    if held:
        unlock_page(p)
    double_pt_unlock(dst_ptep.table, src_ptep.table)
    return (0 if done > 0 else err), done, None


@modelled("mm/userfaultfd.c", function="check_ptes_for_batched_move", versions="v6.18", section="C.13a", steps=3)
def batched_move_candidate(src_ptep: pte_slot, dst_ptep: pte_slot, src_anon_vma: anon_vma) -> page | None:
    """The next page of a run, locked, if it may be moved under the locks held."""
    if dst_ptep.pte.kind != PteKind.NONE:
        return None
    pte = src_ptep.pte
    if pte.kind != PteKind.PRESENT or pte.special:
        return None
    p = pte.page
    if not trylock_page(p):
        return None
    if not p.anon_exclusive or p.compound or p.mapping is not src_anon_vma:
        unlock_page(p)
        return None
    return p


@modelled("mm/userfaultfd.c", versions="v6.9 .. v6.18", section="C.13a", steps=3)
def move_zeropage_pte(
    mm: mm_struct, dst_ptep: pte_slot, src_ptep: pte_slot, dst_pte: pte_t, src_pte: pte_t, dst_addr: int, src_addr: int
) -> int:
    """Move an entry of the zero page: nothing but the entry moves."""
    double_pt_lock(dst_ptep.table, src_ptep.table)
    if (
        src_ptep.pte != src_pte
        or dst_ptep.pte != dst_pte
        or (config.PT_RECLAIM and table_is_gone(mm, dst_addr, dst_ptep.table))
    ):
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EAGAIN
    ptep_clear_flush(mm, src_addr, src_ptep)
    set_pte(dst_ptep, pte_t(kind=PteKind.PRESENT, special=True, young=True))
    double_pt_unlock(dst_ptep.table, src_ptep.table)
    return 0


@modelled("mm/userfaultfd.c", versions="v6.8 .. v6.13; v6.14 .. v6.18 with the swap cache", section="C.13b", steps=5)
def move_swap_pte(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    p: page | None,
    src_ptep: pte_slot,
    dst_ptep: pte_slot,
    src_pte: pte_t,
    dst_pte: pte_t,
    dst_addr: int,
    src_addr: int,
) -> int:
    """Move one swap entry, and since v6.14 what the swap cache holds for it: `p`, locked.

    v6.8 is like the seed's, without a look at the swap cache: the bug fixed by c50f8e6053b0 (E-6).
    """
    if src_pte.kind == PteKind.MIGRATION:
        migration_entry_wait(src_ptep.table, src_ptep)
        return -EAGAIN
    if src_pte.kind != PteKind.SWAP:
        return -EFAULT
    if not src_pte.exclusive:
        return -EBUSY
    # The folio may have left the swap cache until it was locked.
    if p is not None and p.swapcache is not src_pte.slot:
        return -EAGAIN
    double_pt_lock(dst_ptep.table, src_ptep.table)
    if (
        src_ptep.pte != src_pte
        or dst_ptep.pte != dst_pte
        or (config.PT_RECLAIM and table_is_gone(dst_vma.vm_mm, dst_addr, dst_ptep.table))
    ):
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EAGAIN
    if p is not None:
        p.mapping = dst_vma.anon_vma
        p.index = linear_page_index(dst_vma, dst_addr)
    elif era.move_swap_cache and src_pte.slot.has_cache:
        # It was swapped in meanwhile, and waits in the cache.
        double_pt_unlock(dst_ptep.table, src_ptep.table)
        return -EAGAIN
    ptep_get_and_clear(src_ptep)
    set_pte(dst_ptep, src_pte)
    double_pt_unlock(dst_ptep.table, src_ptep.table)
    reached("a swap entry was moved")
    return 0


@modelled(
    "mm/huge_memory.c",
    versions="v6.8.0 .. v6.8.7; v6.8.8 .. v6.18 with the mapping last",
    section="C.14",
    steps=12,
    omits="the mmu notifier; one PMD lock a process",
)
def move_pages_huge_pmd(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    src_pmdp: pmd_slot,
    dst_pmdp: pmd_slot,
    src_pmd: pmd_t,
    dst_pmd: pmd_t,
    dst_addr: int,
    src_addr: int,
) -> int:
    """Move one huge PMD. The PMD lock is held, and let go. The order of CVE-2024-27007: mapping before the last pin test."""
    if is_swap_pmd(src_pmd):
        spin_unlock(pmd_lockptr(src_pmdp))
        # F-21: the wait is given the local copy, and locks what it takes for the page table around it.
        check(not era.move_waits_on_a_copy, "lock_misuse", "the lock of a PMD that lies in no page table was taken")
        pmd_migration_entry_wait(src_pmdp)
        return -EAGAIN
    p = src_pmd.page
    if p is None:
        # The huge zero page, since v6.9: nothing but the entry moves.
        spin_unlock(pmd_lockptr(src_pmdp))
        spin_lock(pmd_lockptr(src_pmdp))
        if src_pmdp.pmd != src_pmd or dst_pmdp.pmd != dst_pmd:
            spin_unlock(pmd_lockptr(src_pmdp))
            return -EAGAIN
        set_pmd(src_pmdp, pmd_t())
        flush_tlb_pmd(mm, src_addr)
        set_pmd(dst_pmdp, src_pmd._replace(uffd_wp=False))
        dst_pmdp.deposited = src_pmdp.deposited
        src_pmdp.deposited = NULL
        spin_unlock(pmd_lockptr(src_pmdp))
        return 0
    if not p.anon_exclusive:
        spin_unlock(pmd_lockptr(src_pmdp))
        return -EBUSY
    get_page(p)
    spin_unlock(pmd_lockptr(src_pmdp))
    lock_page(p)
    av = page_get_anon_vma(p)
    if av is None:
        unlock_page(p)
        put_page(p)
        return -EAGAIN
    anon_vma_lock_write(av)
    err = 0
    spin_lock(pmd_lockptr(src_pmdp))
    if src_pmdp.pmd != src_pmd or dst_pmdp.pmd != dst_pmd:
        err = -EAGAIN
    elif p.pincount > 0 or not p.anon_exclusive:
        err = -EBUSY
    else:
        if not era.huge_move_clears_first:
            p.mapping = dst_vma.anon_vma
            p.index = linear_page_index(dst_vma, dst_addr)
        set_pmd(src_pmdp, pmd_t())
        flush_tlb_pmd(mm, src_addr)
        if p.pincount > 0:
            set_pmd(src_pmdp, src_pmd)
            err = -EBUSY
        else:
            if era.huge_move_clears_first:
                p.mapping = dst_vma.anon_vma
                p.index = linear_page_index(dst_vma, dst_addr)
            writable = (dst_vma.vm_flags & vm.WRITE) != 0
            set_pmd(dst_pmdp, pmd_t(kind=PmdKind.HUGE, page=p, write=writable, dirty=True, young=True))
            dst_pmdp.deposited = src_pmdp.deposited
            src_pmdp.deposited = NULL
            reached("a huge page was moved whole")
    spin_unlock(pmd_lockptr(src_pmdp))
    anon_vma_unlock_write(av)
    put_anon_vma(av)
    unlock_page(p)
    put_page(p)
    return err


@modelled(
    "mm/userfaultfd.c",
    versions="v6.8 .. v6.18",
    section="C.13",
    steps=4,
    omits="hugetlb, PFN maps and other special VMAs",
)
def validate_move_areas(
    src_vma: vm_area_struct | None,
    dst_vma: vm_area_struct | None,
    src_start: int,
    dst_start: int,
    length: int,
    ctx: userfaultfd_ctx,
) -> int:
    """The checks under mmap_lock: 0 or -EINVAL."""
    if src_vma is None or src_vma.vm_flags & vm.SHARED or src_start + length > src_vma.vm_end:
        return -EINVAL
    if dst_vma is None or dst_vma.vm_flags & vm.SHARED or dst_start + length > dst_vma.vm_end:
        return -EINVAL
    if (src_vma.vm_flags ^ dst_vma.vm_flags) & (vm.READ | vm.WRITE | vm.EXEC | vm.LOCKED):
        return -EINVAL
    if not src_vma.vm_flags & vm.WRITE:
        return -EINVAL
    if not dst_vma.vm_flags & (vm.USERFAULT | vm.UFFD_WP) or dst_vma.ctx is not ctx:
        return -EINVAL
    if src_vma.vm_file is not None or dst_vma.vm_file is not None:
        return -EINVAL
    return 0


@modelled(
    "mm/userfaultfd.c",
    function="move_pages",
    versions="v6.8 .. v6.18",
    section="C.13",
    steps=9,
    omits="EINTR: nobody sends a signal; ESRCH; progress and errno are one value here, as in remap_anon_pages",
)
def uffdio_move(
    mm: mm_struct, dst_start: int, src_start: int, length: int, mode: int, ctx: userfaultfd_ctx = NULL
) -> int:
    """Move [src, src + length) to [dst, dst + length) (bytes): the bytes moved, or the negative errno if none were."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if mm.mmap_changing != 0:
        return -EAGAIN
    if (src_start | dst_start | length) & mask or mode & ~3 or length <= 0:
        return -EINVAL
    if config.PER_VMA_LOCKS:
        return move_under_vma_locks(mm, dst_start, src_start, length, mode, ctx)
    down_read(mm.mmap_sem)
    src_vma, dst_vma = find_vma(mm, src_start), find_vma(mm, dst_start)
    if era.per_vma_locks:
        # uffd_move_lock, before anything else is asked.
        if dst_vma is not None and not dst_vma.vm_flags & vm.SHARED and anon_vma_prepare(dst_vma) != 0:
            up_read(mm.mmap_sem)
            return -ENOMEM
        if src_vma is None or dst_vma is None:
            up_read(mm.mmap_sem)
            return -ENOENT
    if mm.mmap_changing != 0:
        up_read(mm.mmap_sem)
        return -EAGAIN if era.per_vma_locks else -EINVAL
    err = validate_move_areas(src_vma, dst_vma, src_start, dst_start, length, ctx)
    if err != 0 or src_vma is None or dst_vma is None:
        up_read(mm.mmap_sem)
        return err
    if anon_vma_prepare(dst_vma) != 0:
        up_read(mm.mmap_sem)
        return -ENOMEM
    moved = move_each(mm, dst_vma, src_vma, dst_start, src_start, length, mode)
    up_read(mm.mmap_sem)
    return moved


def move_each(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    src_vma: vm_area_struct,
    dst_start: int,
    src_start: int,
    length: int,
    mode: int,
) -> int:
    """The loop of move_pages: the bytes moved, or the negative errno if none were."""
    err = 0
    done = 0
    for at in range(length >> config.PAGE_SHIFT):
        # A huge page may have taken us further already.
        if at < done:
            continue
        offset = at << config.PAGE_SHIFT
        while True:
            ret, pages, known = move_one(
                mm, dst_vma, src_vma, dst_start + offset, src_start + offset, length - offset, mode
            )
            if known or not era.move_keeps_eagain:
                err = ret
            elif ret == -EAGAIN:
                continue
            # v6.18 (F-10): after an attempt that was told to try again, small pages that did move leave `err` as it was.
            if err != -EAGAIN:
                break
        if err != 0:
            break
        done = at + pages
    return done << config.PAGE_SHIFT if done > 0 else err


def move_under_vma_locks(
    mm: mm_struct, dst_start: int, src_start: int, length: int, mode: int, ctx: userfaultfd_ctx
) -> int:
    """The same under the locks of the two VMAs, since v6.9."""
    err, dst_vma, src_vma = uffd_move_lock(mm, dst_start, src_start)
    if err != 0 or dst_vma is None or src_vma is None:
        return err
    moved = -EAGAIN
    if mm.mmap_changing == 0:
        moved = validate_move_areas(src_vma, dst_vma, src_start, dst_start, length, ctx)
        if moved == 0:
            moved = move_each(mm, dst_vma, src_vma, dst_start, src_start, length, mode)
    vma_end_read(src_vma)
    if src_vma is not dst_vma:
        vma_end_read(dst_vma)
    return moved


@modelled("mm/userfaultfd.c", versions="v6.9 .. v6.18", section="C.13")
def uffd_move_lock(
    mm: mm_struct, dst_start: int, src_start: int
) -> tuple[int, vm_area_struct | None, vm_area_struct | None]:
    """(0, destination, source), both locked for reading, once if they are one VMA; or (errno, None, None)."""
    err, first = uffd_lock_vma(mm, dst_start)
    if first is None:
        return err, None, None
    if first.vm_start <= src_start and src_start < first.vm_end:
        return 0, first, first
    second = lock_vma_under_rcu(mm, src_start)
    if second is not None:
        return 0, first, second
    # Whoever has the source for writing may be waiting for the destination: no sleep for mmap_lock with that locked (D-26).
    vma_end_read(first)
    down_read(mm.mmap_sem)
    dst_vma, src_vma = find_vma(mm, dst_start), find_vma(mm, src_start)
    if dst_vma is not None and not dst_vma.vm_flags & vm.SHARED and anon_vma_prepare(dst_vma) != 0:
        up_read(mm.mmap_sem)
        return -ENOMEM, None, None
    if dst_vma is None or src_vma is None:
        up_read(mm.mmap_sem)
        return -ENOENT, None, None
    vma_start_read_locked(dst_vma)
    if src_vma is not dst_vma:
        vma_start_read_locked(src_vma)
    up_read(mm.mmap_sem)
    return 0, dst_vma, src_vma


@modelled("mm/userfaultfd.c", function="move_pages (loop body)", versions="v6.8", section="C.13", steps=5)
def move_one(
    mm: mm_struct,
    dst_vma: vm_area_struct,
    src_vma: vm_area_struct,
    dst_addr: int,
    src_addr: int,
    left: int,
    mode: int,
) -> tuple[int, int, bool]:
    """Move what lies at one address: (0 or the negative errno, pages moved, whether v6.18's move_pages takes it for its errno).

    -EAGAIN: the caller tries again.
    """
    size = hpage_size()
    src_pmdp, dst_pmdp = pmd_offset(mm, src_addr), pmd_offset(mm, dst_addr)
    dst_pmd = dst_pmdp.pmd
    if pmd_trans_huge(dst_pmd):
        return -EEXIST, 0, True
    if pmd_trans_huge_lock(src_pmdp, src_vma):
        src_pmd = src_pmdp.pmd
        zero = src_pmd.kind == PmdKind.HUGE_ZERO
        if zero and not era.move_zero_page:
            spin_unlock(pmd_lockptr(src_pmdp))
            return -EBUSY, 0, True
        if ((src_addr | dst_addr) & (size - 1)) == 0 and left >= size and dst_pmd.kind == PmdKind.NONE:
            err = move_pages_huge_pmd(mm, dst_vma, src_pmdp, dst_pmdp, src_pmd, dst_pmd, dst_addr, src_addr)
            return err, size >> config.PAGE_SHIFT, True
        under_migration = is_swap_pmd(src_pmd)
        if not era.move_knows_migration:
            check(not under_migration, "not_present", "a migration entry was taken for the mapping of a page")
        exclusive = zero or under_migration or src_pmd.page.anon_exclusive
        spin_unlock(pmd_lockptr(src_pmdp))
        if not exclusive:
            return -EBUSY, 0, True
        split_huge_pmd(src_vma, src_pmdp)
        return -EAGAIN, 0, False
    if src_pmdp.pmd.kind == PmdKind.NONE:
        if not mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES:
            return -ENOENT, 0, True
        if pte_alloc_fails(mm, src_addr):
            return -ENOMEM, 0, True
        pte_alloc(mm, src_addr)
    if pte_alloc_fails(mm, dst_addr):
        return -ENOMEM, 0, True
    pte_alloc(mm, dst_addr)
    # pte_offset_map_nolock: what is no table any more, or not yet, is looked at again.
    dst_table, src_table = dst_pmdp.pmd.table, src_pmdp.pmd.table
    if dst_table is None or src_table is None:
        return -EAGAIN, 0, True
    err, pages = move_pages_pte(mm, dst_vma, src_vma, dst_table, src_table, dst_addr, src_addr, left, mode)
    return err, pages, err != 0
