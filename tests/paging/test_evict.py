"""How victims leave: neighbours together, and none of them lost where one of them stays."""

from __future__ import annotations

import errno

import pytest

from userfault import paging
from userfault.paging.inject import inject
from userfault.paging.pytest_plugin import check

PAGES = 3000

pytestmark = pytest.mark.usefixtures("can_page")


def written(memory: paging.Region) -> None:
    for page in range(PAGES):
        memory[page * 4096] = page % 251


def intact(memory: paging.Region) -> None:
    for page in range(PAGES):
        assert memory[page * 4096 : page * 4096 + 2] == bytes((page % 251, 0))


@pytest.mark.parametrize("policy", ["clock", "fifo"])
def test_neighbours_leave_by_one_move(policy: str) -> None:
    def child() -> None:
        with paging.open(
            None,
            size_bytes=PAGES * 4096,
            access="c",
            unit="4 KiB",
            resident="4 MiB",
            policy=policy,  # type: ignore[arg-type]
            prefetch_units=0,
        ) as memory:
            written(memory)
            stats = memory.stats()
            assert stats.evict_dirty_count > 1500
            assert stats.move_count < stats.evict_dirty_count / 8
            intact(memory)

    check(child)


@pytest.mark.parametrize("effect", [("errno", errno.EBUSY), ("errno", errno.EINVAL), ("partial", 3 * 4096)])
def test_one_that_can_not_leave_holds_nobody_back(effect: tuple[str, int]) -> None:
    def child() -> None:
        with paging.open(
            None, size_bytes=PAGES * 4096, access="c", unit="4 KiB", resident="4 MiB", prefetch_units=0
        ) as memory:
            once = effect == ("errno", errno.EINVAL)  # said again of a page alone it means that the program unmapped it
            with inject(memory, "move_out", *effect, times=1 if once else 9):  # type: ignore[arg-type]
                written(memory)
            intact(memory)
            assert memory.stats().resident_max_bytes <= 4 << 20

    check(child)


def test_idle_neighbours_come_along() -> None:
    """A written page's neighbours that nobody used since leave with it, and each comes back as it was."""

    def child() -> None:
        with paging.open(
            None, size_bytes=PAGES * 4096, access="c", unit="4 KiB", resident="4 MiB", prefetch_units=0
        ) as memory:
            # Every other page first: victims have no neighbours by age, only by place.
            for start in (0, 1):
                for page in range(start, 1000, 2):
                    memory[page * 4096] = page % 251
            for page in range(1000, PAGES):
                memory[page * 4096] = page % 251
            stats = memory.stats()
            assert stats.move_count < stats.evict_dirty_count / 8
            intact(memory)

    check(child)
