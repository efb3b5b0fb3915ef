"""An array of 8 GiB in 64 MiB of memory: what does not fit waits in an unlinked swap file."""

import numpy as np

from userfault import paging

with paging.open(None, size_bytes=8 << 30, access="c", resident="64 MiB") as memory:
    table = np.frombuffer(memory, dtype="<f8").reshape(-1, 1024)
    for row in range(0, len(table), 8192):
        table[row] = row
    table[:100] += 1
    print(f"{table.nbytes >> 30} GiB, rows {table[0, 0]:.0f} and {table[8192, 5]:.0f}")
    print(f"{memory.stats().resident_max_bytes >> 20} MiB in memory at most")
    del table
