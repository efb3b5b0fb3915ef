// System calls of the pager: one place that knows their argument structs, and where faults are injected.
#include "pager.h"
#include "uapi.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

u64 now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

// Asked for at every fault in SIGBUS mode. Four bytes of static thread-local storage: the other kind may allocate at its first use, and
// a C library that has no room for late comers (musl) asks the kernel every time.
#ifdef __GLIBC__
static __thread int own_tid __attribute__((tls_model("initial-exec")));
int gettid_(void) { return own_tid ? own_tid : (own_tid = (int)syscall(SYS_gettid)); }
void forget_tid(void) { own_tid = 0; }
#else
int gettid_(void) { return (int)syscall(SYS_gettid); }
void forget_tid(void) {}
#endif

void futex_wait(au32 *word, u32 value, u64 timeout_ns) {
    struct timespec t = {(time_t)(timeout_ns / 1000000000ull), (long)(timeout_ns % 1000000000ull)};
    syscall(SYS_futex, word, FUTEX_WAIT, value, timeout_ns ? &t : NULL, NULL, 0);
}

void futex_wake(au32 *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0); }

// The effect of the first armed rule at `point`. A service thread that is to die does so here, as abruptly as a thread can.
int strike_armed(pager *p, slot *s, int point, i64 *value) {
    for (int i = 0; i < MAX_RULES; i++) {
        rule *r = &p->rules[i];
        if (!atomic_load(&r->left) || r->point != (u32)point) continue;
        u32 skip = atomic_load(&r->skip);
        bool passed = false;
        while (skip && !(passed = atomic_compare_exchange_weak(&r->skip, &skip, skip - 1))) {}
        if (passed) continue;
        bool service = s && s->role;
        if (r->effect == DO_DIE && !service) continue;
        u32 left = atomic_load(&r->left);
        while (left && !atomic_compare_exchange_weak(&r->left, &left, left - 1)) {}
        if (!left) continue;
        atomic_fetch_add(&r->struck_count, 1);
        if (value) *value = r->value;
        if (r->effect == DO_DIE) syscall(SYS_exit, 0);
        if (r->effect == DO_DELAY) {
            struct timespec t = {r->value / 1000000, r->value % 1000000 * 1000};
            nanosleep(&t, NULL);
            return DO_NOTHING;
        }
        return (int)r->effect;
    }
    return DO_NOTHING;
}

// The signed result of a range ioctl: how much was done before the error, and the error.
static int settle(int result, i64 reported, u64 length, u64 *done) {
    int code = result < 0 ? -errno : 0;
    *done = reported > 0 ? (u64)reported : 0;
    if (!result && *done == 0) *done = length;
    return code;
}

static int copy(pager *p, u64 to, const void *from, u64 length, bool armed, u64 *done) {
    struct uffdio_copy c = {.dst = to, .src = (u64)from, .len = length, .mode = armed && p->writable ? UFFDIO_COPY_MODE_WP : 0};
    return settle(ioctl(p->uffd, UFFDIO_COPY, &c), c.copy, length, done);
}

int sys_copy(pager *p, slot *s, u64 to, const void *from, u64 length, bool armed, u64 *done) {
    i64 value = 0;
    TALLY(s, copy_count, 1);
    switch (strike(p, s, AT_COPY, &value)) {
    case DO_ERRNO: *done = 0; return -(int)value;
    case DO_RIVAL: copy(p, to, from, PAGE, armed, done); break;
    case DO_PARTIAL:
        if ((u64)value < length) { int code = copy(p, to, from, (u64)value, armed, done); return code ? code : -EAGAIN; }
    }
    return copy(p, to, from, length, armed, done);
}

int sys_move(pager *p, slot *s, int point, u64 to, u64 from, u64 length, u64 *done) {
    i64 value = 0;
    u64 want = length;
    COUNT(move_count);
    switch (strike(p, s, point, &value)) {
    case DO_ERRNO: *done = 0; return -(int)value;
    case DO_RIVAL: if (point == AT_MOVE_IN) copy(p, to, (void *)from, PAGE, true, done); break;
    case DO_PARTIAL: if ((u64)value < length) want = (u64)value;
    }
    struct uffdio_move m = {.dst = to, .src = from, .len = want}; // without holes: see findings/F-10.md
    int code = settle(ioctl(p->uffd, UFFDIO_MOVE, &m), m.move, want, done);
    return !code && want < length ? -EAGAIN : code;
}

