"""An array that a function computes: a table of 10^9 squares, of which only what is looked at is ever made."""

import numpy as np

from userfault import paging


def squares(offset: int, view: memoryview) -> None:
    """Runs in a process of its own; called for each 64 KiB that somebody touches."""
    numbers = np.frombuffer(view, dtype="<u8")
    numbers[:] = np.arange(offset // 8, offset // 8 + len(numbers), dtype="<u8") ** 2


with paging.open(squares, size_bytes=8 * 10**9, resident="16 MiB") as memory:
    table = np.frombuffer(memory, dtype="<u8")
    print(table[123_456_789])
    print(np.searchsorted(table, np.uint64(10**16)))
    print(memory.stats())
