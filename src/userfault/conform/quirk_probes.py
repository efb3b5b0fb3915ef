"""The questions behind the quirks: what is done to the running kernel to find out how it answers.

Each returns what the field of its name in quirks.py says, or None where this machine can't be asked.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path

from ..kernel import memory
from ..kernel.child import Child, call
from ..kernel.machine import KSM, setting
from ..kernel.maps import vma_at
from ..kernel.memory import Mapping
from ..kernel.pagemap import Frames, Pagemap
from ..kernel.uapi import ANON_EXCLUSIVE, Advice, Feature, PageBit, PageFlag, PageIs, RegisterMode, RemapFlag
from ..kernel.uapi import PAGE_SIZE_BYTES as PAGE
from ..kernel.userfaultfd import Userfault

AT_ONCE = 1 << 30
"""Pages that a borrowed ksmd scans without a pause: more than there are, so that it stops between two scans of everything."""
READ, MOVE = mmap.PROT_READ, RemapFlag.MAYMOVE | RemapFlag.FIXED


def holes_are_written() -> bool:
    with Mapping(2 * PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        uffd.register(area.address, 2 * PAGE, RegisterMode.WP).or_raise("UFFDIO_REGISTER")
        memory.store(area.address, b"1")
        return _is_written(area.at(1))


def written_needs_protection() -> bool:
    with Mapping(PAGE) as area:
        memory.store(area.address, b"1")
        return not _is_written(area.address)


def fills_replace_guards() -> bool:
    with Mapping(2 * PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        memory.store(area.address, b"1")
        uffd.register(area.address + PAGE, PAGE).or_raise("UFFDIO_REGISTER")
        memory.madvise(area.address + PAGE, PAGE, Advice.GUARD_INSTALL).or_raise("MADV_GUARD_INSTALL")
        return uffd.copy(area.address + PAGE, area.address, PAGE).ok


def anon_shows_ksm() -> bool:
    with Mapping(PAGE) as area:
        memory.store(area.address, b"1")
        return bool(_flags(area.address) & PageFlag.KSM)


def parts_show_huge_flags() -> bool | None:
    with Mapping.huge() as area:
        memory.store(area.address, b"1")
        flags = _flags(area.at(1))
        return bool(flags & ANON_EXCLUSIVE) if flags & PageFlag.THP else None


def huge_entry_shows_first_part() -> bool | None:
    def forget() -> Iterator[None]:
        area.madvise(Advice.DONTNEED, 1, 1)
        yield

    with Mapping.huge() as area, Pagemap() as pagemap:
        memory.store(area.address, b"1")
        if not _flags(area.at(1)) & PageFlag.THP:
            return None
        with Child(forget) as child:
            child.step()
            return not pagemap.entry(area.at(1)).mapped_once


def huge_zero_page_is_file() -> bool | None:
    with Mapping.huge() as area, Pagemap() as pagemap:
        memory.load(area.address, 1)
        return PageBit.FILE in pagemap.entry(area.address).bits if _flags(area.address) & PageFlag.THP else None


def shows_lock_on_fault() -> bool:
    with Mapping(PAGE) as area:
        memory.mlock(area.address, PAGE, onfault=True).or_raise("mlock2")
        vma = vma_at(area.address)
        return vma is not None and "lf" in vma.vm_flags


def merge_spares_fork_children() -> bool:
    with Mapping(2 * PAGE) as area:
        area.madvise(Advice.DONTDUMP, 0, 1).or_raise("MADV_DONTDUMP")
        memory.store(area.at(1), b"1")
        area.madvise(Advice.DONTDUMP, 1, 1).or_raise("MADV_DONTDUMP")
        vma = vma_at(area.address)
        return vma is not None and area.at(1) in vma


def mremap_moves_several() -> bool:
    with Mapping(2 * PAGE) as area, Mapping(2 * PAGE) as place:
        memory.mprotect(area.at(1), PAGE, READ).or_raise("mprotect")
        return memory.mremap(area.address, 2 * PAGE, 2 * PAGE, MOVE, place.address).ok


def dontunmap_splits_locked() -> bool:
    with Mapping(2 * PAGE) as area, Mapping(PAGE) as place:
        memory.mlock(area.address, 2 * PAGE).or_raise("mlock")
        memory.mremap(area.at(1), PAGE, PAGE, MOVE | RemapFlag.DONTUNMAP, place.address).or_raise("mremap")
        vma = vma_at(area.address)
        return vma is not None and "lo" in vma.vm_flags


def dontunmap_resets_offset() -> bool:
    with Mapping(2 * PAGE) as area, Mapping(PAGE) as source, Mapping(PAGE) as place:
        memory.store(source.address, b"1")
        memory.mremap(source.address, PAGE, PAGE, MOVE, area.at(1)).or_raise("mremap")
        memory.mremap(area.at(1), PAGE, PAGE, MOVE | RemapFlag.DONTUNMAP, place.address).or_raise("mremap")
        area.madvise(Advice.DONTDUMP, 0, 1).or_raise("MADV_DONTDUMP")
        area.madvise(Advice.DODUMP, 0, 1).or_raise("MADV_DODUMP")
        vma = vma_at(area.address)
        return vma is not None and area.at(1) in vma


def dontunmap_keeps_source_apart() -> bool:
    with Mapping(2 * PAGE) as area:
        memory.munmap(area.at(1), PAGE).or_raise("munmap")
        memory.mremap(area.address, PAGE, PAGE, MOVE | RemapFlag.DONTUNMAP, area.at(1)).or_raise("mremap")
        vma = vma_at(area.address)
        return vma is not None and area.at(1) not in vma


def mremap_drops_protection() -> bool:
    with Mapping(PAGE) as area, Mapping(PAGE) as place, Userfault(Feature.SIGBUS) as uffd, Pagemap() as pagemap:
        memory.store(area.address, b"1")
        uffd.register(area.address, PAGE, RegisterMode.WP).or_raise("UFFDIO_REGISTER")
        uffd.writeprotect(area.address, PAGE).or_raise("UFFDIO_WRITEPROTECT")
        memory.mremap(area.address, PAGE, PAGE, MOVE, place.address).or_raise("mremap")
        return not pagemap.entry(place.address).uffd_wp


def mremap_spares_neighbours() -> bool:
    with Mapping(2 * PAGE) as area, Mapping(PAGE) as moved, Userfault(Feature.SIGBUS) as uffd:
        uffd.register(area.address, PAGE).or_raise("UFFDIO_REGISTER")
        uffd.register(moved.address, PAGE).or_raise("UFFDIO_REGISTER")
        memory.mremap(moved.address, PAGE, PAGE, MOVE, area.at(1)).or_raise("mremap")
        vma = vma_at(area.address)
        return vma is not None and "um" in vma.vm_flags


def populate_stops_at_holes() -> bool:
    with Mapping(3 * PAGE) as area, Pagemap() as pagemap:
        memory.munmap(area.at(1), PAGE).or_raise("munmap")
        memory.madvise(area.at(1), 2 * PAGE, Advice.POPULATE_WRITE)
        return not pagemap.entry(area.at(2)).present


def writeprotect_spans_vmas() -> bool:
    with Mapping(2 * PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        area.madvise(Advice.DONTDUMP, 0, 1).or_raise("MADV_DONTDUMP")
        uffd.register(area.address, 2 * PAGE, RegisterMode.WP).or_raise("UFFDIO_REGISTER")
        return uffd.writeprotect(area.address, 2 * PAGE).ok


def unregister_asks_whose() -> bool:
    with Mapping(PAGE) as area, Userfault(Feature.SIGBUS) as uffd, Userfault(Feature.SIGBUS) as other:
        uffd.register(area.address, PAGE).or_raise("UFFDIO_REGISTER")
        return not other.unregister(area.address, PAGE).ok


def register_keeps_protection() -> bool:
    with Mapping(PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        uffd.register(area.address, PAGE, RegisterMode.MISSING | RegisterMode.WP).or_raise("UFFDIO_REGISTER")
        return not uffd.register(area.address, PAGE, RegisterMode.MISSING).ok


def uffd_merges_rear() -> bool:
    with Mapping(3 * PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        uffd.register(area.address, 2 * PAGE).or_raise("UFFDIO_REGISTER")
        uffd.unregister(area.at(1), PAGE).or_raise("UFFDIO_UNREGISTER")
        vma = vma_at(area.at(1))
        return vma is not None and area.at(2) in vma


def refusal_is_output() -> bool:
    with Mapping(PAGE) as area, Userfault(Feature.EVENT_REMOVE) as uffd:
        uffd.register(area.address, PAGE).or_raise("UFFDIO_REGISTER")
        forgets = threading.Thread(target=area.madvise, args=(Advice.DONTNEED,))
        forgets.start()
        uffd.wait(5)
        refused = uffd.zeropage(area.address, PAGE)
        uffd.read()
        forgets.join()
        return refused.field is not None


def copy_checks_source() -> bool:
    with Mapping(PAGE) as area, Userfault(Feature.SIGBUS) as uffd:
        uffd.register(area.address, PAGE).or_raise("UFFDIO_REGISTER")
        return uffd.copy(area.address, 1 << 47, PAGE).errno == EINVAL


def mmap_merges_both_sides() -> bool:
    with Mapping(3 * PAGE) as area:
        memory.munmap(area.at(1), PAGE).or_raise("munmap")
        memory.store(area.at(2), b"1")
        fixed = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_FIXED
        memory.mmap(area.at(1), PAGE, flags=fixed).or_raise("mmap")
        vma = vma_at(area.address)
        return vma is not None and area.at(2) in vma


def fills_prepare_first() -> bool:
    with Mapping(2 * PAGE) as area, Mapping(PAGE) as source, Userfault(Feature.SIGBUS) as uffd:
        area.madvise(Advice.DONTDUMP, 1, 1).or_raise("MADV_DONTDUMP")
        uffd.copy(area.address, source.address, PAGE)
        memory.store(area.at(1), b"1")
        area.madvise(Advice.DONTDUMP, 0, 1).or_raise("MADV_DONTDUMP")
        # Two anon_vmas can't be one VMA's.
        vma = vma_at(area.address)
        return vma is not None and area.at(1) not in vma


def mprotect_unaccounts() -> bool:
    with Mapping(PAGE) as area:
        memory.mprotect(area.address, PAGE, READ).or_raise("mprotect")
        vma = vma_at(area.address)
        return vma is not None and "ac" not in vma.vm_flags


def empty_tables_are_freed() -> bool:
    with Mapping.huge(advise=False) as area:
        area.madvise(Advice.NOHUGEPAGE)
        memory.store(area.address, b"1")
        before = page_tables_bytes()
        area.madvise(Advice.DONTNEED).or_raise("MADV_DONTNEED")
        return page_tables_bytes() < before


def page_tables_bytes() -> int:
    """VmPTE of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmPTE:"))


