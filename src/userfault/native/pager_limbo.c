// Second chance: no bit tells user space that a page was read, so the clock's victims are moved out and kept for a while. Whoever
// touches one gets it back by a move, without asking the source, and has told us that it is in use. Big units of read-only regions
// leave by a move anyway; they go to limbo on their way out. What is there still counts against the budget.
//
// A unit is in limbo if, and only if, its word says so and at which place. Whoever changes that, in either direction, has locked the
// place, and the lock names its slot: what a dead thread has locked, repair looks through. `unit` tells it whose pages those are; it
// is written after the word in both directions, so the word says which half was done. A slot's locked place without a unit is the
// buffer of the fill that it is at.
#include "pager.h"
#include <sys/mman.h>

typedef struct {
    au32 owner; // 1 + slot, 0: nobody
    au32 unit;  // 1 + which, 0: none
} limbo_place;

static limbo_place *place_at(pager *p, u64 index) { return (limbo_place *)((u8 *)p + p->limbo_offset) + index; }
static u8 *pages_of(pager *p, u64 index) { return p->limbo_pages + index * p->unit; }
static u32 word_of(pager *p, u64 unit) { return atomic_load(&states(p)[unit]); }

static bool holds(pager *p, u64 index, u64 unit) {
    u32 word = word_of(p, unit);
    return STATE(word) == LIMBO && OWNER_OF(word) == index + 1;
}

// How many places: two more for each slot, one that its victim goes to, one whose pages are its buffer.
u64 limbo_places(u64 units) { return units ? units + 2 * MAX_SLOTS : 0; }
u64 limbo_bytes(u64 places) { return places * sizeof(limbo_place); }

static bool lock(pager *p, slot *s, u64 index) {
    u32 nobody = 0;
    return atomic_compare_exchange_strong(&place_at(p, index)->owner, &nobody, (u32)(s - p->slots) + 1);
}
// Somebody is between two words of it, or dead and not yet found. Not by yielding: he may have a lower priority.
static void wait_for(pager *p, u64 index) {
    u32 owner = atomic_load(&place_at(p, index)->owner);
    if (owner) futex_wait(&place_at(p, index)->owner, owner, 100000);
}
static void unlock(pager *p, u64 index) { atomic_store(&place_at(p, index)->owner, 0); }

static void vacate(pager *p, u64 index) {
    madvise(pages_of(p, index), p->unit, MADV_DONTNEED);
    unlock(p, index);
}

// A locked place's pages are the slot's buffer, and nothing else is.
static void adopt(pager *p, slot *s, u64 index) {
    s->place = (u32)index + 1;
    if (s->bounce_populated) madvise(s->bounce, p->unit, MADV_DONTNEED), s->bounce_populated = 0;
}

// The unit of a locked place has left limbo; `leaves`: and is no longer counted at all.
static void forget(pager *p, u64 index, bool leaves) {
    atomic_store(&place_at(p, index)->unit, 0);
    atomic_fetch_sub(&p->limbo_count, 1);
    if (!leaves) return;
    atomic_fetch_sub(&p->resident_units, 1);
    COUNT(evict_clean_count);
}

// Out of the locked place's limbo, by the word. False where it was not there, or not any more.
static bool leave(pager *p, slot *s, u64 index, u64 unit, u32 to) {
    strike(p, s, AT_LIMBO_LOCKED, NULL);
    u32 old = word_of(p, unit);
    while (STATE(old) == LIMBO && OWNER_OF(old) == index + 1)
        if (atomic_compare_exchange_weak(&states(p)[unit], &old, to | (old & QUEUED))) {
            strike(p, s, AT_LIMBO_LEFT, NULL);
            return true;
        }
    return false;
}

// More is in place than there should be beside a full limbo.
static bool wants(pager *p) {
    return p->limbo_units && (i64)(atomic_load(&p->resident_units) - atomic_load(&p->limbo_count)) > (i64)(p->budget_units - p->limbo_units);
}

// The one that has been there longest goes, and its pages are the next fill's buffer. False where none can.
bool limbo_displace(pager *p, slot *s) {
    for (u64 tries = p->limbo_places; tries && atomic_load(&p->limbo_count); tries--) {
        u64 index = atomic_fetch_add(&p->limbo_head, 1) % p->limbo_places;
        limbo_place *l = place_at(p, index);
        if (!atomic_load(&l->unit) || !lock(p, s, index)) continue;
        u32 unit = atomic_load(&l->unit);
        if (!unit || !leave(p, s, index, unit - 1, ABSENT)) {
            unlock(p, index);
            continue;
        }
        forget(p, index, true);
        if (s->place) vacate(p, index);
        else adopt(p, s, index);
        return true;
    }
    return false;
}

