"""The seed's two interfaces, remap_anon_pages(2) and MADV_USERFAULT, on a stock kernel: UFFDIO_MOVE and UFFD_FEATURE_SIGBUS.

They are the calls of the 2013 patches "mm: rmap preparation for remap_anon_pages" and of their repost of October 2014, as far as a
stock kernel can give them. Where it can't, it is said here and not faked (`DIFFERENCES`); tests/kernel/test_remap.py shows each.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from . import memory
from .errors import KernelError
from .maps import vma_at
from .memory import Mapping
from .syscalls import Result
from .uapi import PAGE_SIZE_BYTES, Advice, Feature, MoveMode, RegisterMode
from .userfaultfd import Progress, Userfault, until_done

DIFFERENCES = {
    "the zero page": "moves (since v6.18; v6.8 says EBUSY, as the seed does): a page that was only read is no error",
    "a page that was shared": "stays EBUSY after the other process is gone, until it is written: what counts is PG_anon_exclusive, "
    "not that the page is mapped once; the same holds for a swapped page",
    "a pinned page": "is EBUSY (the seed does not look for pins)",
    "read-only mappings": "are EINVAL (the seed asks only that both have the same protection)",
    "dst present and src missing": "is EEXIST (the seed looks at src first: ENOENT)",
    "a range's mapping": "dst is registered with a userfaultfd for the time of the call, which splits its mapping and joins it again",
    "dst of another userfaultfd": "is refused with an explanation: pass that one as `uffd`",
    "MADV_USERFAULT's number": "18, and 19 for MADV_NOUSERFAULT, are MADV_WIPEONFORK and MADV_KEEPONFORK since v4.14",
    "MADV_USERFAULT and fork": "a child of os.fork gets its own registration; one of a fork(2) in C reads zeroes, where the seed's flag "
    "is inherited",
    "MADV_USERFAULT of shared memory": "works (the seed says EINVAL)",
}
"""What a stock kernel does otherwise than the seed."""


class SeedAdvice(IntEnum):
    """The seed's advices. Their numbers belong to others today, so these never reach the kernel."""

    USERFAULT = -18
    NOUSERFAULT = -19


class MissingPage(KernelError):
    """A page of memory under USERFAULT was touched before it was filled. address: the page's, in bytes."""

    def __init__(self, address: int) -> None:
        super().__init__(
            f"the page at {address:#x} is missing: fill it, with remap_anon_pages or UserfaultMemory.fill, and try again"
        )
        self.address = address

    def __reduce__(self) -> tuple[type[MissingPage], tuple[int]]:
        return type(self), (self.address,)


def remap_anon_pages(
    dst: int,
    src: int,
    length: int,
    *,
    allow_holes: bool = False,
    uffd: Userfault | None = None,
    deadline_s: float = 1.0,
) -> Result:
    """Move every page of [src, src+length) to the same offset in [dst, dst+length), without a copy; what the seed's system call does.

    dst, src, length: bytes, multiples of the page size; each range inside one private anonymous mapping of this process, both with the
    same protection, writable. allow_holes (RAP_ALLOW_SRC_HOLES): a missing page of src is skipped, and counted. uffd: where dst is
    registered already; else it is registered for the time of the call. deadline_s: how long EAGAIN is tried again.

    The value is the number of bytes moved. It is less than `length` where an error stopped the call after some progress: to learn
    which, call again for the rest. errno, where nothing was moved:

    EINVAL: a range that is unaligned, empty or wraps, is not mapped or not inside one mapping; mappings that are shared, of a file,
    read-only, or differ in protection or in being locked. ENOENT: src has a hole. EEXIST: dst has a page, or a swap entry or marker.
    EBUSY: a page of src is shared with another process, merged by KSM or pinned. EFAULT: a poisoned page, or a guard. ENOMEM.
    EAGAIN: somebody changed the mappings all the time, or an event of `uffd` waits to be read.

    Differences from the seed's: `DIFFERENCES`.

    Raises UserfaultError where no userfaultfd can be had, KernelError where dst is registered with another one than `uffd`.
    """
    if length <= 0 or (dst | src | length) % PAGE_SIZE_BYTES or min(dst, src) < 0 or max(dst, src) + length > 1 << 64:
        return Result(-1, errno.EINVAL)
    if uffd is not None:
        return _moved(uffd, dst, src, length, allow_holes, deadline_s)
    with _Seed.of_this_process() as seed:
        if seed.covers(dst, length):
            return _moved(seed.uffd, dst, src, length, allow_holes, deadline_s)
        with seed.registered(dst, src, length) as refused:
            return refused or _moved(seed.uffd, dst, src, length, allow_holes, deadline_s)


