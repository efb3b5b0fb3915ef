// The native engine: breadth-first search, shortest-switch search and fair-cycle search over bit-packed states.
//
// check/native.py lays out the state and calls uf_explore and uf_fewest; explore_encode.c makes each step a run of instructions
// on packed words. The Python engine (check/explore.py) defines what they must return. This file: what the parts have in common.
#pragma once
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "ir.h"

#define EXPORT __attribute__((visibility("default")))
#define MAX_WORDS 256
#define MAX_CHOICES 16
#define MAX_THREADS 16
#define MAX_WORKERS 64
#define MAX_FIELDS 64
#define MAX_SLOTS 64
#define LINE 64 // bytes of a cache line: what one worker writes all the time lies in no line that another one reads
#define HUGE (2u << 20)

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

// The code of a thread, invariant or final condition; the latter two have no steps and no locals that are part of a state.
typedef struct {
    const row *code;
    const cell *locals;     // where those that are part of a state lie
    const int32_t *step_at; // by number: the row that begins the step
    const uint64_t *live;   // of each step: the locals alive, in live_words words
    const uint64_t *frame;  // of each word of a state: the bits of the thread's locals and place
    int32_t count, locals_count, steps, live_words;
} body;

typedef struct {
    int32_t word, shift, mask, value;
} bit_field;

// The slots of pools whose objects are alike (check/pools.py), numbered through all pools.
typedef struct {
    int32_t count;
    const int32_t *first;     // [count + 1] of each pool: its first slot
    const int32_t *pool_of;   // of each slot
    const int32_t *width, *field_at; // of each pool: the fields of a slot; of each slot: where they are in `fields`
    const bit_field *fields;  // value: what it holds in a blank slot
    const int32_t *look_at, *look_word; // of each slot: from where to where it is looked at for being blank; which words
    const uint64_t *look;     // the bits, and what they are in a blank one
    const int32_t *free_at, *free_from; // of each pool: how many fields say that a slot is free; of each slot: where they are in `free`
    const bit_field *free;    // value: what it holds if so
    const int32_t *fixed_at, *fixed_from; // the same of each pool's objects that are no slots: which they are, and where in `fixed`
    const bit_field *fixed;
    const int32_t *site_at;   // runs of references: outside the slots, then in each slot
    const int32_t *frame_at;  // [thread * max_pc + pc] runs of references in locals, up to the next one's
    const int32_t *run_at, *run_word; // a run's references lie in one word
    const uint64_t *run_mask; // in these bits: most of them are 0, and refer to nothing
    const bit_field *sites;   // value: where its words begin in `entry`
    const int32_t *entry, *to; // of each word: -1, or which pair in `to`: the slot, and where in `rows`
    const int32_t *rows;      // the words of such a reference to each slot of the pool
} pools;

// What was seen of each pool: as Mix of check/pools.py.
typedef struct {
    _Atomic uint64_t known, emptied, apart;
} pool_mix;

static inline uint64_t mixed(pool_mix *m) { return atomic_load(&m->apart) | (atomic_load(&m->known) & atomic_load(&m->emptied)); }

struct made;

typedef struct {
    int32_t words, threads, max_pc;
    const ins *_Atomic *entry; // [thread * max_pc + pc] -> the step's code, or null: nobody came here yet
    uint64_t *affects;         // [thread * max_pc + pc] -> which invariants a step may change, once there is code
    const body *bodies;        // threads, invariants, finals
    const int32_t *consts, *table_at;
    uint64_t *seen_by;         // of each invariant: the cells that it reads, in cell_words words
    struct made **made;        // what was encoded
    int32_t *failed;           // set: there was no memory for a step's code
    int32_t cell_words, first_const;
    const int32_t *pc_word, *pc_shift, *pc_mask, *pc_end; // per thread
    const int32_t *regs;       // initial registers of each thread, thread * reg_count
    int32_t reg_count;
    const cell *cells;
    const int32_t *tables;
    const uint64_t *initial;
    int32_t invariants, finals;
    const ins **spec_entry; // invariants, then finals
    const int32_t *spec_regs;  // initial registers of each spec
    int32_t failures;          // number of the first built-in failure: dereference, range, deadlock
    // Persistent sets (check/reduce.py), or null: alone[(thread * max_pc + pc) * threads + other] is the row of `rows` with
    // the places of the other next to which the thread may move alone, or -1 for no place.
    const int32_t *alone;
    const uint64_t *rows;
    int32_t row_words, chains;
    // Groups of threads that may change places: how many; then, for each, the number of threads and of fields, the threads, and
    // the fields (word, shift, mask) of the first thread, of the second, ...
    const int32_t *alike;
    const pools *pools; // or null
} program;

