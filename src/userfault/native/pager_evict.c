// Bounded memory: who leaves, and how nothing is lost on the way.
//
// A dirty page leaves by being moved out, which is atomic: no write falls between reading it and unmapping it. A page
// that looks clean could still be written between the look and the move. Making a write-protected page writable is a page
// fault of this process, so if the count of faults stands still from before the look until after the move, nobody did.
#include "pager.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>

int lock_robust(pthread_mutex_t *lock) {
    int code = pthread_mutex_lock(lock);
    if (code == EOWNERDEAD) pthread_mutex_consistent(lock);
    return code;
}

// A unit has at most one entry, and says so in QUEUED.
// False where an earlier stay of it has left one.
bool ring_push(pager *p, u64 unit) {
    if (atomic_fetch_or(&states(p)[unit], QUEUED) & QUEUED) return false;
    lock_robust(&p->ring_lock);
    if (p->ring_tail - p->ring_head >= p->ring_capacity) { // entries of units that left by another door
        u64 to = p->ring_head;
        for (u64 i = p->ring_head; i < p->ring_tail; i++) {
            u64 other = *ring_at(p, i);
            u32 state = STATE(atomic_load(&states(p)[other]));
            if (state == ABSENT || state == GONE || state == POISONED || state == LIMBO) atomic_fetch_and(&states(p)[other], ~QUEUED);
            else *ring_at(p, to++) = (u32)other;
        }
        p->ring_tail = to;
    }
    *ring_at(p, p->ring_tail++) = (u32)unit;
    pthread_mutex_unlock(&p->ring_lock);
    return true;
}

static u64 random_u64(pager *p) { // under the ring's lock
    u64 x = p->random ? p->random : now_ns() | 1;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return p->random = x;
}

// LRU by sampling, and policies of the user, ranks or a function: bring the best of a few random candidates to the head of the ring.
static void choose(pager *p) {
    u64 count = p->ring_tail - p->ring_head, at[16];
    u32 units[16], n = 0, best = 0;
    for (u32 i = 0; i < 16 && i < count; i++) {
        at[n] = p->ring_head + (count <= 16 ? i : random_u64(p) % count);
        units[n] = *ring_at(p, at[n]);
        n += STATE(atomic_load(&states(p)[units[n]])) == PRESENT;
    }
    if (!n) return;
    if (p->policy == POLICY_LRU) {
        for (u32 i = 1; i < n; i++)
            if ((i32)(atomic_load(&stamps(p)[units[i]]) - atomic_load(&stamps(p)[units[best]])) < 0) best = i;
    } else if (p->policy == POLICY_RANK) {
        au32 *ranks = (au32 *)p->policy_context;
        for (u32 i = 1; i < n; i++)
            if (atomic_load(&ranks[units[i]]) < atomic_load(&ranks[units[best]])) best = i;
    } else {
        u32 (*function)(void *, const u32 *, u32) = (u32 (*)(void *, const u32 *, u32))p->policy_function;
        best = function((void *)p->policy_context, units, n);
        if (best >= n) best = 0;
    }
    u32 other = *ring_at(p, p->ring_head);
    *ring_at(p, p->ring_head) = units[best];
    *ring_at(p, at[best]) = other;
}

// One more victim, whose state is `old`; false where it was used or taken meanwhile.
static bool claim(pager *p, slot *s, u64 unit, u32 old, u32 keep) {
    u64 mine = 1ull << s->victim_count;
    s->victims[s->victim_count++] = (u32)unit;
    s->written = old & WRITTEN ? s->written | mine : s->written & ~mine;
    if (atomic_compare_exchange_strong(&states(p)[unit], &old, EVICTING | OWNER(s - p->slots) | (old & keep))) return true;
    s->victim_count--;
    return false;
}

