"""mm/vma.c (before v6.11 part of mm/mmap.c): VMAs are split, and equal neighbours merged.

Only with `config.SPLIT_VMAS`: without it the bounds of a VMA are constants of a checked program. mmap_sem is held for writing.
"""

from __future__ import annotations

from .anon_vma import anon_vma_clone, unlink_anon_vmas
from .catalogue import modelled
from .era import era
from .errno import ENOMEM
from .huge_split import split_huge_page_pmd, split_huge_pmd
from .lang import NULL, atomic, check, exhausted, ghost, raw
from .locks import down_write, up_write
from .machine import config
from .mm_types import anon_vma, mm_struct, userfaultfd_ctx, vm, vm_area_struct
from .pgtable import pmd_is_huge, pmd_offset
from .slab import hpage_size, out_of_memory, vm_area_alloc, vm_area_free
from .vma_lock import vma_start_write

STICKY = int(vm.MAYBE_GUARD)
"""Flags in which neighbours may differ: the merged VMA has them if one of the two had."""


@atomic
@raw
def vma_link(mm: mm_struct, vma: vm_area_struct) -> None:
    """Into the address space, in the order of addresses."""
    later = 0
    for each in mm.mmap:
        if each.vm_start > vma.vm_start:
            later += 1
    place = len(mm.mmap) - later
    mm.mmap.append(vma)
    while later > 0:
        first = mm.mmap[place]
        mm.mmap.remove(first)
        mm.mmap.append(first)
        later -= 1


