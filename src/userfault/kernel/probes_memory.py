"""The probes of memory, of swap, and of what can be seen. Each runs in a child process of its own, whose memory is its own to spoil."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from . import memory
from . import probe_kit as kit
from .child import Child, become
from .errors import Unavailable
from .machine import KSM, THP, setting, swap_devices
from .maps import maps, vma_at
from .memory import Mapping
from .pagemap import Frames, Pagemap, known_categories
from .probe import Missing, probe
from .syscalls import errno_name, libc
from .uapi import (
    ANON_EXCLUSIVE,
    PAGE_SIZE_BYTES,
    Advice,
    PageBit,
    PageFlag,
    PageIs,
    RemapFlag,
)

PAGE = PAGE_SIZE_BYTES

# ---- memory


@probe("thp", "memory", "a touch makes a huge page")
def _() -> str:
    with Mapping.huge() as area:
        kit.huge(area)
        return f"enabled: {setting(THP / 'enabled')}"


@probe("collapse", "memory", "MADV_COLLAPSE makes a huge page of small ones")
def _() -> str:
    with Mapping.huge(advise=False) as area:
        area.tag_pages()
        kit.ok(area.madvise(Advice.COLLAPSE), "MADV_COLLAPSE", "6.1")
        if not kit.size(area, "AnonHugePages"):
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
    return kit.advised(Advice.GUARD_INSTALL, "6.13")


@probe("populate", "memory", "MADV_POPULATE_READ and _WRITE")
def _() -> str:
    return kit.advised(Advice.POPULATE_WRITE, "5.14")


@probe("free", "memory", "MADV_FREE")
def _() -> str:
    return kit.advised(Advice.FREE, "4.5")


@probe("cold", "memory", "MADV_COLD")
def _() -> str:
    return kit.advised(Advice.COLD, "5.4")


@probe("pageout", "memory", "MADV_PAGEOUT writes anonymous pages to swap")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap:
        area.tag_pages()
        kit.ok(area.madvise(Advice.PAGEOUT), "MADV_PAGEOUT", "5.4")
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
        kit.ok(memory.process_madvise(pidfd, [(area.address, PAGE)], Advice.COLD), "process_madvise", "5.10")
        return "done"


@probe("dontunmap", "memory", "MREMAP_DONTUNMAP")
def _() -> str:
    with Mapping(PAGE) as area:
        area.tag_pages()
        moved = memory.mremap(area.address, PAGE, PAGE, RemapFlag.MAYMOVE | RemapFlag.DONTUNMAP)
        kit.ok(moved, "MREMAP_DONTUNMAP", "5.7")
        return "done"


@probe("mlock", "memory", "mlock2(2) with MLOCK_ONFAULT")
def _() -> str:
    with Mapping(PAGE) as area:
        kit.ok(memory.mlock(area.address, PAGE, onfault=True), "mlock2", "4.4")
        return "done"


@probe("mseal", "memory", "mseal(2)")
def _() -> str:
    with Mapping(PAGE) as area:
        kit.ok(memory.mseal(area.address, PAGE), "mseal", "6.10")
        return "done"


@probe("ksm", "memory", "KSM merges equal pages")
def _() -> str:
    with Mapping(PAGE) as area:
        kit.ok(area.madvise(Advice.MERGEABLE), "MADV_MERGEABLE (CONFIG_KSM)")
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
        kit.ok(answer, "move_pages")
        return f"to node {where[0]}"


@probe("compact", "memory", "compaction on request, which migrates pages")
def _() -> str:
    path = Path("/proc/sys/vm/compact_memory")
    if not path.exists():
        raise Missing(f"no {path}", "a kernel with CONFIG_COMPACTION")
    if not os.access(path, os.W_OK):
        raise Missing(f"{path} is not writable", kit.ROOT)
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
    return kit.private("zram")


@probe("swap-file", "swap", "a private swap file")
def _() -> str:
    return kit.private("file")


# ---- what can be seen


@probe("pagemap", "observation", "/proc/self/pagemap, with page frame numbers")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap:
        area.tag_pages()
        entry = pagemap.entry(area.address)
        assert entry.present and entry.mapped_once, entry.letters
        if entry.pfn is None:
            raise Missing("entries are there, frame numbers are hidden", f"{kit.ROOT} (CAP_SYS_ADMIN)")
        return "with frame numbers"


@probe("pagemap-scan", "observation", "ioctl PAGEMAP_SCAN")
def _() -> str:
    known = known_categories()
    if not known:
        raise Missing("no such ioctl", f"{kit.NEWER} (it came with v6.7)")
    return ", ".join(str(each.name) for each in PageIs if each & known)


@probe("pagemap-others", "observation", "pagemap and maps of other users' processes")
def _() -> str:
    def other() -> Iterator[None]:
        if os.geteuid() == 0:
            become(kit.NOBODY)
        yield
        yield

    with Child(other) as child:
        child.step()
        pid = child.pid if os.geteuid() == 0 else 1
        try:
            with Pagemap(pid):
                maps(pid)
        except Unavailable as error:
            raise Missing(error.reason, f"{kit.ROOT} (CAP_SYS_PTRACE)") from error
        return "readable"


@probe("kpagecount", "observation", "/proc/kpagecount and kpageflags: how often a frame is mapped, and its flags")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap, Frames() as frames:
        area.tag_pages()
        pfn = pagemap.entry(area.address).pfn
        if pfn is None:
            raise Missing("frame numbers are hidden", f"{kit.ROOT} (CAP_SYS_ADMIN)")
        assert frames.count(pfn) == 1 and frames.flags(pfn) & PageFlag.ANON
        return "both"


@probe("anon-exclusive", "observation", "the flag that UFFDIO_MOVE looks at, in kpageflags")
def _() -> str:
    with Mapping(PAGE) as area, Pagemap() as pagemap, Frames() as frames:
        area.tag_pages()
        pfn = pagemap.entry(area.address).pfn
        if pfn is None:
            raise Missing("frame numbers are hidden", f"{kit.ROOT} (CAP_SYS_ADMIN)")
        alone = bool(frames.flags(pfn) & ANON_EXCLUSIVE)
        with Child(lambda: iter([0])) as child:
            child.step()
            shared = bool(frames.flags(pfn) & ANON_EXCLUSIVE)
        if (alone, shared) != (True, False):
            raise Missing(
                f"bit 34 is {alone} for a page alone and {shared} for a shared one", f"{kit.NEWER} (since v5.19)"
            )
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
        raise Missing(
            f"{events}: {error.strerror}", f"{kit.ROOT}; mount -t tracefs none /sys/kernel/tracing"
        ) from error
    return ", ".join(
        name for name in names if name in {"exceptions", "huge_memory", "kmem", "migrate", "vmscan", "ksm"}
    )
