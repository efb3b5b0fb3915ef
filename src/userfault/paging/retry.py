"""When a source fails: whether to try again, when, and for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, bounded by a count and a deadline.

    Before retry n (from 1) it waits between 0 and min(`wait_max_s`, `first_wait_s` * 2 ** (n - 1)) seconds, at random, so that many
    waiters do not come back at the same moment. No retry starts after `deadline_s` from the first attempt, and a request that is still
    unanswered then is reported as failed, even where the source never returns. Only transient errors are retried, see
    `Source.is_transient`.
    """

    attempt_count: int = 5
    first_wait_s: float = 0.05
    wait_max_s: float = 2.0
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempt_count < 1:
            raise ValueError(f"attempt_count is {self.attempt_count}: there is at least one attempt")
        for name in ("first_wait_s", "wait_max_s", "deadline_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: a duration in seconds, 0 or more")

    @property
    def answer_s(self) -> float:
        """How long a request may take: who serves it, and is well, gives it up before that."""
        return 2 * self.deadline_s + 1

    def call(
        self,
        function: Callable[[], T],
        is_transient: Callable[[BaseException], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> T:
        """What `function` returns, tried as often as the policy allows; its last error where it never returns.

        The error then carries a note that says how often it was tried.
        """
        end_s = clock() + self.deadline_s
        wait_max_s = self.first_wait_s
        for attempt in range(1, self.attempt_count + 1):
            try:
                return function()
            except Exception as error:
                wait_s = uniform(0, min(wait_max_s, self.wait_max_s))
                is_last = attempt == self.attempt_count or clock() + wait_s > end_s
                if is_last or not is_transient(error):
                    if attempt > 1:
                        error.add_note(f"tried {attempt} times")
                    raise
            sleep(wait_s)
            wait_max_s *= 2
        raise AssertionError("not reached")


NO_RETRY = RetryPolicy(attempt_count=1)


def milliseconds(seconds: float) -> int:
    """What the C side counts in. At least one, and at most 24 days, which is for ever."""
    return int(max(1, min(seconds * 1000, 0x7FFFFFFF)))