def huge_zero_page_is_replaced() -> bool | None:
    with Mapping.huge() as area:
        memory.load(area.at(1), 1)
        if not _flags(area.at(1)) & PageFlag.THP:
            return None
        memory.store(area.address, b"1")
        return bool(_flags(area.at(1)) & PageFlag.THP)


def _mapped_by_small_entries(area: Mapping) -> bool:
    """Touch an area, which becomes a huge page, and have small entries map it; is there one?"""
    memory.store(area.address, b"1")
    memory.mprotect(area.at(1), PAGE, READ).or_raise("mprotect")
    memory.mprotect(area.at(1), PAGE, READ | mmap.PROT_WRITE).or_raise("mprotect")
    return bool(_flags(area.address) & PageFlag.THP)


def ksmd_forgets_checksums() -> bool | None:
    if setting(KSM / "run") != "0" or setting(KSM / "pages_to_scan") != str(AT_ONCE):
        return None  # ksmd is not borrowed.
    with Mapping(3 * PAGE) as area, Pagemap() as pagemap:
        area.madvise(Advice.MERGEABLE).or_raise("MADV_MERGEABLE")
        equal = os.urandom(8)
        for content in (os.urandom(8), equal):
            for at, each in enumerate((content, equal, equal)):
                memory.store(area.at(at), each)
            before = [pagemap.entry(area.at(at)).pfn for at in range(3)]
            _whole_scans()
        # If the last two meet in the first scan, the last one stays, else the first two meet in the second.
        stays = pagemap.entry(area.address).pfn
        return stays == before[1] if stays in before[1:] else None


