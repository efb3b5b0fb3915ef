"""Faults on purpose: what the kernel, a disk or fate may do to a pager, done to it at a chosen point.

The points are compiled into the C pager and cost one load while nothing is armed. `userfault.paging.pytest_plugin` offers them as a
fixture.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

from .native import MAX_RULES, Rule
from .region import Region

Call = Literal["copy", "move_in", "move_out", "scan", "drop", "poison", "wake", "spawn"]
Transfer = Literal["source_read", "swap_read", "swap_write", "send"]
Step = Literal[
    "event_read",
    "claimed",
    "reserved",
    "victims",
    "taken",
    "saved",
    "filled",
    "installed",
    "woken",
    "before_take",
    "submitted",
    "tick",
    "limbo_locked",
    "limbo_left",
    "limbo_moved",
    "limbo_kept",
]
Point = Call | Transfer | Step
Effect = Literal["errno", "rival", "partial", "delay", "die"]

CALLS: tuple[Call, ...] = get_args(Call)
TRANSFERS: tuple[Transfer, ...] = get_args(Transfer)
STEPS: tuple[Step, ...] = get_args(Step)
_POINTS: tuple[str, ...] = (*CALLS, *TRANSFERS, *STEPS)
_EFFECTS = ("nothing", *get_args(Effect))


class Injection:
    """One armed rule."""

    def __init__(self, region: Region, rule: Rule) -> None:
        self._region, self._rule, self._last = region, rule, 0

    @property
    def struck_count(self) -> int:
        """How often it has struck."""
        if self._region.closed_for_good:
            return self._last
        self._last = int(self._rule.struck_count)
        return self._last


@contextmanager
def inject(
    region: Region, point: Point, effect: Effect, value: int = 0, *, times: int = 1, skip: int = 0
) -> Iterator[Injection]:
    """While the block runs, `effect` strikes the next `times` passes of `point` in the region's pager, after the first `skip`.

    Points: the system calls on memory (`copy`, `move_in`, `move_out`, `scan`, `drop`, `poison`, `wake`), the start of a service thread
    in the place of a dead one (`spawn`), the transfers (`source_read`, `swap_read`, `swap_write`, `send` to a page worker), and the
    steps between them: a fault's message was read (`event_read`), its unit claimed (`claimed`), room made (`reserved`), the content
    read (`filled`), installed (`installed`), announced (`woken`), or asked of a worker (`submitted`); victims are claimed
    (`victims`), looked at (`before_take`), moved out (`taken`), safe (`saved`); a unit's place in limbo is locked (`limbo_locked`),
    the unit out of it (`limbo_left`), a victim's pages there (`limbo_moved`), the victim itself (`limbo_kept`); the guardian's
    rounds (`tick`).

    Effects:

    - `errno`: the call fails with `value` and does nothing (EAGAIN as while an event is queued, EBUSY as of a pinned page, EIO of a disk);
    - `rival`: another resolver has installed the first page a moment before: a real EEXIST (`copy`, `move_in`);
    - `partial`: it does the first `value` bytes only, and says so as the kernel would (a short read or write, a MOVE that stopped);
    - `delay`: `value` microseconds pass;
    - `die`: the service thread ends on the spot, as a thread can only end by the kernel's hand. Threads of the application never do.

    Raises ValueError for what can't be meant, RuntimeError where all rules are in use.
    """
    if point not in _POINTS or effect not in _EFFECTS:
        raise ValueError(f"{effect} at {point}: points are {', '.join(_POINTS)}; effects are {', '.join(_EFFECTS[1:])}")
    if effect == "partial" and (value <= 0 or (value % 4096 and point in CALLS)):
        raise ValueError(f"partial of {value} bytes: a part of a range of pages is a positive multiple of 4096")
    if effect == "die" and point == "spawn":
        raise ValueError("die at spawn: there is no thread yet; a start that fails is the effect errno")
    if effect == "errno" and value not in errnos.errorcode:
        raise ValueError(f"{value} is no errno")
    region.stats()  # raises where the region is not in this process
    rules = region._control.rules
    with region._lock:
        rule = next((rules[i] for i in range(MAX_RULES) if not rules[i].point and not rules[i].effect), None)
        if rule is None:
            raise RuntimeError(f"{MAX_RULES} rules are armed already")
        rule.point, rule.effect, rule.value = _POINTS.index(point), _EFFECTS.index(effect), value
        rule.skip, rule.struck_count = skip, 0
        rule.left = times
        region._control.inject_armed = 1
    injection = Injection(region, rule)
    try:
        yield injection
    finally:
        with region._lock:
            if injection.struck_count >= 0 and not region.closed_for_good:
                rule.left = 0
                rule.effect = rule.point = 0


@contextmanager
def inject_all(region: Region, *rules: tuple[Point, Effect, int]) -> Iterator[list[Injection]]:
    """Several at once, each (point, effect, value) once."""
    with ExitStack() as stack:
        yield [stack.enter_context(inject(region, *rule)) for rule in rules]
