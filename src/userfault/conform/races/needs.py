"""What a test needs of this machine, and the remedy where it is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from ...kernel.errors import Unavailable
from ...kernel.machine import KSM, THP, machine, setting
from ...kernel.race import Op, Race, run_race
from ...kernel.uapi import Advice
from ...litmus import Test
from .lower import BLOCK, MISSING, MISSING_WP, READ, SMALL, WRITE, Lowered, Unrunnable, lower

RW = READ | WRITE


def _tried(setup: tuple[Op, ...], op: Op) -> int:
    """What an operation returns here, after `setup`; the negative errno of a setup that fails."""
    seen = run_race(Race((setup,), ((0, (Op(op.name, op.args, 0),)),), ((),), 1, huge=False), 1)
    return next(iter(seen.counts), (seen.failure,))[0]


def _userfaultfd() -> str:
    failed = _tried((Op("map", (0, SMALL, 0, RW)),), Op("register", (0, SMALL, MISSING)))
    return "" if failed >= 0 else f"userfaultfd: {os.strerror(-failed)}"


def _move() -> str:
    if problem := _userfaultfd():
        return problem
    setup = (
        Op("map", (0, SMALL, 0, RW)),
        Op("store", (0, 1)),
        Op("map", (2 * SMALL, SMALL, 0, RW)),
        Op("register", (2 * SMALL, SMALL, MISSING)),
    )
    moved = _tried(setup, Op("move", (2 * SMALL, 0, SMALL, 0)))
    return "" if moved == 1 else f"UFFDIO_MOVE: {os.strerror(-moved)}"


def _swap() -> str:
    lines = Path("/proc/swaps").read_text().splitlines()
    return "" if len(lines) > 1 else "no swap is on"


def _thp() -> str:
    failed = _tried((Op("map", (0, BLOCK, 0, RW)),), Op("huge", (0, 1, 0)))
    return "" if failed >= 0 else f"no huge page: {os.strerror(-failed)}"


def _kpagecount() -> str:
    return "" if os.access("/proc/kpagecount", os.R_OK) else "/proc/kpagecount can't be read"


def _wp() -> str:
    failed = _tried((Op("map", (0, SMALL, 0, RW)),), Op("register", (0, SMALL, MISSING_WP)))
    return "" if failed >= 0 else f"write-protection by userfaultfd: {os.strerror(-failed)}"


def _poison() -> str:
    setup = (Op("map", (0, SMALL, 0, RW)), Op("register", (0, SMALL, MISSING)))
    failed = _tried(setup, Op("poison", (0, SMALL)))
    return "" if failed >= 0 else f"UFFDIO_POISON: {os.strerror(-failed)}"


def _guard() -> str:
    failed = _tried((Op("map", (0, SMALL, 0, RW)),), Op("advise", (0, SMALL, Advice.GUARD_INSTALL)))
    return "" if failed >= 0 else f"MADV_GUARD_INSTALL: {os.strerror(-failed)}"


def _io_uring() -> str:
    failed = _tried((Op("map", (0, SMALL, 0, RW)), Op("store", (0, 1))), Op("pin", (0,)))
    return "" if failed >= 0 else f"io_uring: {os.strerror(-failed)}"


def _ksm() -> str:
    try:
        runs = setting(KSM / "run") == "1"
    except Unavailable as error:
        return str(error)
    return "" if runs and os.access("/proc/kpageflags", os.R_OK) else "ksmd does not run, or can't be watched"


def _compaction() -> str:
    return "" if os.access("/proc/sys/vm/compact_memory", os.W_OK) else "/proc/sys/vm/compact_memory can't be written"


NEEDS = {
    "wp": (_wp, "a kernel of v5.7 or later with userfaultfd, as root"),
    "poison": (_poison, "a kernel of v6.6 or later with userfaultfd, as root"),
    "guard": (_guard, "a kernel of v6.13 or later"),
    "io_uring": (_io_uring, "`sysctl kernel.io_uring_disabled=0`"),
    "ksm": (_ksm, "as root, `userfault run` starts it; else `echo 1 > /sys/kernel/mm/ksm/run`"),
    "compaction": (_compaction, "run as root, on a kernel with CONFIG_COMPACTION"),
    "userfaultfd": (_userfaultfd, "run as root, or `sysctl vm.unprivileged_userfaultfd=1`"),
    "move": (_move, "a kernel of v6.8 or later with userfaultfd"),
    "swap": (_swap, "as root, `userfault run` brings its own swap; else `swapon` some"),
    "thp": (_thp, "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"),
    "kpagecount": (_kpagecount, "run as root"),
}


@cache
def missing(need: str) -> str:
    """Why a need is not met here; empty if it is."""
    return NEEDS[need][0]()


@contextmanager
def borrowed(tests: Iterable[Test]) -> Iterator[None]:
    """This machine with what the tests need and the user may set: a swap device of their own, and huge pages on request.

    Where that is not allowed, the tests make do with what there is, or are skipped.
    """
    needs: set[str] = set()
    for test in tests:
        with suppress(Unrunnable):
            needs |= lower(test).needs
    with ExitStack() as stack:
        with suppress(Unavailable):
            if needs & {"swap", "thp", "ksm"}:
                held = stack.enter_context(machine())
                if "ksm" in needs:
                    # As fast as it can: each round waits for it.
                    held.set(KSM / "sleep_millisecs", 0)
                    held.set(KSM / "pages_to_scan", 1000)
                    held.set(KSM / "run", 1)
                if "thp" in needs and setting(THP / "enabled") == "never":
                    held.set(THP / "enabled", "madvise")
                if "swap" in needs:
                    held.private_swap()
        # What was probed before, was probed without.
        missing.cache_clear()
        try:
            yield
        finally:
            missing.cache_clear()


def require(lowered: Lowered) -> None:
    """Raises Unrunnable for the first thing that is missing."""
    for need in sorted(lowered.needs):
        if problem := missing(need):
            raise Unrunnable(problem, NEEDS[need][1])