int sys_poison(pager *p, slot *s, u64 at, u64 length) {
    i64 value = 0;
    if (strike(p, s, AT_POISON, &value) == DO_ERRNO) return -(int)value;
    int tries = 0;
    while (length) {
        struct uffdio_poison c = {.range = {at, length}};
        u64 done;
        int code = settle(ioctl(p->uffd, UFFDIO_POISON, &c), c.updated, length, &done);
        at += done, length -= done;
        if (!code) continue;
        if (done) tries = 0;
        else if (code == -EEXIST) at += PAGE, length -= PAGE; // a page that is there stays: it is good
        else if (code == -EAGAIN && ++tries < 100000) sched_yield();
        else return code;
    }
    return 0;
}

void sys_wake(pager *p, slot *s, u64 at, u64 length) {
    i64 value;
    if (strike(p, s, AT_WAKE, &value) == DO_ERRNO) return;
    struct uffdio_range r = {at, length};
    ioctl(p->uffd, UFFDIO_WAKE, &r);
}

// The pages of [at, at + length) that are there and were written since they were armed, as bits; `rearm` arms them in the same step.
// What the kernel swapped out or is migrating is there as well; a poisoned page looks the same to it, and is not.
int sys_written(pager *p, slot *s, u64 at, u64 length, bool rearm, u64 *written, u64 words) {
    i64 value = 0;
    memset(written, 0, words * 8);
    if (strike(p, s, AT_SCAN, &value) == DO_ERRNO) return -(int)value;
    u64 start = at, end = at + length;
    struct page_region found[64];
    while (start < end) {
        struct pm_scan_arg a = {
            .size = sizeof a, .start = start, .end = end, .vec = (u64)found, .vec_len = 64,
            .flags = rearm ? PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC : 0,
            .category_mask = PAGE_IS_WRITTEN, .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            .return_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
        };
        int count = ioctl(p->pagemap_fd, PAGEMAP_SCAN, &a);
        if (count < 0) {
            if (errno == EINTR || errno == EAGAIN) continue;
            return -errno;
        }
        for (int i = 0; i < count; i++)
            for (u64 x = found[i].start; x < found[i].end; x += PAGE) {
                u64 index = (x - at) / PAGE;
                if (!(found[i].categories & PAGE_IS_PRESENT) && STATE(atomic_load(&states(p)[unit_of(p, x - p->base)])) == POISONED) continue;
                written[index / 64] |= 1ull << (index % 64);
            }
        if (a.walk_end <= start) break;
        start = a.walk_end;
    }
    return 0;
}

// Which pages of [at, at + length), 512 at most, are there, in memory or in the kernel's swap. 0 or -errno. mincore asks the page table and
// needs no descriptor, but a page in swap is a hole to it: of what it does not find, /proc knows more.
int sys_there(u64 at, u64 length, u8 *there) {
    u64 count = length / PAGE, missing = 0, entries[512];
    if (mincore((void *)at, length, there)) return -errno;
    for (u64 i = 0; i < count; i++) missing += !(there[i] &= 1);
    if (!missing) return 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    if (syscall(SYS_pread64, fd, entries, count * 8, at / PAGE * 8) == (i64)(count * 8))
        for (u64 i = 0; i < count; i++) there[i] |= entries[i] >> 62 != 0; // present, swapped
    close(fd);
    return 0;
}

// Is the page at `at` there? 1, 0, or -errno.
int sys_resident(u64 at) {
    u8 there = 0;
    int code = sys_there(at & ~(PAGE - 1), PAGE, &there);
    return code ? code : there;
}

// A descriptor number that the application closed may name another file by now: reading that would be silent nonsense. Ours is known
// by its position, which nobody moves; where it has none (see sys_own_file), by the file.
static bool still(int fd, i64 position, u64 dev, u64 ino) {
    struct stat st;
    if (position) return syscall(SYS_lseek, fd, 0, SEEK_CUR) == position;
    return !fstat(fd, &st) && (u64)st.st_dev == dev && (u64)st.st_ino == ino;
}

