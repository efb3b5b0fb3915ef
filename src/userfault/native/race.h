// A line that begins with `//= NAME:` begins a piece, with the names of the pieces that it needs (kernel/race.py reads them).

//= head
// The operations of litmus tests on the running kernel, and the rounds in which threads race them.
//
// The library runs them from lists (run.c); `userfault litmus emit` prints those that a test uses in front of the test's
// own threads.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))
#define SMALL 4096L
#define BLOCK (2L << 20)
#define ARENA (24 * BLOCK)
#define STACK (256 * 1024)
#define MAX_THREADS 8
#define MAX_MMS 8
#define MAX_FIELDS 24
#define MAX_OUTCOMES 4096
#define NO_PAGE (-1L)
#define WAITS INT32_MIN // what a thread got that waited until it was let go, because nobody came

// A test: who runs where, and what it does. Address space 0 is this process; every other is a process of its own.
struct test {
    const char *name;
    int threads, mms, fields, huge, blocking, events;
    int mm_of[MAX_THREADS];                // the address space of a thread
    void (*before)(void);                  // before every round: what the last one left behind, outside the memory
    void *(*rescuer)(void *);              // for tests whose threads wait for each other
    long (*setup)(char *base, int mm);     // the initial state: 0, or -errno if it did not come about
    void (*thread)(char *base, int number);
    void (*observe)(char *base, int mm);   // after the race, in each address space
    // For the report of a program of its own.
    const char *const *names;              // of the fields
    const char *kinds;                     // of each: e errno, s signal, n number
    const char *condition, *quantifier;
    int (*holds)(const int32_t *field);
};

struct outcome {
    int64_t count;
    int32_t fields[MAX_FIELDS];
};

// What the processes of a test share, and its results.
struct shared {
    _Atomic uint32_t arrived, go, awake, done, watch, failed, ended_round, rescue_begun, rescue_ended;
    _Atomic int32_t children;
    int64_t delay_ns[MAX_THREADS], took_ns[MAX_THREADS];
    _Atomic int32_t setting_up, at[MAX_THREADS]; // the operation that setup, or a thread, stands in, from 1
    _Atomic int32_t waited_at[MAX_THREADS];      // the one in which a thread stood when it was let go
    int32_t field[MAX_FIELDS];
    // Results, read from outside as well.
    int64_t rounds, failures, failure, unblocked, ns;
    int32_t ended, outcomes;
    struct outcome table[MAX_OUTCOMES];
};

static struct shared *shared;
static const struct test *test;
static char *arena;
static _Atomic uint32_t number_of_round;
static UNUSED int uffd = -1, pagemap = -1; // of this process
// In the thread's own block, whoever loads this: a forked child has nothing else of the heap.
#define OWN _Thread_local __attribute__((tls_model("initial-exec")))
static OWN sigjmp_buf on_signal;
static OWN volatile sig_atomic_t guarded;

#define FUTEX(at, op, value) syscall(SYS_futex, at, op, value, 0, 0, 0)

static UNUSED long ret(long value) { return value < 0 ? -errno : value; }

static UNUSED uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static OWN int who = -1, stands; // which thread of the test this is while it runs, and its operation

// What a thread's operation returned, or what lies at a place in the end.
static UNUSED void set(int field, long value)
{
    int waited = who >= 0 && atomic_load_explicit(&shared->waited_at[who], memory_order_relaxed) == stands;
    shared->field[field] = waited ? WAITS : (int32_t)value;
}

// A thread (or, -1, the initial state) has come to its operation `at`, from 1.
static UNUSED void step(int number, int at)
{
    who = number;
    stands = at;
    atomic_store_explicit(number < 0 ? &shared->setting_up : &shared->at[number], at, memory_order_relaxed);
}

static void on_fault(int sig)
{
    if (guarded) siglongjmp(on_signal, sig);
    signal(sig, SIG_DFL);
    raise(sig);
}

// An access that may raise SIGBUS or SIGSEGV: that is a result.
#define GUARDED(access)                        \
    do {                                       \
        int sig_ = sigsetjmp(on_signal, 0);    \
        if (sig_) {                            \
            guarded = 0;                       \
            return -sig_;                      \
        }                                      \
        guarded = 1;                           \
        access;                                \
        guarded = 0;                           \
    } while (0)

