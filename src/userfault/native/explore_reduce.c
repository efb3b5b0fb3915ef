// The reductions of check/reduce.py, state by state: who may move alone, and the representative of alike
// states (threads that may change places; check/pools.py: slots of pools).
#include "explore.h"

// The first thread that may move alone: makes the step on `s`. Returns R_BLOCKED if there is none.
int32_t move_alone(const program *p, uint64_t *s, int32_t *regs, uint64_t *reached)
{
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
        int32_t r = step(p, t, s, regs, &none, reached);
        if (r != R_BLOCKED) return r;
        copy(s, before, p->words);
    }
    return R_BLOCKED;
}

// Where a thread stands, then its locals that are alive there, in order: as the reference engine compares them.
static int compare(const program *p, const uint64_t *s, int t, int u)
{
    int32_t pc = pc_of(p, s, t), other = pc_of(p, s, u);
    if (pc != other) return pc < other ? -1 : 1;
    if (pc == p->pc_end[t]) return 0;
    const body *a = &p->bodies[t], *b = &p->bodies[u];
    for (int i = 0; i < a->live_words; i++)
        for (uint64_t live = a->live[pc * a->live_words + i]; live; live &= live - 1) {
            int local = 64 * i + __builtin_ctzll(live);
            const cell *x = &a->locals[local], *y = &b->locals[local];
            uint32_t v = (uint32_t)(s[x->word] >> x->shift) & (uint32_t)x->mask;
            uint32_t w = (uint32_t)(s[y->word] >> y->shift) & (uint32_t)y->mask;
            if (v != w) return v < w ? -1 : 1;
        }
    return 0;
}

// Alike threads in order.
static void order_threads(const program *p, uint64_t *s)
{
    const int32_t *at = p->alike;
    for (int groups = *at++; groups; groups--) {
        int threads = *at++, fields = *at++;
        const int32_t *numbers = at, *place = at + threads;
        at = place + threads * fields * 3;
        int order[MAX_THREADS], sorted = 1;
        for (int t = 0; t < threads; t++) {
            int to = t;
            for (; to && compare(p, s, numbers[t], numbers[order[to - 1]]) < 0; to--) order[to] = order[to - 1];
            order[to] = t;
            sorted &= to == t;
        }
        if (sorted) continue;
        uint32_t values[MAX_THREADS][MAX_FIELDS];
        const int32_t *from = place;
        for (int t = 0; t < threads; t++)
            for (int f = 0; f < fields; f++, from += 3)
                values[t][f] = (uint32_t)(s[from[0]] >> from[1]) & (uint32_t)from[2];
        for (int t = 0; t < threads; t++)
            for (int f = 0; f < fields; f++, place += 3)
                s[place[0]] = (s[place[0]] & ~((uint64_t)(uint32_t)place[2] << place[1])) | (uint64_t)values[order[t]][f] << place[1];
    }
}

static inline uint32_t get(const uint64_t *s, const bit_field *f)
{
    return (uint32_t)(s[f->word] >> f->shift) & (uint32_t)f->mask;
}

static inline void put(uint64_t *s, const bit_field *f, uint32_t value)
{
    s[f->word] = (s[f->word] & ~((uint64_t)(uint32_t)f->mask << f->shift)) | (uint64_t)value << f->shift;
}

typedef struct {
    uint64_t taken;        // the slots that are not blank
    int order[MAX_SLOTS];  // them, in the representative's order
    int count;
} order;

static void take(order *o, int slot)
{
    if (o->taken >> slot & 1) return;
    o->taken |= 1ull << slot;
    o->order[o->count++] = slot;
}

static void visit(const pools *q, const uint64_t *s, order *o, int from, int to)
{
    for (int run = from; run < to; run++) {
        if (!(s[q->run_word[run]] & q->run_mask[run])) continue;
        for (int i = q->run_at[run]; i < q->run_at[run + 1]; i++) {
            int32_t entry = q->entry[q->sites[i].value + (int32_t)get(s, &q->sites[i])];
            if (entry >= 0) take(o, q->to[2 * entry]);
        }
    }
}

static int is_blank(const pools *q, const uint64_t *s, int slot)
{
    for (int i = q->look_at[slot]; i < q->look_at[slot + 1]; i++)
        if ((s[q->look_word[i]] & q->look[2 * i]) != q->look[2 * i + 1]) return 0;
    return 1;
}