def vma_before(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The VMA that ends at an address."""
    for vma in mm.mmap:
        if vma.vm_end == addr:
            return vma
    return None


def vma_from(mm: mm_struct, addr: int) -> vm_area_struct | None:
    """The VMA that begins at an address."""
    for vma in mm.mmap:
        if vma.vm_start == addr:
            return vma
    return None


def lock_trees(vma: vm_area_struct) -> None:
    if vma.anon_vma is not None:
        down_write(vma.anon_vma.root.rwsem)


def unlock_trees(vma: vm_area_struct) -> None:
    if vma.anon_vma is not None:
        up_write(vma.anon_vma.root.rwsem)


@modelled("mm/huge_memory.c", versions="v4.5 .. v6.18", section="C.9", steps=1)
def split_huge_pmd_at(mm: mm_struct, vma: vm_area_struct, addr: int) -> None:
    """vma_adjust_trans_huge: a huge mapping may not lie across a new border."""
    if addr & (hpage_size() - 1):
        pmdp = pmd_offset(mm, addr)
        if pmd_is_huge(pmdp.pmd):
            if era.pte_mapped_huge:
                split_huge_pmd(vma, pmdp)
            else:
                split_huge_page_pmd(pmdp, vma)


@modelled(
    "mm/vma.c", function="__split_vma", versions="v3.10 (mm/mmap.c) .. v6.18", section="C.4", omits="map_count's limit"
)
def split_vma(mm: mm_struct, vma: vm_area_struct, addr: int) -> vm_area_struct | None:
    """Cut a VMA in two at `addr` (bytes); returns the upper part, which is new. Both are in the same trees. None: no memory."""
    if out_of_memory():
        return None
    new = vm_area_alloc()
    new.vm_mm = mm
    new.vm_start = addr
    new.vm_end = vma.vm_end
    new.vm_pgoff = vma.vm_pgoff + ((addr - vma.vm_start) >> config.PAGE_SHIFT)
    new.vm_flags = vma.vm_flags
    new.vm_file = vma.vm_file
    new.ctx = vma.ctx
    if (era.maple_tree and out_of_memory()) or anon_vma_clone_split(new, vma) != 0:
        vm_area_free(new)
        return None
    vma_start_write(vma)
    vma_start_write(new)
    split_huge_pmd_at(mm, vma, addr)
    lock_trees(vma)
    vma.vm_end = addr
    vma_link(mm, new)
    unlock_trees(vma)
    return new


def anon_vma_clone_split(dst: vm_area_struct, src: vm_area_struct) -> int:
    """Not a fork: the clone has the same anon_vma. 0, or -ENOMEM, and it has none."""
    dst.anon_vma = src.anon_vma
    if src.anon_vma is not None and anon_vma_clone(dst, src) != 0:
        dst.anon_vma = NULL
        return -ENOMEM
    return 0


def is_fork_child(vma: vm_area_struct) -> bool:
    """May the VMA hold pages of a parent? Such VMAs are not given to others, so that their trees stay small."""
    return vma.anon_vma is not None and len(vma.anon_vma_chain) != 1


@modelled("mm/vma.c", function="is_mergeable_anon_vma", versions="v6.16 .. v6.18", section="C.1", steps=1)
def anon_vmas_fit(target: vm_area_struct, vma: vm_area_struct | None, av: anon_vma) -> bool:
    """May `target` take over `vma` (None: a new range) whose anon_vma is `av`?

    Before v6.16 only the target's own links are looked at.
    """
    if not era.merge_spares_fork_children:
        return target.anon_vma is av or ((target.anon_vma is None or av is None) and len(target.anon_vma_chain) == 1)
    if target.anon_vma is None and av is not None:
        return vma is None or not is_fork_child(vma)
    if target.anon_vma is not None and av is None:
        return not is_fork_child(target)
    return target.anon_vma is av


@modelled("mm/vma.c", function="can_vma_merge_before, can_vma_merge_after", versions="v6.16 .. v6.18", section="C.1")
def can_merge(
    target: vm_area_struct,
    vma: vm_area_struct | None,
    av: anon_vma,
    flags: int,
    ctx: userfaultfd_ctx,
    pgoff: int,
) -> bool:
    """Is `target` like what is described? `pgoff`: the page offset of the description at target's first page."""
    return (
        (target.vm_flags ^ flags) & ~STICKY == 0
        and target.vm_file is None
        and target.ctx is ctx
        and target.vm_pgoff == pgoff
        and anon_vmas_fit(target, vma, av)
    )


@modelled(
    "mm/vma.c",
    function="vma_merge_existing_range",
    versions="v6.13 .. v6.18",
    section="C.1",
    steps=4,
    omits="special mappings",
)
def vma_merge_existing(
    mm: mm_struct, vma: vm_area_struct, start: int, end: int, flags: int, ctx: userfaultfd_ctx, offset_of_whole: bool
) -> tuple[int, vm_area_struct | None]:
    """Give [start, end) of a VMA to the neighbours that are like what it becomes: (0, the VMA that covers it) or (0, None).

    (-ENOMEM, None): they are, and nothing is changed.

    offset_of_whole: what is compared with the neighbours' page offsets is the whole VMA's (userfaultfd up to v6.1: F-18).
    """
    prev: vm_area_struct | None = None
    after: vm_area_struct | None = None
    av = vma.anon_vma
    pgoff = vma.vm_pgoff
    if not offset_of_whole:
        pgoff += (start - vma.vm_start) >> config.PAGE_SHIFT
    if start == vma.vm_start:
        prev = vma_before(mm, start)
        if prev is not None and not can_merge(
            prev, vma, av, flags, ctx, pgoff - ((prev.vm_end - prev.vm_start) >> config.PAGE_SHIFT)
        ):
            prev = None
    if end == vma.vm_end:
        after = vma_from(mm, end)
        if after is not None:
            if not can_merge(after, vma, av, flags, ctx, pgoff + ((end - start) >> config.PAGE_SHIFT)):
                after = None
            elif prev is not None and prev.anon_vma is not None and after.anon_vma is not None:
                if prev.anon_vma is not after.anon_vma:
                    after = None
    whole = start == vma.vm_start and end == vma.vm_end
    sticky = (vma.vm_flags | flags) & STICKY
    if prev is not None or after is not None:
        vma_start_write(vma)
    if after is not None:
        vma_start_write(after)
    if prev is not None:
        vma_start_write(prev)
    target = prev if prev is not None else after
    if target is None:
        return 0, None
    giver = vma
    if prev is not None and after is not None:
        sticky |= after.vm_flags & STICKY
        if after.anon_vma is not None:
            giver = after
    if share_anon_vma(target, giver) != 0:
        return -ENOMEM, None
    if whole:
        absorb(mm, target, vma)
    elif prev is not None:
        move_border(mm, prev, vma, end)
    elif after is not None:
        move_border(mm, vma, after, start)
    if prev is not None and after is not None:
        absorb(mm, prev, after)
    target.vm_flags |= sticky
    return 0, target


@modelled(
    "mm/vma.c", function="dup_anon_vma, commit_merge", versions="v3.10 (vma_adjust) .. v6.18", section="C.1", steps=2
)
def share_anon_vma(dst: vm_area_struct, src: vm_area_struct) -> int:
    """The VMA that grows is found wherever the other one was. 0; or -ENOMEM, of this or of the growth, and nothing has changed."""
    shared = dst.anon_vma is None and src.anon_vma is not None
    if shared and anon_vma_clone_split(dst, src) != 0:
        return -ENOMEM
    if era.maple_tree and out_of_memory():
        if shared:
            # What was forgotten up to v6.5 (E-25): the VMA does not grow, and has no page of the other's.
            unlink_anon_vmas(dst)
        merge_is_undone(dst, shared)
        return -ENOMEM
    return 0


@ghost
def merge_is_undone(dst: vm_area_struct, shared: bool) -> None:
    check(
        not shared or len(dst.anon_vma_chain) == 0, "memory_leak", "a merge that was given up has left its links behind"
    )


def move_border(mm: mm_struct, low: vm_area_struct, high: vm_area_struct, border: int) -> None:
    """The border between two neighbours moves."""
    split_huge_pmd_at(mm, low if border < high.vm_start else high, border)
    lock_trees(low)
    pages = (border - high.vm_start) >> config.PAGE_SHIFT
    low.vm_end = border
    high.vm_start = border
    high.vm_pgoff += pages
    unlock_trees(low)


def absorb(mm: mm_struct, keeper: vm_area_struct, gone: vm_area_struct) -> None:
    """A neighbour takes a VMA's whole range; its links to anon_vmas go (anon_vma_merge)."""
    lock_trees(keeper)
    mm.mmap.remove(gone)
    if keeper.vm_end == gone.vm_start:
        keeper.vm_end = gone.vm_end
    else:
        mm.mmap.remove(keeper)
        keeper.vm_pgoff -= (keeper.vm_start - gone.vm_start) >> config.PAGE_SHIFT
        keeper.vm_start = gone.vm_start
        vma_link(mm, keeper)
    unlock_trees(keeper)
    if gone.anon_vma is not None:
        unlink_anon_vmas(gone)
    gone.anon_vma = NULL
    gone.ctx = NULL
    vm_area_free(gone)


@modelled("mm/vma.c", versions="v6.6 (as vma_modify_*) .. v6.18", section="C.1")
def vma_modify(
    mm: mm_struct,
    vma: vm_area_struct,
    start: int,
    end: int,
    flags: int,
    ctx: userfaultfd_ctx,
    offset_of_whole: bool = False,
) -> vm_area_struct | None:
    """The VMA for [start, end) alone, to be given new flags: merged with neighbours that have them, or split off. None: -ENOMEM."""
    if flags == vma.vm_flags and ctx is vma.ctx:
        return vma
    err, merged = vma_merge_existing(mm, vma, start, end, flags, ctx, offset_of_whole)
    if merged is not None or (err != 0 and era.merge_failure_is_reported):
        return merged
    if not config.SPLIT_VMAS:
        # The bounds of a VMA that nothing is merged with are constants of a checked program.
        if vma.vm_start < start or vma.vm_end > end:
            exhausted("VMA to split")
        return vma
    if vma.vm_start < start:
        upper = split_vma(mm, vma, start)
        if upper is None:
            return None
        vma = upper
    if vma.vm_end > end and split_vma(mm, vma, end) is None:
        return None
    return vma


@modelled("mm/vma.c", versions="v6.13 .. v6.18", section="C.1", steps=3, omits="files")
def vma_merge_new_range(
    mm: mm_struct,
    copied: vm_area_struct | None,
    av: anon_vma,
    start: int,
    end: int,
    flags: int,
    ctx: userfaultfd_ctx,
    pgoff: int,
    apart: vm_area_struct | None = None,
) -> vm_area_struct | None:
    """Make neighbours longer by a range where nothing is mapped, which will hold what `copied` holds now (None: nothing).

    apart: a neighbour that stays as it is.
    """
    pages = (end - start) >> config.PAGE_SHIFT
    prev, after = vma_before(mm, start), vma_from(mm, end)
    if prev is apart:
        prev = None
    if after is apart:
        after = None
    if after is not None and copied is None and not era.mmap_merges_both_sides:
        # A neighbour behind that fits decides for the one before it.
        if can_merge(after, copied, av, flags, ctx, pgoff + pages):
            av = after.anon_vma
    if prev is not None:
        length = (prev.vm_end - prev.vm_start) >> config.PAGE_SHIFT
        if not can_merge(prev, copied, av, flags, ctx, pgoff - length):
            prev = None
    if after is not None:
        if not can_merge(after, copied, av, flags, ctx, pgoff + pages):
            after = None
        elif prev is not None and prev.anon_vma is not None and after.anon_vma is not None:
            if prev.anon_vma is not after.anon_vma:
                after = None
    sticky = flags & STICKY
    if prev is not None:
        vma_start_write(prev)
    if after is not None:
        vma_start_write(after)
    if prev is not None:
        giver = prev
        if after is not None:
            sticky |= after.vm_flags & STICKY
            giver = after
        if copied is not None and giver.anon_vma is None:
            giver = copied
        if share_anon_vma(prev, giver) != 0:
            return None
        lock_trees(prev)
        prev.vm_end = end
        unlock_trees(prev)
        if after is not None:
            absorb(mm, prev, after)
        prev.vm_flags |= sticky
        return prev
    if after is not None:
        if share_anon_vma(after, copied if copied is not None else after) != 0:
            return None
        lock_trees(after)
        mm.mmap.remove(after)
        after.vm_start = start
        after.vm_pgoff -= pages
        vma_link(mm, after)
        unlock_trees(after)
        after.vm_flags |= sticky
        return after
    return None


def copied_range_merged(
    mm: mm_struct, vma: vm_area_struct, start: int, end: int, pgoff: int, apart: vm_area_struct | None
) -> vm_area_struct | None:
    """vma_merge_copied_range: the neighbour that mremap made longer, or None."""
    return vma_merge_new_range(mm, vma, vma.anon_vma, start, end, vma.vm_flags, vma.ctx, pgoff, apart)


@modelled("mm/vma.c", versions="v6.8 .. v6.18", section="C.16", steps=1)
def vma_merge_extend(mm: mm_struct, vma: vm_area_struct, delta: int) -> int:
    """Make a VMA longer by `delta` bytes, where nothing is mapped; what is behind it then may become part of it. 0 or -ENOMEM."""
    pgoff = vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> config.PAGE_SHIFT)
    end = vma.vm_end
    longer = vma_merge_new_range(mm, None, vma.anon_vma, end, end + delta, vma.vm_flags, vma.ctx, pgoff)
    return 0 if longer is not None else -ENOMEM


@modelled(
    "mm/vma.c",
    function="__mmap_region",
    versions="v6.13 .. v6.18",
    section="C.1",
    steps=3,
    omits="files, limits, population",
)
def mmap_region(mm: mm_struct, start: int, end: int, flags: int) -> vm_area_struct | None:
    """A new anonymous mapping where nothing is mapped: it makes a neighbour longer, or is a VMA of its own. None: no memory."""
    pgoff = start >> config.PAGE_SHIFT
    merged = vma_merge_new_range(mm, None, NULL, start, end, flags, NULL, pgoff)
    if merged is not None:
        return merged
    if out_of_memory():
        return None
    vma = vm_area_alloc()
    vma.vm_mm = mm
    vma.vm_start = start
    vma.vm_end = end
    vma.vm_pgoff = pgoff
    vma.vm_flags = flags
    vma.ctx = NULL
    vma_start_write(vma)
    vma_link(mm, vma)
    return vma
