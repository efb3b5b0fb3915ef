"""What several verbs ask for."""

from __future__ import annotations

from pathlib import Path

import click


def duration(context: click.Context, parameter: click.Parameter, seconds: float) -> float:
    """Callback of an option: what a clock and a C integer of nanoseconds can hold, and not nan, which no range of click's refuses."""
    if not 0 <= seconds <= 1e9:
        raise click.BadParameter(f"{seconds:g} is no duration in seconds: expected 0 to 1e9")
    return seconds


def plain_file(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option: a file that is kept, or none yet. What a device or a pipe gives may have no end."""
    if path is not None and path.exists() and not path.is_file():
        raise click.BadParameter(f"{path} is no plain file, which nothing can be kept in: name another")
    return path
