"""What the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn

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


@pytest.fixture(scope="session")
def cannot_run() -> Callable[[str, str], NoReturn]:
    """Called with (reason, remedy) by a test that this machine can't run: skips it, or fails it where USERFAULT_KERNEL=1 asks for it."""

    def give_up(reason: str, remedy: str) -> NoReturn:
        if os.environ.get("USERFAULT_KERNEL") == "1":
            pytest.fail(f"{reason}: {remedy} (USERFAULT_KERNEL=1 asks for this test)")
        pytest.skip(f"{reason}: {remedy}")

    return give_up


@pytest.fixture(scope="session")
def children() -> Callable[[], set[str]]:
    """The process ids of this process's children, zombies included: other tests may have some that live on."""

    def of_all_threads() -> set[str]:
        return {pid for each in Path("/proc/self/task").glob("*/children") for pid in each.read_text().split()}

    return of_all_threads
