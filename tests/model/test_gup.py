"""get_user_pages_fast over ranges and huge entries: what it gives, what it leaves to the slow way, and what it lets go of."""

from __future__ import annotations

import pytest

from userfault.model import era as eras
from userfault.model.errno import EFAULT
from userfault.model.fork import sys_fork, write_protect_count
from userfault.model.gup import (
    device_write,
    get_user_pages_fast,
    gup_fast,
    pinned_content,
    process_vm_read,
    read_pin,
    taken,
    unpin_user_page,
)
from userfault.model.huge_split import split_huge_page
from userfault.model.lang import ModelError
from userfault.model.machine import machine, new_mm
from userfault.model.mm_types import PmdKind, mm_struct, page, vm
from userfault.model.mmap import do_mmap, sys_munmap
from userfault.model.slab import get_page, put_page

from .scene import (
    CONTENT,
    PAGES,
    every_era,
    huge,
    kind_at,
    modern,
    movers,
    old,
    page_at,
    pte_at,
    read,
    run_in,
    settled,
    start,
    write,
)


def given() -> list[page]:
    return list(machine.cpus[0].pinned)


def kept_pages() -> list[page]:
    return list(machine.cpus[0].kept)


def let_go() -> None:
    cpu = machine.cpus[0]
    cpu.pinned, cpu.kept = cpu.kept + cpu.pinned, []
    while cpu.pinned:
        unpin_user_page(pinned_page())


def pinned_page() -> page:
    p = taken()
    if eras.era.anon_exclusive:
        p.write_pins -= 1
    return p


def small(era: str) -> mm_struct:
    """Pages 0 to 3 mapped, 4 and 5 holes, 6 and 7 read-only; nothing above."""
    mm = start(era)
    do_mmap(mm, 0, 6, int(vm.WRITE), 0)
    do_mmap(mm, 6, 2, int(vm.READ), 6)
    for addr in range(4):
        write(mm, addr, CONTENT)
    return mm


@every_era
def test_a_range_is_pinned_across_page_tables(era: str) -> None:
    mm = small(era)
    assert gup_fast(mm, 1, 3) == 3
    assert given() == [page_at(mm, addr) for addr in (1, 2, 3)]
    let_go()
    settled()
    assert all(page_at(mm, addr).refcount.counter == 1 for addr in range(4))


@every_era
def test_the_fast_way_gives_what_lies_before_the_first_page_that_it_can_not_have(era: str) -> None:
    mm = small(era)
    assert gup_fast(mm, 2, 4) == 2
    let_go()
    assert gup_fast(mm, 6, 1) == 0
    sys_fork(mm, new_mm(PAGES))
    run_in(mm)
    write(mm, 0, b"mine")
    # Page 1 is shared now, and read-only.
    assert gup_fast(mm, 0, 4) == 1
    let_go()
    settled()


@every_era
def test_the_slow_way_faults_in_the_rest(era: str) -> None:
    mm = small(era)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(mm)
    write(mm, 0, b"mine")
    assert device_write(mm, 0, 7, 6) == 6
    assert [read(mm, addr) for addr in range(6)] == [7] * 6
    settled()
    run_in(child)
    assert [read(child, addr) for addr in range(4)] == [CONTENT] * 4


@every_era
def test_a_partial_result_is_no_error_and_nothing_is_an_error(era: str) -> None:
    mm = small(era)
    assert device_write(mm, 4, 7, 4) == 2
    assert device_write(mm, 6, 7, 2) == -EFAULT
    assert device_write(mm, 9, 7, 1) == -EFAULT
    settled()


@movers
def test_a_missing_page_that_is_anothers_to_fill_ends_the_range(era: str) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    do_mmap(mm, 2, 2, int(vm.WRITE | vm.USERFAULT), 2)
    assert get_user_pages_fast(mm, 1, 2) == 1
    let_go()
    assert get_user_pages_fast(mm, 2, 2) == -EFAULT
    assert given() == []
    settled()


@every_era
def test_parts_of_a_huge_page_are_pinned_together(era: str) -> None:
    mm, p = huge(era)
    write(mm, 2, CONTENT)
    assert gup_fast(mm, 0, 3) == 3
    assert given() == [p, machine.pages[p.pfn + 1], page_at(mm, 2)]
    assert p.refcount.counter == 3
    assert p.pincount == (2 if eras.era.anon_exclusive else 0)
    let_go()
    assert p.refcount.counter == 1
    settled()


@every_era
def test_a_huge_page_that_is_shared_or_zero_goes_the_slow_way(era: str) -> None:
    mm, p = huge(era)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(mm)
    assert gup_fast(mm, 0, 2) == 0
    assert device_write(mm, 0, 7, 2) == 2
    assert [read(mm, 0), read(mm, 1)] == [7, 7]
    run_in(child)
    assert read(child, 0) == CONTENT
    settled()
    assert p.refcount.counter > 0


@old
def test_a_pinned_part_outlives_the_split_and_the_mapping(era: str) -> None:
    mm, p = huge(era)
    second = machine.pages[p.pfn + 1]
    assert gup_fast(mm, 1, 1) == 1
    assert (second.tail_users, second.refcount.counter, p.refcount.counter) == (1, 0, 2)
    get_page(p)
    assert split_huge_page(p) == 0
    put_page(p)
    assert (second.tail_users, second.refcount.counter, p.refcount.counter) == (0, 2, 1)
    sys_munmap(mm, 0, 4)
    assert not p.allocated
    assert second.allocated
    let_go()
    assert not second.allocated
    settled()


