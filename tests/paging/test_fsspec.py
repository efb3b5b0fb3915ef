"""fsspec's file systems, among them a real S3 endpoint."""

from __future__ import annotations

import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from userfault.paging.fsspec import FsspecSource
from userfault.paging.source import Source, SourceError
from userfault.paging.sources import open_source
from userfault.paging.testing import SourceContract, read


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
            thread.join(20)
        assert wrong == []


def test_a_directory_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="IsADirectoryError"):
        open_source(f"local://{tmp_path}").open()


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
