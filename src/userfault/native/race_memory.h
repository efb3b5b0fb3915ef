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

// 0 where there is none, or where this user may not know.
static UNUSED uint64_t frame_at(const char *at)
{
    uint64_t entry = pagemap_entry(at);
    return entry & PM_PRESENT ? entry & ((1ull << 55) - 1) : 0;
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

//= collapse:
OP(collapse)
{
    long r = ret(madvise(base + x, BLOCK, 25 /* MADV_COLLAPSE */));
    provoked(!r);
    return r;
}

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
static long full_scans(void)
{
    static int fd = -1;
    char text[32] = {0};
    if (fd < 0) fd = open("/sys/kernel/mm/ksm/full_scans", O_RDONLY | O_CLOEXEC);
    return pread(fd, text, sizeof text - 1, 0) > 0 ? atol(text) : 0;
}

// ksmd merges the page at x with that at y, which holds the same. 0, or -EAGAIN where it did not come to that: they are not the
// same any more, or ksmd does not run.
OP(ksm)
{
    static int kpageflags = -1;
    if (kpageflags < 0) kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
    if (madvise(base + x, SMALL, 12 /* MADV_MERGEABLE */) || madvise(base + y, SMALL, 12)) return -errno;
    // The scan that is under way may be past them; the next remembers what they hold, and the one after it merges them.
    long enough = full_scans() + 4;
    provoked(0);
    for (uint64_t until = now_ns() + 200000000; now_ns() < until; usleep(200)) {
        long scans = full_scans();
        uint64_t frame = frame_at(base + x), flags = 0;
        if (!frame) return -EAGAIN;
        if (pread(kpageflags, &flags, 8, (off_t)(frame * 8)) != 8) return -errno;
        if (flags & 1ull << 21 /* KPF_KSM */) return provoked(1), 0;
        if (scans >= enough) return -EAGAIN;
    }
    return -EAGAIN;
}

//= lone: pagemap
// A page with y at x, for compaction: it moves pages up into holes, and one that fills a hole stays where it is. This one's frame was
// part of a huge page, and is the first that its CPU finds; where there was none, it is like any other.
OP(lone)
{
    char *block = (char *)(((uintptr_t)base + 12 * BLOCK) & ~((uintptr_t)BLOCK - 1));
    void *made = mmap(block, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (made == MAP_FAILED || madvise(block, BLOCK, 14 /* MADV_HUGEPAGE */)) return -errno;
    *(volatile char *)block = 1;
    // Advice on a part splits it.
    if (madvise(block, SMALL, 20 /* MADV_COLD */) || madvise(block + SMALL, SMALL, 4 /* MADV_DONTNEED */)) return -errno;
    *(volatile long *)(base + x) = y;
    return ret(munmap(block, BLOCK));
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

//= places: pagemap
// Where a page lies in the beginning, and where it may have been moved to, one after the other.
struct places { int count; char *at[4]; };

static struct places places(char *base, long x, long y, long z, long w)
{
    struct places p = {0, {0}};
    long all[] = {x, y, z, w};
    for (int i = 0; i < 4 && !(i && all[i] == x); i++) p.at[p.count++] = base + all[i];
    return p;
}

static uint64_t frame_in(const struct places *p)
{
    uint64_t frame = 0;
    for (int i = 0; i < p->count && !frame; i++) frame = frame_at(p->at[i]);
    return frame;
}

static UNUSED int is_in(const struct places *p, uint64_t frame)
{
    int found = 0;
    for (int i = 0; i < p->count; i++) found |= frame_at(p->at[i]) == frame;
    return found;
}

//= reclaim: places
// The page at one of these places is written to swap, or freed if it may be.
OP(reclaim)
{
    struct places p = places(base, x, y, z, w);
    int there = frame_in(&p) != 0, swapped = 0;
    long r = 0;
    for (int i = 0; i < p.count; i++)
        if (madvise(p.at[i], SMALL, 21 /* MADV_PAGEOUT */)) r = -errno;
    for (int i = 0; i < p.count; i++) swapped |= !!(pagemap_entry(p.at[i]) & PM_SWAP);
    provoked(swapped || (there && !frame_in(&p)));
    return r;
}

//= migrate: compact places
// Compaction, which may move the page at one of these places.
OP(migrate)
{
    struct places p = places(base, x, y, z, w);
    uint64_t frame = frame_in(&p);
    long r = op_compact(base, 0, 0, 0, 0);
    provoked(frame && frame_in(&p) && !is_in(&p, frame));
    return r;
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
    frames[y] = frame_at(base + x);
    return frames[y] ? 0 : -EPERM;
}

OP(mapcount)
{
    uint64_t count = 0;
    if (kpagecount < 0) kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
    return pread(kpagecount, &count, 8, (off_t)(frames[x] * 8)) == 8 ? (long)count : -errno;
}
