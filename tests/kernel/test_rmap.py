"""The reverse map of real pages: everybody who maps one is found, wherever it is, and where that can't be told it is said."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from click.testing import CliRunner

from userfault.cli.rmap import command, parse_range, render, runs
from userfault.kernel import memory, rmap
from userfault.kernel.child import Child, become, call
from userfault.kernel.errors import KernelError, Unavailable
from userfault.kernel.machine import KSM, THP, Machine, Swap, setting
from userfault.kernel.maps import Vma
from userfault.kernel.memory import Mapping
from userfault.kernel.pagemap import Entry, Frames, Pagemap
from userfault.kernel.rmap import MappedPage, reverse_map
from userfault.kernel.uapi import HUGE_SIZE_BYTES, PAGE_SIZE_BYTES, Advice, PageFlag, RemapFlag
from userfault.kernel.userfaultfd import Userfault

pytestmark = pytest.mark.usefixtures("one_cpu")

PAGE = PAGE_SIZE_BYTES
ME = os.getpid()


@pytest.fixture(autouse=True)
def needs_frames(cannot_run: Callable[[str, str], NoReturn]) -> None:
    try:
        Frames().close()
    except Unavailable as error:
        cannot_run(error.reason, error.remedy)


@pytest.fixture
def area() -> Iterator[Mapping]:
    with Mapping(4 * PAGE) as mapping:
        yield mapping


def places(page: MappedPage) -> set[tuple[int, int]]:
    return {(each.pid, each.address) for each in page.mappers}


def one(address: int) -> MappedPage:
    (page,) = reverse_map(os.getpid(), address, 1)
    return page


def idle() -> Iterator[None]:
    yield
    yield


def test_a_page_of_ones_own(area: Mapping) -> None:
    area.tag_pages()
    page = one(area.at(1) + 5)
    assert page.address == area.at(1) and page.kind == "anonymous"
    assert places(page) == {(os.getpid(), area.at(1))}
    assert (page.map_count, page.exclusive, page.complete, page.why) == (1, True, True, "")
    assert page.compound is None and not page.mappers[0].huge
    assert "ANON_EXCLUSIVE" in page.flag_names
    assert page.mappers[0].vma.start == area.address and page.mappers[0].command


def test_a_family_shares_until_somebody_writes(area: Mapping) -> None:
    area.tag_pages()
    with Child(idle) as child:
        child.step()
        memory.store(area.at(1), b"own")
        shared, own = reverse_map(os.getpid(), area.address, 2 * PAGE)
        assert places(shared) == {(os.getpid(), area.address), (child.pid, area.address)}
        assert (shared.map_count, shared.exclusive, shared.complete) == (2, False, True)
        assert places(own) == {(os.getpid(), area.at(1))} and own.exclusive
        # Seen from the other side it is the other page.
        (theirs,) = reverse_map(child.pid, area.at(1), 1)
        assert places(theirs) == {(child.pid, area.at(1))} and theirs.exclusive is False


def test_a_page_that_mremap_moved_in_the_child_is_found_elsewhere(area: Mapping) -> None:
    area.tag_pages()

    def moves() -> Iterator[int]:
        target = Mapping(4 * PAGE, prot=memory.PROT_NONE)
        flags = RemapFlag.MAYMOVE | RemapFlag.FIXED
        yield memory.mremap(area.address, 4 * PAGE, 4 * PAGE, flags, target.address).value
        yield 0

    with Child(moves) as child:
        elsewhere = child.step()
        page = one(area.at(2))
        assert places(page) == {(os.getpid(), area.at(2)), (child.pid, elsewhere + 2 * PAGE)} and page.complete


def test_a_process_that_ends_while_it_is_looked_into_maps_nothing(
    area: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    area.tag_pages()

    def moves() -> Iterator[int]:
        target = Mapping(4 * PAGE, prot=memory.PROT_NONE)
        yield memory.mremap(area.address, 4 * PAGE, 4 * PAGE, RemapFlag.MAYMOVE | RemapFlag.FIXED, target.address).value
        yield 0

    with Child(moves) as child:
        child.step()
        populated = rmap._Process.populated

        def after_its_death(process: rmap._Process, vma: Vma) -> Iterator[tuple[int, int]]:
            if process.pid == child.pid:
                child.kill()
            return populated(process, vma)

        monkeypatch.setattr(rmap._Process, "populated", after_its_death)
        page = one(area.at(2))
        assert child.wait() < 0
        assert places(page) == {(os.getpid(), area.at(2))} and page.complete


def test_a_page_that_uffdio_move_moved_is_found_where_it_is(area: Mapping) -> None:
    area.tag_pages()
    before = one(area.address).entry.pfn
    with Mapping(PAGE) as target, Userfault() as uffd:
        uffd.register(target.address, PAGE)
        assert uffd.move(target.address, area.address, PAGE).ok
        page = one(target.address)
        assert page.entry.pfn == before and places(page) == {(os.getpid(), target.address)} and page.complete
    assert one(area.address).kind == "none"


def test_files_and_shared_memory_are_found_by_their_offset() -> None:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 4 * PAGE)
    shared = mmap.MAP_SHARED
    with (
        Mapping(4 * PAGE, flags=shared, fd=fd) as whole,
        Mapping(PAGE, flags=shared, fd=fd, offset_bytes=2 * PAGE) as part,
    ):
        whole.tag_pages()
        part.read(0, 1)
        page = one(whole.at(2))
        assert page.kind == "shared memory" and page.exclusive is None
        assert places(page) == {(os.getpid(), whole.at(2)), (os.getpid(), part.address)} and page.complete
    os.close(fd)
    with open(__file__, "rb") as file, Mapping(PAGE, flags=mmap.MAP_PRIVATE, fd=file.fileno()) as text:
        assert text.read(0, 3) == b'"""'
        page = one(text.address)
        assert page.kind == "file" and (os.getpid(), text.address) in places(page)
        assert page.mappers[0].vma.name.endswith("test_rmap.py") and page.complete


