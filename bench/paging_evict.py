"""(c) What evicting a dirty page costs, beside protecting it, writing it out and dropping it (UFFDIO_WRITEPROTECT, pwrite, MADV_DONTNEED).

python bench/paging_evict.py [--rounds N] [--cpu] [--directory D ...]: scattered 4 KiB pages of 256 MiB, to a swap file in memory
(/dev/shm) and in /var/tmp, µs a page: alone, and while another thread of the process runs, which every flush of a TLB must interrupt.
--cpu counts processor time of the thread that evicts, which other programs hardly change.

The other way is measured twice: a page at a time (a protection, a write and a drop for each), as pagers that work so do it, and 64 at a
time: protected one by one, written by one pwritev, dropped by one process_madvise. Ours moves scattered pages one by one, and writes and
drops 64 at a time.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable
from itertools import count, product

from paging_common import Plain, interleaved, machine, median, offsets_of, ratio, reference, touch

from userfault import paging
from userfault.paging.native import pager_library

SIZE = 256 << 20
BUDGET_PAGES = 16_384


clock: Callable[[], float] = time.perf_counter


def batched(directory: str, pages: int, seed: int) -> float:
    return theirs(directory, pages, seed, batched=True)


def ours_by_faults(directory: str, pages: int, seed: int) -> float:
    """µs a dirty eviction as it happens: write faults over the budget, less the same faults without a budget."""
    times = []
    for resident in (BUDGET_PAGES * 4096, None):
        with paging.open(
            None, size_bytes=SIZE, access="c", unit="4 KiB", mode="sigbus", resident=resident, swap_directory=directory
        ) as m:
            offsets = offsets_of(BUDGET_PAGES + pages, SIZE, 4096, seed)
            touch(m._control.base, offsets[:BUDGET_PAGES], write=True)
            start = clock()
            touch(m._control.base, offsets[BUDGET_PAGES:], write=True)
            times.append(clock() - start)
            if resident:
                assert m.stats().evict_dirty_count >= pages - 64
    return (times[0] - times[1]) / pages * 1e6


def ours(directory: str, pages: int, seed: int) -> float:
    """µs a dirty eviction that is asked for, page by page as they lie in memory."""
    with paging.open(None, size_bytes=SIZE, access="c", unit="4 KiB", prefetch_units=0, swap_directory=directory) as m:
        offsets = offsets_of(pages, SIZE, 4096, seed)
        touch(m._control.base, offsets, write=True)
        start = clock()
        pager_library().pager_evict(m._pager, 0, ctypes.c_uint64(SIZE))
        spent = clock() - start
        assert m.stats().evict_dirty_count == pages
        return spent / pages * 1e6


def theirs(directory: str, pages: int, seed: int, batched: bool = False) -> float:
    plain = Plain(SIZE)
    lib = reference()
    assert not lib.protected_start(plain.base, SIZE)
    offsets = offsets_of(pages, SIZE, 4096, seed)
    touch(plain.base, offsets, write=True)
    if batched:
        offsets.sort()
    evict = lib.evict_by_protection_in_batches if batched else lib.evict_by_protection
    with tempfile.TemporaryFile(dir=directory) as file:
        ns = evict(plain.base, offsets.ctypes.data, pages, file.fileno())
    assert ns
    lib.protected_stop()
    return float(ns) / pages / 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--directory", nargs="+", default=["/dev/shm", "/var/tmp"])
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.cpu:
        global clock
        clock = time.thread_time
        reference().measure_cpu()
    print(machine() + (", processor time" if options.cpu else ""))
    print(
        "| swap file in | other threads | ours, asked for | ours, by faults | WP + pwrite + DONTNEED | the same by 64 "
        "| asked / WP | by faults / WP | asked / by 64 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for directory, busy in product(options.directory, (False, True)):
        if busy:
            reference().spin_start()
        seeds = count(1)
        results = interleaved(
            {
                name: lambda run=run, seeds=seeds, directory=directory: run(directory, options.count, next(seeds))
                for name, run in {"ours": ours, "faults": ours_by_faults, "WP": theirs, "batched": batched}.items()
            },
            options.rounds,
        )
        if busy:
            reference().spin_stop()
        one, faults, other, by_64 = (results[name] for name in ("ours", "faults", "WP", "batched"))
        print(
            f"| {directory} | {'one runs' if busy else 'none'} | {median(one):.2f} | {median(faults):.2f} | {median(other):.2f} | "
            f"{median(by_64):.2f} | {ratio(one, other):.2f} | {ratio(faults, other):.2f} | {ratio(one, by_64):.2f} |"
        )


if __name__ == "__main__":
    main()
