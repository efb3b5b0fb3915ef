"""The contract suites on the sources that need nothing but this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from userfault.paging.callables import CallableSource
from userfault.paging.files import FileSource, FileStore
from userfault.paging.memory import MemorySource, MemoryStore
from userfault.paging.source import Source, Store, ZeroSource
from userfault.paging.testing import SourceContract, StoreContract


class TestZeroSource(SourceContract):
    test_a_failure_is_typed_and_says_what_failed = None  # type: ignore[assignment]  # it can't fail

    def data(self, size_bytes: int) -> bytes:
        return bytes(size_bytes)

    def make(self, data: bytes, directory: Path) -> Source:
        return ZeroSource(len(data))


class TestMemorySource(SourceContract):
    sizes_bytes = (0, 1, 100_003)
    test_a_failure_is_typed_and_says_what_failed = None  # type: ignore[assignment]  # it can't fail

    def make(self, data: bytes, directory: Path) -> Source:
        return MemorySource(data)


class TestMemoryStore(StoreContract):
    test_a_failure_is_typed_and_says_what_failed = None  # type: ignore[assignment]  # it can't fail

    def make(self, data: bytes, directory: Path) -> Store:
        self.kept = bytearray(data)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        return MemoryStore(self.kept)


class TestFileSource(SourceContract):
    sizes_bytes = (0, 1, 100_003)

    def make(self, data: bytes, directory: Path) -> Source:
        (directory / "file").write_bytes(data)
        return FileSource(directory / "file")

    def make_broken(self, directory: Path) -> Source:
        return FileSource(directory / "missing")


class TestPartOfAFile(SourceContract):
    def make(self, data: bytes, directory: Path) -> Source:
        (directory / "file").write_bytes(b"header" + data + b"trailer")
        return FileSource(directory / "file", offset_bytes=6, size_bytes=len(data))

    def make_broken(self, directory: Path) -> Source:
        (directory / "short").write_bytes(b"short")
        return FileSource(directory / "short", size_bytes=6)


class TestDirectFile(SourceContract):
    def make(self, data: bytes, directory: Path) -> Source:
        (directory / "file").write_bytes(bytes(4096) + data)
        return FileSource(directory / "file", offset_bytes=4096, direct=True)

    def make_broken(self, directory: Path) -> Source:
        return FileSource(directory, direct=True)


class TestFileStore(StoreContract):
    def make(self, data: bytes, directory: Path) -> Store:
        (directory / "file").write_bytes(data)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        return FileStore(directory / "file")

    def make_broken(self, directory: Path) -> Store:
        return FileStore(directory / "missing")


class TestCallableThatFills(SourceContract):
    def make(self, data: bytes, directory: Path) -> Source:
        def fill(offset: int, view: memoryview) -> None:
            view[:] = data[offset : offset + len(view)]

        return CallableSource(fill, len(data))

    def make_broken(self, directory: Path) -> Source:
        return CallableSource(lambda offset, view: 1 // 0, 10)


class TestCallableThatReturns(SourceContract):
    def make(self, data: bytes, directory: Path) -> Source:
        return CallableSource(lambda offset, length: data[offset : offset + length], len(data), parallel_count=4)

    def make_broken(self, directory: Path) -> Source:
        return CallableSource(lambda offset, length: b"too short", 10)


def test_a_callables_style_is_told_by_its_second_parameter() -> None:
    def styles(*functions: object) -> list[str]:
        return [CallableSource(function, 1).style for function in functions]  # type: ignore[arg-type]

    def annotated(at: int, what: memoryview) -> None: ...

    def counted(at: int, what: int) -> bytes:
        return b""

    assert styles(lambda at, view: None, lambda at, buffer: None, annotated) == ["view"] * 3
    assert styles(lambda at, length: b"", lambda at, n: b"", counted) == ["length"] * 3
    assert CallableSource(lambda a, b: b"", 1, style="length").style == "length"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda a, b: None, "second parameter is called b.*name its second parameter `view` or `length`"),
        (lambda a: None, "takes 1 positional parameters"),
        (dict.update, "pass style=|takes"),
    ],
)
def test_a_callable_of_no_known_style_is_refused(function: object, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        CallableSource(function, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (7, TypeError, "int has no buffer"),
        (memoryview(bytes(10))[::2], ValueError, "not C-contiguous: copy it first"),
    ],
)
def test_memory_that_is_no_buffer_is_refused(data: object, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        MemorySource(data)


def test_read_only_memory_is_no_store() -> None:
    with pytest.raises(TypeError, match="read-only"):
        MemoryStore(b"abc")
