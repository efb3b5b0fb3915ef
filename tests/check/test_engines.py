"""The native engine is the reference engine, only faster: same counts, verdicts, depths and shortest schedules."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check import explore, native
from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.errors import CheckError, TooLarge
from userfault.check.ir import Program
from userfault.check.layout import Layout
from userfault.check.reduce import reduction
from userfault.check.result import Options, Result
from userfault.check.trace import replay, switches
from userfault.litmus import Test, library
from userfault.model.lang import Range, atomic, check, choose, reached, smp_processor_id, struct
from userfault.native import library as native_library
from userfault.native import why_missing
from userfault.paging.pytest_plugin import check as in_child

from . import programs as p
from .test_reuse import bump

LONG = bool(os.environ.get("USERFAULT_LONG"))
"""Every test on every era, each to its end: the reference engine then takes ten minutes."""
STATES_MAX = 400


def eras(test: Test) -> list[str]:
    """One era a test, one that is violated where there is one; all with USERFAULT_LONG=1."""
    violated = [each.era for each in test.expect if each.verdict == "violated"]
    return list(test.eras) if LONG else [*violated, *reversed(test.eras)][:1]


CASES = [(test, era) for test in library() for era in eras(test)]


def test_the_core_is_there_where_a_compiler_is() -> None:
    if shutil.which("cc") or shutil.which("gcc"):
        assert native.available(), why_missing()


def outcome(result: Result) -> tuple[object, ...]:
    failure = result.failure
    livelock = failure is not None and failure.property == "termination"
    depth = 0 if livelock else result.depth
    return result.verdict, failure, result.states, result.transitions, depth, result.reached


def agree(program: Program, options: Options) -> Result:
    reference = explore.explore(program, options)
    fast = native.explore(program, options)
    assert outcome(fast) == outcome(reference)
    if fast.verdict == "violated":
        assert replay(program, fast.schedule, fast.lasso).failure == fast.failure
    return reference


@pytest.mark.parametrize(("test", "era"), CASES, ids=[f"{test.name}@{era}" for test, era in CASES])
def test_both_agree_on_the_library(test: Test, era: str, compiled: Callable[[str, str], Program]) -> None:
    # Of the larger ones the default run compares the beginning: both engines stop at the same level.
    agree(compiled(test.name, era), Options() if LONG else Options(max_states=STATES_MAX))


STATEMENTS = st.sampled_from(
    [
        "s.x = (s.x + 1) & 7",
        "s.y = s.x",
        "v = s.x",
        "s.x = v",
        "s.y = (s.y + v) & 7",
        "lock(s.a)",
        "unlock(s.a)",
        "lock(s.b)",
        "unlock(s.b)",
        "s.flags[smp_processor_id()] = True",
        "v = choose(2)",
        "while not trylock(s.b):\n    s.x = 0",
        "while s.flags[0] and v < 2:\n    v += 1",
        "if s.x == 3:\n    s.other = NULL\nelse:\n    s.y = 1",
        "v = s.other.value",
        "s.items.append(s.other)",
        "for each in s.items:\n    v = each.value",
        "check(s.x != 4, 'four', 'x is four')",
    ]
)


def made(bodies: list[list[str]]) -> Program:
    s = p.fresh(len(bodies))
    s.other = p.other_t(2)
    specs = []
    for number, body in enumerate(bodies):
        text = f"def fn{number}(s: shared) -> None:\n    v = 0\n" + textwrap.indent("\n".join(body), "    ")
        scope: dict[str, Any] = dict(vars(p))
        exec(compile(text, "random.py", "exec"), scope)
        fn = scope[f"fn{number}"]
        fn.__source__ = ("random.py", 1, text.splitlines())
        specs.append(ThreadSpec(f"P{number}", [Call(fn, (s,))]))
    return compile_program("random", specs, invariants=[Call(p.never_five, (s,))])


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(STATEMENTS, min_size=1, max_size=5), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_both_agree_on_random_programs(bodies: list[list[str]], dead_locals: bool, keep_going: bool) -> None:
    program = made(bodies)
    result = agree(program, Options(dead_locals=dead_locals, keep_going=keep_going, liveness=not keep_going))
    if result.failure is not None and result.lasso < 0 and not keep_going:
        slow = explore.fewest_switches(program, result.failure)
        fast = native.fewest_switches(program, result.failure)
        assert slow is not None and fast is not None
        assert (switches(fast), len(fast)) == (switches(slow), len(slow))
        assert replay(program, fast).failure == result.failure


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(STATEMENTS, min_size=1, max_size=5), min_size=2, max_size=3))
def test_two_workers_count_what_one_counts(bodies: list[list[str]]) -> None:
    program = made(bodies)
    one = native.explore(program, Options(keep_going=True, liveness=False))
    two = native.explore(program, Options(keep_going=True, liveness=False, threads=2))
    assert (one.verdict, one.states, one.transitions) == (two.verdict, two.states, two.transitions)


def arrive(s: p.shared) -> None:
    if s.x == 0:
        reached("nothing was to be done")


def test_what_is_reached_before_the_first_step_is_reached() -> None:
    program = compile_program("arrive", [ThreadSpec("P0", [Call(arrive, (p.fresh(),))])])
    assert agree(program, Options()).reached == {"nothing was to be done"}


def hold(s: p.shared) -> None:
    v = choose(40)
    s.x = 0
    s.y = v & 7


def test_two_workers_reduce_as_one_does() -> None:
    s = p.fresh()
    program = compile_program("hold", [ThreadSpec(f"P{n}", [Call(hold, (s,))]) for n in range(3)])
    asked = reduction(program, persistent=False, chains=False, symmetry=True)
    one, *more = (native.explore_reduced(program, asked, Options(threads=threads)) for threads in (1, 2, 3))
    assert one.verdict == "holds" and 20_000 < one.states < native.explore(program).states
    assert {outcome(each) for each in more} == {outcome(one)}


def blink(s: p.shared) -> None:
    for _ in range(4):
        s.flags[smp_processor_id()] = True
        s.flags[smp_processor_id()] = False


@pytest.mark.parametrize("keep_going", [True, False])
def test_two_workers_share_large_levels(keep_going: bool) -> None:
    """Levels of thousands of states, a table that grows in the middle of them, places in the arena that nobody takes."""
    s = p.fresh(5)
    program = compile_program("blink", [ThreadSpec(f"P{n}", [Call(blink, (s,))]) for n in range(5)])
    results = [
        native.explore(program, Options(keep_going=keep_going, liveness=False, threads=threads))
        for threads in (1, 2, 3)
    ]
    assert {(r.verdict, r.states, r.transitions) for r in results} == {("holds", 9**5, 5 * 8 * 9**4)}
    assert all(r.bytes_per_state < 32 for r in results)
    for threads in (1, 2, 3):
        bound = native.explore(program, Options(max_bytes=500_000, threads=threads))
        assert bound.verdict == "bound"
        assert 400_000 < round(bound.states * bound.bytes_per_state) <= 500_000


def draw(s: p.shared) -> None:
    s.drawn[smp_processor_id()] = choose(8)


def test_no_share_is_lost_where_the_table_runs_full() -> None:
    """Levels so much larger than the one before that the table is full before their end, whoever is in the middle of what."""
    s = p.fresh(4)
    program = compile_program("draw", [ThreadSpec(f"P{n}", [Call(draw, (s,))]) for n in range(4)])
    for threads in (1, *[2, 3] * 20):
        result = native.explore(program, Options(keep_going=True, liveness=False, threads=threads))
        assert (result.verdict, result.states, result.transitions) == ("holds", 17**4, 4 * 16 * 17**3), threads


@atomic
def draw_twice(s: p.shared, width: int) -> None:
    s.drawn[smp_processor_id()] = choose(width) * width + choose(width)


def drawn_twice(width: int) -> Program:
    s = p.fresh()
    return compile_program("twice", [ThreadSpec(f"P{n}", [Call(draw_twice, (s, width))]) for n in range(2)])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_wide_choice_is_searched_to_its_end(threads: int) -> None:
    """A share of the level has more successors than the table has room for: a step is left in the middle, and taken up again."""
    options = Options(liveness=False, threads=threads)
    assert agree(drawn_twice(12), options).states == 145**2
    program = drawn_twice(30)
    result = in_child(lambda: native.explore(program, options))
    assert (result.verdict, result.states, result.transitions) == ("holds", 901**2, 2 * 900 * 901)


def draw_often(s: p.shared) -> None:
    s.x = sum_of_choices()


@atomic
def sum_of_choices() -> int:
    total = 0
    for _ in range(17):
        total = total & choose(2)
    return total


@struct
class large:
    x: Annotated[int, Range(0, (1 << 31) - 1)] = 0
    y: Annotated[int, Range(0, (1 << 31) - 1)] = 0
    z: Annotated[int, Range(0, 63)] = 0


def add(s: large, by: int) -> None:
    s.x = (1 << 31) - 1 - by
    s.y = (s.x + 7) & 15


def multiply(s: large, by: int) -> None:
    s.x = by
    side = s.x
    s.y = (side * side * side) & 15


def shift(s: large, by: int) -> None:
    s.z = by
    s.y = (3 << s.z) & 15


def keep_square(s: large, by: int) -> None:
    s.x = by
    square = s.x * s.x
    s.y = 1
    s.y = square >> 40


@pytest.mark.parametrize(("step", "fits", "too_wide"), [(add, 7, 6), (multiply, 1290, 1291), (shift, 29, 30)])
def test_a_value_that_the_native_engine_can_not_hold_is_an_error(
    step: Callable[..., None], fits: int, too_wide: int
) -> None:
    small, wide = (compile_program("t", [ThreadSpec("P0", [Call(step, (large(), by))])]) for by in (fits, too_wide))
    agree(small, Options())
    assert explore.explore(wide).verdict == "holds"
    with pytest.raises(TooLarge, match="computes a value that does not fit in 32 bits"):
        native.explore(wide)


def test_a_local_that_the_native_engine_can_not_hold_is_an_error() -> None:
    program = compile_program("t", [ThreadSpec("P0", [Call(keep_square, (large(), 1 << 30))])])
    assert explore.explore(program).verdict == "holds"
    with pytest.raises(TooLarge, match="does not fit in 32: the native"):
        native.explore(program)


def test_more_choices_than_the_native_engine_holds_are_an_error() -> None:
    program = compile_program("often", [ThreadSpec("P0", [Call(draw_often, (p.fresh(),))])])
    with pytest.raises(TooLarge, match="more than 16 times"):
        native.explore(program)


@struct
class wide:
    many: list[Annotated[int, Range(0, (1 << 30) - 1)]]


def scatter(w: wide, at: int, lost: bool) -> None:
    seen = w.many[0]
    w.many[at] = (1 << 30) - 1 - seen
    w.many[99 - choose(2)] = w.many[at] - 5
    w.many[0] = seen + 1
    if lost:
        check(w.many[0] != 1 or w.many[50] == 0, "lost", "an addition is lost")


@pytest.mark.parametrize("lost", [False, True])
def test_both_agree_on_a_state_of_many_words(lost: bool) -> None:
    w = wide([0] * 100)
    program = compile_program("wide", [ThreadSpec(f"P{n}", [Call(scatter, (w, 25 + 25 * n, lost))]) for n in range(2)])
    assert Layout(program, True).words > 47
    result = agree(program, Options())
    assert result.verdict == ("violated" if lost else "holds")
    for threads in (1, 2):
        fast = native.explore(program, Options(threads=threads, keep_going=True))
        assert (fast.verdict, fast.bytes_per_state > 8 * 47) == (result.verdict, True)
    reduced = reduction(program, True, True, True)
    counts = [engine.explore_reduced(program, reduced) for engine in (explore, native)]
    assert counts[0].verdict == counts[1].verdict
    assert lost or outcome(counts[0]) == outcome(counts[1])
    if result.failure is not None:
        slow, fewest = (engine.fewest_switches(program, result.failure) for engine in (explore, native))
        assert slow is not None and fewest is not None
        assert (switches(fewest), len(fewest)) == (switches(slow), len(slow))
        assert replay(program, fewest).failure == result.failure


def test_a_constant_that_is_too_large_is_an_error_where_it_is_read() -> None:
    """Constants are numbered once a process: those of other programs stand in the way of none."""

    def compiled(by: int) -> Program:
        s = p.fresh(1)
        return compile_program("t", [ThreadSpec("P0", [Call(bump, (s, by))])])

    with pytest.raises(CheckError, match=r"t: 1099511627776 does not fit in 32 bits"):
        native.explore(compiled(1 << 40))
    agree(compiled(2), Options())


def test_a_bound_is_a_bound_on_both() -> None:
    s = p.fresh()
    program = compile_program("t", [ThreadSpec(f"P{n}", [Call(p.increment, (s, True))]) for n in range(2)])
    for engine in (explore, native):
        assert engine.explore(program, Options(max_states=3)).verdict == "bound"


def endless(s: p.shared) -> None:
    s.x = 1
    v = 0
    while v < 5:
        v = v & 3


def test_local_work_without_end_is_an_error_on_both() -> None:
    s = p.fresh()
    program = compile_program("t", [ThreadSpec("P0", [Call(endless, (s,))])])
    for engine in (explore, native):
        with pytest.raises(CheckError, match="does not end"):
            engine.explore(program)


def space_is_short(room_bytes: int) -> tuple[bool, str]:
    """A search that gets memory for its states and none for their parents; then one that fits, with more threads than fit."""
    s = p.fresh()
    program = compile_program("t", [ThreadSpec(f"P{n}", [Call(p.increment, (s, True))]) for n in range(2)])
    counted = native.explore(program, Options(liveness=False)).states
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + room_bytes, -1))
    most = room_bytes // (8 * Layout(program, True).words)
    with pytest.raises(CheckError, match="no memory"):
        native.explore(program, Options(max_states=most * 3 // 4))
    again = native.explore(program, Options(max_states=most // 2, liveness=False, threads=32))
    return again.states == counted, again.verdict


def test_memory_that_is_short_is_given_back() -> None:
    assert in_child(space_is_short, 128 << 20) == (True, "holds")


def interrupted(program: Program) -> bool:
    # A shell's background job, and so a test run in it, ignores the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        native.explore(program, Options(max_states=1 << 30, threads=2))
    except KeyboardInterrupt:
        return True
    return False


def interrupted_late(program: Program) -> bool:
    """Has a search ended that goes on for a while after it was interrupted? It uses what is freed then."""
    lib, ended = native_library(), threading.Event()

    class Late:
        def __getattr__(self, name: str) -> object:
            return getattr(lib, name)

        def uf_explore(self, *arguments: object) -> None:
            assert lib is not None
            lib.uf_explore(*arguments)
            time.sleep(0.5)
            ended.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", Late)
        return interrupted(program) and ended.is_set()


@pytest.mark.parametrize("search", [interrupted, interrupted_late])
def test_a_long_search_can_be_interrupted(search: Callable[[Program], bool]) -> None:
    s = p.fresh(10)
    program = compile_program("long", [ThreadSpec(f"P{n}", [Call(blink, (s,))]) for n in range(10)])
    assert in_child(search, program, deadline_s=30)
