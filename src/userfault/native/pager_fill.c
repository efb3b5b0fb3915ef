// Filling a unit: claim it, make room, read it, install it. Runs in handlers, and in threads of the application that resolve
// for themselves (SIGBUS mode, ensure).
#include "pager.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

static bool transient(int code) {
    return code == -EINTR || code == -EAGAIN || code == -EBUSY || code == -ETIMEDOUT || code == -ECONNRESET || code == -ESTALE;
}

static void pause_us(u64 us) {
    struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};
    nanosleep(&t, NULL);
}

// While an event (mremap, munmap) is unread every ioctl gets EAGAIN: whoever may read it does, the others step aside.
static bool step_aside(pager *p, slot *s, u64 *since) {
    COUNT(eagain_count);
    if (!*since) *since = now_ns();
    if (now_ns() - *since > 10000000000ull) return false;
    if (!(s->role && drain_event(p, s))) sched_yield();
    return true;
}

// Put [from, from + length), a buffer of the slot, where the fault waits. 0, or -errno: -ENOENT where that place is no longer ours.
int install(pager *p, slot *s, u8 *from, u64 to, u64 length, u32 how) {
    u64 at = 0, since = 0, done;
    bool after_move = false, move = !(how & COPY_ONLY) && !p->writable && length >= MOVE_FROM_BYTES;
    while (at < length) {
        if (after_move && sys_resident((u64)from + at) != 1) { // it was moved, whatever the call said (findings/F-10.md)
            at += PAGE;
            continue;
        }
        int code = move ? sys_move(p, s, AT_MOVE_IN, to + at, (u64)from + at, length - at, &done)
                        : sys_copy(p, s, to + at, from + at, after_move ? PAGE : length - at, !(how & UNARMED), &done);
        at += done;
        if (move && done && from == s->bounce) s->bounce_populated = 0;
        if (!code) continue;
        if (done) { COUNT(partial_count); since = 0; continue; } // the next call says what it was
        switch (code) {
        case -EAGAIN:
            if (!step_aside(p, s, &since)) return code;
            break;
        case -EEXIST: // somebody else has put that page there
            COUNT(eexist_count);
            s->wake = 1;
            if (move) move = false, after_move = true; // page by page
            else at += PAGE;
            since = 0;
            break;
        default:
            if (!move) { if (code == -ENOENT) COUNT(gone_count); return code; }
            // Pinned for a moment (EBUSY), or no pages that can be moved: what was read is in the buffer, so copy it.
            if (code == -EBUSY) COUNT(ebusy_count);
            COUNT(move_fallback_count);
            s->wake = 1;
            move = false, after_move = true;
        }
    }
    return 0;
}

static int read_file(pager *p, slot *s, u64 offset, u64 length, u8 *to, const char **what) {
    u64 have = 0, tries = 0;
    while (have < length) {
        u64 done;
        // O_DIRECT wants whole blocks; what lies behind the data is ignored.
        u64 ask = p->direct ? (length - have + p->align - 1) / p->align * p->align : length - have;
        int code = io_read(p, s, AT_SOURCE_READ, p->source_fd, to + have, ask, p->source_offset + offset + have, &done);
        bool torn = !code && p->direct && done % p->align && done < length - have;
        if (torn) done = done / p->align * p->align;
        if (torn && !done) code = -EAGAIN; // less than a block: of a file that ends here, or of a read that was cut short
        if (!code && !done) { *what = "the file ends before the size that it had when it was opened"; return -EIO; }
        if (code) {
            if (!transient(code) || tries >= p->retries) {
                *what = torn ? "the file ends before the size that it had when it was opened" : "pread of the source";
                return torn ? -EIO : code;
            }
            COUNT(retry_count);
            if (code != -EINTR) pause_us((u64)p->retry_us << (tries < 16 ? tries : 16));
            tries++;
        }
        have += done;
    }
    TALLY(s, in_bytes, length);
    return 0;
}

