"""A pager in miniature, to test workers with: run as a program, it pages a region through real faults and prints JSON.

Three processes, as in the real one: this owns the region, a handler process forwards faults over the worker's socket, the worker fills.
`python harness.py` goes through all scenarios, one line each; the test gives it a deadline.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time

from userfault.kernel.userfaultfd import Pagefault, Userfault
from userfault.paging import wire
from userfault.paging.callables import CallableSource
from userfault.paging.retry import RetryPolicy
from userfault.paging.source import SourceError
from userfault.paging.wire import Kind, Message
from userfault.paging.worker import Worker

PAGE = 4096
UNIT = 65536


class Region:
    def __init__(self, size_bytes: int) -> None:
        self.memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size_bytes = size_bytes
        self.userfault = Userfault()
        self.uffd = self.userfault.fileno()
        self.userfault.register(self.address, size_bytes).or_raise("register")

    def handler(self, *workers: Worker) -> subprocess.Popen[str]:
        fds = [self.uffd, *(worker.fileno() for worker in workers)]
        command = [sys.executable, __file__, "handle", str(self.address), str(self.size_bytes), *map(str, fds)]
        return subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE, text=True)


def handle(address: int, size_bytes: int, uffd: int, *worker_fds: int) -> None:
    """Forward faults to the first worker, to the next one once that is dead; errors are printed and become zero pages."""
    sockets = [socket.socket(fileno=fd) for fd in worker_fds]
    userfault = Userfault(fd=uffd)
    pending: set[int] = set()
    poll = select.poll()
    poll.register(uffd, select.POLLIN)
    poll.register(sockets[0], select.POLLIN)
    while True:
        for fd, _events in poll.poll():
            if fd == uffd:
                (fault,) = userfault.read()
                assert isinstance(fault, Pagefault)
                offset = (fault.address - address) // UNIT * UNIT
                if offset not in pending:
                    pending.add(offset)
                    length = min(UNIT, size_bytes - offset)
                    wire.send(sockets[0], Message(Kind.FILL, offset // UNIT + 1, offset, address + offset, length))
                continue
            message = wire.receive(sockets[0])
            if message is None:
                print(json.dumps({"dead": True}), flush=True)
                poll.unregister(sockets.pop(0))
                poll.register(sockets[0], select.POLLIN)
                pending.clear()
                userfault.wake(address, size_bytes)
            elif message.kind is Kind.ERROR:
                print(wire.receive_payload(sockets[0], message).decode(), flush=True)
                userfault.zeropage(address + (message.id - 1) * UNIT, UNIT)
            elif message.kind is Kind.DONE:
                pending.discard((message.id - 1) * UNIT)


def expected(offset: int, length: int) -> bytes:
    return b"".join(struct.pack("<Q", at) for at in range(offset, offset + length, 8))


def everything() -> object:
    """A region of 33 units over a source that ends inside the last but one; all of it is touched with the GIL held."""
    size, data_size = 33 * UNIT, 31 * UNIT + 5000
    region = Region(size)

    def fill(offset: int, view: memoryview) -> None:
        view[:] = expected(offset, -(-len(view) // 8) * 8)[: len(view)]

    with Worker(CallableSource(fill, data_size), region.uffd) as worker:
        worker.wait_ready()
        handler = region.handler(worker)
        busy = threading.Thread(target=lambda: [sum(range(1000)) for _ in range(1000)])
        busy.start()
        # bytes(memoryview) and indexing touch the pages with the GIL held; os.write lets go of it, and the kernel touches them.
        view = memoryview(region.memory)
        first = [view[index] for index in range(0, 8 * UNIT, PAGE)]
        middle = bytes(view[8 * UNIT : 24 * UNIT])
        with open("/dev/null", "wb", buffering=0) as null:
            os.write(null.fileno(), view[24 * UNIT :])
            pipe_read, pipe_write = os.pipe()
            os.write(pipe_write, view[30 * UNIT : 30 * UNIT + 4096])
        whole = bytes(view)
        oracle = expected(0, data_size)[:data_size] + bytes(size - data_size)
        busy.join()
        handler.kill()
        handler.communicate()
        return {
            "bytes": first == list(oracle[0 : 8 * UNIT : PAGE]) and middle == oracle[8 * UNIT : 24 * UNIT],
            "whole": whole == oracle,
            "kernel": os.read(pipe_read, 4096) == oracle[30 * UNIT : 30 * UNIT + 4096],
        }


def an_error() -> object:
    """The source fails at one unit; the handler hears why."""
    region = Region(4 * UNIT)

    def picky(offset: int, view: memoryview) -> None:
        if offset == 2 * UNIT:
            raise KeyError("no such chunk")
        view[:] = b"\x01" * len(view)

    with Worker(CallableSource(picky, 4 * UNIT), region.uffd) as worker:
        worker.wait_ready()
        handler = region.handler(worker)
        seen = [region.memory[unit * UNIT] for unit in range(4)]
        assert handler.stdout
        error = SourceError.from_record(handler.stdout.readline().encode())
        handler.kill()
        handler.communicate()
        return {"seen": seen, "error": str(error)}


def a_kill() -> object:
    """The worker is killed while a fault waits for it; a second one is at hand, and the fault never notices."""
    region = Region(4 * UNIT)
    flag = os.environ["HARNESS_FLAG"]

    def slow_the_first_time(offset: int, view: memoryview) -> None:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            view[:] = b"\x02" * len(view)
        else:
            time.sleep(1000)

    source = CallableSource(slow_the_first_time, 4 * UNIT)
    with Worker(source, region.uffd) as worker, Worker(source, region.uffd) as successor:
        worker.wait_ready()
        successor.wait_ready()
        handler = region.handler(worker, successor)
        killer = f"import os, time\nwhile not os.path.exists({flag!r}): time.sleep(0.001)\nos.kill({worker.pid}, 9)"
        with subprocess.Popen([sys.executable, "-c", killer]):
            seen = region.memory[UNIT]
        assert handler.stdout
        told = json.loads(handler.stdout.readline())
        handler.kill()
        handler.communicate()
        how = worker.how_it_ended()
        worker.kill()
        return {"seen": seen, "told": told, "how": how, "successor": successor.how_it_ended(0)}


def a_retry() -> object:
    """The source fails with a transient error, twice, and then succeeds: the fault never notices."""
    region = Region(UNIT)
    attempts = []

    def flaky(offset: int, view: memoryview) -> None:
        attempts.append(offset)
        if len(attempts) < 3:
            raise ConnectionResetError(errno.ECONNRESET, "peer")
        view[:] = bytes([len(attempts)]) * len(view)

    policy = RetryPolicy(first_wait_s=0.001)
    with Worker(CallableSource(flaky, UNIT), region.uffd, policy) as worker:
        worker.wait_ready()
        handler = region.handler(worker)
        seen = region.memory[0]
        handler.kill()
        handler.communicate()
        return {"seen": seen, "attempts_here": len(attempts)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["handle"]:
        handle(*map(int, sys.argv[2:]))
    else:
        for scenario in (everything, an_error, a_kill, a_retry):
            print(json.dumps({scenario.__name__: scenario()}), flush=True)
