"""A file changed in memory only: the copy grows with what is written, and the file stays as it is."""

import sys

import numpy as np

from userfault import paging

with paging.open(sys.argv[1], access="c", resident="16 MiB") as memory:
    pixels = np.frombuffer(memory, dtype="u1")
    memory.mark()
    pixels[::100_000] = 255
    print(f"{sum(length for _, length in memory.dirty()) >> 10} KiB differ from the file")
    memory.evict()
    print("still", pixels[0], pixels[100_000], "after leaving memory")
    del pixels
