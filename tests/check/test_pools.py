"""Of states that differ only in the slots that a pool's objects lie in, one is explored, and nothing is missed by it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check import engine, explore, native
from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.ir import Program
from userfault.check.pools import Mix, Pools
from userfault.check.reduce import reduction
from userfault.check.result import Options
from userfault.check.trace import replay
from userfault.model.lang import NULL, Range, atomic, check, exhausted, reached, struct, wait_until

from .test_reduce import same

Small = Annotated[int, Range(0, 7)]


@struct
class count_t:
    """Part of an item, as a counter is part of a page."""

    __embedded__ = True
    value: Small = 0


@struct
class item:
    count: count_t
    number: Small = 0
    allocated: bool = False
    value: Small = 0
    next: item = NULL


item_p = item


class tagged(NamedTuple):
    mark: Small = 0
    item: item_p = NULL


@struct
class stock:
    items: list[item]
    one: item_p = NULL
    two: item_p = NULL
    pair: tagged = tagged()
    queue: list[item] = NULL
    counter: count_t = NULL
    done: Small = 0


def fresh(slots: int = 3, taken: int = 0) -> stock:
    """A stock of so many slots, the first of them taken."""
    made = [item(count_t(), number=number, allocated=number < taken) for number in range(slots)]
    return stock(made, queue=[])


@atomic
def take(s: stock) -> item:
    for each in s.items:
        if not each.allocated:
            each.allocated = True
            return each
    exhausted("item")
    return s.items[0]


@atomic
def give(s: stock, it: item) -> None:
    check(it.allocated, "bad_free", "freed twice")
    it.next = NULL
    it.allocated = False


def never_five(s: stock) -> None:
    for each in s.items:
        check(not each.allocated or each.value != 5, "never_five", "an item is worth five")


def program(s: stock, *bodies: Any, watched: bool = True) -> Program:
    """Threads of one function each, over a stock whose items are a pool. watched: an invariant reads all of them."""
    return compile_program(
        "pools",
        [ThreadSpec(f"P{number}", [Call(body, (s,))]) for number, body in enumerate(bodies)],
        invariants=[Call(never_five, (s,))] if watched else [],
        pools={item: ("allocated",)},
    )


STATEMENTS = st.sampled_from(
    [
        *["v = take(s)"] * 3,
        "if v is not None:\n    give(s, v)\n    v = NULL",
        "if v is not None:\n    v.value = n",
        "if v is not None:\n    v.value = 2\n    give(s, v)",
        "if v is not None:\n    n = v.value",
        "if v is not None:\n    v.next = s.one",
        "if v is not None:\n    v = v.next",
        "if v is not None:\n    v.count.value = 1\n    s.counter = v.count",
        "if s.counter is not None:\n    s.counter.value = n",
        "if v is not None and len(s.queue) < 2:\n    s.queue.append(v)",
        "for each in s.queue:\n    n = each.value",
        "n = n + 1 & 7",
        "s.one = v",
        "v = s.one",
        "s.two = v",
        "v = s.two",
        "s.pair = tagged(n, v)",
        "v = s.pair.item",
        "if s.one is s.two:\n    reached('one is two')",
        "w = s.one\nif w is not None:\n    check(w.value != 2, 'two', 'one is worth two')",
        "wait_for_one(s)",
    ]
)


@atomic
def wait_for_one(s: stock) -> None:
    wait_until(s.one is not None)


def made(bodies: list[list[str]], slots: int, watched: bool) -> Program:
    functions = []
    for number, body in enumerate(bodies):
        text = f"def fn{number}(s: stock) -> None:\n    v: item = NULL\n    n = 0\n" + textwrap.indent(
            "\n".join(body), "    "
        )
        scope: dict[str, Any] = dict(globals(), reached=reached)
        exec(compile(text, "random.py", "exec"), scope)
        fn = scope[f"fn{number}"]
        fn.__source__ = ("random.py", 1, text.splitlines())
        functions.append(fn)
    return program(fresh(slots), *functions, watched=watched)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(STATEMENTS, min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(3, 5),
    *[st.booleans()] * 4,
)
def test_on_is_off_on_random_programs(
    bodies: list[list[str]], slots: int, twice: bool, watched: bool, persistent: bool, symmetry: bool
) -> None:
    """twice: two threads run the first body."""
    same(made(bodies[:2] + bodies[:1] if twice else bodies, slots, watched), persistent, persistent, symmetry)


def put_one(s: stock) -> None:
    """Takes an item while the other thread does, and keeps it."""
    v = take(s)
    v.value = 1
    s.one = v


def put_two(s: stock) -> None:
    v = take(s)
    v.value = 2
    s.two = v


def put_three(s: stock) -> None:
    v = take(s)
    v.value = 3
    s.pair = tagged(3, v)


def test_who_took_which_slot_does_not_matter() -> None:
    """Three threads have three slots in six ways, in the end in one."""
    two, three = program(fresh(), put_one, put_two), program(fresh(), put_one, put_two, put_three)
    for each, factor in ((two, 1.3), (three, 2.5)):
        asked = reduction(each, persistent=False)
        assert asked.pools is not None
        assert same(each, persistent=False).states * factor < explore.explore(each).states


@pytest.mark.parametrize("threads", [2, 3])
def test_several_workers_merge_what_one_does(threads: int) -> None:
    each = program(fresh(), put_one, put_two, put_three)
    asked = reduction(each, persistent=False)
    one, more = (native.explore_reduced(each, asked, Options(threads=count)) for count in (1, threads))
    assert (one.verdict, one.states, one.transitions) == (more.verdict, more.states, more.transitions)


def test_threads_and_slots_change_places_together() -> None:
    each = program(fresh(), put_one, put_one, put_one)
    threads, both = same(each, False, False, pools=False), same(each, False, False)
    assert both.states < threads.states < native.explore(each).states


# -- what makes slots differ ----------------------------------------------------------------------------------------------


def slots_of(each: Program) -> int:
    found = reduction(each, persistent=False).pools
    return len(found.cells) if found is not None else 0


def test_items_that_somebody_has_in_the_beginning_stay() -> None:
    s = fresh(4, taken=1)
    s.one = s.items[2]
    # One is taken, and one referred to though it is free.
    assert slots_of(program(s, put_one)) == 2


def numbered(s: stock) -> None:
    v = take(s)
    if v.number == 1:
        s.done = 1


def ordered(s: stock) -> None:
    v = take(s)
    w = s.one
    if w is not None and later(v, w):
        s.done = 1
    s.one = v


def later(v: item, w: item) -> bool:
    return v > w  # type: ignore[operator, no-any-return]


def by_place(s: stock) -> None:
    v = s.items[s.done]
    s.one = v


def by_name(s: stock) -> None:
    s.items[2].value = 1


def slowly(s: stock) -> None:
    """A scan in the middle of which others take what it has seen to be free."""
    for each in s.items:
        if not each.allocated:
            each.allocated = True
            break


def test_slots_that_code_can_tell_apart_are_not_taken_for_alike() -> None:
    """By a constant field, by the order of references, by their place in the pool, by name, by how far a scan has come."""
    assert slots_of(program(fresh(), put_one)) == 3
    for each in (numbered, ordered, by_name, slowly):
        assert slots_of(program(fresh(), put_one, each)) == 0, each
    s = fresh()
    assert slots_of(program(s, put_one, by_place, set_done)) == 0


def set_done(s: stock) -> None:
    s.done = 1


# -- free slots that differ ---------------------------------------------------------------------------------------------


@atomic
def wait_for_both(s: stock) -> None:
    wait_until(s.done == 3)


@atomic
def ready(s: stock, bit: int) -> None:
    s.done = s.done | bit


def lend_one(s: stock) -> None:
    v = take(s)
    v.value = 1
    s.one = v
    ready(s, 1)


def lend_two(s: stock) -> None:
    v = take(s)
    v.value = 2
    s.two = v
    ready(s, 2)


def lend_nothing(s: stock) -> None:
    v = take(s)
    s.one = v
    ready(s, 1)


def give_both_back(s: stock) -> item:
    """Both are free, and who takes one now finds what was left in the lower slot."""
    wait_for_both(s)
    v, w = s.one, s.two
    s.one = NULL
    s.two = NULL
    give(s, v)
    give(s, w)
    v = NULL
    w = NULL
    return take(s)


def find_no_one(s: stock) -> None:
    check(give_both_back(s).value != 1, "left", "one was left")


def find_no_two(s: stock) -> None:
    check(give_both_back(s).value != 2, "left", "two was left")


def find_nothing(s: stock) -> None:
    check(give_both_back(s).value != 0, "left", "nothing was left")


@pytest.mark.parametrize("find", [find_no_one, find_no_two])
@pytest.mark.parametrize("lend", [lend_one, lend_nothing])
@pytest.mark.parametrize("persistent", [False, True])
def test_slots_that_are_free_and_differ_are_no_longer_merged(lend: Any, find: Any, persistent: bool) -> None:
    """What is reused first depends on who took first: found out also where nothing on the way is stored."""
    find = find_nothing if lend is lend_nothing and find is find_no_one else find
    each = program(fresh(), lend, lend_two, find, watched=False)
    assert native.explore(each).verdict == "violated"
    assert same(each, persistent, persistent).verdict == "violated"


MIXED = [("apart", lend_one, find_no_one), ("emptied", lend_nothing, find_nothing)]


@pytest.mark.parametrize(("rule", "lend", "find"), MIXED, ids=[rule for rule, *_ in MIXED])
def test_without_the_rule_that_finds_it_out_it_would_be_missed(
    rule: str, lend: Any, find: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = program(fresh(), lend, lend_two, find)
    asked = reduction(each, persistent=False)
    assert explore.explore_reduced(each, asked).mixed == native.explore_reduced(each, asked).mixed == 1
    monkeypatch.setattr(Mix, "pools", lambda mix: mix.apart if rule == "emptied" else 0)
    assert explore.explore_reduced(each, asked).verdict == "holds"


# -- mutants --------------------------------------------------------------------------------------------------------------


def keep(s: stock) -> None:
    """Holds an item by a local alone, while the other's, which is found first, takes the first place."""
    v = take(s)
    v.value = 3
    check(v.value == 3, "mine", "somebody else has written to it")


