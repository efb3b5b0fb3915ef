"""The system calls that change memory, and what can be seen after each."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from userfault.kernel import memory
from userfault.kernel.child import Child, ChildDied, call
from userfault.kernel.errors import KernelError
from userfault.kernel.machine import THP, Swap, setting
from userfault.kernel.maps import maps, smaps, vma_at
from userfault.kernel.memory import Mapping, madvise, mremap
from userfault.kernel.pagemap import Frames, Pagemap, flag_names
from userfault.kernel.snapshot import Observer, look
from userfault.kernel.uapi import (
    HUGE_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    Advice,
    PageFlag,
    PageIs,
    Prctl,
    RemapFlag,
)

pytestmark = pytest.mark.usefixtures("one_cpu")

PAGE = PAGE_SIZE_BYTES
OWN = "PX:c1:ANON,SWAPBACKED,ANON_EXCLUSIVE"


@pytest.fixture
def observer(cannot_run: Callable[[str, str], NoReturn]) -> Iterator[Observer]:
    with Observer() as own:
        if own.frames is None:
            cannot_run("page frames can't be looked at", "run as root")
        yield own


@pytest.fixture
def four() -> Iterator[Mapping]:
    """Four pages, the first two written, the third read, the fourth never touched."""
    with Mapping(4 * PAGE) as mapping:
        memory.store(mapping.at(0), b"zero")
        memory.store(mapping.at(1), b"one")
        memory.load(mapping.at(2), 1)
        yield mapping


@pytest.fixture
def huge(cannot_run: Callable[[str, str], NoReturn]) -> Iterator[Mapping]:
    """One huge page."""
    if not THP.is_dir() or setting(THP / "enabled") == "never":
        cannot_run("no transparent huge pages", f"echo madvise > {THP}/enabled")
    with Mapping.huge(2) as mapping:
        memory.store(mapping.address, b"huge")
        if vma_of(mapping).sizes_bytes["AnonHugePages"] != HUGE_SIZE_BYTES:
            cannot_run(
                "no huge page was to be had", "free some memory, or compact it: echo 1 > /proc/sys/vm/compact_memory"
            )
        yield mapping


def vma_of(mapping: Mapping):  # type: ignore[no-untyped-def]
    found = vma_at(mapping.address)
    assert found
    return found


def seen(observer: Observer, mapping: Mapping) -> str:
    return str(observer.look(mapping.address, mapping.length_bytes, mappings=False))


def test_written_read_and_untouched_pages(observer: Observer, four: Mapping) -> None:
    snapshot = observer.look(four.address, four.length_bytes)
    assert str(snapshot) == f"{OWN}*2 P:c0:ZERO_PAGE -"
    # What counts as written before anything is registered, kernels say otherwise each (conform/quirks.py).
    assert [(page.categories or PageIs(0)) & ~PageIs.WRITTEN for page in snapshot.pages] == [
        *[PageIs.PRESENT] * 2,
        PageIs.PRESENT | PageIs.PFNZERO,
        PageIs(0),
    ]
    assert [page.resident for page in snapshot.pages] == [True, True, True, False]
    (vma,) = snapshot.vmas
    assert (vma.start, vma.end, vma.permissions, vma.anonymous) == (four.address, four.end, "rw-p", True)
    assert vma.sizes_bytes["Anonymous"] == 2 * PAGE and {"rd", "wr"} <= vma.vm_flags


def test_fork_shares_and_a_write_makes_a_page_ones_own(observer: Observer, four: Mapping) -> None:
    def child() -> Iterator[str]:
        yield str(look(four.address, four.length_bytes))
        memory.store(four.address, b"mine")
        yield str(look(four.address, four.length_bytes))

    shared = "P:c2:ANON,SWAPBACKED"
    with Child(child) as other:
        assert other.step() == f"{shared}*2 P:c0:ZERO_PAGE -"
        assert other.step() == f"{OWN} {shared} P:c0:ZERO_PAGE -"
        # Mapped once again, but whether it is shared was not looked at since: the flag comes back with a write.
        once = "PX:c1:ANON,SWAPBACKED"
        assert seen(observer, four) == f"{once} {shared} P:c0:ZERO_PAGE -"
    assert seen(observer, four) == f"{once}*2 P:c0:ZERO_PAGE -"
    memory.store(four.address, b"mine")
    assert seen(observer, four) == f"{OWN} {once} P:c0:ZERO_PAGE -"


@pytest.mark.parametrize(
    ("advice", "answer", "after"),
    [
        (Advice.DONTNEED, 0, "-*4"),
        (Advice.DONTNEED_LOCKED, 0, "-*4"),
        (Advice.WILLNEED, 0, f"{OWN}*2 P:c0:ZERO_PAGE -"),
        (Advice.COLD, 0, f"{OWN}*2 P:c0:ZERO_PAGE -"),
        (Advice.POPULATE_READ, 0, f"{OWN}*2 P:c0:ZERO_PAGE*2"),
        (Advice.POPULATE_WRITE, 0, f"{OWN}*4"),
        (Advice.GUARD_INSTALL, 0, "SG*4"),
        (Advice.REMOVE, errno.EINVAL, f"{OWN}*2 P:c0:ZERO_PAGE -"),
        (Advice.DONTFORK, 0, f"{OWN}*2 P:c0:ZERO_PAGE -"),
        (99, errno.EINVAL, f"{OWN}*2 P:c0:ZERO_PAGE -"),
    ],
)
def test_madvise(
    observer: Observer,
    four: Mapping,
    advice: int,
    answer: int,
    after: str,
    cannot_run: Callable[[str, str], NoReturn],
) -> None:
    if isinstance(advice, Advice) and answer == 0:
        with Mapping(PAGE) as other:
            if other.madvise(advice).errno == errno.EINVAL:
                cannot_run(f"this kernel has no MADV_{advice.name}", f"run on Linux {advice.since} or newer")
    assert madvise(four.address, four.length_bytes, advice).errno == answer
    assert seen(observer, four) == after


@pytest.mark.parametrize(
    ("advice", "undo", "flag"),
    [
        (Advice.DONTFORK, Advice.DOFORK, "dc"),
        (Advice.WIPEONFORK, Advice.KEEPONFORK, "wf"),
        (Advice.DONTDUMP, Advice.DODUMP, "dd"),
        (Advice.SEQUENTIAL, Advice.NORMAL, "sr"),
        (Advice.RANDOM, Advice.NORMAL, "rr"),
    ],
)
def test_madvise_sets_a_flag_and_takes_it_back(four: Mapping, advice: Advice, undo: Advice, flag: str) -> None:
    assert four.madvise(advice).ok and flag in vma_of(four).vm_flags
    assert four.madvise(undo).ok and flag not in vma_of(four).vm_flags


def test_what_fork_leaves_out(four: Mapping) -> None:
    four.madvise(Advice.DONTFORK, 0, 2)
    four.madvise(Advice.WIPEONFORK, 2, 2)
    memory.store(four.at(2), b"secret")
    assert call(lambda: memory.read_memory(four.at(2), 6)[1]) == bytes(6)
    with pytest.raises(ChildDied) as died:
        call(lambda: memory.load(four.address, 1))
    assert died.value.signal == signal.SIGSEGV


def test_a_guard_kills_and_is_taken_away(four: Mapping, cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not four.madvise(Advice.GUARD_INSTALL, 0, 1).ok:
        cannot_run("this kernel has no MADV_GUARD_INSTALL", "run on Linux 6.13 or newer")
    with pytest.raises(ChildDied) as died:
        call(lambda: memory.load(four.address, 1))
    assert died.value.signal == signal.SIGSEGV
    assert memory.read_memory(four.address, 1)[0].errno == errno.EFAULT
    assert four.madvise(Advice.GUARD_REMOVE, 0, 1).ok
    assert memory.load(four.address, 4) == bytes(4)


def test_free_keeps_a_page_until_it_is_written(observer: Observer, four: Mapping) -> None:
    assert four.madvise(Advice.FREE).ok
    # Whatever drains this CPU's batches makes it visible.
    four.madvise(Advice.COLD)
    assert vma_of(four).sizes_bytes["LazyFree"] == 2 * PAGE
    memory.store(four.address, b"kept")
    assert four.read(0, 4) == b"kept"


def test_pageout_and_back(observer: Observer, four: Mapping, swap: Swap) -> None:
    assert four.madvise(Advice.PAGEOUT).ok
    assert seen(observer, four) == "S*2 P:c0:ZERO_PAGE -"
    assert observer.pagemap.entry(four.address).swap_slot != observer.pagemap.entry(four.at(1)).swap_slot
    assert vma_of(four).sizes_bytes["Swap"] == 2 * PAGE
    assert four.read(0, 4) == b"zero"
    assert observer.pagemap.entry(four.address).present


def test_pageout_from_outside(observer: Observer, four: Mapping, swap: Swap) -> None:
    span = (four.address, four.length_bytes)
    # A page that a child shares would stay.
    assert four.madvise(Advice.DONTFORK).ok

    def outside() -> tuple[int, int]:
        pidfd = os.pidfd_open(os.getppid())
        out = memory.process_madvise(pidfd, [span], Advice.PAGEOUT)
        gone = memory.process_madvise(pidfd, [span], Advice.DONTNEED)
        return out.value, gone.errno

    assert call(outside) == (four.length_bytes, errno.EINVAL)
    assert seen(observer, four) == "S*2 P:c0:ZERO_PAGE -"


def test_locked_pages_stay(observer: Observer, four: Mapping, swap: Swap) -> None:
    assert memory.mlock(four.address, 2 * PAGE).ok and "lo" in vma_of(four).vm_flags
    assert four.madvise(Advice.PAGEOUT, 0, 2).errno == errno.EINVAL
    assert four.madvise(Advice.DONTNEED, 0, 2).errno == errno.EINVAL
    assert four.madvise(Advice.DONTNEED_LOCKED, 0, 1).ok
    assert memory.munlock(four.address, 2 * PAGE).ok
    assert memory.mlock(four.at(3), PAGE, onfault=True).ok
    last = vma_at(four.at(3))
    assert last and {"lo", "lf"} <= last.vm_flags
    assert not observer.pagemap.entry(four.at(3)).present
    memory.munlock(four.address, four.length_bytes)


def test_mremap_moves_the_pages(observer: Observer, four: Mapping) -> None:
    before = [page.entry for page in observer.look(four.address, four.length_bytes).pages]
    with Mapping(4 * PAGE, prot=memory.PROT_NONE) as target:
        moved = mremap(four.address, 4 * PAGE, 4 * PAGE, RemapFlag.MAYMOVE | RemapFlag.FIXED, target.address)
        assert moved.value == target.address
        assert [page.entry for page in observer.look(target.address, 4 * PAGE).pages] == before
        assert vma_at(four.address) is None
        assert mremap(target.address, 4 * PAGE, 4 * PAGE, RemapFlag.FIXED, four.address).errno == errno.EINVAL


def test_mremap_dontunmap_leaves_an_empty_mapping(observer: Observer, four: Mapping) -> None:
    moved = mremap(four.address, 4 * PAGE, 4 * PAGE, RemapFlag.MAYMOVE | RemapFlag.DONTUNMAP)
    assert moved.ok and memory.load(moved.value, 4) == b"zero"
    assert seen(observer, four) == "-*4"
    assert memory.munmap(moved.value, 4 * PAGE).ok


def test_mprotect(four: Mapping) -> None:
    assert memory.mprotect(four.at(1), PAGE, memory.PROT_READ).ok
    assert [vma_at(four.at(page)).permissions for page in range(3)] == ["rw-p", "r--p", "rw-p"]  # type: ignore[union-attr]
    assert memory.write_memory(four.at(1), b"no").errno == errno.EFAULT
    assert memory.mprotect(four.address + 1, PAGE, memory.PROT_READ).errno == errno.EINVAL


def test_a_pipe_refers_to_a_page_and_has_what_is_written_later(four: Mapping) -> None:
    reader, writer = os.pipe()
    assert memory.vmsplice(writer, four.address, 8).value == 8
    memory.store(four.address, b"rewrites")
    assert os.read(reader, 8) == b"rewrites"
    assert memory.vmsplice(writer, four.end, 8).errno == errno.EFAULT
    os.close(reader)
    os.close(writer)


def test_move_pages_says_where_pages_are(four: Mapping) -> None:
    answer, where = memory.move_pages(0, [four.at(page) for page in range(4)])
    # Of the zero page some kernels say EFAULT, some ENOENT.
    assert answer.ok and (where[:2], where[3]) == ([0, 0], -errno.ENOENT) and where[2] < 0
    with pytest.raises(KernelError, match="one node for each"):
        memory.move_pages(0, [four.address], [0, 0])


def test_a_huge_page(observer: Observer, huge: Mapping) -> None:
    frame = observer.pagemap.entry(huge.address).pfn
    assert frame is not None and observer.frames
    names = flag_names(observer.frames.flags(frame))
    assert {"THP", "COMPOUND_HEAD", "ANON", "ANON_EXCLUSIVE"} <= set(names)
    (region,) = observer.pagemap.scan(huge.address, huge.address + HUGE_SIZE_BYTES)
    assert region.end - region.start == HUGE_SIZE_BYTES and PageIs.HUGE in region.categories
    # Protecting a part of it splits the mapping and keeps the page.
    assert memory.mprotect(huge.address, PAGE, memory.PROT_READ).ok
    assert vma_of(huge).sizes_bytes["AnonHugePages"] == 0
    assert observer.frames.flags(frame) & PageFlag.THP


def test_collapse_makes_a_huge_page(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not THP.is_dir() or setting(THP / "enabled") == "never":
        cannot_run("no transparent huge pages", f"echo madvise > {THP}/enabled")
    with Mapping.huge(advise=False) as mapping:
        assert mapping.madvise(Advice.NOHUGEPAGE).ok
        mapping.tag_pages()
        assert mapping.madvise(Advice.COLLAPSE).errno == errno.EINVAL
    with Mapping.huge(advise=False) as mapping:
        memory.prctl(Prctl.SET_THP_DISABLE, 0)
        assert mapping.madvise(Advice.COLLAPSE).errno == errno.EINVAL  # nothing there
        memory.store(mapping.address, b"one page is enough")
        assert mapping.madvise(Advice.COLLAPSE).ok
        assert vma_of(mapping).sizes_bytes["AnonHugePages"] == HUGE_SIZE_BYTES
        assert mapping.read(0, 8) == b"one page"


def test_mapping_looks_after_itself() -> None:
    with Mapping(1, align_bytes=HUGE_SIZE_BYTES) as mapping:
        assert mapping.length_bytes == PAGE and mapping.address % HUGE_SIZE_BYTES == 0
        assert any(each.start == mapping.address and each.end == mapping.end for each in maps())
        mapping.write(PAGE - 1, b"x")
        with pytest.raises(KernelError, match="do not fit"):
            mapping.write(PAGE - 1, b"xy")
        with pytest.raises(OSError, match="Bad address"):
            mapping.read(PAGE - 1, 2)
    assert vma_at(mapping.address) is None
    mapping.close()
    for wrong in (0, -1):
        with pytest.raises(KernelError, match="needs a length"):
            Mapping(wrong)
    with pytest.raises(OSError, match="mmap of"):
        Mapping(1 << 60)


def test_smaps_are_maps() -> None:
    code = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "Py_Version"))
    plain, full = maps(), smaps()
    assert {each.start for each in plain} - {each.start for each in full} == set()
    (vma,) = smaps(0, code, code + 1)
    assert vma.name and vma.inode and code in vma and not vma.anonymous
    assert all(each.sizes_bytes["Size"] == each.end - each.start for each in full)


def test_pagemap_of_another_process(four: Mapping, cannot_run: Callable[[str, str], NoReturn]) -> None:
    with Child(lambda: iter([0])) as child, Pagemap(child.pid) as other, Pagemap() as own:
        assert child.step() == 0
        assert other.entry(four.address).pfn == own.entry(four.address).pfn
    with pytest.raises(KernelError, match="no process"):
        Pagemap(1 << 22)
    with Pagemap() as own, pytest.raises(KernelError, match="outside any address space"):
        own.words(1 << 64, PAGE)


def test_frames_read_in_runs_are_frames_read_alone(observer: Observer, four: Mapping) -> None:
    four.tag_pages()
    frames = observer.frames
    assert frames
    pfns = [entry.pfn for entry in observer.pagemap.entries(four.address, four.length_bytes)]
    known = [pfn for pfn in pfns if pfn is not None]
    assert frames.counts_of(known) == {pfn: frames.count(pfn) for pfn in known}
    assert frames.flags_of(known).keys() == set(known)
    with Frames() as another:
        assert another.count(known[0]) == 1


def test_a_scan_in_many_pieces(observer: Observer) -> None:
    with Mapping(2000 * PAGE) as mapping:
        for page in range(0, 2000, 2):
            memory.store(mapping.at(page), b"x")
        everything = observer.pagemap.scan(mapping.address, mapping.end)
        assert len(everything) == 2000
        present = observer.pagemap.scan(mapping.address, mapping.end, all_of=PageIs.PRESENT)
        assert [each.start for each in present] == [mapping.at(page) for page in range(0, 2000, 2)]
        some = observer.pagemap.scan(mapping.address, mapping.end, all_of=PageIs.PRESENT, max_pages=700)
        assert some == present[:700]
        missing = observer.pagemap.scan(mapping.address, mapping.end, all_of=PageIs.PRESENT, inverted=PageIs.PRESENT)
        assert [each.start for each in missing] == [mapping.at(page) for page in range(1, 2000, 2)]