// The content of a unit as it would be read now: pages from the swap file where they have been there, the rest from the source.
int read_unit(pager *p, slot *s, u64 unit, u8 *to, bool swap_only, const char **what) {
    u64 first = unit * p->unit / PAGE, count = unit_bytes(p, unit) / PAGE;
    for (u64 i = 0, j; i < count; i = j) {
        bool swapped = in_swap(p, first + i);
        u64 place = swapped ? atomic_load(&places(p)[first + i]) - 1 : 0;
        for (j = i + 1; j < count && in_swap(p, first + j) == swapped && (!swapped || atomic_load(&places(p)[first + j]) == place + 1 + j - i); j++) {}
        u64 offset = (first + i) * PAGE, length = (j - i) * PAGE;
        u8 *at = to + i * PAGE;
        if (swapped) {
            offset = place * PAGE;
            while (length) {
                u64 done;
                int code = io_read(p, s, AT_SWAP_READ, p->swap_fd, at, length, offset, &done);
                if (!code && !done) code = -EIO;
                if (code && code != -EINTR && code != -EAGAIN) { *what = "reading back from the swap file"; return code; }
                at += done, length -= done, offset += done;
                ADD(swap_in_bytes, done);
            }
            continue;
        }
        if (swap_only) continue;
        u64 data = offset >= p->size ? 0 : p->size - offset < length ? p->size - offset : length;
        if (p->kind == SOURCE_FILE && data) {
            int code = read_file(p, s, offset, data, at, what);
            if (code) return code;
        } else if (p->kind == SOURCE_PEER && data) {
            int code = peer_read(p, s, offset, data, at, what);
            if (code) return code;
        } else if (p->kind == SOURCE_MEMORY && data) {
            memcpy(at, (void *)(p->source_address + offset), data);
            TALLY(s, in_bytes, data);
        } else if (p->kind == SOURCE_ZERO) {
            data = 0;
        }
        if (data < length) memset(at + data, 0, length - data);
    }
    return 0;
}

void record_latency(pager *p, slot *s, u64 ns) {
    u32 log = ns ? 63 - (u32)__builtin_clzll(ns) : 0;
    u32 part = log >= 3 ? (u32)(ns >> (log - 3)) & 7 : 0;
    u32 index = log * 8 + part;
    TALLY(s, latency[index < BUCKETS ? index : BUCKETS - 1], 1);
}

// Whoever was put off while the unit was in work faults again.
void wake_unit(pager *p, slot *s, u64 unit, u32 old) {
    if (!(old & WAITED)) return;
    futex_wake(&states(p)[unit]);
    sys_wake(p, s, p->base + unit * p->unit, unit_bytes(p, unit));
}

// From FILLING or EVICTING by this owner to another state.
void release_unit(pager *p, slot *s, u64 unit, u32 to) {
    au32 *word = &states(p)[unit];
    u32 old = atomic_load(word);
    u32 keep = STATE(to) == PRESENT ? QUEUED | WRITTEN : QUEUED;
    while (!atomic_compare_exchange_weak(word, &old, (old & DOOMED ? GONE : to) | (old & keep))) {}
    if (old & DOOMED && STATE(to) == PRESENT) atomic_fetch_sub(&p->resident_units, 1);
    wake_unit(p, s, unit, old);
}

void finish(pager *p, slot *s, u64 unit, u32 flags) {
    TALLY(s, fill_count, 1);
    if (flags & AHEAD) COUNT(prefetch_count);
    if (p->policy == POLICY_LRU) atomic_store(&stamps(p)[unit], (u32)(now_ns() >> 20));
    if (p->budget_units && !ring_push(p, unit)) flags |= REF; // the hand comes to its old place first, and puts it into its new one
    release_unit(p, s, unit, PRESENT | flags);
}

