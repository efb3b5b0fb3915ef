// What the paging benchmarks compare with: a fault handler and a pager with nothing in them but the work, and the loops that touch
// memory, which all contenders share. Compiled by bench/paging_common.py.
#define _GNU_SOURCE
#include "../src/userfault/native/uapi.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef uint8_t u8;
#define PAGE 4096ull

static int clock_id = CLOCK_MONOTONIC;
void measure_cpu(void) { clock_id = CLOCK_THREAD_CPUTIME_ID; }

static u64 now(void) {
    struct timespec t;
    clock_gettime(clock_id, &t);
    return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

// Touch one byte at each offset and note how long each took.
u64 touch(const u8 *base, const u64 *offsets, u64 count, uint32_t *ns, int write) {
    u64 sum = 0, start = now();
    for (u64 i = 0; i < count; i++) {
        u64 before = now();
        if (write) *(volatile u8 *)(base + offsets[i]) = (u8)i;
        else sum += *(const volatile u8 *)(base + offsets[i]);
        ns[i] = (uint32_t)(now() - before);
    }
    (void)sum;
    return now() - start;
}

// Copy 4 KiB from each offset, as a reader of records does. The time of all of it.
u64 read_pages(const u8 *base, const u64 *offsets, u64 count) {
    static u8 record[4096];
    u64 start = now();
    for (u64 i = 0; i < count; i++) {
        memcpy(record, base + offsets[i], sizeof record);
        __asm__ volatile("" ::"r"(record) : "memory");
    }
    return now() - start;
}

// The reference: a region of `units`, FIFO, one lock; its victims leave 64 at a time.
static struct {
    int fd, file, pidfd, mode, move;
    u8 *base, *source, *bounce;
    u64 length, unit, budget, resident, head, tail, capacity;
    uint32_t *ring;
    pthread_t thread;
    pthread_mutex_t lock;
    volatile int stop;
} r;

static void make_room(void) {
    if (!r.budget || r.resident < r.budget) return;
    struct iovec v[64];
    u64 n = r.unit > PAGE ? 1 : 64;
    for (u64 i = 0; i < n; i++) {
        u64 unit = r.ring[r.head++ % r.capacity];
        v[i].iov_base = r.base + unit * r.unit, v[i].iov_len = r.unit;
    }
    if (r.move) {
        struct uffdio_move m = {.dst = (u64)r.bounce, .src = (u64)v[0].iov_base, .len = r.unit};
        ioctl(r.fd, UFFDIO_MOVE, &m);
    } else syscall(SYS_process_madvise, r.pidfd, v, n, MADV_DONTNEED, 0);
    r.resident -= n;
}

static void fill(u64 address) {
    pthread_mutex_lock(&r.lock);
    u64 unit = (address - (u64)r.base) / r.unit, at = unit * r.unit;
    make_room();
    if (r.file >= 0) {
        if (pread(r.file, r.bounce, r.unit, (off_t)at) < 0) abort();
    } else memcpy(r.bounce, r.source + at, r.unit);
    if (r.move) {
        struct uffdio_move m = {.dst = (u64)r.base + at, .src = (u64)r.bounce, .len = r.unit};
        while (ioctl(r.fd, UFFDIO_MOVE, &m) && m.move != -EEXIST)
            if (m.move > 0) m.dst += (u64)m.move, m.src += (u64)m.move, m.len -= (u64)m.move;
    } else {
        struct uffdio_copy c = {.dst = (u64)r.base + at, .src = (u64)r.bounce, .len = r.unit};
        ioctl(r.fd, UFFDIO_COPY, &c);
    }
    if (r.budget) r.ring[r.tail++ % r.capacity] = (uint32_t)unit, r.resident++;
    pthread_mutex_unlock(&r.lock);
}

static void *handler(void *argument) {
    (void)argument;
    struct pollfd f = {.fd = r.fd, .events = POLLIN};
    while (!r.stop) {
        struct uffd_msg m;
        if (poll(&f, 1, 100) <= 0 || read(r.fd, &m, sizeof m) != sizeof m) continue;
        fill(m.arg.pagefault.address);
    }
    return NULL;
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    fill((u64)info->si_addr);
}

int reference_start(u8 *base, u64 length, u64 unit, u64 budget_units, u8 *source, int file, int sigbus, int move) {
    memset(&r, 0, sizeof r);
    r.base = base, r.length = length, r.unit = unit, r.budget = budget_units, r.source = source, r.file = file, r.move = move;
    r.capacity = budget_units + 1024;
    r.ring = calloc(r.capacity, 4);
    pthread_mutex_init(&r.lock, NULL);
    r.pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    r.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE | UFFD_FEATURE_PAGEFAULT_FLAG_WP | (sigbus ? UFFD_FEATURE_SIGBUS : 0)};
    if (ioctl(r.fd, UFFDIO_API, &api)) return 1;
    madvise(base, length, unit >= 1 << 21 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    struct uffdio_register g = {.range = {(u64)base, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(r.fd, UFFDIO_REGISTER, &g)) return 2;
    u8 *staging = mmap(NULL, 3 * unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    r.bounce = (u8 *)(((u64)staging + unit - 1) / unit * unit);
    madvise(staging, 3 * unit, unit >= 1 << 21 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    struct uffdio_register s = {.range = {(u64)staging, 3 * unit}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(r.fd, UFFDIO_REGISTER, &s)) return 3;
    if (sigbus) {
        struct sigaction a = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
        sigfillset(&a.sa_mask);
        sigaction(SIGBUS, &a, NULL);
    } else pthread_create(&r.thread, NULL, handler, NULL);
    r.mode = sigbus;
    return 0;
}

void reference_stop(void) {
    r.stop = 1;
    if (!r.mode) pthread_join(r.thread, NULL);
    else signal(SIGBUS, SIG_DFL);
    close(r.fd);
    close(r.pidfd);
    free(r.ring);
}

// What evicting a dirty page costs without MOVE: protect it, write it out, drop it. ns for all.
u64 evict_by_protection(u8 *base, const u64 *offsets, u64 count, int file) {
    u64 start = now();
    for (u64 i = 0; i < count; i++) {
        struct uffdio_writeprotect w = {.range = {(u64)base + offsets[i], PAGE}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
        if (ioctl(r.fd, UFFDIO_WRITEPROTECT, &w)) return 0;
        if (pwrite(file, base + offsets[i], PAGE, (off_t)offsets[i]) != (ssize_t)PAGE) return 0;
        madvise(base + offsets[i], PAGE, MADV_DONTNEED);
    }
    return now() - start;
}

// The same by 64 pages: protected one by one, written side by side by one call, dropped by one call. The file is a log then.
u64 evict_by_protection_in_batches(u8 *base, const u64 *offsets, u64 count, int file) {
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    u64 start = now();
    for (u64 i = 0; i < count; i += 64) {
        struct iovec v[64];
        u64 n = count - i < 64 ? count - i : 64;
        for (u64 j = 0; j < n; j++) {
            struct uffdio_writeprotect w = {.range = {(u64)base + offsets[i + j], PAGE}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
            if (ioctl(r.fd, UFFDIO_WRITEPROTECT, &w)) return 0;
            v[j] = (struct iovec){base + offsets[i + j], PAGE};
        }
        if (pwritev(file, v, (int)n, (off_t)(i * PAGE)) != (ssize_t)(n * PAGE)) return 0;
        if (syscall(SYS_process_madvise, self, v, n, MADV_DONTNEED, 0) != (long)(n * PAGE)) return 0;
    }
    u64 spent = now() - start;
    close(self);
    return spent;
}

int protected_start(u8 *base, u64 length) {
    r.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    if (ioctl(r.fd, UFFDIO_API, &api)) return 1;
    madvise(base, length, MADV_NOHUGEPAGE);
    struct uffdio_register g = {.range = {(u64)base, length}, .mode = UFFDIO_REGISTER_MODE_WP};
    return ioctl(r.fd, UFFDIO_REGISTER, &g) ? 2 : 0;
}

void protected_stop(void) { close(r.fd); }

// Another thread of this process that runs, and so must be interrupted for every flush of a TLB.
static volatile int spinning;
static void *spin(void *argument) { while (spinning) {} return argument; }
static pthread_t spinner;
void spin_start(void) { spinning = 1; pthread_create(&spinner, NULL, spin, NULL); }
void spin_stop(void) { spinning = 0; pthread_join(spinner, NULL); }
