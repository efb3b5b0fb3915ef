// The schedule with the fewest context switches, then the fewest steps: Dijkstra over (state, thread that moved last).
#include "explore_store.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct {
    uint32_t parent, next;
    int32_t last;
} record;

typedef struct {
    uint32_t *head; // by steps: the first record, +1
    size_t room, top;
} buckets;

typedef struct {
    const program *p;
    int key;              // words of a state and, in the last one, the thread that moved last
    uint64_t *states;
    record *records;
    int64_t count, capacity;
    uint32_t *slots;      // hash table of the records that were taken up, +1
    uint64_t slot_count;
    int64_t taken;
    buckets now, later;   // with as many switches; with one more
    int32_t *regs, *spec_regs;
    int32_t target;
    int64_t goal;         // the record from which the target is one step away, or -1
    int32_t goal_thread;
    choices goal_choices;
} fewest;

static uint64_t *key_at(const fewest *f, int64_t number)
{
    return f->states + number * f->key;
}

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
    if (steps >= b->top) b->top = steps + 1;
    return 1;
}

// The records of a bucket in the order in which they were pushed: that keeps the search breadth-first.
static uint32_t bucket_take(buckets *b, size_t steps, record *records)
{
    uint32_t list = 0;
    while (b->head[steps]) {
        uint32_t n = b->head[steps] - 1;
        b->head[steps] = records[n].next;
        records[n].next = list;
        list = n + 1;
    }
    return list;
}

static uint64_t slot_of(const fewest *f, uint32_t number)
{
    const uint64_t *key = key_at(f, number);
    uint64_t at = hash_state(key, f->key) & (f->slot_count - 1);
    while (f->slots[at] && !equal(key_at(f, f->slots[at] - 1), key, f->key)) at = (at + 1) & (f->slot_count - 1);
    return at;
}

// 1: the record is the first with its key, and is in the table now; 0: it is not; -1: no memory.
static int take_up(fewest *f, uint32_t number)
{
    if ((uint64_t)(f->taken + 1) * 3 > f->slot_count * 2) {
        uint32_t *old = f->slots, *fresh = calloc(f->slot_count * 2, 4);
        if (!fresh) return -1;
        f->slots = fresh;
        f->slot_count *= 2;
        for (uint64_t i = 0; i < f->slot_count / 2; i++)
            if (old[i]) f->slots[slot_of(f, old[i] - 1)] = old[i];
        free(old);
    }
    uint64_t at = slot_of(f, number);
    if (f->slots[at]) return 0;
    f->slots[at] = number + 1;
    f->taken++;
    return 1;
}

// All that can follow a record. HOLDS, or the verdict that ends the search.
static int follow(fewest *f, uint32_t number, size_t steps)
{
    const program *p = f->p;
    const uint64_t *from = key_at(f, number);
    uint64_t reached[4];
    int last = f->records[number].last, moved = 0, ended = 1;
    int free_switch = last == p->threads || pc_of(p, from, last) == p->pc_end[last];
    for (int t = 0; t < p->threads; t++) {
        int32_t pc = pc_of(p, from, t);
        if (pc == p->pc_end[t]) continue;
        ended = 0;
        choices c = {.count = 0, .given = 0};
        do {
            if (f->count >= f->capacity) return BOUND;
            uint64_t *to = key_at(f, f->count);
            copy(to, from, p->words);
            int32_t r = step(p, t, to, f->regs, &c, reached);
            if (r == R_BLOCKED) break;
            moved = 1;
            if (r == R_OK) r = broken(p, to, f->spec_regs, p->affects[t * p->max_pc + pc], reached);
            if (cannot(r)) return cannot(r);
            if (r == f->target) {
                f->goal = number;
                f->goal_thread = t;
                f->goal_choices = c;
                return VIOLATED;
            }
            if (r != R_OK) continue;
            to[p->words] = (uint64_t)t;
            f->records[f->count] = (record){.parent = number, .last = t};
            buckets *b = free_switch || t == last ? &f->now : &f->later;
            if (!bucket_push(b, steps + 1, f->records, (uint32_t)f->count)) return NO_MEMORY;
            f->count++;
        } while (next_choice(&c));
    }
    if (moved || ended || f->target != p->failures + 2) return HOLDS;
    f->goal = number;
    return VIOLATED;
}

