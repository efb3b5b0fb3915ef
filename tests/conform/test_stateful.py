"""hypothesis as shrinker and as generator of sequences, and what happens without it."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from userfault.cli import cli
from userfault.conform import drive, stateful
from userfault.conform.compare import Divergence
from userfault.conform.drive import ConformError, search, shrunk
from userfault.conform.generate import Generator
from userfault.conform.mutants import find_mutant, mutated
from userfault.conform.operations import Op
from userfault.conform.profiles import FORKS, MOVES, PROFILES
from userfault.conform.quirks import Quirks
from userfault.conform.shrink import shrink
from userfault.conform.world import PAGE, World

ADDRESS = st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, 600 * PAGE))


def sequence(name: str, length: int) -> tuple[Op, ...]:
    """Operations that the generator drew, none of which was done."""
    world = World(PROFILES[name].window, hash, Quirks())
    generator = Generator(PROFILES[name], random.Random(1), world)
    return tuple(generator.draw() for _ in range(length))


@given(st.integers(0, 7), ADDRESS, ADDRESS, ADDRESS, st.integers(-1, 1 << 64))
def test_an_operation_is_rebuilt_from_its_numbers(process: int, dst: int, src: int, length: int, mode: int) -> None:
    op = Op(process, "move", (0, dst, src, length, mode))
    assert stateful.rebuilt(op, stateful.numbers(op)) == op


def test_what_was_found_is_handed_over_and_made_short() -> None:
    given = (*sequence("fills", 4), Op(1, "store", (700 * PAGE + 8, 77)), *sequence("fills", 3))
    tried: list[tuple[Op, ...]] = []

    def check(ops: tuple[Op, ...]) -> Divergence | int:
        """Fails where a page is stored to that was mapped before."""
        tried.append(ops)
        mapped: set[int] = set()
        for at, op in enumerate(ops):
            if op.name == "mmap":
                mapped |= set(range(op.args[0] // PAGE, (op.args[0] + op.args[1]) // PAGE))
            if op.name == "store" and op.args[0] // PAGE in mapped and op.args[0] // PAGE >= 3:
                return Divergence(ops, at, "store: contents")
        return len(ops)

    given = (Op(0, "mmap", (690 * PAGE, 20 * PAGE, 3)), *given)
    short = stateful.shrink(Divergence(given, len(given) - 1, "store: contents"), check)
    assert tried[0] == given
    assert short.sequence == (Op(0, "mmap", (3 * PAGE, PAGE, 0)), Op(0, "store", (3 * PAGE, 0)))


def test_what_does_not_come_again_stays_as_it_was() -> None:
    given = sequence("moves", 6)
    found = Divergence(given, 3, "move: result")
    assert stateful.shrink(found, len).sequence == given[:4]


def test_shrinking_ends_when_the_time_is_over() -> None:
    given = sequence("moves", 6)
    found = Divergence(given, 5, "move: result")

    def check(ops: tuple[Op, ...]) -> Divergence | int:
        return Divergence(ops, len(ops) - 1, "move: result")

    for either in (shrink, stateful.shrink):
        assert either(found, check, seconds=0).sequence == given
        assert len(either(found, check, seconds=60).sequence) == 1


@pytest.fixture
def kernel(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if os.geteuid() != 0:
        cannot_run("only root sees page frames (/proc/kpagecount)", "run the tests as root")


@pytest.mark.usefixtures("kernel")
def test_hypothesis_draws_sequences_that_find_a_mutant() -> None:
    with mutated(find_mutant("fork-exclusive")):
        found = search(FORKS, 1, 3000)
        assert isinstance(found, Divergence)
        short = shrunk(FORKS, found)
    assert short.what == found.what
    assert len(short.sequence) <= 4
    assert drive.check(FORKS, short.sequence) == len(short.sequence)


@pytest.mark.usefixtures("kernel")
def test_model_and_kernel_agree_on_what_hypothesis_draws() -> None:
    done = CliRunner().invoke(cli, ["conform", "--hypothesis", "--ops", "250", "--profile", "moves"])
    assert done.exit_code == 0 and "drawn by hypothesis" in done.output, done.output


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "userfault.conform.stateful", None)
    drive.without_hypothesis.cache_clear()
    yield
    drive.without_hypothesis.cache_clear()


@pytest.mark.usefixtures("absent")
def test_without_hypothesis_the_rest_works_and_says_so() -> None:
    with pytest.raises(ConformError, match=r"pip install 'userfault\[conform\]'"):
        search(MOVES, 1, 100)
    refused = CliRunner().invoke(cli, ["conform", "--hypothesis"])
    assert refused.exit_code == 2 and "userfault[conform]" in refused.output


@pytest.mark.usefixtures("kernel", "absent")
def test_a_divergence_is_shown_without_hypothesis() -> None:
    with mutated(find_mutant("account")):
        shown = CliRunner().invoke(cli, ["conform", "--profile", "fills", "--ops", "20000"])
    assert shown.exit_code == 1
    assert "made short without hypothesis" in shown.output and "replay: " in shown.output
