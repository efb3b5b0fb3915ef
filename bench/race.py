"""Rounds per second of litmus tests on the running kernel: `userfault run` beside the emitted C programs, interleaved.

    python bench/race.py [SECONDS]

Prints the machine and its load, and for each test the medians of five runs of both, the median of the ratios of runs side by side, and
how many of the model's outcomes were seen. A run makes as many rounds as a first, short one lets expect in SECONDS (0.5): all of
it takes less than a minute.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from userfault.conform.races.compare import compare
from userfault.conform.races.emit import emit
from userfault.conform.races.eras import running_era
from userfault.conform.races.histogram import make_histogram
from userfault.conform.races.lower import lower
from userfault.kernel.race import Outcomes, run_race
from userfault.litmus import load

TESTS = (
    "move+move",
    "move+load",
    "copy+copy",
    "load+dontneed",
    "move+fork",
    "cow+load",
    "move-huge+load",
    "mremap+load",
)
RUNS, FIRST_ROUNDS = 5, 100


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    started = time.monotonic()
    print(f"{len(os.sched_getaffinity(0))} x{model.partition(':')[2]}, Linux {platform.release()}, {seconds} s a run")
    print(f"load {os.getloadavg()[0]:.1f} before; era {running_era().name}; medians of {RUNS} runs, taking turns")
    print("| test | `userfault run`, rounds/s | C program, rounds/s | ratio | outcomes seen of the model's |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        for test in TESTS:
            print(row(test, seconds, Path(name)), flush=True)
    print(f"load {os.getloadavg()[0]:.1f} after, its own among it; {time.monotonic() - started:.0f} s")


def row(name: str, seconds: float, folder: Path) -> str:
    test = load(name)
    lowered = lower(test)
    program = folder / "test"
    subprocess.run(
        ["gcc", "-O2", "-pthread", "-x", "c", "-", "-o", program], input=emit(test), text=True, check=True, cwd=folder
    )
    ours: list[float] = []
    theirs: list[float] = []
    seen = Outcomes()
    first = run_race(lowered.race, FIRST_ROUNDS)
    rounds = max(FIRST_ROUNDS, int(seconds * first.rounds / first.seconds))

    def run_ours(seed: int) -> None:
        done = run_race(lowered.race, rounds, seed=seed)
        ours.append(done.rounds / done.seconds)
        for outcome, count in done.counts.items():
            seen.counts[outcome] = seen.counts.get(outcome, 0) + count

    def run_theirs() -> None:
        output = subprocess.run([program, str(rounds)], capture_output=True, text=True).stdout
        took = re.search(r"^Time \S+ ([\d.]+)$", output, re.MULTILINE)
        assert took is not None, output
        theirs.append(rounds / max(float(took[1]), 0.01))

    for seed in range(1, RUNS + 1):
        # Whoever comes second finds the caches warm.
        if seed % 2:
            run_ours(seed)
            run_theirs()
        else:
            run_theirs()
            run_ours(seed)
    covered = "not modelled"
    if not test.kernel_only:
        era = running_era()
        found = compare(make_histogram(test, lowered.fields, seen), era.name, differences=era.differences)
        covered = f"{len(found.allowed) - found.unseen} of {len(found.allowed)}, {len(found.mismatches)} not allowed"
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return f"| `{name}` | {statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f} | {ratio:.2f} | {covered} |"


if __name__ == "__main__":
    main()
