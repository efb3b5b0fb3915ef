"""Sizes as people write them."""

from __future__ import annotations

import operator
import re

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(size: int | str, what: str) -> int:
    """`262144`, `"256 KiB"`, `"1.5GiB"`, `"64k"`: all are powers of 1024. Raises ValueError, naming `what`."""
    if not isinstance(size, str):
        try:
            count: float = operator.index(size)
        except TypeError:
            raise TypeError(
                f"{what}={size!r} is no size: write a whole number of bytes, or a string such as '256 MiB'"
            ) from None
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(?:i?[bB])?\s*", size)
        if not match:
            raise ValueError(f"{what}={size!r} is no size: write a number of bytes, or one with KiB, MiB, GiB or TiB")
        count = float(match[1]) * _UNITS[match[2].lower()]
    if count <= 0:
        raise ValueError(f"{what}={size!r}: a size is more than 0 bytes")
    return int(count)


def format_bytes(count: int) -> str:
    """`256.0 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
