"""What several verbs ask for."""

from __future__ import annotations

import click


def duration(context: click.Context, parameter: click.Parameter, seconds: float) -> float:
    """Callback of an option: what a clock and a C integer of nanoseconds can hold, and not nan, which no range of click's refuses."""
    if not 0 <= seconds <= 1e9:
        raise click.BadParameter(f"{seconds:g} is no duration in seconds: expected 0 to 1e9")
    return seconds
