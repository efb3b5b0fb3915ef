"""What the model shows is computed anew where a lock was taken, and only there: it is the same as all of it computed anew."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from userfault.conform.compare import perform
from userfault.conform.generate import Generator
from userfault.conform.profiles import HUGE, PROFILES, Profile
from userfault.conform.quirks import Quirks
from userfault.conform.world import State, World
from userfault.model import lang, locks, pgtable
from userfault.model.machine import machine


def observations(profile: Profile, seed: int) -> Iterator[tuple[list[State], list[State]]]:
    """After each operation of a sequence: what was observed, and what is observed when nothing of it is remembered."""
    world = World(profile.window, zlib.crc32, Quirks(), slice=profile.slice, features=profile.contexts)
    generator = Generator(profile, random.Random(seed), world)
    for _ in range(profile.length):
        step = perform(generator.draw(), world)
        assert not step.broken
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


@pytest.mark.parametrize("module", [locks, pgtable])
def test_what_is_not_noticed_is_found(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "touched", lambda what: None)
    assert any(remembered != computed for remembered, computed in observations(HUGE, 0))