// Claim up to `want` victims; none where none can be had now.
void claim_victims(pager *p, slot *s, u32 want) {
    lock_robust(&p->ring_lock);
    u64 tries = 2 * (p->ring_tail - p->ring_head) + 1;
    s->victim_count = 0;
    while (s->victim_count < want && tries-- && p->ring_head < p->ring_tail) {
        if (p->policy >= POLICY_LRU) choose(p);
        u64 unit = *ring_at(p, p->ring_head++);
        __builtin_prefetch(&states(p)[*ring_at(p, p->ring_head + 7)], 1); // scattered, and so rarely in the cache
        au32 *word = &states(p)[unit];
        u32 old = atomic_load(word);
        if (STATE(old) == ABSENT || STATE(old) == GONE || STATE(old) == POISONED || STATE(old) == LIMBO) {
            atomic_fetch_and(word, ~QUEUED);
            continue;
        }
        bool spare = STATE(old) != PRESENT || (p->policy == POLICY_CLOCK && old & REF);
        if (spare) {
            if (STATE(old) == PRESENT) atomic_compare_exchange_strong(word, &old, old & ~REF);
            *ring_at(p, p->ring_tail++) = (u32)unit;
            continue;
        }
        if (!claim(p, s, unit, old, 0)) {
            *ring_at(p, p->ring_tail++) = (u32)unit;
            continue;
        }
        // Its neighbours, unless they are in use: they leave by the same call. Their entries in the ring stay behind.
        for (i32 step = -1; p->policy == POLICY_CLOCK && p->writable && p->batch > 1 && step <= 1; step += 2)
            for (u64 next = unit + (u64)(i64)step; s->victim_count < want && next < p->units; next += (u64)(i64)step) {
                old = atomic_load(&states(p)[next]);
                if (STATE(old) != PRESENT || old & (REF | AHEAD) || !claim(p, s, next, old, QUEUED)) break;
            }
    }
    pthread_mutex_unlock(&p->ring_lock);
}

static u64 faults_so_far(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u64)u.ru_minflt + (u64)u.ru_majflt;
}

// Move victims' pages to `to`, a hole. Holes are stepped over one by one: ALLOW_SRC_HOLES beside an application's MADV_DONTNEED
// can keep a 6.18 kernel in the call for ever, and a move that had to try again may say EEXIST of what it did move (findings/F-10.md).
int take_out(pager *p, slot *s, u64 at, u64 length, u8 *to) {
    u64 have = 0, tries = 0;
    int code = 0;
    while (have < length) {
        u64 done;
        code = sys_move(p, s, AT_MOVE_OUT, (u64)to + have, at + have, length - have, &done);
        have += done;
        if (!code) break;
        if (done) { COUNT(partial_count); tries = 0; continue; }
        if ((code == -ENOENT || code == -EEXIST) && sys_resident(at + have) == 0) {
            have += PAGE;
            code = 0;
            continue;
        }
        if (code == -EAGAIN || code == -EBUSY) {
            if (code == -EAGAIN) COUNT(eagain_count); else COUNT(ebusy_count);
            if (++tries > (code == -EBUSY ? 8u : 100000u)) break;
            if (!(s->role && code == -EAGAIN && drain_event(p, s))) sched_yield();
            continue;
        }
        break;
    }
    return have == length ? 0 : code;
}

// Undo a take: the pages go back, armed as they were, before anybody waits for them any longer.
static void bring_back(pager *p, slot *s, u64 unit, u8 *from, u64 length) {
    u64 at = p->base + unit * p->unit;
    for (u64 x = 0; x < length; x += PAGE) {
        if (sys_resident((u64)from + x) != 1) continue;
        for (u32 tries = 0; tries < 1000000; tries++) {
            u64 done;
            int code = sys_copy(p, s, at + x, from + x, PAGE, true, &done);
            if (code != -EAGAIN) break;
            if (!(s->role && drain_event(p, s))) sched_yield();
        }
    }
    madvise(from, length, MADV_DONTNEED);
}

static void stay(pager *p, slot *s, u64 unit) {
    ring_push(p, unit);
    release_unit(p, s, unit, PRESENT | REF);
    COUNT(evict_busy_count);
}

static void gone(pager *p, slot *s, u64 unit) {
    release_unit(p, s, unit, ABSENT);
    atomic_fetch_sub(&p->resident_units, 1);
}

// The swap file: a page has a home in it, at its own offset; behind the homes lies a log of extents, where the pages of one batch are
// written side by side. An extent is free again when all its pages have been written anew; without a free one pages go home.
#define EXTENT MAX_BATCH

static u64 extent_of(pager *p, u32 place) { return (place - 1 - p->pages) / EXTENT; }

