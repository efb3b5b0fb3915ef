"""What this machine must have for a test or for a sequence: tried, never read off a version."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Callable, Iterable
from errno import EEXIST
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..kernel.errors import Unavailable, limit_met
from ..kernel.machine import KSM, setting
from ..kernel.memory import Mapping, load, madvise, process_madvise, store
from ..kernel.pagemap import known_categories
from ..kernel.race import Op, Race, run_race
from ..kernel.uapi import HUGE_SIZE_BYTES as BLOCK
from ..kernel.uapi import PAGE_SIZE_BYTES as SMALL
from ..kernel.uapi import Advice, Feature, PageIs, RegisterMode
from ..kernel.userfaultfd import supported_features
from . import words as w

READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
MISSING, MISSING_WP = RegisterMode.MISSING, RegisterMode.MISSING | RegisterMode.WP
RW = READ | WRITE
PAGETYPEINFO = Path("/proc/pagetypeinfo")


def _tried(setup: tuple[Op, ...], op: Op) -> int:
    """What an operation returns here, after `setup`; the negative errno of a setup that fails.

    Raises Unavailable where it is a limit of this process's that is met.
    """
    seen = run_race(Race((setup,), ((0, (Op(op.name, op.args, 0),)),), ((),), 1, huge=False), 1)
    returned = next(iter(seen.counts), (seen.failure,))[0]
    if returned in (-errno.EMFILE, -errno.ENFILE) and (limit := limit_met(OSError(-returned, ""))):
        raise limit
    return returned


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


HELD_MS = 50


def move_of_held_part() -> int:
    """What UFFDIO_MOVE of a part of a huge page returns to which a pipe refers for HELD_MS: pages, or the negative errno."""
    setup = (
        Op("map", (0, BLOCK, 0, RW)),
        Op("huge", (0, 1, 0)),
        Op("advise", (SMALL, SMALL, Advice.DONTNEED)),
        Op("vmsplice", (2 * SMALL, 0)),
        Op("map", (2 * BLOCK, BLOCK, 0, RW)),
        Op("register", (2 * BLOCK, BLOCK, MISSING)),
    )
    mover = (Op("move", (2 * BLOCK, 0, SMALL, 0), 0),)
    holder = (Op("event", (HELD_MS,)), Op("splice", (0, 0)))
    seen = run_race(Race((setup,), ((0, mover), (0, holder)), ((),), 1, huge=True), 1)
    return next(iter(seen.counts), (0,))[0]


def _held_split() -> str:
    # Where there is no huge page, or no move, none is refused.
    tries = move_of_held_part() in (1, -EEXIST)
    return "UFFDIO_MOVE of a part of a huge page that somebody refers to tries for ever (F-11)" if tries else ""


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


def _process_madvise() -> str:
    with Mapping(SMALL) as area:
        handle = os.pidfd_open(os.getpid())
        advised = process_madvise(handle, [(area.address, SMALL)], Advice.DONTNEED)
        os.close(handle)
    return "" if advised.ok else f"process_madvise of any advice: {os.strerror(advised.errno)}"


def _collapse() -> str:
    with Mapping(2 * BLOCK) as area:
        block = (area.address + BLOCK - 1) & -BLOCK
        store(block, b"1")
        madvise(block, SMALL, Advice.DONTNEED).or_raise("MADV_DONTNEED")
        load(block, 1)
        done = madvise(block, BLOCK, Advice.COLLAPSE)
    return "" if done.ok else f"MADV_COLLAPSE of pages that are all zero: {os.strerror(done.errno)}"


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


def _huge_migration() -> str:
    try:
        said = re.search(r"^Page block order: +(\d+)", PAGETYPEINFO.read_text(), re.MULTILINE)
    except OSError as error:
        return f"{PAGETYPEINFO} can't be read: {error.strerror}"
    # mm/compaction.c, skip_isolation_on_order (since v6.9; before, it moved small pages alone).
    left = said is None or SMALL << int(said[1]) <= BLOCK
    return "compaction leaves huge pages where they are" if left else ""


def _scan() -> str:
    return "" if known_categories() else "PAGEMAP_SCAN: no such ioctl"


def _guard_bits() -> str:
    return "" if known_categories() & PageIs.GUARD else "PAGEMAP_SCAN has no category GUARD, pagemap no bit of guards"


def _feature(feature: Feature) -> Callable[[], str]:
    def probe() -> str:
        return "" if supported_features() & feature else f"UFFD_FEATURE_{feature.name}: not among the features"

    return probe


class Need(NamedTuple):
    """probe: why it is missing here, empty where it is there. remedy: what to do.

    What conform leaves out where it is missing: operations that sequences then lack, bits of a page's word (words.py) that are not
    compared, a feature that the userfaultfds do without; besides: what else, in words.
    """

    probe: Callable[[], str]
    remedy: str
    operations: tuple[str, ...] = ()
    besides: str = ""
    bits: int = 0
    feature: Feature = Feature(0)

    @property
    def left_out(self) -> str:
        parts = []
        if self.operations:
            parts.append(f"no {', '.join(self.operations)} in sequences")
        if self.besides:
            parts.append(self.besides)
        if self.bits:
            parts.append(f"of a page, {w.names(self.bits)} not compared")
        if self.feature:
            parts.append(f"userfaultfds without {self.feature.name}")
        return "; ".join(parts)


ELSEWHERE = "a kernel that has it (`--kernel` boots one)"
AS_ROOT = f"run as root; where that does not help, {ELSEWHERE}"
NEEDS = {
    "wp": Need(_wp, AS_ROOT),
    "poison": Need(_poison, AS_ROOT, operations=("poison",)),
    "guard": Need(_guard, ELSEWHERE, operations=("guard_install", "guard_remove")),
    "guard-bits": Need(_guard_bits, ELSEWHERE, bits=w.G | w.SCAN_GUARD),
    "pagemap-scan": Need(_scan, ELSEWHERE, bits=w.ALL_SCAN),
    "wp-unpopulated": Need(_feature(Feature.WP_UNPOPULATED), ELSEWHERE, feature=Feature.WP_UNPOPULATED),
    "wp-async": Need(_feature(Feature.WP_ASYNC), ELSEWHERE, feature=Feature.WP_ASYNC),
    "process-madvise": Need(_process_madvise, ELSEWHERE, operations=("process_madvise",)),
    "collapse": Need(_collapse, ELSEWHERE, operations=("collapse",)),
    "io_uring": Need(_io_uring, "`sysctl kernel.io_uring_disabled=0`", operations=("pin", "unpin")),
    "ksm": Need(_ksm, "as root, `userfault run` starts it; else `echo 1 > /sys/kernel/mm/ksm/run`"),
    "compaction": Need(_compaction, "run as root, on a kernel with CONFIG_COMPACTION"),
    "huge-migration": Need(_huge_migration, "`userfault check` explores it on the model"),
    "userfaultfd": Need(
        _userfaultfd, "run as root, `sysctl vm.unprivileged_userfaultfd=1`, or let this user open /dev/userfaultfd"
    ),
    "move": Need(_move, AS_ROOT, operations=("move",)),
    "held-split": Need(
        _held_split,
        "a kernel that says EBUSY (`--kernel` boots one)",
        besides="in sequences, no move of a part of a huge page in use (generate.py)",
    ),
    "swap": Need(_swap, "as root, `userfault run` brings its own swap; else `swapon` some"),
    "thp": Need(_thp, "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"),
    "kpagecount": Need(_kpagecount, "run as root"),
}


@cache
def missing(need: str) -> str:
    """Why a need is not met here; empty if it is."""
    return NEEDS[need].probe()


def left_out() -> frozenset[str]:
    """The needs of conform that this kernel does not meet: what is left out of sequences and of what is compared."""
    return frozenset(name for name, need in NEEDS.items() if need.left_out and missing(name))


def lines(names: Iterable[str]) -> list[str]:
    """For people: what is left out, why, and what to do."""
    return [
        f"left out: {missing(name)} ({NEEDS[name].left_out}); remedy: {NEEDS[name].remedy}" for name in sorted(names)
    ]
