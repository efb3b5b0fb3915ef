"""What the tests of the running kernel share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from userfault.kernel.errors import Unavailable
from userfault.kernel.machine import Machine, Swap, machine

_given_up: list[Unavailable] = []


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Pages on their way to the LRU lists wait in a batch of their CPU, which MADV_PAGEOUT only drains where it runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def held(cannot_run: Callable[[str, str], NoReturn]) -> Iterator[Machine]:
    """The right to change this machine's settings, for one test."""
    try:
        # Whoever holds it for long is waited for once, and not by every test.
        borrowed = machine(timeout_s=0 if _given_up else 20)
        one = borrowed.__enter__()
    except Unavailable as error:
        _given_up.append(error)
        cannot_run(error.reason, error.remedy)
    try:
        yield one
    finally:
        borrowed.__exit__(None, None, None)


@pytest.fixture
def swap(held: Machine, cannot_run: Callable[[str, str], NoReturn]) -> Swap:
    """A swap device of this test's own."""
    try:
        return held.private_swap(32 << 20)
    except Unavailable as error:
        cannot_run(error.reason, error.remedy)
