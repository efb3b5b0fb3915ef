// SIGBUS: in the fast mode it is how a missing page is met, in the faulting thread itself; in both modes it is how a page that
// nobody can fill is told, with a report, to whoever handled SIGBUS before us.
#include "pager.h"
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define MAX_REGIONS 256

static pager *_Atomic regions[MAX_REGIONS];
static struct sigaction previous;
static au32 installed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// What a thread is in the middle of, by its id: thread-local variables may allocate at their first use, and a library that is
// loaded late gets few of the other kind.
typedef struct {
    au32 tid;
    u32 chaining;
    sigjmp_buf *guard;
    u64 address; // where the guarded copy broke off
} state_of_thread;
#define PLACES 256 // threads that copy, or hand a SIGBUS on, at the same moment
static state_of_thread table[PLACES];

static state_of_thread *mine(bool make) {
    u32 tid = (u32)gettid_();
    for (u32 i = 0; i < PLACES; i++)
        if (atomic_load(&table[(tid + i) % PLACES].tid) == tid) return &table[(tid + i) % PLACES];
    for (u32 i = 0; make && i < PLACES; i++) {
        state_of_thread *t = &table[(tid + i) % PLACES];
        u32 nobody = 0;
        if (atomic_compare_exchange_strong(&t->tid, &nobody, tid)) return t;
    }
    return NULL;
}

u64 moved_offset(pager *p, u64 address);
void fill_moved(pager *p, slot *s, u64 offset, u64 address);
void note_fault(pager *p, slot *s, u64 unit);

static const failure *failure_at(pager *p, u64 offset) {
    const failure *best = NULL;
    for (int i = 0; i < MAX_ERRORS; i++) {
        const failure *f = &p->errors[i];
        if (atomic_load(&f->sequence) && offset >= f->offset && offset - f->offset < f->length && (!best || f->sequence > best->sequence)) best = f;
    }
    return best;
}

static void report(pager *p, u64 address, u64 offset) {
    const failure *f = failure_at(p, offset);
    say("userfault: SIGBUS in thread %d at %#lx, offset %lu of region '%s': %s%s%.700s\n", gettid_(), address, offset, p->name,
        f ? strerror(f->code) : "the page could not be filled", f ? ": " : "", f ? f->text : "");
}

static bool resolve_here(pager *p, u64 address, u64 offset, bool write) {
    if (p->mode != MODE_SIGBUS || atomic_load(&p->stopping)) return false;
    u64 unit = unit_of(p, offset);
    __builtin_prefetch(&states(p)[unit], 1); // rarely in the cache: it comes while the clock is read
    u64 since = now_ns();
    bool own = address >= p->base && address < p->base + p->length;
    // A page that comes back as missing for ever is not missing.
    if (p->repeat_address != address) p->repeat_address = address, p->repeats = 0;
    else if (++p->repeats > 100000) return false;
    slot *s = guest_enter(p, since);
    s->address = address;
    int result = FAILED;
    bool poisoned = own && STATE(atomic_load(&states(p)[unit])) == POISONED;
    if (own && !poisoned) {
        note_fault(p, s, unit);
        result = resolve(p, s, unit, address, write ? WRITTEN : 0, true);
    }
    if (!own || (!poisoned && result == FAILED && STATE(atomic_load(&states(p)[unit])) == GONE)) {
        fill_moved(p, s, offset, address);
        result = sys_resident(address) == 1 ? DONE : FAILED;
    }
    if (result == DONE) record_latency(p, s, now_ns() - since);
    guest_leave(p, s);
    return result == DONE;
}

