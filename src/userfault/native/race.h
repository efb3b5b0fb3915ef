// A line that begins with `//= NAME:` begins a piece, with the names of the pieces that it needs (kernel/race.py reads them).
#pragma once

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
    _Atomic int32_t children, provoked_now, idle[MAX_THREADS];
    int64_t delay_ns[MAX_THREADS], took_ns[MAX_THREADS];
    _Atomic int32_t setting_up, at[MAX_THREADS]; // the operation that setup, or a thread, stands in, from 1
    _Atomic int32_t waited_at[MAX_THREADS];      // the one in which a thread stood when it was let go
    int32_t tid[MAX_THREADS];
    int32_t field[MAX_FIELDS];
    // Results, read from outside as well.
    int64_t rounds, failures, failure, unblocked, provoked, ns;
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

// Whether the kernel was seen to do what this thread asked of it, and what it may leave undone.
static UNUSED void provoked(int seen)
{
    if (who >= 0) atomic_store(&shared->idle[who], !seen);
    if (seen) atomic_store(&shared->provoked_now, 1);
}

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

// An operation returns what the kernel returned, 0 or progress, or -errno; one that makes the initial state 0, or why it did not
// come about.
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
