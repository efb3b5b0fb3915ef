"""Compressed files: zstd's seekable format and Blosc2."""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
from pathlib import Path

import blosc2
import numpy
import pytest
import zstandard

from userfault.paging.blosc2 import Blosc2Source, Blosc2Store
from userfault.paging.chunked import ChunkedStore
from userfault.paging.files import FileSource
from userfault.paging.source import Source, SourceError, Store
from userfault.paging.sources import open_source
from userfault.paging.testing import SourceContract, StoreContract, read
from userfault.paging.zstd import ZstdSource, ZstdStore, compress_file


def compressed(data: bytes, directory: Path, frame_bytes: int = 10_000) -> Path:
    (directory / "data").write_bytes(data)
    compress_file(directory / "data", directory / "data.zst", frame_bytes=frame_bytes, level=1)
    return directory / "data.zst"


class TestZstdSource(SourceContract):
    sizes_bytes = (0, 1, 10_000, 100_003)

    def make(self, data: bytes, directory: Path) -> Source:
        return ZstdSource(compressed(data, directory))

    def make_broken(self, directory: Path) -> Source:
        (directory / "plain.zst").write_bytes(zstandard.compress(b"no seek table"))
        return ZstdSource(directory / "plain.zst")


class TestZstdStore(StoreContract):
    example_count = 12

    def make(self, data: bytes, directory: Path) -> Store:
        compressed(data, directory)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        store = ZstdStore(directory / "data.zst", level=1)
        # So small that chunks come and go all the time.
        store.cache_bytes = 30_000
        return store

    def make_broken(self, directory: Path) -> Store:
        return ZstdStore(directory / "missing.zst")


class TestBlosc2Store(StoreContract):
    example_count = 12

    def make(self, data: bytes, directory: Path) -> Store:
        blosc2.SChunk(
            chunksize=10_000,
            data=data,
            cparams={"typesize": 1},
            urlpath=str(directory / "data.b2frame"),
            contiguous=True,
        )
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        store = Blosc2Store(directory / "data.b2frame")
        store.cache_bytes = 30_000
        return store

    def make_broken(self, directory: Path) -> Store:
        return Blosc2Store(directory / "missing.b2frame")


class TestSparseBlosc2(TestBlosc2Store):
    example_count = 4
    test_it_works_where_it_will_run = None  # type: ignore[assignment]

    def make(self, data: bytes, directory: Path) -> Store:
        path = str(directory / "data.b2frame")
        blosc2.SChunk(chunksize=10_000, data=data, cparams={"typesize": 1}, urlpath=path, contiguous=False)
        return self.reopen(directory)


class TestBlosc2Array(StoreContract):
    """Chunks that are no multiple of their blocks are stored with padding."""

    sizes_bytes = (4, 100_000)
    example_count = 8
    test_it_works_where_it_will_run = None  # type: ignore[assignment]

    def make(self, data: bytes, directory: Path) -> Store:
        array = numpy.frombuffer(data, "i4")
        chunk = min(len(array), 3000)
        blosc2.asarray(array, urlpath=str(directory / "data.b2nd"), chunks=(chunk,), blocks=(min(chunk, 700),))
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        return Blosc2Store(directory / "data.b2nd")

    def make_broken(self, directory: Path) -> Store:
        path = directory / "plane.b2nd"
        blosc2.asarray(numpy.zeros((10, 10)), urlpath=str(path))
        return Blosc2Store(path)


def test_an_array_that_was_written_back_is_what_blosc2_reads(tmp_path: Path) -> None:
    path = tmp_path / "data.b2nd"
    blosc2.asarray(numpy.arange(10_000, dtype="i4"), urlpath=str(path), chunks=(3000,), blocks=(700,))
    with Blosc2Store(path) as store:
        store.write_from(4 * 9_990, memoryview(numpy.full(10, -1, "i4").tobytes()))
        store.flush()
    expected = numpy.arange(10_000, dtype="i4")
    expected[-10:] = -1
    assert (blosc2.open(str(path))[:] == expected).all()


def test_zstd_itself_reads_a_file_that_was_written_back(tmp_path: Path) -> None:
    data = bytearray(random.Random(0).randbytes(35_000))
    path = compressed(bytes(data), tmp_path)
    with ZstdStore(path) as store:
        store.write_from(19_990, memoryview(b"new" * 10))
        store.flush()
    data[19_990:20_020] = b"new" * 10
    with path.open("rb") as file:
        frames = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        assert frames.read() == data


def test_a_seek_table_with_checksums_is_read(tmp_path: Path) -> None:
    """As t2sz writes it."""
    path = compressed(b"x" * 25_000, tmp_path)
    raw = path.read_bytes()
    entries = 3
    table = raw[-(8 * entries + 9) : -9]
    frames = raw[: -(8 * entries + 9 + 8)]
    wider = b"".join(table[i : i + 8] + b"\xee\xee\xee\xee" for i in range(0, len(table), 8))
    footer = raw[-9:-5] + b"\x80" + raw[-4:]
    path.write_bytes(frames + raw[-(8 * entries + 17) :][:4] + (len(wider) + 9).to_bytes(4, "little") + wider + footer)
    with ZstdSource(path) as source:
        assert read(source, 0, 30_000) == b"x" * 25_000


@pytest.mark.parametrize("cut", [1, 5, 9, 20, 40])
def test_a_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = compressed(b"x" * 25_000, tmp_path)
    path.write_bytes(path.read_bytes()[cut:])
    with pytest.raises(SourceError, match="compress it anew"):
        ZstdSource(path).open()


