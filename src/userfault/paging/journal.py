"""All-or-nothing changes of a file: written aside first, applied when that is safe, and finished by whoever opens the file next.

The journal of FILE is FILE.userfault-journal: a header, the changed ranges, their content, a checksum. It counts once it is whole and on
disk. A crash before that leaves the old file and a journal that is thrown away; a crash after it leaves a journal that is
applied again, which changes nothing that it had applied already. It is applied to the file that it was written for, not to one that
has taken its name or was cut or extended since.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

from .errors import PagingError

SUFFIX = ".userfault-journal"
MAGIC = b"ufjrnl02"
PIECE_BYTES = 1 << 20
_HEADER = struct.Struct("<8sQQQ")
"""Magic, count of ranges, size of the file in bytes, its inode (0: a device)."""
_RANGE = struct.Struct("<QQ")
_END = struct.Struct("<I8s")
"""CRC-32 of all before it, magic."""

Read = Callable[[int, bytearray], None]
Step = Callable[[str], object]


def _nothing(step: str) -> None:
    """What happens between two steps; a test crashes there."""


def commit(
    path: str, fd: int, base_bytes: int, pieces: Sequence[tuple[int, int]], read: Read, step: Step = _nothing
) -> None:
    """Change the ranges `pieces` (offset, length; counted from `base_bytes` of the file) to what `read` copies, all or nothing.

    `fd` is the file, open for writing. When it returns the change is durable. Raises OSError, with the file as it was before or a
    journal that the next `recover` applies.
    """
    path = os.path.realpath(path)  # beside the file itself, whichever link it was opened by
    journal = os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX)
        os.ftruncate(journal, 0)
        writer = _Writer(journal)
        writer.write(_HEADER.pack(MAGIC, len(pieces), *_identity(fd)))
        for offset, length in pieces:
            writer.write(_RANGE.pack(base_bytes + offset, length))
        step("ranges written")
        for offset, length in pieces:
            for at in range(offset, offset + length, PIECE_BYTES):
                data = bytearray(min(PIECE_BYTES, offset + length - at))
                read(at, data)
                writer.write(data)
                step("content written")
        writer.write(_END.pack(writer.crc, MAGIC))
        step("journal written")
        os.fsync(journal)
        _sync_directory(path)
        step("journal durable")
        _apply(journal, fd, step)
        # Gone before the lock is: whoever waits for it finds a journal without a name.
        os.unlink(path + SUFFIX)
        step("journal removed")
        _sync_directory(path)
    finally:
        os.close(journal)


def recover(path: str, step: Step = _nothing) -> bool:
    """Finish what a crash interrupted; whether there was something to finish. Waits for a commit that is under way.

    Raises PagingError where the journal is whole and can't be applied, or belongs to another file than the one that has the name now;
    both are left as they are.
    """
    path = os.path.realpath(path)
    try:
        journal = os.open(path + SUFFIX, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PagingError(
            f"{path} was being written when its writer died, and its journal can't be opened: {error.strerror}",
            f"open {path} once as a user who may write it",
        ) from error
    try:
        fcntl.flock(journal, fcntl.LOCK_EX)
        if not os.fstat(journal).st_nlink:
            return False
        whole = _is_whole(journal)
        if whole:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    _check_identity(journal, fd, path)
                    _apply(journal, fd, step)
                finally:
                    os.close(fd)
            except OSError as error:
                raise PagingError(
                    f"{path} was being written when its writer died, and finishing that failed: {error.strerror}",
                    f"make it writable and open it again, or delete {path + SUFFIX} to give the change up",
                ) from error
        with suppress(FileNotFoundError):
            os.unlink(path + SUFFIX)
        _sync_directory(path)
        return whole
    finally:
        os.close(journal)


class _Writer:
    def __init__(self, fd: int) -> None:
        self._fd, self.crc = fd, 0

    def write(self, data: bytes | bytearray) -> None:
        self.crc = zlib.crc32(data, self.crc)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def _is_whole(journal: int) -> bool:
    size = os.lseek(journal, 0, os.SEEK_END)
    if size < _HEADER.size + _END.size:
        return False
    crc, magic = _END.unpack(os.pread(journal, _END.size, size - _END.size))
    if magic != MAGIC or os.pread(journal, len(MAGIC), 0) != MAGIC:
        return False
    found = 0
    for at in range(0, size - _END.size, PIECE_BYTES):
        found = zlib.crc32(os.pread(journal, min(PIECE_BYTES, size - _END.size - at), at), found)
    return bool(found == crc)


def _identity(fd: int) -> tuple[int, int]:
    """Size in bytes and inode; a device's node is made anew at each boot."""
    status = os.fstat(fd)
    return os.lseek(fd, 0, os.SEEK_END), status.st_ino if stat.S_ISREG(status.st_mode) else 0


def _check_identity(journal: int, fd: int, path: str) -> None:
    _magic, _count, size, inode = _HEADER.unpack(os.pread(journal, _HEADER.size, 0))
    size_now, inode_now = _identity(fd)
    if (size, inode) == (size_now, inode_now):
        return
    what = f"it had {size} bytes and has {size_now}" if size != size_now else "another file has its name now"
    raise PagingError(
        f"{path} was being written when its writer died, and was changed since then: {what}",
        f"delete {path + SUFFIX} to keep the file as it is now, or put the file back that was being written",
    )


def _apply(journal: int, fd: int, step: Step) -> None:
    _magic, count, _size, _inode = _HEADER.unpack(os.pread(journal, _HEADER.size, 0))
    content = _HEADER.size + count * _RANGE.size
    for index in range(count):
        offset, length = _RANGE.unpack(os.pread(journal, _RANGE.size, _HEADER.size + index * _RANGE.size))
        done = 0
        while done < length:
            data = os.pread(journal, min(PIECE_BYTES, length - done), content + done)
            done += os.pwrite(fd, data, offset + done)
            step("applied")
        content += length
    os.fdatasync(fd)
    step("file durable")


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
