"""The probes of `userfault probe`. Each runs in a child process of its own, whose memory and settings are its own to spoil."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from . import memory
from .child import Child, become
from .errors import Unavailable
from .machine import HUGETLB, KSM, THP, machine, setting, swap_devices
from .maps import maps, vma_at
from .memory import Mapping
from .pagemap import Frames, Pagemap, known_categories
from .probe import Missing, Unclear, probe
from .remap import UserfaultMemory
from .syscalls import Result, errno_name, libc
from .uapi import (
    ANON_EXCLUSIVE,
    HUGE_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    Advice,
    Feature,
    PageBit,
    PagefaultFlag,
    PageFlag,
    PageIs,
    RegisterMode,
    RemapFlag,
)
from .userfaultfd import Message, Pagefault, Userfault, supported_features

PAGE = PAGE_SIZE_BYTES
NOBODY = 65534
NEWER = "run a newer kernel"
ROOT = "run as root"

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
        become(NOBODY)
    with Userfault() as uffd:
        return "user mode only" if uffd.user_mode_only else "everything"


# ---- userfaultfd: what it does


@probe("missing", "userfaultfd", "a missing page is reported and filled (COPY)")
def _() -> str:
    with Mapping(PAGE) as area, Mapping(PAGE) as source, Userfault() as uffd:
        source.tag_pages()
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        fault = _fault(uffd, lambda: memory.load(area.address, 1))
        _ok(uffd.copy(fault.address, source.address, PAGE), "UFFDIO_COPY")
        assert area.read(0, 2) == b"\0\x10"
        return "reported and filled"


@probe("zeropage", "userfaultfd", "ZEROPAGE fills without a copy")
def _() -> str:
    with Mapping(PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        _ok(uffd.zeropage(area.address, PAGE), "UFFDIO_ZEROPAGE")
        return "done"


@probe("move", "userfaultfd", "MOVE: pages change their address without a copy; remap_anon_pages")
def _() -> str:
    _has(Feature.MOVE, "6.8")
    with Mapping(PAGE) as src, Mapping(PAGE) as dst:
        src.tag_pages()
        _moves(src, dst, PAGE)
        assert dst.read(0, 2) == b"\0\x10" and src.read(0, 2) == bytes(2)
        return "done"


@probe("move-zero-page", "userfaultfd", "MOVE of a page that was only read")
def _() -> str:
    _has(Feature.MOVE, "6.8")
    with Mapping(PAGE) as src, Mapping(PAGE) as dst:
        src.read(0, 1)
        _moves(src, dst, PAGE)
        return "done"


@probe("move-huge-page", "userfaultfd", "MOVE of a huge page as one")
def _() -> str:
    _has(Feature.MOVE, "6.8")
    with Mapping.huge() as src, Mapping.huge() as dst:
        _huge(src)
        _moves(src, dst, HUGE_SIZE_BYTES)
        if not _size(dst, "AnonHugePages"):
            raise Missing("it was split", NEWER)
        return "stays a huge page"


@probe("wp", "userfaultfd", "PAGEFAULT_FLAG_WP: writes to protected pages are reported")
def _() -> str:
    _has(Feature.PAGEFAULT_FLAG_WP, "5.7")
    area = _leaked()
    with Userfault(Feature.PAGEFAULT_FLAG_WP) as uffd:
        area.tag_pages()
        _ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        _ok(uffd.writeprotect(area.address, PAGE), "UFFDIO_WRITEPROTECT")
        fault = _fault(uffd, lambda: memory.store(area.address, b"w"))
        assert fault.flags & PagefaultFlag.WP, fault.flags
        return "reported"


@probe("wp-unpopulated", "userfaultfd", "WP_UNPOPULATED: protection of pages that are not there yet")
def _() -> str:
    _has(Feature.WP_UNPOPULATED, "6.4")
    features = Feature.WP_UNPOPULATED | Feature.PAGEFAULT_FLAG_WP
    with Mapping(PAGE) as area, Userfault(features) as uffd, Pagemap() as pagemap:
        _ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        _ok(uffd.writeprotect(area.address, PAGE), "UFFDIO_WRITEPROTECT")
        assert pagemap.entry(area.address).uffd_wp
        return "a marker"


@probe("wp-async", "userfaultfd", "WP_ASYNC: dirty tracking without a reader")
def _() -> str:
    _has(Feature.WP_ASYNC, "6.7")
    with Mapping(PAGE) as area, Userfault(Feature.WP_ASYNC | Feature.PAGEFAULT_FLAG_WP) as uffd, Pagemap() as pagemap:
        area.tag_pages()
        _ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        _ok(uffd.writeprotect(area.address, PAGE), "UFFDIO_WRITEPROTECT")
        before = pagemap.entry(area.address).uffd_wp
        area.tag_pages()
        assert before and not pagemap.entry(area.address).uffd_wp
        return "a write goes through, and shows"


@probe("wp-shmem", "userfaultfd", "WP_HUGETLBFS_SHMEM: protection of shared memory")
def _() -> str:
    _has(Feature.WP_HUGETLBFS_SHMEM, "5.19")
    features = Feature.WP_HUGETLBFS_SHMEM | Feature.PAGEFAULT_FLAG_WP
    with _shared() as area, Userfault(features) as uffd:
        _ok(uffd.register(area.address, PAGE, RegisterMode.WP), "UFFDIO_REGISTER")
        return "registered"


@probe("missing-shmem", "userfaultfd", "MISSING_SHMEM: missing pages of shared memory")
def _() -> str:
    _has(Feature.MISSING_SHMEM, "4.11")
    with _shared() as area, Userfault(Feature.MISSING_SHMEM | Feature.SIGBUS) as uffd:
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        _ok(uffd.zeropage(area.address, PAGE), "UFFDIO_ZEROPAGE")
        return "filled"


@probe("minor-shmem", "userfaultfd", "MINOR_SHMEM, CONTINUE: pages that are in the page cache, but not mapped")
def _() -> str:
    _has(Feature.MINOR_SHMEM, "5.14")
    with _shared(b"cached") as area, Userfault(Feature.MINOR_SHMEM | Feature.SIGBUS) as uffd:
        _ok(uffd.register(area.address, PAGE, RegisterMode.MINOR), "UFFDIO_REGISTER")
        _ok(uffd.continue_(area.address, PAGE), "UFFDIO_CONTINUE")
        assert area.read(0, 6) == b"cached"
        return "continued"


@probe("hugetlb", "userfaultfd", "MISSING_HUGETLBFS, MINOR_HUGETLBFS: memory of hugetlbfs")
def _() -> str:
    _has(Feature.MISSING_HUGETLBFS, "4.11")
    free = {path.name: setting(path / "free_hugepages") for path in sorted(HUGETLB.glob("hugepages-*"))}
    if not any(int(count) for count in free.values()):
        raise Missing("no huge page is reserved", f"echo 8 > {HUGETLB}/hugepages-2048kB/nr_hugepages, as root")
    with Mapping(HUGE_SIZE_BYTES, flags=_HUGETLB, align_bytes=HUGE_SIZE_BYTES) as area, Userfault() as uffd:
        _ok(uffd.register(area.address, HUGE_SIZE_BYTES), "UFFDIO_REGISTER")
    return ", ".join(f"{name}: {count} free" for name, count in free.items())


@probe("sigbus", "userfaultfd", "SIGBUS: a signal instead of a message; MADV_USERFAULT")
def _() -> str:
    _has(Feature.SIGBUS, "4.14")
    with UserfaultMemory(PAGE) as area:
        assert memory.read_memory(area.address, 1)[0].errno == errno.EFAULT
        return "raised"


@probe("poison", "userfaultfd", "POISON: pages that raise SIGBUS for good")
def _() -> str:
    _has(Feature.POISON, "6.6")
    with Mapping(PAGE) as area, Userfault(Feature.POISON) as uffd:
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        _ok(uffd.poison(area.address, PAGE), "UFFDIO_POISON")
    assert memory.read_memory(area.address, 1)[0].errno == errno.EFAULT
    return "raised"


@probe("thread-id", "userfaultfd", "THREAD_ID: who waits")
def _() -> str:
    _has(Feature.THREAD_ID, "4.14")
    area = _leaked()
    with Userfault(Feature.THREAD_ID) as uffd:
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        fault = _fault(uffd, lambda: memory.load(area.address, 1))
        assert fault.thread in {each.native_id for each in threading.enumerate()}, fault.thread
        return "told"


@probe("exact-address", "userfaultfd", "EXACT_ADDRESS: the byte, not only the page")
def _() -> str:
    _has(Feature.EXACT_ADDRESS, "5.18")
    area = _leaked()
    with Userfault(Feature.EXACT_ADDRESS) as uffd:
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        fault = _fault(uffd, lambda: memory.load(area.address + 9, 1))
        assert fault.address == area.address + 9, fault.address
        return "told"


@probe("event-fork", "userfaultfd", "EVENT_FORK: a child's memory comes with a userfaultfd of its own")
def _() -> str:
    _has(Feature.EVENT_FORK, "4.11")
    with Mapping(PAGE) as area, Userfault(Feature.EVENT_FORK) as uffd:

        def reader() -> Iterator[str]:
            yield type(_message(uffd)).__name__.lower()

        # Python's fork keeps the GIL while it waits for the reader, which must be another process.
        with Child(reader) as other:
            _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
            other.go()
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)
            return f"reported ({other.answer()})"


@probe("event-remap", "userfaultfd", "EVENT_REMAP: mremap(2) is reported")
def _() -> str:
    with Mapping(PAGE, prot=memory.PROT_NONE) as room:
        moves = RemapFlag.MAYMOVE | RemapFlag.FIXED
        return _event(Feature.EVENT_REMAP, lambda area: memory.mremap(area.address, PAGE, PAGE, moves, room.address))


@probe("event-remove", "userfaultfd", "EVENT_REMOVE: MADV_DONTNEED and MADV_REMOVE are reported")
def _() -> str:
    return _event(Feature.EVENT_REMOVE, lambda area: area.madvise(Advice.DONTNEED))


@probe("event-unmap", "userfaultfd", "EVENT_UNMAP: munmap(2) is reported")
def _() -> str:
    return _event(Feature.EVENT_UNMAP, lambda area: memory.munmap(area.address, PAGE))


# ---- memory


@probe("thp", "memory", "a touch makes a huge page")
def _() -> str:
    with Mapping.huge() as area:
        _huge(area)
        return f"enabled: {setting(THP / 'enabled')}"


@probe("collapse", "memory", "MADV_COLLAPSE makes a huge page of small ones")
def _() -> str:
    with Mapping.huge(advise=False) as area:
        area.tag_pages()
        _ok(area.madvise(Advice.COLLAPSE), "MADV_COLLAPSE", "6.1")
        if not _size(area, "AnonHugePages"):
            raise Missing("it makes none", f"echo madvise > {THP}/enabled")
        return "made"


@probe("split-by-debugfs", "memory", "/sys/kernel/debug/split_huge_pages: huge pages split on request")
def _() -> str:
    path = Path("/sys/kernel/debug/split_huge_pages")
    instead = "MADV_PAGEOUT, MADV_FREE or a move of a part split one as well"
    try:
        path.open("w").close()
    except PermissionError as error:
        raise Missing(f"{path}: {error.strerror}", f"run as root without kernel lockdown; {instead}") from error
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}", f"mount -t debugfs none /sys/kernel/debug; {instead}") from error
    return "writable"


@probe("guard", "memory", "MADV_GUARD_INSTALL: guard pages without mappings of their own")
def _() -> str:
    return _advised(Advice.GUARD_INSTALL, "6.13")


@probe("populate", "memory", "MADV_POPULATE_READ and _WRITE")
def _() -> str:
    return _advised(Advice.POPULATE_WRITE, "5.14")


@probe("free", "memory", "MADV_FREE")
def _() -> str:
    return _advised(Advice.FREE, "4.5")


@probe("cold", "memory", "MADV_COLD")
def _() -> str:
    return _advised(Advice.COLD, "5.4")


@probe("pageout", "memory", "MADV_PAGEOUT writes anonymous pages to swap")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap:
        area.tag_pages()
        _ok(area.madvise(Advice.PAGEOUT), "MADV_PAGEOUT", "5.4")
        if not pagemap.entry(area.address).swapped:
            raise Missing(
                "no swap is on" if not swap_devices() else "the page stayed",
                "swapon some; userfault.kernel.machine.private_swap makes one",
            )
        return "swapped"


@probe("process-madvise", "memory", "process_madvise(2): COLD and PAGEOUT for others")
def _() -> str:
    with Mapping(PAGE) as area:
        pidfd = os.pidfd_open(os.getpid())
        _ok(memory.process_madvise(pidfd, [(area.address, PAGE)], Advice.COLD), "process_madvise", "5.10")
        return "done"


@probe("dontunmap", "memory", "MREMAP_DONTUNMAP")
def _() -> str:
    with Mapping(PAGE) as area:
        area.tag_pages()
        moved = memory.mremap(area.address, PAGE, PAGE, RemapFlag.MAYMOVE | RemapFlag.DONTUNMAP)
        _ok(moved, "MREMAP_DONTUNMAP", "5.7")
        return "done"


@probe("mlock", "memory", "mlock2(2) with MLOCK_ONFAULT")
def _() -> str:
    with Mapping(PAGE) as area:
        _ok(memory.mlock(area.address, PAGE, onfault=True), "mlock2", "4.4")
        return "done"


@probe("mseal", "memory", "mseal(2)")
def _() -> str:
    with Mapping(PAGE) as area:
        _ok(memory.mseal(area.address, PAGE), "mseal", "6.10")
        return "done"


@probe("ksm", "memory", "KSM merges equal pages")
def _() -> str:
    with Mapping(PAGE) as area:
        _ok(area.madvise(Advice.MERGEABLE), "MADV_MERGEABLE (CONFIG_KSM)")
    run = setting(KSM / "run")
    if run != "1":
        raise Missing(f"MADV_MERGEABLE works, but nothing is merged: run is {run}", f"echo 1 > {KSM}/run, as root")
    return "running"


@probe("migrate", "memory", "move_pages(2) between nodes")
def _() -> str:
    nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))
    if len(nodes) < 2:
        raise Missing(
            "one memory node only", "compaction migrates as well: echo 1 > /proc/sys/vm/compact_memory, as root"
        )
    with Mapping(PAGE) as area:
        area.tag_pages()
        answer, where = memory.move_pages(0, [area.address], [int(nodes[1].name.removeprefix("node"))])
        _ok(answer, "move_pages")
        return f"to node {where[0]}"


@probe("compact", "memory", "compaction on request, which migrates pages")
def _() -> str:
    path = Path("/proc/sys/vm/compact_memory")
    if not path.exists():
        raise Missing(f"no {path}", "a kernel with CONFIG_COMPACTION")
    if not os.access(path, os.W_OK):
        raise Missing(f"{path} is not writable", ROOT)
    return "writable"


@probe("pin", "memory", "io_uring fixed buffers, which pin pages")
def _() -> str:
    ring = libc.syscall(ctypes.c_long(425), 1, ctypes.create_string_buffer(120))
    if ring < 0:
        why = errno_name(ctypes.get_errno())
        raise Missing(f"io_uring_setup: {why}", "sysctl kernel.io_uring_disabled=0, and no seccomp filter (containers)")
    return "io_uring is there"


# ---- swap


@probe("swap", "swap", "swap is on")
def _() -> str:
    devices = swap_devices()
    if not devices:
        raise Missing("none", "swapon some, or see zram and swap-file below")
    return ", ".join(f"{path} ({used >> 20} of {size >> 20} MiB used)" for path, size, used in devices)


@probe("swap-zram", "swap", "a private swap device in memory: swapped and back the same way each time")
def _() -> str:
    return _private("zram")


@probe("swap-file", "swap", "a private swap file")
def _() -> str:
    return _private("file")


# ---- what can be seen


@probe("pagemap", "observation", "/proc/self/pagemap, with page frame numbers")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap:
        area.tag_pages()
        entry = pagemap.entry(area.address)
        assert entry.present and entry.mapped_once, entry.letters
        if entry.pfn is None:
            raise Missing("entries are there, frame numbers are hidden", f"{ROOT} (CAP_SYS_ADMIN)")
        return "with frame numbers"


@probe("pagemap-scan", "observation", "ioctl PAGEMAP_SCAN")
def _() -> str:
    known = known_categories()
    if not known:
        raise Missing("no such ioctl", f"{NEWER} (it came with v6.7)")
    return ", ".join(str(each.name) for each in PageIs if each & known)


@probe("pagemap-others", "observation", "pagemap and maps of other users' processes")
def _() -> str:
    def other() -> Iterator[None]:
        if os.geteuid() == 0:
            become(NOBODY)
        yield
        yield

    with Child(other) as child:
        child.step()
        pid = child.pid if os.geteuid() == 0 else 1
        try:
            with Pagemap(pid):
                maps(pid)
        except Unavailable as error:
            raise Missing(error.reason, f"{ROOT} (CAP_SYS_PTRACE)") from error
        return "readable"


@probe("kpagecount", "observation", "/proc/kpagecount and kpageflags: how often a frame is mapped, and its flags")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap, Frames() as frames:
        area.tag_pages()
        pfn = pagemap.entry(area.address).pfn
        if pfn is None:
            raise Missing("frame numbers are hidden", f"{ROOT} (CAP_SYS_ADMIN)")
        assert frames.count(pfn) == 1 and frames.flags(pfn) & PageFlag.ANON
        return "both"


@probe("anon-exclusive", "observation", "the flag that UFFDIO_MOVE looks at, in kpageflags")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap, Frames() as frames:
        area.tag_pages()
        pfn = pagemap.entry(area.address).pfn
        if pfn is None:
            raise Missing("frame numbers are hidden", f"{ROOT} (CAP_SYS_ADMIN)")
        alone = bool(frames.flags(pfn) & ANON_EXCLUSIVE)
        with Child(lambda: iter([0])) as child:
            child.step()
            shared = bool(frames.flags(pfn) & ANON_EXCLUSIVE)
        if (alone, shared) != (True, False):
            raise Missing(f"bit 34 is {alone} for a page alone and {shared} for a shared one", f"{NEWER} (since v5.19)")
        return "bit 34"


@probe("soft-dirty", "observation", "soft-dirty bits of pagemap")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap:
        area.tag_pages()
        Path("/proc/self/clear_refs").write_text("4")
        cleared = pagemap.entry(area.address) & PageBit.SOFT_DIRTY
        area.tag_pages()
        if cleared or not pagemap.entry(area.address) & PageBit.SOFT_DIRTY:
            raise Missing("the bit does not follow writes", "a kernel with CONFIG_MEM_SOFT_DIRTY; or use WP_ASYNC")
        return "follows writes"


@probe("vmflags", "observation", "VmFlags of smaps")
def _() -> str:
    with Mapping(PAGE) as area:
        vma = vma_at(area.address)
        if vma is None or not vma.vm_flags:
            raise Missing("smaps has none", "a kernel with CONFIG_PROC_PAGE_MONITOR")
        return " ".join(sorted(vma.vm_flags))


@probe("tracefs", "observation", "tracefs: page faults, reclaim and migration as events")
def _() -> str:
    events = Path("/sys/kernel/tracing/events")
    try:
        names = sorted(path.name for path in events.iterdir())
    except OSError as error:
        raise Missing(f"{events}: {error.strerror}", f"{ROOT}; mount -t tracefs none /sys/kernel/tracing") from error
    return ", ".join(
        name for name in names if name in {"exceptions", "huge_memory", "kmem", "migrate", "vmscan", "ksm"}
    )


# ---- helpers

_HUGETLB = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | 0x40000
"""MAP_HUGETLB."""


def _ok(answer: Result | object, what: str, since: str = "") -> None:
    number = getattr(answer, "errno", 0)
    if number:
        remedy = f"{NEWER} ({what} came with v{since})" if since else f"{NEWER}, or {ROOT}"
        if number == errno.EPERM:
            remedy = ROOT
        raise Missing(f"{what}: {errno_name(number)}", remedy)


def _has(feature: Feature, since: str) -> None:
    if not supported_features() & feature:
        with suppress(OSError), Userfault():
            raise Missing(f"this kernel does not offer UFFD_FEATURE_{feature.name}", f"{NEWER} (it came with v{since})")
        raise Missing("no userfaultfd", "see the first lines")


def _leaked() -> Mapping:
    """Memory that a thread may still wait in when the probe is done: only the child's end takes it away."""
    return Mapping(PAGE)