def test_a_damaged_frame_is_noticed(tmp_path: Path) -> None:
    path = compressed(random.Random(0).randbytes(25_000), tmp_path)
    raw = bytearray(path.read_bytes())
    raw[15_000] ^= 1
    path.write_bytes(raw)
    with ZstdSource(path) as source:
        assert len(read(source, 0, 10_000)) == 10_000
        with pytest.raises(SourceError, match="ZstdError"):
            read(source, 10_000, 10_000)


def test_a_flush_replaces_the_file_that_a_link_leads_to_and_keeps_its_mode(tmp_path: Path) -> None:
    path = compressed(b"x" * 25_000, tmp_path)
    path.chmod(0o640)
    link = tmp_path / "link.zst"
    link.symlink_to(path)
    with ZstdStore(link) as store:
        store.write_from(0, memoryview(b"y"))
        store.flush()
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    with ZstdSource(path) as source:
        assert read(source, 0, 2) == b"yx"
    assert sorted(os.listdir(tmp_path)) == ["data", "data.zst", "link.zst"]


def test_a_flush_that_fails_leaves_the_old_file_and_the_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compressed(b"x" * 25_000, tmp_path)
    before = path.read_bytes()
    with ZstdStore(path) as store:
        store.write_from(0, memoryview(b"y"))
        with monkeypatch.context() as broken:

            def full(fd: int) -> None:
                raise OSError(28, "No space left on device")

            broken.setattr(os, "fsync", full)
            with pytest.raises(SourceError, match="No space left"):
                store.flush()
        assert path.read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["data", "data.zst"]
        assert read(store, 0, 2) == b"yx"
        store.flush()
    with ZstdSource(path) as source:
        assert read(source, 0, 2) == b"yx"


def test_readers_go_on_while_a_flush_replaces_the_file(tmp_path: Path) -> None:
    path = compressed(bytes(100_000), tmp_path, 1000)
    store = ZstdStore(path)
    store.cache_bytes = 0
    stop = threading.Event()
    wrong: list[bytes] = []

    def reader() -> None:
        while not stop.is_set():
            seen = read(store, 50_000, 1000)
            if len(set(seen)) != 1:
                wrong.append(seen)

    with store:
        threads = [threading.Thread(target=reader) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, 8):
            store.write_from(50_000, memoryview(bytes([number]) * 1000))
            store.flush()
        stop.set()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert read(store, 50_000, 1000) == b"\x07" * 1000


def test_compressed_files_are_known_by_their_suffix(tmp_path: Path) -> None:
    path = compressed(b"x" * 10, tmp_path)
    assert type(open_source(path)) is ZstdSource
    assert type(open_source(str(path), writable=True)) is ZstdStore
    assert type(open_source(FileSource(path))) is FileSource
    assert type(open_source("a.b2nd")) is Blosc2Source
    assert type(open_source("a.b2frame", writable=True)) is Blosc2Store


@pytest.mark.parametrize(("name", "module", "extra"), [("a.zst", "zstandard", "zstd"), ("a.b2nd", "blosc2", "blosc2")])
def test_a_missing_library_is_named_with_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SourceError, match=rf"{module} is not installed: pip install 'userfault\[{extra}\]'"):
        open_source(name).open()


class Chunks(ChunkedStore):
    """Chunks of 10 bytes in a dict; writing chunk number `fails` fails."""

    name, size_bytes, cache_bytes = "chunks", 1000, 30

    def acquire(self) -> None:
        self.open_cache()
        self.stored: dict[int, bytes] = {}
        self.reads: list[int] = []
        self.fails = -1

    def chunk_at(self, offset_bytes: int) -> tuple[int, int, int]:
        index = offset_bytes // 10
        return index, index * 10, index * 10 + 10

    def read_chunk(self, index: int) -> bytes:
        self.reads.append(index)
        return self.stored.get(index, bytes(10))

    def write_chunk(self, index: int, data: bytearray) -> None:
        if index == self.fails:
            raise OSError("disk full")
        self.stored[index] = bytes(data)


def test_the_pages_of_a_chunk_cost_one_read() -> None:
    with Chunks() as store:
        for offset in range(10):
            read(store, offset, 1)
        assert store.reads == [0]


def test_a_chunk_that_is_overwritten_whole_is_not_read() -> None:
    with Chunks() as store:
        store.write_from(0, memoryview(b"x" * 15))
        assert store.reads == [1]


def test_the_cache_holds_what_it_may_and_the_last_used_stay() -> None:
    with Chunks() as store:
        for index in (0, 1, 2, 0, 3):
            read(store, index * 10, 1)
        store.reads.clear()
        for index in (0, 2, 3, 1):
            read(store, index * 10, 1)
        assert store.reads == [1]


def test_dirty_chunks_are_written_when_their_place_is_needed() -> None:
    with Chunks() as store:
        store.write_from(0, memoryview(b"x"))
        assert store.stored == {}
        read(store, 100, 300)
        assert store.stored == {0: b"x" + bytes(9)}
        assert read(store, 0, 2) == b"x\0"


def test_a_chunk_that_can_not_be_written_stays_and_reads_go_on() -> None:
    with Chunks() as store:
        store.write_from(0, memoryview(b"x"))
        store.fails = 0
        for offset in range(100, 900, 10):
            assert read(store, offset, 10) == bytes(10)
        with pytest.raises(SourceError, match="disk full"):
            store.flush()
        with pytest.raises(SourceError, match="disk full"):
            for offset in range(100, 200, 10):
                store.write_from(offset, memoryview(b"y" * 10))
        store.fails = -1
        store.flush()
        assert store.stored[0] == b"x" + bytes(9)
