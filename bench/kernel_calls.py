"""What the kernel room's calls cost, beside the barest way to do the same from Python; interleaved, medians of rounds.

    python bench/kernel_calls.py [--rounds N]

Needs root (page frames) and UFFDIO_MOVE. The ratios are the point: the microseconds are this machine's.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import mmap
import os
import platform
import statistics
import struct
import time
from collections.abc import Callable

from userfault.kernel import memory
from userfault.kernel.memory import Mapping
from userfault.kernel.remap import remap_anon_pages
from userfault.kernel.snapshot import Observer
from userfault.kernel.uapi import PAGE_SIZE_BYTES as PAGE
from userfault.kernel.uapi import Advice, Feature, Ioctl, RegisterMode
from userfault.kernel.userfaultfd import Userfault

CALLS = 50
MOVE = struct.Struct("=QQQQq")


def main() -> None:
    """Print the machine, then a line a call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}, {rounds} rounds of {CALLS} calls"
    )
    with (
        Mapping(PAGE) as one,
        Mapping(PAGE) as other,
        Mapping(256 * PAGE) as large,
        Userfault(Feature.SIGBUS) as uffd,
        Observer() as observer,
    ):
        for each in (one, other):
            uffd.register(each.address, PAGE, RegisterMode.WP).or_raise("register")
        large.tag_pages()
        memory.store(one.address, b"x")
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        plain = mmap.mmap(-1, PAGE)

        def there_and_back() -> None:
            uffd.move(other.address, one.address, PAGE)
            uffd.move(one.address, other.address, PAGE)

        def bare_move(dst: int, src: int) -> None:
            fcntl.ioctl(uffd.fileno(), Ioctl.MOVE, bytearray(MOVE.pack(dst, src, PAGE, 0, 0)))

        def bare_there_and_back() -> None:
            bare_move(other.address, one.address)
            bare_move(one.address, other.address)

        with Mapping(PAGE) as free, Mapping(PAGE) as taken:
            memory.store(taken.address, b"x")

            def remap() -> None:
                remap_anon_pages(free.address, taken.address, PAGE).or_raise("there")
                remap_anon_pages(taken.address, free.address, PAGE).or_raise("back")

            small, pages = observer.pagemap, 256 * PAGE
            table: list[tuple[str, Callable[[], object], Callable[[], object] | None, int]] = [
                ("Userfault.move of a page", there_and_back, bare_there_and_back, 2),
                ("remap_anon_pages of a page", remap, bare_there_and_back, 2),
                (
                    "madvise(COLD)",
                    lambda: memory.madvise(large.address, PAGE, Advice.COLD),
                    lambda: plain.madvise(20),
                    1,
                ),
                (
                    "read_memory of 8 bytes",
                    lambda: memory.read_memory(one.address, 8),
                    lambda: ctypes.string_at(one.address, 8),
                    1,
                ),
                ("Pagemap.words of 256 pages", lambda: small.words(large.address, pages), None, 1),
                ("Pagemap.entries of 256 pages", lambda: small.entries(large.address, pages), None, 1),
                ("Pagemap.scan of 256 pages", lambda: small.scan(large.address, large.end), None, 1),
                ("Observer.look at 1 page", lambda: observer.look(one.address, PAGE, mappings=False), None, 1),
                ("Observer.look at 16 pages", lambda: observer.look(large.address, 16 * PAGE, mappings=False), None, 1),
                ("Observer.look with mappings", lambda: observer.look(one.address, PAGE), None, 1),
            ]
            times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, *_ in table}
            for _ in range(rounds):
                for name, ours, bare, count in table:
                    for which, call in enumerate((ours, bare)):
                        if call is not None:
                            times[name][which].append(seconds(call) / CALLS / count)
    for name, (ours_s, bare_s) in times.items():
        line = f"{name:<30} {statistics.median(ours_s) * 1e6:8.2f} us"
        if bare_s:
            ratio = statistics.median(a / b for a, b in zip(ours_s, bare_s, strict=True))
            line += f"   bare {statistics.median(bare_s) * 1e6:6.2f} us   ratio {ratio:.2f}"
        print(line)


def seconds(call: Callable[[], object]) -> float:
    """The processor time of CALLS calls: others that run here do not count."""
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
