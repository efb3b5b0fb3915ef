// A step, or an invariant, as explore_step.c executes it: load the locals and cells that it reads, compute, store, clear the
// bits of the locals that died, set the new place. A step is encoded when a search first comes to it: most are never reached.
#include "explore.h"

#include <stdlib.h>
#include <string.h>

typedef struct made {
    struct made *next;
    ins code[];
} made;

typedef struct {
    int32_t at;     // whose jump
    int32_t second; // its `y` (where the condition is false), not its `x`
    int32_t target; // a row, or -1: the end
} jump;

typedef struct {
    const program *p;
    const body *b;
    int32_t thread, first; // thread: -1 of an invariant
    made *out;
    int32_t count, room;
    int32_t *order, length; // the rows of the step
    int32_t *at_of;         // of a row: where it went, or -1: it is of another step
    uint8_t *landed;        // of a row: something jumps to it
    jump *jumps;
    int32_t jump_count;
    int32_t *exit_of; // of a row (or, behind them, the end): where the step is left for it, or -1
    uint64_t *used, *defined;
    int failed;
} encoder;

static int32_t emit(encoder *e, ins i)
{
    if (e->count == e->room) {
        int32_t room = 2 * e->room;
        made *more = realloc(e->out, sizeof *more + (size_t)room * sizeof *more->code);
        if (!more) {
            e->failed = 1;
            return 0;
        }
        e->out = more;
        e->room = room;
    }
    e->out->code[e->count] = i;
    return e->count++;
}

static int32_t operand(const encoder *e, int32_t operand)
{
    return operand >= 0 ? operand : e->p->first_const - 1 - operand;
}

static void load(encoder *e, int32_t d, const cell *from)
{
    emit(e, (ins){.op = LD, .d = d, .x = from->word, .y = from->shift, .z = from->mask, .w = from->lo});
}

static void store(encoder *e, int32_t source, const cell *to)
{
    emit(e, (ins){ST, 0, to->hi - to->lo, source, to->word, to->shift, to->mask, to->lo});
}

// The cell that a row reads or writes, or null if that is known only when it runs (or is none).
static const cell *known_cell(const encoder *e, const row *r)
{
    if (r->a >= 0)
        return NULL;
    int32_t at = e->p->consts[-1 - r->a];
    return at >= r->lo && at <= r->hi ? &e->p->cells[r->base + at] : NULL;
}

static void encode_row(encoder *e, const row *r)
{
    int32_t a = operand(e, r->a), b = operand(e, r->b);
    const cell *known;
    switch (r->op) {
    case IR_LOAD:
        known = known_cell(e, r);
        if (known)
            load(e, r->d, known);
        else
            emit(e, (ins){.op = LDX, .d = r->d, .a = a, .x = r->base, .y = r->lo, .z = r->hi});
        break;
    case IR_STORE:
        known = known_cell(e, r);
        if (known)
            store(e, b, known);
        else
            emit(e, (ins){.op = STX, .a = a, .b = b, .x = r->base, .y = r->lo, .z = r->hi});
        break;
    case IR_LOADK:
        emit(e, (ins){.op = LDK, .d = r->d, .a = a, .x = e->p->table_at[r->base] + r->b, .y = r->lo, .z = r->hi});
        break;
    case IR_WAIT: emit(e, (ins){.op = WAIT, .a = a}); break;
    case IR_FAIL: emit(e, (ins){.op = FAIL, .x = r->base}); break;
    case IR_CHOOSE: emit(e, (ins){.op = CHOOSE, .d = r->d, .x = r->base}); break;
    case IR_REACH: emit(e, (ins){.op = REACH, .x = r->base}); break;
    case IR_BR:
    case IR_JMP:
    case IR_END: break;
    default: emit(e, (ins){.op = r->op, .d = r->d, .a = a, .b = reads_b(r->op) ? b : 0}); // the same numbers, up to NOT
    }
}

static void jump_to(encoder *e, int32_t at, int32_t second, int32_t target)
{
    e->jumps[e->jump_count++] = (jump){at, second, target};
}

// The rows from the first up to the next steps, each before those that follow it where nothing else leads there.
static void find_order(encoder *e)
{
    const row *code = e->b->code;
    int32_t *work = e->exit_of, waiting = 0; // not needed yet
    e->length = 0;
    work[waiting++] = e->first;
    e->at_of[e->first] = 0;
    while (waiting) {
        int32_t at = work[--waiting];
        const row *r = &code[at];
        e->order[e->length++] = at;
        int32_t after[2] = {at + 1, -1};
        if (r->op == IR_END || r->op == IR_FAIL)
            continue;
        if (r->op == IR_BR || r->op == IR_JMP)
            after[0] = r->base;
        if (r->op == IR_BR)
            after[1] = r->lo;
        for (int i = 1; i >= 0; i--)
            if (after[i] >= 0 && e->at_of[after[i]] < 0 && !code[after[i]].step) {
                e->at_of[after[i]] = 0;
                work[waiting++] = after[i];
            }
    }
}

