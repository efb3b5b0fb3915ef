"""What user code does: load and store through the CPU's TLB; faults are handled and the access is tried again."""

from __future__ import annotations

from typing import cast

from .anon_vma import anon_vma_prepare
from .catalogue import modelled
from .errno import EFAULT, SIGBUS, SIGSEGV
from .events import handle_userfault
from .lang import NULL, atomic, check, ghost, raw
from .locks import down_read, down_read_trylock, up_read
from .machine import config, this_cpu
from .memory import handle_mm_fault, huge_range_fits
from .mm_types import (
    VM_FAULT_OOM,
    VM_FAULT_SIGSEGV,
    VM_FAULT_USERFAULT,
    PmdKind,
    PteKind,
    mm_struct,
    page,
    tlb_t,
    vm,
    vm_area_struct,
)
from .mmap import find_vma
from .pgtable import pmd_offset, pte_offset
from .slab import nth_page
from .vma_lock import lock_vma_under_rcu, vma_end_read

FAULT = -100
"""The access can't be done with the translation at hand."""


@ghost
def translate(mm: mm_struct, addr: int, write: bool) -> tuple[bool, page]:
    """Part of an access: through the TLB entry if there is a fit one, else by a walk that fills the TLB.

    Returns (can it be done?, the page; NULL for the zero page). A remembered translation is used even if the page table
    has changed meanwhile: that is what flushes are for. (The TLB remembers no zero page.)
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
        if pmd.kind == PmdKind.HUGE_ZERO and not write:
            return True, NULL
        if config.TRANSPARENT_HUGEPAGE and (pmd.kind == PmdKind.HUGE or pmd.kind == PmdKind.SPLITTING):
            writable = pmd.write
            if not write or writable:
                p = nth_page(pmd.page, number - pmdp.first_page)
                pmdp.pmd = pmd._replace(young=True, dirty=pmd.dirty or write)
        elif pmd.kind == PmdKind.TABLE:
            ptep = pte_offset(pmd.table, addr)
            pte = ptep.pte
            if pte.kind == PteKind.PRESENT and (not write or pte.write) and not pte.protnone:
                if pte.special:
                    ptep.pte = pte._replace(young=True)
                    return True, NULL
                writable = pte.write
                p = pte.page
                ptep.pte = pte._replace(young=True, dirty=pte.dirty or write)
        if p is None:
            return False, NULL
        here.tlb[number] = tlb_t(page=p, write=writable and write)
    check(p.allocated, "use_after_free", "user code reached a freed page through a stale translation")
    return True, p


@atomic
@raw
def access(mm: mm_struct, addr: int, write: bool, value: int) -> int:
    """One access by the hardware. Returns the content after the access, or FAULT."""
    done, p = translate(mm, addr, write)
    if not done:
        return FAULT
    if p is None:
        return 0
    if write:
        p.data = value
        return value
    return cast(int, p.data)


@modelled(
    "arch/x86/mm/fault.c",
    function="do_page_fault",
    versions="v3.10 .. v6.8",
    section="C.1",
    omits="per-VMA locks (v6.4), unless config.PER_VMA_LOCKS",
)
def handle_user_fault(mm: mm_struct, addr: int, write: bool) -> int:
    """Take mmap_sem, find the VMA, handle the fault. 0: try again; negative: the signal that kills.

    -SIGSEGV: nothing is mapped there, or not for writing. -SIGBUS: the page is missing in a VMA whose user resolves faults.
    """
    if config.PER_VMA_LOCKS:
        locked = lock_vma_under_rcu(mm, addr)
        if locked is not None:
            if not may_access(locked, write):
                vma_end_read(locked)
                return -SIGSEGV
            if vmf_anon_prepare(locked, addr, write):
                outcome = handle_mm_fault(locked, addr, write)
                vma_end_read(locked)
                return signal_of(outcome)
            vma_end_read(locked)
    down_read(mm.mmap_sem)
    vma = find_vma(mm, addr)
    if vma is None or not may_access(vma, write):
        up_read(mm.mmap_sem)
        return -SIGSEGV
    result = handle_mm_fault(vma, addr >> config.PAGE_SHIFT << config.PAGE_SHIFT, write)
    up_read(mm.mmap_sem)
    if config.EVENTS and result == VM_FAULT_USERFAULT and handle_userfault(vma, addr, write):
        return 0
    return signal_of(result)


def may_access(vma: vm_area_struct, write: bool) -> bool:
    """arch/x86/mm/fault.c access_error: do the VMA's flags allow it?"""
    return vma.vm_flags & (vm.WRITE if write else vm.READ | vm.WRITE | vm.EXEC) != 0


