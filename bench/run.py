"""The protocol on userfault and on SPIN, side by side in one run: `python bench/run.py [S] [M] [L]`.

The peers follow bench/peers/protocol.*; SPIN's state counts differ from ours, because its processes keep dead locals and
label every branch, so rates are compared as states a second, and times to the verdict as seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from protocol_model import SIZES, program

from userfault.check import native
from userfault.check.result import Options

PEERS = Path(__file__).parent / "peers"


def machine() -> str:
    """The machine in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{os.cpu_count()} x {model}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def userfault(size: str, threads: int) -> dict[str, float]:
    """One search of the protocol that holds, and the seconds of compiling and searching it."""
    started = time.perf_counter()
    made = program(*SIZES[size])
    result = native.explore(made, Options(max_states=200_000_000, max_bytes=14 << 30, liveness=False, threads=threads))
    assert result.verdict == "holds"
    return {
        "states": result.states,
        "seconds": result.seconds,
        "bytes": result.bytes_per_state,
        "total": time.perf_counter() - started,
    }


def spin(size: str, reduced: bool) -> dict[str, float] | None:
    """spin -a, gcc, pan: the seconds of pan alone, and of all three."""
    if not shutil.which("spin"):
        return None
    walkers, remappers = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            ["spin", "-a", f"-DNW={walkers}", f"-DNR={remappers}", str((PEERS / "protocol.pml").resolve())],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        flags = [] if reduced else ["-DNOREDUCE"]
        subprocess.run(["gcc", "-O2", "-w", "-DSAFETY", *flags, "-o", "pan", "pan.c"], cwd=folder, check=True)
        built = time.perf_counter()
        width = {"S": "20", "M": "24"}.get(size, "27")
        out = subprocess.run(
            ["./pan", "-m200000", f"-w{width}"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout
        ended = time.perf_counter()
    assert "errors: 0" in out
    states = int(re.search(r"(\d+) states, stored", out)[1])  # type: ignore[index]
    vector = int(re.search(r"State-vector (\d+) byte", out)[1])  # type: ignore[index]
    return {"states": states, "seconds": ended - built, "bytes": vector, "total": ended - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=["S", "M"], help=f"of {', '.join(SIZES)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    print(machine())
    rows = []
    for size in args.sizes:
        if size not in SIZES:
            sys.exit(f"there is no size {size}: one of {', '.join(SIZES)}")
        contenders: dict[str, Callable[[], dict[str, float] | None]] = {
            "userfault, 1 core": partial(userfault, size, 1),
            "userfault, 2 cores": partial(userfault, size, 2),
            "spin NOREDUCE": partial(spin, size, False),
            "spin": partial(spin, size, True),
        }
        results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(args.runs):
            for name, run in contenders.items():
                got = run()
                if got is not None:
                    results[name].append(got)
        for name, runs in results.items():
            if not runs:
                print(f"{size:<3} {name:<20} not installed: apt-get install spin gcc")
                continue
            median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows.append({"size": size, "tool": name, **median})
            print(
                f"{size:<3} {name:<20} {median['states']:>12,.0f} states {median['seconds']:>9.3f} s"
                f" {median['states'] / median['seconds'] / 1e6:>7.2f} M states/s {median['bytes']:>6.1f} B/state"
                f" {median['total']:>8.3f} s start to verdict"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
