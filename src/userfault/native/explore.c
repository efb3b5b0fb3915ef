// The native engine: breadth-first search, shortest-switch search and fair-cycle search over bit-packed states.
//
// check/native.py lays out the state, translates each step to a run of instructions on packed words, and calls the
// functions at the end. The Python engine (check/explore.py) defines what they must return.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_WORDS 256
#define MAX_CHOICES 16
#define MAX_THREADS 16
#define MAX_WORKERS 64
#define MAX_FIELDS 64
#define BAD 0x80000000u  // parent flag: a state that broke an invariant; it is counted, not expanded
#define HOLE 0x7fffffffu // parent value of an arena place that lost an insertion race
#define LOCAL_LIMIT 100000

typedef struct {
    int32_t op, d, a, b, x, y, z, w;
} ins;

enum {
    MOV, ADD, SUB, MUL, AND, OR, XOR, SHL, SHR, EQ, NE, LT, LE, NOT,
    LD,   // d := field (word x, shift y, mask z) + w
    ST,   // field (word x, shift y, mask z) := b - w, range checked
    LDX,  // d := cell[a + x], a in [y, z]
    STX,  // cell[a + x] := b, a in [y, z]
    LDK,  // d := table[a + x], a in [y, z]
    BR, JMP, WAIT, FAIL, CHOOSE, REACH,
    EQ_BR, NE_BR, LT_BR, LE_BR, NOT_BR, // d := the comparison, as above; BR on it
    KEEP, // word x := word x & the 64-bit mask (y low, z high) | the 64-bit value (d low, a high)
    RET,  // the step is over
    OPS
};

typedef struct {
    int32_t word, shift, mask, lo, hi;
} cell;

typedef struct {
    int32_t words, threads, max_pc;
    const ins *_Atomic *entry; // [thread * max_pc + pc] -> the step's code, or null: nobody came here yet
    const uint64_t *affects;   // [thread * max_pc + pc] -> which invariants a step may change, once there is code
    const ins *(*translate)(int32_t thread, int32_t pc);
    const int32_t *pc_word, *pc_shift, *pc_mask, *pc_end; // per thread
    const int32_t *regs;       // initial registers of each thread, thread * reg_count
    int32_t reg_count;
    const cell *cells;
    const int32_t *tables;
    const uint64_t *initial;
    int32_t invariants, finals;
    const ins *const *spec_entry; // invariants, then finals
    const int32_t *spec_regs;  // initial registers of each spec
    int32_t failures;          // number of the first built-in failure: dereference, range, deadlock
    // Persistent sets (check/reduce.py), or null: alone[(thread * max_pc + pc) * threads + other] is the row of `rows` with
    // the places of the other next to which the thread may move alone, or -1 for no place.
    const int32_t *alone;
    const uint64_t *rows;
    int32_t row_words, chains;
    // Groups of threads that may change places: how many; then, for each, the number of threads and of fields, and the
    // fields (word, shift, mask) of the first thread, of the second, ...
    const int32_t *alike;
} program;

typedef struct {
    int64_t max_states, max_bytes;
    int32_t workers, keep_going, liveness, collect;
} options;

typedef struct {
    int32_t verdict; // 0 holds, 1 violated, 2 bound, 3 local loop, 4 stopped, 5 out of memory
    int32_t failure; // number, or failures + 3 for a livelock
    int64_t states, transitions, bytes;
    int64_t depth, lasso, cyclic;
    uint64_t reached[4];
    int32_t *moves;  // (thread, number of choices, choices...) repeated; free with uf_free
    int64_t moves_length;
    uint64_t *ends;  // with `collect`: the packed final states that break nothing; free with uf_free
    int64_t ends_count;
} result;

enum { R_OK = -1, R_BLOCKED = -2, R_LOCAL = -3 };

typedef struct {
    int32_t taken[MAX_CHOICES], width[MAX_CHOICES];
    int count, given;
} choices;

static _Atomic int stop_requested;
static _Atomic int64_t progress_states;

static uint64_t wide(int32_t low, int32_t high)
{
    return (uint64_t)(uint32_t)low | (uint64_t)(uint32_t)high << 32;
}

static int32_t execute(const program *p, const ins *code, uint64_t *s, int32_t *r, choices *c, uint64_t *reached)
{
    static const void *const labels[OPS] = {
        &&l_MOV, &&l_ADD, &&l_SUB, &&l_MUL, &&l_AND, &&l_OR, &&l_XOR, &&l_SHL, &&l_SHR, &&l_EQ, &&l_NE, &&l_LT, &&l_LE,
        &&l_NOT, &&l_LD, &&l_ST, &&l_LDX, &&l_STX, &&l_LDK, &&l_BR, &&l_JMP, &&l_WAIT, &&l_FAIL, &&l_CHOOSE, &&l_REACH,
        &&l_EQ_BR, &&l_NE_BR, &&l_LT_BR, &&l_LE_BR, &&l_NOT_BR,
        &&l_KEEP, &&l_RET};
    const ins *i = code;
    int backward = 0;
#define NEXT do { i++; goto *labels[i->op]; } while (0)
    goto *labels[i->op];
l_MOV: r[i->d] = r[i->a]; NEXT;
l_ADD: r[i->d] = r[i->a] + r[i->b]; NEXT;
l_SUB: r[i->d] = r[i->a] - r[i->b]; NEXT;
l_MUL: r[i->d] = r[i->a] * r[i->b]; NEXT;
l_AND: r[i->d] = r[i->a] & r[i->b]; NEXT;
l_OR: r[i->d] = r[i->a] | r[i->b]; NEXT;
l_XOR: r[i->d] = r[i->a] ^ r[i->b]; NEXT;
l_SHL: r[i->d] = (int32_t)((uint32_t)r[i->a] << r[i->b]); NEXT;
l_SHR: r[i->d] = r[i->a] >> r[i->b]; NEXT;
l_EQ: r[i->d] = r[i->a] == r[i->b]; NEXT;
l_NE: r[i->d] = r[i->a] != r[i->b]; NEXT;
l_LT: r[i->d] = r[i->a] < r[i->b]; NEXT;
l_LE: r[i->d] = r[i->a] <= r[i->b]; NEXT;
l_NOT: r[i->d] = !r[i->a]; NEXT;
l_LD: r[i->d] = (int32_t)((s[i->x] >> i->y) & (uint32_t)i->z) + i->w; NEXT;
l_ST: {
    uint32_t v = (uint32_t)(r[i->b] - i->w);
    if (v > (uint32_t)i->a) return p->failures + 1;
    s[i->x] = (s[i->x] & ~((uint64_t)(uint32_t)i->z << i->y)) | ((uint64_t)v << i->y);
    NEXT;
}
l_LDX: {
    int32_t v = r[i->a];
    if (v < i->y || v > i->z) return p->failures;
    const cell *e = p->cells + v + i->x;
    r[i->d] = (int32_t)((s[e->word] >> e->shift) & (uint32_t)e->mask) + e->lo;
    NEXT;
}
l_STX: {
    int32_t v = r[i->a];
    if (v < i->y || v > i->z) return p->failures;
    const cell *e = p->cells + v + i->x;
    int32_t n = r[i->b];
    if (n < e->lo || n > e->hi) return p->failures + 1;
    s[e->word] = (s[e->word] & ~((uint64_t)(uint32_t)e->mask << e->shift)) | ((uint64_t)(uint32_t)(n - e->lo) << e->shift);
    NEXT;
}
l_LDK: {
    int32_t v = r[i->a];
    if (v < i->y || v > i->z) return p->failures;
    r[i->d] = p->tables[v + i->x];
    NEXT;
}
#define BRANCH(value)                                                                                                  \
    do {                                                                                                               \
        const ins *to = code + ((value) ? i->x : i->y);                                                                \
        if (to <= i && ++backward > LOCAL_LIMIT) return R_LOCAL;                                                       \
        i = to;                                                                                                        \
        goto *labels[i->op];                                                                                           \
    } while (0)
l_BR: BRANCH(r[i->a]);
l_EQ_BR: BRANCH((r[i->d] = r[i->a] == r[i->b]));
l_NE_BR: BRANCH((r[i->d] = r[i->a] != r[i->b]));
l_LT_BR: BRANCH((r[i->d] = r[i->a] < r[i->b]));
l_LE_BR: BRANCH((r[i->d] = r[i->a] <= r[i->b]));
l_NOT_BR: BRANCH((r[i->d] = !r[i->a]));
l_JMP: {
    const ins *to = code + i->x;
    if (to <= i && ++backward > LOCAL_LIMIT) return R_LOCAL;
    i = to;
    goto *labels[i->op];
}
l_WAIT:
    if (!r[i->a]) return R_BLOCKED;
    NEXT;
l_FAIL: return i->x;
l_CHOOSE:
    if (c->count < MAX_CHOICES) {
        int32_t v = c->count < c->given ? c->taken[c->count] : 0;
        c->taken[c->count] = v;
        c->width[c->count++] = i->x;
        r[i->d] = v;
    }
    NEXT;
l_REACH: reached[i->x >> 6] |= 1ull << (i->x & 63); NEXT;
l_KEEP: s[i->x] = (s[i->x] & wide(i->y, i->z)) | wide(i->d, i->a); NEXT;
l_RET: return R_OK;
}

