// The rounds of a litmus test: threads that start together, other address spaces, outcomes that are counted.
//
// In pieces, as race.h says.
#pragma once
#include "race.h"

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
    shared->tid[number] = (int32_t)syscall(SYS_gettid);
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

#define LATE_NS 2000000

// Who goes first is drawn; the others start somewhere within the time that it takes. What the kernel was asked for in vain may have been
// over too early: it makes that time no shorter, and the others sometimes start a good deal later.
static void draw_delays(int64_t *usual_ns)
{
    int n = test->threads, first = (int)random_below((uint64_t)n), in_vain = 0;
    for (int t = 0; t < n; t++) {
        int idle = atomic_exchange(&shared->idle[t], 0);
        if (!idle || shared->took_ns[t] > usual_ns[t]) usual_ns[t] += (shared->took_ns[t] - usual_ns[t]) / 8;
        in_vain |= idle;
    }
    int64_t within = usual_ns[first] * 5 / 4 + 200;
    if (in_vain && within < LATE_NS && !random_below(4)) within = LATE_NS >> random_below(6);
    for (int t = 0; t < n; t++) shared->delay_ns[t] = t == first ? 0 : (int64_t)random_below((uint64_t)within);
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
        atomic_store(&shared->provoked_now, 0);
        for (int i = 0; i < test->fields; i++) shared->field[i] = (int32_t)NO_PAGE;
        mmap(arena, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (test->before) test->before();
        long made = test->setup(base, 0);
        // A new page waits in a batch of its CPU's, where other CPUs' reclaim does not find it. Every other time it has left that:
        // advice on what was never touched does nothing else.
        if (round & 2) madvise(arena + ARENA - SMALL, SMALL, 20 /* MADV_COLD */);
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
        } else {
            note_outcome();
            shared->provoked += atomic_load(&shared->provoked_now);
        }
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