def _touch(work: Callable[[], object]) -> threading.Thread:
    # It may wait for ever: the child that runs this ends without it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _message(uffd: Userfault) -> Message:
    assert uffd.wait(5), "nothing is reported"
    return uffd.read()[0]


def _fault(uffd: Userfault, work: Callable[[], object]) -> Pagefault:
    _touch(work)
    message = _message(uffd)
    assert isinstance(message, Pagefault), message
    return message


def _event(feature: Feature, act: Callable[[Mapping], object]) -> str:
    _has(feature, "4.11")
    area = _leaked()
    with Userfault(feature) as uffd:
        _ok(uffd.register(area.address, PAGE), "UFFDIO_REGISTER")
        _touch(lambda: act(area))
        message = _message(uffd)
        assert not isinstance(message, Pagefault), message
        return f"reported ({type(message).__name__.lower()})"


def _moves(src: Mapping, dst: Mapping, length: int) -> None:
    with Userfault(Feature.SIGBUS) as uffd:
        _ok(uffd.register(dst.address, length), "UFFDIO_REGISTER")
        _ok(uffd.move_all(dst.address, src.address, length), "UFFDIO_MOVE")


def _shared(contents: bytes = b"") -> Mapping:
    fd = os.memfd_create("probe")
    os.ftruncate(fd, PAGE)
    if contents:
        os.pwrite(fd, contents, 0)
    return Mapping(PAGE, flags=mmap.MAP_SHARED, fd=fd)