void forget_swap(pager *p, u64 page) {
    u32 place = atomic_load(&places(p)[page]) ? atomic_exchange(&places(p)[page], 0) : 0;
    if (!place || place - 1 < p->pages) return;
    u64 extent = extent_of(p, place);
    if (atomic_fetch_sub(&extents(p)[extent], 1) != 1) return;
    lock_robust(&p->ring_lock);
    free_extents(p)[p->free_extent_count++] = (u32)extent;
    pthread_mutex_unlock(&p->ring_lock);
}

static u64 take_extent(pager *p) {
    lock_robust(&p->ring_lock);
    u64 extent = UINT64_MAX;
    if (p->free_extent_count) extent = free_extents(p)[--p->free_extent_count];
    else if (p->used_extent_count < p->extent_count) extent = p->used_extent_count++;
    pthread_mutex_unlock(&p->ring_lock);
    return extent;
}

typedef struct { const u8 *from; u64 page; } kept;

static void release_places(pager *p, u64 extent, u32 count) {
    if (extent == UINT64_MAX || atomic_fetch_sub(&extents(p)[extent], count) != count) return;
    lock_robust(&p->ring_lock);
    free_extents(p)[p->free_extent_count++] = (u32)extent;
    pthread_mutex_unlock(&p->ring_lock);
}

// Write pages to the swap file, as few writes as their places allow. Only when all are written do their places count.
static int save(pager *p, slot *s, const kept *pages, u32 count) {
    u64 extent = count > 1 && p->batch > 1 ? take_extent(p) : UINT64_MAX;
    if (extent != UINT64_MAX) atomic_store(&extents(p)[extent], EXTENT);
    for (u32 i = 0, j; i < count; i = j) {
        u64 at = extent == UINT64_MAX ? pages[i].page : p->pages + extent * EXTENT + i;
        for (j = i + 1; j < count && pages[j].from == pages[j - 1].from + PAGE && (extent != UINT64_MAX || pages[j].page == pages[j - 1].page + 1); j++) {}
        int code = io_write(p, s, p->swap_fd, pages[i].from, (j - i) * PAGE, at * PAGE);
        if (code) {
            release_places(p, extent, EXTENT);
            return code;
        }
        ADD(out_bytes, (j - i) * PAGE);
    }
    for (u32 i = 0; i < count; i++) {
        forget_swap(p, pages[i].page);
        atomic_store(&places(p)[pages[i].page], (u32)(extent == UINT64_MAX ? pages[i].page : p->pages + extent * EXTENT + i) + 1);
    }
    if (count < EXTENT) release_places(p, extent, EXTENT - count);
    return 0;
}

// Victims in the order of their addresses: neighbours leave by one call, and every call interrupts whoever runs beside us.
static void sort_victims(slot *s) {
    for (u32 i = 1; i < s->victim_count; i++) {
        u32 unit = s->victims[i], at = i;
        u64 written = s->written >> i & 1;
        for (; at && s->victims[at - 1] > unit; at--) {
            s->victims[at] = s->victims[at - 1];
            s->written = (s->written & ~(1ull << at)) | (s->written >> (at - 1) & 1) << at;
        }
        s->victims[at] = unit;
        s->written = (s->written & ~(1ull << at)) | written << at;
    }
}

