// Fair cycles: Tarjan's components of the stored graph, edges recomputed.
#include "explore_store.h"

#include <stdlib.h>
#include <string.h>

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
static int64_t next_edge(const store *g, frame *f, int32_t *regs)
{
    const program *p = g->p;
    uint64_t reached[4], s[MAX_WORDS];
    while (f->thread < p->threads) {
        const uint64_t *from = state_at(g, f->state);
        if (pc_of(p, from, f->thread) != p->pc_end[f->thread] && (f->fresh || next_choice(&f->c))) {
            if (f->fresh) f->c.count = f->c.given = 0;
            f->fresh = 0;
            copy(s, from, p->words);
            int32_t r = step(p, f->thread, s, regs, &f->c, reached);
            if (r == R_OK) return store_find(g, s);
            if (r != R_BLOCKED) continue;
        }
        f->thread++;
        f->fresh = 1;
    }
    return -1;
}

static int enabled(const store *g, int64_t number, int t, int32_t *regs)
{
    const program *p = g->p;
    uint64_t reached[4], s[MAX_WORDS];
    copy(s, state_at(g, number), p->words);
    choices c = {.count = 0, .given = 0};
    return pc_of(p, s, t) != p->pc_end[t] && step(p, t, s, regs, &c, reached) != R_BLOCKED;
}

// Append a walk inside a component: from `at` to an edge of thread `mover` (or, mover -1, to `goal`). Returns its end; -1: no memory.
static int64_t walk(const store *g, result *out, const marks *m, int64_t at, int mover, int64_t goal, int32_t *regs)
{
    int64_t count = atomic_load(&g->count), head = 0, tail = 0, found_from = -1, found = -1;
    int64_t *queue = malloc((size_t)count * sizeof *queue);
    int64_t *from = malloc((size_t)count * sizeof *from);
    if (!queue || !from) goto done;
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
    if (found < 0) goto done;
    int64_t length = 0, here = at;
    for (int64_t n = found_from; n != at; n = from[n]) queue[length++] = n;
    int ok = 1;
    while (ok && length) {
        int64_t to = queue[--length];
        ok = push_step(g->p, out, state_at(g, here), state_at(g, to), -1, regs);
        here = to;
    }
    if (!ok || !push_step(g->p, out, state_at(g, here), state_at(g, found), mover, regs)) found = -1;
done:
    free(queue);
    free(from);
    return found;
}

// The threads that move in a component, and those that never do although they could somewhere in it.
static uint32_t left_out(const store *g, const int64_t *members, int64_t size, const marks *m, int32_t *regs, uint32_t *movers)
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
static int push_lasso(const store *g, result *out, const int64_t *members, int64_t size, const marks *m, uint32_t movers,
                      int32_t *regs)
{
    int64_t start = members[0];
    for (int64_t i = 0; i < size; i++)
        if (members[i] < start) start = members[i];
    if (!push_path(g, out, start, regs)) return 0;
    int64_t steps = 0;
    for (int64_t i = 0; i < out->moves_length; i += 2 + out->moves[i + 1]) steps++;
    out->lasso = steps;
    int64_t here = start;
    for (int t = 0; t < g->p->threads && here >= 0; t++)
        if (movers >> t & 1) here = walk(g, out, m, here, t, -1, regs);
    if (here >= 0 && here != start) here = walk(g, out, m, here, -1, start, regs);
    return here >= 0;
}

// 1: a fair cycle was found and written to `out`; 0: none; -1: no memory. See explore.fair_cycle: a component that leaves
// somebody out is looked at again without the states in which he could move; those that stay make a region of their own.
int fair_cycle(const store *g, result *out, int32_t *regs)
{
    int64_t count = atomic_load(&g->count);
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
        if (m.index[root] || !intact(g, root)) continue;
        size_t depth = 0;
        frames[depth++] = (frame){.state = root, .fresh = 1};
        m.index[root] = m.low[root] = ++clock;
        stack[height++] = root;
        while (depth && !found) {
            frame *f = &frames[depth - 1];
            int64_t to = next_edge(g, f, regs);
            if (to >= 0) {
                if (!intact(g, to) || m.region[to] != m.region[f->state]) continue;
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
                found = push_lasso(g, out, stack + bottom, height - bottom, &m, movers, regs) ? 1 : -1;
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
