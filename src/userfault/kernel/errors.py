"""What can go wrong at this machine's kernel."""

from __future__ import annotations


class KernelError(Exception):
    """What failed, on what, why, and what to do."""


class Unavailable(KernelError):
    """Something that this kernel, or this user, does not have: `reason`, and the `remedy`."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[Unavailable], tuple[str, str]]:
        return type(self), (self.reason, self.remedy)
