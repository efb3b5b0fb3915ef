"""Each quirk changes what the model shows, and the running kernel's are found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from signal import SIGSEGV
from typing import NoReturn

import pytest

from userfault.conform import words as w
from userfault.conform.compare import Step, perform
from userfault.conform.generate import FILLS, Generator
from userfault.conform.needs import NEEDS
from userfault.conform.operations import Op
from userfault.conform.quirks import QUIRKS, Quirks, lines, running
from userfault.conform.world import Window, World
from userfault.model.errno import EEXIST


def test_every_quirk_has_its_row() -> None:
    assert [*(quirk.field for quirk in QUIRKS), "without"] == [each.name for each in fields(Quirks)]


def test_the_running_kernel_has_an_answer_for_each(cannot_run: Callable[[str, str], NoReturn]) -> None:
    try:
        found = running()
    except OSError as error:
        cannot_run(f"no userfaultfd ({error})", "see `userfault probe`")
    assert len(lines(found)) == len(QUIRKS) + len(found.without)


BASE = 1 << 40
WINDOW = Window(BASE, 0, 4)
PAGE = 4096
AREA = [Op(0, "mmap", (0, 4 * PAGE, 3)), Op(0, "store", (0, 7))]
GUARD = [
    Op(0, "register", (0, 0, 4 * PAGE, 1)),
    Op(0, "guard_install", (PAGE, PAGE)),
    Op(0, "copy", (0, PAGE, 0, PAGE, 0)),
]


def last(operations: list[Op], quirks: Quirks) -> Step:
    world = World(WINDOW, lambda data: 1, quirks)
    steps = [perform(op, world) for op in operations]
    assert not steps[-1].broken
    return steps[-1]


@pytest.mark.parametrize("written", [True, False])
def test_holes_count_as_written_or_not(written: bool) -> None:
    words = last(AREA, replace(Quirks(), holes_are_written=written)).states[0].words
    assert bool(words[1] & w.WRITTEN) == written and words[0] & w.WRITTEN


@pytest.mark.parametrize("shown", [True, False])
def test_anonymous_pages_show_the_ksm_bit_or_not(shown: bool) -> None:
    words = last(AREA, replace(Quirks(), anon_shows_ksm=shown)).states[0].words
    assert bool(words[0] & w.KSM) == shown and not words[1] & w.KSM


@pytest.mark.parametrize(("replaced", "result"), [(True, 0), (False, -EEXIST)])
def test_a_fill_replaces_a_guard_or_not(replaced: bool, result: int) -> None:
    outcome = last(AREA + GUARD, replace(Quirks(), fills_replace_guards=replaced)).outcome
    assert outcome is not None and outcome.result == result


def test_an_access_may_go_past_a_window_that_ends_with_a_page_table() -> None:
    world = World(Window(BASE, 510, 2), lambda data: 1, Quirks())
    step = perform(Op(0, "load", (512 * PAGE,)), world)
    assert not step.broken and step.outcome is not None and step.outcome.signal == SIGSEGV


@pytest.mark.parametrize("without", [frozenset(), frozenset({"guard-bits"})])
def test_guards_are_shown_or_not(without: frozenset[str]) -> None:
    quirks = replace(Quirks(), without=without, fills_replace_guards=False)
    word = last(AREA + GUARD, quirks).states[0].words[1]
    assert word & w.S and bool(word & w.G) == bool(word & w.SCAN_GUARD) == (not without)


def test_without_a_scan_its_categories_are_not_compared() -> None:
    words = last(AREA, replace(Quirks(), without=frozenset({"pagemap-scan"}))).states[0].words
    assert words[0] & w.P and words[0] & w.AE and not any(word & w.ALL_SCAN for word in words)


@pytest.mark.parametrize("need", [name for name, need in NEEDS.items() if need.operations])
def test_what_is_not_there_is_not_drawn(need: str) -> None:
    def drawn(without: frozenset[str]) -> set[str]:
        world = World(FILLS.window, lambda data: 1, replace(Quirks(), without=without))
        return set(Generator(FILLS, random.Random(0), world).names)

    absent = set(NEEDS[need].operations)
    assert absent <= drawn(frozenset()) and drawn(frozenset({need})) == drawn(frozenset()) - absent


def test_a_userfaultfd_lacks_the_features_that_the_kernel_lacks() -> None:
    world = World(WINDOW, lambda data: 1, replace(Quirks(), without=frozenset({"wp-async"})))
    assert [(each.wp_unpopulated, each.wp_async) for each in world.contexts] == [
        (False, False),
        (True, False),
        (True, False),
    ]


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(Quirks(), without=frozenset({"guard", "move", "pagemap-scan"}))
    monkeypatch.setattr("userfault.conform.needs.missing", lambda name: f"no {name}")
    said = lines(gone)
    assert "left out: no move (no move in sequences); remedy: a kernel of v6.8 or later with userfaultfd" in said
    assert any("WRITTEN" in line and "not compared" in line for line in said)
    assert any(line.startswith("not applicable fills_replace_guards") for line in said)
