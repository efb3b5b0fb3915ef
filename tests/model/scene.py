"""A small machine in every era, and short words for what tests do on it."""

from __future__ import annotations

import pytest

from userfault.model import era as eras
from userfault.model.fremap import RAP_ALLOW_SRC_HOLES, remap_anon_pages
from userfault.model.gup import gup_fast, taken
from userfault.model.huge_memory import do_huge_pmd_anonymous_page
from userfault.model.huge_split import split_huge_pmd
from userfault.model.locks import check_no_locks_held
from userfault.model.machine import attach, boot, machine, new_mm
from userfault.model.madvise import madvise_userfault
from userfault.model.mm_types import PmdKind, mm_struct, page, pte_t, tlb_t, vm
from userfault.model.mmap import do_mmap, sys_mmap
from userfault.model.properties import ALWAYS
from userfault.model.user import load, store
from userfault.model.userfaultfd_move import uffdio_move

PAGES = 12
every_era = pytest.mark.parametrize("era", list(eras.ERAS))
movers = pytest.mark.parametrize("era", ["v3.10+seed", "v6.8", "v6.18"])
modern = pytest.mark.parametrize("era", [name for name, era in eras.ERAS.items() if era.pte_mapped_huge])
old = pytest.mark.parametrize("era", [name for name, era in eras.ERAS.items() if not era.pte_mapped_huge])
SIGBUS, SIGSEGV = -7, -11
RW = int(vm.READ | vm.WRITE)
CONTENT = b"what was written".ljust(4096, b"\0")


def start(era: str, *, ksm: bool = False) -> mm_struct:
    eras.use(era)
    boot(cpus=1, ksm=ksm)
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
    return mm


def two_vmas(pages: int, length: int) -> mm_struct:
    """v6.18 as user space sees it, with memory at 0 and another VMA of the same length behind; addresses count pages."""
    eras.use("v6.18")
    boot(split_vmas=True, synchronous_swap=True)
    mm = new_mm(pages)
    attach(0, mm, pages)
    assert sys_mmap(mm, 0, length, RW) == 0
    assert sys_mmap(mm, length, length, RW) == 0
    return mm


def move(mm: mm_struct, dst: int, src: int, length: int = 1, holes: bool = False) -> int:
    if eras.era.uffdio_move:
        return uffdio_move(mm, dst, src, length, 2 if holes else 0)
    return remap_anon_pages(mm, dst, src, length, RAP_ALLOW_SRC_HOLES if holes else 0)


def write(mm: mm_struct, addr: int, value: bytes) -> int:
    return store(mm, addr, value)  # type: ignore[arg-type]


def read(mm: mm_struct, addr: int) -> object:
    return load(mm, addr)


def two_areas(mm: mm_struct) -> None:
    """Source pages 0-3; destination pages 4-7, where a touch of a missing page raises SIGBUS."""
    do_mmap(mm, 0, 4, int(vm.WRITE | vm.DONTCOPY), 0)
    do_mmap(mm, 4, 4, int(vm.WRITE), 4)
    madvise_userfault(mm, 4)


def huge(era: str, flags: int = int(vm.WRITE)) -> tuple[mm_struct, page]:
    """A huge page at 0 with CONTENT in its first part and something else in its second."""
    mm = start(era)
    do_mmap(mm, 0, 4, flags, 0)
    assert do_huge_pmd_anonymous_page(mm.mmap[0], 0) == 0
    write(mm, 0, CONTENT)
    write(mm, 1, b"second part")
    return mm, mm.pmd[0].pmd.page


def pte_mapped(era: str) -> tuple[mm_struct, page]:
    mm, p = huge(era)
    split_huge_pmd(mm.mmap[0], mm.pmd[0])
    run_in(mm)
    return mm, p


def pte_at(mm: mm_struct, addr: int) -> pte_t:
    return mm.pmd[addr >> 1].pmd.table.pte[addr & 1].pte


def page_at(mm: mm_struct, addr: int) -> page:
    return pte_at(mm, addr).page


def kind_at(mm: mm_struct, addr: int) -> PmdKind:
    return mm.pmd[addr >> 1].pmd.kind


def pin(mm: mm_struct, addr: int) -> page:
    """The page at an address, pinned by the fast way."""
    assert gup_fast(mm, addr) == 1
    return taken()


def run_in(mm: mm_struct) -> None:
    """The CPU switches to an address space: its TLB is empty."""
    machine.cpus[0].mm = mm
    machine.cpus[0].tlb = [tlb_t() for _ in range(PAGES)]


def settled() -> None:
    """All properties hold, and nothing is held."""
    for each in ALWAYS:
        each()
    check_no_locks_held()
