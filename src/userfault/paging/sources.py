"""From what a user has at hand to a source: `open_source`."""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import index
from typing import Any, SupportsIndex
from urllib.parse import unquote, urlsplit

from .blosc2 import Blosc2Source, Blosc2Store
from .callables import CallableSource
from .files import FileSource, FileStore
from .fsspec import FsspecSource, FsspecStore
from .memory import MemorySource, MemoryStore
from .redis import RedisStore
from .source import Source, Store, ZeroSource
from .tcp import RemoteSource, RemoteStore
from .zstd import ZstdSource, ZstdStore

ACCEPTED = "a path, a URL, an object with a buffer, a function of (offset, view) or (offset, length), a Source, or None for zeros"


def open_source(what: Any, *, writable: bool = False, size_bytes: int | None = None, **options: Any) -> Source:
    """The source, not open yet, that `what` stands for; a Store where it is to be `writable`, that is, written back.

    - a path, or a URL `file://...`: that file;
    - a path that ends in .zst, .b2frame or .b2nd: the data compressed in it (for the bytes themselves, pass a FileSource);
    - `tcp://HOST:PORT`: a page server;
    - `redis://HOST:PORT/DB?key=NAME`, `rediss://...`, `unix://PATH?key=NAME`: data in Redis, made if `size_bytes` is given;
    - any other URL (`s3://`, `gs://`, `https://`, `zip://...::...`): whatever fsspec has for its scheme; to be written, see FsspecStore;
    - bytes, a bytearray, an mmap, an array: that memory;
    - a function: see CallableSource; it needs `size_bytes`;
    - None: `size_bytes` zeros;
    - a Source: itself.

    `size_bytes` says how many bytes there are where nothing else does, `options` are those of the source's class. Raises TypeError for
    anything else, ValueError where a size is missing or the source can't be written. It does not look at what it names: that is
    `Source.open()`'s work.
    """
    source = _source(what, writable, size_bytes, options)
    if writable and not isinstance(source, Store):
        raise ValueError(f"{source!r} can't be written back: open it without writable=True, or pass a Store")
    return source


def _source(what: Any, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    if isinstance(what, Source):
        _no_options(what, size_bytes, options)
        return what
    if isinstance(what, (str, os.PathLike)):
        return _named(os.fspath(what), writable, size_bytes, options)
    if what is None:
        return ZeroSource(_size(size_bytes, "zeros", options))
    if callable(what):
        return CallableSource(what, _size(size_bytes, getattr(what, "__qualname__", repr(what)), {}), **options)
    try:
        memoryview(what).release()
    except TypeError:
        raise TypeError(f"a {type(what).__name__} is no source: pass {ACCEPTED}") from None
    _no_options(what, size_bytes, options)
    return MemoryStore(what) if writable else MemorySource(what)


def _named(name: str, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    scheme, separator, _rest = name.partition("://")
    if not separator:
        return _file(name, writable, size_bytes, options)
    return _SCHEMES.get(scheme, _fsspec)(name, writable, size_bytes, options)


def _file(path: str, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    compressed = _SUFFIXES.get(os.path.splitext(path)[1])
    if compressed:
        _no_options(path, size_bytes, {})
        return compressed[writable](path, **options)
    return (FileStore if writable else FileSource)(path, size_bytes=size_bytes, **options)


def _file_url(url: str, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ValueError(f"{url}: a file URL is file:///PATH")
    return _file(unquote(parts.path), writable, size_bytes, options)


def _tcp(url: str, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    _no_options(url, size_bytes, {})
    return (RemoteStore if writable else RemoteSource)(url, **options)


def _redis(url: str, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    return RedisStore(*RedisStore.parse(url), size_bytes=size_bytes, **options)


def _fsspec(url: str, writable: bool, size_bytes: int | None, options: dict[str, Any]) -> Source:
    if writable:
        return FsspecStore(url, size_bytes=size_bytes, **options)
    _no_options(url, size_bytes, {})
    return FsspecSource(url, **options)


_SCHEMES: dict[str, Callable[[str, bool, int | None, dict[str, Any]], Source]] = {
    "file": _file_url,
    "tcp": _tcp,
    "redis": _redis,
    "rediss": _redis,
    "unix": _redis,
}
_SUFFIXES: dict[str, tuple[Callable[..., Source], Callable[..., Source]]] = {
    ".zst": (ZstdSource, ZstdStore),
    ".b2frame": (Blosc2Source, Blosc2Store),
    ".b2nd": (Blosc2Source, Blosc2Store),
}


def _size(size_bytes: int | None, what: str, options: dict[str, Any]) -> int:
    if size_bytes is None:
        raise ValueError(f"{what}: say how many bytes there are, with size_bytes=")
    _no_options(what, None, options)
    if not isinstance(size_bytes, SupportsIndex) or index(size_bytes) < 0:
        raise ValueError(f"{what}: size_bytes={size_bytes!r} is no whole number of bytes, 0 or more")
    return index(size_bytes)


def _no_options(what: object, size_bytes: int | None, options: dict[str, Any]) -> None:
    extra = [*(["size_bytes"] if size_bytes is not None else []), *options]
    if extra:
        raise TypeError(f"{what!r:.80} takes no {', '.join(extra)}")
