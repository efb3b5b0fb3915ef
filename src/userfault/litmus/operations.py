"""What a thread of a litmus test can do: user operations and the kernel's own actors, as calls of model functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..model import (
    events,
    fork,
    fremap,
    gup,
    huge_split,
    khugepaged,
    ksm,
    madvise,
    memory_failure,
    migrate,
    mmap,
    mprotect,
    mremap,
    slab,
    user,
    userfaultfd,
    userfaultfd_move,
    vmscan,
)
from ..model.anon_vma import page_get_anon_vma, put_anon_vma
from ..model.errno import EAGAIN
from ..model.lang import atomic, raw
from ..model.madvise import MADV
from ..model.mm_types import PmdKind, PteKind, mm_struct, page, vm
from ..model.pgtable import is_swap_pmd, pmd_is_huge, pmd_offset, pte_offset
from .ast import Operation

FIRST_PAGE_TOKEN = 1


class Need(NamedTuple):
    """Objects that an operation may allocate: how many free ones the pools must hold for it."""

    pages: int = 0
    huge: int = 0
    anon_vmas: int = 0
    anon_vma_chains: int = 0
    vmas: int = 0
    page_tables: int = 0
    swap_slots: int = 0
    stable_nodes: int = 0


FAULT = Need(pages=1, page_tables=1, anon_vmas=1, anon_vma_chains=1)
HUGE_COPY = Need(pages=2, page_tables=1)
HUGE_FAULT = Need(huge=1, page_tables=1)


class OperationKind(NamedTuple):
    """An operation of the format.

    shape: its arguments: `addr`, `int`, `page`, `mm`, `<-`; a trailing `?` makes the rest optional. needs_mm: runs in the
    thread's address space. call: (mm, arguments) -> function and its arguments. eras: where it exists (empty: everywhere).
    """

    shape: tuple[str, ...]
    doc: str
    call: Callable[[mm_struct, list[Any]], tuple[Callable[..., Any], tuple[Any, ...]]]
    need: Need = Need()
    needs_mm: bool = True
    eras: tuple[str, ...] = ()


def _move(mm: mm_struct, args: list[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    from ..model.era import era

    dst, src = args[0], args[2]
    length = args[3] if len(args) > 3 else 1
    holes = int(len(args) > 4)
    if era.uffdio_move:
        ctx = next((vma.ctx for vma in mm.mmap if vma.ctx is not None), None)
        mode = holes * userfaultfd_move.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
        return userfaultfd_move.uffdio_move, (mm, dst, src, length, mode, ctx)
    return fremap.remap_anon_pages, (mm, dst, src, length, holes * fremap.RAP_ALLOW_SRC_HOLES)


RANGE = ("addr", "?", "int")


def _range(
    doc: str,
    call: Callable[[mm_struct, int, int], tuple[Callable[..., Any], tuple[Any, ...]]],
    need: Need | None = None,
    eras: tuple[str, ...] = ("v6.18",),
) -> OperationKind:
    """An operation, of v6.18 unless `eras` says more, on START [LENGTH]."""
    return OperationKind(
        RANGE,
        f"{doc}: START [LENGTH]",
        lambda mm, a: call(mm, a[0], a[1] if len(a) > 1 else 1),
        need or Need(page_tables=1, anon_vmas=1, anon_vma_chains=1),
        eras=eras,
    )


def _advice(doc: str, advice: int, need: Need | None = None, eras: tuple[str, ...] = ("v6.18",)) -> OperationKind:
    return _range(doc, lambda mm, at, n: (madvise.sys_madvise, (mm, at, n, int(advice))), need, eras)


def _mremap(mm: mm_struct, args: list[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if len(args) > 4:
        raise ValueError("the model's mremap has no dontunmap")
    return mremap.sys_mremap, (mm, args[0], args[2], args[3] if len(args) > 3 else 1)


MOVES = ("v3.10+seed", "v6.8", "v6.18")

OPERATIONS: dict[str, OperationKind] = {
    "load": OperationKind(("addr",), "read a page", lambda mm, a: (user.load, (mm, a[0])), FAULT),
    "store": OperationKind(("addr", "int"), "write a page", lambda mm, a: (user.store, (mm, a[0], a[1])), FAULT),
    "read": OperationKind(
        ("addr",),
        "a system call reads a page: copy_from_user",
        lambda mm, a: (user.copy_from_user, (mm, a[0])),
        FAULT,
    ),
    "touch": OperationKind(("addr",), "make a page present", lambda mm, a: (user.touch, (mm, a[0])), FAULT),
    "move": OperationKind(
        ("addr", "<-", "addr", "?", "int", "holes"),
        "remap_anon_pages, or UFFDIO_MOVE: DST <- SRC [LENGTH [holes]]",
        _move,
        Need(page_tables=1, anon_vmas=1, anon_vma_chains=1),
        eras=MOVES,
    ),
    "copy": OperationKind(
        ("addr", "int"),
        "UFFDIO_COPY of one page",
        lambda mm, a: (userfaultfd.uffdio_copy, (mm, a[0], a[1])),
        FAULT,
        eras=("v6.8", "v6.18"),
    ),
    "munmap": OperationKind(
        ("addr", "int"), "unmap whole VMAs: START LENGTH", lambda mm, a: (mmap.sys_munmap, (mm, a[0], a[1]))
    ),
    "dontneed": OperationKind(
        ("addr", "int"), "MADV_DONTNEED: START LENGTH", lambda mm, a: (madvise.madvise_dontneed, (mm, a[0], a[1]))
    ),
    "dontfork": OperationKind(("addr",), "MADV_DONTFORK", lambda mm, a: (madvise.madvise_dontfork, (mm, a[0]))),
    "dofork": OperationKind(("addr",), "MADV_DOFORK", lambda mm, a: (madvise.madvise_dofork, (mm, a[0]))),
    "userfault": OperationKind(
        ("addr",), "MADV_USERFAULT", lambda mm, a: (madvise.madvise_userfault, (mm, a[0])), eras=MOVES
    ),
    "nouserfault": OperationKind(
        ("addr",), "MADV_NOUSERFAULT", lambda mm, a: (madvise.madvise_nouserfault, (mm, a[0])), eras=MOVES
    ),
    "fork": OperationKind(
        ("mm",),
        "fork into a new address space",
        lambda mm, a: (fork.sys_fork, (mm, a[0])),
        Need(pages=1, anon_vmas=2, anon_vma_chains=4, vmas=2, page_tables=2),
    ),
    "zeropage": _range("UFFDIO_ZEROPAGE", lambda mm, at, n: (fill, (mm, at, n, False))),
    "poison": _range("UFFDIO_POISON", lambda mm, at, n: (fill, (mm, at, n, True))),
    "wp": _range("UFFDIO_WRITEPROTECT", lambda mm, at, n: (userfaultfd.mwriteprotect_range, (mm, at, n, True))),
    "unwp": _range(
        "take the write-protection back", lambda mm, at, n: (userfaultfd.mwriteprotect_range, (mm, at, n, False))
    ),
    "readonly": _range(
        "mprotect(PROT_READ)",
        lambda mm, at, n: (mprotect.sys_mprotect, (mm, at, n, int(vm.READ))),
        eras=("v6.8", "v6.18"),
    ),
    "writable": _range(
        "mprotect(PROT_READ | PROT_WRITE)",
        lambda mm, at, n: (mprotect.sys_mprotect, (mm, at, n, int(vm.READ | vm.WRITE))),
        eras=("v6.8", "v6.18"),
    ),
    "pageout": _advice("MADV_PAGEOUT", MADV.PAGEOUT, Need(swap_slots=1), eras=("v6.8", "v6.18")),
    "cold": _advice("MADV_COLD", MADV.COLD, Need(), eras=("v6.8", "v6.18")),
    "free": _advice("MADV_FREE", MADV.FREE, Need(), eras=("v6.8", "v6.18")),
    "populate": _advice("MADV_POPULATE_WRITE", MADV.POPULATE_WRITE, FAULT, eras=("v6.8", "v6.18")),
    "populateread": _advice("MADV_POPULATE_READ", MADV.POPULATE_READ, FAULT, eras=("v6.8", "v6.18")),
    "guard": _advice("MADV_GUARD_INSTALL", MADV.GUARD_INSTALL),
    "unguard": _advice("MADV_GUARD_REMOVE", MADV.GUARD_REMOVE),
    "look": OperationKind(
        ("addr",), "the page table's entry: 0 none, 1 present, 2 anything else", lambda mm, a: (look, (mm, a[0]))
    ),
    "mremap": OperationKind(
        ("addr", "<-", "addr", "?", "int", "dontunmap"),
        "mremap(MREMAP_FIXED): DST <- SRC [LENGTH [dontunmap]]",
        _mremap,
        Need(vmas=1, anon_vma_chains=4, page_tables=1),
    ),
    "pinwrite": OperationKind(
        ("addr", "int"),
        "a device's write: gup_fast, write to the page, unpin",
        lambda mm, a: (gup.pin_and_write, (mm, a[0], a[1])),
    ),
    "pin": OperationKind(("addr",), "gup_fast, and keep the pin", lambda mm, a: (pin, (mm, a[0]))),
    "pinread": OperationKind(
        ("addr",),
        "a device is given a page to read, and keeps it: get_user_pages_fast without FOLL_WRITE",
        lambda mm, a: (gup.read_pin, (mm, a[0])),
        FAULT,
        eras=("v6.8", "v6.18"),
    ),
    "pinned": OperationKind(
        ("addr",),
        "what lies in the page that the thread's device holds, which was at the address",
        lambda mm, a: (gup.pinned_content, ()),
        eras=("v6.8", "v6.18"),
    ),
    "vmread": OperationKind(
        ("addr",),
        "process_vm_readv of the own process: a pin for reading, a read, unpin",
        lambda mm, a: (gup.process_vm_read, (mm, a[0])),
        FAULT,
        eras=("v6.8", "v6.18"),
    ),
    "event": OperationKind(
        (),
        "read an event of the userfaultfd: 19 fork, 20 remap, 21 remove, 22 unmap",
        lambda mm, a: (events.read_event, (mm,)),
        eras=("v6.8", "v6.18"),
    ),
    "devwrite": OperationKind(
        ("addr", "int", "?", "int"),
        "a device's write to a range: get_user_pages_fast, write to the pages, unpin; START VALUE [LENGTH]",
        lambda mm, a: (gup.device_write, (mm, a[0], a[1], a[2] if len(a) > 2 else 1)),
        Need(pages=2, page_tables=1, anon_vmas=1, anon_vma_chains=1),
    ),
    "collapse": OperationKind(
        ("addr",),
        "khugepaged: make a huge page",
        lambda mm, a: (khugepaged.collapse_huge_page, (mm, a[0])),
        Need(huge=1),
    ),
    "ksm": OperationKind(
        ("addr",),
        "ksmd: make the page a KSM page",
        lambda mm, a: (ksm.ksm_make_stable, (mm, a[0])),
        Need(stable_nodes=1),
    ),
    "referenced": OperationKind(
        ("page",), "reclaim's unlocked look at a page", lambda mm, a: (vmscan.referenced, (a[0],)), needs_mm=False
    ),
    "idle": OperationKind(
        ("page",),
        "page_idle's unlocked look, which sleeps for the lock",
        lambda mm, a: (vmscan.page_idle_clear_pte_refs, (a[0],)),
        needs_mm=False,
        eras=("v6.8", "v6.18"),
    ),
    "reclaim": OperationKind(
        ("page",), "swap a page out", lambda mm, a: (vmscan.shrink_page, (a[0],)), Need(swap_slots=1), needs_mm=False
    ),
    "split": OperationKind(("page",), "split a huge page", lambda mm, a: (split, (a[0],)), needs_mm=False),
    "migrate": OperationKind(
        ("page",),
        "compaction: migrate a page",
        lambda mm, a: (migrate.migrate_page, (a[0],)),
        Need(pages=1),
        needs_mm=False,
    ),
    "memory_failure": OperationKind(
        ("page",),
        "the search for who maps a page that is broken; how many VMAs do",
        lambda mm, a: (memory_failure.memory_failure, (a[0],)),
        needs_mm=False,
    ),
    "get_anon_vma": OperationKind(
        ("page",), "page_get_anon_vma and put", lambda mm, a: (get_and_put_anon_vma, (a[0],)), needs_mm=False
    ),
}


def fill(mm: mm_struct, addr: int, length: int, poison: bool) -> int:
    """UFFDIO_ZEROPAGE or UFFDIO_POISON: 0 if all of it was done."""
    if mm.mmap_changing != 0:
        return -EAGAIN
    done = userfaultfd.mfill_atomic(mm, addr, length, poison)
    if done < 0:
        return done
    return 0 if done == length else -EAGAIN


@atomic
@raw
def look(mm: mm_struct, addr: int) -> int:
    """What /proc/PID/pagemap says of a page."""
    pmd = pmd_offset(mm, addr).pmd
    if pmd_is_huge(pmd):
        return 2 if is_swap_pmd(pmd) else 1
    if pmd.kind != PmdKind.TABLE:
        return 0
    pte = pte_offset(pmd.table, addr).pte
    if pte.kind == PteKind.NONE:
        return 0
    return 1 if pte.kind == PteKind.PRESENT else 2


def split(p: page) -> int:
    """Somebody with a reference splits a page: 0 if it was split or is not huge."""
    if not slab.get_page_unless_zero(p):
        return -EAGAIN
    ret = huge_split.split_huge_page(p)
    slab.put_page(p)
    return ret


def get_and_put_anon_vma(p: page) -> int:
    """A walker that only takes a reference: 1 if it got one."""
    if not slab.get_page_unless_zero(p):
        return 0
    av = page_get_anon_vma(p)
    if av is not None:
        put_anon_vma(av)
    slab.put_page(p)
    return 0 if av is None else 1


def pin(mm: mm_struct, addr: int) -> int:
    """gup_fast; the pin stays. 0, or -EAGAIN if the fast way failed."""
    if gup.gup_fast(mm, addr) == 0:
        return -EAGAIN
    gup.taken()
    return 0


class KernelOperation(NamedTuple):
    """An operation that only the running kernel does: no era of the model has it yet."""

    shape: tuple[str, ...]
    doc: str


KERNEL_OPERATIONS: dict[str, KernelOperation] = {
    "wake": KernelOperation(RANGE, "UFFDIO_WAKE: START [LENGTH]"),
    "lock": KernelOperation(RANGE, "mlock2(MLOCK_ONFAULT): START [LENGTH]"),
    "unlock": KernelOperation(RANGE, "munlock: START [LENGTH]"),
    "vmwrite": KernelOperation(("addr", "int"), "process_vm_writev of the own process: a pin, a write, unpin"),
    "vmsplice": KernelOperation(("addr",), "a reference to the page into the address space's pipe"),
    "splice": KernelOperation((), "what the address space's pipe holds"),
    "unpin": KernelOperation((), "let the page of `pin` go"),
    "compact": KernelOperation((), "compaction of all memory"),
}


def check_arguments(op: Operation, shape: tuple[str, ...]) -> str:
    """What is wrong with an operation's arguments; empty if nothing is."""
    required = shape.index("?") if "?" in shape else len(shape)
    wanted = [each for each in shape if each != "?"]
    if not required <= len(op.args) <= len(wanted):
        return f"{op.name} takes {' '.join(shape) or 'nothing'}"
    for value, want in zip(op.args, wanted, strict=False):
        if want in ("addr", "int") and not isinstance(value, int):
            return f"{value} is not a number"
        if want not in ("addr", "int", "page", "mm") and str(value) != want:
            return f"expected {want}, found {value}"
    return ""
