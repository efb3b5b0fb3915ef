// The reductions of check/reduce.py, state by state: who may move alone, and the representative of alike states.
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

static int compare(const uint32_t *a, const uint32_t *b, int count)
{
    for (int i = 0; i < count; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

// The representative of the states that differ only in which of some alike threads stands where.
void canonical(const program *p, uint64_t *s)
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
