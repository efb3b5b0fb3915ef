"""Bitmaps of pages as ranges of bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from .native import PAGE_BYTES


def runs_of(bits: ctypes.Array[ctypes.c_uint64], pages: int) -> Iterator[tuple[int, int]]:
    """(offset_bytes, length_bytes) of the runs of ones."""
    start = None
    for index, word in enumerate(bits):
        if word == 0:
            if start is not None:
                yield start * PAGE_BYTES, (index * 64 - start) * PAGE_BYTES
                start = None
            continue
        if word == 0xFFFFFFFFFFFFFFFF:
            if start is None:
                start = index * 64
            continue
        for at in range(64):
            page = index * 64 + at
            if word >> at & 1 and page < pages:
                if start is None:
                    start = page
            elif start is not None:
                yield start * PAGE_BYTES, (page - start) * PAGE_BYTES
                start = None
    if start is not None:
        yield start * PAGE_BYTES, (pages - start) * PAGE_BYTES
