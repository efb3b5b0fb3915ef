"""Which era of the model the running kernel is, by what it does: a version number says nothing of what was ported back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from errno import EACCES, EBUSY, EEXIST, EPERM
from functools import cache

from ...kernel.race import Op, Race, run_race
from ...model.era import ERAS
from .. import quirks
from ..needs import move_of_held_part
from .lower import MISSING, READ, SMALL, WRITE

NO_MOVE = "this kernel has no UFFDIO_MOVE, whose tests are skipped; see `userfault conform --profile quirks` for what else differs"
NOT_ALLOWED = "this user may not use userfaultfd, whose tests are skipped; as root, more is known of this kernel"
DIFFERENCES = {
    "v6.8": "a shared zero page does not move, a missing VMA is EINVAL, per-VMA locks are not modelled",
}
"""What an era that stands in for another kernel is known to get wrong."""


@dataclass(frozen=True)
class RunningEra:
    """name: the newest modelled era whose probes the kernel passes; known: what is known to differ, and is not modelled;
    differences: fields of the era that are otherwise on this kernel.
    """

    name: str
    known: str = ""
    differences: Mapping[str, bool] = field(default_factory=dict)


@cache
def running_era() -> RunningEra:
    """What the running kernel is.

    What tells the eras apart is UFFDIO_MOVE. A kernel without it has the newest, of which it does the rest.
    """
    moved = _moves_zero_page()
    if moved < 0 and moved != -EBUSY:
        return RunningEra("v6.18", NOT_ALLOWED if moved in (-EPERM, -EACCES) else NO_MOVE, _differences("v6.18"))
    # To v6.8 the zero page is busy; later it moves like any other.
    if moved == 1:
        return RunningEra("v6.18", "", _differences("v6.18", **split_while_held()))
    return RunningEra("v6.8")


def _differences(name: str, **found: bool) -> Mapping[str, bool]:
    """What was found, and the quirks that are the model's, as far as the era has them otherwise."""
    running = quirks.running()
    # One change brought the batches and the forgetting, after another that frees page tables: who does not forget has batches still
    # where tables are freed.
    found["move_batches"] = found.get("move_keeps_eagain", True) or running.empty_tables_are_freed
    found |= {each: getattr(running, each) for each in quirks.IN_THE_MODEL if each not in running.unasked}
    return {field: answer for field, answer in found.items() if answer != getattr(ERAS[name], field)}


RW = READ | WRITE


def _moves_zero_page() -> int:
    """What UFFDIO_MOVE of a zero page returns: pages, or the negative errno."""
    setup = (
        Op("map", (0, SMALL, 0, RW)),
        Op("touch", (0,)),
        Op("map", (2 * SMALL, SMALL, 0, RW)),
        Op("register", (2 * SMALL, SMALL, MISSING)),
    )
    seen = run_race(Race((setup,), ((0, (Op("move", (2 * SMALL, 0, SMALL, 0), 0),)),), ((),), 1), 1)
    return next(iter(seen.counts), (seen.failure,))[0]


def split_while_held() -> dict[str, bool]:
    """What UFFDIO_MOVE does with a part of a huge page to which somebody has a reference for a moment, in a pipe.

    It says so (EBUSY), or tries again until the reference is gone; and then it may have forgotten that it moved the part.
    """
    moved = move_of_held_part()
    if moved == -EBUSY:
        return {"move_split_is_busy": True}
    if moved not in (1, -EEXIST):
        return {}  # No huge page, or nobody to hold it: not asked.
    return {"move_split_is_busy": False, "move_keeps_eagain": moved == -EEXIST}
