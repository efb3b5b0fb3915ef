"""fsspec's file systems, among them a real S3 endpoint."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from userfault import paging
from userfault.paging.fsspec import FsspecSource, FsspecStore, remove_strays, split
from userfault.paging.memory import MemorySource
from userfault.paging.pytest_plugin import check
from userfault.paging.source import Source, SourceError, Store
from userfault.paging.sources import open_source
from userfault.paging.testing import SourceContract, StoreContract, read


class TestS3(SourceContract):
    sizes_bytes = (100_003,)
    example_count = 8

    @pytest.fixture(autouse=True)
    def _s3(self, s3: Any) -> None:
        self.s3 = s3

    def make(self, data: bytes, directory: Path) -> Source:
        return open_source(self.s3.put("data", data), **self.s3.options)

    def make_broken(self, directory: Path) -> Source:
        return open_source("s3://bucket/missing", **self.s3.options)


class TestS3Chunks(StoreContract):
    """Objects can't be written in place."""

    sizes_bytes = (0, 40_003)
    example_count = 4
    names = itertools.count()

    @pytest.fixture(autouse=True)
    def _s3(self, s3: Any) -> None:
        self.s3 = s3

    def make(self, data: bytes, directory: Path) -> Store:
        self.url = f"s3://bucket/chunks/{next(self.names)}"
        split(MemorySource(data), self.url, chunk_bytes=9000, **self.s3.options)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        store = open_source(self.url, writable=True, **self.s3.options)
        assert isinstance(store, Store)
        return store

    def make_broken(self, directory: Path) -> Source:
        return open_source("s3://bucket/missing", writable=True, **self.s3.options)


class TestLocalInPlace(StoreContract):
    """A file system that writes where it stands."""

    example_count = 20

    def make(self, data: bytes, directory: Path) -> Store:
        (directory / "data").write_bytes(data)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        return FsspecStore(f"local://{directory}/data")

    def make_broken(self, directory: Path) -> Source:
        return FsspecStore(f"local://{directory}/missing")


class TestLocalChunks(StoreContract):
    sizes_bytes = (1, 100_003)
    example_count = 20

    def make(self, data: bytes, directory: Path) -> Store:
        split(MemorySource(data), f"local://{directory}/data", chunk_bytes=5000)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        return FsspecStore(f"local://{directory}/data")

    def make_broken(self, directory: Path) -> Store:
        return FsspecStore(f"local://{directory}/missing")