#define OP(name) static long op_##name(char *base UNUSED, long x UNUSED, long y UNUSED, long z UNUSED, long w UNUSED)

// Pages of the test for bytes done: in a test with huge pages, one is the first or second 4 KiB of its 2 MiB, two are all.
static UNUSED long pages(long bytes)
{
    return test->huge ? bytes / BLOCK * 2 + (bytes % BLOCK != 0) : bytes / SMALL;
}

//= place:
static char *base_of(uint32_t round)
{
    char *aligned = (char *)(((uintptr_t)arena + 2 * BLOCK - 1) & ~((uintptr_t)BLOCK - 1));
    // Every other round a page table ends between the second and the third page.
    return test->huge || round & 1 ? aligned : aligned + BLOCK - 2 * SMALL;
}

//= userfaultfd:
struct uffd_api { uint64_t api, features, ioctls; };
struct uffd_register { uint64_t start, len, mode, ioctls; };
#define UFFD_API _IOWR(0xAA, 0x3F, struct uffd_api)
#define UFFD_REGISTER _IOWR(0xAA, 0x00, struct uffd_register)
#define FEATURE_FORK (1u << 1)
#define FEATURE_REMAP (1u << 2)
#define FEATURE_REMOVE (1u << 3)
#define FEATURE_UNMAP (1u << 6)
#define FEATURE_SIGBUS (1u << 7)
#define FEATURE_WP_UNPOPULATED (1u << 13)
#define FEATURE_MOVE (1u << 16)

static uint64_t uffd_features;

// A userfaultfd of this process. A fault on it raises SIGBUS, unless the test is about threads that wait.
static long open_uffd(void)
{
    struct uffd_api asked = {.api = 0xAA};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -errno;
    // The first call asks which features there are; a descriptor takes one.
    long r = ret(ioctl(fd, UFFD_API, &asked));
    close(fd);
    if (r < 0) return r;
    uint64_t wanted = FEATURE_WP_UNPOPULATED | FEATURE_MOVE | (uint64_t)test->events;
    if (!test->blocking) wanted |= FEATURE_SIGBUS;
    uffd_features = asked.features & wanted;
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) return -errno;
    struct uffd_api taken = {.api = 0xAA, .features = uffd_features};
    return ret(ioctl(uffd, UFFD_API, &taken));
}

//= unregistering: userfaultfd
struct uffd_ranges { uint64_t start, len; };
#define UFFD_UNREGISTER _IOR(0xAA, 0x01, struct uffd_ranges)

static long unregister(char *start, uint64_t length)
{
    struct uffd_ranges args = {(uintptr_t)start, length};
    return ret(ioctl(uffd, UFFD_UNREGISTER, &args));
}

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

// What follows makes the initial state. It returns 0, or why it did not come about.

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

//= open: userfaultfd
// This process's userfaultfd is there.
OP(open) { return uffd < 0 ? open_uffd() : 0; }

//= register: open
// z: 1 missing, 2 write-protect, 3 both.
OP(register)
{
    long r = op_open(base, 0, 0, 0, 0);
    if (r < 0) return r;
    struct uffd_register args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, (uint64_t)z, 0};
    return ret(ioctl(uffd, UFFD_REGISTER, &args));
}

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

// What follows are operations of threads. They return what the kernel returned: 0 or progress, or -errno.

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

//= move: userfaultfd
struct uffd_move { uint64_t dst, src, len, mode; int64_t move; };
#define UFFD_MOVE _IOWR(0xAA, 0x05, struct uffd_move)

// Pages moved, or -errno if there were none. w: 2 allows holes.
OP(move)
{
    struct uffd_move args = {(uintptr_t)base + (uint64_t)x, (uintptr_t)base + (uint64_t)y, (uint64_t)z, (uint64_t)w, 0};
    if (!ioctl(uffd, UFFD_MOVE, &args)) return pages(args.move);
    return args.move > 0 ? pages(args.move) : -errno;
}

//= copy: userfaultfd
struct uffd_copy { uint64_t dst, src, len, mode; int64_t copy; };
#define UFFD_COPY _IOWR(0xAA, 0x03, struct uffd_copy)

