"""The native engine (not built yet: the reference engine serves)."""

from __future__ import annotations

from .explore import explore, fewest_switches

__all__ = ["available", "explore", "fewest_switches", "why_missing"]


def available() -> bool:
    return False


def why_missing() -> str:
    return "it is not part of this version"
