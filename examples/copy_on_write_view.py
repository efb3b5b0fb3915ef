"""A file changed in memory only: the copy grows with what is written, and the file stays as it is. `copy_on_write_view.py FILE`"""

import sys

import numpy as np

from userfault import paging

if len(sys.argv) != 2:
    sys.exit(f"usage: {sys.argv[0]} FILE")

with paging.open(sys.argv[1], access="c", resident="16 MiB") as memory:
    pixels = np.frombuffer(memory, dtype="u1")
    memory.mark()
    pixels[::100_000] = 255
    print(f"{sum(length for _, length in memory.dirty()) >> 10} KiB differ from the file")
    memory.evict()
    print("still", pixels[::100_000].min(), "after leaving memory")
    del pixels
