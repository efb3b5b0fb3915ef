"""51 things that Python programs do with a buffer; most of them touch its pages while they hold the GIL.

Each gets `a` (uint8 array over all of it), `mv` (memoryview) and `n` (its length), and returns something to compare with what the same
operation gives on ordinary memory.
"""

from __future__ import annotations

import array
import binascii
import contextlib
import ctypes
import hashlib
import os
import pickle
import re
import socket
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Operation = Callable[[Any, Any, int], Any]


def address(a: Any) -> int:
    where: int = a.ctypes.data
    return where


def write_scalar(a: Any, mv: Any, n: int) -> Any:
    a[n // 3] = 77
    return int(a[n // 3])


def write_slice(a: Any, mv: Any, n: int) -> Any:
    a[n // 5 : n // 5 + 8] = 1


def write_view_slice(a: Any, mv: Any, n: int) -> Any:
    mv[n // 7 : n // 7 + 16] = b"0123456789abcdef"


def large_fill(a: Any, mv: Any, n: int) -> Any:
    a[: n // 2] = 0


def pack_into(a: Any, mv: Any, n: int) -> Any:
    struct.pack_into("<QQ", mv, n // 2 + 8, 1, 2)


def records(a: Any, mv: Any, n: int) -> Any:
    return a[: n // 16 * 16].view([("x", "<f8"), ("y", "<u8")])[n // 64]["y"].item()


def view_scalar(a: Any, mv: Any, n: int) -> Any:
    return a[: n // 8 * 8].view("<u8")[n // 20].item()


def from_address(a: Any, mv: Any, n: int) -> Any:
    return ctypes.c_uint8.from_address(address(a) + n // 2).value


def from_bytes_array(a: Any, mv: Any, n: int) -> Any:
    target = array.array("B")
    target.frombytes(mv[:5000])
    return target


def blob(a: Any, mv: Any, n: int) -> Any:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        return db.execute("select hex(?)", (mv[100:400],)).fetchone()


def write_file(a: Any, mv: Any, n: int) -> Any:
    with tempfile.TemporaryFile() as file:
        os.write(file.fileno(), mv[:20_000])
        return os.pread(file.fileno(), 20_000, 0)


def read_file(a: Any, mv: Any, n: int) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * 40)
        file.seek(0)
        return file.raw.readinto(mv[5000:15_000])


def send(a: Any, mv: Any, n: int) -> Any:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(mv[:3000])
        return right.recv(3000, socket.MSG_WAITALL)


def receive(a: Any, mv: Any, n: int) -> Any:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x" * 3000)
        return right.recv_into(mv[9000:12_000], flags=socket.MSG_WAITALL)


def move(a: Any, mv: Any, n: int) -> Any:
    ctypes.memmove(address(a), address(a) + n // 2, 10_000)


def small_sum(a: Any, mv: Any, n: int) -> Any:
    return int(a[1000:1100].sum())


def dot(a: Any, mv: Any, n: int) -> Any:
    # A longer one starts OpenBLAS's threads, which deadlock with a concurrent fork() on any memory.
    x = a[:32_000].view("<u4").astype(np.float64)
    return float(np.dot(x, x))


def copyto(a: Any, mv: Any, n: int) -> Any:
    np.copyto(a[: n // 4], a[n // 2 : n // 2 + n // 4])


def searched(a: Any, mv: Any, n: int) -> Any:
    return np.searchsorted(np.arange(256, dtype=np.uint8), a).sum()


HOLDING_THE_GIL: dict[str, Operation] = {
    "a[i]": lambda a, mv, n: int(a[n // 2]),
    "a[i] = x": write_scalar,
    "a[k:k+8] = 1": write_slice,
    "a.sum()": lambda a, mv, n: int(a.sum()),
    "a[small].sum()": small_sum,
    "a.tobytes()": lambda a, mv, n: a.tobytes(),
    "a.tolist()": lambda a, mv, n: a[:3000].tolist(),
    "a[index]": lambda a, mv, n: a[np.arange(0, n, 997)],
    "repr(a)": lambda a, mv, n: repr(a),
    "a.view(records)[i]": records,
    "a.view(u8)[i]": view_scalar,
    "mv[i]": lambda a, mv, n: mv[n - 1],
    "bytes(mv[i:j])": lambda a, mv, n: bytes(mv[n // 2 : n // 2 + 9000]),
    "mv[i:j] = x": write_view_slice,
    "mv.tolist()": lambda a, mv, n: mv[:2000].tolist(),
    "mv == mv": lambda a, mv, n: mv[:9000] == mv[1:9001],
    "struct.unpack_from": lambda a, mv, n: struct.unpack_from("<QQ", mv, n // 3),
    "struct.pack_into": pack_into,
    "int.from_bytes": lambda a, mv, n: int.from_bytes(mv[4090:4100], "big"),
    "bytes.join": lambda a, mv, n: b"-".join([mv[:10], mv[n - 10 :]]),
    "re.search": lambda a, mv, n: bool(re.search(rb"\x00\x01\x02\x03\x04", mv)),
    "hashlib, 1 KiB": lambda a, mv, n: hashlib.sha256(mv[:1024]).hexdigest(),
    "crc32, 1 KiB": lambda a, mv, n: zlib.crc32(mv[:1024]),
    "hexlify": lambda a, mv, n: binascii.hexlify(mv[n // 2 : n // 2 + 600]),
    "pickle": lambda a, mv, n: pickle.dumps(a[:5000], 5),
    "ctypes.string_at": lambda a, mv, n: ctypes.string_at(address(a) + 4000, 5000),
    "from_address": from_address,
    "array.frombytes": from_bytes_array,
    "bytearray(mv)": lambda a, mv, n: bytearray(mv),
    "mv.tobytes()": lambda a, mv, n: mv.tobytes(),
    "sum(mv)": lambda a, mv, n: sum(mv[n // 4 : n // 4 + 5000]),
    "sqlite3": blob,
}

RELEASING_IT: dict[str, Operation] = {
    "a[:n] = 0": large_fill,
    "a.copy()": lambda a, mv, n: a.copy(),
    "np.take": lambda a, mv, n: np.take(a, np.arange(0, n, 641)),
    "a + 1": lambda a, mv, n: a + np.uint8(1),
    "np.dot": dot,
    "np.sort": lambda a, mv, n: np.sort(a),
    "astype": lambda a, mv, n: a.astype(np.float32),
    "np.copyto": copyto,
    "np.array_equal": lambda a, mv, n: np.array_equal(a, a[::-1]),
    "argmax": lambda a, mv, n: int(a.argmax()),
    "searchsorted": searched,
    "np.concatenate": lambda a, mv, n: np.concatenate([a, a]),
    "hashlib, 64 KiB": lambda a, mv, n: hashlib.sha256(mv[: 64 << 10]).hexdigest(),
    "crc32, 64 KiB": lambda a, mv, n: zlib.crc32(mv[: 64 << 10]),
    "zlib.compress": lambda a, mv, n: zlib.compress(mv[: 64 << 10]),
    "ctypes.memmove": move,
    "a[mask]": lambda a, mv, n: a[a > 250],
}

SYSTEM_CALLS: dict[str, Operation] = {
    "os.write": write_file,
    "readinto": read_file,
    "socket.send": send,
    "socket.recv_into": receive,
}

OPERATIONS = {**HOLDING_THE_GIL, **RELEASING_IT, **SYSTEM_CALLS}