// Nobody can fill this unit: whoever touches it gets SIGBUS, and the record says why.
void give_up(pager *p, slot *s, u64 unit, int code, const char *what, const char *record, u32 record_bytes) {
    u64 number = atomic_fetch_add(&p->error_sequence, 1);
    failure *f = &p->errors[number % MAX_ERRORS];
    atomic_store(&f->sequence, 0);
    f->address = s->address ? s->address : p->base + unit * p->unit;
    f->offset = unit * p->unit, f->length = unit_bytes(p, unit);
    f->code = -code, f->tid = s->waiter_tid;
    f->worker = record != NULL;
    u32 n = record ? record_bytes : (u32)strlen(what);
    if (n >= ERROR_TEXT) n = ERROR_TEXT - 1;
    memcpy(f->text, record ? record : what, n);
    f->text[n] = 0, f->length_text = n;
    atomic_store(&f->sequence, number + 1);
    COUNT(error_count);
    u64 at = p->base + unit * p->unit, length = unit_bytes(p, unit);
    COUNT(poison_count);
    // Where a page can't be poisoned, taking the access away is as loud.
    int poisoned = sys_poison(p, s, at, length);
    if (poisoned && poisoned != -ENOENT) mprotect((void *)at, length, PROT_NONE);
    release_unit(p, s, unit, POISONED);
    sys_wake(p, s, at, length);
}

static void leave_room(pager *p, slot *s) {
    if (s->filling == 2) atomic_fetch_sub(&p->resident_units, 1);
    s->filling = 0;
}

static int fill(pager *p, slot *s, u64 unit, u32 flags, bool copy_only, bool soft) {
    const char *what = "";
    u64 at = p->base + unit * p->unit;
    bool ahead = flags & AHEAD;
    u32 how = (copy_only ? COPY_ONLY : 0) | (atomic_load(&states(p)[unit]) & WRITTEN ? UNARMED : 0);
    s->record_bytes = 0;
    strike(p, s, AT_CLAIMED, NULL);
    int code = s->filling == 2 ? 0 : make_room(p, s);
    if (!code && !copy_only) limbo_feed(p, s);
    if (code) {
        if (ahead) { release_unit(p, s, unit, ABSENT); leave_room(p, s); return FAILED; }
        what = code == -EBUSY ? "no page of the region can leave to make room (all are pinned or in work)" : "writing to the swap file to make room";
        goto failed;
    }
    strike(p, s, AT_RESERVED, NULL);
    u8 *from = limbo_buffer(p, s);
    if (s->given) {
        u64 end = unit * p->unit + unit_bytes(p, unit), data = end > p->size ? p->size - unit * p->unit : unit_bytes(p, unit);
        memcpy(from, s->given, data);
        memset(from + data, 0, unit_bytes(p, unit) - data);
        how |= UNARMED;
    } else if (p->kind == SOURCE_WORKER && !soft) {
        code = submit(p, s, unit, ahead);
        if (!code) return PUT_OFF; // the receiver finishes it
        if (code == 1) goto there; // all of it was in the swap file
        what = "the page worker is gone and no other could be started";
        goto failed;
    } else if (!soft) code = read_unit(p, s, unit, from, false, &what);
    if (code) goto failed;
    if (from == s->bounce) s->bounce_populated = 1;
    strike(p, s, AT_FILLED, NULL);
    code = install(p, s, from, at, unit_bytes(p, unit), how);
    if (code == -ENOENT || code == -ESRCH) {
        release_unit(p, s, unit, GONE);
        leave_room(p, s);
        sys_wake(p, s, at, unit_bytes(p, unit));
        return FAILED;
    }
    what = "installing the page";
    if (code) goto failed;
there:
    strike(p, s, AT_INSTALLED, NULL);
    s->filling = 3;
    finish(p, s, unit, flags);
    strike(p, s, AT_WOKEN, NULL);
    s->filling = 0;
    return DONE;
failed:
    if ((code == -EBADF || code == -ENOTTY) && !s->role) { // the application closed our descriptors; the handlers have their own
        release_unit(p, s, unit, ABSENT);
        leave_room(p, s);
        enqueue(p, unit, 0);
        return PUT_OFF;
    }
    if (ahead) release_unit(p, s, unit, ABSENT); // nobody asked for it yet
    else give_up(p, s, unit, code, what, s->record_bytes ? s->record : NULL, s->record_bytes);
    leave_room(p, s);
    return FAILED;
}