@modelled(
    "mm/memory.c",
    versions="v6.7 .. v6.18",
    section="C.1",
    steps=2,
    omits="that it comes after the page table is made, and only where a page is put in",
)
def vmf_anon_prepare(vma: vm_area_struct, addr: int, write: bool) -> bool:
    """Before a fault under the VMA's lock: an anon_vma, if one may be needed. It takes mmap_lock; False: who has it keeps it."""
    if vma.anon_vma is not None or not (write or (config.TRANSPARENT_HUGEPAGE and huge_range_fits(vma, addr))):
        return True
    if not down_read_trylock(vma.vm_mm.mmap_sem):
        return False
    anon_vma_prepare(vma)
    up_read(vma.vm_mm.mmap_sem)
    return vma.anon_vma is not None


def signal_of(fault: int) -> int:
    """What becomes of who ran into a fault: 0 if the access is tried again."""
    if fault == VM_FAULT_OOM:
        # pagefault_out_of_memory: somebody is killed, or not; whoever lives tries again.
        return 0
    if fault == VM_FAULT_SIGSEGV:
        return -SIGSEGV
    return -SIGBUS if fault != 0 else 0


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


@modelled(
    "arch/x86/lib/usercopy_64.c", versions="v3.10 .. v6.8", section="A.3", omits="a copy that stops within a page"
)
def copy_from_user(mm: mm_struct, addr: int) -> int:
    """A system call reads the user's page at `addr`: its content, or -EFAULT where user code would get a signal (R27)."""
    value = load(mm, addr)
    return value if value >= 0 else -EFAULT


def touch(mm: mm_struct, addr: int, write: bool = False) -> int:
    """Make the page at `addr` present, for reading or for writing; its content stays. 0, or a signal."""
    while True:
        if can_access(mm, addr, write):
            return 0
        signal = handle_user_fault(mm, addr, write)
        if signal != 0:
            return signal


@atomic
@raw
def can_access(mm: mm_struct, addr: int, write: bool) -> bool:
    """An access that leaves the content alone."""
    done, _ = translate(mm, addr, write)
    return done


# -- sequential runs only: bytes within pages -------------------------------------------------------------------------


def page_bytes(p: page | None) -> bytes:
    """A page's content, full length; the zero page's and that of a page only cleared are zeroes."""
    size = 1 << config.PAGE_SHIFT
    data = b"" if p is None or isinstance(p.data, int) else p.data
    return data.ljust(size, b"\0")


def peek(mm: mm_struct, addr: int, length: int) -> bytes | int:
    """Read bytes, faulting pages in: the bytes, or the signal (negative) of the first page that can't be read."""
    out = b""
    size = 1 << config.PAGE_SHIFT
    while len(out) < length:
        at = addr + len(out)
        first = at & -size
        signal = touch(mm, at)
        if signal != 0:
            return signal
        _, p = translate(mm, first, False)
        out += page_bytes(p)[at - first : at - first + length - len(out)]
    return out


def poke(mm: mm_struct, addr: int, data: bytes) -> int:
    """Write bytes, faulting pages in: how many were written, or the signal (negative) if it was none."""
    done = 0
    size = 1 << config.PAGE_SHIFT
    while done < len(data):
        at = addr + done
        first = at & -size
        signal = touch(mm, at, True)
        if signal != 0:
            return done if done > 0 else signal
        _, p = translate(mm, first, True)
        old = page_bytes(p)
        piece = data[done : done + size - (at - first)]
        p.data = old[: at - first] + piece + old[at - first + len(piece) :]
        done += len(piece)
    return done