// z: 2 makes the page write-protected.
OP(copy)
{
    long page[SMALL / sizeof(long)] = {y};
    struct uffd_copy args = {(uintptr_t)base + (uint64_t)x, (uintptr_t)page, SMALL, (uint64_t)z, 0};
    return ret(ioctl(uffd, UFFD_COPY, &args));
}

//= zeropage: userfaultfd
struct uffd_zeropage { uint64_t start, len, mode; int64_t zeropage; };
#define UFFD_ZEROPAGE _IOWR(0xAA, 0x04, struct uffd_zeropage)

OP(zeropage)
{
    struct uffd_zeropage args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, 0, 0};
    return ret(ioctl(uffd, UFFD_ZEROPAGE, &args));
}

//= wp: userfaultfd
struct uffd_wp { uint64_t start, len, mode; };
#define UFFD_WP _IOWR(0xAA, 0x06, struct uffd_wp)

// z: 1 protects, 0 takes the protection back.
OP(wp)
{
    struct uffd_wp args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, (uint64_t)z};
    return ret(ioctl(uffd, UFFD_WP, &args));
}

//= poison: userfaultfd
struct uffd_poison { uint64_t start, len, mode; int64_t updated; };
#define UFFD_POISON _IOWR(0xAA, 0x08, struct uffd_poison)

OP(poison)
{
    struct uffd_poison args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, 0, 0};
    return ret(ioctl(uffd, UFFD_POISON, &args));
}

//= wake: userfaultfd
struct uffd_range { uint64_t start, len; };
#define UFFD_WAKE _IOR(0xAA, 0x02, struct uffd_range)

OP(wake)
{
    struct uffd_range args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y};
    return ret(ioctl(uffd, UFFD_WAKE, &args));
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

//= pipe:
static int pipes[MAX_MMS][2];

// One pipe for each address space, empty.
static void empty_pipes(void)
{
    char byte[4096];
    for (int mm = 0; mm < test->mms; mm++) {
        if (!pipes[mm][1] && pipe2(pipes[mm], O_NONBLOCK | O_CLOEXEC)) return;
        while (read(pipes[mm][0], byte, sizeof byte) > 0)
            ;
    }
}

//= read: pipe
// A system call reads the page at x: write(2) of it to the pipe of address space y, and what came there.
OP(read)
{
    long value;
    if (write(pipes[y][1], base + x, sizeof value) != sizeof value) return -errno;
    return read(pipes[y][0], &value, sizeof value) == sizeof value ? value : -errno;
}

//= vmsplice: pipe
// The page at x into the pipe of address space y, as a reference.
OP(vmsplice)
{
    struct iovec from = {base + x, sizeof(long)};
    return syscall(SYS_vmsplice, pipes[y][1], &from, 1, 0) == sizeof(long) ? 0 : -errno;
}

//= splice: pipe
// What the pipe of address space y holds.
OP(splice)
{
    long value;
    return read(pipes[y][0], &value, sizeof value) == sizeof value ? value : -errno;
}

//= ring: pipe
struct ring {
    int fd;
    char *memory;
    struct { uint32_t head, tail, mask, entries, flags, dropped, array, resv1; uint64_t user_addr; } sq;
    struct { uint32_t head, tail, mask, entries, overflow, cqes, flags, resv1; uint64_t user_addr; } cq;
    struct sqe { uint8_t opcode, flags; uint16_t prio; int32_t fd; uint64_t off, addr; uint32_t len, rw; uint64_t data; uint16_t buffer, more[11]; } *sqes;
};
static struct ring ring = {.fd = -1};

// An io_uring: its registered buffers are pinned for as long as they are.
static long open_ring(void)
{
    struct { uint32_t sq_entries, cq_entries, flags, cpu, idle, features, wq, resv[3]; uint32_t sq[10], cq[10]; } p = {0};
    ring.fd = (int)syscall(425 /* io_uring_setup */, 2, &p);
    if (ring.fd < 0) return -errno;
    memcpy(&ring.sq, p.sq, sizeof p.sq);
    memcpy(&ring.cq, p.cq, sizeof p.cq);
    // Both rings lie in one mapping since v5.4.
    size_t size = ring.cq.cqes + p.cq_entries * 16;
    if (size < ring.sq.array + p.sq_entries * 4) size = ring.sq.array + p.sq_entries * 4;
    ring.memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, 0);
    ring.sqes = mmap(0, p.sq_entries * sizeof(struct sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, 0x10000000);
    return ring.memory == MAP_FAILED || ring.sqes == MAP_FAILED ? -errno : 0;
}

