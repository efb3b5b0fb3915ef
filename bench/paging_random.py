"""(b) Random 4 KiB reads over a file that is larger than the memory allowed.

python bench/paging_random.py [--file PATH] [--gib 1] [--rounds N]. Two tables: the file in the page cache, against a C pager with the same
source, budget and placement; and the file on disk, every contender held to the same memory: ours by its budget and O_DIRECT, mmap by a
memory cgroup (needs root).
"""

from __future__ import annotations

import argparse
import mmap
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from paging_common import Plain, interleaved, machine, median, ratio, reference

from userfault import paging

BUDGET = 256 << 20


def random_offsets(count: int, size: int, seed: int) -> np.ndarray:
    return np.ascontiguousarray(np.random.default_rng(seed).integers(0, size // 4096, count).astype(np.uint64) * 4096)


def rate(ns: int, count: int) -> float:
    return count / (ns / 1e9)


def ours(path: str, mode: str, warm: np.ndarray, offsets: np.ndarray, direct: bool = False) -> float:
    with paging.open(
        path, unit="4 KiB", mode=mode, resident=BUDGET, prefetch_units=0, handlers=1, direct=direct
    ) as memory:
        base = memory._control.base
        reference().read_pages(base, warm.ctypes.data, len(warm))
        return rate(reference().read_pages(base, offsets.ctypes.data, len(offsets)), len(offsets))


def theirs(path: str, mode: str, warm: np.ndarray, offsets: np.ndarray) -> float:
    lib, plain = reference(), Plain(os.path.getsize(path))
    fd = os.open(path, os.O_RDONLY)
    failed = lib.reference_start(plain.base, plain.size, 4096, BUDGET // 4096, None, fd, mode == "sigbus", 0)
    assert not failed, failed
    lib.read_pages(plain.base, warm.ctypes.data, len(warm))
    result = rate(lib.read_pages(plain.base, offsets.ctypes.data, len(offsets)), len(offsets))
    lib.reference_stop()
    os.close(fd)
    return result


def mapped(path: str, advice: str, count: int, seed: int) -> float:
    """In a process of its own in a memory cgroup of the budget and a little for Python."""
    command = [sys.executable, __file__, "--mapped", advice, "--file", path, "--count", str(count), "--seed", str(seed)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def enter_cgroup(limit: int) -> Path | None:
    for root, name in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = root / f"userfault-bench-{os.getpid()}"
        with suppress(OSError):
            if not (root / "cgroup.procs").exists():
                continue
            group.mkdir()
            (group / name).write_text(str(limit))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return group
        with suppress(OSError):
            group.rmdir()
    return None


def run_mapped(path: str, advice: str, count: int, seed: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    group = enter_cgroup(BUDGET + used)
    if group is None:
        sys.exit("no memory cgroup can be made here: run as root")
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    view = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    if advice == "random":
        view.madvise(mmap.MADV_RANDOM)
    array = np.frombuffer(view, dtype=np.uint8)
    offsets = random_offsets(count, len(view), seed)
    print(rate(reference().read_pages(array.ctypes.data, offsets.ctypes.data, count), count))
    sys.stdout.flush()
    # A process can't remove the group that it is in: its parent group takes it back.
    (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    with suppress(OSError):
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", default="/var/tmp/userfault-bench")
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--cold-count", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mapped", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mapped:
        run_mapped(options.file, options.mapped, options.count, options.seed)
        return
    size = int(options.gib * (1 << 30)) // 4096 * 4096
    if not os.path.exists(options.file) or os.path.getsize(options.file) != size:
        with open(options.file, "wb") as file:
            for _ in range(size >> 20):
                file.write(np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8).tobytes())
            os.fsync(file.fileno())
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cpus)[0]})
    Path(options.file).read_bytes()
    print(machine())
    print("\nThe file in the page cache, budget 256 MiB, one CPU, accesses/s:\n")
    print("| pager | ours | C | ours / C |\n| --- | --- | --- | --- |")
    for mode in ("threads", "sigbus"):
        seeds = iter(range(1, 10_000))
        warm = random_offsets(70_000, size, 0)
        results = interleaved(
            {
                "ours": lambda mode=mode, warm=warm, seeds=seeds: ours(
                    options.file, mode, warm, random_offsets(options.count, size, next(seeds))
                ),
                "C": lambda mode=mode, warm=warm, seeds=seeds: theirs(
                    options.file, mode, warm, random_offsets(options.count, size, next(seeds))
                ),
            },
            options.rounds,
        )
        one, other = results["ours"], results["C"]
        print(f"| {mode} | {median(one):,.0f} | {median(other):,.0f} | {ratio(one, other):.2f} |", flush=True)
    os.sched_setaffinity(0, cpus)
    print("\nThe file on disk, 256 MiB for each, accesses/s:\n")
    print("| contender | accesses/s |\n| --- | --- |")
    count = options.cold_count
    seeds = iter(range(1, 10_000))
    none = random_offsets(1, size, 0)
    cold = interleaved(
        {
            "ours, O_DIRECT, threads": lambda: ours(
                options.file, "threads", none, random_offsets(count, size, next(seeds)), True
            ),
            "ours, O_DIRECT, sigbus": lambda: ours(
                options.file, "sigbus", none, random_offsets(count, size, next(seeds)), True
            ),
            "mmap + MADV_RANDOM": lambda: mapped(options.file, "random", count, next(seeds)),
            "np.memmap (mmap as it comes)": lambda: mapped(options.file, "normal", count // 10, next(seeds)),
        },
        max(1, options.rounds // 2),
    )
    for name, values in cold.items():
        print(f"| {name} | {median(values):,.0f} |")
    device = os.stat(options.file).st_dev
    with suppress(OSError):
        ahead = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb").read_text().strip()
        print(f"\nread_ahead_kb of the disk: {ahead}")


if __name__ == "__main__":
    main()
