"""The steps of one function: what a table of functions shows."""

from __future__ import annotations

from userfault.check.count import count_steps

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