// Take adjacent victims of a writable region out, and find which of their pages have to be kept. 0, or -errno with all of them back in place.
static int take(pager *p, slot *s, u32 index, u32 victims, u64 *need) {
    u64 unit = s->victims[index], at = p->base + unit * p->unit, first = unit * p->unit / PAGE;
    u64 length = (victims - 1) * p->unit + unit_bytes(p, unit + victims - 1), count = length / PAGE;
    u8 *to = s->take + index * p->unit, there[512], seen[512];
    u64 written[8], dirty = 0, unwritten = 0, before = 0, filled_for_write = s->written >> index;
    u64 all = victims < 64 ? (1ull << victims) - 1 : UINT64_MAX;
    bool known = (filled_for_write & all) == all; // a page that was filled for a write is written
    if (known) written[0] = filled_for_write;
    else {
        // What looks clean is compared with what it was, where that can't be had again: it would be asked of a source that costs, or is nowhere else.
        bool only_here = costly(p);
        for (u64 i = 0; i < count && !only_here; i++) only_here = (bit(p, UNSAVED, first + i) || bit(p, FLUSHING, first + i)) && !in_swap(p, first + i);
        if (only_here) sys_peek(p, s, at, length, s->peek, seen);
        else memset(seen, 0, sizeof seen);
        before = faults_so_far();
        if (sys_written(p, s, at, length, false, written, 8)) memset(written, 0xff, sizeof written);
        if (p->unit == PAGE) written[0] |= filled_for_write;
    }
    memset(need, 0, 64);
    for (u64 i = 0; i < count; i++) {
        bool w = written[i / 64] >> (i % 64) & 1;
        unwritten += !w;
        if (w) { // the swap file has an older state, if any
            set_bit(p, UNSAVED, first + i), set_bit(p, MARKED, first + i);
            forget_swap(p, first + i);
        }
        if (w || ((bit(p, UNSAVED, first + i) || bit(p, FLUSHING, first + i)) && !in_swap(p, first + i))) need[i / 64] |= 1ull << (i % 64), dirty++;
    }
    strike(p, s, AT_BEFORE_TAKE, NULL);
    int code = take_out(p, s, at, length, to);
    if (code) {
        for (u32 i = 0; i < victims; i++) bring_back(p, s, unit + i, to + i * p->unit, unit_bytes(p, unit + i));
        return code;
    }
    strike(p, s, AT_TAKEN, NULL);
    if (!known && unwritten && faults_so_far() != before) {
        // Somebody may have written to what looked clean: compare it with what it was, or with what would be read instead of it.
        COUNT(suspicious_count);
        if (sys_there((u64)to, length, there)) memset(there, 1, sizeof there);
        const char *what;
        bool comparable = false;
        for (u64 i = 0, per_unit = p->unit / PAGE; i < count; i++) {
            u64 within = i % per_unit;
            if (!within) comparable = !costly(p) && !read_unit(p, s, unit + i / per_unit, s->bounce, false, &what);
            if (comparable) s->bounce_populated = 1;
            if (!there[i] || (seen[i] && !memcmp(to + i * PAGE, s->peek + i * PAGE, PAGE))) continue;
            if (need[i / 64] >> (i % 64) & 1) { set_bit(p, MARKED, first + i); continue; }
            if (comparable && !memcmp(to + i * PAGE, s->bounce + within * PAGE, PAGE)) continue;
            set_bit(p, UNSAVED, first + i), set_bit(p, MARKED, first + i);
            forget_swap(p, first + i);
            need[i / 64] |= 1ull << (i % 64), dirty++;
        }
    }
    return 0;
}

// Take the claimed victims of a writable region out and bring what they held into safety. How many left; *code: why others did not.
static u32 take_and_save(pager *p, slot *s, int *code) {
    kept pages[512];
    u32 count = 0, dirty = 0, left = 0, alone = 0;
    sort_victims(s);
    for (u32 i = 0, n; i < s->victim_count; i += n) {
        u64 unit = s->victims[i], first = unit * p->unit / PAGE, need[8];
        for (n = 1; i >= alone && i + n < s->victim_count && s->victims[i + n] == unit + n; n++) {}
        int one = take(p, s, i, n, need);
        if (one && n > 1) { // one of them is not to be had: the others are, one by one
            alone = i + n, n = 0;
            continue;
        }
        for (u32 v = 0; !one && v < n; v++) {
            u32 before = count;
            for (u64 k = v * p->unit / PAGE; k < (v * p->unit + unit_bytes(p, unit + v)) / PAGE; k++)
                if (need[k / 64] >> (k % 64) & 1) pages[count++] = (kept){s->take + i * p->unit + k * PAGE, first + k};
            dirty += count > before;
            left++;
        }
        if (!one) continue;
        *code = one;
        if (one == -ENOENT || one == -EINVAL) { // the application unmapped it
            release_unit(p, s, (u32)unit, GONE);
            atomic_fetch_sub(&p->resident_units, 1);
        } else stay(p, s, unit);
        s->victims[i] = UINT32_MAX;
    }
    // What the application dropped meanwhile is a hole here, not a page of zeros.
    u8 there[512];
    if (count && !sys_there((u64)s->take, s->victim_count * p->unit, there)) {
        u32 present = 0;
        for (u32 i = 0; i < count; i++)
            if (there[(u64)(pages[i].from - s->take) / PAGE]) pages[present++] = pages[i];
        count = present;
    }
    int saved = count ? save(p, s, pages, count) : 0;
    if (!saved) {
        ADD(evict_dirty_count, dirty);
        ADD(evict_clean_count, left - dirty);
        return left;
    }
    *code = saved;
    for (u32 i = 0; i < s->victim_count; i++) {
        if (s->victims[i] == UINT32_MAX) continue;
        bring_back(p, s, s->victims[i], s->take + i * p->unit, unit_bytes(p, s->victims[i]));
        stay(p, s, s->victims[i]);
        s->victims[i] = UINT32_MAX;
    }
    return 0;
}

