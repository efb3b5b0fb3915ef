"""What the tests share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from userfault.check.ir import Program
from userfault.litmus import compile_test, load

Compiled = Callable[[str, str], Program]


@pytest.fixture(scope="session")
def compiled() -> Compiled:
    """(test of the library, era) -> its program, compiled once: that is where most of the suite's time goes."""

    @cache
    def once(name: str, era: str) -> Program:
        return compile_test(load(name), era)

    return once
