"""What user code does: load and store through the CPU's TLB; faults are handled and the access is tried again."""

from __future__ import annotations

from typing import cast

from .catalogue import modelled
from .errno import SIGBUS, SIGSEGV
from .lang import NULL, atomic, check, raw
from .locks import down_read, up_read
from .machine import config, this_cpu
from .memory import handle_pte_fault
from .mm_types import PmdKind, PteKind, mm_struct, page, tlb_t
from .mmap import find_vma
from .pgtable import pmd_offset, pte_offset

FAULT = -100
"""The access can't be done with the translation at hand."""


@atomic
@raw
def access(mm: mm_struct, addr: int, write: bool, value: int) -> int:
    """One access by the hardware: through the TLB entry if there is a fit one, else by a walk that fills the TLB.

    A remembered translation is used even if the page table has changed meanwhile: that is what flushes are for.
    Returns the content after the access, or FAULT.
    """
    here = this_cpu()
    number = addr >> config.PAGE_SHIFT
    entry = here.tlb[number]
    p: page = entry.page
    if p is None or (write and not entry.write):
        writable = False
        p = NULL
        pmdp = pmd_offset(mm, addr)
        pmd = pmdp.pmd
        if pmd.kind == PmdKind.HUGE or pmd.kind == PmdKind.SPLITTING:
            writable = pmd.write
            if not write or writable:
                p = pmd.page
                pmdp.pmd = pmd._replace(young=True, dirty=pmd.dirty or write)
        elif pmd.kind == PmdKind.TABLE:
            ptep = pte_offset(pmd.table, addr)
            pte = ptep.pte
            if pte.kind == PteKind.PRESENT and (not write or pte.write):
                if pte.special:
                    return 0
                writable = pte.write
                p = pte.page
                ptep.pte = pte._replace(young=True, dirty=pte.dirty or write)
        if p is None:
            return FAULT
        here.tlb[number] = tlb_t(page=p, write=writable and write)
    check(p.allocated, "use_after_free", "user code reached a freed page through a stale translation")
    if write:
        p.data = value
        return value
    return cast(int, p.data)


@modelled(
    "arch/x86/mm/fault.c",
    function="do_page_fault",
    versions="v3.10 .. v6.8",
    section="C.1",
    omits="per-VMA locks (v6.4)",
)
def handle_user_fault(mm: mm_struct, addr: int, write: bool) -> int:
    """Take mmap_sem, find the VMA, handle the fault. 0: try again; negative: the signal that kills."""
    down_read(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None:
        up_read(mm.mmap_sem)
        return -SIGSEGV
    result = handle_pte_fault(vma, addr, write)
    up_read(mm.mmap_sem)
    return -SIGBUS if result != 0 else 0


def load(mm: mm_struct, addr: int) -> int:
    """Read the page at `addr`: its content, or -SIGBUS, -SIGSEGV."""
    while True:
        value = access(mm, addr, False, 0)
        if value != FAULT:
            return value
        signal = handle_user_fault(mm, addr, False)
        if signal != 0:
            return signal


def store(mm: mm_struct, addr: int, value: int) -> int:
    """Write the page at `addr`: 0, or -SIGBUS, -SIGSEGV."""
    while True:
        if access(mm, addr, True, value) != FAULT:
            return 0
        signal = handle_user_fault(mm, addr, True)
        if signal != 0:
            return signal


def touch(mm: mm_struct, addr: int) -> int:
    """Make the page at `addr` present for reading: 0, or a signal."""
    value = load(mm, addr)
    return value if value < 0 else 0
