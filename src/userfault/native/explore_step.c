// One step of a thread, or one spec: runs of instructions on packed words.
#include "explore.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LOCAL_LIMIT 100000

static uint64_t wide(int32_t low, int32_t high)
{
    return (uint64_t)(uint32_t)low | (uint64_t)(uint32_t)high << 32;
}

int32_t execute(const program *p, const ins *code, uint64_t *s, int32_t *r, choices *c, uint64_t *reached)
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
l_ADD:
    if (__builtin_add_overflow(r[i->a], r[i->b], &r[i->d])) return R_WIDE;
    NEXT;
l_SUB:
    if (__builtin_sub_overflow(r[i->a], r[i->b], &r[i->d])) return R_WIDE;
    NEXT;
l_MUL:
    if (__builtin_mul_overflow(r[i->a], r[i->b], &r[i->d])) return R_WIDE;
    NEXT;
l_AND: r[i->d] = r[i->a] & r[i->b]; NEXT;
l_OR: r[i->d] = r[i->a] | r[i->b]; NEXT;
l_XOR: r[i->d] = r[i->a] ^ r[i->b]; NEXT;
l_SHL: {
    int32_t by = r[i->b];
    int64_t v = by >= 0 && by < 32 ? (int64_t)r[i->a] * (1ll << by) : r[i->a] ? INT64_MAX : 0;
    if (v != (int32_t)v) return R_WIDE;
    r[i->d] = (int32_t)v;
    NEXT;
}
l_SHR: r[i->d] = r[i->a] >> ((uint32_t)r[i->b] < 32 ? r[i->b] : 31); NEXT;
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
    if (c->count == MAX_CHOICES) return R_MANY;
    if (c->count >= c->given) c->taken[c->count] = 0;
    r[i->d] = c->taken[c->count];
    c->width[c->count++] = i->x;
    NEXT;
l_REACH: reached[i->x >> 6] |= 1ull << (i->x & 63); NEXT;
l_KEEP: s[i->x] = (s[i->x] & wide(i->y, i->z)) | wide(i->d, i->a); NEXT;
l_RET: return R_OK;
}

static pthread_mutex_t translating = PTHREAD_MUTEX_INITIALIZER;

const ins *translated(const program *p, int t, int32_t pc)
{
    const ins *_Atomic *entry = &p->entry[t * p->max_pc + pc];
    pthread_mutex_lock(&translating);
    const ins *code = atomic_load_explicit(entry, memory_order_relaxed);
    if (!code) {
        code = encode_step(p, t, pc);
        if (code) {
            atomic_store_explicit(entry, code, memory_order_release);
        } else {
            // The search is stopped at a step that does nothing.
            static const ins nothing = {.op = RET};
            code = &nothing;
            *p->failed = 1;
            atomic_store(&stop_requested, 1);
        }
    }
    pthread_mutex_unlock(&translating);
    return code;
}

// The number of the first invariant (or, at the end, final condition) that a state breaks, or R_OK.
int32_t broken(const program *p, uint64_t *s, int32_t *spec_regs, uint64_t affects, uint64_t *reached)
{
    choices none = {.count = 0, .given = 0};
    for (int i = 0; i < p->invariants; i++)
        if (affects >> (i & 63) & 1) {
            int32_t r = execute(p, p->spec_entry[i], s, spec_regs + i * p->reg_count, &none, reached);
            if (r != R_OK) return r;
        }
    if (p->finals && all_ended(p, s))
        for (int i = p->invariants; i < p->invariants + p->finals; i++) {
            int32_t r = execute(p, p->spec_entry[i], s, spec_regs + i * p->reg_count, &none, reached);
            if (r != R_OK) return r;
        }
    return R_OK;
}

// The registers of a worker, in cache lines of their own. Null: no memory.
int32_t *copy_regs(const int32_t *from, int rows, int columns)
{
    size_t bytes = (size_t)rows * (size_t)columns * 4;
    int32_t *to = aligned_alloc(LINE, (bytes / LINE + 1) * LINE);
    if (to) memcpy(to, from, bytes);
    return to;
}
