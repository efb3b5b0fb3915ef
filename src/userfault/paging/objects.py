"""Data as objects that are only ever put whole, as object stores have them: one object a chunk, and a manifest that names them.

In the directory: `chunks/00000123-TOKEN`, the bytes of chunk 123; `manifests/0000000042.json`, of which the one with the highest number
counts:

    {"format": "userfault-chunks-1", "size_bytes": 1000000, "chunk_bytes": 65536, "commit": "9f...", "chunks": {"123": TOKEN, ...}}

What no manifest names was never written, and is zeros. Nothing is ever put twice under one name, so a reader sees no mixture, and a
manifest is put after all that it names: a writer that dies leaves the last one that was complete.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .chunked import ChunkedSource, ChunkedStore

FORMAT = "userfault-chunks-1"
CHUNK_BYTES = 1 << 20
"""How much data an object holds unless told otherwise."""
_MANIFEST = re.compile(r"manifests/(\d{10})\.json")
_LOOK_COUNT = 10


@dataclass(frozen=True)
class Manifest:
    """What there is: `tokens` says of each chunk that was written in which object it lies."""

    size_bytes: int
    chunk_bytes: int
    commit: str
    tokens: Mapping[int, str]

    def pack(self) -> bytes:
        """As it stands in its object."""
        sizes = {"size_bytes": self.size_bytes, "chunk_bytes": self.chunk_bytes}
        return json.dumps({"format": FORMAT, **sizes, "commit": self.commit, "chunks": self.tokens}).encode()

    @staticmethod
    def unpack(data: bytes) -> Manifest:
        """Raises ValueError for anything else, among it a manifest whose end is missing."""
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT:
                raise ValueError(f"its format is {fields['format']!r}")
            tokens = {int(index): token for index, token in fields["chunks"].items()}
            return Manifest(int(fields["size_bytes"]), int(fields["chunk_bytes"]), fields["commit"], tokens)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no manifest: {error!r}") from error


class Directory:
    """The objects in the directory `path` of an fsspec file system."""

    def __init__(self, files: Any, path: str) -> None:
        self.files, self.path = files, path.rstrip("/")

    def names(self, part: str) -> list[str]:
        """Of all objects there are now in "manifests" or "chunks"."""
        self.files.invalidate_cache()
        try:
            found = self.files.ls(f"{self.path}/{part}", detail=False)
        except FileNotFoundError:
            return []
        return [f"{part}/{name.rpartition('/')[2]}" for name in found]

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        data: bytes = self.files.cat_file(f"{self.path}/{name}")
        return data

    def put(self, name: str, data: bytes, *, fresh: bool = False) -> None:
        """Raises FileExistsError where it is to be `fresh` and is not."""
        self.files.pipe_file(f"{self.path}/{name}", data, mode="create" if fresh else "overwrite")

    def remove(self, names: Collection[str]) -> None:
        """Raises what the file system raises where one of them is still there afterwards."""
        paths = [f"{self.path}/{name}" for name in names]
        if not paths:
            return
        try:
            self.files.rm(paths)
        except Exception:
            # One that is not there may have kept the others from being removed.
            for path in paths:
                with suppress(FileNotFoundError):
                    self.files.rm_file(path)

    def make(self) -> None:
        """Where directories are more than the beginning of names."""
        for path in (self.path, f"{self.path}/manifests", f"{self.path}/chunks"):
            with suppress(FileExistsError):
                self.files.mkdir(path, create_parents=False)

    def numbers(self) -> list[int]:
        """Of the manifests there are, in order."""
        return sorted(int(found[1]) for found in map(_MANIFEST.fullmatch, self.names("manifests")) if found)

    def manifests(self) -> tuple[list[int], Manifest | None]:
        """The numbers that are taken, and the manifest that counts, if there is one."""
        for _ in range(_LOOK_COUNT):
            numbers = self.numbers()
            for number in reversed(numbers):
                try:
                    return numbers, Manifest.unpack(self.get(manifest_name(number)))
                except ValueError:
                    # A put that was cut short, where the file system does not keep it whole: the one before is still there.
                    continue
                except FileNotFoundError:
                    # Replaced between the look and the read.
                    break
            else:
                return numbers, None
        raise OSError(errno.EBUSY, f"{self.path} is written all the time: a manifest is replaced before it can be read")


def manifest_name(number: int) -> str:
    return f"manifests/{number:010}.json"


def chunk_name(index: int, token: str) -> str:
    return f"chunks/{index:08}-{token}"


class ObjectsSource(ChunkedSource):
    """The data whose chunks lie in `directory`. `name` is for people."""

    parallel_count = 8

    def __init__(self, directory: Directory, name: str) -> None:
        self.directory, self.name = directory, name

    def acquire(self) -> None:
        self.open_cache()
        _numbers, manifest = self.directory.manifests()
        self._adopt(manifest)

    def chunk_at(self, offset_bytes: int) -> tuple[int, int, int]:
        index = offset_bytes // self._chunk_bytes
        return index, index * self._chunk_bytes, min(self.size_bytes, (index + 1) * self._chunk_bytes)

    def read_chunk(self, index: int) -> bytes:
        token = self._tokens.get(index)
        if token is None:
            _index, start, end = self.chunk_at(index * self._chunk_bytes)
            return bytes(end - start)
        try:
            return self.directory.get(chunk_name(index, token))
        except FileNotFoundError:
            raise LookupError(
                f"the object of chunk {index} is gone: a writer replaced the data while they were in use; open them anew"
            ) from None

    def _adopt(self, manifest: Manifest | None) -> None:
        if manifest is None:
            raise FileNotFoundError(f"{self.name} is a directory without a manifest: make data there with size_bytes=")
        self.size_bytes, self._chunk_bytes = manifest.size_bytes, manifest.chunk_bytes
        self._tokens = dict(manifest.tokens)


class ObjectsStore(ObjectsSource, ChunkedStore):
    """The same, written back; with `size_bytes` data of that size are made where there are none.

    Chunks go to objects of their own; a flush puts the manifest that names them, and then removes what no longer counts: it is all or
    nothing. One writer at a time: a second one's flush fails, for manifests are numbered and each number is put once (a file system that
    can't refuse to replace an object is asked before). A writer that dies leaves chunks that nobody names: `remove_strays`.
    """

    sync_is_atomic = True

    def __init__(
        self, directory: Directory, name: str, *, size_bytes: int | None = None, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes={chunk_bytes}: it is at least 1")
        if size_bytes is not None and size_bytes < 0:
            raise ValueError(f"size_bytes={size_bytes}: it can't be negative")
        super().__init__(directory, name)
        self._wanted_bytes, self._wanted_chunk_bytes = size_bytes, chunk_bytes

    def acquire(self) -> None:
        self.open_cache()
        self._sync_lock, self._commits, self._unflushed = threading.Lock(), set[str](), False
        numbers, manifest = self.directory.manifests()
        self._number = numbers[-1] if numbers else 0
        self._obsolete = {manifest_name(number) for number in numbers}
        if manifest is None and self._wanted_bytes is not None:
            manifest = Manifest(self._wanted_bytes, self._wanted_chunk_bytes, secrets.token_hex(8), {})
            self.directory.make()
            self._put(manifest)
        self._adopt(manifest)
        if self._wanted_bytes not in (None, self.size_bytes):
            raise ValueError(f"it has {self.size_bytes} bytes where {self._wanted_bytes} were asked for")

    def write_chunk(self, index: int, data: bytearray) -> None:
        token = secrets.token_hex(4)
        self.directory.put(chunk_name(index, token), bytes(data))
        with self._lock:
            was, self._tokens[index] = self._tokens.get(index), token
            if was:
                self._obsolete.add(chunk_name(index, was))
            self._unflushed = True

    def sync_chunks(self) -> None:
        with self._sync_lock:
            with self._lock:
                if not self._unflushed:
                    return
                manifest = Manifest(self.size_bytes, self._chunk_bytes, secrets.token_hex(8), dict(self._tokens))
                obsolete = set(self._obsolete)
                self._unflushed = False
            try:
                self._put(manifest)
            except BaseException:
                self._unflushed = True
                raise
            # What can't be removed now is tried again after the next flush: this one is done.
            with suppress(Exception):
                self.directory.remove(obsolete)
                with self._lock:
                    self._obsolete -= obsolete

    def _put(self, manifest: Manifest) -> None:
        """Under the next number that is free. Raises LookupError where there is another writer."""
        self._commits.add(manifest.commit)
        data = manifest.pack()
        while True:
            name = manifest_name(self._number + 1)
            try:
                self.directory.put(name, data, fresh=True)
                break
            except FileExistsError:
                if self._commit_of(name) == manifest.commit:
                    # The first try succeeded, only its answer was lost.
                    break
                self._number += 1
                self._obsolete.add(name)
        # Its number may have been free because somebody else has had it and gone on. The highest one is never removed.
        if self.directory.numbers()[-1] != self._number + 1:
            raise self._second_writer()
        self._number += 1
        self._obsolete.add(name)

    def _commit_of(self, name: str) -> str:
        """Of one of our own manifests, or nothing for one that was cut short. Raises LookupError for another writer's."""
        try:
            commit = Manifest.unpack(self.directory.get(name)).commit
        except ValueError:
            return ""
        except FileNotFoundError:
            raise self._second_writer() from None
        if commit not in self._commits:
            raise self._second_writer()
        return commit

    def _second_writer(self) -> LookupError:
        return LookupError(
            f"another writer has flushed {self.name}, without what was written here: one writer at a time. Open it anew"
        )


def remove_strays(directory: Directory) -> int:
    """Remove the objects that no manifest names, which writers that died have left, and say how many they were.

    Nobody may be writing the data meanwhile. Raises what the file system raises.
    """
    _numbers, manifest = directory.manifests()
    if manifest is None:
        return 0
    named = {chunk_name(index, token) for index, token in manifest.tokens.items()}
    strays = [name for name in directory.names("chunks") if name not in named]
    directory.remove(strays)
    return len(strays)