def _whole_scans(count: int = 4) -> None:
    def scans() -> int:
        return int(setting(KSM / "full_scans"))

    until = scans() + count
    (KSM / "run").write_text("1")
    try:
        while scans() < until:
            time.sleep(0.001)
    finally:
        (KSM / "run").write_text("0")


def _copied_part(last: bool) -> bool | None:
    """Is a part of a huge page that a child has had copied by a write? last: no other part is mapped any more."""
    with Mapping.huge() as area:
        if not _mapped_by_small_entries(area):
            return None
        if last:
            memory.madvise(area.at(1), area.length_bytes - PAGE, Advice.DONTNEED).or_raise("MADV_DONTNEED")
        # A fork shares the page, and its end leaves it to us.
        call(int)
        memory.store(area.address, b"2")
        return not _flags(area.address) & PageFlag.THP


def reuses_parts() -> bool | None:
    copied = _copied_part(last=False)
    return None if copied is None else not copied


def copies_last_part() -> bool | None:
    return _copied_part(last=True)


def collapse_of_less_succeeds() -> bool:
    with Mapping.huge() as area:
        memory.store(area.address, b"1")
        return area.madvise(Advice.COLLAPSE, 1, 1).ok


def swapin_goes_through_cache() -> bool | None:
    with Mapping(PAGE) as area, Pagemap() as pagemap:
        memory.store(area.address, b"1")
        # A fork shares the page, and nobody looks whether it is shared still.
        call(int)
        area.madvise(Advice.PAGEOUT).or_raise("MADV_PAGEOUT")
        if not pagemap.entry(area.address).swapped:
            return None
        memory.load(area.address, 1)
        flags = _flags(area.address)
        # From a device with asynchronous reads all kernels leave it in the cache.
        return None if flags & PageFlag.SWAPCACHE else not flags & ANON_EXCLUSIVE


