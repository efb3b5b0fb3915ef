// Litmus tests on the running kernel: the rounds of race_rounds.h, with the threads' operations from lists.
//
// kernel/race.py makes the lists, starts a process with uf_race_start and reads its results from the shared memory.
#include "race_userfaultfd.h"
#include "race_memory.h"
#include "race_pins.h"
#include "race_rounds.h"
#include "race_report.h"

#define EXPORT __attribute__((visibility("default")))

#define OPERATIONS(X) \
    X(map) X(advise) X(protect) X(lock) X(unlock) X(open) X(register) X(huge) X(swapout) X(load) X(store) X(touch) \
    X(move) X(copy) X(zeropage) X(wp) X(poison) X(wake) X(munmap) X(mremap) X(vmread) X(vmwrite) X(vmsplice) \
    X(splice) X(pin) X(unpin) X(pinned) X(event) X(compact) X(sleep) X(look) X(is_present) X(is_swapped) X(is_wp) \
    X(content) X(remember) X(mapcount) X(fork) X(child) X(read) X(unregister) X(ksm) X(lone) X(migrate) X(collapse) \
    X(reclaim)

#define POINTER(name) op_##name,
#define NAME(name) #name " "

static long (*const operations[])(char *, long, long, long, long) = {OPERATIONS(POINTER)};

// An operation of a list: its arguments, and the field that takes its result (-1: none).
struct operation {
    int32_t what, field;
    int64_t x, y, z, w;
};

struct list {
    int32_t count;
    const struct operation *operations;
};

// A test as lists: setup and observe for each address space, one for each thread.
struct program {
    int32_t threads, mms, fields, huge, blocking, events;
    int32_t mm_of[MAX_THREADS];
    struct list setup[MAX_MMS], thread[MAX_THREADS], observe[MAX_MMS];
};

static const struct program *program;

enum { NOBODY = -2, SETUP = -1 };

static long run_list(char *base, const struct list *list, int number, int until_it_fails)
{
    for (int i = 0; i < list->count; i++) {
        const struct operation *o = &list->operations[i];
        if (number != NOBODY) step(number, i + 1);
        long r = operations[o->what](base, o->x, o->y, o->z, o->w);
        if (o->field >= 0) set(o->field, r);
        if (until_it_fails && r < 0) return r;
    }
    return 0;
}

static long setup(char *base, int mm) { return run_list(base, &program->setup[mm], SETUP, 1); }
static void thread(char *base, int number) { run_list(base, &program->thread[number], number, 0); }
static void observe(char *base, int mm) { run_list(base, &program->observe[mm], NOBODY, 0); }

static void before(void)
{
    empty_pipes();
    let_go();
    close_children();
}

// The lists in memory of their own, out of the caller's heap. 0 if there is none.
static const struct program *own_copy(const struct program *given)
{
    size_t count = 0;
    struct program *copy = 0;
    struct operation *room = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < MAX_MMS + MAX_THREADS + MAX_MMS; i++) {
            struct list *list = !pass ? 0 : i < MAX_MMS ? &copy->setup[i]
                                : i < MAX_MMS + MAX_THREADS ? &copy->thread[i - MAX_MMS]
                                                            : &copy->observe[i - MAX_MMS - MAX_THREADS];
            const struct list *from = i < MAX_MMS ? &given->setup[i]
                                      : i < MAX_MMS + MAX_THREADS ? &given->thread[i - MAX_MMS]
                                                                  : &given->observe[i - MAX_MMS - MAX_THREADS];
            if (!pass) {
                count += (size_t)from->count;
                continue;
            }
            if (!from->count) continue;
            memcpy(room, from->operations, (size_t)from->count * sizeof *room);
            list->operations = room;
            room += from->count;
        }
        if (pass) break;
        copy = mmap(0, sizeof *copy + count * sizeof *room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (copy == MAP_FAILED) return 0;
        *copy = *given;
        room = (struct operation *)(copy + 1);
    }
    return copy;
}

// Whatever the caller's process holds besides (an interpreter's heap), a round's children need not get: they only make
// system calls and touch the test's pages. Forks are several times faster so.
static void fork_little(void)
{
    char line[512], path[256];
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) return;
    struct { char *start; size_t length; } found[512];
    int count = 0;
    while (count < 512 && fgets(line, sizeof line, maps)) {
        unsigned long start, end, inode;
        char flags[8];
        path[0] = 0;
        if (sscanf(line, "%lx-%lx %7s %*x %*s %lu %255s", &start, &end, flags, &inode, path) < 4) continue;
        if (strcmp(flags, "rw-p") || inode || (path[0] && strcmp(path, "[heap]"))) continue;
        uintptr_t own[] = {(uintptr_t)pthread_self(), (uintptr_t)&guarded, (uintptr_t)program, (uintptr_t)&seed,
                           (uintptr_t)&arena, (uintptr_t)stdout, (uintptr_t)&environ};
        int needed = end - start < 64 * 1024;
        for (size_t i = 0; i < sizeof own / sizeof *own; i++) needed |= own[i] >= start && own[i] < end;
        if (needed) continue;
        found[count].start = (char *)start;
        found[count++].length = end - start;
    }
    fclose(maps);
    for (int i = 0; i < count; i++) madvise(found[i].start, found[i].length, MADV_DONTFORK);
}

EXPORT const char *uf_race_operations(void) { return OPERATIONS(NAME); }
EXPORT int64_t uf_race_shared_bytes(void) { return sizeof(struct shared); }
EXPORT int64_t uf_race_results_at(void) { return offsetof(struct shared, rounds); }
EXPORT int64_t uf_race_at(void) { return offsetof(struct shared, setting_up); }

// Start a process that runs the rounds: its pid, or -errno. `results` is memory that is shared with it. It is killed when
// the caller ends; the caller waits for it, and kills its process group when it takes too long.
EXPORT int64_t uf_race_start(const struct program *given, void *results, int64_t rounds, int64_t ns, int32_t pin,
                             uint64_t start)
{
    pid_t parent = getpid(), pid = fork();
    if (pid != 0) return ret(pid);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    static struct test lists;
    shared = results;
    program = own_copy(given);
    if (!program) _exit(1);
    lists = (struct test){
        .threads = given->threads, .mms = given->mms, .fields = given->fields, .huge = given->huge,
        .blocking = given->blocking, .events = given->events, .before = before,
        .rescuer = given->blocking || given->events ? rescuer : 0,
        .setup = setup, .thread = thread, .observe = observe,
    };
    memcpy(lists.mm_of, given->mm_of, sizeof lists.mm_of);
    pinned = pin;
    seed ^= start * 0x9e3779b97f4a7c15u;
    long r = prepare(&lists);
    fork_little();
    shared->ended = r < 0 ? (int32_t)r : (int32_t)run_rounds(rounds, ns);
    if (!shared->ended) shared->ended = 1;
    _exit(0);
}
