"""Small programs in the model's vocabulary that the checker's tests share."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from userfault.model.lang import (
    NULL,
    CpuId,
    PerCpu,
    Range,
    atomic,
    check,
    choose,
    reached,
    smp_processor_id,
    struct,
    wait_until,
)

Small = Annotated[int, Range(0, 7)]
Owner = Annotated[int, CpuId(owned=True)]


@struct
class lock_t:
    owner: Owner = 0


@struct
class shared:
    a: lock_t
    b: lock_t
    x: Small = 0
    y: Small = 0
    flags: Annotated[list[bool], PerCpu()] = NULL
    other: other_t = NULL
    items: list[other_t] = NULL
    drawn: Annotated[list[Annotated[int, Range(-1, 899)]], PerCpu()] = NULL


@struct
class other_t:
    value: Small = 0


class pair_t(NamedTuple):
    low: Small = 0
    high: Small = 0
    ref: other_t = NULL
    set: bool = False


@struct
class holder:
    pair: pair_t = pair_t()


def fresh(cpus: int = 2) -> shared:
    return shared(lock_t(), lock_t(), flags=[False] * cpus, items=[], drawn=[-1] * cpus)


@atomic
def lock(one: lock_t) -> None:
    wait_until(one.owner == 0)
    one.owner = smp_processor_id() + 1


@atomic
def trylock(one: lock_t) -> bool:
    if one.owner != 0:
        return False
    one.owner = smp_processor_id() + 1
    return True


@atomic
def unlock(one: lock_t) -> None:
    check(one.owner == smp_processor_id() + 1, "lock_misuse", "unlock of a lock not held here")
    one.owner = 0


def increment(s: shared, locked: bool) -> int:
    if locked:
        lock(s.a)
    before = s.x
    s.x = before + 1
    if locked:
        unlock(s.a)
    return before


def add_up(s: shared, n: int) -> None:
    check(s.x == n, "sum", "an update was lost")


def a_then_b(s: shared) -> None:
    lock(s.a)
    lock(s.b)
    unlock(s.b)
    unlock(s.a)


def b_then_a(s: shared) -> None:
    lock(s.b)
    lock(s.a)
    unlock(s.a)
    unlock(s.b)


def polite(s: shared, mine: bool) -> None:
    """Dekker's polite fool: each steps back while the other wants in; both may do so forever."""
    while True:
        s.flags[smp_processor_id()] = True
        if mine and not s.flags[1]:
            break
        if not mine and not s.flags[0]:
            break
        s.flags[smp_processor_id()] = False
    s.flags[smp_processor_id()] = False


def spin(s: shared) -> None:
    """A retry loop that ends as soon as the lock's holder lets go."""
    while not trylock(s.a):
        pass
    unlock(s.a)


def roll(s: shared) -> None:
    s.x = choose(3)
    if s.x == 2:
        reached("rolled a two")


def overflow(s: shared) -> None:
    s.x = s.x + 5


def follow(s: shared) -> None:
    s.y = s.other.value


def drop(s: shared) -> None:
    s.other = NULL


def never_five(s: shared) -> None:
    check(s.x != 5, "never_five", "x is five")


def set_five(s: shared) -> None:
    s.x = 5
    s.x = 0