// Before victims are claimed: whoever sweeps the region wants it to stand still.
void begin(pager *p, slot *s) {
    for (;;) {
        atomic_store(&s->evicting, EVICT_CLAIM);
        u32 sweeper = atomic_load(&p->paused);
        if (!sweeper) return;
        atomic_store(&s->evicting, EVICT_IDLE);
        futex_wait(&p->paused, sweeper, 20000000);
    }
}

// Evict the victims that the slot has claimed. 0 where at least one left, or -errno.
int evict_claimed(pager *p, slot *s) {
    int code = 0;
    u32 left = 0;
    if (p->writable) {
        atomic_store(&s->evicting, EVICT_TAKE);
        strike(p, s, AT_VICTIMS, NULL);
        left = take_and_save(p, s, &code);
        atomic_store(&s->evicting, EVICT_SAVED);
        strike(p, s, AT_SAVED, NULL);
        for (u32 i = 0; i < s->victim_count; i++)
            if (s->victims[i] != UINT32_MAX) gone(p, s, s->victims[i]);
        madvise(s->take, s->victim_count * p->unit, MADV_DONTNEED);
    } else {
        atomic_store(&s->evicting, EVICT_DROP);
        strike(p, s, AT_VICTIMS, NULL);
        // A big unit is moved into our buffer, where its pages wait for the next fill: nothing to allocate or to zero.
        bool recycle = s->victim_count == 1 && p->unit >= MOVE_FROM_BYTES && s->filling && !s->place;
        if (recycle && s->bounce_populated) madvise(s->bounce, p->unit, MADV_DONTNEED);
        if (recycle) s->bounce_populated = 0;
        if (!recycle || take_out(p, s, p->base + s->victims[0] * p->unit, unit_bytes(p, s->victims[0]), s->bounce)) code = sys_drop(p, s, s->victims, s->victim_count);
        else s->bounce_populated = 1;
        strike(p, s, AT_SAVED, NULL);
        for (u32 i = 0; i < s->victim_count; i++) gone(p, s, s->victims[i]);
        ADD(evict_clean_count, s->victim_count);
        left = s->victim_count;
        code = 0;
    }
    s->victim_count = 0;
    atomic_store(&s->evicting, EVICT_IDLE);
    return left ? 0 : code;
}

// Count one more unit in, evicting until the budget holds.
int make_room(pager *p, slot *s) {
    u64 count = atomic_fetch_add(&p->resident_units, 1) + 1, since = 0;
    s->filling = 2;
    int code = -EBUSY;
    while (p->budget_units && (count = atomic_load(&p->resident_units)) > p->budget_units) {
        if (limbo_displace(p, s)) continue;
        begin(p, s);
        u32 want = p->batch;
        if (want > 1 && p->budget_units < 8ull * want) want = (u32)(p->budget_units / 8) + 1;
        claim_victims(p, s, want);
        int one = s->victim_count ? evict_claimed(p, s) : -EBUSY;
        atomic_store(&s->evicting, EVICT_IDLE);
        if (!one) continue;
        code = one;
        if (!since) since = now_ns();
        // Everything else in flight or pinned: it may pass. A full disk does not.
        if (code == -ENOSPC || code == -EIO || code == -EBADF || code == -ENOTTY || now_ns() - since > 2000000000ull) return code;
        if (!(s->role && drain_event(p, s))) sched_yield();
    }
    u64 most = atomic_load(&p->count.resident_max_units);
    while (count > most && !atomic_compare_exchange_weak(&p->count.resident_max_units, &most, count)) {}
    return 0;
}