def test_a_huge_page_page_by_page(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not THP.is_dir() or setting(THP / "enabled") == "never":
        cannot_run("no transparent huge pages", f"echo madvise > {THP}/enabled")
    with Mapping.huge() as huge:
        memory.store(huge.address, b"huge")

        def splits_its_mapping() -> Iterator[None]:
            memory.mprotect(huge.address, PAGE, memory.PROT_READ)
            memory.mprotect(huge.address, PAGE, memory.READ_WRITE)
            yield

        with Child(splits_its_mapping) as child:
            child.step()
            pages = reverse_map(os.getpid(), huge.address, HUGE_SIZE_BYTES)
        if not pages[0].flags & PageFlag.THP:
            cannot_run("no huge page was to be had", "echo 1 > /proc/sys/vm/compact_memory")
        assert len(pages) == HUGE_SIZE_BYTES // PAGE
        assert all(page.map_count == 2 and page.complete and len(page.mappers) == 2 for page in pages)
        # The page is one; in the child it is mapped in pieces.
        assert {page.compound for page in pages} == {(pages[0].entry.pfn, len(pages))}
        pieces = {os.getpid(): True, child.pid: False}
        assert all({each.pid: each.huge for each in page.mappers} == pieces for page in pages)
        assert [len(run) for run in runs(pages)] == [len(pages)]
        headline, *mappers = render(pages)
        assert f"of a page of {len(pages)} frames" in headline
        assert sorted(line.endswith("as one huge page") for line in mappers) == [False, True]


def test_ksm_pages_are_found_everywhere(held: Machine) -> None:
    with Mapping(4 * PAGE) as area, Mapping(4 * PAGE) as other:
        for each in (area, other):
            memory.store(each.address, b"the same in both, and in nobody else's memory" * 50)
            assert each.madvise(Advice.MERGEABLE).ok
        held.set(KSM / "sleep_millisecs", 5)
        held.set(KSM / "pages_to_scan", 5000)
        held.set(KSM / "run", 1)
        deadline = time.monotonic() + 60
        page = one(area.address)
        while page.kind != "KSM" and time.monotonic() < deadline:
            time.sleep(0.02)
            page = one(area.address)
        assert page.kind == "KSM"
        assert places(page) == {(os.getpid(), area.address), (os.getpid(), other.address)} and page.complete


def test_swapped_pages_are_found_by_their_slot(area: Mapping, swap: Swap) -> None:
    area.tag_pages()
    area.madvise(Advice.PAGEOUT)
    with Child(idle) as child:
        child.step()
        page = one(area.at(1))
        assert page.kind == "swap" and page.map_count is None
        assert page.swap_device.startswith(f"{swap.path}:")
        assert places(page) == {(os.getpid(), area.at(1)), (child.pid, area.at(1))}
        assert page.complete is None and "does not show how many" in page.why


def test_what_is_no_page(area: Mapping) -> None:
    area.read(0, 1)
    area.madvise(Advice.GUARD_INSTALL, 1, 1)
    zero, guard, nothing, _ = reverse_map(os.getpid(), area.address, 4 * PAGE)
    assert (zero.kind, zero.complete) == ("zero page", None) and "does not count" in zero.why
    assert (guard.kind, guard.mappers) == ("marker", ()) and "guard" in guard.why
    assert (nothing.kind, nothing.entry, nothing.complete) == ("none", 0, True)
    assert [page.kind for page in reverse_map(os.getpid(), area.address, 4 * PAGE, present_only=True)] == [
        "zero page",
        "marker",
    ]


def test_processes_with_one_address_space_are_one_mapper(monkeypatch: pytest.MonkeyPatch, area: Mapping) -> None:
    area.tag_pages()
    with Child(idle) as child:
        child.step()
        assert not rmap._same_memory(os.getpid(), child.pid)
        assert rmap._same_memory(os.getpid(), os.getpid())
        monkeypatch.setattr(rmap, "_same_memory", lambda a, b: True)
        (mapper,) = one(area.address).mappers
        assert {mapper.pid, *mapper.also} == {os.getpid(), child.pid}


def test_hidden_mappers_are_not_passed_over(monkeypatch: pytest.MonkeyPatch, area: Mapping) -> None:
    area.tag_pages()
    with Child(idle) as child:
        child.step()

        def hides(pid: int) -> object:
            if pid == child.pid:
                raise Unavailable("hidden", "look elsewhere") from PermissionError()
            return Pagemap(pid)

        monkeypatch.setattr(rmap, "Pagemap", hides)
        page = one(area.address)
    assert page.complete is False and places(page) == {(os.getpid(), area.address)}
    assert "counts 2 mappings, 1 were found" in page.why and "may not be looked into" in page.why


def replace_pages(area: Mapping) -> int:
    """Fresh pages in `area`; the address that the old ones moved to, where they keep their frames from being given out again."""
    flags = RemapFlag.MAYMOVE | RemapFlag.DONTUNMAP
    moved = memory.mremap(area.address, area.length_bytes, area.length_bytes, flags).or_raise("mremap")
    area.tag_pages()
    return moved


def test_a_page_that_keeps_moving_is_said_to(monkeypatch: pytest.MonkeyPatch, area: Mapping) -> None:
    area.tag_pages()
    real = rmap._search
    old: list[int] = []

    def meanwhile(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        old.append(replace_pages(area))
        return found

    monkeypatch.setattr(rmap, "_search", meanwhile)
    page = one(area.address)
    for address in old:
        memory.munmap(address, area.length_bytes)
    assert page.complete is None and "changed while it was looked for" in page.why


def test_a_page_that_moved_once_is_looked_for_again(monkeypatch: pytest.MonkeyPatch, area: Mapping) -> None:
    area.tag_pages()
    real = rmap._search
    looks: list[int] = []

    def meanwhile(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        looks.append(0 if looks else replace_pages(area))
        return found

    monkeypatch.setattr(rmap, "_search", meanwhile)
    assert one(area.address).complete is True and len(looks) == 2
    memory.munmap(looks[0], area.length_bytes)


def test_a_terabyte_of_nothing_is_not_read(area: Mapping) -> None:
    with Mapping(1 << 40, flags=memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE) as empty:
        memory.store(empty.address + (1 << 39), b"one page")
        (page,) = reverse_map(os.getpid(), empty.address, empty.length_bytes, present_only=True)
        assert page.address == empty.address + (1 << 39) and page.complete
        with pytest.raises(KernelError, match="too many"):
            reverse_map(os.getpid(), empty.address, empty.length_bytes)


def test_an_ordinary_user_is_told(area: Mapping, cannot_run: Callable[[str, str], NoReturn]) -> None:
    if os.geteuid():
        cannot_run("this test becomes an ordinary user", "run it as root")
    area.tag_pages()

    def work() -> None:
        become(65534)
        reverse_map(os.getpid(), area.address, PAGE)

    with pytest.raises(Unavailable, match="run as root"):
        call(work)
    with pytest.raises(Unavailable, match="no process"):
        reverse_map(1 << 22, 0, PAGE)


def test_ranges() -> None:
    assert parse_range(ME, "7f00") == parse_range(ME, "0x7f00") == (0x7F00, 1)
    assert parse_range(ME, "1000-3000") == (0x1000, 0x2000)
    assert parse_range(ME, "1000+64K") == (0x1000, 65536) and parse_range(ME, "1000+4096") == (0x1000, 4096)
    start, length = parse_range(os.getpid(), "[stack]")
    assert start < start + length
    for wrong in ("", "x", "2000-1000", "1000+", "1000+0", "1000+1T", "-5", "ffffffffffffffff+2"):
        with pytest.raises(KernelError, match="is no address or range"):
            parse_range(ME, wrong)
    with pytest.raises(KernelError, match=r"no mapping called \[none\]"):
        parse_range(os.getpid(), "[none]")


def test_the_command(area: Mapping) -> None:
    area.tag_pages()
    memory.madvise(area.at(3), PAGE, Advice.DONTNEED)
    run = CliRunner().invoke
    text = run(command, [str(os.getpid()), f"{area.address:x}-{area.end:x}"])
    assert text.exit_code == 0, text.output
    first, mapper, last = text.output.splitlines()
    assert first.startswith(f"{area.address:#x}-{area.at(3):#x} (3 pages)  anonymous  frame")
    assert "mapped 1x  exclusive  ANON,SWAPBACKED,ANON_EXCLUSIVE  complete" in first
    assert mapper.split()[0] == str(os.getpid()) and "rw-p anonymous" in mapper
    assert last == f"{area.at(3):#x}  none"
    page, *_ = [
        json.loads(line) for line in run(command, [str(os.getpid()), f"{area.address:x}", "--json"]).output.splitlines()
    ]
    assert page["map_count"] == 1 and page["mappers"][0]["address"] == area.address
    area.madvise(Advice.DONTNEED)
    area.read(0, 1)
    assert run(command, [str(os.getpid()), f"{area.address:x}"]).exit_code == 1
    wrong = run(command, [str(os.getpid()), "nonsense"])
    assert wrong.exit_code == 2 and "is no address or range" in wrong.output


def watch(
    pid: int, area: Mapping, between: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *options: str
) -> str:
    """The output of three looks, with something done before the second one."""
    todo = [between]
    monkeypatch.setattr("userfault.cli.rmap.pause", lambda _: todo.pop()() if todo else None)
    return CliRunner().invoke(command, [str(pid), f"{area.address:x}", "--watch", "--times", "3", *options]).output


def test_watching_prints_what_changed(area: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    area.tag_pages()
    output = watch(os.getpid(), area, lambda: area.madvise(Advice.DONTNEED), monkeypatch)
    assert output.count("anonymous  frame") == output.count("  none") == 1 and output.rstrip().endswith("none")


def test_watching_ends_with_the_process(area: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    area.tag_pages()
    with Child(idle) as child:
        child.step()
        assert watch(child.pid, area, child.kill, monkeypatch).rstrip().endswith(f"process {child.pid} has ended")


def test_watching_as_json_is_json_to_the_end(area: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    area.tag_pages()
    with Child(idle) as child:
        child.step()
        *pages, last = map(json.loads, watch(child.pid, area, child.kill, monkeypatch, "--json").splitlines())
        assert [page["kind"] for page in pages] == ["anonymous"] and last == {"pid": child.pid, "ended": True}


def test_watching_ends_with_whoever_reads(area: Mapping) -> None:
    command = [sys.executable, "-c", "from userfault.cli import main; main()", "rmap", str(ME), f"{area.address:x}"]
    with subprocess.Popen([*command, "--watch", "--interval", "1e9"], stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(timeout=60) == 141


def test_what_is_no_page_of_the_process_s_own_is_none() -> None:
    """[vsyscall] lies above all that a process can map, where PAGEMAP_SCAN says EFAULT."""
    assert [page.kind for page in reverse_map(os.getpid(), 0xFFFFFFFFFF600000, PAGE)] == ["none"]
    with pytest.raises(KernelError, match="too many for one question: ask for a part of at most"):
        reverse_map(os.getpid(), 0, 0xFFFFFFFFFFFFFFFF)


def test_the_kinds_of_runs() -> None:
    def page(index: int, **changes: object) -> MappedPage:
        values: dict[str, object] = {
            "address": index * PAGE,
            "entry": Entry(0),
            "kind": "none",
            "map_count": None,
            "flags": PageFlag(0),
            "mappers": (),
            "complete": True,
        }
        return MappedPage(**{**values, **changes})  # type: ignore[arg-type]

    pages = [page(0), page(1), page(2, kind="swap"), page(3, kind="swap"), page(4)]
    assert [[each.address // PAGE for each in run] for run in runs(pages)] == [[0, 1], [2], [3], [4]]