static pthread_mutex_t translating = PTHREAD_MUTEX_INITIALIZER;

static __attribute__((noinline)) const ins *translated(const program *p, int t, int32_t pc)
{
    const ins *_Atomic *entry = &p->entry[t * p->max_pc + pc];
    pthread_mutex_lock(&translating);
    const ins *code = atomic_load_explicit(entry, memory_order_relaxed);
    if (!code) {
        code = p->translate(t, pc);
        atomic_store_explicit(entry, code, memory_order_release);
    }
    pthread_mutex_unlock(&translating);
    return code;
}

// The code of a step. It is made when a search first comes to it; jumps in it count from its start.
static inline const ins *step_at(const program *p, int t, int32_t pc)
{
    const ins *_Atomic *entry = &p->entry[t * p->max_pc + pc];
    const ins *code = atomic_load_explicit(entry, memory_order_acquire);
    return __builtin_expect(!code, 0) ? translated(p, t, pc) : code;
}

static int32_t pc_of(const program *p, const uint64_t *s, int t)
{
    return (int32_t)((s[p->pc_word[t]] >> p->pc_shift[t]) & (uint32_t)p->pc_mask[t]);
}

// The next combination of choices after a step; 0 when all were taken.
static int next_choice(choices *c)
{
    for (int at = c->count - 1; at >= 0; at--)
        if (c->taken[at] + 1 < c->width[at]) {
            c->taken[at]++;
            c->given = at + 1;
            c->count = 0;
            return 1;
        }
    return 0;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

// The pairs of words are multiplied independently of each other: a processor does several at a time.
static inline uint64_t hash_state(const uint64_t *s, int words)
{
    uint64_t h = 0, key = 0x9e3779b97f4a7c15ull;
    int i = 0;
    for (; i + 1 < words; i += 2, key += 0xd1b54a32d192ed02ull) h ^= mix(s[i] ^ key, s[i + 1] ^ 0xe7037ed1a0b428dbull);
    if (i < words) h ^= mix(s[i] ^ key, 0xe7037ed1a0b428dbull);
    return mix(h ^ 0x8ebc6af09c88c6e3ull, 0xff51afd7ed558ccdull);
}

static inline void copy(uint64_t *to, const uint64_t *from, int words)
{
    for (int i = 0; i < words; i++) to[i] = from[i];
}

static int equal(const uint64_t *a, const uint64_t *b, int words)
{
    for (int i = 0; i < words; i++)
        if (a[i] != b[i]) return 0;
    return 1;
}

#define HUGE (2u << 20)

// Memory in huge pages from `small` bytes on: a prefetch waits for the walk of the page tables.
static void *reserve(size_t bytes, size_t small)
{
    void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return 0;
    if (bytes > small) madvise((char *)at + small, bytes - small, MADV_HUGEPAGE);
    return at;
}

// ---------------------------------------------------------------------------------------------------------------------
// The search's memory: an arena of packed states, their parents, and a hash table.
//
// A slot of the table holds the number of a state, +1, in its low bits, and as much of the state's hash as fits above: a probe
// looks at another state's words only if those agree, so the table may be filled to four fifths.

#define LINE 64  // bytes of a cache line: what one worker writes all the time lies in no line that another one reads
#define SHARE 64 // states that a worker expands, and places in the arena that it takes, at a time

typedef struct {
    const program *p;
    const options *o;
    int words, number_bits;
    int64_t capacity;
    uint64_t *states;
    uint32_t *parents;
    _Atomic uint32_t *slots;
    uint64_t slot_count;
    int shared;               // by several workers
    int64_t holes;
    _Alignas(LINE) _Atomic int64_t count;
    char rest_of_line[LINE - sizeof(int64_t)];
} store;

static _Atomic uint32_t *slots_new(uint64_t count)
{
    return count >= (1u << 20) ? reserve(count * 4, 0) : calloc(count, 4);
}

static void slots_free(_Atomic uint32_t *slots, uint64_t count)
{
    if (slots && count >= (1u << 20)) munmap((void *)slots, count * 4);
    else free((void *)slots);
}

// Bits that hold the number, +1, of every state that a table of so many slots takes; never all 32.
static int bits_for(uint64_t slots)
{
    int bits = 64 - __builtin_clzll(slots);
    return bits < 31 ? bits : 31;
}

// Where the arena is full, every worker may hold places that are beyond it.
static size_t arena_places(const store *t)
{
    return (size_t)t->capacity + MAX_WORKERS * SHARE;
}

static int store_open(store *t, const program *p, const options *o)
{
    memset(t, 0, sizeof *t);
    t->p = p;
    t->o = o;
    t->words = p->words;
    int64_t per_state = 8 * p->words + 4 + 8;
    t->capacity = o->max_states + 65536;
    if (t->capacity > o->max_bytes / per_state) t->capacity = o->max_bytes / per_state;
    if (t->capacity > 0x7ffffff0) t->capacity = 0x7ffffff0;
    // Small searches stay small: no huge page for the beginning of what may never be used.
    t->states = reserve(arena_places(t) * 8 * (size_t)p->words, HUGE);
    t->parents = reserve(arena_places(t) * 4, HUGE);
    t->slot_count = 1 << 10;
    t->number_bits = bits_for(t->slot_count);
    t->slots = slots_new(t->slot_count);
    return t->states && t->parents && t->slots;
}

static void store_close(store *t)
{
    if (t->states) munmap(t->states, arena_places(t) * 8 * (size_t)t->words);
    if (t->parents) munmap(t->parents, arena_places(t) * 4);
    slots_free(t->slots, t->slot_count);
}

static uint64_t *state_at(const store *t, int64_t number)
{
    return t->states + number * t->words;
}

static uint64_t first_slot(const store *t, uint64_t hash)
{
    return (uint64_t)(((unsigned __int128)hash * t->slot_count) >> 64);
}

static uint64_t next_slot(const store *t, uint64_t at)
{
    return at + 1 == t->slot_count ? 0 : at + 1;
}

// The place is taken from the top of the hash, so the tag is from the bottom.
static uint32_t tag_of(const store *t, uint64_t hash)
{
    return (uint32_t)(hash << t->number_bits);
}

static int64_t number_in(const store *t, uint32_t slot)
{
    return (int64_t)(slot & ((1u << t->number_bits) - 1)) - 1;
}

static int same_tag(const store *t, uint32_t slot, uint32_t tag)
{
    return (slot ^ tag) >> t->number_bits == 0;
}

// Put an entry where `seen` (0: nothing) was; if somebody else did so first, `seen` is what he put. One worker alone needs no
// locked instruction, which would wait for everything that it has prefetched.
static int put_entry(store *t, uint64_t at, uint32_t *seen, uint32_t entry)
{
    if (t->shared)
        return atomic_compare_exchange_strong_explicit(&t->slots[at], seen, entry, memory_order_release, memory_order_acquire);
    atomic_store_explicit(&t->slots[at], entry, memory_order_relaxed);
    return 1;
}

static int64_t store_find(const store *t, const uint64_t *s)
{
    uint64_t hash = hash_state(s, t->words), at = first_slot(t, hash);
    uint32_t tag = tag_of(t, hash);
    for (;;) {
        uint32_t slot = atomic_load_explicit(&t->slots[at], memory_order_acquire);
        if (!slot) return -1;
        if (same_tag(t, slot, tag) && equal(state_at(t, number_in(t, slot)), s, t->words)) return number_in(t, slot);
        at = next_slot(t, at);
    }
}

// Enter states that were in the table when it was smaller, none of them twice.
static void store_enter(store *t, int64_t from, int64_t to)
{
    enum { AHEAD = 16 };
    uint64_t hashes[AHEAD];
    while (from < to) {
        int many = to - from < AHEAD ? (int)(to - from) : AHEAD;
        for (int i = 0; i < many; i++) {
            hashes[i] = hash_state(state_at(t, from + i), t->words);
            __builtin_prefetch((const void *)&t->slots[first_slot(t, hashes[i])], 1);
        }
        for (int i = 0; i < many; i++) {
            if ((t->parents[from + i] & ~BAD) == HOLE) continue;
            uint32_t entry = tag_of(t, hashes[i]) | (uint32_t)(from + i + 1);
            uint64_t at = first_slot(t, hashes[i]);
            uint32_t seen;
            while ((seen = atomic_load_explicit(&t->slots[at], memory_order_relaxed)) || !put_entry(t, at, &seen, entry))
                at = next_slot(t, at);
        }
        from += many;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Breadth-first search, a level at a time, by one or more workers.

#define BATCH 64

typedef struct {
    uint64_t hash, affects;
    uint32_t parent;
    uint64_t state[];
} pending;

typedef struct search search;

typedef struct {
    _Alignas(LINE) search *g;
    int32_t *regs, *spec_regs;
    uint64_t reached[4];
    int64_t transitions;
    int64_t place, place_end; // its places in the arena, not used yet
    char *queue;
    size_t stride;            // bytes of a pending state: as few as the state has, so that the batch stays in the cache
    int queued;
    pthread_t thread;
} worker;

struct search {
    store t;
    const program *p;
    const options *o;
    int64_t level_begin, level_end, share;
    int judged; // there is something to judge a state by
    _Alignas(LINE) _Atomic int64_t cursor;
    _Alignas(LINE) int entering; // what the workers do: enter states into a larger table, or expand a level
    _Atomic int full, local_loop, cyclic;
    pthread_mutex_t lock;
    int32_t worst;         // rank of the worst violation of the first level that has one, or -1
    int64_t worst_state;   // where it was found
    int32_t worst_thread;  // the step that broke it (-1: the state itself)
    choices worst_choices;
    int count;
    int64_t left[MAX_WORKERS]; // shares of the level that were not begun because the table ran full
    int left_count;
    int worst_new;         // the first violation is of this level: a smaller number may replace it
    worker *workers;
    pthread_barrier_t barrier;
    int quit;
};

static void report(search *g, int32_t rank, int64_t state, int32_t thread, const choices *c)
{
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

// The number of the first invariant (or, at the end, final condition) that a state breaks, or R_OK.
static int32_t broken(const program *p, uint64_t *s, int32_t *spec_regs, uint64_t affects, uint64_t *reached)
{
    choices none = {.count = 0, .given = 0};
    for (int i = 0; i < p->invariants; i++)
        if (affects >> (i & 63) & 1) {
            int32_t r = execute(p, p->spec_entry[i], s, spec_regs + i * p->reg_count, &none, reached);
            if (r != R_OK) return r;
        }
    if (p->finals) {
        for (int t = 0; t < p->threads; t++)
            if (pc_of(p, s, t) != p->pc_end[t]) return R_OK;
        for (int i = p->invariants; i < p->invariants + p->finals; i++) {
            int32_t r = execute(p, p->spec_entry[i], s, spec_regs + i * p->reg_count, &none, reached);
            if (r != R_OK) return r;
        }
    }
    return R_OK;
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
    // A share with more successors than slack() left room for ends the search: without an empty slot a probe has no end.
    if (w->place < t->capacity && w->place + SHARE < (int64_t)t->slot_count) return w->place++;
    atomic_store(&w->g->full, 1);
    return -1;
}

static void insert(worker *w, pending *e)
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
                if (mine < 0) return;
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
                return;
            }
        }
        if (same_tag(t, slot, tag) && equal(state_at(t, number_in(t, slot)), e->state, t->words)) {
            if (mine >= 0) w->place--; // it lost a race: the next new state has the place
            if (number_in(t, slot) < g->level_end && !atomic_load_explicit(&g->cyclic, memory_order_relaxed))
                atomic_store_explicit(&g->cyclic, 1, memory_order_relaxed);
            return;
        }
        at = next_slot(t, at);
    }
}