def keep_in_pair(s: stock) -> None:
    v = take(s)
    s.pair = tagged(4, v)
    v = NULL
    w = s.pair
    w.item.value = 3
    check(w.item.value == 3, "mine", "somebody else has written to it")


def chained(s: stock) -> None:
    v = take(s)
    w = take(s)
    w.value = 4
    v.next = w
    s.two = v
    w = NULL
    u = s.two.next
    check(u.value == 4, "mine", "somebody else has written to it")


def forget_locals(found: Pools) -> None:
    found.frames = [{} for _ in found.frames]


def forget_parts(found: Pools) -> None:
    found.roots = [(cell, sites) for cell, sites in found.roots if all(shift == 0 for shift, _, _ in sites)]


def forget_within(found: Pools) -> None:
    found.inner = [[] for _ in found.inner]


MUTANTS = [
    (forget_locals, [put_one, keep]),
    (forget_parts, [put_one, keep_in_pair]),
    (forget_within, [put_one, chained]),
]


@pytest.mark.parametrize(("forget", "bodies"), MUTANTS, ids=[forget.__name__ for forget, _ in MUTANTS])
def test_references_that_were_forgotten_would_be_noticed(forget: Callable[[Pools], None], bodies: list[Any]) -> None:
    each = program(fresh(4), *bodies)
    assert same(each, persistent=False).verdict == "holds"
    asked = reduction(each, persistent=False)
    assert asked.pools is not None
    forget(asked.pools)
    assert explore.explore_reduced(each, asked).verdict == "violated"
    assert native.explore_reduced(each, asked).verdict == "violated"


