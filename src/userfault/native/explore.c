// Breadth-first search, a level at a time, by one or more workers.
#include "explore_store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 64      // successors that enter the table together
#define FEW 2048      // states of a level that one worker expands alone
#define PATIENCE 2000 // looks for the others before a worker sleeps: the next level is a few microseconds away

_Atomic int stop_requested;

typedef struct {
    uint64_t hash, affects;
    uint32_t parent;
    uint64_t state[];
} pending;

typedef struct search search;

typedef struct {
    _Alignas(LINE) search *g;
    int32_t *regs, *spec_regs;
    uint64_t reached[4], before; // the slots taken in the state that it expands
    int64_t transitions;
    int64_t number, share_end; // its share of the level: the state that it expands, and
    int next_thread, moved;    // (the table was full in the middle) the step to go on with, and whether there was one before
    choices next_choices;
    int64_t place, place_end;  // its places in the arena, not used yet
    char *queue;
    size_t stride;             // bytes of a pending state: as few as the state has, so that the batch stays in the cache
    int queued;
    pthread_t thread;
} worker;

struct search {
    store t;
    const program *p;
    const options *o;
    int64_t level_begin, level_end, levels, share;
    int judged; // there is something to judge a state by
    pool_mix mix;
    _Alignas(LINE) _Atomic int64_t cursor;
    _Alignas(LINE) int entering; // what the workers do: enter states into a larger table, or expand a level
    _Atomic int full;    // the table is, or the arena: nobody goes on
    _Atomic int trouble; // the verdict of a step that can't be executed
    _Atomic int cyclic;
    pthread_mutex_t lock;
    int32_t worst;         // rank of the worst violation of the first level that has one, or -1
    int64_t worst_state;   // where it was found
    int32_t worst_thread;  // the step that broke it (-1: the state itself)
    choices worst_choices;
    int count;
    int worst_new;         // the first violation is of this level: a smaller number may replace it
    worker *workers;
    int quit;
    pthread_cond_t all_met;
    _Alignas(LINE) _Atomic int arrived;
    _Atomic int meetings;
};

static void report(search *g, int32_t rank, int64_t state, int32_t thread, const choices *c)
{
    if (cannot(rank)) {
        atomic_store(&g->trouble, cannot(rank));
        return;
    }
    pthread_mutex_lock(&g->lock);
    // Within the level, the smallest failure wins, then the smallest place: the same whatever the workers' timing.
    if (g->worst < 0 || (g->worst_new && rank < g->worst)) {
        g->worst = rank;
        g->worst_state = state;
        g->worst_thread = thread;
        g->worst_new = 1;
        if (c) g->worst_choices = *c;
        else g->worst_choices.count = 0;
    }
    pthread_mutex_unlock(&g->lock);
}

static pending *queued_at(const worker *w, int number)
{
    return (pending *)(w->queue + (size_t)number * w->stride);
}

// A place in the arena for a new state, or -1 if there is none.
static int64_t take_place(worker *w)
{
    store *t = &w->g->t;
    if (w->place == w->place_end) {
        w->place = atomic_fetch_add_explicit(&t->count, w->g->share, memory_order_relaxed);
        w->place_end = w->place + w->g->share;
    }
    if (w->place < t->limit) return w->place++;
    atomic_store_explicit(&w->g->full, 1, memory_order_relaxed);
    return -1;
}

