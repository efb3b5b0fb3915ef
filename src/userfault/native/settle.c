// What becomes of emitted code: check/analysis.py, which defines it, for the many rows of a large program.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ir.h"

#define EXPORT __attribute__((visibility("default")))

enum { FIELD, TABLE, SITUATION, FAILURE, KINDS };

typedef struct {
    // Given: the emitted rows, and room for twice as many; room for a place of each row.
    const row *rows;
    int32_t count;
    row *placed;
    int32_t *place;
    // Per kind of name: by number, -1, or what it is in the program. What was met first comes first in `met` (kind, number).
    int32_t *numbers[KINDS];
    const int32_t *spans; // of a field, by number
    int32_t *met;
    int32_t variables;
    const uint8_t *open_ended; // of a variable: nothing is declared of its range
    // Found. What is a pointer is freed with uf_unsettle.
    int32_t placed_count, met_count;
    int32_t lasting_count, locals_count, steps_count, live_words, definitions_count;
    int32_t *lasting;  // locals that are part of a state
    int32_t *steps_at; // the instructions that begin a step
    uint64_t *live;    // of each of them: live_words words
    row *definitions;  // of open-ended variables, before locals are numbered anew
} settling;

// -- calls ------------------------------------------------------------------------------------------------------------

// As `move` of check/template.py. operands: the `count` locals that a call was given, then those that it is given now. 0, or -1: one was not given.
EXPORT int32_t uf_move(row *rows, int32_t rows_count, const int32_t *operands, int32_t count, int32_t first_local,
                    int32_t first_given, int32_t source)
{
    for (int32_t pc = 0; pc < rows_count; pc++) {
        row *r = &rows[pc];
        int32_t *read[3] = {writes_d(r->op) ? &r->d : NULL, reads_a(r->op) ? &r->a : NULL, reads_b(r->op) ? &r->b : NULL};
        for (int i = 0; i < 3; i++) {
            if (!read[i] || *read[i] < 0)
                continue;
            if (*read[i] >= first_local) {
                *read[i] += first_given - first_local;
                continue;
            }
            int32_t at = 0;
            while (at < count && operands[at] != *read[i])
                at++;
            if (at == count)
                return -1;
            *read[i] = operands[count + at];
        }
        if (r->source < 0)
            r->source = source;
    }
    return 0;
}

// -- in order ---------------------------------------------------------------------------------------------------------

typedef struct {
    const row *rows;
    int32_t count;
    int32_t *failing; // open addressing: the first IR_FAIL of each (failure, line), or -1
    uint32_t mask;
} jumps;

static int32_t through(const jumps *j, int32_t pc)
{
    const row *r = &j->rows[pc];
    for (int32_t seen = 0; r->op == IR_JMP && !r->step && seen < j->count; seen++) {
        pc += r->base;
        r = &j->rows[pc];
    }
    if (r->op != IR_FAIL)
        return pc;
    uint32_t at = ((uint32_t)r->base * 2654435761u ^ (uint32_t)r->source * 40503u) & j->mask;
    for (;; at = (at + 1) & j->mask) {
        int32_t other = j->failing[at];
        if (other < 0)
            return j->failing[at] = pc;
        if (j->rows[other].base == r->base && j->rows[other].source == r->source)
            return other;
    }
}

static void meet(settling *s, int kind, int32_t number)
{
    if (s->numbers[kind][number] >= 0)
        return;
    s->numbers[kind][number] = 0;
    s->met[2 * s->met_count] = kind;
    s->met[2 * s->met_count++ + 1] = number;
}

