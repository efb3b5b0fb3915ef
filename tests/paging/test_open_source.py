from __future__ import annotations

import array
import os
from pathlib import Path
from typing import Any

import pytest

from userfault.paging.callables import CallableSource
from userfault.paging.files import FileSource, FileStore
from userfault.paging.memory import MemorySource, MemoryStore
from userfault.paging.source import ZeroSource
from userfault.paging.sources import open_source
from userfault.paging.tcp import RemoteSource, RemoteStore
from userfault.paging.testing import read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some file"
    path.write_bytes(b"0123456789")
    return path


def test_files_by_path_and_url(file: Path) -> None:
    for name in (file, str(file), file.as_uri(), os.path.relpath(file)):
        with open_source(name) as source:
            assert type(source) is FileSource
            assert read(source, 5, 10) == b"56789"
    with open_source(file, size_bytes=3, offset_bytes=2) as source:
        assert read(source, 0, 10) == b"234"
    assert type(open_source(file, writable=True)) is FileStore


def test_memory() -> None:
    for data in (b"0123", bytearray(b"0123"), memoryview(b"0123"), array.array("I", b"0123")):
        with open_source(data) as source:
            assert type(source) is MemorySource
            assert read(source, 1, 10) == b"123"
    assert type(open_source(bytearray(4), writable=True)) is MemoryStore


def test_functions_zeros_servers_and_sources() -> None:
    source = open_source(lambda offset, view: None, size_bytes=7, parallel_count=3)
    assert type(source) is CallableSource and (source.size_bytes, source.parallel_count) == (7, 3)
    zeros = open_source(None, size_bytes=7)
    assert type(zeros) is ZeroSource and zeros.size_bytes == 7
    remote = open_source("tcp://[::1]:7437", timeout_s=2.0)
    assert type(remote) is RemoteSource and remote.timeout_s == 2.0
    assert type(open_source("tcp://host:1", writable=True)) is RemoteStore
    assert open_source(source) is source


@pytest.mark.parametrize(
    ("what", "options", "kind", "why"),
    [
        (7, {}, TypeError, "a int is no source: pass a path, a URL"),
        (None, {}, ValueError, "zeros: say how many bytes"),
        (len, {}, ValueError, "len: say how many bytes"),
        (b"", {"size_bytes": 1}, TypeError, "takes no size_bytes"),
        (ZeroSource(1), {"direct": True}, TypeError, "takes no direct"),
        ("tcp://host", {}, ValueError, "is no TCP address"),
        ("redis://host/0", {}, ValueError, "say which data"),
        ("s3://bucket/key", {"size_bytes": 1}, TypeError, "takes no size_bytes"),
        ("file://host/x", {}, ValueError, "a file URL is file:///PATH"),
        (None, {"size_bytes": -1}, ValueError, "size_bytes=-1 is no whole number"),
        (None, {"size_bytes": "8 GiB"}, ValueError, "size_bytes='8 GiB' is no whole number"),
        ("x", {"size_bytes": -1}, ValueError, "neither can be negative"),
        (b"abc", {"writable": True}, TypeError, "read-only"),
        (ZeroSource(1), {"writable": True}, ValueError, "can't be written back"),
    ],
)
def test_what_can_not_be_a_source_is_refused(
    what: Any, options: dict[str, Any], kind: type[Exception], why: str
) -> None:
    with pytest.raises(kind, match=why):
        open_source(what, **options)
