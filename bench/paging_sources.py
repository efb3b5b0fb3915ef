"""(f) Reads of 64 KiB a second from each source: by the plain call of its library, and by touching a region over it, with one thread
and with four.

python bench/paging_sources.py [--rounds N] [--count N]: every unit is touched once, in random order, without a budget and without
prefetching. Redis where redis-server is installed; an S3 endpoint is not measured here, it would be the test server that is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from paging_common import interleaved, machine, median, offsets_of, ratio, touch

from userfault import paging
from userfault.paging.files import FileSource
from userfault.paging.fsspec import FsspecSource
from userfault.paging.memory import MemorySource
from userfault.paging.redis import RedisStore
from userfault.paging.tcp import RemoteSource
from userfault.paging.zstd import ZstdSource, compress_file

UNIT = 64 << 10
SIZE = 64 << 20


@contextmanager
def page_server(path: Path) -> Iterator[str]:
    command = [str(Path(sys.executable).with_name("userfault")), "page", "serve", str(path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().split()[-1]
        server.terminate()


@contextmanager
def redis_server(directory: Path, data: bytes) -> Iterator[str]:
    socket = directory / "redis"
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while not socket.exists():
            time.sleep(0.01)
        url = f"unix://{socket}?db=0"
        with RedisStore(url, "data", size_bytes=len(data), chunk_bytes=UNIT) as store:
            for at in range(0, len(data), 1 << 20):
                store.write_from(at, memoryview(data)[at : at + (1 << 20)])
        yield url
        server.terminate()


def repeating(pattern: bytes) -> Callable[[int, memoryview], None]:
    def fill(offset: int, view: memoryview) -> None:
        view[:] = pattern

    return fill


def plain_rate(read: Callable[[int, memoryview], Any], offsets: np.ndarray) -> float:
    with memoryview(bytearray(UNIT)) as view:
        start = time.perf_counter()
        for offset in offsets.tolist():
            read(offset, view)
        return len(offsets) / (time.perf_counter() - start)


def region_rate(source: Callable[[], Any], offsets: np.ndarray, threads: int, **options: Any) -> float:
    with paging.open(source(), prefetch_units=0, **options) as memory, ThreadPoolExecutor(threads) as pool:
        base = memory._control.base
        parts = [np.ascontiguousarray(part) for part in np.array_split(offsets, threads)]
        start = time.perf_counter()
        list(pool.map(lambda part: touch(base, part), parts))
        spent = time.perf_counter() - start
        assert memory.stats().error_count == 0
        return len(offsets) / spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--directory", default="/var/tmp")
    options = parser.parse_args()
    pattern = bytes(range(256)) * (UNIT // 256)
    data = np.random.default_rng(1).integers(0, 64, SIZE, dtype=np.uint8).tobytes()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        path = directory / "data"
        path.write_bytes(data)
        compress_file(path, directory / "data.zst", frame_bytes=UNIT, level=1)
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        url = stack.enter_context(page_server(path))

        def kept(source: Any) -> Callable[[int, memoryview], Any]:
            return stack.enter_context(source).read_into  # type: ignore[no-any-return]

        # The plain call, the source, and what a region over it needs besides.
        sources: dict[str, tuple[Callable[[int, memoryview], Any], Callable[[], Any], dict[str, Any]]] = {
            "memory": (kept(MemorySource(data)), lambda: data, {}),
            "file, page cache": (lambda offset, view: os.preadv(fd, [view], offset), lambda: path, {}),
            "file, O_DIRECT": (
                kept(FileSource(path, direct=True)),
                lambda: FileSource(path, direct=True),
                {},
            ),
            "page server (tcp)": (kept(RemoteSource(url)), lambda: url, {}),
            "Python function": (repeating(pattern), lambda: repeating(pattern), {"size_bytes": SIZE}),
            "zstd": (kept(ZstdSource(directory / "data.zst")), lambda: directory / "data.zst", {}),
            "fsspec, local file": (
                kept(FsspecSource(f"local://{path}")),
                lambda: f"local://{path}",
                {},
            ),
        }
        if shutil.which("redis-server"):
            redis_url = stack.enter_context(redis_server(directory, data))
            sources["Redis"] = (kept(RedisStore(redis_url, "data")), lambda: RedisStore(redis_url, "data"), {})
        print(machine())
        print("| source | plain call | region, 1 thread | region / plain | region, 4 threads |")
        print("| --- | --- | --- | --- | --- |")
        for name, (read, source, extra) in sources.items():
            offsets = offsets_of(options.count, SIZE, UNIT)
            results = interleaved(
                {
                    "plain": lambda read=read, offsets=offsets: plain_rate(read, offsets),
                    "one": lambda source=source, extra=extra, offsets=offsets: region_rate(source, offsets, 1, **extra),
                    "four": lambda source=source, extra=extra, offsets=offsets: region_rate(
                        source, offsets, 4, **extra
                    ),
                },
                options.rounds,
            )
            plain, one, four = results["plain"], results["one"], results["four"]
            print(
                f"| {name} | {median(plain):,.0f} | {median(one):,.0f} | {ratio(one, plain):.2f} | {median(four):,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