// The rows that can be reached, as `in_order`; names stay what they are. 0, or -1: no memory.
EXPORT int32_t uf_order(settling *s)
{
    const row *rows = s->rows;
    int32_t fails = 0, branches = 0, out = 0;
    for (int32_t pc = 0; pc < s->count; pc++) {
        fails += rows[pc].op == IR_FAIL;
        branches += rows[pc].op == IR_BR;
        s->place[pc] = -1;
    }
    uint32_t room = 16;
    while (room < 2u * (uint32_t)fails)
        room *= 2;
    jumps j = {rows, s->count, malloc(room * sizeof *j.failing), room - 1};
    int32_t *work = malloc((2 * (size_t)branches + 1) * sizeof *work);
    if (!j.failing || !work) {
        free(j.failing);
        free(work);
        return -1;
    }
    memset(j.failing, 0xff, room * sizeof *j.failing);
    int32_t waiting = 0;
    work[waiting++] = through(&j, 0);
    while (waiting) {
        int32_t pc = work[--waiting];
        while (s->place[pc] < 0) {
            const row r = rows[pc];
            s->place[pc] = out;
            if (r.op == IR_BR) {
                int32_t yes = through(&j, pc + r.base), no = through(&j, pc + r.lo);
                s->placed[out++] = (row){IR_BR, 0, r.a, 0, yes, no, 0, r.step, r.source};
                work[waiting++] = no;
                work[waiting++] = yes;
                break;
            }
            switch (r.op) {
            case IR_LOAD: meet(s, FIELD, r.b); break;
            case IR_STORE: meet(s, FIELD, r.d); break;
            case IR_LOADK: meet(s, TABLE, r.base); break;
            case IR_REACH: meet(s, SITUATION, r.base); break;
            case IR_FAIL: meet(s, FAILURE, r.base); break;
            }
            if (r.op == IR_FAIL || r.op == IR_END) {
                s->placed[out++] = r;
                break;
            }
            int32_t following = through(&j, pc + (r.op == IR_JMP ? r.base : 1));
            s->placed[out++] = r.op == IR_JMP ? (row){IR_JMP, 0, 0, 0, following, 0, 0, r.step, r.source} : r;
            if (s->place[following] >= 0) {
                // Falls into code that stands elsewhere.
                s->placed[out++] = (row){IR_JMP, 0, 0, 0, following, 0, 0, 0, r.source};
                break;
            }
            pc = following;
        }
    }
    s->placed_count = out;
    free(j.failing);
    free(work);
    return 0;
}

// -- blocks and liveness ----------------------------------------------------------------------------------------------

static void resolve(const settling *s, row *r)
{
    int32_t field;
    switch (r->op) {
    case IR_LOAD:
    case IR_STORE:
        field = r->op == IR_LOAD ? r->b : r->d;
        *(r->op == IR_LOAD ? &r->b : &r->d) = 0;
        r->base += s->numbers[FIELD][field];
        r->hi += s->spans[field];
        break;
    case IR_LOADK:
        field = r->base;
        r->base = s->numbers[TABLE][field];
        r->hi += s->spans[field];
        break;
    case IR_REACH: r->base = s->numbers[SITUATION][r->base]; break;
    case IR_FAIL: r->base = s->numbers[FAILURE][r->base]; break;
    }
}

typedef struct {
    int32_t count;
    int32_t *first;    // where each begins, and the end of the last
    int32_t *block_of; // of each row that begins one
} blocks;

static int find_blocks(const settling *s, blocks *b)
{
    int32_t n = s->placed_count;
    uint8_t *leads = calloc((size_t)n + 1, 1);
    b->first = malloc(((size_t)n + 1) * sizeof *b->first);
    b->block_of = malloc(((size_t)n + 1) * sizeof *b->block_of);
    if (!leads || !b->first || !b->block_of) {
        free(leads);
        return -1;
    }
    leads[0] = leads[n] = 1;
    for (int32_t pc = 0; pc < n; pc++) {
        const row *r = &s->placed[pc];
        leads[pc] |= r->step != 0;
        if (r->op == IR_BR)
            leads[s->place[r->lo]] = 1;
        if (r->op == IR_BR || r->op == IR_JMP)
            leads[s->place[r->base]] = 1;
        if (r->op == IR_BR || r->op == IR_JMP || r->op == IR_END || r->op == IR_FAIL)
            leads[pc + 1] = 1;
    }
    b->count = 0;
    for (int32_t pc = 0; pc < n; pc++)
        if (leads[pc]) {
            b->block_of[pc] = b->count;
            b->first[b->count++] = pc;
        }
    b->first[b->count] = n;
    free(leads);
    return 0;
}

