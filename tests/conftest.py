"""What the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from userfault.check.ir import Program
from userfault.kernel.errors import Unavailable
from userfault.kernel.machine import Machine, Swap, machine
from userfault.litmus import compile_test, load

Compiled = Callable[[str, str], Program]

_given_up: list[Unavailable] = []


@pytest.fixture(scope="session")
def compiled() -> Compiled:
    """(test of the library, era) -> its program, compiled once: that is where most of the suite's time goes."""

    @cache
    def once(name: str, era: str) -> Program:
        return compile_test(load(name), era)

    return once


BY_REQUEST = "USERFAULT_LONG"
"""Who skips and names that is not missing anything."""
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def refuse_to_skip(report: Report) -> Report:
    """Where USERFAULT_KERNEL=1 asks for every test, one that skips fails: something is missing, whoever noticed it."""
    if os.environ.get("USERFAULT_KERNEL") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if BY_REQUEST not in why:
            report.outcome = "failed"
            report.longrepr = f"{why.removeprefix('Skipped: ')} (USERFAULT_KERNEL=1 asks for this test)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return refuse_to_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return refuse_to_skip((yield))


@pytest.fixture(scope="session")
def cannot_run() -> Callable[[str, str], NoReturn]:
    """Called with (reason, remedy) by a test that this machine can't run."""

    def give_up(reason: str, remedy: str) -> NoReturn:
        pytest.skip(f"{reason}: {remedy}")

    return give_up


@pytest.fixture(scope="session")
def children() -> Callable[[], set[str]]:
    """The process ids of this process's children, zombies included: other tests may have some that live on."""

    def of_all_threads() -> set[str]:
        return {pid for each in Path("/proc/self/task").glob("*/children") for pid in each.read_text().split()}

    return of_all_threads


@pytest.fixture
def held(cannot_run: Callable[[str, str], NoReturn]) -> Iterator[Machine]:
    """The right to change this machine's settings, for one test."""
    try:
        # Whoever holds it for long is waited for once, and not by every test.
        borrowed = machine(timeout_s=0 if _given_up else 120)
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