@old
def test_a_pinned_part_keeps_the_whole_huge_page(era: str) -> None:
    mm, p = huge(era)
    assert get_user_pages_fast(mm, 0, 2) == 2
    sys_munmap(mm, 0, 4)
    first, second = pinned_page(), pinned_page()
    unpin_user_page(first)
    assert p.allocated
    unpin_user_page(second)
    assert not p.allocated
    assert not second.allocated
    with pytest.raises(ModelError):
        unpin_user_page(second)


@modern
def test_a_fork_under_way_makes_the_fast_way_give_all_back(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from userfault.model import gup

    mm, p = huge(era)
    write(mm, 2, CONTENT)
    enable = gup.local_irq_enable

    def fork_begins() -> None:
        enable()
        write_protect_count(mm)

    monkeypatch.setattr(gup, "local_irq_enable", fork_begins)
    assert gup_fast(mm, 0, 3) == 0
    assert given() == []
    assert (p.refcount.counter, p.pincount) == (1, 0)
    # It is still under way: not even begun.
    assert gup_fast(mm, 0, 3) == 0
    settled()


@modern
def test_a_pinned_huge_page_is_not_shared_by_a_fork(era: str) -> None:
    mm, p = huge(era)
    assert gup_fast(mm, 0, 2) == 2
    child = new_mm(PAGES)
    sys_fork(mm, child)
    settled()
    p.data = b"by the device"
    let_go()
    run_in(mm)
    assert read(mm, 0) == b"by the device"
    assert kind_at(mm, 0) == PmdKind.TABLE
    run_in(child)
    assert read(child, 0) == CONTENT


# -- pins for reading -------------------------------------------------------------------------------------------------


def shared(era: str) -> tuple[mm_struct, mm_struct]:
    """Parent and child share what lies at 0; the CPU is the parent's."""
    mm = start(era)
    do_mmap(mm, 0, 4, int(vm.READ | vm.WRITE), 0)
    write(mm, 0, CONTENT)
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(mm)
    return mm, child


def vmread(mm: mm_struct, addr: int) -> object:
    return process_vm_read(mm, addr)


def seen() -> object:
    return pinned_content()


@modern
def test_a_page_that_is_shared_is_copied_for_who_pins_it_to_read(era: str) -> None:
    mm, child = shared(era)
    assert read_pin(mm, 0) == 0
    assert page_at(mm, 0) is kept_pages()[0] is not page_at(child, 0)
    assert kept_pages()[0].anon_exclusive and not pte_at(mm, 0).write and not pte_at(mm, 0).dirty
    write(mm, 0, b"later")
    assert seen() == b"later"
    let_go()
    settled()


@old
def test_a_page_that_is_shared_is_pinned_to_read_as_it_is_before_unsharing(era: str) -> None:
    mm, child = shared(era)
    p = page_at(mm, 0)
    assert vmread(mm, 0) == CONTENT
    assert read_pin(mm, 0) == 0
    assert kept_pages() == [p] and p is page_at(mm, 0) is page_at(child, 0)
    # A write does not reach who reads.
    write(mm, 0, b"later")
    assert page_at(mm, 0) is not p and seen() == CONTENT
    let_go()
    settled()


@old
def test_a_shared_huge_page_is_pinned_to_read_as_it_is_before_unsharing(era: str) -> None:
    mm, p = huge(era, int(vm.READ | vm.WRITE))
    sys_fork(mm, new_mm(PAGES))
    run_in(mm)
    assert vmread(mm, 1) == b"second part"
    assert mm.pmd[0].pmd.page is p
    settled()


@modern
def test_the_last_who_shares_it_keeps_it(era: str) -> None:
    mm, child = shared(era)
    p = page_at(mm, 0)
    sys_munmap(child, 0, 4)
    assert read_pin(mm, 0) == 0
    assert kept_pages() == [p] and not pte_at(mm, 0).write
    let_go()
    settled()


@modern
def test_what_a_device_keeps_to_read_is_no_part_of_later_pins(era: str) -> None:
    mm = small(era)
    mm.mmap[0].vm_flags |= int(vm.READ)
    kept = page_at(mm, 0)
    write(mm, 1, b"other")
    assert read_pin(mm, 0) == 0
    assert vmread(mm, 1) == b"other" and seen() == CONTENT
    assert device_write(mm, 2, 7, 2) == 2
    assert read(mm, 0) == seen() == CONTENT and [read(mm, 2), read(mm, 3)] == [7, 7]
    write_protect_count(mm)
    assert gup_fast(mm, 2, 2) == 0
    # It is pinned as it was: once.
    assert kept_pages() == [kept] and (kept.refcount.counter, kept.pincount, kept.write_pins) == (2, 1, 1)
    settled()


@modern
def test_a_huge_page_is_copied_in_part(era: str) -> None:
    mm, p = huge(era, int(vm.READ | vm.WRITE))
    child = new_mm(PAGES)
    sys_fork(mm, child)
    run_in(mm)
    assert vmread(mm, 1) == b"second part"
    assert page_at(mm, 0) is p and page_at(mm, 1).anon_exclusive
    assert child.pmd[0].pmd.page is p
    settled()


@modern
def test_what_is_no_page_has_no_pin(era: str) -> None:
    mm, _ = shared(era)
    assert vmread(mm, 1) == 0
    assert pte_at(mm, 1).special and not given()
    assert vmread(mm, 5) == -EFAULT
    do_mmap(mm, 5, 1, int(vm.WRITE), 5)
    assert vmread(mm, 5) == -EFAULT
    settled()


@modern
def test_a_reader_may_pin_what_may_not_be_written(era: str) -> None:
    mm, _ = shared(era)
    mm.mmap[0].vm_flags = int(vm.READ)
    assert vmread(mm, 0) == CONTENT
    assert device_write(mm, 0, 1, 1) == -EFAULT
    settled()