static int32_t followers(const settling *s, const blocks *b, int32_t number, int32_t after[2])
{
    int32_t end = b->first[number + 1];
    const row *r = &s->placed[end - 1];
    if (r->op == IR_END || r->op == IR_FAIL)
        return 0;
    after[0] = b->block_of[r->op == IR_BR || r->op == IR_JMP ? s->place[r->base] : end];
    if (r->op == IR_BR)
        after[1] = b->block_of[s->place[r->lo]];
    return r->op == IR_BR ? 2 : 1;
}

// A local that is read in another block than the one that wrote it last is lasting: its number in `bit`, of others -1.
static void find_lasting(settling *s, const blocks *b, int32_t *home, int32_t *bit)
{
    for (int32_t v = 0; v < s->variables; v++)
        home[v] = bit[v] = -1;
    for (int32_t number = 0; number < b->count; number++)
        for (int32_t pc = b->first[number]; pc < b->first[number + 1]; pc++) {
            const row *r = &s->placed[pc];
            if (reads_a(r->op) && r->a >= 0 && home[r->a] != number)
                bit[r->a] = 0;
            if (reads_b(r->op) && r->b >= 0 && home[r->b] != number)
                bit[r->b] = 0;
            if (writes_d(r->op))
                home[r->d] = number;
        }
    s->lasting_count = 0;
    for (int32_t v = 0; v < s->variables; v++)
        if (bit[v] >= 0) {
            bit[v] = s->lasting_count;
            s->lasting[s->lasting_count++] = v;
        }
}

// live[block]: alive at its start. gen: read before it is written there; kill: written.
static void flow_back(const settling *s, const blocks *b, size_t words, const uint64_t *gen, const uint64_t *kill,
                      uint64_t *live, uint8_t *stale, const int32_t *before_at, const int32_t *before)
{
    memset(stale, 1, (size_t)b->count);
    for (int again = 1; again;) {
        again = 0;
        for (int32_t number = b->count - 1; number >= 0; number--) {
            if (!stale[number])
                continue;
            stale[number] = 0;
            int32_t after[2], n = followers(s, b, number, after);
            uint64_t *here = live + (size_t)number * words;
            int changed = 0;
            for (size_t w = 0; w < words; w++) {
                uint64_t out = 0;
                for (int32_t i = 0; i < n; i++)
                    out |= live[(size_t)after[i] * words + w];
                uint64_t now = gen[(size_t)number * words + w] | (out & ~kill[(size_t)number * words + w]);
                changed |= now != here[w];
                here[w] = now;
            }
            if (changed)
                for (int32_t i = before_at[number]; i < before_at[number + 1]; i++) {
                    stale[before[i]] = 1;
                    again |= before[i] >= number;
                }
        }
    }
}

static int find_live(settling *s, const blocks *b, int32_t *home, const int32_t *bit)
{
    size_t words = s->live_words = (s->lasting_count + 63) / 64, size = words * (size_t)b->count + 1;
    uint64_t *gen = calloc(size, sizeof *gen), *kill = calloc(size, sizeof *kill), *live = calloc(size, sizeof *live);
    uint8_t *stale = malloc((size_t)b->count + 1);
    int32_t *before_at = calloc((size_t)b->count + 2, sizeof *before_at);
    int32_t *before = malloc((2 * (size_t)b->count + 1) * sizeof *before);
    int done = gen && kill && live && stale && before_at && before ? 0 : -1;
    if (!done) {
        for (int32_t v = 0; v < s->variables; v++)
            home[v] = -1;
        for (int32_t number = 0; number < b->count; number++) {
            uint64_t *reads = gen + (size_t)number * words, *writes = kill + (size_t)number * words;
            for (int32_t pc = b->first[number]; pc < b->first[number + 1]; pc++) {
                const row *r = &s->placed[pc];
                if (reads_a(r->op) && r->a >= 0 && home[r->a] != number)
                    reads[bit[r->a] >> 6] |= 1ull << (bit[r->a] & 63);
                if (reads_b(r->op) && r->b >= 0 && home[r->b] != number)
                    reads[bit[r->b] >> 6] |= 1ull << (bit[r->b] & 63);
                if (writes_d(r->op)) {
                    home[r->d] = number;
                    if (bit[r->d] >= 0)
                        writes[bit[r->d] >> 6] |= 1ull << (bit[r->d] & 63);
                }
            }
        }
        int32_t after[2];
        for (int32_t number = 0; number < b->count; number++)
            for (int32_t n = followers(s, b, number, after); n--;)
                before_at[after[n] + 2]++;
        for (int32_t number = 0; number < b->count; number++)
            before_at[number + 2] += before_at[number + 1];
        for (int32_t number = 0; number < b->count; number++)
            for (int32_t n = followers(s, b, number, after); n--;)
                before[before_at[after[n] + 1]++] = number;
        flow_back(s, b, words, gen, kill, live, stale, before_at, before);
        s->steps_count = 0;
        for (int32_t number = 0; number < b->count; number++)
            if (s->placed[b->first[number]].step) {
                memmove(live + (size_t)s->steps_count * words, live + (size_t)number * words, words * sizeof *live);
                s->steps_at[s->steps_count++] = b->first[number];
            }
        s->live = live;
        live = NULL;
    }
    free(gen);
    free(kill);
    free(live);
    free(stale);
    free(before_at);
    free(before);
    return done;
}

