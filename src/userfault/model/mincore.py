"""mm/mincore.c: which pages of a range are in memory."""

from __future__ import annotations

from .catalogue import modelled
from .errno import EINVAL, ENOMEM
from .locks import down_read, spin_lock, spin_unlock, up_read
from .machine import config
from .mm_types import PmdKind, PteKind, mm_struct
from .mmap import find_vma
from .pgtable import pmd_offset, pte_lockptr, pte_offset


@modelled(
    "mm/mincore.c",
    function="mincore_pte_range, mincore_swap",
    versions="v6.6 .. v6.18",
    section="C.4",
    steps=2,
    omits="files; a page of the swap cache that is still being read; the lock of a huge entry; a table that is gone is a hole",
)
def is_resident(mm: mm_struct, addr: int) -> bool:
    """Is the page of anonymous memory there: mapped, on its way elsewhere, or in the swap cache? Markers are no pages."""
    pmd = pmd_offset(mm, addr).pmd
    if pmd.kind != PmdKind.TABLE:
        return pmd.kind != PmdKind.NONE
    spin_lock(pte_lockptr(pmd.table))
    pte = pte_offset(pmd.table, addr).pte
    resident = pte.kind == PteKind.PRESENT or pte.kind == PteKind.MIGRATION or pte.kind == PteKind.HWPOISON
    if pte.kind == PteKind.SWAP:
        resident = pte.slot.cache is not None
    spin_unlock(pte_lockptr(pmd.table))
    return resident


def sys_mincore(mm: mm_struct, addr: int, length: int) -> tuple[int, list[bool]]:
    """mincore(2) of [addr, addr + length) (bytes): the result, and an answer for each page before the first hole.

    The result is 0; -EINVAL: not aligned; -ENOMEM: not all is mapped, or it leaves the user's addresses (then there are no answers).
    """
    mask = (1 << config.PAGE_SHIFT) - 1
    if addr & mask:
        return -EINVAL, []
    if length < 0 or length > config.TASK_SIZE - addr:
        return -ENOMEM, []
    answers: list[bool] = []
    err = 0
    down_read(mm.mmap_sem)
    for at in range(addr, addr + length, 1 << config.PAGE_SHIFT):
        if find_vma(mm, at) is None:
            err = -ENOMEM
            break
        answers.append(is_resident(mm, at))
    up_read(mm.mmap_sem)
    return err, answers
