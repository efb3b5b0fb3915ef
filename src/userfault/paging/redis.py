"""Pages in Redis (or Valkey, KeyDB, Dragonfly, ...): one string a chunk, and a hash that says how many there are."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .extras import load
from .source import Store, redacted

CHUNK_BYTES = 65536


class RedisStore(Store):
    """The data called `key` in the Redis at `url` (`redis://HOST:PORT/DB`, `rediss://...`, `unix://PATH?db=N`).

    Byte n lies in the string `{KEY}:I` with I = n // `chunk_bytes`; what was never written is zero and takes no room. The hash `{KEY}` has
    the fields `size_bytes`, `chunk_bytes` and `write_count`. With `size_bytes` data of that size are made where there are none. In a
    cluster all of it lies on one node.

    A Redis that forgets must not look like zeros: one that evicts keys without a time to live is refused, and every read checks that the
    server still has as many writes as it had, which it has not after a restart without them. Once it has not, every call fails until
    the data are opened again.

    What was written is on the server; how durable it is there, is the server's configuration (`appendfsync`). With `replica_count` a flush
    also waits until so many replicas have it.
    """

    parallel_count = 8
    coalesce_bytes = 1 << 20

    def __init__(
        self,
        url: str,
        key: str,
        *,
        size_bytes: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        replica_count: int = 0,
        timeout_s: float = 10.0,
    ) -> None:
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes={chunk_bytes}: it is at least 1")
        if size_bytes is not None and size_bytes < 0:
            raise ValueError(f"size_bytes={size_bytes}: it can't be negative")
        self.url, self.key = url, key
        self.name = f"{redacted(url)}#{key}"
        self._wanted_bytes, self._chunk_bytes = size_bytes, chunk_bytes
        self.replica_count, self.timeout_s = replica_count, timeout_s
        self._client: Any = None
        self._transient: tuple[type[BaseException], ...] = ()

    @staticmethod
    def parse(url: str) -> tuple[str, str]:
        """`redis://HOST/DB?key=KEY` as (url, key). Raises ValueError without a key."""
        base, _separator, query = url.partition("?")
        fields = dict(parse_qsl(query))
        key = fields.pop("key", "")
        if not key:
            raise ValueError(f"{redacted(url)}: say which data, as in redis://HOST:PORT/DB?key=NAME")
        return f"{base}?{urlencode(fields)}" if fields else base, key

    def acquire(self) -> None:
        redis = load("redis", "redis")
        errors = redis.exceptions
        self._transient = (errors.ConnectionError, errors.TimeoutError, errors.BusyLoadingError)
        self._lock, self._loss = threading.Lock(), ""
        # The worker has its own retry policy, so the library's is off.
        self._client = redis.Redis.from_url(
            self.url,
            socket_timeout=self.timeout_s,
            socket_connect_timeout=self.timeout_s,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )
        # Managed servers may not say it.
        with suppress(errors.ResponseError):
            policy = self._client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
            if policy.startswith("allkeys"):
                raise OSError(
                    f"its maxmemory-policy is {policy}, which drops pages when it is full: set it to noeviction"
                )
        name = self._name()
        if self._wanted_bytes is not None:
            with self._client.pipeline() as pipeline:
                pipeline.hsetnx(name, "size_bytes", self._wanted_bytes)
                pipeline.hsetnx(name, "chunk_bytes", self._chunk_bytes)
                pipeline.hsetnx(name, "write_count", 0)
                pipeline.execute()
        size, chunk, write_count = self._client.hmget(name, "size_bytes", "chunk_bytes", "write_count")
        if size is None or chunk is None or write_count is None:
            raise LookupError(f"there are no data called {self.key}: make them by passing size_bytes=")
        if self._wanted_bytes not in (None, int(size)):
            raise ValueError(f"it has {int(size)} bytes where {self._wanted_bytes} were asked for")
        self.size_bytes, self._chunk_bytes, self._write_count = int(size), int(chunk), int(write_count)

    def release(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def is_transient(self, error: BaseException) -> bool:
        return isinstance(error, self._transient) or super().is_transient(error)

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        pieces = self._pieces(offset_bytes, len(view))
        known = self._write_count
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.hget(self._name(), "write_count")
            for index, start, end, _at in pieces:
                pipeline.getrange(self._name(index), start, end - 1)
            has, *found = pipeline.execute()
        self._check(-1 if has is None else int(has), known)
        for (_index, start, end, at), data in zip(pieces, found, strict=True):
            # A string ends where nothing was written behind.
            view[at : at + len(data)] = data
            view[at + len(data) : at + end - start] = bytes(end - start - len(data))

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        known = self._write_count
        with self._client.pipeline(transaction=False) as pipeline:
            for index, start, end, at in self._pieces(offset_bytes, len(view)):
                pipeline.setrange(self._name(index), start, bytes(view[at : at + end - start]))
            pipeline.hincrby(self._name(), "write_count", 1)
            *_lengths, has = pipeline.execute()
        self._check(has, known + 1)

    def sync(self) -> None:
        known = self._write_count
        with self._client.pipeline(transaction=False) as pipeline:
            # WAIT speaks of its own connection, and replicas get everything in order: who has this write has all before it.
            pipeline.hincrby(self._name(), "write_count", 1)
            if self.replica_count:
                pipeline.wait(self.replica_count, int(self.timeout_s * 500))
            has, *reached = pipeline.execute()
        self._check(has, known + 1)
        if reached and reached[0] < self.replica_count:
            raise TimeoutError(f"only {reached[0]} of {self.replica_count} replicas have it in time")

    def _check(self, has: int, known: int) -> None:
        with self._lock:
            if has < known and not self._loss:
                self._loss = (
                    f"the server has {max(0, has)} of {known} writes: it was started anew without the others; "
                    "restore its data and open them again, or open them again to go on with what it has"
                )
            # For good: our own writes bring the count back, not the pages.
            if self._loss:
                raise OSError(self._loss)
            self._write_count = max(self._write_count, has)

    def _name(self, index: int | None = None) -> str:
        # Braces: a cluster puts all keys with the same text in them on one node.
        return f"{{{self.key}}}" if index is None else f"{{{self.key}}}:{index}"

    def _pieces(self, offset_bytes: int, length_bytes: int) -> list[tuple[int, int, int, int]]:
        """Each chunk of the range: its index, start and end within it, and where that is in the range; in bytes."""
        pieces, at = [], 0
        while at < length_bytes:
            index, start = divmod(offset_bytes + at, self._chunk_bytes)
            end = min(self._chunk_bytes, start + length_bytes - at)
            pieces.append((index, start, end, at))
            at += end - start
        return pieces
