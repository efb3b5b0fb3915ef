"""What the tests of the running kernel share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Pages on their way to the LRU lists wait in a batch of their CPU, which MADV_PAGEOUT only drains where it runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)
