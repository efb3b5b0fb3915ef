"""Memory of this process, and the system calls that change it: mmap(2), madvise(2), mremap(2) and their relatives.

The functions answer with a `Result`, the errno as a value, and check nothing themselves: what the kernel says to a wrong call is
what many callers want to know. Addresses and lengths are in bytes.
"""

from __future__ import annotations

import ctypes
import mmap as _mmap
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from .errors import KernelError
from .syscalls import Result, libc, result, syscall
from .uapi import HUGE_SIZE_BYTES, PAGE_SIZE_BYTES, Advice, LockFlag, NodeFlag, Prctl, RemapFlag, Syscall

PROT_NONE = 0
PROT_READ = _mmap.PROT_READ
PROT_WRITE = _mmap.PROT_WRITE
PROT_EXEC = _mmap.PROT_EXEC
MAP_SHARED = _mmap.MAP_SHARED
MAP_PRIVATE = _mmap.MAP_PRIVATE
MAP_ANONYMOUS = _mmap.MAP_ANONYMOUS
MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
MAP_POPULATE = _mmap.MAP_POPULATE
MAP_FIXED_NOREPLACE = 0x100000
READ_WRITE = PROT_READ | PROT_WRITE


def mmap(
    address: int,
    length: int,
    prot: int = READ_WRITE,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
    fd: int = -1,
    offset: int = 0,
) -> Result:
    """mmap(2). The value is the address."""
    return _address(libc.mmap(address, length, prot, flags, fd, offset))


def munmap(address: int, length: int) -> Result:
    """munmap(2)."""
    return result(libc.munmap(address, length))


def mremap(address: int, length: int, new_length: int, flags: RemapFlag | int = 0, new_address: int = 0) -> Result:
    """mremap(2). The value is the new address."""
    return _address(libc.mremap(address, length, new_length, int(flags), new_address))


def mprotect(address: int, length: int, prot: int) -> Result:
    """mprotect(2)."""
    return result(libc.mprotect(address, length, prot))


def madvise(address: int, length: int, advice: Advice | int) -> Result:
    """madvise(2)."""
    return result(libc.madvise(address, length, int(advice)))


def process_madvise(pidfd: int, ranges: Iterable[tuple[int, int]], advice: Advice | int) -> Result:
    """process_madvise(2) on (address, length) ranges of the process behind `pidfd` (os.pidfd_open). The value is the bytes advised."""
    listed = list(ranges)
    vector = _vector(listed)
    return syscall(Syscall.PROCESS_MADVISE, pidfd, ctypes.addressof(vector), len(listed), int(advice), 0)


def mlock(address: int, length: int, *, onfault: bool = False) -> Result:
    """mlock(2); with `onfault` mlock2(2), which locks pages as they come and brings none in."""
    if onfault:
        return syscall(Syscall.MLOCK2, address, length, int(LockFlag.ONFAULT))
    return result(libc.mlock(address, length))


def munlock(address: int, length: int) -> Result:
    """munlock(2)."""
    return result(libc.munlock(address, length))


def mseal(address: int, length: int) -> Result:
    """mseal(2): the mapping can't be unmapped, moved or protected otherwise any more."""
    return syscall(Syscall.MSEAL, address, length, 0)