def madvise(address: int, length: int, advice: Advice | SeedAdvice | int) -> Result:
    """madvise(2) with two advices more.

    USERFAULT: touching a missing page of the range raises SIGBUS (a system call that touches it fails with EFAULT) until it is filled,
    by remap_anon_pages, `UserfaultMemory.fill` or UFFDIO_COPY of another userfaultfd's owner. NOUSERFAULT: missing pages are zeroes again.

    EINVAL: the range is unaligned or not mapped. EBUSY: it is registered with another userfaultfd.

    Raises UserfaultError where no userfaultfd can be had.
    """
    if advice not in tuple(SeedAdvice):
        return memory.madvise(address, length, advice)
    with _Seed.of_this_process() as seed:
        if advice == SeedAdvice.USERFAULT:
            return seed.add(address, length)
        return seed.remove(address, length)


class UserfaultMemory(Mapping):
    """Private anonymous memory under USERFAULT; a context manager that unmaps it.

    Its `read` and `write` raise MissingPage where a page has not been filled; other accesses get SIGBUS, or EFAULT.
    """

    def __init__(self, length_bytes: int, *, align_bytes: int = PAGE_SIZE_BYTES) -> None:
        super().__init__(length_bytes, align_bytes=align_bytes)
        try:
            madvise(self.address, self.length_bytes, SeedAdvice.USERFAULT).or_raise(f"USERFAULT of {self!r}")
        except BaseException:
            self.close()
            raise

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """What is in it. Raises MissingPage for the first page that is missing, KernelError outside of it."""
        self._check(offset_bytes, length_bytes)
        _, data = memory.read_memory(self.address + offset_bytes, length_bytes)
        if len(data) < length_bytes:
            raise self._missing(offset_bytes + len(data))
        return data

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Put `data` into it. Raises MissingPage for the first page that is missing; what comes before that is written."""
        self._check(offset_bytes, len(data))
        done = max(0, memory.write_memory(self.address + offset_bytes, data).value)
        if done < len(data):
            raise self._missing(offset_bytes + done)

    def fill(self, offset_bytes: int, data: bytes) -> Progress:
        """Fill missing pages with `data` (whole pages): all of it, or an errno. EEXIST: a page was there already."""
        self._check(offset_bytes, len(data))
        with _Seed.of_this_process() as seed:
            view = bytes(data)
            source = memory.address_of(view)
            return seed.uffd.copy_all(self.address + offset_bytes, source, len(view))

    def close(self) -> None:
        """Unmap it; closing twice is fine."""
        with _Seed.lock:
            if _Seed.current is not None:
                _Seed.current.forget(self.address, self.length_bytes)
        super().close()

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if not 0 <= offset_bytes <= self.length_bytes - length_bytes:
            raise KernelError(f"{length_bytes} bytes at {offset_bytes}: {self!r} has {self.length_bytes}")

    def _missing(self, offset_bytes: int) -> MissingPage:
        return MissingPage((self.address + offset_bytes) & -PAGE_SIZE_BYTES)


class _Seed:
    """The userfaultfd behind the seed's calls, one a process, and the ranges that are under USERFAULT."""

    lock = threading.RLock()
    current: _Seed | None = None

    def __init__(self) -> None:
        self.uffd = Userfault(Feature.SIGBUS)
        self.pid = os.getpid()
        self.ranges: list[tuple[int, int]] = []
        self.mode = RegisterMode.WP if self.uffd.supported & Feature.PAGEFAULT_FLAG_WP else RegisterMode.MISSING

    @classmethod
    @contextmanager
    def of_this_process(cls) -> Iterator[_Seed]:
        """One caller at a time: a range that one registers for its move must not be unregistered by another."""
        with cls.lock:
            if cls.current is None or cls.current.pid != os.getpid():
                cls.current = _Seed()
            yield cls.current

    @classmethod
    def after_fork_in_child(cls) -> None:
        """The child's memory is not registered, and the parent's lock may be held by a thread that is not here."""
        cls.lock = threading.RLock()
        parent, cls.current = cls.current, None
        if parent is None:
            return
        os.close(parent.uffd.detach())
        if not parent.ranges:
            return
        try:
            with cls.of_this_process() as own:
                for start, end in parent.ranges:
                    own.add(start, end - start)
        except OSError:
            # Missing pages must not become zeroes in silence.
            for start, end in parent.ranges:
                memory.mprotect(start, end - start, memory.PROT_NONE)
            raise

    def covers(self, start: int, length: int) -> bool:
        """Whether the range is under USERFAULT. Somebody may have mapped something else there in the meantime."""
        if not any(start < end and start + length > begin for begin, end in self.ranges):
            return False
        vma = vma_at(start)
        if vma is not None and "um" in vma.vm_flags:
            return True
        self.forget(start, length)
        return False

    def add(self, start: int, length: int) -> Result:
        answer = self.uffd.register(start, length, RegisterMode.MISSING)
        if answer.ok:
            self.forget(start, length)
            self.ranges.append((start, start + length))
        return Result(0, 0) if answer.ok else answer

    def remove(self, start: int, length: int) -> Result:
        answer = self.uffd.unregister(start, length)
        if answer.ok:
            self.forget(start, length)
        return answer

    def forget(self, start: int, length: int) -> None:
        end = start + length
        parts = [part for begin, stop in self.ranges for part in ((begin, min(stop, start)), (max(begin, end), stop))]
        self.ranges = [(begin, stop) for begin, stop in parts if begin < stop]

    @contextmanager
    def registered(self, dst: int, src: int, length: int) -> Iterator[Result | None]:
        """Register dst for a move; what refuses that, or None."""
        start, end = dst, dst + length
        if abs(dst - src) < length:
            # The mapping is split where the registration ends, and src must stay in one piece.
            start, end = min(dst, src), max(dst, src) + length
        answer = self.uffd.register(start, end - start, self.mode)
        if answer.errno == errno.EBUSY:
            raise KernelError(
                f"remap_anon_pages to {dst:#x}: the memory there is registered with another userfaultfd: pass it as `uffd`"
            )
        if not answer.ok:
            yield Result(-1, errno.EINVAL if answer.errno in (errno.ENOENT, errno.ENOMEM) else answer.errno)
            return
        try:
            yield None
        finally:
            self.uffd.unregister(start, end - start)


def _moved(uffd: Userfault, dst: int, src: int, length: int, allow_holes: bool, deadline_s: float) -> Result:
    mode = int(MoveMode.ALLOW_SRC_HOLES) if allow_holes else 0
    progress = until_done(lambda done: uffd.move(dst + done, src + done, length - done, mode), length, deadline_s, 0.0)
    if progress.bytes:
        return Result(progress.bytes, 0)
    if progress.errno == errno.ENOENT and not memory.mincore(src, PAGE_SIZE_BYTES)[0].ok:
        # The kernel says ENOENT for a source that is not mapped, and for one that has a hole.
        return Result(-1, errno.EINVAL)
    return Result(-1, progress.errno)


os.register_at_fork(after_in_child=_Seed.after_fork_in_child)
