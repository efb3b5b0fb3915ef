"""`userfault model --contrast`: what it costs to find a page's mapping where a move keeps it linear, and where not (R11)."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from ..model import era as eras
from ..model.fremap import remap_anon_pages
from ..model.locks import lock_page
from ..model.machine import attach, boot, new_mm
from ..model.mm_types import vm
from ..model.mmap import do_mmap
from ..model.nonlinear import cost_of_unmapping
from ..model.pgtable import pmd_offset, pte_offset
from ..model.rmap import page_check_address, try_to_unmap
from ..model.slab import get_page
from ..model.user import store

SIZES = (32, 128, 512, 2048)
"""Pages of a VMA."""


def cost_after_a_move(pages: int) -> int:
    """PTEs looked at to unmap a page that remap_anon_pages moved into a VMA of that many pages: counted in the model's run."""
    eras.use("v3.10+seed")
    boot()
    mm = new_mm(2 * pages)
    attach(0, mm, 2 * pages)
    do_mmap(mm, 0, pages, int(vm.WRITE | vm.DONTCOPY), 0)
    do_mmap(mm, pages, pages, int(vm.WRITE), pages)
    store(mm, 0, 1)
    moved = remap_anon_pages(mm, 2 * pages - 1, 0, 1, 0)
    assert moved == 1
    p = pte_offset(pmd_offset(mm, 2 * pages - 1).pmd.table, 2 * pages - 1).pte.page
    looked = 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal looked
        looked += event == "call" and frame.f_code is page_check_address.__code__

    get_page(p)
    lock_page(p)
    sys.setprofile(count)
    try:
        done = try_to_unmap(p, True)
    finally:
        sys.setprofile(None)
    assert done
    return looked


def rows() -> list[tuple[int, int, int, int]]:
    """(pages of the VMA, PTEs looked at: linear file mapping, after remap_file_pages, after remap_anon_pages)."""
    out = []
    for pages in SIZES:
        eras.use("v3.10+seed")
        boot()
        linear, nonlinear = cost_of_unmapping(pages, target=pages // 3)
        out.append((pages, linear, nonlinear, cost_after_a_move(pages)))
    return out
