"""Limits that are met are said, whatever they stop."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from userfault.kernel import probe
from userfault.kernel.child import call
from userfault.kernel.errors import Unavailable, limit_met
from userfault.kernel.machine import machine
from userfault.kernel.maps import maps
from userfault.kernel.pagemap import Frames, Pagemap
from userfault.kernel.syscalls import libc
from userfault.kernel.workers import workers


def limited(which: int, most: int, work: Callable[[], object]) -> str:
    """What stops the work, in a child with a limit."""

    def there() -> str:
        if which == resource.RLIMIT_NPROC and not os.geteuid():
            # A user of whom nothing else runs; modules that are imported late may be root's alone.
            os.setresuid(1_000_000 + os.getpid(), 1_000_000, 0)
            libc.setfsuid(0)
        resource.setrlimit(which, (most, most))
        try:
            work()
        except Unavailable as error:
            return str(error)
        except (OSError, RuntimeError) as error:
            return str(limit_met(error) or repr(error))
        return "nothing"

    return call(there)


def enter(path: Path) -> None:
    with machine(state=path, timeout_s=0):
        pass


@pytest.mark.parametrize("what", [Pagemap, Frames, maps, enter])
def test_no_privilege_is_asked_for_where_too_many_files_are_open(what: Callable[..., object], tmp_path: Path) -> None:
    # The files of the child's own take all numbers.
    most = 4
    why = limited(resource.RLIMIT_NOFILE, most, lambda: what(tmp_path) if what is enter else what())
    assert why == f"too many open files: a process may have {most}: raise that limit, `ulimit -n`"


def use_a_pool() -> None:
    with workers(2) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


@pytest.mark.parametrize("work", [use_a_pool, lambda: call(int)])
def test_no_more_processes(work: Callable[[], object]) -> None:
    assert "no process or thread can be started" in limited(resource.RLIMIT_NPROC, 1, work)


def test_a_pool_that_gets_only_some_of_its_processes_and_threads_does_not_wait_for_ever(
    cannot_run: Callable[[str, str], NoReturn],
) -> None:
    if os.geteuid():
        cannot_run("this user's other processes count", "run it as root, which becomes a user of whom nothing runs")
    # Two processes, two threads and the one that starts them.
    ends = [limited(resource.RLIMIT_NPROC, most, use_a_pool) for most in range(2, 6)]
    assert all("no process or thread can be started" in each for each in ends[:-1])
    assert ends[-1] == "nothing"


def test_a_probe_that_meets_a_limit_says_nothing_of_the_kernel() -> None:
    def ask() -> str:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    found = probe.Probe("none", "none", "none", ask).run()
    assert (found.verdict, found.seen) == ("unknown", "too many open files on this machine")


def test_another_error_is_about_no_limit() -> None:
    assert limit_met(PermissionError(errno.EPERM, "")) is None
    assert limit_met(RuntimeError("something else")) is None
