"""Which era of the model the running kernel is, by what it does: a version number says nothing of what was ported back."""

from __future__ import annotations

from errno import EBUSY
from functools import cache

from ...kernel.race import Op, Race, run_race
from ...model.era import ERAS
from .lower import MISSING, READ, SMALL, WRITE

NO_MOVE = "this kernel has no UFFDIO_MOVE, whose tests are skipped; see `userfault conform --profile quirks` for what else differs"
DIFFERENCES = {
    "v6.8": "a shared zero page does not move, a missing VMA is EINVAL, per-VMA locks are not modelled",
}
"""What an era that stands in for another kernel is known to get wrong."""


@cache
def running_era() -> tuple[str, str]:
    """(era, what is known to differ): the newest modelled era whose probes this kernel passes.

    What tells the eras apart is UFFDIO_MOVE. A kernel without it has the newest, of which it does the rest.
    """
    moved = _probe()
    if moved < 0 and moved != -EBUSY:
        return "v6.18", NO_MOVE
    # To v6.8 the zero page is busy; later it moves like any other.
    if moved == 1 and "v6.18" in ERAS:
        return "v6.18", ""
    return "v6.8", DIFFERENCES["v6.8"] if moved == 1 else ""


def _probe() -> int:
    """What UFFDIO_MOVE of a zero page returns: pages, or the negative errno."""
    setup = (
        Op("map", (0, SMALL, 0, READ | WRITE)),
        Op("touch", (0,)),
        Op("map", (2 * SMALL, SMALL, 0, READ | WRITE)),
        Op("register", (2 * SMALL, SMALL, MISSING)),
    )
    seen = run_race(Race((setup,), ((0, (Op("move", (2 * SMALL, 0, SMALL, 0), 0),)),), ((),), 1), 1)
    return next(iter(seen.counts), (seen.failure,))[0]