// As Pools.taken (check/pools.py).
static void find_taken(const program *p, const uint64_t *s, order *o)
{
    const pools *q = p->pools;
    o->taken = 0;
    o->count = 0;
    visit(q, s, o, q->site_at[0], q->site_at[1]);
    for (int t = 0; t < p->threads; t++) {
        const int32_t *at = q->frame_at + t * p->max_pc + pc_of(p, s, t);
        visit(q, s, o, at[0], at[1]);
    }
    int done = 0, slots = q->first[q->count];
    for (int slot = 0; slot <= slots; slot++) {
        for (; done < o->count; done++) visit(q, s, o, q->site_at[o->order[done] + 1], q->site_at[o->order[done] + 2]);
        if (slot < slots && !(o->taken >> slot & 1) && !is_blank(q, s, slot)) take(o, slot);
    }
}

uint64_t taken_slots(const program *p, const uint64_t *s)
{
    order o;
    find_taken(p, s, &o);
    return o.taken;
}

static void add(_Atomic uint64_t *set, uint64_t more)
{
    if (more & ~atomic_load_explicit(set, memory_order_relaxed)) atomic_fetch_or(set, more);
}

static int all_have(const uint64_t *s, const bit_field *fields, int from, int to)
{
    for (int i = from; i < to; i++)
        if (get(s, &fields[i]) != (uint32_t)fields[i].value) return 0;
    return 1;
}

// As Pools.note.
static void note(const pools *q, const uint64_t *s, uint64_t before, uint64_t after, pool_mix *m)
{
    uint64_t known = 0, emptied = 0, apart = 0;
    for (int i = 0; i < q->count; i++) {
        int free_count = 0, width = q->free_at[i];
        uint64_t slots = (2ull << (q->first[i + 1] - 1)) - (1ull << q->first[i]);
        if (before & ~after & slots) emptied |= 1ull << i;
        for (uint64_t taken = after & slots; taken; taken &= taken - 1) {
            int at = q->free_from[__builtin_ctzll(taken)];
            free_count += all_have(s, q->free, at, at + width);
        }
        for (int each = q->fixed_at[i]; each < q->fixed_at[i + 1]; each++)
            free_count += all_have(s, q->fixed, q->fixed_from[each], q->fixed_from[each + 1]);
        known |= (uint64_t)(free_count > 0) << i;
        apart |= (uint64_t)(free_count > 1) << i;
    }
    add(&m->known, known);
    add(&m->emptied, emptied);
    add(&m->apart, apart);
}

static void move_references(const pools *q, uint64_t *s, const int *place, int from, int to)
{
    for (int run = from; run < to; run++) {
        if (!(s[q->run_word[run]] & q->run_mask[run])) continue;
        for (int i = q->run_at[run]; i < q->run_at[run + 1]; i++) {
            int32_t entry = q->entry[q->sites[i].value + (int32_t)get(s, &q->sites[i])];
            if (entry >= 0) put(s, &q->sites[i], (uint32_t)q->rows[q->to[2 * entry + 1] + place[q->to[2 * entry]]]);
        }
    }
}

// As Pools.renumbered.
static void renumber(const program *p, uint64_t *s, const order *o)
{
    const pools *q = p->pools;
    int place[MAX_SLOTS], source[MAX_SLOTS], next[MAX_SLOTS], same = 1;
    for (int i = 0; i < q->count; i++) next[i] = 0;
    for (int i = 0; i < o->count; i++) {
        int slot = o->order[i], pool = q->pool_of[slot];
        place[slot] = next[pool]++;
        source[q->first[pool] + place[slot]] = slot;
        same &= q->first[pool] + place[slot] == slot;
    }
    if (same) return;
    uint64_t from[MAX_WORDS];
    copy(from, s, p->words);
    for (int i = 0; i < q->count; i++)
        for (int at = 0; at < q->first[i + 1] - q->first[i]; at++) {
            int slot = q->first[i] + at;
            const bit_field *to = q->fields + q->field_at[slot];
            if (at < next[i]) {
                const bit_field *old = q->fields + q->field_at[source[slot]];
                for (int f = 0; old != to && f < q->width[i]; f++) put(s, &to[f], get(from, &old[f]));
            } else if (o->taken >> slot & 1) {
                for (int f = 0; f < q->width[i]; f++) put(s, &to[f], (uint32_t)to[f].value);
            }
        }
    move_references(q, s, place, 0, q->site_at[q->first[q->count] + 1]);
    for (int t = 0; t < p->threads; t++) {
        const int32_t *at = q->frame_at + t * p->max_pc + pc_of(p, s, t);
        move_references(q, s, place, at[0], at[1]);
    }
}

// Of the states that differ only by a symmetry. before: the slots taken in the state that it was reached from.
void representative(const program *p, uint64_t *s, uint64_t before, pool_mix *m)
{
    order_threads(p, s);
    if (!p->pools) return;
    order o;
    find_taken(p, s, &o);
    note(p->pools, s, before, o.taken, m);
    renumber(p, s, &o);
    order_threads(p, s);
}
