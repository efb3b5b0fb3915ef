// The memory of a search; see explore_store.h.
#include "explore_store.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SLOTS_PER_STATE 2 // where the arena is full

// Memory in huge pages from `small` bytes on: a prefetch waits for the walk of the page tables.
void *reserve(size_t bytes, size_t small)
{
    void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return 0;
    if (bytes > small) madvise((char *)at + small, bytes - small, MADV_HUGEPAGE);
    return at;
}

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

// An empty table. 0: no memory.
static int resize(store *t, uint64_t count)
{
    slots_free(t->slots, t->slot_count);
    t->slots = slots_new(count);
    t->slot_count = count;
    t->number_bits = bits_for(count);
    t->limit = (int64_t)(count / 16 * 15);
    if (t->limit > t->capacity) t->limit = t->capacity;
    return t->slots != 0;
}

// Where the arena is full, every worker may hold places that are beyond it.
static size_t arena_places(const store *t)
{
    return (size_t)t->capacity + MAX_WORKERS * SHARE;
}

int store_open(store *t, const program *p, const options *o)
{
    memset(t, 0, sizeof *t);
    t->p = p;
    t->o = o;
    t->words = p->words;
    int64_t per_state = 8 * p->words + 4 + 4 * SLOTS_PER_STATE;
    t->capacity = o->max_states + 65536;
    if (t->capacity > o->max_bytes / per_state) t->capacity = o->max_bytes / per_state;
    if (t->capacity > 0x7ffffff0) t->capacity = 0x7ffffff0;
    // Small searches stay small: no huge page for the beginning of what may never be used.
    t->states = reserve(arena_places(t) * 8 * (size_t)p->words, HUGE);
    t->parents = reserve(arena_places(t) * 4, HUGE);
    return t->states && t->parents && resize(t, 1 << 10);
}

void store_close(store *t)
{
    if (t->states) munmap(t->states, arena_places(t) * 8 * (size_t)t->words);
    if (t->parents) munmap(t->parents, arena_places(t) * 4);
    slots_free(t->slots, t->slot_count);
}

// Make room for `more` insertions. 1: the table is a larger one, empty; 0: there was room, or it is as large as it may be; -1: no memory.
int store_grow(store *t, int64_t more)
{
    uint64_t need = (uint64_t)(atomic_load(&t->count) + more) / 4 * 5 + 16, most = (uint64_t)t->capacity * SLOTS_PER_STATE;
    if (need <= t->slot_count || most <= t->slot_count) return 0;
    uint64_t count = t->slot_count * 2;
    if (count < need) count = need;
    return resize(t, count < most ? count : most) ? 1 : -1;
}

int64_t store_find(const store *t, const uint64_t *s)
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
void store_enter(store *t, int64_t from, int64_t to)
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
            if (t->parents[from + i] == HOLE) continue;
            uint32_t entry = tag_of(t, hashes[i]) | (uint32_t)(from + i + 1);
            uint64_t at = first_slot(t, hashes[i]);
            uint32_t seen;
            while ((seen = atomic_load_explicit(&t->slots[at], memory_order_relaxed)) || !put_entry(t, at, &seen, entry))
                at = next_slot(t, at);
        }
        from += many;
    }
}