// 0: there is no place for it.
static int insert(worker *w, pending *e)
{
    search *g = w->g;
    store *t = &g->t;
    uint64_t at = first_slot(t, e->hash);
    uint32_t tag = tag_of(t, e->hash);
    int64_t mine = -1;
    for (;;) {
        uint32_t slot = atomic_load_explicit(&t->slots[at], memory_order_acquire);
        if (!slot) {
            if (mine < 0) {
                mine = take_place(w);
                if (mine < 0) return 0;
                copy(state_at(t, mine), e->state, t->words);
                t->parents[mine] = e->parent;
            }
            uint32_t entry = tag | (uint32_t)(mine + 1);
            if (put_entry(t, at, &slot, entry)) {
                int32_t r = g->judged ? broken(g->p, e->state, w->spec_regs, e->affects, w->reached) : R_OK;
                if (r != R_OK) {
                    t->parents[mine] |= BAD;
                    // The place in the arena may depend on timing; its parent does not matter to the verdict.
                    report(g, r, mine, -1, 0);
                }
                return 1;
            }
        }
        if (same_tag(t, slot, tag) && equal(state_at(t, number_in(t, slot)), e->state, t->words)) {
            if (mine >= 0) w->place--; // it lost a race: the next new state has the place
            if (number_in(t, slot) < g->level_end && !atomic_load_explicit(&g->cyclic, memory_order_relaxed))
                atomic_store_explicit(&g->cyclic, 1, memory_order_relaxed);
            return 1;
        }
        at = next_slot(t, at);
    }
}

// Enter the batch into the table. 0: it is full, and what did not go in stays queued.
static int flush(worker *w)
{
    const store *t = &w->g->t;
    // The slots were asked for when the states were made; now the states that they point to.
    for (int i = 0; i < w->queued; i++) {
        uint64_t hash = queued_at(w, i)->hash, at = first_slot(t, hash);
        uint32_t tag = tag_of(t, hash), slot;
        while ((slot = atomic_load_explicit(&t->slots[at], memory_order_relaxed))) {
            if (same_tag(t, slot, tag)) {
                __builtin_prefetch(state_at(t, number_in(t, slot)));
                break;
            }
            at = next_slot(t, at);
        }
    }
    int done = 0;
    while (done < w->queued && insert(w, queued_at(w, done))) done++;
    w->queued -= done;
    if (w->queued) memmove(w->queue, queued_at(w, done), (size_t)w->queued * w->stride);
    return !w->queued;
}

// A new state, or (in a reduced search) the state where the interleaving next matters.
static void enqueue(worker *w, int64_t number, int t, uint64_t affects)
{
    search *g = w->g;
    const program *p = g->p;
    pending *e = queued_at(w, w->queued);
    // A broken state is stored as it is. What moves alone breaks no invariant, and a final state moves no more.
    if (p->alone && p->chains && broken(p, e->state, w->spec_regs, affects, w->reached) == R_OK)
        for (int32_t r; (r = move_alone(p, e->state, w->regs, w->reached)) != R_BLOCKED;) {
            w->transitions++;
            if (r == R_OK) continue;
            report(g, r, number, t, 0);
            return;
        }
    if (p->alike) representative(p, e->state, w->before, &g->mix);
    e->hash = hash_state(e->state, p->words);
    e->affects = affects;
    e->parent = (uint32_t)number;
    __builtin_prefetch((const void *)&g->t.slots[first_slot(&g->t, e->hash)]);
    w->queued++;
}

