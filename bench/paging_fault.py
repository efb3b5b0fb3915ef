"""(a) What one fault costs: each mode and unit beside a C handler with nothing in it but the work, and anonymous first touch.

python bench/paging_fault.py [--rounds N]: all on one CPU (the handler is woken where the faulting thread is), µs, medians over rounds.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from paging_common import Plain, interleaved, machine, median, offsets_of, ratio, reference, touch

from userfault import paging

COUNTS = {4 << 10: 2000, 64 << 10: 500, 2 << 20: 24}


def ours(source: np.ndarray, unit: int, mode: str, offsets: np.ndarray) -> np.ndarray:
    with paging.open(source, unit=unit, mode=mode, prefetch_units=0, handlers=1) as memory:
        return touch(memory._control.base, offsets)


def theirs(source: np.ndarray, unit: int, mode: str, offsets: np.ndarray) -> np.ndarray:
    lib, plain = reference(), Plain(len(source))
    move = unit >= 65536
    failed = lib.reference_start(plain.base, plain.size, unit, 0, source.ctypes.data, -1, mode == "sigbus", move)
    assert not failed, failed
    ns = touch(plain.base, offsets)
    lib.reference_stop()
    return ns


def anonymous(size: int, offsets: np.ndarray) -> np.ndarray:
    plain = Plain(size)
    return touch(plain.base, offsets, write=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    print(machine())
    print("| unit | mode | ours p50 | p99 | C p50 | p99 | ours / C (p50) | anonymous first touch p50 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for unit, count in COUNTS.items():
        size = 128 << 20 if unit < 2 << 20 else 64 << 20
        source = np.ones(size, dtype=np.uint8)
        for mode in ("threads", "sigbus"):
            tails: dict[str, list[float]] = {"ours": [], "C": []}
            places = iter(range(10_000))

            def run(
                name: str,
                function,
                unit=unit,
                mode=mode,
                count=count,
                size=size,
                tails=tails,
                source=source,
                places=places,
            ) -> float:
                ns = function(source, unit, mode, offsets_of(count, size, unit, next(places)))
                tails[name].append(float(np.percentile(ns, 99)) / 1000)
                return float(np.percentile(ns, 50)) / 1000

            results = interleaved(
                {
                    "ours": lambda run=run: run("ours", ours),
                    "C": lambda run=run: run("C", theirs),
                    "anonymous": lambda size=size, count=count: float(
                        np.percentile(anonymous(size, offsets_of(count * 2, size, 4096)), 50) / 1000
                    ),
                },
                rounds,
            )
            print(
                f"| {unit >> 10} KiB | {mode} | {median(results['ours']):.2f} | {median(tails['ours']):.1f} | {median(results['C']):.2f} | "
                f"{median(tails['C']):.1f} | {ratio(results['ours'], results['C']):.2f} | {median(results['anonymous']):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
