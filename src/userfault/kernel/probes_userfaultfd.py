"""The probes of userfaultfd. Each runs in a child process of its own, whose memory and settings are its own to spoil."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from . import memory
from . import probe_kit as kit
from .child import Child, become
from .machine import HUGETLB, setting
from .memory import Mapping
from .pagemap import Pagemap
from .probe import Missing, probe
from .remap import UserfaultMemory
from .uapi import (
    HUGE_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    Advice,
    Feature,
    PagefaultFlag,
    RegisterMode,
    RemapFlag,
)
from .userfaultfd import Userfault

PAGE = PAGE_SIZE_BYTES

# ---- userfaultfd: ways to get one


@probe("uffd-syscall", "userfaultfd", "userfaultfd(2), faults of system calls included")
def _() -> str:
    with Userfault(user_mode_only=False, device=False) as uffd:
        return ", ".join(str(each.name) for each in Feature if each & uffd.supported) or "no features"


@probe("uffd-device", "userfaultfd", "/dev/userfaultfd: the same, for whom the file's permissions allow")
def _() -> str:
    with Userfault(device=True, user_mode_only=False):
        return f"mode {Path('/dev/userfaultfd').stat().st_mode & 0o777:04o}"


@probe("uffd-user-mode-only", "userfaultfd", "userfaultfd(2) without privilege, for faults from user mode")
def _() -> str:
    with Userfault(user_mode_only=True, device=False):
        return "system calls on a missing page fail with EFAULT"


@probe("uffd-ordinary-user", "userfaultfd", "what a user without any privilege gets")
def _() -> str:
    if os.geteuid() == 0:
        become(kit.NOBODY)
    with Userfault() as uffd:
        return "user mode only" if uffd.user_mode_only else "everything"


# ---- userfaultfd: what it does


@probe("missing", "userfaultfd", "a missing page is reported and filled (COPY)")
def _() -> str:
    with Mapping(PAGE) as area, Mapping(PAGE) as source, Userfault() as uffd:
        source.tag_pages()
        kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        fault = kit.fault(uffd, lambda: memory.load(area.address, 1))
        kit.ok(uffd.copy(fault.address, source.address, PAGE), "UFFDIO_COPY")
        assert area.read(0, 2) == b"\0\x10"
        return "reported and filled"


@probe("zeropage", "userfaultfd", "ZEROPAGE fills without a copy")
def _() -> str:
    with Mapping(PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        kit.ok(uffd.zeropage(area.address, PAGE), "UFFDIO_ZEROPAGE")
        return "done"


@probe("move", "userfaultfd", "MOVE: pages change their address without a copy; remap_anon_pages")
def _() -> str:
    kit.has(Feature.MOVE, "6.8")
    with Mapping(PAGE) as src, Mapping(PAGE) as dst:
        src.tag_pages()
        kit.moves(src, dst, PAGE)
        assert dst.read(0, 2) == b"\0\x10" and src.read(0, 2) == bytes(2)
        return "done"


@probe("move-zero-page", "userfaultfd", "MOVE of a page that was only read")
def _() -> str:
    kit.has(Feature.MOVE, "6.8")
    with Mapping(PAGE) as src, Mapping(PAGE) as dst:
        src.read(0, 1)
        kit.moves(src, dst, PAGE)
        return "done"


@probe("move-huge-page", "userfaultfd", "MOVE of a huge page as one")
def _() -> str:
    kit.has(Feature.MOVE, "6.8")
    with Mapping.huge() as src, Mapping.huge() as dst:
        kit.huge(src)
        kit.moves(src, dst, HUGE_SIZE_BYTES)
        if not kit.size(dst, "AnonHugePages"):
            raise Missing("it was split", kit.NEWER)
        return "stays a huge page"


@probe("wp", "userfaultfd", "PAGEFAULT_FLAG_WP: writes to protected pages are reported")
def _() -> str:
    kit.has(Feature.PAGEFAULT_FLAG_WP, "5.7")
    area = kit.leaked()
    with Userfault(Feature.PAGEFAULT_FLAG_WP) as uffd:
        area.tag_pages()
        kit.ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        kit.ok(uffd.writeprotect(area.address, PAGE), "UFFDIO_WRITEPROTECT")
        fault = kit.fault(uffd, lambda: memory.store(area.address, b"w"))
        assert fault.flags & PagefaultFlag.WP, fault.flags
        return "reported"


@probe("wp-unpopulated", "userfaultfd", "WP_UNPOPULATED: protection of pages that are not there yet")
def _() -> str:
    kit.has(Feature.WP_UNPOPULATED, "6.4")
    features = Feature.WP_UNPOPULATED | Feature.PAGEFAULT_FLAG_WP
    with Mapping(PAGE) as area, Userfault(features) as uffd, Pagemap() as pagemap:
        kit.ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        kit.ok(uffd.writeprotect(area.address, PAGE), "UFFDIO_WRITEPROTECT")
        assert pagemap.entry(area.address).uffd_wp
        return "a marker"


@probe("wp-async", "userfaultfd", "WP_ASYNC: dirty tracking without a reader")
def _() -> str:
    kit.has(Feature.WP_ASYNC, "6.7")
    with Mapping(PAGE) as area, Userfault(Feature.WP_ASYNC | Feature.PAGEFAULT_FLAG_WP) as uffd, Pagemap() as pagemap:
        area.tag_pages()
        kit.ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        kit.ok(uffd.writeprotect(area.address, PAGE), "UFFDIO_WRITEPROTECT")
        before = pagemap.entry(area.address).uffd_wp
        area.tag_pages()
        assert before and not pagemap.entry(area.address).uffd_wp
        return "a write goes through, and shows"


@probe("wp-shmem", "userfaultfd", "WP_HUGETLBFS_SHMEM: protection of shared memory")
def _() -> str:
    kit.has(Feature.WP_HUGETLBFS_SHMEM, "5.19")
    features = Feature.WP_HUGETLBFS_SHMEM | Feature.PAGEFAULT_FLAG_WP
    with kit.shared() as area, Userfault(features) as uffd:
        kit.ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        return "registered"


@probe("missing-shmem", "userfaultfd", "MISSING_SHMEM: missing pages of shared memory")
def _() -> str:
    kit.has(Feature.MISSING_SHMEM, "4.11")
    with kit.shared() as area, Userfault(Feature.MISSING_SHMEM | Feature.SIGBUS) as uffd:
        kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        kit.ok(uffd.zeropage(area.address, PAGE), "UFFDIO_ZEROPAGE")
        return "filled"


@probe("minor-shmem", "userfaultfd", "MINOR_SHMEM, CONTINUE: pages that are in the page cache, but not mapped")
def _() -> str:
    kit.has(Feature.MINOR_SHMEM, "5.14")
    with kit.shared(b"cached") as area, Userfault(Feature.MINOR_SHMEM | Feature.SIGBUS) as uffd:
        kit.ok(uffd.register(area.address, PAGE, RegisterMode.MINOR), "UFFDIO_REGISTER")
        kit.ok(uffd.continue_(area.address, PAGE), "UFFDIO_CONTINUE")
        assert area.read(0, 6) == b"cached"
        return "continued"


@probe("hugetlb", "userfaultfd", "MISSING_HUGETLBFS, MINOR_HUGETLBFS: memory of hugetlbfs")
def _() -> str:
    kit.has(Feature.MISSING_HUGETLBFS, "4.11")
    free = {path.name: setting(path / "free_hugepages") for path in sorted(HUGETLB.glob("hugepages-*"))}
    if not any(int(count) for count in free.values()):
        raise Missing("no huge page is reserved", f"echo 8 > {HUGETLB}/hugepages-2048kB/nr_hugepages, as root")
    with Mapping(HUGE_SIZE_BYTES, flags=kit.HUGETLB_FLAGS, align_bytes=HUGE_SIZE_BYTES) as area, Userfault() as uffd:
        kit.ok(uffd.register(area.address, HUGE_SIZE_BYTES), "UFFDIO_REGISTER")
    return ", ".join(f"{name}: {count} free" for name, count in free.items())


@probe("sigbus", "userfaultfd", "SIGBUS: a signal instead of a message; MADV_USERFAULT")
def _() -> str:
    kit.has(Feature.SIGBUS, "4.14")
    with UserfaultMemory(PAGE) as area:
        assert memory.read_memory(area.address, 1)[0].errno == errno.EFAULT
        return "raised"


@probe("poison", "userfaultfd", "POISON: pages that raise SIGBUS for good")
def _() -> str:
    kit.has(Feature.POISON, "6.6")
    with Mapping(PAGE) as area, Userfault(Feature.POISON) as uffd:
        kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        kit.ok(uffd.poison(area.address, PAGE), "UFFDIO_POISON")
    assert memory.read_memory(area.address, 1)[0].errno == errno.EFAULT
    return "raised"


@probe("thread-id", "userfaultfd", "THREAD_ID: who waits")
def _() -> str:
    kit.has(Feature.THREAD_ID, "4.14")
    area = kit.leaked()
    with Userfault(Feature.THREAD_ID) as uffd:
        kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        fault = kit.fault(uffd, lambda: memory.load(area.address, 1))
        assert fault.thread in {each.native_id for each in threading.enumerate()}, fault.thread
        return "told"


@probe("exact-address", "userfaultfd", "EXACT_ADDRESS: the byte, not only the page")
def _() -> str:
    kit.has(Feature.EXACT_ADDRESS, "5.18")
    area = kit.leaked()
    with Userfault(Feature.EXACT_ADDRESS) as uffd:
        kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        fault = kit.fault(uffd, lambda: memory.load(area.address + 9, 1))
        assert fault.address == area.address + 9, fault.address
        return "told"


@probe("event-fork", "userfaultfd", "EVENT_FORK: a child's memory comes with a userfaultfd of its own")
def _() -> str:
    kit.has(Feature.EVENT_FORK, "4.11")
    with Mapping(PAGE) as area, Userfault(Feature.EVENT_FORK) as uffd:

        def reader() -> Iterator[str]:
            yield type(kit.message(uffd)).__name__.lower()

        # Python's fork keeps the GIL while it waits for the reader, which must be another process.
        with Child(reader) as other:
            kit.ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
            other.go()
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)
            return f"reported ({other.answer()})"


@probe("event-remap", "userfaultfd", "EVENT_REMAP: mremap(2) is reported")
def _() -> str:
    with Mapping(PAGE, prot=memory.PROT_NONE) as room:
        moves = RemapFlag.MAYMOVE | RemapFlag.FIXED
        return kit.event(Feature.EVENT_REMAP, lambda area: memory.mremap(area.address, PAGE, PAGE, moves, room.address))


@probe("event-remove", "userfaultfd", "EVENT_REMOVE: MADV_DONTNEED and MADV_REMOVE are reported")
def _() -> str:
    return kit.event(Feature.EVENT_REMOVE, lambda area: area.madvise(Advice.DONTNEED))


@probe("event-unmap", "userfaultfd", "EVENT_UNMAP: munmap(2) is reported")
def _() -> str:
    return kit.event(Feature.EVENT_UNMAP, lambda area: memory.munmap(area.address, PAGE))