// All steps from a state. 0: the table is full; the worker notes where to go on.
static int expand(worker *w, int64_t number)
{
    search *g = w->g;
    const program *p = g->p;
    const uint64_t *from = state_at(&g->t, number);
    choices c = w->next_choices;
    int moved = w->moved, ended = 1, first = w->next_thread;
    w->next_thread = w->moved = w->next_choices.count = w->next_choices.given = 0;
    if (p->pools) w->before = taken_slots(p, from);
    if (p->alone && !moved) {
        if (w->queued == BATCH && !flush(w)) return 0;
        pending *e = queued_at(w, w->queued);
        copy(e->state, from, p->words);
        int32_t r = move_alone(p, e->state, w->regs, w->reached);
        if (r != R_BLOCKED) {
            w->transitions++;
            if (r == R_OK) enqueue(w, number, 0, 0);
            else report(g, r, number, 0, 0);
            return 1;
        }
    }
    for (int t = first; t < p->threads; t++) {
        int32_t pc = pc_of(p, from, t);
        if (pc == p->pc_end[t]) continue;
        ended = 0;
        const ins *code = step_at(p, t, pc);
        do {
            if (w->queued == BATCH && !flush(w)) {
                w->next_thread = t;
                w->next_choices = c;
                w->moved = moved;
                return 0;
            }
            pending *e = queued_at(w, w->queued);
            copy(e->state, from, p->words);
            int32_t r = execute(p, code, e->state, w->regs + t * p->reg_count, &c, w->reached);
            if (r == R_BLOCKED) break;
            moved = 1;
            w->transitions++;
            if (r != R_OK) {
                report(g, r, number, t, &c);
                continue;
            }
            enqueue(w, number, t, p->affects[t * p->max_pc + pc]);
        } while (next_choice(&c));
        c.count = c.given = 0;
    }
    if (!moved && !ended) report(g, p->failures + 2, number, -2, 0);
    return 1;
}

static void work_level(worker *w)
{
    search *g = w->g;
    // Asked before a share is taken: what is taken is expanded now, or when the table has grown.
    while (!atomic_load_explicit(&g->full, memory_order_relaxed) && !atomic_load_explicit(&stop_requested, memory_order_relaxed)) {
        if (w->number == w->share_end) {
            w->number = atomic_fetch_add(&g->cursor, SHARE);
            w->share_end = w->number + SHARE < g->level_end ? w->number + SHARE : g->level_end;
            if (w->number >= g->level_end) {
                w->number = w->share_end;
                break;
            }
        }
        while (w->number < w->share_end && (!intact(&g->t, w->number) || expand(w, w->number))) w->number++;
    }
    flush(w);
}

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Everybody waits for the last one. A barrier of the library sleeps at once, and waking takes as long as a small level.
static void meet(search *g)
{
    int meeting = atomic_load(&g->meetings);
    if (atomic_fetch_add(&g->arrived, 1) + 1 == g->count) {
        atomic_store(&g->arrived, 0);
        pthread_mutex_lock(&g->lock);
        atomic_store(&g->meetings, meeting + 1);
        pthread_cond_broadcast(&g->all_met);
        pthread_mutex_unlock(&g->lock);
        return;
    }
    for (int i = 0; i < PATIENCE && atomic_load(&g->meetings) == meeting; i++) pause_briefly();
    pthread_mutex_lock(&g->lock);
    while (atomic_load(&g->meetings) == meeting) pthread_cond_wait(&g->all_met, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static void work_entering(worker *w)
{
    search *g = w->g;
    enum { MANY = 4096 };
    for (;;) {
        int64_t from = atomic_fetch_add(&g->cursor, MANY), to = from + MANY;
        if (from >= g->level_end) return;
        store_enter(&g->t, from, to < g->level_end ? to : g->level_end);
    }
}

static void work(worker *w)
{
    if (w->g->entering) work_entering(w);
    else work_level(w);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    pthread_mutex_lock(&w->g->lock);
    pthread_mutex_unlock(&w->g->lock);
    for (;;) {
        meet(w->g);
        if (w->g->quit) return 0;
        work(w);
        meet(w->g);
    }
}

// Everybody's work, or the leader's alone: little is not worth waking anybody for.
static void work_together(search *g, int64_t size)
{
    int waking = g->count > 1 && size > FEW;
    if (waking) meet(g);
    work(&g->workers[0]);
    if (waking) meet(g);
}

// The places that workers took and did not use: given back at the end of the arena, holes elsewhere.
static void return_places(search *g)
{
    store *t = &g->t;
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < g->count; i++) {
            worker *w = &g->workers[i];
            if (w->place == w->place_end || w->place_end != atomic_load(&t->count)) continue;
            atomic_store(&t->count, w->place);
            w->place = w->place_end = 0;
            again = 1;
        }
    }
    for (int i = 0; i < g->count; i++) {
        worker *w = &g->workers[i];
        for (; w->place < w->place_end; w->place++, t->holes++) t->parents[w->place] = HOLE;
        w->place = w->place_end = 0;
    }
}