def _size(area: Mapping, name: str) -> int:
    vma = vma_at(area.address)
    return vma.sizes_bytes.get(name, 0) if vma else 0


def _huge(area: Mapping) -> None:
    if not THP.is_dir():
        raise Missing("no transparent huge pages", "a kernel with CONFIG_TRANSPARENT_HUGEPAGE")
    area.tag_pages()
    if not _size(area, "AnonHugePages"):
        enabled = setting(THP / "enabled")
        if enabled == "never":
            raise Missing("enabled: never", f"echo madvise > {THP}/enabled, as root")
        raise Unclear(
            f"enabled: {enabled}, but none was free", "echo 1 > /proc/sys/vm/compact_memory, as root, and again"
        )


def _advised(advice: Advice, since: str) -> str:
    with Mapping(PAGE) as area:
        area.tag_pages()
        _ok(area.madvise(advice), f"MADV_{advice.name}", since)
        return "done"


def _private(kind: str) -> str:
    if os.geteuid():
        raise Missing("swapon needs privilege", ROOT)
    try:
        with machine(timeout_s=2) as held:
            try:
                return f"{held.private_swap(1 << 20, kinds=(kind,)).kind}, tried and taken away"
            except Unavailable as error:
                raise Missing(error.reason, error.remedy) from error
    except Missing:
        raise
    except Unavailable as error:
        raise Unclear(error.reason, error.remedy) from error
