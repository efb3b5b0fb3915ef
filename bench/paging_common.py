"""What the paging benchmarks share: the C reference, plain memory, interleaved rounds, the machine."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PAGE = 4096


@cache
def reference() -> ctypes.CDLL:
    """bench/paging_reference.c, compiled."""
    target = Path(tempfile.mkdtemp()) / "reference.so"
    command = [
        "cc",
        "-O2",
        "-std=gnu11",
        "-shared",
        "-fPIC",
        "-pthread",
        "-o",
        str(target),
        str(HERE / "paging_reference.c"),
    ]
    subprocess.run(command, check=True)
    lib = ctypes.CDLL(str(target))
    p, u = ctypes.c_void_p, ctypes.c_uint64
    lib.touch.argtypes, lib.touch.restype = [p, p, u, p, ctypes.c_int], u
    lib.read_pages.argtypes, lib.read_pages.restype = [p, p, u], u
    lib.reference_start.argtypes = [p, u, u, u, p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    for evict in (lib.evict_by_protection, lib.evict_by_protection_in_batches):
        evict.argtypes, evict.restype = [p, p, u, ctypes.c_int], u
    lib.protected_start.argtypes = [p, u]
    return lib


class Plain:
    """Anonymous memory at a multiple of 2 MiB."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.base = -(-start // (2 << 20)) * (2 << 20)
        self.size = size


def offsets_of(count: int, size: int, unit: int, seed: int = 1) -> np.ndarray:
    """`count` different multiples of `unit` below `size`, in random order."""
    chosen = np.random.default_rng(seed).permutation(size // unit)[:count]
    return np.ascontiguousarray(chosen.astype(np.uint64) * unit)


def touch(base: int, offsets: np.ndarray, write: bool = False) -> np.ndarray:
    """ns of each touch."""
    ns = np.zeros(len(offsets), dtype=np.uint32)
    reference().touch(base, offsets.ctypes.data, len(offsets), ns.ctypes.data, write)
    return ns


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender once a round, in turn."""
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            results[name].append(run())
    return results


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(one: list[float], other: list[float]) -> float:
    """The median of the ratios within each round: load that comes and goes hits both."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def machine() -> str:
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f}"
    )