// Take the pin of the last round back.
static void let_go(void)
{
    if (ring.fd >= 0) syscall(427 /* io_uring_register */, ring.fd, 1 /* UNREGISTER_BUFFERS */, 0, 0);
}

//= pin: ring
OP(pin)
{
    struct iovec buffer = {base + x, SMALL};
    long r = ring.fd < 0 ? open_ring() : 0;
    return r < 0 ? r : ret(syscall(427, ring.fd, 0 /* REGISTER_BUFFERS */, &buffer, 1));
}

//= unpin: ring
OP(unpin)
{
    let_go();
    return 0;
}

//= pinned: ring
// What lies in the pinned page, which was at x: a write from it to the pipe of address space y.
OP(pinned)
{
    _Atomic uint32_t *tail = (_Atomic uint32_t *)(ring.memory + ring.sq.tail);
    _Atomic uint32_t *head = (_Atomic uint32_t *)(ring.memory + ring.cq.head);
    uint32_t at = *tail & *(uint32_t *)(ring.memory + ring.sq.mask);
    ring.sqes[at] = (struct sqe){
        .opcode = 5 /* WRITE_FIXED */, .fd = pipes[y][1], .addr = (uintptr_t)base + (uint64_t)x, .len = sizeof(long)};
    ((uint32_t *)(ring.memory + ring.sq.array))[at] = at;
    atomic_fetch_add(tail, 1);
    long r = ret(syscall(426 /* io_uring_enter */, ring.fd, 1, 1, 1 /* GETEVENTS */, 0, 0));
    if (r < 0) return r;
    int32_t done = *(int32_t *)(ring.memory + ring.cq.cqes + 16 * (*head & *(uint32_t *)(ring.memory + ring.cq.mask)) + 8);
    atomic_fetch_add(head, 1);
    if (done < 0) return done;
    long value;
    return read(pipes[y][0], &value, sizeof value) == sizeof value ? value : -errno;
}

//= event: userfaultfd
static int child_uffd[MAX_MMS], children_uffd;

static void close_children(void)
{
    while (children_uffd) close(child_uffd[--children_uffd]);
}

// The next event of the userfaultfd, waiting x milliseconds: 19 fork, 20 remap, 21 remove, 22 unmap.
OP(event)
{
    struct { uint8_t event, pad[7]; uint64_t arg[3]; } message;
    struct pollfd wait = {.fd = uffd, .events = POLLIN};
    if (poll(&wait, 1, (int)x) < 0) return -errno;
    if (read(uffd, &message, sizeof message) != sizeof message) return -errno;
    // A fork's message brings a descriptor for the child's memory, which keeps what was registered there.
    if (message.event == 19 && children_uffd < MAX_MMS) child_uffd[children_uffd++] = (int)(uint32_t)message.arg[0];
    return message.event;
}

//= unregister: unregistering
OP(unregister) { return unregister(base + x, (uint64_t)y); }

//= rescue: unregistering event place
// Who waits for a page, or for an event to be read, and nobody comes, is let go.
static void *rescuer(void *unused)
{
    uint32_t round = 0;
    for (int same = 0;; same = number_of_round == round ? same + 1 : 0) {
        round = number_of_round;
        usleep(20000);
        if (same < 50 || uffd < 0) continue;
        // The next round waits for the end of this, unless the round is over by itself.
        atomic_store(&shared->rescue_begun, round);
        if (atomic_load(&shared->ended_round) != round) {
            for (int t = 0; t < test->threads; t++) atomic_store(&shared->waited_at[t], atomic_load(&shared->at[t]));
            while (op_event(arena, 0, 0, 0, 0) >= 0)
                ;
            unregister(base_of(round), ARENA - 4 * BLOCK);
        }
        atomic_store(&shared->rescue_ended, round);
    }
    return unused;
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

//= rounds:
static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void pause_a_little(unsigned *spun)
{
    // Whoever waits longer lets others run: there may be more threads than CPUs.
    if (++*spun & 1023) relax();
    else sched_yield();
}

static int pinned;
static cpu_set_t may; // the CPUs of this process, before any thread was bound to one

static void pin_to(int number)
{
    cpu_set_t one;
    if (!CPU_COUNT(&may)) return;
    int skip = number % CPU_COUNT(&may);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &may) && !skip--) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

