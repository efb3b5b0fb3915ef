"""(c) What evicting a dirty page costs, beside protecting it, writing it out and dropping it (UFFDIO_WRITEPROTECT, pwrite, MADV_DONTNEED).

python bench/paging_evict.py [--rounds N] [--directory D ...]: scattered 4 KiB pages of 256 MiB, to a swap file in memory (/dev/shm) and in
/var/tmp, µs a page: alone, and while another thread of the process runs, which every flush of a TLB must interrupt.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from itertools import count, product

from paging_common import Plain, interleaved, machine, median, offsets_of, ratio, reference, touch

from userfault import paging
from userfault.paging.native import pager_library

SIZE = 256 << 20
BUDGET_PAGES = 16_384


def ours_by_faults(directory: str, pages: int, seed: int) -> float:
    """µs a dirty eviction as it happens: write faults over the budget, less the same faults without a budget."""
    times = []
    for resident in (BUDGET_PAGES * 4096, None):
        with paging.open(
            None, size_bytes=SIZE, access="c", unit="4 KiB", mode="sigbus", resident=resident, swap_directory=directory
        ) as m:
            offsets = offsets_of(BUDGET_PAGES + pages, SIZE, 4096, seed)
            touch(m._control.base, offsets[:BUDGET_PAGES], write=True)
            start = time.perf_counter()
            touch(m._control.base, offsets[BUDGET_PAGES:], write=True)
            times.append(time.perf_counter() - start)
            if resident:
                assert m.stats().evict_dirty_count >= pages - 64
    return (times[0] - times[1]) / pages * 1e6


def ours(directory: str, pages: int, seed: int) -> float:
    """µs a dirty eviction that is asked for, page by page as they lie in memory."""
    with paging.open(None, size_bytes=SIZE, access="c", unit="4 KiB", prefetch_units=0, swap_directory=directory) as m:
        offsets = offsets_of(pages, SIZE, 4096, seed)
        touch(m._control.base, offsets, write=True)
        start = time.perf_counter()
        pager_library().pager_evict(m._pager, 0, ctypes.c_uint64(SIZE))
        spent = time.perf_counter() - start
        assert m.stats().evict_dirty_count == pages
        return spent / pages * 1e6


def theirs(directory: str, pages: int, seed: int) -> float:
    plain = Plain(SIZE)
    lib = reference()
    assert not lib.protected_start(plain.base, SIZE)
    offsets = offsets_of(pages, SIZE, 4096, seed)
    touch(plain.base, offsets, write=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        ns = lib.evict_by_protection(plain.base, offsets.ctypes.data, pages, file.fileno())
    assert ns
    lib.protected_stop()
    return float(ns) / pages / 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--directory", nargs="+", default=["/dev/shm", "/var/tmp"])
    options = parser.parse_args()
    print(machine())
    print(
        "| swap file in | other threads | ours, asked for | ours, by faults | WP + pwrite + DONTNEED | asked / WP | by faults / WP |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for directory, busy in product(options.directory, (False, True)):
        if busy:
            reference().spin_start()
        seeds = count(1)
        results = interleaved(
            {
                name: lambda run=run, seeds=seeds, directory=directory: run(directory, options.count, next(seeds))
                for name, run in {"ours": ours, "faults": ours_by_faults, "WP": theirs}.items()
            },
            options.rounds,
        )
        if busy:
            reference().spin_stop()
        one, faults, other = results["ours"], results["faults"], results["WP"]
        print(
            f"| {directory} | {'one runs' if busy else 'none'} | {median(one):.2f} | {median(faults):.2f} | {median(other):.2f} | "
            f"{ratio(one, other):.2f} | {ratio(faults, other):.2f} |"
        )


if __name__ == "__main__":
    main()