// A table with room for `more` insertions. 0 if there is no memory.
static int grow(search *g, int64_t more)
{
    int grown = store_grow(&g->t, more);
    if (grown <= 0) return grown == 0;
    int64_t level_end = g->level_end, cursor = atomic_load(&g->cursor);
    g->entering = 1;
    g->level_end = atomic_load(&g->t.count);
    atomic_store(&g->cursor, 0);
    work_together(g, g->level_end);
    g->entering = 0;
    g->level_end = level_end;
    atomic_store(&g->cursor, cursor);
    return 1;
}

EXPORT void uf_stop(int stop) { atomic_store(&stop_requested, stop); }
EXPORT void uf_free(void *made) { free(made); }

// The final states among those stored. 0 if there is no memory for them.
static int collect_ends(const search *g, result *out)
{
    const program *p = g->p;
    int64_t total = atomic_load(&g->t.count), room = 0;
    for (int64_t n = 0; n < total; n++) {
        const uint64_t *s = state_at(&g->t, n);
        if (!intact(&g->t, n) || !all_ended(p, s)) continue;
        if (out->ends_count == room) {
            uint64_t *more = realloc(out->ends, (size_t)(room = room * 2 + 64) * (size_t)p->words * 8);
            if (!more) return 0;
            out->ends = more;
        }
        copy(out->ends + out->ends_count++ * p->words, s, p->words);
    }
    return 1;
}

// The workers and the initial state. 0: no memory.
static int open_search(search *g, int count)
{
    const program *p = g->p;
    if (!store_open(&g->t, p, g->o)) return 0;
    g->workers = aligned_alloc(LINE, (size_t)count * sizeof *g->workers);
    if (!g->workers) return 0;
    memset(g->workers, 0, (size_t)count * sizeof *g->workers);
    for (g->count = 0; g->count < count; g->count++) {
        worker *w = &g->workers[g->count];
        w->g = g;
        w->regs = copy_regs(p->regs, p->threads, p->reg_count);
        w->spec_regs = copy_regs(p->spec_regs, p->invariants + p->finals, p->reg_count);
        w->stride = sizeof(pending) + 8 * (size_t)p->words;
        w->queue = aligned_alloc(LINE, (BATCH * w->stride / LINE + 1) * LINE);
        if (!w->regs || !w->spec_regs || !w->queue) return 0;
    }
    copy(state_at(&g->t, 0), p->initial, p->words);
    g->t.parents[0] = 0;
    atomic_store(&g->t.count, 1);
    store_enter(&g->t, 0, 1);
    uint64_t initial[MAX_WORDS];
    copy(initial, p->initial, p->words);
    int32_t r = broken(p, initial, g->workers[0].spec_regs, ~0ull, g->workers[0].reached);
    if (r != R_OK) report(g, r, 0, -1, 0);
    return 1;
}

static void close_search(search *g, int count)
{
    for (int i = 0; g->workers && i < count; i++) {
        free(g->workers[i].regs);
        free(g->workers[i].spec_regs);
        free(g->workers[i].queue);
    }
    free(g->workers);
    pthread_mutex_destroy(&g->lock);
    store_close(&g->t);
}

