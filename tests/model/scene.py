"""A small machine in every era, and short words for what tests do on it."""

from __future__ import annotations

import pytest

from userfault.model import era as eras
from userfault.model.fremap import RAP_ALLOW_SRC_HOLES, remap_anon_pages
from userfault.model.locks import check_no_locks_held
from userfault.model.machine import attach, boot, machine, new_mm
from userfault.model.madvise import madvise_userfault
from userfault.model.mm_types import PmdKind, mm_struct, page, pte_t, tlb_t, vm
from userfault.model.mmap import do_mmap
from userfault.model.properties import ALWAYS
from userfault.model.user import load, store
from userfault.model.userfaultfd_move import uffdio_move

PAGES = 12
every_era = pytest.mark.parametrize("era", list(eras.ERAS))
movers = pytest.mark.parametrize("era", ["v3.10+seed", "v6.8", "v6.18"])
CONTENT = b"what was written".ljust(4096, b"\0")


def start(era: str, *, ksm: bool = False) -> mm_struct:
    eras.use(era)
    boot(cpus=1, ksm=ksm)
    mm = new_mm(PAGES)
    attach(0, mm, PAGES)
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


def pte_at(mm: mm_struct, addr: int) -> pte_t:
    return mm.pmd[addr >> 1].pmd.table.pte[addr & 1].pte


def page_at(mm: mm_struct, addr: int) -> page:
    return pte_at(mm, addr).page


def kind_at(mm: mm_struct, addr: int) -> PmdKind:
    return mm.pmd[addr >> 1].pmd.kind


def run_in(mm: mm_struct) -> None:
    """The CPU switches to an address space: its TLB is empty."""
    machine.cpus[0].mm = mm
    machine.cpus[0].tlb = [tlb_t() for _ in range(PAGES)]


def settled() -> None:
    """All properties hold, and nothing is held."""
    for each in ALWAYS:
        each()
    check_no_locks_held()
