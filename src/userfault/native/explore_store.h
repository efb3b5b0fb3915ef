// The search's memory: an arena of packed states, their parents, and a hash table.
//
// A slot of the table holds the number of a state, +1, in its low bits, and as much of the state's hash as fits above: a probe
// looks at another state's words only if those agree, so the table may be nearly full.
#pragma once
#include "explore.h"

#define BAD 0x80000000u  // parent flag: a state that broke an invariant; it is counted, not expanded
#define HOLE 0x7fffffffu // parent value of a place in the arena that holds no state
#define SHARE 64         // states that a worker expands, and places in the arena that it takes, at a time

typedef struct {
    const program *p;
    const options *o;
    int words, number_bits;
    int64_t capacity, limit;  // states that there are places for; that the table takes before it has to grow
    uint64_t *states;
    uint32_t *parents;
    _Atomic uint32_t *slots;
    uint64_t slot_count;
    int shared;               // by several workers
    int64_t holes;
    _Alignas(LINE) _Atomic int64_t count;
    char rest_of_line[LINE - sizeof(int64_t)];
} store;

void *reserve(size_t bytes, size_t small);
int store_open(store *t, const program *p, const options *o);
void store_close(store *t);
int store_grow(store *t, int64_t more);
int64_t store_find(const store *t, const uint64_t *s);
void store_enter(store *t, int64_t from, int64_t to);

static inline uint64_t *state_at(const store *t, int64_t number)
{
    return t->states + number * t->words;
}

static inline uint64_t first_slot(const store *t, uint64_t hash)
{
    return (uint64_t)(((unsigned __int128)hash * t->slot_count) >> 64);
}

static inline uint64_t next_slot(const store *t, uint64_t at)
{
    return at + 1 == t->slot_count ? 0 : at + 1;
}

// The place is taken from the top of the hash, so the tag is from the bottom.
static inline uint32_t tag_of(const store *t, uint64_t hash)
{
    return (uint32_t)(hash << t->number_bits);
}

static inline int64_t number_in(const store *t, uint32_t slot)
{
    return (int64_t)(slot & ((1u << t->number_bits) - 1)) - 1;
}

static inline int same_tag(const store *t, uint32_t slot, uint32_t tag)
{
    return (slot ^ tag) >> t->number_bits == 0;
}

// A place in the arena with a state that breaks nothing.
static inline int intact(const store *t, int64_t number)
{
    return !(t->parents[number] & BAD) && t->parents[number] != HOLE;
}

// Put an entry where `seen` (0: nothing) was; if somebody else did so first, `seen` is what he put. One worker alone needs no
// locked instruction, which would wait for everything that it has prefetched.
static inline int put_entry(store *t, uint64_t at, uint32_t *seen, uint32_t entry)
{
    if (t->shared)
        return atomic_compare_exchange_strong_explicit(&t->slots[at], seen, entry, memory_order_release, memory_order_acquire);
    atomic_store_explicit(&t->slots[at], entry, memory_order_relaxed);
    return 1;
}

// explore_trace.c, explore_cycles.c
int push_path(const store *t, result *out, int64_t number, int32_t *regs);
int fair_cycle(const store *t, result *out, int32_t *regs);
