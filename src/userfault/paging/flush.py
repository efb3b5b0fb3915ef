"""Writing back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import journal
from .files import FileStore
from .retry import RetryPolicy
from .source import SourceError, Store, is_transient

Read = Callable[[int, bytearray], None]
PIECE_BYTES = 1 << 20


def write_back(store: Store, read: Read, pieces: Sequence[tuple[int, int]], policy: RetryPolicy) -> None:
    """Store the ranges `pieces`, whose content `read` copies, durably; a file is changed all or nothing. Raises SourceError."""
    if isinstance(store, FileStore):
        try:
            journal.commit(store.path, store.native().fd, store.native().offset_bytes, pieces, read)
        except OSError as error:
            raise SourceError.of("flush", store, pieces[0][0], sum(length for _, length in pieces), error) from error
        return
    for offset, length in pieces:
        for at in range(offset, offset + length, PIECE_BYTES):
            data = bytearray(min(PIECE_BYTES, offset + length - at))
            read(at, data)
            _store_piece(store, at, data, policy)
    policy.call(store.flush, is_transient)


def _store_piece(store: Store, offset: int, data: bytearray, policy: RetryPolicy) -> None:
    policy.call(lambda: store.write_from(offset, memoryview(data)), is_transient)
