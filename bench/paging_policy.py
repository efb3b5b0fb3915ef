"""(e) How often the source is asked under a budget of a quarter of the data: CLOCK with its limbo, beside FIFO, and beside exact LRU and
the optimum, which only a simulation can have, since no bit tells user space that a page was read.

python bench/paging_policy.py [--units N] [--accesses N]: source reads per hundred accesses, and soft faults (units back from limbo).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from heapq import heappop, heappush

import numpy as np
from paging_common import machine

from userfault import paging
from userfault.paging.files import FileSource

UNIT = 64 << 10


def traces(units: int, count: int) -> dict[str, np.ndarray]:
    """Units touched. A loop of an eighth of the data is read again and again while a scan passes once over all of it."""
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(units)

    def zipf(exponent: float) -> np.ndarray:
        weights = 1 / np.arange(1, units + 1) ** exponent
        return shuffled[rng.choice(units, count, p=weights / weights.sum())]

    loop = np.tile(np.arange(units // 8), count // (units // 8) + 1)[:count]
    mixed = loop.copy()
    mixed[1::2] = np.arange(len(mixed[1::2])) % units
    return {
        "uniform": rng.integers(0, units, count),
        "Zipf 0.8": zipf(0.8),
        "Zipf 1.2": zipf(1.2),
        "loop + scan": mixed,
    }


def lru(trace: np.ndarray, budget: int) -> int:
    """Source reads of exact LRU."""
    held: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for unit in trace.tolist():
        if unit in held:
            held.move_to_end(unit)
            continue
        misses += 1
        if len(held) >= budget:
            held.popitem(last=False)
        held[unit] = None
    return misses


def optimum(trace: np.ndarray, budget: int) -> int:
    """Source reads of Belady's policy: whoever is needed last leaves."""
    following: dict[int, int] = {}
    later = [0] * len(trace)
    for at in range(len(trace) - 1, -1, -1):
        later[at] = following.get(int(trace[at]), len(trace))
        following[int(trace[at])] = at
    held: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    misses = 0
    for at, unit in enumerate(trace.tolist()):
        if unit not in held:
            misses += 1
            while len(held) >= budget:
                when, other = heappop(heap)
                if held.get(other) == -when:
                    del held[other]
        held[unit] = later[at]
        heappush(heap, (-later[at], unit))
    return misses


def ours(path: str, trace: np.ndarray, budget: int, policy: str) -> tuple[int, int]:
    """Source reads and soft faults of a region."""
    source = FileSource(path, direct=True)  # what is in memory or in the page cache anyway has no limbo
    with paging.open(source, unit=UNIT, resident=budget * UNIT, policy=policy, prefetch_units=0) as memory:  # type: ignore[arg-type]
        array = np.frombuffer(memory, dtype=np.uint8)
        for unit in trace.tolist():
            array[unit * UNIT]
        stats = memory.stats()
        del array
        return stats.in_bytes // UNIT, stats.soft_fault_count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--accesses", type=int, default=50_000)
    options = parser.parse_args()
    budget = options.units // 4
    print(machine())
    print("| trace | fifo | clock | its soft faults | exact LRU | optimum |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        np.ones(options.units * UNIT, dtype=np.uint8).tofile(file.name)
        for name, trace in traces(options.units, options.accesses).items():
            reads, soft = ours(file.name, trace, budget, "clock")
            fifo, _ = ours(file.name, trace, budget, "fifo")
            counts = [fifo, reads, soft, lru(trace, budget), optimum(trace, budget)]
            print(f"| {name} | {' | '.join(f'{100 * count / len(trace):.1f}' for count in counts)} |")


if __name__ == "__main__":
    main()
