// Operations of litmus tests on memory: what makes the initial state, what threads do, what is seen in the end.
//
// In pieces, as race.h says.
#pragma once
#include "race.h"

//= pagemap:
#define PM_PRESENT (1ull << 63)
#define PM_SWAP (1ull << 62)
#define PM_UFFD_WP (1ull << 57)

static uint64_t pagemap_entry(const char *at)
{
    uint64_t entry = 0;
    if (pagemap < 0) pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pread(pagemap, &entry, 8, (off_t)((uintptr_t)at / SMALL * 8)) != 8) return 0;
    return entry;
}

//= map:
// A fresh mapping of y bytes; w: its protection.
OP(map)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (z) flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
    return mmap(base + x, (size_t)y, (int)w, flags, -1, 0) == MAP_FAILED ? -errno : 0;
}

//= advise:
OP(advise) { return ret(madvise(base + x, (size_t)y, (int)z)); }

//= protect:
OP(protect) { return ret(mprotect(base + x, (size_t)y, (int)z)); }

//= lock:
// Locked as it is: nothing is faulted in.
OP(lock) { return ret(syscall(SYS_mlock2, base + x, (size_t)y, 1)); }

//= unlock:
OP(unlock) { return ret(munlock(base + x, (size_t)y)); }

//= huge: pagemap
// A huge page with y in its first two small pages.
OP(huge)
{
    if (madvise(base + x, BLOCK, 14 /* MADV_HUGEPAGE */)) return -errno;
    *(volatile long *)(base + x) = y;
    *(volatile long *)(base + x + SMALL) = y;
    // One fault gave all of it, or there was no huge page to be had.
    if (!(pagemap_entry(base + x + BLOCK - SMALL) & PM_PRESENT)) return -EAGAIN;
    // khugepaged shall not undo what the test does.
    return z ? 0 : ret(madvise(base + x, BLOCK, 15 /* MADV_NOHUGEPAGE */));
}

//= swapout: pagemap
OP(swapout)
{
    for (int tries = 0; tries < 20; tries++) {
        if (madvise(base + x, (size_t)y, 21 /* MADV_PAGEOUT */)) return -errno;
        if (pagemap_entry(base + x) & PM_SWAP) return 0;
    }
    return -EAGAIN;
}

//= load:
OP(load)
{
    volatile long value;
    GUARDED(value = *(volatile long *)(base + x));
    return value;
}

//= store:
OP(store)
{
    GUARDED(*(volatile long *)(base + x) = y);
    return 0;
}

//= touch:
OP(touch)
{
    GUARDED((void)*(volatile char *)(base + x));
    return 0;
}

//= munmap:
OP(munmap) { return ret(munmap(base + x, (size_t)y)); }

//= mremap:
// From x to z; w: 0 moves, 4 leaves the old mapping there, empty.
OP(mremap)
{
    void *to = mremap(base + x, (size_t)y, (size_t)y, MREMAP_MAYMOVE | MREMAP_FIXED | (int)w, base + z);
    return to == MAP_FAILED ? -errno : 0;
}

//= vmread:
// The page at x through process_vm_readv, of this process itself; NO_PAGE if it can't be read.
OP(vmread)
{
    long value = 0;
    struct iovec to = {&value, sizeof value}, from = {base + x, sizeof value};
    return syscall(SYS_process_vm_readv, getpid(), &to, 1, &from, 1, 0) == sizeof value ? value : -errno;
}

//= vmwrite:
// Pin the page at x, write y to the page, unpin: process_vm_writev of this process itself.
OP(vmwrite)
{
    struct iovec from = {&y, sizeof y}, to = {base + x, sizeof y};
    return syscall(SYS_process_vm_writev, getpid(), &from, 1, &to, 1, 0) == sizeof y ? 0 : -errno;
}

//= ksm: pagemap
// ksmd merges the page at x with that at y, which holds the same. 0, or -EAGAIN where it did not come to that.
OP(ksm)
{
    static int kpageflags = -1;
    if (kpageflags < 0) kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
    if (madvise(base + x, SMALL, 12 /* MADV_MERGEABLE */) || madvise(base + y, SMALL, 12)) return -errno;
    for (uint64_t until = now_ns() + 200000000; now_ns() < until; usleep(200)) {
        uint64_t entry = pagemap_entry(base + x), flags = 0;
        if (!(entry & PM_PRESENT)) return -EAGAIN;
        if (pread(kpageflags, &flags, 8, (off_t)((entry & ((1ull << 55) - 1)) * 8)) != 8) return -errno;
        if (flags & 1ull << 21 /* KPF_KSM */) return 0;
    }
    return -EAGAIN;
}

//= compact:
// Migration of whatever is in the way of huge pages; this page may be.
OP(compact)
{
    int fd = open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    long r = ret(write(fd, "1", 1));
    close(fd);
    return r < 0 ? r : 0;
}

//= sleep:
// x seconds: for tests of what happens to a round that does not end.
OP(sleep) { return sleep((unsigned)x); }

//= look: pagemap
// The state of a page as the page table has it: 0 none, 1 present, 2 swapped out or a marker.
OP(look)
{
    uint64_t entry = pagemap_entry(base + x);
    return entry & PM_PRESENT ? 1 : entry & PM_SWAP ? 2 : 0;
}

//= is_present: pagemap
OP(is_present) { return !!(pagemap_entry(base + x) & PM_PRESENT); }

//= is_swapped: pagemap
OP(is_swapped) { return !!(pagemap_entry(base + x) & PM_SWAP); }

//= is_wp: pagemap
OP(is_wp) { return !!(pagemap_entry(base + x) & PM_UFFD_WP); }

//= content: pagemap load
// What a reader would find, without making a page where there is none.
OP(content)
{
    return pagemap_entry(base + x) & (PM_PRESENT | PM_SWAP) ? op_load(base, x, 0, 0, 0) : NO_PAGE;
}

//= mapcount: pagemap
static uint64_t frames[8];
static int kpagecount = -1;

// How often the page that lay at x in the beginning is mapped in the end.
OP(remember)
{
    frames[y] = pagemap_entry(base + x) & ((1ull << 55) - 1);
    return frames[y] ? 0 : -EPERM;
}

OP(mapcount)
{
    uint64_t count = 0;
    if (kpagecount < 0) kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
    return pread(kpagecount, &count, 8, (off_t)(frames[x] * 8)) == 8 ? (long)count : -errno;
}
