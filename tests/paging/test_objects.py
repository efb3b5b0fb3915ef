"""Data as objects that are put whole: what a writer that dies at any moment leaves, and two writers."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from userfault.paging.objects import Directory, Manifest, ObjectsSource, ObjectsStore, remove_strays
from userfault.paging.source import SourceError
from userfault.paging.testing import read

SIZE, CHUNK = 1000, 100


class Death(BaseException):
    """The writer is gone: nothing of it runs any more."""


class Mortal(Directory):
    """Dies at the operation with number `last`: before it, after it, or, of a put, half way through."""

    def __init__(self, path: Path, last: int = -1, how: str = "") -> None:
        super().__init__(LocalFileSystem(), str(path))
        self.last, self.how, self.count = last, how, 0

    def _strikes(self) -> bool:
        self.count += 1
        return self.count - 1 == self.last

    def put(self, name: str, data: bytes, *, fresh: bool = False) -> None:
        struck = self._strikes()
        if not struck or self.how == "after":
            super().put(name, data, fresh=fresh)
        elif self.how == "half":
            super().put(name, data[: len(data) // 2], fresh=fresh)
        if struck:
            raise Death

    def remove(self, names: Any) -> None:
        for name in sorted(names):
            struck = self._strikes()
            if not struck or self.how == "after":
                super().remove([name])
            if struck:
                raise Death


def history(kind: type[ObjectsStore], path: Path, last: int, how: str) -> bool:
    """Three flushes of random writes by a writer that dies at one point; whether it lived to the end. Asserts what is left of them."""
    directory = Mortal(path, last, how)
    path.mkdir()
    states, flushed = [bytes(SIZE)], 0
    pick = random.Random(1)
    try:
        store = kind(directory, "data", size_bytes=SIZE, chunk_bytes=CHUNK)
        store.parallel_count, store.cache_bytes = 1, 2 * CHUNK
        store.open()
        for _ in range(3):
            state = bytearray(states[-1])
            for _ in range(5):
                at, data = pick.randrange(SIZE - 150), pick.randbytes(150)
                state[at : at + 150] = data
                store.write_from(at, memoryview(data))
            states.append(bytes(state))
            store.flush()
            flushed += 1
        lived = True
    except Death:
        lived = False
    survivors = Mortal(path)
    if not flushed and survivors.manifests()[1] is None:
        return lived
    with ObjectsSource(survivors, "data") as source:
        found = read(source, 0, SIZE)
    assert found in states[flushed : flushed + 2], "neither the last flush that was done nor the one under way"
    # Whoever comes next goes on from there, and nothing is left lying about.
    with ObjectsStore(survivors, "data") as store:
        store.write_from(0, memoryview(b"next"))
        store.flush()
        remove_strays(survivors)
        assert read(store, 0, SIZE) == b"next" + found[4:]
    with ObjectsSource(survivors, "data") as source:
        assert read(source, 0, SIZE) == b"next" + found[4:]
        assert len(survivors.names("manifests")) == 1
        assert len(survivors.names("chunks")) == len(source._tokens)
    return lived


def every_death(kind: type[ObjectsStore], path: Path) -> int:
    """How many points there are at which the writer can die."""
    for last in itertools.count():
        for how in ("before", "half", "after"):
            if history(kind, path / f"{last} {how}", last, how):
                return last
    raise AssertionError("unreachable")


def test_a_writer_that_dies_leaves_the_last_flush_or_the_one_under_way(tmp_path: Path) -> None:
    assert every_death(ObjectsStore, tmp_path) > 40


class SameNames(ObjectsStore):
    """Puts a chunk where it was before."""

    def write_chunk(self, index: int, data: bytearray) -> None:
        super().write_chunk(index, data)
        name = f"chunks/{index:08}-{self._tokens[index]}"
        self._tokens[index] = "00"
        self.directory.put(f"chunks/{index:08}-00", self.directory.get(name))


class ManifestFirst(ObjectsStore):
    """Names chunks before they are there."""

    def write_chunk(self, index: int, data: bytearray) -> None:
        put, self.directory.put = self.directory.put, lambda *_, **__: None  # type: ignore[method-assign]
        super().write_chunk(index, data)
        self.directory.put = put  # type: ignore[method-assign]
        self.late = [*getattr(self, "late", []), (index, self._tokens[index], bytes(data))]

    def sync_chunks(self) -> None:
        super().sync_chunks()
        for index, token, data in self.late:
            self.directory.put(f"chunks/{index:08}-{token}", data)
        self.late = []

    def read_chunk(self, index: int) -> bytes:
        for late in reversed(getattr(self, "late", [])):
            if late[0] == index:
                return bytes(late[2])
        return super().read_chunk(index)


class RemovesFirst(ObjectsStore):
    """Removes what no longer counts before the new manifest counts."""

    def sync_chunks(self) -> None:
        self.directory.remove(self._obsolete)
        super().sync_chunks()


@pytest.mark.parametrize("mutant", [SameNames, ManifestFirst, RemovesFirst])
def test_the_deaths_find_a_writer_with_another_order(mutant: type[ObjectsStore], tmp_path: Path) -> None:
    with pytest.raises((AssertionError, SourceError)):
        every_death(mutant, tmp_path)


def made(path: Path) -> ObjectsStore:
    path.mkdir()
    return ObjectsStore(Mortal(path), "data", size_bytes=SIZE, chunk_bytes=CHUNK)


def test_the_second_of_two_writers_is_told(tmp_path: Path) -> None:
    with made(tmp_path / "data") as first, ObjectsStore(first.directory, "data") as second:
        first.write_from(0, memoryview(b"first"))
        second.write_from(500, memoryview(b"second"))
        first.flush()
        for _ in range(2):
            with pytest.raises(SourceError, match="another writer") as caught:
                second.flush()
            assert not caught.value.transient
        first.write_from(10, memoryview(b"third"))
        first.flush()
        # Now the manifest that second ran into is gone.
        with pytest.raises(SourceError, match="another writer"):
            second.flush()
    with ObjectsSource(first.directory, "data") as source:
        assert read(source, 0, 15) == b"first\0\0\0\0\0third"
        assert read(source, 500, 6) == bytes(6)


def test_a_put_whose_answer_was_lost_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tmp_path / "data") as store:
        put = store.directory.put

        def put_and_lose(name: str, data: bytes, *, fresh: bool = False) -> None:
            put(name, data, fresh=fresh)
            if fresh:
                raise ConnectionResetError("the answer is lost")

        def put_twice(name: str, data: bytes, *, fresh: bool = False) -> None:
            put(name, data, fresh=fresh)
            if fresh:
                put(name, data, fresh=True)

        for round_, faulty in enumerate([put_and_lose, put_and_lose, put_twice]):
            store.write_from(round_ * 200, memoryview(b"x"))
            monkeypatch.setattr(store.directory, "put", faulty)
            if faulty is put_and_lose:
                with pytest.raises(SourceError) as caught:
                    store.flush()
                assert caught.value.transient
                monkeypatch.setattr(store.directory, "put", put)
                # Written between the two tries: it goes where the first one's manifest does not look.
                store.write_from(round_ * 200 + 1, memoryview(b"y"))
            store.flush()
            with ObjectsSource(store.directory, "data") as source:
                assert read(source, 0, SIZE) == read(store, 0, SIZE)
    assert len(store.directory.numbers()) == 1


def test_what_can_not_be_removed_does_not_fail_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tmp_path / "data") as store:
        for text in (b"1", b"2", b"3"):
            store.write_from(0, memoryview(text))
            with monkeypatch.context() as patch:
                if text == b"2":
                    patch.setattr(store.directory, "remove", lambda names: 1 / 0)
                store.flush()
            count = 2 if text == b"2" else 1
            assert len(store.directory.names("manifests")) == len(store.directory.names("chunks")) == count


def test_a_reader_whose_chunk_was_replaced_is_told(tmp_path: Path) -> None:
    with made(tmp_path / "data") as store:
        store.write_from(0, memoryview(bytes(range(200))))
        store.flush()
        with ObjectsSource(store.directory, "data") as source:
            assert read(source, 150, 1) == b"\x96"
            store.write_from(0, memoryview(b"new"))
            store.flush()
            assert read(source, 150, 1) == b"\x96"
            with pytest.raises(SourceError, match=r"chunk 0 is gone.*open them anew") as caught:
                read(source, 0, 1)
            assert not caught.value.transient


def test_a_chunk_of_another_length_is_an_error(tmp_path: Path) -> None:
    with made(tmp_path / "data") as store:
        store.write_from(0, memoryview(b"x" * 150))
        store.flush()
        (name,) = (name for name in store.directory.names("chunks") if "/00000001-" in name)
        store.directory.put(name, b"short")
        with ObjectsSource(store.directory, "data") as source, pytest.raises(SourceError, match="chunk 1 has 5 bytes"):
            read(source, 100, 1)


def test_another_size_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "data").open().close()
    with pytest.raises(SourceError, match="it has 1000 bytes where 11 were asked for"):
        ObjectsStore(Mortal(tmp_path / "data"), "data", size_bytes=11).open()
    with pytest.raises(ValueError, match="chunk_bytes=0"):
        ObjectsStore(Mortal(tmp_path), "data", chunk_bytes=0)
    with pytest.raises(ValueError, match="size_bytes=-1"):
        ObjectsStore(Mortal(tmp_path), "data", size_bytes=-1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "userfault-chunks-1"}'])
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(ValueError, match="no manifest"):
        Manifest.unpack(text.encode())