static int32_t number_of(const body *b, int32_t at)
{
    int32_t low = 0, high = b->steps;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (b->step_at[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void leave(encoder *e, int32_t target)
{
    if (e->thread >= 0) {
        const program *p = e->p;
        const body *b = e->b;
        int32_t number = target < 0 ? b->steps : number_of(b, target), pc = p->pc_word[e->thread];
        const uint64_t *alive = target < 0 ? NULL : b->live + (size_t)number * (size_t)b->live_words;
        uint64_t clear[MAX_WORDS] = {0};
        for (int32_t w = 0; w < p->words; w++)
            clear[w] = b->frame[w];
        for (int32_t v = 0; alive && v < b->locals_count; v++)
            if (alive[v >> 6] >> (v & 63) & 1 & ~(e->defined[v >> 6] >> (v & 63)))
                clear[b->locals[v].word] &= ~((uint64_t)(uint32_t)b->locals[v].mask << b->locals[v].shift);
        for (int32_t w = 0; w < p->words; w++) {
            uint64_t keep = ~clear[w], here = w == pc ? (uint64_t)(uint32_t)number << p->pc_shift[e->thread] : 0;
            if (b->frame[w])
                emit(e, (ins){KEEP, (int32_t)here, (int32_t)(here >> 32), 0, w, (int32_t)keep, (int32_t)(keep >> 32), 0});
        }
        for (int32_t v = 0; alive && v < b->locals_count; v++)
            if (alive[v >> 6] & e->defined[v >> 6] & 1ull << (v & 63))
                store(e, v, &b->locals[v]);
    }
    emit(e, (ins){.op = RET});
}

static int32_t with_branch(int32_t op)
{
    return op >= EQ && op <= NOT ? EQ_BR + op - EQ : -1;
}

static void encode_rows(encoder *e)
{
    const row *code = e->b->code;
    for (int32_t i = 0; i < e->length; i++) {
        const row *r = &code[e->order[i]];
        if (r->op == IR_BR || r->op == IR_JMP)
            e->landed[r->base] = 1;
        if (r->op == IR_BR)
            e->landed[r->lo] = 1;
    }
    for (int32_t i = 0; i < e->length && !e->failed; i++) {
        int32_t pc = e->order[i], at = e->count - 1;
        const row *r = &code[pc];
        e->at_of[pc] = e->count;
        encode_row(e, r);
        if (r->op == IR_BR) {
            ins *before = at >= 0 ? &e->out->code[at] : NULL;
            int32_t both = before && before->d == r->a && !e->landed[pc] && pc != e->first ? with_branch(before->op) : -1;
            if (both >= 0)
                before->op = both;
            else
                at = emit(e, (ins){.op = BR, .a = operand(e, r->a)});
            jump_to(e, at, 0, r->base);
            jump_to(e, at, 1, r->lo);
        } else if (r->op == IR_END) {
            jump_to(e, emit(e, (ins){.op = JMP}), 0, -1);
        } else if (r->op != IR_FAIL) {
            int32_t after = r->op == IR_JMP ? r->base : pc + 1;
            if (i + 1 == e->length || after != e->order[i + 1] || code[after].step)
                jump_to(e, emit(e, (ins){.op = JMP}), 0, after);
        }
    }
}

static void land(encoder *e)
{
    int32_t end = e->b->count;
    memset(e->exit_of, 0xff, ((size_t)end + 1) * sizeof *e->exit_of);
    for (int32_t i = 0; i < e->jump_count && !e->failed; i++) {
        jump j = e->jumps[i];
        int32_t to;
        if (j.target >= 0 && e->at_of[j.target] >= 0 && !e->b->code[j.target].step) {
            to = e->at_of[j.target];
        } else {
            int32_t *exit = &e->exit_of[j.target < 0 ? end : j.target];
            if (*exit < 0) {
                *exit = e->count;
                leave(e, j.target);
            }
            to = *exit;
        }
        if (e->failed)
            return;
        *(j.second ? &e->out->code[j.at].y : &e->out->code[j.at].x) = to;
    }
}

static void mark_cells(const program *p, const row *r, uint64_t *cells)
{
    int32_t from = r->base + r->lo, to = r->base + r->hi;
    if (r->a < 0)
        from = to = r->base + p->consts[-1 - r->a];
    for (int32_t at = from < 0 ? 0 : from; at <= to && at < 64 * p->cell_words; at++)
        cells[at >> 6] |= 1ull << (at & 63);
}

// The run of instructions for the step of a thread at a row (thread < 0: for a whole invariant), or null: no memory.
// written: the cells that it may write are added.
static const ins *encode(const program *p, const body *b, int32_t thread, int32_t first, uint64_t *written)
{
    size_t rows = (size_t)b->count + 1, words = (size_t)b->live_words + 1;
    encoder e = {.p = p, .b = b, .thread = thread, .first = first, .room = 64};
    e.out = malloc(sizeof *e.out + (size_t)e.room * sizeof *e.out->code);
    int32_t *scratch = malloc(3 * rows * sizeof *scratch);
    e.landed = calloc(rows, 1);
    e.jumps = malloc(2 * rows * sizeof *e.jumps);
    e.used = calloc(2 * words, sizeof *e.used);
    const ins *done = NULL;
    if (e.out && scratch && e.landed && e.jumps && e.used) {
        e.order = scratch;
        e.at_of = scratch + rows;
        e.exit_of = scratch + 2 * rows;
        e.defined = e.used + words;
        memset(e.at_of, 0xff, rows * sizeof *e.at_of);
        if (thread >= 0) {
            find_order(&e);
        } else {
            e.length = b->count;
            for (int32_t at = 0; at < b->count; at++)
                e.order[at] = at, e.at_of[at] = 0;
        }
        for (int32_t i = 0; i < e.length; i++) {
            const row *r = &b->code[e.order[i]];
            if (reads_a(r->op) && r->a >= 0 && r->a < b->locals_count)
                e.used[r->a >> 6] |= 1ull << (r->a & 63);
            if (reads_b(r->op) && r->b >= 0 && r->b < b->locals_count)
                e.used[r->b >> 6] |= 1ull << (r->b & 63);
            if (writes_d(r->op) && r->d < b->locals_count)
                e.defined[r->d >> 6] |= 1ull << (r->d & 63);
            if (r->op == IR_STORE && written)
                mark_cells(p, r, written);
        }
        if (thread >= 0) {
            const uint64_t *alive = b->live + (size_t)number_of(b, first) * (size_t)b->live_words;
            for (int32_t v = 0; v < b->locals_count; v++)
                if ((e.used[v >> 6] | e.defined[v >> 6]) & alive[v >> 6] & 1ull << (v & 63))
                    load(&e, v, &b->locals[v]);
        }
        encode_rows(&e);
        land(&e);
        if (!e.failed) {
            e.out->next = *p->made;
            *p->made = e.out;
            done = e.out->code;
            e.out = NULL;
        }
    }
    free(e.out);
    free(scratch);
    free(e.landed);
    free(e.jumps);
    free(e.used);
    return done;
}

const ins *encode_step(const program *p, int32_t thread, int32_t number)
{
    uint64_t *written = calloc((size_t)p->cell_words + 1, sizeof *written);
    const ins *code = written ? encode(p, &p->bodies[thread], thread, p->bodies[thread].step_at[number], written) : NULL;
    if (code) {
        uint64_t affected = 0;
        for (int32_t i = 0; i < p->invariants; i++)
            for (int32_t w = 0; w < p->cell_words; w++)
                if (p->seen_by[(size_t)i * (size_t)p->cell_words + (size_t)w] & written[w])
                    affected |= 1ull << i;
        p->affects[thread * p->max_pc + number] = affected;
    }
    free(written);
    return code;
}

// Before the first search: the code of the invariants and final conditions, and which cells the invariants read. 0, or -1: no memory.
EXPORT int32_t uf_encode_specs(program *p)
{
    for (int32_t i = 0; i < p->invariants + p->finals; i++) {
        const body *b = &p->bodies[p->threads + i];
        p->spec_entry[i] = encode(p, b, -1, 0, NULL);
        if (!p->spec_entry[i])
            return -1;
        for (int32_t at = 0; i < p->invariants && at < b->count; at++)
            if (b->code[at].op == IR_LOAD)
                mark_cells(p, &b->code[at], p->seen_by + (size_t)i * (size_t)p->cell_words);
    }
    return 0;
}

// Frees what was encoded: the list that `made` of a program points to.
EXPORT void uf_forget(made *all)
{
    while (all) {
        made *next = all->next;
        free(all);
        all = next;
    }
}
