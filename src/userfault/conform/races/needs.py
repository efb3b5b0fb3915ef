"""What a litmus test borrows of this machine, and that nothing that it needs is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from ...kernel.errors import Unavailable
from ...kernel.machine import KSM, THP, machine, setting
from ...litmus import Test
from ..needs import NEEDS, missing
from ..sandbox import scan_tirelessly
from .lower import Lowered, Unrunnable, lower

OF_USERFAULTFD = {"move", "wp", "poison"}

_log = logging.getLogger(__name__)


@contextmanager
def borrowed(tests: Iterable[Test]) -> Iterator[None]:
    """This machine with what the tests need and the user may set: a swap device of their own, and huge pages on request.

    Where that can't be had, the tests make do with what there is, or are skipped; why is logged as a warning.
    """
    needs: set[str] = set()
    for test in tests:
        with suppress(Unrunnable):
            needs |= lower(test).needs
    with ExitStack() as stack:
        try:
            if needs & {"swap", "thp", "ksm", "compaction"}:
                held = stack.enter_context(machine())
                if "ksm" in needs:
                    # Each round waits for it.
                    scan_tirelessly(held, 1000)
                    held.set(KSM / "run", 1)
                if needs & {"thp", "compaction"} and setting(THP / "enabled") == "never":
                    held.set(THP / "enabled", "madvise")
                if "swap" in needs:
                    held.private_swap()
        except Unavailable as error:
            _log.warning("%s; the tests make do with this machine as it is", error)
        # What was probed before, was probed without.
        missing.cache_clear()
        try:
            yield
        finally:
            missing.cache_clear()


def require(lowered: Lowered) -> None:
    """Raises Unrunnable for the first thing that is missing; for userfaultfd rather than for what is asked of it."""
    wanted = lowered.needs | {"userfaultfd" for each in lowered.needs if each in OF_USERFAULTFD}
    for need in sorted(wanted, key=lambda each: (each != "userfaultfd", each)):
        if problem := missing(need):
            raise Unrunnable(problem, NEEDS[need].remedy)