static int search_fewest(fewest *f)
{
    f->records[0] = (record){.parent = 0, .last = f->p->threads};
    copy(key_at(f, 0), f->p->initial, f->p->words);
    key_at(f, 0)[f->p->words] = (uint64_t)f->p->threads;
    f->count = 1;
    if (!bucket_push(&f->now, 0, f->records, 0)) return NO_MEMORY;
    while (f->now.top) {
        for (size_t steps = 0; steps < f->now.top; steps++) {
            uint32_t list = bucket_take(&f->now, steps, f->records);
            while (list) {
                uint32_t number = list - 1;
                list = f->records[number].next;
                int fresh = take_up(f, number);
                if (!fresh) continue;
                if (atomic_load_explicit(&stop_requested, memory_order_relaxed)) return STOPPED;
                int verdict = fresh < 0 ? NO_MEMORY : follow(f, number, steps);
                if (verdict != HOLDS) return verdict;
            }
        }
        buckets over = f->now;
        f->now = f->later;
        f->later = over;
        f->later.top = 0;
    }
    return HOLDS;
}

// The steps from the initial state to the goal. 0: no memory.
static int push_goal(const fewest *f, result *out)
{
    uint32_t length = 0;
    for (int64_t n = f->goal; n > 0; n = f->records[n].parent) length++;
    uint32_t *path = malloc(((size_t)length + 1) * sizeof *path);
    if (!path) return 0;
    uint32_t at = length;
    for (int64_t n = f->goal; n > 0; n = f->records[n].parent) path[at--] = (uint32_t)n;
    path[0] = 0;
    int ok = 1;
    for (uint32_t i = 0; ok && i < length; i++)
        ok = push_step(f->p, out, key_at(f, path[i]), key_at(f, path[i + 1]), f->records[path[i + 1]].last, f->regs);
    free(path);
    return ok && (f->goal_thread < 0 || push_move(out, f->goal_thread, &f->goal_choices));
}

EXPORT int uf_fewest(const program *p, const options *o, int32_t target, result *out)
{
    memset(out, 0, sizeof *out);
    out->lasso = -1;
    fewest f = {.p = p, .key = p->words + 1, .slot_count = 1 << 12, .target = target, .goal = -1, .goal_thread = -1};
    f.capacity = o->max_states + 1024;
    if (f.capacity > o->max_bytes / (8 * f.key + 24)) f.capacity = o->max_bytes / (8 * f.key + 24);
    if (f.capacity > 0x7ffffff0) f.capacity = 0x7ffffff0;
    size_t bytes = (size_t)f.capacity * 8 * (size_t)f.key;
    f.states = reserve(bytes, HUGE);
    f.records = reserve((size_t)f.capacity * sizeof *f.records, HUGE);
    f.slots = calloc(f.slot_count, 4);
    f.regs = copy_regs(p->regs, p->threads, p->reg_count);
    f.spec_regs = copy_regs(p->spec_regs, p->invariants + p->finals, p->reg_count);
    out->verdict = NO_MEMORY;
    if (f.states && f.records && f.slots && f.regs && f.spec_regs) out->verdict = search_fewest(&f);
    if (out->verdict == VIOLATED && !push_goal(&f, out)) out->verdict = NO_MEMORY;
    out->states = f.taken;
    if (f.states) munmap(f.states, bytes);
    if (f.records) munmap(f.records, (size_t)f.capacity * sizeof *f.records);
    free(f.slots);
    free(f.regs);
    free(f.spec_regs);
    free(f.now.head);
    free(f.later.head);
    return out->verdict != NO_MEMORY;
}
