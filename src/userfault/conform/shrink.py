"""A failing sequence made short: operations are left out, and numbers made simple, as long as it fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .compare import Divergence
from .operations import KINDS, Op
from .world import PAGE

Check = Callable[[tuple[Op, ...]], Divergence | int]


def shrink(found: Divergence, check: Check, *, most: int = 2000, seconds: float = 120.0) -> Divergence:
    """The shortest sequence found with at most `most` tries, none of which is begun when `seconds` are over."""
    best = cut(found)
    tries = 0
    improved = True
    end = time.monotonic() + seconds
    while improved and tries < most and time.monotonic() < end:
        improved = False
        for candidate in candidates(best.sequence):
            tries += 1
            if tries > most or time.monotonic() > end:
                break
            result = check(candidate)
            if isinstance(result, Divergence) and result.what == found.what:
                best = cut(result)
                improved = True
                break
    return best


def cut(found: Divergence) -> Divergence:
    """Nothing after the operation that diverges."""
    return Divergence(**{**found.__dict__, "sequence": found.sequence[: found.at + 1]})


def candidates(sequence: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """Shorter ones first, and then as long but simpler ones."""
    size = len(sequence) // 2
    while size > 0:
        for at in range(len(sequence) - size, -1, -size):
            if size < len(sequence):
                yield sequence[:at] + sequence[at + size :]
        size //= 2
    for at, op in enumerate(sequence):
        for args in simpler(op):
            yield (*sequence[:at], op._replace(args=args), *sequence[at + 1 :])


def simpler(op: Op) -> Iterator[tuple[int, ...]]:
    """The same operation with one argument smaller."""
    for at, (name, value) in enumerate(zip(KINDS[op.name].parameters, op.args, strict=True)):
        smaller: list[int] = []
        if name[0] == ":":
            smaller = [PAGE, value // 2 & -PAGE, value - PAGE]
        elif name[0] == "@":
            smaller = [value & -PAGE]
        elif value > 1:
            smaller = [0, 1, value // 2]
        for each in smaller:
            if 0 <= each < value:
                yield (*op.args[:at], each, *op.args[at + 1 :])