static void flush(worker *w)
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
    for (int i = 0; i < w->queued; i++) insert(w, queued_at(w, i));
    w->queued = 0;
}

// The first thread that may move alone: makes the step on `s`. Returns R_BLOCKED if there is none.
static int32_t move_alone(worker *w, uint64_t *s)
{
    const program *p = w->g->p;
    for (int t = 0; t < p->threads; t++) {
        int32_t pc = pc_of(p, s, t);
        if (pc == p->pc_end[t]) continue;
        const int32_t *alone = p->alone + (t * p->max_pc + pc) * p->threads;
        int fine = alone[t] >= 0;
        for (int u = 0; fine && u < p->threads; u++) {
            int32_t at = pc_of(p, s, u);
            if (u != t) fine = p->rows[alone[u] * p->row_words + (at >> 6)] >> (at & 63) & 1;
        }
        if (!fine) continue;
        uint64_t before[MAX_WORDS];
        copy(before, s, p->words);
        choices none = {.count = 0, .given = 0};
        int32_t r = execute(p, step_at(p, t, pc), s, w->regs + t * p->reg_count, &none, w->reached);
        if (r != R_BLOCKED) return r;
        copy(s, before, p->words);
    }
    return R_BLOCKED;
}

static int compare(const uint32_t *a, const uint32_t *b, int count)
{
    for (int i = 0; i < count; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

// The representative of the states that differ only in which of some alike threads stands where.
static void canonical(const program *p, uint64_t *s)
{
    const int32_t *at = p->alike;
    for (int groups = *at++; groups; groups--) {
        int threads = *at++, fields = *at++;
        uint32_t values[MAX_THREADS][MAX_FIELDS], *order[MAX_THREADS];
        const int32_t *place = at;
        int sorted = 1;
        for (int t = 0; t < threads; t++) {
            for (int f = 0; f < fields; f++, place += 3)
                values[t][f] = (uint32_t)(s[place[0]] >> place[1]) & (uint32_t)place[2];
            int to = t;
            for (; to && compare(values[t], order[to - 1], fields) < 0; to--) order[to] = order[to - 1];
            order[to] = values[t];
            sorted &= to == t;
        }
        place = at;
        at += threads * fields * 3;
        if (sorted) continue;
        for (int t = 0; t < threads; t++)
            for (int f = 0; f < fields; f++, place += 3)
                s[place[0]] = (s[place[0]] & ~((uint64_t)(uint32_t)place[2] << place[1])) | (uint64_t)order[t][f] << place[1];
    }
}

// A new state, or (in a reduced search) the state where the interleaving next matters.
static void enqueue(worker *w, int64_t number, int t, uint64_t affects)
{
    search *g = w->g;
    const program *p = g->p;
    pending *e = queued_at(w, w->queued);
    // A broken state is stored as it is. What moves alone breaks no invariant, and a final state moves no more.
    if (p->alone && p->chains && broken(p, e->state, w->spec_regs, affects, w->reached) == R_OK)
        for (int32_t r; (r = move_alone(w, e->state)) != R_BLOCKED;) {
            w->transitions++;
            if (r == R_OK) continue;
            report(g, r, number, t, 0);
            return;
        }
    if (p->alike) canonical(p, e->state);
    e->hash = hash_state(e->state, p->words);
    e->affects = affects;
    e->parent = (uint32_t)number;
    __builtin_prefetch((const void *)&g->t.slots[first_slot(&g->t, e->hash)]);
    if (++w->queued == BATCH) flush(w);
}

static void expand(worker *w, int64_t number)
{
    search *g = w->g;
    const program *p = g->p;
    const uint64_t *from = state_at(&g->t, number);
    int moved = 0, ended = 1;
    if (p->alone) {
        pending *e = queued_at(w, w->queued);
        copy(e->state, from, p->words);
        int32_t r = move_alone(w, e->state);
        if (r != R_BLOCKED) {
            w->transitions++;
            if (r == R_OK) enqueue(w, number, 0, 0);
            else report(g, r, number, 0, 0);
            return;
        }
    }
    for (int t = 0; t < p->threads; t++) {
        int32_t pc = pc_of(p, from, t);
        if (pc == p->pc_end[t]) continue;
        ended = 0;
        const ins *code = step_at(p, t, pc);
        choices c = {.count = 0, .given = 0};
        do {
            pending *e = queued_at(w, w->queued);
            copy(e->state, from, p->words);
            int32_t r = execute(p, code, e->state, w->regs + t * p->reg_count, &c, w->reached);
            if (r == R_BLOCKED) break;
            if (r == R_LOCAL) {
                atomic_store(&g->local_loop, 1);
                return;
            }
            moved = 1;
            w->transitions++;
            if (r != R_OK) {
                report(g, r, number, t, &c);
                continue;
            }
            enqueue(w, number, t, p->affects[t * p->max_pc + pc]);
        } while (next_choice(&c));
    }
    if (!moved && !ended) report(g, p->failures + 2, number, -2, 0);
}

static void expand_range(worker *w, int64_t from, int64_t to)
{
    search *g = w->g;
    if (to > g->level_end) to = g->level_end;
    for (int64_t n = from; n < to; n++)
        if (!(g->t.parents[n] & BAD) && (g->t.parents[n] != HOLE || n == 0)) expand(w, n);
}

// How many states the table still takes: what is asked for before a share of a level is begun.
static int64_t slack(const search *g)
{
    return SHARE * g->p->threads * 8;
}

static void work_level(worker *w)
{
    search *g = w->g;
    for (;;) {
        // Asked before a share is taken: what is taken is expanded or left for later, never dropped.
        if (atomic_load_explicit(&g->full, memory_order_relaxed)) break;
        if (atomic_load_explicit(&stop_requested, memory_order_relaxed)) break;
        int64_t from = atomic_fetch_add(&g->cursor, SHARE), to = from + SHARE;
        if (from >= g->level_end) break;
        // A table that runs full in the middle of a level is grown by the leader; this worker stops before.
        if (atomic_load_explicit(&g->t.count, memory_order_relaxed) + slack(g) * g->count >
            (int64_t)(g->t.slot_count / 16 * 15)) {
            pthread_mutex_lock(&g->lock);
            g->left[g->left_count++] = from;
            pthread_mutex_unlock(&g->lock);
            int not_full = 0; // a full arena stays what is said: nothing can be grown then
            atomic_compare_exchange_strong(&g->full, &not_full, 2);
            break;
        }
        expand_range(w, from, to);
    }
    flush(w);
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
        pthread_barrier_wait(&w->g->barrier);
        if (w->g->quit) return 0;
        work(w);
        pthread_barrier_wait(&w->g->barrier);
    }
}

// Everybody's work, or the leader's alone: little is not worth waking anybody for.
static void work_together(search *g, int64_t size)
{
    int waking = g->count > 1 && size > 2048;
    if (waking) pthread_barrier_wait(&g->barrier);
    work(&g->workers[0]);
    if (waking) pthread_barrier_wait(&g->barrier);
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
    store *t = &g->t;
    uint64_t need = (uint64_t)(atomic_load(&t->count) + more) / 4 * 5 + 16;
    if (need <= t->slot_count) return 1;
    uint64_t count = t->slot_count / 2 * 3;
    if (count < need) count = need;
    _Atomic uint32_t *fresh = slots_new(count);
    if (!fresh) return 0;
    slots_free(t->slots, t->slot_count);
    t->slots = fresh;
    t->slot_count = count;
    t->number_bits = bits_for(count);
    int64_t level_end = g->level_end, cursor = atomic_load(&g->cursor);
    g->entering = 1;
    g->level_end = atomic_load(&t->count);
    atomic_store(&g->cursor, 0);
    work_together(g, g->level_end);
    g->entering = 0;
    g->level_end = level_end;
    atomic_store(&g->cursor, cursor);
    return 1;
}

static int push_move(result *out, int64_t *room, int32_t thread, const choices *c)
{
    int64_t need = out->moves_length + 2 + c->count;
    if (need > *room) {
        *room = need * 2 + 64;
        int32_t *more = realloc(out->moves, (size_t)*room * 4);
        if (!more) return 0;
        out->moves = more;
    }
    out->moves[out->moves_length++] = thread;
    out->moves[out->moves_length++] = c->count;
    for (int i = 0; i < c->count; i++) out->moves[out->moves_length++] = c->taken[i];
    return 1;
}

// The step from one state to another: thread and choices. 0 if there is none.
static int find_move(const program *p, const uint64_t *from, const uint64_t *to, int32_t *regs, int32_t *thread, choices *c)
{
    uint64_t reached[4] = {0}, s[MAX_WORDS];
    for (int t = 0; t < p->threads; t++) {
        int32_t pc = pc_of(p, from, t);
        if (pc == p->pc_end[t]) continue;
        c->count = c->given = 0;
        do {
            copy(s, from, p->words);
            int32_t r = execute(p, step_at(p, t, pc), s, regs + t * p->reg_count, c, reached);
            if (r == R_BLOCKED) break;
            if (r == R_OK && equal(s, to, p->words)) {
                *thread = t;
                return 1;
            }
        } while (next_choice(c));
    }
    return 0;
}

static int push_path(search *g, result *out, int64_t *room, int64_t number, int32_t *regs)
{
    int64_t length = 0;
    for (int64_t n = number; n > 0; n = g->t.parents[n] & ~BAD) length++;
    int64_t *path = malloc((size_t)(length + 1) * sizeof *path);
    if (!path) return 0;
    int64_t at = length;
    for (int64_t n = number; n > 0; n = g->t.parents[n] & ~BAD) path[at--] = n;
    path[0] = 0;
    int ok = 1;
    for (int64_t i = 0; ok && i < length; i++) {
        int32_t thread;
        choices c;
        ok = find_move(g->p, state_at(&g->t, path[i]), state_at(&g->t, path[i + 1]), regs, &thread, &c) &&
             push_move(out, room, thread, &c);
    }
    free(path);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------------
// Fair cycles: Tarjan's components of the stored graph, edges recomputed.

typedef struct {
    uint32_t *index, *low, *component, *region;
} marks;

typedef struct {
    int64_t state;
    int32_t thread;
    choices c;
    int fresh;
} frame;

// The next edge of a frame: the number of the state it leads to, or -1 when there are no more.
static int64_t next_edge(search *g, frame *f, int32_t *regs)
{
    const program *p = g->p;
    uint64_t reached[4], s[MAX_WORDS];
    while (f->thread < p->threads) {
        int32_t pc = pc_of(p, state_at(&g->t, f->state), f->thread);
        if (pc != p->pc_end[f->thread] && (f->fresh || next_choice(&f->c))) {
            if (f->fresh) f->c.count = f->c.given = 0;
            f->fresh = 0;
            copy(s, state_at(&g->t, f->state), p->words);
            int32_t r = execute(p, step_at(p, f->thread, pc), s, regs + f->thread * p->reg_count, &f->c, reached);
            if (r == R_OK) return store_find(&g->t, s);
            if (r != R_BLOCKED) continue;
        }
        f->thread++;
        f->fresh = 1;
    }
    return -1;
}

static int enabled(search *g, int64_t number, int t, int32_t *regs)
{
    const program *p = g->p;
    uint64_t reached[4], s[MAX_WORDS];
    int32_t pc = pc_of(p, state_at(&g->t, number), t);
    if (pc == p->pc_end[t]) return 0;
    choices c = {.count = 0, .given = 0};
    copy(s, state_at(&g->t, number), p->words);
    return execute(p, step_at(p, t, pc), s, regs + t * p->reg_count, &c, reached) != R_BLOCKED;
}

// Append a walk inside a component: from `at` to an edge of thread `mover` (or, mover -1, to `goal`). Returns its end.
static int64_t walk(search *g, result *made, int64_t *room, const marks *m, int64_t at, int mover, int64_t goal,
                    int32_t *regs)
{
    int64_t count = atomic_load(&g->t.count), head = 0, tail = 0, found_from = -1, found = -1;
    int64_t *queue = malloc((size_t)count * sizeof *queue);
    int64_t *from = malloc((size_t)count * sizeof *from);
    if (!queue || !from) goto out;
    memset(from, 0xff, (size_t)count * sizeof *from);
    queue[tail++] = at;
    from[at] = at;
    while (head < tail && found < 0) {
        int64_t n = queue[head++];
        frame f = {.state = n, .fresh = 1};
        int64_t to;
        while (found < 0 && (to = next_edge(g, &f, regs)) >= 0) {
            if (m->component[to] != m->component[at]) continue;
            if (mover >= 0 ? f.thread == mover : to == goal) {
                found = to;
                found_from = n;
            } else if (from[to] < 0) {
                from[to] = n;
                queue[tail++] = to;
            }
        }
    }
    if (found >= 0) {
        int64_t length = 0;
        for (int64_t n = found_from; n != at; n = from[n]) queue[length++] = n;
        int64_t here = at;
        for (int64_t i = length - 1; i >= -1; i--) {
            int64_t to = i >= 0 ? queue[i] : found;
            int32_t thread = mover;
            choices c;
            uint64_t s[MAX_WORDS], reached[4];
            int done = 0;
            if (i < 0 && mover >= 0) {
                c.count = c.given = 0;
                int32_t pc = pc_of(g->p, state_at(&g->t, here), mover);
                do {
                    copy(s, state_at(&g->t, here), g->p->words);
                    int32_t r = execute(g->p, step_at(g->p, mover, pc), s, regs + mover * g->p->reg_count, &c,
                                        reached);
                    done = r == R_OK && equal(s, state_at(&g->t, to), g->p->words);
                } while (!done && next_choice(&c));
            }
            if (!done) find_move(g->p, state_at(&g->t, here), state_at(&g->t, to), regs, &thread, &c);
            if (!push_move(made, room, thread, &c)) {
                found = -1;
                break;
            }
            here = to;
        }
    }
out:
    free(queue);
    free(from);
    return found;
}

// The threads that move in a component, and those that never do although they could somewhere in it.
static uint32_t left_out(search *g, const int64_t *members, int64_t size, const marks *m, int32_t *regs, uint32_t *movers)
{
    *movers = 0;
    for (int64_t i = 0; i < size; i++) {
        frame f = {.state = members[i], .fresh = 1};
        int64_t to;
        while ((to = next_edge(g, &f, regs)) >= 0)
            if (m->component[to] == m->component[members[i]]) *movers |= 1u << f.thread;
    }
    uint32_t out = 0;
    for (int64_t i = 0; *movers && i < size; i++)
        for (int t = 0; t < g->p->threads; t++)
            if (!((*movers | out) >> t & 1) && enabled(g, members[i], t, regs)) out |= 1u << t;
    return out;
}

// Write the way to a component, and once around in it. 0: no memory.
static int push_lasso(search *g, result *out, int64_t *room, const int64_t *members, int64_t size, const marks *m,
                      uint32_t movers, int32_t *regs)
{
    int64_t start = members[0];
    for (int64_t i = 0; i < size; i++)
        if (members[i] < start) start = members[i];
    if (!push_path(g, out, room, start, regs)) return 0;
    int64_t steps = 0;
    for (int64_t i = 0; i < out->moves_length; i += 2 + out->moves[i + 1]) steps++;
    out->lasso = steps;
    int64_t here = start;
    for (int t = 0; t < g->p->threads && here >= 0; t++)
        if (movers >> t & 1) here = walk(g, out, room, m, here, t, -1, regs);
    if (here >= 0 && here != start) here = walk(g, out, room, m, here, -1, start, regs);
    return here >= 0;
}

// 1: a fair cycle was found and written to `out`; 0: none; -1: no memory. See explore.fair_cycle: a component that leaves
// somebody out is looked at again without the states in which he could move; those that stay make a region of their own.
static int fair_cycle(search *g, result *out, int64_t *room, int32_t *regs)
{
    int64_t count = atomic_load(&g->t.count);
    marks m = {calloc((size_t)count, 4), calloc((size_t)count, 4), calloc((size_t)count, 4), calloc((size_t)count, 4)};
    int64_t *stack = malloc((size_t)count * sizeof *stack), *again = malloc((size_t)count * sizeof *again);
    size_t frames_room = 1024;
    frame *frames = malloc(frames_room * sizeof *frames);
    int found = -1;
    if (!m.index || !m.low || !m.component || !m.region || !stack || !again || !frames) goto out;
    found = 0;
    uint32_t clock = 0, components = 0, regions = 0;
    int64_t height = 0, again_count = 0, next = 0;
    while (!found && (again_count || next < count)) {
        int64_t root = again_count ? again[--again_count] : next++;
        if (m.index[root] || (g->t.parents[root] == HOLE && root) || g->t.parents[root] & BAD) continue;
        size_t depth = 0;
        frames[depth++] = (frame){.state = root, .fresh = 1};
        m.index[root] = m.low[root] = ++clock;
        stack[height++] = root;
        while (depth && !found) {
            frame *f = &frames[depth - 1];
            int64_t to = next_edge(g, f, regs);
            if (to >= 0) {
                if ((g->t.parents[to] & BAD && to) || m.region[to] != m.region[f->state]) continue;
                if (!m.index[to]) {
                    m.index[to] = m.low[to] = ++clock;
                    stack[height++] = to;
                    if (depth == frames_room) {
                        frame *more = realloc(frames, (frames_room *= 2) * sizeof *frames);
                        if (!more) { found = -1; goto out; }
                        frames = more;
                    }
                    frames[depth++] = (frame){.state = to, .fresh = 1};
                } else if (!m.component[to] && m.index[to] < m.low[f->state])
                    m.low[f->state] = m.index[to];
                continue;
            }
            int64_t state = f->state;
            depth--;
            if (depth && m.low[state] < m.low[frames[depth - 1].state]) m.low[frames[depth - 1].state] = m.low[state];
            if (m.low[state] != m.index[state]) continue;
            components++;
            int64_t bottom = height;
            do m.component[stack[--bottom]] = components;
            while (stack[bottom] != state);
            uint32_t movers, out_of_it = left_out(g, stack + bottom, height - bottom, &m, regs, &movers);
            if (movers && !out_of_it)
                found = push_lasso(g, out, room, stack + bottom, height - bottom, &m, movers, regs) ? 1 : -1;
            else if (movers) {
                regions++;
                for (int64_t i = bottom; i < height; i++) {
                    int could = 0;
                    for (int t = 0; t < g->p->threads && !could; t++)
                        could = out_of_it >> t & 1 && enabled(g, stack[i], t, regs);
                    if (could) continue;
                    m.region[stack[i]] = regions;
                    m.index[stack[i]] = m.low[stack[i]] = m.component[stack[i]] = 0;
                    again[again_count++] = stack[i];
                }
            }
            height = bottom;
        }
    }
out:
    free(m.index);
    free(m.low);
    free(m.component);
    free(m.region);
    free(stack);
    free(again);
    free(frames);
    return found;
}

// ---------------------------------------------------------------------------------------------------------------------

static int32_t *copy_regs(const int32_t *from, int rows, int columns)
{
    size_t bytes = (size_t)rows * (size_t)columns * 4;
    int32_t *to = aligned_alloc(LINE, (bytes / LINE + 1) * LINE);
    if (to) memcpy(to, from, bytes);
    return to;
}

EXPORT void uf_stop(int stop) { atomic_store(&stop_requested, stop); }
EXPORT int64_t uf_progress(void) { return atomic_load(&progress_states); }
EXPORT void uf_free(void *made) { free(made); }

// The final states among those stored. 0 if there is no memory for them.
static int collect_ends(const search *g, result *out)
{
    const program *p = g->p;
    int64_t total = atomic_load(&g->t.count), room = 0;
    for (int64_t n = 0; n < total; n++) {
        if ((g->t.parents[n] & BAD) || (g->t.parents[n] == HOLE && n)) continue;
        const uint64_t *s = state_at(&g->t, n);
        int ended = 1;
        for (int t = 0; t < p->threads; t++) ended &= pc_of(p, s, t) == p->pc_end[t];
        if (!ended) continue;
        if (out->ends_count == room) {
            uint64_t *more = realloc(out->ends, (size_t)(room = room * 2 + 64) * (size_t)p->words * 8);
            if (!more) return 0;
            out->ends = more;
        }
        copy(out->ends + out->ends_count++ * p->words, s, p->words);
    }
    return 1;
}

EXPORT int uf_explore(const program *p, const options *o, result *out)
{
    memset(out, 0, sizeof *out);
    out->lasso = -1;
    search g = {.p = p, .o = o, .worst = -1, .lock = PTHREAD_MUTEX_INITIALIZER};
    int64_t room = 0;
    int count = o->workers < 1 ? 1 : o->workers > MAX_WORKERS ? MAX_WORKERS : o->workers;
    out->verdict = 5;
    g.count = count;
    if (!store_open(&g.t, p, o)) goto done;
    g.t.shared = count > 1;
    g.judged = p->invariants || p->finals;
    g.workers = aligned_alloc(LINE, (size_t)count * sizeof *g.workers);
    if (!g.workers) goto done;
    memset(g.workers, 0, (size_t)count * sizeof *g.workers);
    for (int i = 0; i < count; i++) {
        worker *w = &g.workers[i];
        w->g = &g;
        w->regs = copy_regs(p->regs, p->threads, p->reg_count);
        w->spec_regs = copy_regs(p->spec_regs, p->invariants + p->finals, p->reg_count);
        w->stride = sizeof(pending) + 8 * (size_t)p->words;
        w->queue = aligned_alloc(LINE, (BATCH * w->stride / LINE + 1) * LINE);
        if (!w->regs || !w->spec_regs || !w->queue) goto done;
    }
    copy(state_at(&g.t, 0), p->initial, p->words);
    g.t.parents[0] = 0;
    atomic_store(&g.t.count, 1);
    store_enter(&g.t, 0, 1);
    uint64_t initial[MAX_WORDS];
    copy(initial, p->initial, p->words);
    int32_t r = broken(p, initial, g.workers[0].spec_regs, ~0ull, g.workers[0].reached);
    if (r != R_OK) {
        report(&g, r, 0, -1, 0);
        g.worst_new = 0;
    }
    // Where fewer threads can be had, the search makes do with them; they wait until it is known how many they are.
    pthread_mutex_lock(&g.lock);
    g.count = 1;
    while (g.count < count && !pthread_create(&g.workers[g.count].thread, 0, worker_main, &g.workers[g.count])) g.count++;
    pthread_barrier_init(&g.barrier, 0, (unsigned)g.count);
    pthread_mutex_unlock(&g.lock);
    int bound = 0, stopped = 0, memory = 0;
    g.level_end = 1;
    while (g.level_begin < g.level_end && (g.worst < 0 || o->keep_going) && !bound && !stopped && !memory) {
        atomic_store(&g.cursor, g.level_begin);
        for (;;) {
            int64_t level = g.level_end - atomic_load(&g.cursor);
            if (level < 0) level = 0;
            if (!grow(&g, level + (slack(&g) * 2 + SHARE) * g.count)) { memory = 1; break; }
            atomic_store(&g.full, 0);
            g.share = g.count > 1 && level > 2048 ? SHARE : 1;
            while (g.left_count) {
                int64_t from = g.left[--g.left_count];
                expand_range(&g.workers[0], from, from + SHARE);
            }
            work_together(&g, level);
            return_places(&g);
            if (atomic_load(&g.full) != 2) break;
        }
        g.worst_new = 0;
        stopped = atomic_load(&stop_requested);
        int64_t total = atomic_load(&g.t.count);
        bound = atomic_load(&g.full) == 1 || total - g.t.holes > o->max_states;
        if (atomic_load(&g.local_loop)) break;
        g.level_begin = g.level_end;
        g.level_end = total;
        atomic_store(&progress_states, total);
    }
    g.quit = 1;
    pthread_barrier_wait(&g.barrier);
    for (int i = 1; i < g.count; i++) pthread_join(g.workers[i].thread, 0);
    pthread_barrier_destroy(&g.barrier);
    for (int i = 0; i < count; i++) {
        out->transitions += g.workers[i].transitions;
        for (int j = 0; j < 4; j++) out->reached[j] |= g.workers[i].reached[j];
    }
    int64_t total = atomic_load(&g.t.count);
    out->states = total - g.t.holes;
    out->bytes = total * (8 * p->words + 4) + (int64_t)g.t.slot_count * 4;
    out->cyclic = atomic_load(&g.cyclic);
    int32_t *regs = g.workers[0].regs;
    if (o->collect && !collect_ends(&g, out)) memory = 1;
    if (atomic_load(&g.local_loop)) out->verdict = 3;
    else if (memory) out->verdict = 5;
    else if (g.worst >= 0) {
        out->verdict = 1;
        out->failure = g.worst;
        if (!p->alone && !(push_path(&g, out, &room, g.worst_state, regs) &&
                           (g.worst_thread < 0 || push_move(out, &room, g.worst_thread, &g.worst_choices))))
            out->verdict = 5;
    } else if (stopped) out->verdict = 4;
    else if (bound) out->verdict = 2;
    else {
        out->verdict = 0;
        if (o->liveness && !p->alone && atomic_load(&g.cyclic)) {
            int cycle = fair_cycle(&g, out, &room, regs);
            if (cycle == 1) {
                out->verdict = 1;
                out->failure = p->failures + 3;
            } else if (cycle < 0)
                out->verdict = 5;
        }
    }
done:
    if (g.workers)
        for (int i = 0; i < count; i++) {
            free(g.workers[i].regs);
            free(g.workers[i].spec_regs);
            free(g.workers[i].queue);
        }
    free(g.workers);
    pthread_mutex_destroy(&g.lock);
    store_close(&g.t);
    return out->verdict != 5;
}

// ---------------------------------------------------------------------------------------------------------------------
// The schedule with the fewest context switches, then the fewest steps: Dijkstra over (state, thread that moved last).

typedef struct {
    uint32_t parent, next;
    int32_t last;
} record;

typedef struct {
    uint32_t *head; // by steps: the first record, +1
    size_t room;
} buckets;

static int bucket_push(buckets *b, size_t steps, record *records, uint32_t number)
{
    if (steps >= b->room) {
        size_t room = steps * 2 + 64;
        uint32_t *more = realloc(b->head, room * 4);
        if (!more) return 0;
        memset(more + b->room, 0, (room - b->room) * 4);
        b->head = more;
        b->room = room;
    }
    records[number].next = b->head[steps];
    b->head[steps] = number + 1;
    return 1;
}

EXPORT int uf_fewest(const program *p, const options *o, int32_t target, result *out)
{
    memset(out, 0, sizeof *out);
    out->lasso = -1;
    int words = p->words, key = words + 1; // the last word is the thread that moved last
    int64_t room = 0, capacity = o->max_states + 1024;
    if (capacity > o->max_bytes / (8 * key + 24)) capacity = o->max_bytes / (8 * key + 24);
    if (capacity > 0x7ffffff0) capacity = 0x7ffffff0;
    uint64_t size = 1 << 12;
    uint64_t *states = reserve((size_t)capacity * 8 * (size_t)key, HUGE);
    record *records = reserve((size_t)capacity * sizeof *records, HUGE);
    uint32_t *slots = calloc(size, 4);
    int32_t *regs = copy_regs(p->regs, p->threads, p->reg_count);
    int32_t *spec_regs = copy_regs(p->spec_regs, p->invariants + p->finals, p->reg_count);
    buckets now = {0}, later = {0};
    uint64_t reached[4];
    int64_t count = 0, done = 0, goal = -1;
    int32_t goal_thread = -1;
    choices goal_choices = {.count = 0};
    out->verdict = 5;
    if (!states || !records || !slots || !regs || !spec_regs) goto out;
    copy(states, p->initial, words);
    states[words] = (uint64_t)p->threads;
    records[0] = (record){.parent = 0, .last = p->threads};
    count = 1;
    if (!bucket_push(&now, 0, records, 0)) goto out;
    out->verdict = 0;
    size_t top = 1;
    while (goal < 0) {
        int any = 0;
        size_t later_top = 0;
        for (size_t steps = 0; steps < top && steps < now.room && goal < 0; steps++) {
            // The records were pushed in front; taking them in the order of pushing keeps the search breadth-first.
            uint32_t list = 0;
            while (now.head[steps]) {
                uint32_t n = now.head[steps] - 1;
                now.head[steps] = records[n].next;
                records[n].next = list;
                list = n + 1;
            }
            while (list && goal < 0) {
                uint32_t n = list - 1;
                list = records[n].next;
                uint64_t *from = states + (size_t)n * (size_t)key;
                if ((uint64_t)(done + 1) * 3 > size * 2) {
                    uint64_t bigger = size * 2;
                    uint32_t *fresh = calloc(bigger, 4);
                    if (!fresh) { out->verdict = 5; goto out; }
                    for (uint64_t i = 0; i < size; i++)
                        if (slots[i]) {
                            uint64_t at = hash_state(states + (size_t)(slots[i] - 1) * (size_t)key, key) & (bigger - 1);
                            while (fresh[at]) at = (at + 1) & (bigger - 1);
                            fresh[at] = slots[i];
                        }
                    free(slots);
                    slots = fresh;
                    size = bigger;
                }
                uint64_t at = hash_state(from, key) & (size - 1);
                int seen = 0;
                while (slots[at] && !seen) {
                    seen = equal(states + (size_t)(slots[at] - 1) * (size_t)key, from, key);
                    if (!seen) at = (at + 1) & (size - 1);
                }
                if (seen) continue;
                slots[at] = n + 1;
                done++;
                any = 1;
                if (atomic_load_explicit(&stop_requested, memory_order_relaxed)) { out->verdict = 4; goto out; }
                int last = records[n].last, moved = 0, ended = 1;
                int free_switch = last == p->threads || pc_of(p, from, last) == p->pc_end[last];
                for (int t = 0; t < p->threads && goal < 0; t++) {
                    int32_t pc = pc_of(p, from, t);
                    if (pc == p->pc_end[t]) continue;
                    ended = 0;
                    choices c = {.count = 0, .given = 0};
                    do {
                        if (count >= capacity) { out->verdict = 2; goto out; }
                        uint64_t *to = states + (size_t)count * (size_t)key;
                        copy(to, from, words);
                        int32_t r = execute(p, step_at(p, t, pc), to, regs + t * p->reg_count, &c, reached);
                        if (r == R_BLOCKED) break;
                        if (r == R_LOCAL) { out->verdict = 3; goto out; }
                        moved = 1;
                        if (r == R_OK) r = broken(p, to, spec_regs, p->affects[t * p->max_pc + pc], reached);
                        if (r == target) {
                            goal = n;
                            goal_thread = t;
                            goal_choices = c;
                            break;
                        }
                        if (r != R_OK) continue;
                        to[words] = (uint64_t)t;
                        records[count] = (record){.parent = n, .last = t};
                        int same = free_switch || t == last;
                        if (!bucket_push(same ? &now : &later, steps + 1, records, (uint32_t)count)) {
                            out->verdict = 5;
                            goto out;
                        }
                        if (same && steps + 2 > top) top = steps + 2;
                        if (!same && steps + 2 > later_top) later_top = steps + 2;
                        count++;
                    } while (next_choice(&c));
                }
                if (goal < 0 && !moved && !ended && target == p->failures + 2) goal = n;
            }
        }
        if (goal >= 0) break;
        if (!any && !later_top) break;
        buckets swap = now;
        now = later;
        later = swap;
        memset(later.head, 0, later.room * 4);
        top = later_top;
        if (!top) break;
    }
    if (goal >= 0) {
        out->verdict = 1;
        int64_t length = 0;
        for (int64_t n = goal; n > 0; n = records[n].parent) length++;
        int64_t *path = malloc((size_t)(length + 1) * sizeof *path);
        if (!path) { out->verdict = 5; goto out; }
        int64_t at = length;
        for (int64_t n = goal; n > 0; n = records[n].parent) path[at--] = n;
        path[0] = 0;
        for (int64_t i = 0; i < length; i++) {
            const uint64_t *from = states + (size_t)path[i] * (size_t)key, *to = states + (size_t)path[i + 1] * (size_t)key;
            int t = records[path[i + 1]].last;
            choices c = {.count = 0, .given = 0};
            uint64_t s[MAX_WORDS];
            int32_t pc = pc_of(p, from, t);
            do {
                copy(s, from, words);
                int32_t r = execute(p, step_at(p, t, pc), s, regs + t * p->reg_count, &c, reached);
                if (r == R_OK && equal(s, to, words)) break;
            } while (next_choice(&c));
            push_move(out, &room, t, &c);
        }
        free(path);
        if (goal_thread >= 0) push_move(out, &room, goal_thread, &goal_choices);
    }
    out->states = done;
out:
    if (states) munmap(states, (size_t)capacity * 8 * (size_t)key);
    if (records) munmap(records, (size_t)capacity * sizeof *records);
    free(slots);
    free(regs);
    free(spec_regs);
    free(now.head);
    free(later.head);
    return out->verdict != 5;
}
