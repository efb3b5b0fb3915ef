"""Compiling equal calls once changes nothing: the program is the same, instruction by instruction."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check import compile as compiler
from userfault.check import template, unit
from userfault.check.body import Body
from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.ir import Program, Spec, Thread
from userfault.check.template import Template, rows_of
from userfault.litmus import build, load
from userfault.litmus.mutants import find_mutant
from userfault.model.lang import atomic, smp_processor_id, wait_until

from . import programs as p


def content(program: Program) -> list[Any]:
    """Everything in a program but the functions that show values, and constants and sources that it does not name."""
    bodies: list[Thread | Spec] = [*program.threads, *program.invariants, *program.finals]
    return [
        [(body.name, list(body.code), [(x.name, x.lo, x.hi, x.thread_id) for x in body.locals]) for body in bodies],
        [thread.live for thread in program.threads],
        [(c.name, c.lo, c.hi, c.init, c.thread_id, c.per_thread, c.owned) for c in program.cells],
        [program.tables, program.failures, program.sometimes],
    ]


@atomic
def bump(s: p.shared, by: int) -> int:
    s.x = (s.x + by) & 7
    return s.x


def twice(s: p.shared, n: int) -> int:
    return bump(s, n) + bump(s, n)


def whose(s: p.shared) -> int:
    if s.flags[smp_processor_id()]:
        return bump(s, 1)
    return twice(s, smp_processor_id())


def value_of(s: p.shared, which: p.other_t) -> int:
    return which.value + s.other.value


def write_other(s: p.shared) -> None:
    s.other.value = 1


def forever(s: p.shared) -> None:
    wait_until(s.y < 0)


def both(s: p.shared, n: int) -> int:
    return n if s.y == 3 else value_of(s, s.other) + value_of(s, s.other)


CALLS = st.sampled_from(
    [
        (twice, (1,)),
        (twice, (2,)),
        (whose, ()),
        (write_other, ()),
        (both, (1,)),
        (p.increment, (True,)),
        (p.increment, (False,)),
        (p.spin, ()),
        (p.drop, ()),
        (p.roll, ()),
        (p.follow, ()),
        (forever, ()),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CALLS, min_size=1, max_size=4), min_size=1, max_size=3))
def test_random_threads_compile_to_the_same(threads: list[list[Any]]) -> None:
    s = p.fresh(len(threads))
    s.other = p.other_t(2)
    s.items.append(s.other)
    specs = [ThreadSpec(f"P{n}", [Call(fn, (s, *args)) for fn, args in calls]) for n, calls in enumerate(threads)]
    once, each = (
        compile_program("t", specs, invariants=[Call(p.never_five, (s,))] * 2, reuse=reuse) for reuse in (True, False)
    )
    assert content(once) == content(each)


def library_program(name: str, era: str, mutant: str | None, reuse: bool, monkeypatch: pytest.MonkeyPatch) -> Program:
    with monkeypatch.context() as patch:
        patch.setattr(build, "compile_program", lambda *a, **k: compiler.compile_program(*a, **k, reuse=reuse))
        return build.Builder(load(name), era).program(mutant)


def test_the_library_compiles_to_the_same_whatever_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other eras, other heaps, a mutant in between: templates of one program serve the next only where nothing differs."""
    order: list[tuple[str, str, str | None]] = [
        ("S1", "v6.8", None),
        ("S1", "v3.10+seed", None),
        (find_mutant("D-2").test, "v6.8", "D-2"),
        ("S1", "v6.8", None),
        ("R10-split", "v6.8", None),
    ]
    for name, era, mutant in order:
        programs = [library_program(name, era, mutant, reuse, monkeypatch) for reuse in (True, False)]
        assert content(programs[0]) == content(programs[1])


@pytest.fixture
def nothing_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: dict[Any, Any] = {}
    for module in (template, unit):
        monkeypatch.setattr(module, "SHARED", shared)


@pytest.mark.usefixtures("nothing_shared")
def test_a_template_serves_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    record = Body.record

    def note(self: Body, key: Any, params: Any, fn: Any, *rest: Any) -> Any:
        recorded.append(fn.__name__)
        return record(self, key, params, fn, *rest)

    monkeypatch.setattr(Body, "record", note)
    counts = []
    for _ in range(2):
        s = p.fresh()
        compile_program("t", [ThreadSpec("P0", [Call(twice, (s, 1)), Call(whose, (s,))])])
        counts.append(recorded.count("bump"))
        recorded.clear()
    assert counts[1] == 0 < counts[0]


@pytest.mark.usefixtures("nothing_shared")
def test_equal_calls_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []
    place = Template.place

    def note(self: Template, *args: Any) -> Any:
        placed.append("whole" if any(row[7] for row in list(rows_of(self.words))[1:]) else "part")
        return place(self, *args)

    monkeypatch.setattr(Template, "place", note)
    s = p.fresh()
    compile_program("t", [ThreadSpec("P0", [Call(twice, (s, 1)), Call(twice, (s, 1))])])
    # That x is written is learnt in the first bump, which is compiled anew whenever it begins the thread; then the thread is
    # compiled again, for having trusted x.
    assert placed == ["part", "part", "part", "whole"]
