"""(d) Which pages of 1 GiB were written: `dirty()` beside comparing with a copy and beside hashing.

python bench/paging_dirty.py [--rounds N]: ms for one round of finding the pages out and starting the next epoch, all of it resident.
"""

from __future__ import annotations

import argparse
import time
import zlib

import numpy as np
from paging_common import PAGE, machine, median, reference

from userfault import paging

SIZE = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(machine())
    print(
        "| written | dirty() + mark() | first store to a page, µs | compare with a copy | CRC-32 a page | copy / dirty |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    with paging.open(None, size_bytes=SIZE, access="c", unit="64 KiB") as memory:
        array = np.frombuffer(memory, dtype=np.uint8)
        every = np.arange(0, SIZE, PAGE, dtype=np.uint64)
        reference().read_pages(array.ctypes.data, every.ctypes.data, len(every))
        copy = array.copy()
        old = [0] * (SIZE // PAGE)
        for share in (0.001, 0.01, 0.1):
            ours, stores, compared, hashed = [], [], [], []
            for seed in range(rounds):
                places = np.random.default_rng(seed).permutation(SIZE // PAGE)[: int(SIZE // PAGE * share)]
                memory.mark()
                start = time.perf_counter()
                offsets = np.ascontiguousarray(places.astype(np.uint64) * PAGE)
                ns = np.zeros(len(offsets), dtype=np.uint32)
                spent = reference().touch(array.ctypes.data, offsets.ctypes.data, len(offsets), ns.ctypes.data, 1)
                stores.append(spent / len(offsets) / 1000)
                start = time.perf_counter()
                found = memory.dirty()
                memory.mark()
                ours.append((time.perf_counter() - start) * 1e3)
                assert sum(length for _, length in found) == len(places) * PAGE
                start = time.perf_counter()
                changed = np.flatnonzero((array.reshape(-1, PAGE) != copy.reshape(-1, PAGE)).any(axis=1))
                for page in changed:
                    copy[page * PAGE : (page + 1) * PAGE] = array[page * PAGE : (page + 1) * PAGE]
                compared.append((time.perf_counter() - start) * 1e3)
                if seed == 0:
                    start = time.perf_counter()
                    view = memoryview(array)
                    new = [zlib.crc32(view[at : at + PAGE]) for at in range(0, SIZE, PAGE)]
                    [a != b for a, b in zip(old, new, strict=True)]
                    hashed.append((time.perf_counter() - start) * 1e3)
                    old = new
                    del view
            print(
                f"| {share:.1%} | {median(ours):.2f} ms | {median(stores):.2f} | {median(compared):.0f} ms | {median(hashed):.0f} ms | "
                f"{median(compared) / median(ours):.0f} |",
                flush=True,
            )
        del array


if __name__ == "__main__":
    main()