// A thread's part of a round: wait at the gate, then for its delay, then run.
static void take_part(char *base, int number, uint32_t round)
{
    unsigned spun = 0;
    atomic_fetch_add(&shared->arrived, 1);
    while (atomic_load_explicit(&shared->go, memory_order_acquire) != round) pause_a_little(&spun);
    // All are on a CPU before anybody's delay begins: whoever slept at the gate would always be the last.
    atomic_fetch_add(&shared->awake, 1);
    for (spun = 0; atomic_load(&shared->awake) != (uint32_t)test->threads;) pause_a_little(&spun);
    // Each CPU's clock is compared with itself alone.
    uint64_t begin = now_ns() + (uint64_t)shared->delay_ns[number], started;
    while ((started = now_ns()) < begin) relax();
    test->thread(base, number);
    who = -1;
    atomic_store_explicit(&shared->at[number], 0, memory_order_relaxed);
    shared->took_ns[number] = (int64_t)(now_ns() - started);
    atomic_fetch_add(&shared->done, 1);
}

//= children: rounds
#if defined(SYS_fork)
#define RAW_FORK() syscall(SYS_fork)
#else
#define RAW_FORK() syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)
#endif

// A child sleeps until the race is over, then says what it sees. It never returns.
static _Noreturn void see_and_end(char *base, int mm, uint32_t round)
{
    uint32_t seen;
    while ((seen = atomic_load(&shared->watch)) != round) FUTEX(&shared->watch, 0, seen);
    test->observe(base, mm);
    _exit(0);
}

// The raw call: the child shares no lock with anybody, it only looks and ends.
static long fork_child(void)
{
    long pid = RAW_FORK();
    if (pid > 0) atomic_fetch_add(&shared->children, 1);
    if (pid != 0) return ret(pid);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The parent's are about the parent's memory.
    uffd = pagemap = -1;
    return 0;
}

//= fork: children
// Address space x: a copy of this one, as it is now.
OP(fork)
{
    long pid = fork_child();
    if (pid < 0) return pid;
    if (pid > 0) return 0;
    see_and_end(base, (int)x, number_of_round);
}

//= child: children
// Address space x, in the initial state: with threads of its own. y: it begins empty.
OP(child)
{
    long pid = fork_child();
    if (pid < 0) return pid;
    if (pid > 0) return 0;
    if (y) mmap(arena, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (test->setup(base, (int)x) < 0) {
        // The round is void, but whoever waits at the gate must be let go.
        atomic_store(&shared->failed, 1);
    }
    for (int t = 0; t < test->threads; t++)
        if (test->mm_of[t] == x) {
            if (pinned) pin_to(t);
            take_part(base, t, number_of_round);
        }
    see_and_end(base, (int)x, number_of_round);
}

//= engine: rounds place
static uint64_t seed = 88172645463325252u;

static uint64_t random_below(uint64_t limit)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return limit ? seed % limit : 0;
}

static void *worker_main(void *given)
{
    int number = *(const int *)given;
    if (pinned) pin_to(number);
    for (uint32_t round = 1;; round++) take_part(base_of(round), number, round);
    return 0;
}

static void note_outcome(void)
{
    struct shared *s = shared;
    for (int i = 0; i < s->outcomes; i++)
        if (!memcmp(s->table[i].fields, s->field, sizeof s->field)) {
            s->table[i].count++;
            return;
        }
    if (s->outcomes == MAX_OUTCOMES) return;
    memcpy(s->table[s->outcomes].fields, s->field, sizeof s->field);
    s->table[s->outcomes++].count = 1;
}

