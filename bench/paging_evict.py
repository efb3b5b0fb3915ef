"""(c) What evicting a dirty page costs, beside protecting it, writing it out and dropping it (UFFDIO_WRITEPROTECT, pwrite, MADV_DONTNEED).

python bench/paging_evict.py [--rounds N]: scattered 4 KiB pages of 256 MiB, to a swap file in memory (/dev/shm), µs a page: alone, and
while another thread of the process runs, which every flush of a TLB must interrupt.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
import time

from paging_common import Plain, interleaved, machine, median, offsets_of, ratio, reference, touch

from userfault import paging
from userfault.paging.native import pager_library

SIZE = 256 << 20
BUDGET_PAGES = 16_384


def ours_by_faults(count: int, seed: int) -> float:
    """µs a dirty eviction as it happens: write faults over the budget, less the same faults without a budget."""
    times = []
    for resident in (BUDGET_PAGES * 4096, None):
        with paging.open(
            None, size_bytes=SIZE, access="c", unit="4 KiB", mode="sigbus", resident=resident, swap_directory="/dev/shm"
        ) as m:
            offsets = offsets_of(BUDGET_PAGES + count, SIZE, 4096, seed)
            touch(m._control.base, offsets[:BUDGET_PAGES], write=True)
            start = time.perf_counter()
            touch(m._control.base, offsets[BUDGET_PAGES:], write=True)
            times.append(time.perf_counter() - start)
            if resident:
                assert m.stats().evict_dirty_count >= count - 64
    return (times[0] - times[1]) / count * 1e6


def ours(count: int, seed: int) -> float:
    """µs a dirty eviction that is asked for, page by page as they lie in memory."""
    with paging.open(None, size_bytes=SIZE, access="c", unit="4 KiB", prefetch_units=0, swap_directory="/dev/shm") as m:
        offsets = offsets_of(count, SIZE, 4096, seed)
        touch(m._control.base, offsets, write=True)
        start = time.perf_counter()
        pager_library().pager_evict(m._pager, 0, ctypes.c_uint64(SIZE))
        spent = time.perf_counter() - start
        assert m.stats().evict_dirty_count == count
        return spent / count * 1e6


def theirs(count: int, seed: int) -> float:
    plain = Plain(SIZE)
    lib = reference()
    assert not lib.protected_start(plain.base, SIZE)
    offsets = offsets_of(count, SIZE, 4096, seed)
    touch(plain.base, offsets, write=True)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        ns = lib.evict_by_protection(plain.base, offsets.ctypes.data, count, file.fileno())
    assert ns
    lib.protected_stop()
    return float(ns) / count / 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=8000)
    options = parser.parse_args()
    print(machine())
    print(
        "| other threads | ours, asked for | ours, by faults | WP + pwrite + DONTNEED | asked / WP | by faults / WP |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for busy in (False, True):
        if busy:
            reference().spin_start()
        seeds = iter(range(1, 10_000))
        results = interleaved(
            {
                "ours": lambda seeds=seeds: ours(options.count, next(seeds)),
                "faults": lambda seeds=seeds: ours_by_faults(options.count, next(seeds)),
                "WP": lambda seeds=seeds: theirs(options.count, next(seeds)),
            },
            options.rounds,
        )
        if busy:
            reference().spin_stop()
        one, faults, other = results["ours"], results["faults"], results["WP"]
        print(
            f"| {'one runs' if busy else 'none'} | {median(one):.2f} | {median(faults):.2f} | {median(other):.2f} | "
            f"{ratio(one, other):.2f} | {ratio(faults, other):.2f} |"
        )


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", "/dev/shm")
    main()