// Evict a range of units, as many at once as a batch has. 0, or -errno of the last that could not leave.
int evict_units(pager *p, slot *s, u64 first, u64 last) {
    int result = 0;
    for (u64 unit = first; unit <= last;) {
        begin(p, s);
        s->victim_count = 0;
        s->written = 0;
        for (; unit <= last && s->victim_count < p->batch; unit++) {
            au32 *word = &states(p)[unit];
            u32 old = atomic_load(word);
            // Whoever faulted goes on as soon as the page is there, a moment before its unit says so.
            if ((STATE(old) == FILLING || STATE(old) == EVICTING) && s->victim_count) break;
            while (STATE(old = atomic_load(word)) == FILLING || STATE(old) == EVICTING) {
                atomic_store(&s->evicting, EVICT_IDLE); // it may be a sweep that they wait for
                if (old & WAITED || atomic_compare_exchange_weak(word, &old, old | WAITED)) futex_wait(word, old | WAITED, 100000000);
                begin(p, s);
            }
            limbo_drop(p, s, unit, ABSENT);
            while (STATE(old) == PRESENT) {
                if (claim(p, s, unit, old, QUEUED)) break;
                old = atomic_load(word);
            }
        }
        int one = s->victim_count ? evict_claimed(p, s) : 0;
        atomic_store(&s->evicting, EVICT_IDLE);
        if (one) result = one;
    }
    return result;
}

// What a thread that died was in the middle of is undone, or finished where its result is already safe.
void repair(pager *p, slot *dead, slot *by) {
    u32 owner = OWNER(dead - p->slots), phase = atomic_load(&dead->evicting);
    for (u32 i = 0; phase > EVICT_CLAIM && i < dead->victim_count; i++) {
        u64 unit = dead->victims[i];
        if (unit == UINT32_MAX) continue;
        u32 word = atomic_load(&states(p)[unit]);
        if (STATE(word) != EVICTING || OWNER_OF(word) != OWNER_OF(owner)) continue;
        if (phase == EVICT_TAKE) {
            bring_back(p, by, unit, dead->take + i * p->unit, unit_bytes(p, unit));
            stay(p, by, unit);
        } else {
            if (phase == EVICT_DROP) sys_drop(p, by, &dead->victims[i], 1);
            gone(p, by, unit);
        }
    }
    // Claimed, but death came before the phase was noted.
    for (u32 i = 0; phase <= EVICT_CLAIM && i < dead->victim_count; i++) {
        u64 unit = dead->victims[i];
        if (unit == UINT32_MAX) continue;
        u32 word = atomic_load(&states(p)[unit]);
        if (STATE(word) == EVICTING && OWNER_OF(word) == OWNER_OF(owner)) stay(p, by, unit);
    }
    limbo_repair(p, dead, by);
    dead->victim_count = 0;
    if (dead->take) madvise(dead->take, p->batch * p->unit, MADV_DONTNEED);
    if (!p->writable) madvise(dead->bounce, p->unit, MADV_DONTNEED), dead->bounce_populated = 0;
    atomic_store(&dead->evicting, EVICT_IDLE);
    u32 filling = atomic_load(&dead->filling);
    if (filling) {
        u64 unit = dead->unit, at = p->base + unit * p->unit;
        u32 word = atomic_load(&states(p)[unit]);
        bool mine = STATE(word) == FILLING && OWNER_OF(word) == OWNER_OF(owner);
        if (mine) {
            bool any = false;
            for (u64 x = 0; x < unit_bytes(p, unit); x += PAGE) any |= sys_resident(at + x) == 1;
            if (any && filling >= 2) finish(p, by, unit, REF);
            else {
                if (filling >= 2) atomic_fetch_sub(&p->resident_units, 1);
                release_unit(p, by, unit, ABSENT);
            }
            sys_wake(p, by, at, unit_bytes(p, unit));
        } else if (filling == 2 && STATE(word) != PRESENT && STATE(word) != FILLING && STATE(word) != LIMBO) {
            // It had let go of the unit, not yet of its place in the budget.
            atomic_fetch_sub(&p->resident_units, 1);
        }
        dead->filling = 0;
    }
    // Faults that it had read and not begun are delivered again.
    for (u32 i = 0; i < dead->deferred_count; i++) sys_wake(p, by, dead->deferred[i].address & ~(PAGE - 1), PAGE);
    dead->deferred_count = 0;
    if (dead->address) sys_wake(p, by, dead->address & ~(PAGE - 1), PAGE);
    dead->address = 0;
    atomic_store(&dead->since_ns, 0);
}