// The unit is there (DONE), will be (PUT_OFF, unless `wait`), or can't be (FAILED). [address, address + length) is what is asked for.
// how: AHEAD, nobody asked for it yet; WRITTEN, for a write.
int resolve(pager *p, slot *s, u64 unit, u64 address, u32 how, bool wait) {
    bool ahead = how & AHEAD;
    au32 *word = &states(p)[unit];
    bool mine = true;
    for (;;) {
        u32 old = atomic_load(word);
        u32 claim = FILLING | (old & QUEUED) | OWNER(s - p->slots);
        bool counted = false, soft = false;
        switch (STATE(old)) {
        case FILLING:
        case EVICTING:
            if (ahead && !wait) return PUT_OFF;
            if (!(old & WAITED) && !atomic_compare_exchange_weak(word, &old, old | WAITED)) continue;
            if (!wait) return PUT_OFF;
            futex_wait(word, old | WAITED, 100000000ull);
            mine = false;
            continue;
        case GONE: return FAILED;
        case LIMBO:
            if (ahead) return DONE;
            soft = limbo_claim(p, s, unit, old);
            if (!soft) continue;
            break;
        case PRESENT:
            if (old & AHEAD && !ahead) {
                if (!atomic_compare_exchange_weak(word, &old, (old & ~AHEAD) | REF)) continue;
                COUNT(prefetch_hit_count);
            } else if (!(old & REF) && !ahead) atomic_fetch_or(word, REF);
            if (p->policy == POLICY_LRU && !ahead) atomic_store(&stamps(p)[unit], (u32)(now_ns() >> 20));
            if (ahead) return DONE;
            s->wake = 1;
            if (sys_resident(address)) { if (mine) COUNT(stale_fault_count); return DONE; }
            counted = true; // the application dropped pages of it: MADV_DONTNEED
            COUNT(refill_count);
            break;
        case POISONED:
            if (ahead || !mine) return FAILED; // who waited for it has his answer; who comes later tries again
            break;
        }
        if (old & WAITED) claim |= WAITED;
        // In the word from the claim on, so that a sweep that comes between takes it away again.
        if (how & WRITTEN && p->writable && p->unit == PAGE) claim |= WRITTEN;
        if (!soft) {
            s->unit = unit;
            s->filling = counted ? 2 : 1;
            if (!atomic_compare_exchange_weak(word, &old, claim)) { s->filling = 0; continue; }
        }
        if (claim & WRITTEN) atomic_store(&p->any_written, 1); // not before: who sweeps takes it for what is in the words already
        int result = fill(p, s, unit, soft ? REF : how & AHEAD, counted || STATE(old) == POISONED, soft);
        limbo_release(p, s);
        if (result != PUT_OFF || !wait) return result;
        mine = false;
        old = atomic_load(word);
        if (STATE(old) == ABSENT) futex_wait(word, old, 1000000);
    }
}

slot *guest_enter(pager *p, u64 since) {
    u32 tid = (u32)gettid_();
    for (;;) {
        for (u32 i = MAX_SERVICE; i < MAX_SLOTS; i++) {
            u32 nobody = 0;
            if (atomic_load(&p->slots[i].owner) == 0 && atomic_compare_exchange_strong(&p->slots[i].owner, &nobody, tid)) {
                p->slots[i].waiter_tid = tid;
                p->slots[i].reported = 0;
                p->slots[i].given = NULL;
                atomic_store_explicit(&p->slots[i].since_ns, since, memory_order_relaxed);
                return &p->slots[i];
            }
        }
        sched_yield();
    }
}

void guest_leave(pager *p, slot *s) {
    (void)p;
    s->address = 0;
    atomic_store_explicit(&s->since_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&s->owner, 0, memory_order_release);
}
