"""Writing back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .client import Connection
from .source import Store
from .worker import Worker

Read = Callable[[int, bytearray], None]
PIECE_BYTES = 1 << 20


def write_back(store: Store, read: Read, pieces: Sequence[tuple[int, int]]) -> None:
    """Store the ranges `pieces`, whose content `read` copies."""
    for offset, length in pieces:
        for at in range(offset, offset + length, PIECE_BYTES):
            data = bytearray(min(PIECE_BYTES, offset + length - at))
            read(at, data)
            store.write_from(at, memoryview(data))
    store.flush()


class Writer:
    """Writes back to a store that lives in a worker: a worker of its own, so that no fault waits behind a write."""

    def __init__(self, store: Store) -> None:
        self._worker = Worker(store)
        self._worker.wait_ready()
        self._connection = Connection(self._worker.socket, 60.0)

    def write_back(self, read: Read, pieces: Sequence[tuple[int, int]]) -> None:
        """As the function of that name. Raises SourceError."""
        for offset, length in pieces:
            for at in range(offset, offset + length, PIECE_BYTES):
                data = bytearray(min(PIECE_BYTES, offset + length - at))
                read(at, data)
                self._connection.write_back(at, memoryview(data), 120.0)
        self._connection.flush(120.0)

    def close(self) -> None:
        """End it, after its last write."""
        self._connection.close()
        self._worker.close()