// Whether the access was a write, where the processor says so in what the handler gets.
static bool is_write(void *context) {
#ifdef __x86_64__
    return ((ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
#else
    (void)context;
    return false;
#endif
}

static pager *region_of(u64 address, u64 *offset) {
    // mremap returns when a handler has read of it, which is a moment before it has noted it.
    bool fast = true;
    for (int tries = 0; tries < 20 && fast; tries++) {
        fast = false;
        for (int i = 0; i < MAX_REGIONS; i++) {
            pager *p = atomic_load(&regions[i]);
            if (!p) continue;
            fast |= p->mode == MODE_SIGBUS;
            if (address >= p->base && address < p->base + p->length) *offset = address - p->base;
            else if ((*offset = moved_offset(p, address))) --*offset;
            else continue;
            return p;
        }
        struct timespec t = {0, 1000000};
        if (fast) nanosleep(&t, NULL);
    }
    return NULL;
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    int saved = errno;
    u64 address = (u64)info->si_addr;
    state_of_thread *me = NULL;
    if (info->si_code > 0) {
        u64 offset = 0;
        pager *p = region_of(address, &offset);
        if (p) {
            if (resolve_here(p, address, offset, is_write(context))) { errno = saved; return; }
            me = mine(false);
            if (me && me->guard) {
                me->address = address;
                siglongjmp(*me->guard, 1);
            }
            if (!me) report(p, address, offset);
        }
    }
    struct sigaction old = previous;
    bool plain = !(old.sa_flags & SA_SIGINFO);
    // Whoever hands back to us what we handed on can't do it either: the default is loud.
    me = mine(true);
    if (!me || me->chaining || (plain && (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN))) {
        signal(SIGBUS, SIG_DFL);
        if (info->si_code <= 0) raise(SIGBUS);
        return;
    }
    me->chaining = 1;
    if (plain) old.sa_handler(number);
    else old.sa_sigaction(number, info, context);
    me->chaining = 0;
    if (!me->guard) atomic_store(&me->tid, 0);
    errno = saved;
}

// On the thread's own stack: an alternative one is for overflows of it, and often too small for an eviction.
static void install_handler(void) {
    struct sigaction now, new = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&new.sa_mask);
    if (sigaction(SIGBUS, NULL, &now) || (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)) return;
    previous = now;
    sigaction(SIGBUS, &new, NULL);
}

// The child of a fork has none of the regions.
static void forget(void) {
    forget_tid();
    for (int i = 0; i < MAX_REGIONS; i++) atomic_store(&regions[i], NULL);
    atomic_store(&installed, 0);
    memset(table, 0, sizeof table);
    pthread_mutex_init(&lock, NULL);
}

int bus_add(pager *p) {
    static bool once;
    int code = -ENOSPC;
    pthread_mutex_lock(&lock);
    if (!once) once = !pthread_atfork(NULL, NULL, forget);
    for (int i = 0; i < MAX_REGIONS && code; i++)
        if (!atomic_load(&regions[i])) {
            atomic_store(&regions[i], p);
            atomic_fetch_add(&installed, 1);
            install_handler();
            code = 0;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

void bus_remove(pager *p) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_REGIONS; i++)
        if (atomic_load(&regions[i]) == p) {
            atomic_store(&regions[i], NULL);
            atomic_fetch_sub(&installed, 1);
        }
    pthread_mutex_unlock(&lock);
}

// faulthandler and others may have come after us: they are the ones that we hand on to.
void bus_tick(void) {
    if (atomic_load(&installed) && pthread_mutex_trylock(&lock) == 0) {
        install_handler();
        pthread_mutex_unlock(&lock);
    }
}

// memcpy that survives a page that can't be filled: 0, or 1 + the address of that page.
EXPORT u64 pager_copy(void *volatile to, const void *volatile from, volatile u64 length) {
    sigjmp_buf here;
    state_of_thread *volatile me = mine(true);
    volatile u64 result = 0;
    while (!me) sched_yield(), me = mine(true);
    if (sigsetjmp(here, 1)) result = 1 + me->address;
    else {
        me->guard = &here;
        memcpy(to, from, length);
    }
    me->guard = NULL;
    atomic_store(&me->tid, 0);
    return result;
}
