"""What the model shows is computed anew where a lock was taken, and only there: it is the same as all of it computed anew."""

from __future__ import annotations

import random
import zlib
from array import array
from collections.abc import Iterator
from types import ModuleType

import pytest

from userfault.conform.compare import Step, perform
from userfault.conform.generate import Generator
from userfault.conform.profiles import FAMILIES, HUGE, PROFILES, Profile
from userfault.conform.quirks import Quirks
from userfault.conform.words import classes_of
from userfault.conform.world import State, World
from userfault.model import lang, locks, pgtable
from userfault.model.machine import machine


def observed(profile: Profile, seed: int, length: int = 0) -> Iterator[tuple[World, Step]]:
    """A sequence, an operation at a time."""
    world = World(profile.window, zlib.crc32, Quirks(), slice=profile.slice, features=profile.contexts)
    generator = Generator(profile, random.Random(seed), world)
    for _ in range(length or profile.length):
        step = perform(generator.draw(), world)
        assert not step.broken
        yield world, step


def observations(profile: Profile, seed: int) -> Iterator[tuple[list[State], list[State]]]:
    """After each operation of a sequence: what was observed, and what is observed when nothing of it is remembered."""
    for world, step in observed(profile, seed):
        lang.TOUCHED.update(machine.page_tables)
        yield (
            [state._replace(contents=state.words) for state in step.states],
            [state._replace(contents=state.words) for state in world.observe()],
        )


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_what_is_remembered_is_what_is_there(profile: Profile) -> None:
    for seed in range(1 if profile.huge else 3):
        for remembered, computed in observations(profile, seed):
            assert remembered == computed


def test_what_a_page_holds_does_not_depend_on_where_the_look_begins() -> None:
    for seed in range(2):
        for world, _ in observed(FAMILIES, seed, length=40):
            pages = range(world.window.pages)
            for process, mm in enumerate(world.processes):
                if mm is not None:
                    looks = [range(at, at + 7) for at in pages[::7]]
                    pieces = [world._contents(mm, look) for look in looks]
                    assert [sum(each) for each in zip(*pieces, strict=True)] == list(world._contents(mm, pages)), (
                        process
                    )


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ([0, 0, 0], [7, 8, 9]),
        ([3, 4, 5], [3, 4, 5]),
        ([3, 5, 4], [3, 5, 4]),
        ([0, 1, 2], [7, 1, 2]),
        ([3, 0, 5], [3, 8, 5]),
    ],
)
def test_a_page_is_where_it_was_seen_first(known: list[int], shown: list[int]) -> None:
    places = array("Q", [0, *known, 0])
    assert list(classes_of(places, range(1, 4), 7)) == shown
    assert list(places) == [0, *shown, 0]


@pytest.mark.parametrize("module", [locks, pgtable])
def test_what_is_not_noticed_is_found(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "touched", lambda what: None)
    assert any(remembered != computed for remembered, computed in observations(HUGE, 0))