// Who goes first is drawn; the others start somewhere within the time that it takes.
static void draw_delays(int64_t *usual_ns)
{
    int n = test->threads, first = (int)random_below((uint64_t)n);
    for (int t = 0; t < n; t++) {
        usual_ns[t] += (shared->took_ns[t] - usual_ns[t]) / 8;
        shared->delay_ns[t] = t == first ? 0 : (int64_t)random_below((uint64_t)(usual_ns[first] * 5 / 4 + 200));
    }
}

static long run_rounds(int64_t rounds, int64_t ns)
{
    uint64_t began = now_ns();
    int64_t usual_ns[MAX_THREADS] = {0};
    static int numbers[MAX_THREADS];
    int mine = -1, others = 0;
    // One thread of this address space is this one; a test may have none here.
    for (int t = 0; t < test->threads; t++) {
        if (test->mm_of[t] == 0 && mine < 0) {
            mine = t;
            if (pinned) pin_to(t);
            continue;
        }
        others++;
    }
    for (int t = 0; t < test->threads; t++) {
        if (test->mm_of[t] != 0 || t == mine) continue;
        pthread_t thread;
        pthread_attr_t own;
        numbers[t] = t;
        // A stack of its own making: a reused one may be kept from children.
        void *stack = mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED || pthread_attr_init(&own) || pthread_attr_setstack(&own, stack, STACK)) return -ENOMEM;
        int error = pthread_create(&thread, &own, worker_main, &numbers[t]);
        if (error) return -error;
    }
    pthread_t helper;
    if (test->rescuer && pthread_create(&helper, 0, test->rescuer, 0)) return -EAGAIN;
    for (uint32_t round = 1; (int64_t)round <= rounds; round++) {
        unsigned spun = 0;
        char *base = base_of(round);
        number_of_round = round;
        atomic_store(&shared->failed, 0);
        atomic_store(&shared->children, 0);
        for (int i = 0; i < test->fields; i++) shared->field[i] = (int32_t)NO_PAGE;
        mmap(arena, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (test->before) test->before();
        long made = test->setup(base, 0);
        while (atomic_load(&shared->arrived) != (uint32_t)others) {
            // A child that could not be made does not come.
            if (made < 0 && test->mms > 1) return made;
            pause_a_little(&spun);
        }
        draw_delays(usual_ns);
        atomic_store(&shared->arrived, 0);
        atomic_store(&shared->done, 0);
        atomic_store(&shared->awake, 0);
        atomic_store_explicit(&shared->go, round, memory_order_release);
        if (mine >= 0) {
            take_part(base, mine, round);
            atomic_fetch_sub(&shared->arrived, 1);
        }
        while (atomic_load(&shared->done) != (uint32_t)test->threads) pause_a_little(&spun);
        test->observe(base, 0);
        atomic_store(&shared->watch, round);
        for (int left = atomic_load(&shared->children); left > 0; left--) {
            FUTEX(&shared->watch, 1, INT32_MAX);
            int status = 0;
            while (wait4(-1, &status, 0, 0) < 0 && errno == EINTR)
                ;
            if (!WIFEXITED(status) || WEXITSTATUS(status)) atomic_store(&shared->failed, 1);
        }
        atomic_store(&shared->ended_round, round);
        if (atomic_load(&shared->rescue_begun) == round) {
            while (atomic_load(&shared->rescue_ended) != round) pause_a_little(&spun);
            int waited = 0;
            for (int t = 0; t < test->threads; t++) waited |= atomic_exchange(&shared->waited_at[t], 0);
            shared->unblocked += waited != 0;
        }
        if (made < 0 || atomic_load(&shared->failed)) {
            shared->failures++;
            shared->failure = made;
            // A state that never comes about is not waited for.
            if (shared->failures >= 100 && shared->failures == round) return made < 0 ? made : -EAGAIN;
        } else
            note_outcome();
        shared->rounds = round;
        shared->ns = (int64_t)(now_ns() - began);
        if (ns && shared->ns >= ns) break;
    }
    return 0;
}

static UNUSED long prepare(const struct test *given)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    test = given;
    sigaction(SIGBUS, &action, 0);
    sigaction(SIGSEGV, &action, 0);
    // Nobody waits for a round's children but the round.
    signal(SIGCHLD, SIG_DFL);
    sched_getaffinity(0, sizeof may, &may);
    arena = mmap(0, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return arena == MAP_FAILED ? -errno : 0;
}

