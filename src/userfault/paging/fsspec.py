"""Whatever fsspec can read: s3://, gs://, http://, zip://, memory:// and many more, with their credentials and options."""

from __future__ import annotations

import threading
from typing import Any

from .extras import load
from .source import Source, redacted

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
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class FsspecSource(Source):
    """The file at a URL that fsspec understands; `storage_options` are those of its file system, such as s3fs's `endpoint_url`.

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

    def acquire(self) -> None:
        load("fsspec", "fsspec")
        core, spec = load("fsspec.core", "fsspec"), load("fsspec.spec", "fsspec")
        self._files, self._path = core.url_to_fs(self.url, **self.storage_options)
        self._info = self._files.info(self._path)
        if self._info.get("type") == "directory":
            raise IsADirectoryError(f"{self.name} is a directory")
        if self._info.get("size") is None:
            raise OSError(
                f"{self.name} does not say how long it is, so it can't be read at an offset: download it first"
            )
        self.size_bytes = int(self._info["size"])
        # Remote file systems have no such method in their class; their open files ask for ranges, with the ETag.
        self._has_ranges = type(self._files).cat_file is not spec.AbstractFileSystem.cat_file
        self._lock, self._of_thread = threading.Lock(), threading.local()

    def release(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.close()

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if self._has_ranges:
            data = self._files.cat_file(self._path, start=offset_bytes, end=offset_bytes + len(view))
        else:
            handle = self._handle()
            handle.seek(offset_bytes)
            data = handle.read(len(view))
        if len(data) != len(view):
            raise EOFError(
                f"{len(data)} bytes came where {len(view)} were asked for: it became shorter, or no ranges are served"
            )
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