def split_maps_zero_page() -> bool | None:
    with Mapping.huge() as area:
        memory.store(area.address, b"1")
        if not _flags(area.at(2)) & PageFlag.THP:
            return None
        # Advice for a part splits it.
        area.madvise(Advice.COLD, 1, 1)
        return bool(_flags(area.at(2)) & PageFlag.ZERO_PAGE)


def advice_goes_by_batches() -> bool | None:
    with Mapping.huge() as area:
        if not _mapped_by_small_entries(area):
            return None
        area.madvise(Advice.FREE).or_raise("MADV_FREE")
        return bool(_flags(area.address) & PageFlag.THP)


def protection_goes_by_batches() -> bool | None:
    with Mapping.huge() as area:
        if not _mapped_by_small_entries(area):
            return None
        area.madvise(Advice.FREE).or_raise("MADV_FREE")
        memory.store(area.address, b"2")
        memory.mprotect(area.address, area.length_bytes, READ).or_raise("mprotect")
        found = vma_at(area.address)
        return None if found is None else not found.sizes_bytes["LazyFree"]


def lazyfree_is_kept_busy() -> bool | None:
    def ask() -> bool | None:
        # What is on its way to the LRU lists waits in a batch of its CPU, which reclaim on another CPU does not see.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with Mapping(2 * PAGE) as area, Pagemap() as pagemap:
            memory.store(area.address, b"1")
            memory.store(area.at(1), b"1")
            reader, writer = os.pipe()
            memory.vmsplice(writer, area.address, PAGE).or_raise("vmsplice")
            area.madvise(Advice.FREE).or_raise("MADV_FREE")
            area.madvise(Advice.PAGEOUT).or_raise("MADV_PAGEOUT")
            busy, free = pagemap.entry(area.address), pagemap.entry(area.at(1))
            os.close(writer)
            os.close(reader)
            if not busy.present or free.present or free.swapped:
                return None
            area.madvise(Advice.PAGEOUT).or_raise("MADV_PAGEOUT")
            left = pagemap.entry(area.address)
            return not left.present and not left.swapped

    return call(ask)


def _is_written(address: int) -> bool:
    """Does PAGEMAP_SCAN call a page so?"""
    with Pagemap() as pagemap:
        return any(region.categories & PageIs.WRITTEN for region in pagemap.scan(address, address + PAGE))


def _flags(address: int) -> int:
    """The flags of the page at an address; 0 where there is none."""
    with Pagemap() as pagemap, Frames() as frames:
        pfn = pagemap.entry(address).pfn
        return 0 if pfn is None else frames.flags_of([pfn])[pfn]
