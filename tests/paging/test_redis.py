"""Pages in a real redis-server."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

from userfault import paging
from userfault.paging.pytest_plugin import check
from userfault.paging.redis import RedisStore
from userfault.paging.retry import RetryPolicy
from userfault.paging.source import SourceError, Store
from userfault.paging.sources import open_source
from userfault.paging.testing import StoreContract, read

TIMEOUT_S = 20.0


class RedisServer:
    """A redis-server of our own, on a UNIX socket, that keeps nothing on disk."""

    def __init__(self, directory: Path, *options: str) -> None:
        # A socket's path has at most 107 bytes, pytest's directories may be longer.
        self.path = os.path.relpath(directory / "redis") if len(str(directory)) > 90 else str(directory / "redis")
        self.url = f"unix://{os.path.abspath(self.path)}?db=0"
        self.options = options
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL)
        self.client = redis.Redis.from_url(self.url)
        end_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.client.ping()
                return
            except redis.exceptions.ConnectionError:
                assert time.monotonic() < end_s and self.process.poll() is None
                time.sleep(0.01)

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, cannot_run: Callable[[str, str], NoReturn]
) -> Iterator[RedisServer]:
    if not shutil.which("redis-server"):
        cannot_run("redis-server is not installed", "apt-get install redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


KEYS = itertools.count()


class TestRedisStore(StoreContract):
    sizes_bytes = (0, 1, 100_003)
    example_count = 20

    @pytest.fixture(autouse=True)
    def _server(self, server: RedisServer) -> None:
        self.server = server

    def make(self, data: bytes, directory: Path) -> Store:
        self.key = f"data {next(KEYS)}"
        with RedisStore(self.server.url, self.key, size_bytes=len(data), chunk_bytes=5000) as store:
            store.write_from(0, memoryview(data))
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        return RedisStore(self.server.url, self.key)

    def make_broken(self, directory: Path) -> Store:
        return RedisStore(self.server.url, "missing")


def test_what_was_never_written_is_zero_and_takes_no_room(server: RedisServer) -> None:
    url = f"{server.url}&key=sparse"
    with open_source(url, size_bytes=1 << 40, writable=True) as store:
        assert isinstance(store, RedisStore)
        store.write_from(1 << 39, memoryview(b"here"))
        assert read(store, (1 << 39) - 2, 8) == b"\0\0here\0\0"
        assert len(server.client.keys("{sparse}*")) == 2
    with open_source(url) as again:
        assert again.size_bytes == 1 << 40


def test_another_size_is_refused(server: RedisServer) -> None:
    RedisStore(server.url, "sized", size_bytes=10).open().close()
    RedisStore(server.url, "sized", size_bytes=10).open().close()
    with pytest.raises(SourceError, match="it has 10 bytes where 11 were asked for"):
        RedisStore(server.url, "sized", size_bytes=11).open()


def test_a_server_that_evicts_is_refused(server: RedisServer) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SourceError, match=r"maxmemory-policy is allkeys-lru.*set it to noeviction"):
            RedisStore(server.url, "evicted", size_bytes=10).open()
    finally:
        server.client.config_set("maxmemory-policy", "noeviction")


def test_a_server_that_lost_writes_does_not_read_as_zeros(tmp_path: Path, server: RedisServer) -> None:
    own = RedisServer(tmp_path)
    try:
        store = RedisStore(own.url, "lost", size_bytes=10).open()
        store.write_from(0, memoryview(b"0123456789"))
        own.kill()
        with pytest.raises(SourceError) as caught:
            read(store, 0, 10)
        assert caught.value.transient
        own.start()
        calls: list[Callable[[], object]] = [
            store.flush,
            lambda: store.write_from(0, memoryview(b"x")),
            lambda: read(store, 0, 10),
        ]
        for call in calls:
            with pytest.raises(
                SourceError, match=r"has [0-9]+ of [0-9]+ writes: it was started anew without the others"
            ):
                RetryPolicy().call(call, store.is_transient)
        store.close()
    finally:
        own.kill()


def test_a_flush_waits_for_replicas(server: RedisServer) -> None:
    with RedisStore(server.url, "replicated", size_bytes=10, replica_count=1, timeout_s=1.0) as store:
        store.write_from(0, memoryview(b"x"))
        with pytest.raises(SourceError, match="only 0 of 1 replicas") as caught:
            store.flush()
        assert caught.value.transient


def test_a_key_in_the_url() -> None:
    assert RedisStore.parse("redis://u:p@h:1/2?key=a%20b&protocol=3") == ("redis://u:p@h:1/2?protocol=3", "a b")
    store: Any = open_source("redis://user:secret@host/0?key=k")
    assert store.name == "redis://user:***@host/0#k"


@pytest.mark.usefixtures("can_page")
def test_a_region_over_redis_is_written_back_and_read_again(server: RedisServer) -> None:
    def child() -> None:
        url, size = f"{server.url}&key=region", 300_001
        oracle = bytearray(size)
        with paging.open(url, access="r+", size_bytes=size, resident="128 KiB") as memory:
            pick = random.Random(1)
            for _round in range(3):
                for _ in range(20):
                    at = pick.randrange(size)
                    memory[at] = oracle[at] = pick.randrange(256)
                memory.flush()
                memory.evict()
                assert memory[:] == oracle
        with paging.open(url) as memory:
            assert memory[:] == oracle

    check(child)
