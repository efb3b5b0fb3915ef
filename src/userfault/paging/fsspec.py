"""Whatever fsspec can read and write: s3://, gs://, http://, sftp://, zip:// and many more, with their credentials and options."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from typing import Any

from .extras import load
from .objects import CHUNK_BYTES, Directory, ObjectsSource, ObjectsStore
from .objects import remove_strays as _remove_strays
from .source import Source, SourceError, Store, redacted

_TRANSIENT_NAMES = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerTimeoutError",
        "HTTPClientError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "IncompleteRead",
        "IncompleteReadError",
        "ProtocolError",
        "ResponseStreamingError",
    }
)
"""Broken connections in aiohttp, botocore and urllib3, which need not be installed."""
_IN_PLACE = frozenset({"file", "local", "memory", "sftp", "ssh", "smb"})
"""File systems whose open files write where they stand. Others have `r+b` too, and replace the whole by what was written."""
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class FsspecSource(Source):
    """The file at a URL that fsspec understands, or the data that a FsspecStore has made there as a directory of chunks.

    `storage_options` are those of its file system, such as s3fs's `endpoint_url`.

    Requests that pile up side by side, or at most `coalesce_gap_bytes` apart, become one of up to `coalesce_bytes`; no more than
    `parallel_count` are under way. What the URL names must not change: on S3 and HTTP, one that was replaced is an error (its ETag goes
    with each request), and so is one that became shorter; elsewhere a replacement of the same length can't be told.
    """

    def __init__(
        self,
        url: str,
        *,
        parallel_count: int = 8,
        coalesce_bytes: int = 8 << 20,
        coalesce_gap_bytes: int = 64 << 10,
        **storage_options: Any,
    ) -> None:
        self.url, self.storage_options = url, storage_options
        self.name = redacted(url)
        self.parallel_count = parallel_count
        self.coalesce_bytes, self.coalesce_gap_bytes = coalesce_bytes, coalesce_gap_bytes
        self._handles: list[Any] = []
        self._objects: ObjectsSource | None = None

    def acquire(self) -> None:
        self._find()
        if self._info.get("type") == "directory":
            self._open_objects(ObjectsSource(self._directory(), self.name))
        else:
            self._acquire_file()

    def release(self) -> None:
        if self._objects:
            self._objects.close()
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.close()

    def _find(self) -> None:
        load("fsspec", "fsspec")
        self._files, self._path = load("fsspec.core", "fsspec").url_to_fs(self.url, **self.storage_options)
        # What another process has made since this one last looked is no secret.
        self._files.invalidate_cache()
        self._info = self._files.info(self._path)

    def _directory(self) -> Directory:
        return Directory(self._files, self._path)

    def _open_objects(self, objects: ObjectsSource) -> None:
        self._objects = objects
        objects.open()
        self.size_bytes = objects.size_bytes
        # Each chunk is one request whatever it is asked for.
        self.parallel_count, self.coalesce_bytes = objects.parallel_count, 0

    def _acquire_file(self) -> None:
        if self._info.get("size") is None:
            raise OSError(
                f"{self.name} does not say how long it is, so it can't be read at an offset: download it first"
            )
        self.size_bytes = int(self._info["size"])
        # Remote file systems have no such method in their class; their open files ask for ranges, with the ETag.
        plain = load("fsspec.spec", "fsspec").AbstractFileSystem.cat_file
        self._has_ranges = type(self._files).cat_file is not plain
        self._lock, self._of_thread = threading.Lock(), threading.local()

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if self._objects:
            self._objects.read_exactly(offset_bytes, view)
            return
        if self._has_ranges:
            data = self._files.cat_file(self._path, start=offset_bytes, end=offset_bytes + len(view))
        else:
            handle = self._handle()
            handle.seek(offset_bytes)
            data = handle.read(len(view))
        _check_length(data, view)
        view[:] = data

    def is_transient(self, error: BaseException) -> bool:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "FileExpired" in names:
            return False
        status = getattr(error, "status", None)
        return bool(names & _TRANSIENT_NAMES) or status in _TRANSIENT_STATUS or super().is_transient(error)

    def _handle(self) -> Any:
        """This thread's open file, whose position is nobody else's. It keeps nothing: the pages are the cache."""
        handle = getattr(self._of_thread, "handle", None)
        if handle is None:
            handle = self._files.open(self._path, "rb", cache_type="none", **self._precondition())
            with self._lock:
                self._handles.append(handle)
            known, found = self._info.get("ETag"), (getattr(handle, "details", None) or {}).get("ETag")
            if known and found and known != found:
                raise OSError(f"{self.name} was replaced while it was in use: its ETag is another one")
            self._of_thread.handle = handle
        return handle

    def _precondition(self) -> dict[str, Any]:
        """What makes an HTTP server refuse to serve another file in its place; s3fs does that by itself."""
        tag = self._info.get("ETag", "")
        if "http" not in self._files.protocol or not tag.startswith('"'):
            return {}
        return {"headers": {**self._files.kwargs.get("headers", {}), "If-Match": tag}}


class FsspecStore(FsspecSource, Store):
    """The same, written back: a file in place where its file system can do that, otherwise as a directory of chunks.

    - A file that is there is opened for reading and writing, which local disks, SFTP and SMB can do. One thread reads and writes it.
      How durable a flush is, is the file system's affair (a local file is synced); a crash in one leaves some pages old and some new.
    - Object stores (S3, GCS, Azure) only replace objects whole. With `size_bytes`, data of that size are made in a directory of this
      name where nothing is: an object for each `chunk_bytes`, see `objects.ObjectsStore`, whose flush is all or nothing. A single
      object is refused: `split` makes chunks of it.

    What fsspec keeps in this process (`memory://`) is not seen by a worker: give a region a MemoryStore.
    """

    def __init__(
        self, url: str, *, size_bytes: int | None = None, chunk_bytes: int = CHUNK_BYTES, **options: Any
    ) -> None:
        super().__init__(url, **options)
        self._wanted_bytes, self._chunk_bytes = size_bytes, chunk_bytes
        self._file: Any = None

    def acquire(self) -> None:
        try:
            self._find()
        except FileNotFoundError:
            if self._wanted_bytes is None:
                raise
            self._info = {"type": "directory"}
        if self._info.get("type") == "directory":
            store = ObjectsStore(
                self._directory(), self.name, size_bytes=self._wanted_bytes, chunk_bytes=self._chunk_bytes
            )
            self._open_objects(store)
            self._store: ObjectsStore | None = store
            self.sync_is_atomic = True
            return
        self._store = None
        self._acquire_file()
        if self._wanted_bytes not in (None, self.size_bytes):
            raise ValueError(f"it has {self.size_bytes} bytes where {self._wanted_bytes} were asked for")
        self._file = self._opened_in_place()
        self._handles.append(self._file)
        self.parallel_count = 1

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if self._store:
            self._store.read_exactly(offset_bytes, view)
            return
        # By the handle that writes: another one may still have the old bytes in its buffer.
        with self._lock:
            self._file.seek(offset_bytes)
            data = self._file.read(len(view))
        _check_length(data, view)
        view[:] = data

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if self._store:
            self._store.write_exactly(offset_bytes, view)
            return
        with self._lock:
            self._file.seek(offset_bytes)
            self._file.write(bytes(view))

    def sync(self) -> None:
        if self._store:
            self._store.sync()
            return
        with self._lock:
            self._file.flush()
            number = None
            with suppress(Exception):  # Most are no files of this machine.
                number = self._file.fileno()
            if number is not None:
                os.fsync(number)

    def _opened_in_place(self) -> Any:
        kinds = self._files.protocol
        if not _IN_PLACE.isdisjoint([kinds] if isinstance(kinds, str) else kinds):
            return self._files.open(self._path, "r+b")
        raise OSError(
            errno.EROFS,
            f"{self.name} can't be written in place, {type(self._files).__name__} replaces it whole or not at all: make chunks of it "
            "with userfault.paging.fsspec.split, or open it with access='c'",
        )


def split(
    source: Source, url: str, *, chunk_bytes: int = CHUNK_BYTES, piece_bytes: int = 8 << 20, **storage_options: Any
) -> None:
    """Copy the data of `source`, which is not open yet, into chunks at `url`, for a FsspecStore. All of them appear at once.

    Raises SourceError where one of the two fails, and where data of another size are there already.
    """
    with source, FsspecStore(url, size_bytes=source.size_bytes, chunk_bytes=chunk_bytes, **storage_options) as target:
        buffer = memoryview(bytearray(piece_bytes))
        for at in range(0, source.size_bytes, piece_bytes):
            with buffer[: min(piece_bytes, source.size_bytes - at)] as piece:
                source.read_into(at, piece)
                target.write_from(at, piece)
        target.flush()


def remove_strays(url: str, **storage_options: Any) -> int:
    """Remove the chunks that writers which died have left at `url`, and say how many they were. Nobody may be writing there meanwhile.

    Raises SourceError.
    """
    with FsspecSource(url, **storage_options) as source:
        if source._objects is None:
            return 0
        try:
            return _remove_strays(source._objects.directory)
        except Exception as error:
            raise SourceError.of("write", source, 0, 0, error) from error


def _check_length(data: bytes, view: memoryview) -> None:
    if len(data) != len(view):
        raise EOFError(
            f"{len(data)} bytes came where {len(view)} were asked for: it became shorter, or no ranges are served"
        )