//= report: engine
static const char *name_of(char kind, int32_t value, char *room)
{
    static const struct { int32_t number; const char *name; } errnos[] = {
        {EPERM, "EPERM"}, {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"}, {EINTR, "EINTR"}, {EAGAIN, "EAGAIN"}, {ENOMEM, "ENOMEM"},
        {EACCES, "EACCES"}, {EFAULT, "EFAULT"}, {EBUSY, "EBUSY"}, {EEXIST, "EEXIST"}, {EINVAL, "EINVAL"}};
    if (kind == 's' && value == -SIGBUS) return "-SIGBUS";
    if (kind == 's' && value == -SIGSEGV) return "-SIGSEGV";
    if (value == WAITS) return "waits";
    sprintf(room, "%d", (int)value);
    for (size_t i = 0; kind == 'e' && i < sizeof errnos / sizeof *errnos; i++)
        if (value == -errnos[i].number) sprintf(room, "-%s", errnos[i].name);
    return room;
}

static int more_often(const void *a, const void *b)
{
    int64_t x = ((const struct outcome *)a)->count, y = ((const struct outcome *)b)->count;
    return x < y ? 1 : x > y ? -1 : 0;
}

// The rounds in a process of their own, and then what litmus7 would print. 1: what the condition rules out was seen.
static UNUSED int run_and_report(const struct test *given, int64_t rounds)
{
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return perror("mmap"), 2;
    pinned = 1;
    pid_t pid = fork();
    if (!pid) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        long r = prepare(given);
        shared->ended = r < 0 ? (int32_t)r : (int32_t)run_rounds(rounds, 0);
        _exit(0);
    }
    if (pid < 0) return perror("fork"), 2;
    int64_t before = -1;
    int same = 0;
    while (!waitpid(pid, 0, WNOHANG)) {
        usleep(100000);
        same = shared->rounds == before ? same + 1 : 0;
        before = shared->rounds;
        if (same < 100) continue;
        printf("Round %lld did not end within 10 s:", (long long)before + 1);
        for (int t = 0; t < given->threads; t++)
            if (shared->at[t]) printf(" P%d in its operation %d", t, (int)shared->at[t]);
        printf("\n");
        kill(-pid, SIGKILL);
        waitpid(pid, 0, 0);
        break;
    }
    if (shared->ended < 0)
        printf("The initial state never came about: step %d: %s\n", (int)shared->setting_up, strerror(-shared->ended));
    qsort(shared->table, (size_t)shared->outcomes, sizeof *shared->table, more_often);
    int64_t positive = 0, negative = 0;
    printf("Test %s %s\nHistogram (%d states)\n", given->name,
           !strcmp(given->quantifier, "exists") ? "Allowed" : !strcmp(given->quantifier, "forall") ? "Required" : "Forbidden",
           (int)shared->outcomes);
    for (int i = 0; i < shared->outcomes; i++) {
        const struct outcome *o = &shared->table[i];
        int witness = given->holds(o->fields);
        char room[24];
        *(witness ? &positive : &negative) += o->count;
        printf("%-8lld%c>", (long long)o->count, witness && *given->condition ? '*' : ':');
        for (int f = 0; f < given->fields; f++)
            printf("%s%s=%s;", f ? " " : "", given->names[f], name_of(given->kinds[f], o->fields[f], room));
        printf("\n");
    }
    int ok = !strcmp(given->quantifier, "forall") ? !negative : !strcmp(given->quantifier, "exists") ? positive > 0 : !positive;
    if (*given->condition)
        printf("%s\n\nWitnesses\nPositive: %lld, Negative: %lld\nCondition %s %s is %svalidated\nObservation %s %s %lld %lld\n",
               ok ? "Ok" : "No", (long long)positive, (long long)negative, given->quantifier, given->condition,
               ok ? "" : "NOT ", given->name, !positive ? "Never" : negative ? "Sometimes" : "Always", (long long)positive,
               (long long)negative);
    printf("Time %s %.2f\n", given->name, (double)shared->ns / 1e9);
    return !ok && strcmp(given->quantifier, "exists") ? 1 : shared->ended < 0 || same >= 100 ? 3 : 0;
}