// Lasting locals first; the blocks share the numbers behind them.
static void renumber(settling *s, const blocks *b, int32_t *home, int32_t *number_of)
{
    for (int32_t v = 0; v < s->variables; v++)
        home[v] = number_of[v] >= 0 ? b->count : -1;
    int32_t most = s->lasting_count;
    for (int32_t number = 0; number < b->count; number++) {
        int32_t fresh = s->lasting_count;
        for (int32_t pc = b->first[number]; pc < b->first[number + 1]; pc++) {
            row *r = &s->placed[pc];
            if (reads_a(r->op) && r->a >= 0)
                r->a = number_of[r->a];
            if (reads_b(r->op) && r->b >= 0)
                r->b = number_of[r->b];
            if (writes_d(r->op)) {
                if (home[r->d] != number && home[r->d] != b->count) {
                    home[r->d] = number;
                    number_of[r->d] = fresh++;
                }
                r->d = number_of[r->d];
            } else if (r->op == IR_BR || r->op == IR_JMP) {
                r->base = s->place[r->base];
                if (r->op == IR_BR)
                    r->lo = s->place[r->lo];
            }
        }
        if (fresh > most)
            most = fresh;
    }
    s->locals_count = most;
}

EXPORT void uf_unsettle(settling *s)
{
    free(s->lasting);
    free(s->steps_at);
    free(s->live);
    free(s->definitions);
    s->lasting = s->steps_at = NULL;
    s->live = NULL;
    s->definitions = NULL;
}

// After uf_order, once `numbers` and `spans` say what was met. 0, or -1: no memory.
EXPORT int32_t uf_settle(settling *s)
{
    blocks b = {0};
    size_t variables = (size_t)s->variables + 1;
    int32_t *home = malloc(variables * sizeof *home), *number_of = malloc(variables * sizeof *number_of);
    int done = -1;
    s->definitions_count = 0;
    for (int32_t pc = 0; pc < s->placed_count; pc++) {
        resolve(s, &s->placed[pc]);
        s->definitions_count += writes_d(s->placed[pc].op) && s->open_ended[s->placed[pc].d];
    }
    s->lasting = malloc(variables * sizeof *s->lasting);
    s->definitions = malloc(((size_t)s->definitions_count + 1) * sizeof *s->definitions);
    if (home && number_of && s->lasting && s->definitions && !find_blocks(s, &b)) {
        s->steps_at = malloc(((size_t)b.count + 1) * sizeof *s->steps_at);
        find_lasting(s, &b, home, number_of);
        done = s->steps_at ? find_live(s, &b, home, number_of) : -1;
    }
    if (!done) {
        int32_t at = 0;
        for (int32_t pc = 0; pc < s->placed_count; pc++)
            if (writes_d(s->placed[pc].op) && s->open_ended[s->placed[pc].d])
                s->definitions[at++] = s->placed[pc];
        renumber(s, &b, home, number_of);
    } else {
        uf_unsettle(s);
    }
    free(b.first);
    free(b.block_of);
    free(home);
    free(number_of);
    return done;
}