// One level. HOLDS: the search goes on, if there is a next one.
static int search_level(search *g)
{
    int64_t level = g->level_end - g->level_begin;
    g->share = g->count > 1 && level > FEW ? SHARE : 1;
    atomic_store(&g->cursor, g->level_begin);
    do {
        // A level is often as large as the one before; where it is larger, the table grows in the middle.
        int64_t left = g->level_end - atomic_load(&g->cursor);
        if (!grow(g, left < SHARE ? SHARE : left)) return NO_MEMORY;
        atomic_store(&g->full, 0);
        work_together(g, level);
        return_places(g);
    } while (atomic_load(&g->full) && g->t.limit < g->t.capacity);
    g->worst_new = 0;
    if (atomic_load(&g->trouble)) return atomic_load(&g->trouble);
    g->levels++;
    if (mixed(&g->mix)) return MIXED;
    g->level_begin = g->level_end;
    g->level_end = atomic_load(&g->t.count);
    if (atomic_load(&stop_requested)) return STOPPED;
    return atomic_load(&g->full) || g->level_end - g->t.holes > g->o->max_states ? BOUND : HOLDS;
}

static int search_levels(search *g, int count)
{
    // Where fewer threads can be had, the search makes do with them; they wait until it is known how many they are.
    pthread_mutex_lock(&g->lock);
    g->count = 1;
    while (g->count < count && !pthread_create(&g->workers[g->count].thread, 0, worker_main, &g->workers[g->count])) g->count++;
    g->t.shared = g->count > 1;
    pthread_cond_init(&g->all_met, 0);
    pthread_mutex_unlock(&g->lock);
    int verdict = HOLDS;
    g->level_end = 1;
    g->worst_new = 0;
    while (verdict == HOLDS && g->level_begin < g->level_end && (g->worst < 0 || g->o->keep_going)) verdict = search_level(g);
    g->quit = 1;
    meet(g);
    for (int i = 1; i < g->count; i++) pthread_join(g->workers[i].thread, 0);
    pthread_cond_destroy(&g->all_met);
    return g->worst >= 0 && verdict != NO_MEMORY && verdict != MIXED && !atomic_load(&g->trouble) ? VIOLATED : verdict;
}

// What is said of the states found; the verdict may change.
static void conclude(search *g, result *out, int count)
{
    const program *p = g->p;
    int64_t total = atomic_load(&g->t.count);
    int32_t *regs = g->workers[0].regs;
    for (int i = 0; i < count; i++) {
        out->transitions += g->workers[i].transitions;
        for (int j = 0; j < 4; j++) out->reached[j] |= g->workers[i].reached[j];
    }
    out->states = total - g->t.holes;
    out->bytes = total * (8 * p->words + 4) + (int64_t)g->t.slot_count * 4;
    out->cyclic = atomic_load(&g->cyclic);
    out->mixed = mixed(&g->mix);
    out->levels = g->levels;
    int memory = !g->o->collect || collect_ends(g, out);
    if (out->verdict == VIOLATED) {
        out->failure = g->worst;
        if (!p->alone) {
            memory &= push_path(&g->t, out, g->worst_state, regs);
            if (g->worst_thread >= 0) memory &= push_move(out, g->worst_thread, &g->worst_choices);
        }
    } else if (out->verdict == HOLDS && g->o->liveness && !p->alone && out->cyclic) {
        int cycle = fair_cycle(&g->t, out, regs);
        memory &= cycle >= 0;
        if (cycle == 1) {
            out->verdict = VIOLATED;
            out->failure = p->failures + 3;
        }
    }
    if (!memory) out->verdict = NO_MEMORY;
}

EXPORT int uf_explore(const program *p, const options *o, result *out)
{
    memset(out, 0, sizeof *out);
    out->lasso = -1;
    out->verdict = NO_MEMORY;
    search g = {.p = p, .o = o, .worst = -1, .judged = p->invariants || p->finals, .lock = PTHREAD_MUTEX_INITIALIZER};
    int count = o->workers < 1 ? 1 : o->workers > MAX_WORKERS ? MAX_WORKERS : o->workers;
    if (open_search(&g, count)) {
        out->verdict = search_levels(&g, count);
        conclude(&g, out, count);
    }
    close_search(&g, count);
    return out->verdict != NO_MEMORY;
}