class TestZip(SourceContract):
    """A file system without range reads of its own."""

    def make(self, data: bytes, directory: Path) -> Source:
        with zipfile.ZipFile(directory / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside/data", data)
        return open_source(f"zip://inside/data::file://{directory}/archive.zip")

    def make_broken(self, directory: Path) -> Source:
        return open_source(f"zip://inside::file://{directory}/missing.zip")


def test_http(s3: Any) -> None:
    s3.put("over http", b"0123456789", ACL="public-read")
    with open_source(f"{s3.endpoint}/bucket/over http") as source:
        assert (source.size_bytes, read(source, 3, 4)) == (10, b"3456")
    with pytest.raises(SourceError, match=r"open http://.*FileNotFoundError") as caught:
        open_source(f"{s3.endpoint}/bucket/none").open()
    assert not caught.value.transient


def test_an_object_that_was_replaced_is_an_error(s3: Any) -> None:
    with open_source(s3.put("replaced", b"0123456789"), **s3.options) as source:
        assert read(source, 3, 4) == b"3456"
        s3.put("replaced", b"abcdefghij")
        with pytest.raises(SourceError, match="FileExpired") as caught:
            read(source, 3, 4)
        assert not caught.value.transient
        with ThreadPoolExecutor(1) as late, pytest.raises(SourceError, match="its ETag is another one"):
            late.submit(read, source, 3, 4).result()


def test_a_file_on_http_that_was_replaced_is_an_error(s3: Any) -> None:
    s3.put("replaced over http", b"0123456789", ACL="public-read")
    with open_source(f"{s3.endpoint}/bucket/replaced over http") as source:
        assert read(source, 3, 4) == b"3456"
        s3.put("replaced over http", b"abcdefghij", ACL="public-read")
        with pytest.raises(SourceError, match="412") as caught:
            read(source, 3, 4)
        assert not caught.value.transient


def test_what_became_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shrinking").write_bytes(b"0123456789")
    with open_source(f"local://{tmp_path}/shrinking") as source:
        (tmp_path / "shrinking").write_bytes(b"01234")
        with pytest.raises(SourceError, match="2 bytes came where 4 were asked for"):
            read(source, 3, 4)


def test_an_object_can_not_be_written_in_place_but_split(s3: Any) -> None:
    url = s3.put("whole", b"0123456789")
    with pytest.raises(SourceError, match=r"S3FileSystem replaces it whole or not at all: make chunks of it.*split"):
        open_source(url, writable=True, **s3.options).open()
    split(open_source(url, **s3.options), "s3://bucket/pieces", chunk_bytes=4, **s3.options)
    with open_source("s3://bucket/pieces", **s3.options) as source:
        assert not isinstance(source, FsspecStore)
        assert read(source, 0, 100) == b"0123456789"
    with pytest.raises(SourceError, match="it has 10 bytes where 2 were asked for"):
        split(MemorySource(b"ab"), "s3://bucket/pieces", **s3.options)


@pytest.mark.usefixtures("can_page")
def test_a_region_over_chunks_in_s3_is_written_back_and_read_again(s3: Any) -> None:
    def child() -> None:
        url, size = "s3://bucket/region", 300_001
        oracle = bytearray(size)
        with paging.open(
            url, access="r+", size_bytes=size, chunk_bytes=100_000, resident="128 KiB", **s3.options
        ) as memory:
            pick = random.Random(1)
            for _round in range(2):
                for _ in range(20):
                    at = pick.randrange(size)
                    memory[at] = oracle[at] = pick.randrange(256)
                memory.flush()
                memory.evict()
                assert memory[:] == oracle
            # Half of a flush, and then nobody is there any more.
            memory[0] = oracle[0] ^ 1
            assert memory._store and memory._worker
            memory._store.write_from(0, memoryview(b"half"))
            os.kill(memory._worker.pid, signal.SIGKILL)
            with paging.open(url, **s3.options) as other:
                assert other[:] == oracle
            oracle[0] ^= 1
            with pytest.raises(SourceError, match="may be lost"):
                memory.flush()
        with paging.open(url, **s3.options) as memory:
            assert memory[:] == oracle

    check(child, deadline_s=60.0)  # five workers import s3fs


def test_a_file_in_memory_is_written_in_place() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/written", b"0123456789")
    with open_source("memory://written", writable=True) as store:
        assert isinstance(store, FsspecStore)
        store.write_from(3, memoryview(b"xyz"))
        assert read(store, 2, 5) == b"2xyz6"
        store.flush()
    assert files.cat("/written") == b"012xyz6789"
    with pytest.raises(SourceError, match="it has 10 bytes where 11 were asked for"):
        open_source("memory://written", writable=True, size_bytes=11).open()


def test_chunks_that_a_writer_left_are_removed(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/data"
    with FsspecStore(url, size_bytes=10, chunk_bytes=4) as store:
        assert store._objects
        store.write_from(0, memoryview(b"0123456789"))
        store.flush()
        store._objects.write_chunk(1, bytearray(b"left"))  # type: ignore[attr-defined]
    assert (remove_strays(url), remove_strays(url)) == (1, 0)
    with FsspecSource(url) as source:
        assert read(source, 0, 10) == b"0123456789"
    (tmp_path / "file").write_bytes(b"x")
    assert remove_strays(f"local://{tmp_path}/file") == 0


def test_threads_do_not_share_a_position() -> None:
    fsspec.filesystem("memory").pipe("/shared", b"0123456789" * 1000)
    with open_source("memory://shared") as source:
        wrong: list[bytes] = []

        def reader(offset: int) -> None:
            wrong.extend(seen for _ in range(200) if (seen := read(source, offset, 1)) != b"%d" % (offset % 10))

        threads = [threading.Thread(target=reader, args=[offset]) for offset in (1, 9992, 5003)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []


@pytest.mark.parametrize("writable", [False, True])
def test_a_directory_of_other_things_is_no_source(writable: bool, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a directory without a manifest"):
        open_source(f"local://{tmp_path}", writable=writable).open()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nosuch://x", "Protocol not known: nosuch"),
        ("gs://bucket/key", "Please install gcsfs"),
        ("memory://none", "FileNotFound"),
    ],
)
def test_what_can_not_be_opened_says_why(url: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        open_source(url).open()


def test_broken_connections_are_transient_by_name_and_status() -> None:
    class ClientPayloadError(Exception):
        pass

    class ClientResponseError(Exception):
        def __init__(self, status: int) -> None:
            self.status = status

    source = FsspecSource("memory://x")
    assert source.is_transient(ClientPayloadError())
    assert source.is_transient(ClientResponseError(503))
    assert source.is_transient(TimeoutError())
    assert not source.is_transient(ClientResponseError(404))
    assert not source.is_transient(FileNotFoundError())