def mincore(address: int, length: int) -> tuple[Result, bytes]:
    """mincore(2): one byte a page, whose lowest bit says whether touching it needs no I/O."""
    pages = ctypes.create_string_buffer(max(1, -(-length // PAGE_SIZE_BYTES)))
    answer = result(libc.mincore(address, length, pages))
    return answer, pages.raw if answer.ok else b""


def move_pages(
    pid: int, addresses: Sequence[int], nodes: Sequence[int] | None = None, flags: NodeFlag = NodeFlag.MOVE
) -> tuple[Result, list[int]]:
    """move_pages(2) of process `pid` (0: this one), each page to its node; without `nodes` it only looks.

    Answers the result (its value counts the pages that stayed) and for each page the node that it is on now, or -errno.
    """
    count = len(addresses)
    if nodes is not None and len(nodes) != count:
        raise KernelError(f"move_pages of {count} addresses to {len(nodes)} nodes: give one node for each address")
    pages = (ctypes.c_uint64 * count)(*addresses)
    status = (ctypes.c_int * count)(*[-1] * count)
    keep = (ctypes.c_int * count)(*nodes) if nodes is not None else None
    wanted = ctypes.addressof(keep) if keep is not None else 0
    answer = syscall(
        Syscall.MOVE_PAGES, pid, count, ctypes.addressof(pages), wanted, ctypes.addressof(status), int(flags)
    )
    return answer, list(status)


def prctl(option: Prctl, value: int = 0) -> Result:
    """prctl(2), about memory: huge pages and KSM for the whole process."""
    return result(libc.prctl(int(option), value, 0, 0, 0))


def read_memory(address: int, length: int, pid: int = 0) -> tuple[Result, bytes]:
    """process_vm_readv(2) of this process, or of another: what could be read, and EFAULT where nothing could.

    The kernel touches the memory, so a bad address is an errno and not a signal, and the GIL is not held while a page is missing.
    """
    data = ctypes.create_string_buffer(max(1, length))
    answer = _process_vm(Syscall.PROCESS_VM_READV, pid, data, address, length)
    return answer, data.raw[: max(0, answer.value)]


def write_memory(address: int, data: bytes, pid: int = 0) -> Result:
    """process_vm_writev(2), as `read_memory`. The value is the bytes written. It leaves pages dirty that a store might not."""
    return _process_vm(
        Syscall.PROCESS_VM_WRITEV, pid, ctypes.create_string_buffer(data, max(1, len(data))), address, len(data)
    )


def vmsplice(pipe: int, address: int, length: int) -> Result:
    """vmsplice(2) into a pipe, which refers to the pages until they are read from it, or it is closed. The value is the bytes."""
    return result(libc.vmsplice(pipe, _vector([(address, length)]), 1, 0))


def load(address: int, length: int) -> bytes:
    """Read memory of this process as its CPU does, without the GIL. A bad address kills the process; a missing page waits."""
    data = ctypes.create_string_buffer(max(1, length))
    ctypes.memmove(data, address, length)
    return data.raw[:length]


def store(address: int, data: bytes) -> None:
    """Write memory of this process as its CPU does, without the GIL. A bad address kills the process; a missing page waits."""
    ctypes.memmove(address, data, len(data))


def buffer_at(address: int, length: int) -> memoryview:
    """The memory itself, as a writable buffer. Python touches it with the GIL held: where a page is missing and the thread that would
    fill it needs the GIL, both wait for ever."""
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")


def address_of(data: bytes) -> int:
    """Where the bytes of a bytes object are. They stay there as long as it lives."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class Mapping:
    """Memory of one's own, [address, end); a context manager that unmaps it.

    length_bytes: rounded up to whole pages. align_bytes: the address is a multiple of it. prot, flags, fd, offset_bytes: mmap(2).

    Raises OSError where there is no room, or the kernel refuses.
    """

    def __init__(
        self,
        length_bytes: int,
        *,
        prot: int = READ_WRITE,
        flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
        fd: int = -1,
        offset_bytes: int = 0,
        align_bytes: int = PAGE_SIZE_BYTES,
    ) -> None:
        if length_bytes <= 0 or align_bytes < PAGE_SIZE_BYTES or align_bytes & (align_bytes - 1):
            raise KernelError(
                f"a mapping of {length_bytes} bytes aligned to {align_bytes}: "
                f"it needs a length and a power of two from {PAGE_SIZE_BYTES} on"
            )
        self.length_bytes = -(-length_bytes // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES
        what = f"mmap of {self.length_bytes} bytes"
        # A neighbour of the same kind would be merged with, and show up in what is seen of this one: room is left on both sides.
        room = self.length_bytes + align_bytes + PAGE_SIZE_BYTES
        start = mmap(0, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).or_raise(what)
        self._reserved = (start, room)
        self.address = (start + PAGE_SIZE_BYTES + align_bytes - 1) & -align_bytes
        try:
            mmap(self.address, self.length_bytes, prot, flags | MAP_FIXED, fd, offset_bytes).or_raise(what)
        except OSError:
            munmap(*self._reserved)
            raise
        self._open = True

    @classmethod
    def huge(cls, count: int = 1, *, advise: bool = True) -> Self:
        """Memory for `count` huge pages; `advise`: MADV_HUGEPAGE, so that a touch makes one where the settings allow it."""
        it = cls(count * HUGE_SIZE_BYTES, align_bytes=HUGE_SIZE_BYTES)
        if advise:
            it.madvise(Advice.HUGEPAGE)
        return it

    @property
    def end(self) -> int:
        """The first address after it, in bytes."""
        return self.address + self.length_bytes

    @property
    def page_count(self) -> int:
        """How many pages it has."""
        return self.length_bytes // PAGE_SIZE_BYTES

    def at(self, page_index: int) -> int:
        """The address of a page; that of `page_count` is the end."""
        return self.address + page_index * PAGE_SIZE_BYTES

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """What is in it, asked from the kernel: OSError EFAULT where it can't be read (see `read_memory`)."""
        answer, data = read_memory(self.address + offset_bytes, length_bytes)
        answer.or_raise(f"read of {length_bytes} bytes at {self.address + offset_bytes:#x}")
        if len(data) < length_bytes:
            read_memory(self.address + offset_bytes + len(data), 1)[0].or_raise(
                f"read of {length_bytes} bytes at {self.address + offset_bytes:#x} after {len(data)}"
            )
        return data

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Put `data` into it by the CPU: where the page can't be written the process dies, where it is missing the thread waits."""
        if not 0 <= offset_bytes <= self.length_bytes - len(data):
            raise KernelError(
                f"{len(data)} bytes at {offset_bytes} do not fit into a mapping of {self.length_bytes} bytes"
            )
        store(self.address + offset_bytes, data)

    def tag_pages(self, tag: int = 0x1000) -> None:
        """Write a word into each page, `tag` plus its index, and so give it pages of its own."""
        for page_index in range(self.page_count):
            store(self.at(page_index), (tag + page_index).to_bytes(8, "little"))

    def words(self) -> list[int]:
        """The first word of each page. It touches all of them."""
        return [int.from_bytes(self.read(at, 8), "little") for at in range(0, self.length_bytes, PAGE_SIZE_BYTES)]

    def madvise(self, advice: Advice, page_index: int = 0, page_count: int | None = None) -> Result:
        """madvise(2) on the whole, or on some pages of it."""
        count = self.page_count - page_index if page_count is None else page_count
        return madvise(self.at(page_index), count * PAGE_SIZE_BYTES, advice)

    def close(self) -> None:
        """Unmap it; closing twice is fine."""
        if self._open:
            self._open = False
            munmap(*self._reserved)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Mapping({self.address:#x}-{self.end:#x})"


class _iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_uint64), ("len", ctypes.c_uint64))


def _vector(ranges: Sequence[tuple[int, int]]) -> ctypes.Array[_iovec]:
    return (_iovec * max(1, len(ranges)))(*(_iovec(*each) for each in ranges))


def _process_vm(number: Syscall, pid: int, data: ctypes.Array[ctypes.c_char], address: int, length: int) -> Result:
    local, remote = _iovec(ctypes.addressof(data), length), _iovec(address, length)
    return syscall(number, pid or os.getpid(), ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)


def _address(value: int | None) -> Result:
    # ctypes shows a pointer of 0 as None, and MAP_FAILED as an unsigned -1.
    if value == ctypes.c_void_p(-1).value:
        return Result(-1, ctypes.get_errno())
    return Result(value or 0, 0)