# -- the model's pools, and the command's way ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "era"), [("copy+copy", "v6.18"), ("store+dontneed-tables", "v6.18"), ("copy+store", "v6.18")]
)
def test_on_is_off_on_the_library(name: str, era: str, compiled: Callable[[str, str], Program]) -> None:
    for persistent in (False, True):
        same(compiled(name, era), persistent, persistent)


def test_the_slots_of_the_model_are_merged(compiled: Callable[[str, str], Program]) -> None:
    each = compiled("R37-fresh", "v3.10+seed")
    asked = reduction(each, persistent=False)
    with_pools = native.explore_reduced(each, asked)
    without = native.explore_reduced(each, replace(asked, pools=None))
    assert with_pools.verdict == without.verdict == "holds"
    assert with_pools.reached == without.reached
    assert 2 * with_pools.states < without.states


def put_five(s: stock) -> None:
    v = take(s)
    if s.one is not None:
        v.value = 5
    s.two = v


def test_a_counterexample_is_a_run_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large search that finds something by merging slots is done again without: its schedule is true."""
    monkeypatch.setattr(engine, "PLAIN", 8)
    monkeypatch.setattr(engine, "TRIAL", 30)
    each = program(fresh(), put_one, put_five, put_three)
    for name in ("python", "native"):
        on, off = (engine.run(each, options, name) for options in (Options(), Options().unreduced()))
        assert on.verdict == off.verdict == "violated"
        assert (on.failure, on.depth) == (off.failure, off.depth)
        assert replay(each, on.schedule).failure == on.failure


def test_pools_are_left_alone_where_they_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PLAIN", 8)
    pays = program(fresh(), put_one, put_two, put_three)
    alone = program(fresh(), put_one)
    for each, merged in ((pays, True), (alone, False)):
        counts = [
            engine.run(each, replace(Options(persistent=False), pools=pools), "native").states
            for pools in (True, False)
        ]
        assert (counts[0] < counts[1]) == merged
