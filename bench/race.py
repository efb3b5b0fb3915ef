"""Rounds per second of litmus tests on the running kernel: `userfault run` beside the emitted C programs, interleaved.

    python bench/race.py [ROUNDS]

Prints the machine, and for each test the median of five runs of both, their ratio, and how many of the model's outcomes were seen.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
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
RUNS = 5


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    print(
        f"{len(os.sched_getaffinity(0))} x{model.partition(':')[2]}, Linux {platform.release()}, {rounds} rounds a run"
    )
    print(f"load {os.getloadavg()[0]:.1f}; era {running_era().name}")
    print("| test | rounds/s | C program, rounds/s | ratio | outcomes seen of the model's |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        for test in TESTS:
            print(row(test, rounds, Path(name)), flush=True)


def row(name: str, rounds: int, folder: Path) -> str:
    test = load(name)
    lowered = lower(test)
    program = folder / "test"
    subprocess.run(
        ["gcc", "-O2", "-pthread", "-x", "c", "-", "-o", program], input=emit(test), text=True, check=True, cwd=folder
    )
    ours, theirs = [], []
    seen = Outcomes()
    for seed in range(1, RUNS + 1):
        done = run_race(lowered.race, rounds, seed=seed)
        ours.append(done.rounds / done.seconds)
        for outcome, count in done.counts.items():
            seen.counts[outcome] = seen.counts.get(outcome, 0) + count
        output = subprocess.run([program, str(rounds)], capture_output=True, text=True).stdout
        seconds = re.search(r"^Time \S+ ([\d.]+)$", output, re.MULTILINE)
        assert seconds is not None, output
        theirs.append(rounds / max(float(seconds[1]), 0.01))
    covered = "not modelled"
    if not test.kernel_only:
        era = running_era()
        found = compare(make_histogram(test, lowered.fields, seen), era.name, differences=era.differences)
        covered = f"{len(found.allowed) - found.unseen} of {len(found.allowed)}, {len(found.mismatches)} not allowed"
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"| {name} | {a:,.0f} | {b:,.0f} | {a / b:.2f} | {covered} |"


if __name__ == "__main__":
    main()
