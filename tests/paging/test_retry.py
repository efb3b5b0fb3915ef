from __future__ import annotations

import pytest

from userfault.paging.retry import NO_RETRY, RetryPolicy
from userfault.paging.source import is_transient


class Failing:
    """Fails as it is told, then returns 7; the clock goes on by what is slept and by `each_s` a call."""

    def __init__(self, *errors: Exception, each_s: float = 0.0) -> None:
        self.errors, self.each_s = list(errors), each_s
        self.now_s, self.slept_s = 0.0, list[float]()

    def __call__(self) -> int:
        self.now_s += self.each_s
        if self.errors:
            raise self.errors.pop(0)
        return 7

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds

    def tried(self, policy: RetryPolicy) -> int:
        return policy.call(
            self, is_transient, clock=lambda: self.now_s, sleep=self.sleep, uniform=lambda low, high: high
        )


def test_transient_errors_are_tried_again_with_growing_waits() -> None:
    failing = Failing(*[ConnectionResetError()] * 4)
    assert failing.tried(RetryPolicy(attempt_count=5, first_wait_s=1, wait_max_s=3)) == 7
    assert failing.slept_s == [1, 2, 3, 3]


def test_the_wait_is_drawn_between_nothing_and_its_bound() -> None:
    drawn = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    errors = [TimeoutError(), TimeoutError()]

    def failing() -> int:
        if errors:
            raise errors.pop()
        return 7

    policy = RetryPolicy(first_wait_s=1)
    assert policy.call(failing, is_transient, sleep=lambda seconds: None, uniform=uniform) == 7
    assert drawn == [(0, 1), (0, 2)]


def test_other_errors_are_not() -> None:
    failing = Failing(PermissionError(), TimeoutError())
    with pytest.raises(PermissionError):
        failing.tried(RetryPolicy())
    assert failing.slept_s == []


def test_the_last_error_says_how_often_it_was_tried() -> None:
    failing = Failing(*[TimeoutError(str(number)) for number in range(9)])
    with pytest.raises(TimeoutError, match="2") as caught:
        failing.tried(RetryPolicy(attempt_count=3))
    assert caught.value.__notes__ == ["tried 3 times"]


def test_no_retry_starts_after_the_deadline() -> None:
    failing = Failing(*[TimeoutError() for _ in range(9)], each_s=4)
    with pytest.raises(TimeoutError):
        failing.tried(RetryPolicy(attempt_count=9, first_wait_s=1, wait_max_s=1, deadline_s=12))
    assert failing.slept_s == [1, 1]


def test_one_attempt_is_one_attempt() -> None:
    failing = Failing(TimeoutError())
    with pytest.raises(TimeoutError) as caught:
        failing.tried(NO_RETRY)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("fields", [{"attempt_count": 0}, {"deadline_s": -1}, {"first_wait_s": float("nan")}])
def test_an_impossible_policy_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RetryPolicy(**fields)  # type: ignore[arg-type]
