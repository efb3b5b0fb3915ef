"""The steps of one function: what a table of functions shows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

import pytest

from userfault.check.count import count_steps
from userfault.check.errors import CheckError, CompileError

from . import programs as p


def helper(s: p.shared) -> None:
    s.y = s.x


def outer(s: p.shared, n: int) -> None:
    helper(s)
    helper(s)
    if n > 3:
        s.x = s.other.value
    p.lock(s.a)


def other(s: p.shared) -> None:
    outer(s, 1)
    s.x += 1


def world() -> p.shared:
    s = p.fresh()
    s.other = p.other_t(1)
    return s


def test_helpers_count_once_a_call_and_functions_of_the_table_for_themselves() -> None:
    # helper reads and writes; nobody writes s.other or its value, nor which lock s.a is; a lock operation is one step.
    assert count_steps([other], [outer, other], [world()]) == {outer: 2 * 2 + 1 + 1, other: 2}
    # As a helper, outer is known to be given 1, and ends the sooner.
    assert count_steps([other], [other], [world()]) == {other: 2 * 2 + 1 + 2}
    assert count_steps([other], [outer, other, helper], [world()]) == {helper: 2, outer: 2, other: 2}


def test_what_another_function_writes_costs_a_step_to_read() -> None:
    assert count_steps([outer, p.drop], [outer, p.drop], [world()])[outer] == 2 * 2 + 2 + 1


def test_only_what_the_starts_come_to_is_counted() -> None:
    # Nobody that helper leads to writes s.x.
    assert count_steps([helper], [outer, helper], [world()]) == {helper: 1}


def writer(s: p.shared) -> None:
    s.x = 1
    helper(s)


def test_the_order_of_the_starts_is_of_no_account() -> None:
    starts: list[Callable[..., Any]] = [writer, outer, helper, other]
    counts = [count_steps(order, starts, [world()]) for order in permutations(starts)]
    assert all(each == counts[0] for each in counts)
    # What others write makes it a step, whoever was counted last.
    assert counts[0][helper] == 2


def printing(s: p.shared) -> None:
    s.x = 1
    print(s)


class wide(NamedTuple):
    """Four integers of which no range is declared: more than the checker's words hold."""

    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0


def telling(s: p.shared) -> None:
    if wide(a=s.x) == wide(a=1):
        s.y = 1


def test_a_function_outside_the_subset_is_named_and_the_others_are_counted() -> None:
    refused: dict[Callable[..., Any], CheckError] = {}
    some = [other, printing, telling]
    assert count_steps(some, [printing, telling, helper], [world()], refused=refused).keys() == {other, helper}
    assert refused.keys() == {printing, telling}
    assert "test_count.py" in str(refused[printing]) and "32 bits" in str(refused[telling])
    with pytest.raises(CompileError):
        count_steps([printing], [], [world()])