typedef struct {
    int64_t max_states, max_bytes;
    int32_t workers, keep_going, liveness, collect;
} options;

enum { HOLDS, VIOLATED, BOUND, LOCAL_LOOP, STOPPED, NO_MEMORY, MANY_CHOICES, WIDE_VALUE, MIXED };

typedef struct {
    int32_t verdict;
    int32_t failure; // number, or failures + 3 for a livelock
    int64_t states, transitions, bytes;
    int64_t levels, lasso, cyclic;
    uint64_t reached[4];
    int32_t *moves;  // (thread, number of choices, choices...) repeated; free with uf_free
    int64_t moves_length;
    uint64_t *ends;  // with `collect`: the packed final states that break nothing; free with uf_free
    int64_t ends_count;
    int64_t moves_room; // what `moves` was allocated for
    uint64_t mixed;     // pools whose slots were not alike
} result;

extern _Atomic int stop_requested;

static inline void copy(uint64_t *to, const uint64_t *from, int words)
{
    for (int i = 0; i < words; i++) to[i] = from[i];
}

static inline int equal(const uint64_t *a, const uint64_t *b, int words)
{
    for (int i = 0; i < words; i++)
        if (a[i] != b[i]) return 0;
    return 1;
}

static inline uint64_t mix(uint64_t a, uint64_t b)
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

// explore_encode.c
const ins *encode_step(const program *p, int32_t thread, int32_t number); // null: no memory

// explore_step.c
enum { R_OK = -1, R_BLOCKED = -2, R_LOCAL = -3, R_MANY = -4, R_WIDE = -5 }; // what a step returns that breaks nothing; else, the failure's number

// The verdict of a search with a step that can't be executed, or 0.
static inline int cannot(int32_t r) { return r == R_LOCAL ? LOCAL_LOOP : r == R_MANY ? MANY_CHOICES : r == R_WIDE ? WIDE_VALUE : 0; }

typedef struct {
    int32_t taken[MAX_CHOICES], width[MAX_CHOICES];
    int count, given;
} choices;

int32_t execute(const program *p, const ins *code, uint64_t *s, int32_t *regs, choices *c, uint64_t *reached);
const ins *translated(const program *p, int t, int32_t pc);
int32_t broken(const program *p, uint64_t *s, int32_t *spec_regs, uint64_t affects, uint64_t *reached);
int32_t *copy_regs(const int32_t *from, int rows, int columns);

static inline int32_t pc_of(const program *p, const uint64_t *s, int t)
{
    return (int32_t)((s[p->pc_word[t]] >> p->pc_shift[t]) & (uint32_t)p->pc_mask[t]);
}

static inline int all_ended(const program *p, const uint64_t *s)
{
    for (int t = 0; t < p->threads; t++)
        if (pc_of(p, s, t) != p->pc_end[t]) return 0;
    return 1;
}

// The code of a step. It is made when a search first comes to it; jumps in it count from its start.
static inline const ins *step_at(const program *p, int t, int32_t pc)
{
    const ins *_Atomic *entry = &p->entry[t * p->max_pc + pc];
    const ins *code = atomic_load_explicit(entry, memory_order_acquire);
    return __builtin_expect(!code, 0) ? translated(p, t, pc) : code;
}

// The next step of a thread that has not ended.
static inline int32_t step(const program *p, int t, uint64_t *s, int32_t *regs, choices *c, uint64_t *reached)
{
    return execute(p, step_at(p, t, pc_of(p, s, t)), s, regs + t * p->reg_count, c, reached);
}

// The next combination of choices after a step; 0 when all were taken.
static inline int next_choice(choices *c)
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

// explore_reduce.c
int32_t move_alone(const program *p, uint64_t *s, int32_t *regs, uint64_t *reached);
uint64_t taken_slots(const program *p, const uint64_t *s);
void representative(const program *p, uint64_t *s, uint64_t before, pool_mix *m);

// explore_trace.c: 0 where there is no memory
int push_move(result *out, int32_t thread, const choices *c);
int push_step(const program *p, result *out, const uint64_t *from, const uint64_t *to, int t, int32_t *regs);