// The slot's one victim, which it is evicting, goes to limbo. False where it can't: it is still to be dropped.
static bool put(pager *p, slot *s) {
    u64 victim = s->victims[0], index = 0, tries = p->limbo_places;
    bool have = false;
    while (!have && tries--) {
        index = atomic_fetch_add(&p->limbo_tail, 1) % p->limbo_places;
        have = !atomic_load(&place_at(p, index)->unit) && lock(p, s, index);
        if (have && atomic_load(&place_at(p, index)->unit)) have = false, unlock(p, index);
    }
    if (!have) return false;
    // A page that the application dropped is a hole there, and again one when the unit comes back: then the source is asked for it.
    bool moved = !take_out(p, s, p->base + victim * p->unit, unit_bytes(p, victim), pages_of(p, index));
    strike(p, s, AT_LIMBO_MOVED, NULL);
    u32 old = word_of(p, victim);
    do moved &= !(old & DOOMED);
    while (moved && !atomic_compare_exchange_weak(&states(p)[victim], &old, LIMBO | (old & QUEUED) | OWNER(index)));
    if (!moved) {
        vacate(p, index);
        return false;
    }
    strike(p, s, AT_LIMBO_KEPT, NULL);
    atomic_fetch_add(&p->limbo_count, 1);
    atomic_store(&place_at(p, index)->unit, (u32)victim + 1);
    wake_unit(p, s, victim, old);
    unlock(p, index);
    return true;
}

// Where less is in limbo than should be, what the clock's hand finds goes there.
void limbo_feed(pager *p, slot *s) {
    if (!wants(p)) return;
    begin(p, s);
    claim_victims(p, s, 1);
    if (s->victim_count) {
        atomic_store(&s->evicting, EVICT_DROP);
        strike(p, s, AT_VICTIMS, NULL);
        if (put(p, s)) s->victim_count = 0;
        else evict_claimed(p, s);
    }
    atomic_store(&s->evicting, EVICT_IDLE);
}

// Claim a unit, whose word is `old`, out of limbo: its pages are the slot's buffer, as if they had been read. False: look again.
bool limbo_claim(pager *p, slot *s, u64 unit, u32 old) {
    u64 index = OWNER_OF(old) - 1;
    if (!lock(p, s, index)) {
        wait_for(p, index);
        return false;
    }
    s->unit = unit;
    s->filling = 2;
    if (!leave(p, s, index, unit, FILLING | OWNER(s - p->slots))) {
        s->filling = 0;
        unlock(p, index);
        return false;
    }
    forget(p, index, false);
    adopt(p, s, index);
    COUNT(soft_fault_count);
    return true;
}

// Where the slot reads to and installs from.
u8 *limbo_buffer(pager *p, slot *s) { return s->place ? pages_of(p, s->place - 1) : s->bounce; }

// The fill is over: its buffer is a hole again.
void limbo_release(pager *p, slot *s) {
    if (!s->place) return;
    u64 index = s->place - 1;
    s->place = 0;
    vacate(p, index);
}

// A unit leaves limbo for good: it is evicted, or unmapped by the application.
void limbo_drop(pager *p, slot *s, u64 unit, u32 to) {
    for (u32 old; STATE(old = word_of(p, unit)) == LIMBO;) {
        u64 index = OWNER_OF(old) - 1;
        if (!lock(p, s, index)) {
            wait_for(p, index);
            continue;
        }
        if (!leave(p, s, index, unit, to)) {
            unlock(p, index);
            continue;
        }
        forget(p, index, true);
        vacate(p, index);
    }
}

// What a dead thread had locked. Before its victims and its fill are forgotten.
void limbo_repair(pager *p, slot *dead, slot *by) {
    for (u64 index = 0; index < p->limbo_places; index++) {
        limbo_place *l = place_at(p, index);
        if (atomic_load(&l->owner) != (u32)(dead - p->slots) + 1) continue;
        u32 unit = atomic_load(&l->unit);
        if (!unit && dead->victim_count && holds(p, index, dead->victims[0])) { // it had said so only in the word
            u64 victim = dead->victims[0];
            atomic_fetch_add(&p->limbo_count, 1);
            atomic_store(&l->unit, (u32)victim + 1);
            wake_unit(p, by, victim, WAITED);
            unlock(p, index);
            continue;
        }
        if (unit && holds(p, index, unit - 1)) { // nothing had happened yet
            unlock(p, index);
            continue;
        }
        // A unit that it had claimed keeps its place in the budget, until that is repaired.
        if (unit) forget(p, index, !(atomic_load(&dead->filling) && dead->unit == unit - 1));
        vacate(p, index);
    }
    dead->place = 0;
}