// What pages hold that may be dropped at any moment, and which of them could be seen. Unlike an access, and unlike process_vm_readv, a read
// of /proc/self/mem does not wait for whoever would fill a hole, which may be us: it gets EIO (fs/proc/base.c, mem_rw).
void sys_peek(pager *p, slot *s, u64 at, u64 length, u8 *to, u8 *seen) {
    memset(seen, 0, length / PAGE);
    for (u64 have = 0; have < length;) {
        ssize_t n = syscall(SYS_pread64, p->memory_fd, to + have, length - have, at + have);
        for (u64 end = have + (n > 0 ? (u64)n / PAGE * PAGE : 0); have < end; have += PAGE) seen[have / PAGE] = 1;
        if (n < (ssize_t)PAGE) have += PAGE;
    }
    if (!s->role && !still(p->memory_fd, 0, p->memory_dev, p->memory_ino)) memset(seen, 0, length / PAGE);
}

// Drop whole units whose content can be had again. One call for all of them where the kernel has process_madvise for ourselves.
int sys_drop(pager *p, slot *s, const u32 *units, u32 count) {
    i64 value = 0;
    bool single = strike(p, s, AT_DROP, &value) == DO_ERRNO;
    struct iovec v[MAX_BATCH];
    u64 total = 0;
    for (u32 i = 0; i < count; i++) {
        v[i].iov_base = (void *)(p->base + units[i] * p->unit);
        total += v[i].iov_len = unit_bytes(p, units[i]);
    }
    if (!single && p->pidfd >= 0 && (u64)syscall(SYS_process_madvise, p->pidfd, v, (u64)count, MADV_DONTNEED, 0) == total)
        return 0;
    int code = 0;
    for (u32 i = 0; i < count; i++)
        if (madvise(v[i].iov_base, v[i].iov_len, MADV_DONTNEED)) code = -errno;
    return code;
}

// A descriptor of ours for the file of `fd`, and by what it is known.
int sys_own_file(int fd, i64 *position, u64 *dev, u64 *ino) {
    struct stat st;
    char path[32];
    *position = 0;
    if (fd < 0) return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = fstat(fd, &st) || !S_ISREG(st.st_mode) ? -1 : open(path, (fcntl(fd, F_GETFL) & (O_ACCMODE | O_DIRECT)) | O_CLOEXEC);
    // No file of ext4 has more than 16 TiB, and so no position beyond.
    if (own >= 0) *position = lseek(own, (off_t)((now_ns() * 0x9e3779b97f4a7c15ull >> 21) | 1), SEEK_SET);
    if (*position < 0) *position = 0;
    if (own < 0) own = fcntl(fd, F_DUPFD_CLOEXEC, 3); // not ours to open again: the position is somebody else's
    if (!fstat(own, &st)) *dev = (u64)st.st_dev, *ino = (u64)st.st_ino;
    return own;
}

int io_read(pager *p, slot *s, int point, int fd, void *to, u64 length, u64 offset, u64 *done) {
    i64 value = 0;
    *done = 0;
    int effect = strike(p, s, point, &value);
    if (effect == DO_ERRNO) return -(int)value;
    ssize_t n = syscall(SYS_pread64, fd, to, length, offset); // no cancellation point of the application
    if (effect == DO_PARTIAL && n > value) n = value;         // O_DIRECT does not take every length, but may return any
    int code = n < 0 ? -errno : 0;
    // Looked at afterwards: what is ours then was ours when it was read.
    if (s && !s->role && !(point == AT_SWAP_READ ? still(fd, p->swap_position, p->swap_dev, p->swap_ino)
                                                  : still(fd, p->source_position, p->source_dev, p->source_ino)))
        return -EBADF;
    if (code) return code;
    *done = (u64)n;
    return 0;
}

int io_write(pager *p, slot *s, int fd, const void *from, u64 length, u64 offset) {
    if (s && !s->role && !still(fd, p->swap_position, p->swap_dev, p->swap_ino)) return -EBADF;
    while (length) {
        i64 value = 0;
        u64 want = length;
        switch (strike(p, s, AT_SWAP_WRITE, &value)) {
        case DO_ERRNO: return -(int)value;
        case DO_PARTIAL: if ((u64)value < length) want = (u64)value;
        }
        ssize_t n = syscall(SYS_pwrite64, fd, from, want, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        from = (const u8 *)from + n, length -= (u64)n, offset += (u64)n;
    }
    return 0;
}
