"""Allocations that fail: what was begun is undone, nothing is lost, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from userfault.model import era as eras
from userfault.model import slab
from userfault.model.errno import ENOMEM
from userfault.model.fork import sys_fork
from userfault.model.lang import ModelError
from userfault.model.machine import config, machine, new_mm
from userfault.model.mm_types import anon_vma_chain, mm_struct, vm
from userfault.model.mmap import do_mmap, exit_mmap
from userfault.model.mremap import sys_mremap
from userfault.model.properties import anon_vmas_are_accounted

from .scene import PAGES, every_era, move, read, run_in, settled, start, two_areas, write


@pytest.fixture(autouse=True)
def _enough_again() -> Iterator[None]:
    yield
    config.MEMORY_IS_SHORT = False


class Short:
    """From now on the allocations with these numbers fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: set[int]) -> None:
        self.failing, self.asked, self.failed = failing, 0, 0
        config.MEMORY_IS_SHORT = True
        monkeypatch.setattr(slab, "allocation_fails", self)

    def __call__(self) -> bool:
        self.asked += 1
        fails = self.asked - 1 in self.failing
        self.failed += fails
        return fails


def accounted() -> None:
    settled()
    anon_vmas_are_accounted()


def forked(mm: mm_struct) -> mm_struct | None:
    """A child, or none and no trace of it."""
    child = new_mm(PAGES)
    result = sys_fork(mm, child)
    accounted()
    if result == 0:
        return child
    assert result == -ENOMEM
    assert len(child.mmap) == 0
    return None


@every_era
@given(failing=st.sets(st.integers(0, 24)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_nothing_is_lost_and_nothing_left_over(
    era: str, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    mm = start(era)
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    do_mmap(mm, 4, 2, int(vm.WRITE), 4)
    Short(monkeypatch, failing)
    assert write(mm, 0, b"ours") == 0
    accounted()
    alive = [mm]
    for _ in range(3):
        child = forked(alive[-1])
        if child is None:
            break
        alive.append(child)
    for number, each in enumerate(alive):
        run_in(each)
        assert read(each, 0) == b"ours"
        assert write(each, 4, bytes([number])) == 0
        accounted()
    # An anon_vma without VMAs of its own is what the next fork may take.
    if len(alive) > 2:
        exit_mmap(alive.pop(1))
        accounted()
    last = forked(alive[-1])
    run_in(alive[-1])
    moved = sys_mremap(alive[-1], 8, 0, 2)
    assert moved in (0, -ENOMEM)
    run_in(alive[-1])
    assert read(alive[-1], 8 if moved == 0 else 0) == b"ours"
    accounted()
    for each in [*alive, *([last] if last else [])]:
        exit_mmap(each)
    accounted()
    assert not any(av.allocated for av in machine.anon_vmas)


@pytest.mark.parametrize("era", ["v3.10+seed", "v6.8", "v6.18"])
def test_a_mover_without_memory_moves_nothing(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mm = start(era)
    two_areas(mm)
    write(mm, 0, b"here")
    short = Short(monkeypatch, {0})
    assert move(mm, 4, 0) == -ENOMEM
    assert read(mm, 0) == b"here"
    accounted()
    assert move(mm, 4, 0) == 1
    assert read(mm, 4) == b"here"
    assert short.failed == 1
    accounted()


def test_without_a_test_that_asks_for_it_no_allocation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    mm = start("v6.8")
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    short = Short(monkeypatch, {0, 1, 2})
    config.MEMORY_IS_SHORT = False
    assert write(mm, 0, b"x") == 0
    assert short.asked == 0


def test_what_is_left_over_is_found() -> None:
    mm = start("v6.8")
    do_mmap(mm, 0, 2, int(vm.WRITE), 0)
    write(mm, 0, b"x")
    anon_vmas_are_accounted()
    av = mm.mmap[0].anon_vma
    av.num_active_vmas += 1
    with pytest.raises(ModelError, match="active VMAs"):
        anon_vmas_are_accounted()
    av.num_active_vmas -= 1
    machine.anon_vma_chains.append(anon_vma_chain(allocated=True))
    with pytest.raises(ModelError, match="memory_leak"):
        anon_vmas_are_accounted()
    assert eras.era.anon_vma_reuse
