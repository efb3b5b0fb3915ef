"""Other memory of this process as source or store."""

from __future__ import annotations

import ctypes
from typing import Any

from .source import NativeKind, NativeSource, Source, Store


class MemorySource(Source):
    """The bytes of any object with a contiguous buffer: bytes, bytearray, mmap, an array. They may change; each page shows what was
    there when it was filled. The buffer stays exported (a bytearray can't be resized) until the source is closed.

    Raises TypeError for an object without a buffer, ValueError for one that is not C-contiguous.
    """

    parallel_count = 1024
    in_worker = False

    def __init__(self, data: Any) -> None:
        try:
            view = memoryview(data)
        except TypeError:
            raise TypeError(
                f"{type(data).__name__} has no buffer: pass bytes, a bytearray, an mmap or an array"
            ) from None
        if not view.c_contiguous:
            raise ValueError(
                f"the {type(data).__name__} is not C-contiguous: copy it first, as with numpy.ascontiguousarray"
            )
        self._view = view.cast("B") if view.nbytes else memoryview(b"")
        self.size_bytes = self._view.nbytes
        self.name = f"{self.size_bytes} bytes of a {type(data).__name__}"

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        view[:] = self._view[offset_bytes : offset_bytes + len(view)]

    def release(self) -> None:
        self._view.release()

    def native(self) -> NativeSource:
        return NativeSource(NativeKind.MEMORY, self.size_bytes, address=address_of(self._view))


class MemoryStore(MemorySource, Store):
    """Writable memory that takes pages back. Raises TypeError for a read-only buffer."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        if self._view.readonly and self.size_bytes:
            raise TypeError(f"the {type(data).__name__} is read-only, so no page can be written back to it")

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self._view[offset_bytes : offset_bytes + len(view)] = view


class _PyBuffer(ctypes.Structure):
    """`Py_buffer`, which is part of the stable ABI from Python 3.11 on (Doc/c-api/buffer.rst)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(view: memoryview) -> int:
    """Where the view's bytes lie; valid while the view is. ctypes' own `from_buffer` refuses read-only ones."""
    if not view.nbytes:
        return 0
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return int(address)
