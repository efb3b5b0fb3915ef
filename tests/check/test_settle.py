"""The native core settles emitted code as analysis.py does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check import analysis, settle, template
from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.encode import words_of
from userfault.check.heap import Heap
from userfault.check.ir import Code, Op, Program
from userfault.check.unit import Unit
from userfault.litmus import build, load
from userfault.native import library

from . import programs as p
from .test_reuse import CALLS, content

pytestmark = pytest.mark.skipif(library() is None, reason="the native core was not built: install gcc")


@contextmanager
def settled_by(native: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "FEW", 0)
        if not native:
            for module in (settle, template):
                patch.setattr(module, "library", lambda: None)
        yield


def both_ways(make: Any) -> tuple[Program, Program]:
    programs = []
    for native in (True, False):
        with settled_by(native):
            programs.append(make())
        assert all(isinstance(thread.code, Code) is native for thread in programs[-1].threads)
    return programs[0], programs[1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CALLS, min_size=1, max_size=4), min_size=1, max_size=3))
def test_random_threads(threads: list[list[Any]]) -> None:
    s = p.fresh(len(threads))
    s.other = p.other_t(2)
    s.items.append(s.other)
    specs = [ThreadSpec(f"P{n}", [Call(fn, (s, *args)) for fn, args in calls]) for n, calls in enumerate(threads)]
    native, python = both_ways(lambda: compile_program("t", specs, invariants=[Call(p.never_five, (s,))]))
    assert content(native) == content(python)


@pytest.mark.parametrize(
    ("name", "era"), [("S1", "v6.8"), ("R10-split", "v6.8"), ("D-33-fork", "v6.8"), ("KSM-walk", "v3.10")]
)
def test_the_library(name: str, era: str) -> None:
    native, python = both_ways(lambda: build.Builder(load(name), era).program(None))
    assert content(native) == content(python)


def row(op: Op, d: int = 0, a: int = 0, b: int = 0, base: int = 0, lo: int = 0, step: bool = False) -> Any:
    return op, d, a, b, base, lo, 0, step, 0


def test_more_lasting_locals_than_fit_in_a_word() -> None:
    """All are written, and read behind a step: 130 of them are alive there."""
    count = 130
    rows = [row(Op.JMP, base=1, step=True), *(row(Op.MOV, d=n, a=-1) for n in range(count))]
    rows += [row(Op.JMP, base=1, step=True), *(row(Op.ADD, d=count, a=n, b=n) for n in range(count)), row(Op.END)]
    unit = Unit("t", Heap([], 1), {}, frozenset(), reuse=False)
    traits: Any = [((0, 1), str, False)] * (count + 1)
    native, python = settle._settled(unit, words_of(rows), traits), analysis.settled(unit, rows, count + 1)
    assert native.lasting == python.lasting == list(range(count))
    assert native.live == python.live
    assert max(native.live.values()) == (1 << count) - 1
    assert list(native.code) == python.code


def test_a_loop_of_jumps_ends() -> None:
    rows = [row(Op.JMP, base=1), row(Op.JMP, base=-1)]
    unit = Unit("t", Heap([], 1), {}, frozenset(), reuse=False)
    assert list(settle._settled(unit, words_of(rows), []).code) == analysis.settled(unit, rows, 0).code


def test_instructions_are_a_sequence() -> None:
    with settled_by(native=True):
        code = build.Builder(load("S1"), "v6.8").program(None).threads[0].code
    assert len(list(code)) == len(code)
    assert code[-1] == code[len(code) - 1] == code[-1:][0]
    with pytest.raises(IndexError):
        code[len(code)]
