// Counterexamples: the steps that lead from state to state. All functions: 0 where there is no memory.
#include "explore_store.h"

#include <stdlib.h>

int push_move(result *out, int32_t thread, const choices *c)
{
    int64_t need = out->moves_length + 2 + c->count;
    if (need > out->moves_room) {
        int64_t room = need * 2 + 64;
        int32_t *more = realloc(out->moves, (size_t)room * 4);
        if (!more) return 0;
        out->moves = more;
        out->moves_room = room;
    }
    out->moves[out->moves_length++] = thread;
    out->moves[out->moves_length++] = c->count;
    for (int i = 0; i < c->count; i++) out->moves[out->moves_length++] = c->taken[i];
    return 1;
}

// The choices with which a thread's step leads from one state to another. 0 if it does not.
static int find_choices(const program *p, const uint64_t *from, const uint64_t *to, int t, int32_t *regs, choices *c)
{
    uint64_t reached[4], s[MAX_WORDS];
    c->count = c->given = 0;
    if (pc_of(p, from, t) == p->pc_end[t]) return 0;
    do {
        copy(s, from, p->words);
        int32_t r = step(p, t, s, regs, c, reached);
        if (r == R_BLOCKED) return 0;
        if (r == R_OK && equal(s, to, p->words)) return 1;
    } while (next_choice(c));
    return 0;
}

// The step from one state to another: of thread `t`, or (-1) of the first that makes it.
int push_step(const program *p, result *out, const uint64_t *from, const uint64_t *to, int t, int32_t *regs)
{
    choices c;
    for (int u = t < 0 ? 0 : t; u < (t < 0 ? p->threads : t + 1); u++)
        if (find_choices(p, from, to, u, regs, &c)) return push_move(out, u, &c);
    return 0;
}

// The way from the initial state to another one.
int push_path(const store *t, result *out, int64_t number, int32_t *regs)
{
    int64_t length = 0;
    for (int64_t n = number; n > 0; n = t->parents[n] & ~BAD) length++;
    int64_t *path = malloc((size_t)(length + 1) * sizeof *path);
    if (!path) return 0;
    int64_t at = length;
    for (int64_t n = number; n > 0; n = t->parents[n] & ~BAD) path[at--] = n;
    path[0] = 0;
    int ok = 1;
    for (int64_t i = 0; ok && i < length; i++)
        ok = push_step(t->p, out, state_at(t, path[i]), state_at(t, path[i + 1]), -1, regs);
    free(path);
    return ok;
}
