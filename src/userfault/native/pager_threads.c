// The service threads of a region. They share a descriptor table of their own, so that nothing the application closes takes
// the userfaultfd away; each holds a robust mutex for as long as it lives, so that the others see at once that it died.
#include "pager.h"
#include "uapi.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { GUARDIAN, BACKGROUND, RECEIVER, HANDLERS }; // a role is index + 1
enum { NOT_THERE, RUNNING, STARTING };
#define TICK_MS 20

static void *service_main(void *);

void say(const char *format, ...) {
    char line[1024];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n > (int)sizeof line - 1) n = sizeof line - 1;
    if (n > 0 && write(2, line, (size_t)n) < 0) {}
}

static bool needed(pager *p, u32 index) {
    if (index == RECEIVER) return p->kind == SOURCE_WORKER;
    return index < HANDLERS + p->handlers;
}

// The argument of a thread is its slot's address: no memory to hand over.
static int spawn(pager *p, u32 index) {
    atomic_store(&p->slots[index].alive, STARTING);
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 512 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    p->slots[index].role = index + 1;
    int code = pthread_create(&thread, &attributes, service_main, &p->slots[index]);
    pthread_attr_destroy(&attributes);
    if (code) atomic_store(&p->slots[index].alive, NOT_THERE);
    return -code;
}

static void mark_gone(pager *p, slot *s, u64 from, u64 to) {
    u64 end = p->base + p->length;
    if (to <= p->base || from >= end) return;
    u64 first = from < p->base ? 0 : (from - p->base) / p->unit, last = ((to > end ? end : to) - 1 - p->base) / p->unit;
    for (u64 unit = first; unit <= last; unit++) {
        u32 old = atomic_load(&states(p)[unit]);
        for (;;) {
            if (STATE(old) == LIMBO) {
                limbo_drop(p, s, unit, GONE);
                old = atomic_load(&states(p)[unit]);
                continue;
            }
            bool in_work = STATE(old) == FILLING || STATE(old) == EVICTING;
            if (!atomic_compare_exchange_weak(&states(p)[unit], &old, in_work ? old | DOOMED : GONE | (old & QUEUED))) continue;
            if (STATE(old) == PRESENT) atomic_fetch_sub(&p->resident_units, 1);
            break;
        }
    }
}

// A page of a range that the application moved away (mremap), or that lost its neighbours (munmap): filled where it is now, for good.
static void fill_page(pager *p, slot *s, u64 offset, u64 at) {
    const char *what = "memory that was moved with mremap is not served from a page worker";
    at &= ~(PAGE - 1), offset &= ~(PAGE - 1);
    int code = -EIO;
    if (p->kind != SOURCE_WORKER) {
        // Read the whole unit: sources may want it aligned.
        code = read_unit(p, s, offset / p->unit, s->bounce, false, &what);
        if (!code) {
            s->bounce_populated = 1;
            code = install(p, s, s->bounce + offset % p->unit, at, PAGE, COPY_ONLY);
        }
    }
    if (code && code != -ENOENT) {
        say("userfault: region '%s': the page at %#lx, moved there from offset %#lx, can't be filled: %s\n", p->name, at, offset, what);
        sys_poison(p, s, at, PAGE);
    }
    sys_wake(p, s, at, PAGE);
}

static void event(pager *p, slot *s, const struct uffd_msg *m) {
    if (m->event == UFFD_EVENT_REMAP) {
        COUNT(remap_count);
        u64 from = m->arg.remap.from, length = m->arg.remap.len;
        u32 n = atomic_load(&p->remap_count);
        if (from >= p->base && from < p->base + p->length) {
            if (n < MAX_REMAPS) {
                p->remaps[n].from = from, p->remaps[n].to = m->arg.remap.to, p->remaps[n].length = length;
                atomic_store(&p->remap_count, n + 1);
            } else say("userfault: region '%s' was moved %d times; the next move of it is not served\n", p->name, MAX_REMAPS);
            mark_gone(p, s, from, from + length);
        }
    } else if (m->event == UFFD_EVENT_UNMAP || m->event == UFFD_EVENT_REMOVE) {
        COUNT(unmap_count);
        mark_gone(p, s, m->arg.remove.start, m->arg.remove.end);
    }
}

// Read one message; faults wait their turn in the slot, which only handlers serve. False where nothing was there.
bool drain_event(pager *p, slot *s) {
    struct uffd_msg m;
    if (s->role <= HANDLERS || s->deferred_count == 64 || read(p->uffd, &m, sizeof m) != sizeof m) return false;
    if (m.event == UFFD_EVENT_PAGEFAULT) {
        u32 n = s->deferred_count;
        s->deferred[n].address = m.arg.pagefault.address;
        s->deferred[n].tid = m.arg.pagefault.ptid;
        s->deferred[n].flags = (u32)m.arg.pagefault.flags;
        s->deferred[n].since_ns = now_ns();
        s->deferred_count = n + 1;
    } else event(p, s, &m);
    return true;
}

static void notice_run(pager *p, u64 unit) {
    if (!p->prefetch_units) return;
    u64 stride = unit - p->last_unit;
    // A run's next fault lies right behind what was fetched ahead.
    if (p->stride && p->stride_hits && unit - p->last_unit == p->stride * (p->stride_hits + 1)) stride = p->stride;
    else if (stride != p->stride) p->stride_hits = 0;
    u64 far = stride + 64 * p->prefetch_units;
    if (stride && far <= 128ull * p->prefetch_units) {
        if (stride == p->stride) {
            u64 ahead = p->stride_hits ? p->stride_hits * 2 : 2;
            if (ahead > p->prefetch_units) ahead = p->prefetch_units;
            for (u64 i = 1, next = unit + stride; i <= ahead && next < p->units; i++, next += stride) enqueue(p, next, 1);
            p->stride_hits = ahead;
        }
        p->stride = stride;
    } else p->stride = 0;
    p->last_unit = unit;
}

void note_fault(pager *p, slot *s, u64 unit) {
    TALLY(s, fault_count, 1);
    if (p->record_capacity) {
        u64 n = p->record_count;
        if (n < p->record_capacity) ((u32 *)((u8 *)p + p->record_offset))[n] = (u32)unit, p->record_count = n + 1;
    }
    notice_run(p, unit);
}

// Where an address that is not the region's own belongs in it: 1 + offset, or 0.
u64 moved_offset(pager *p, u64 address) {
    for (u32 i = atomic_load(&p->remap_count); i-- > 0;)
        if (address >= p->remaps[i].to && address - p->remaps[i].to < p->remaps[i].length)
            return 1 + p->remaps[i].from - p->base + address - p->remaps[i].to;
    return 0;
}

void fill_moved(pager *p, slot *s, u64 offset, u64 address) { fill_page(p, s, offset, address); }

static void serve(pager *p, slot *s, u64 address, u32 tid, u64 since, u64 flags) {
    s->address = address, s->waiter_tid = tid, s->reported = 0;
    atomic_store_explicit(&s->since_ns, since, memory_order_relaxed);
    strike(p, s, AT_EVENT_READ, NULL);
    if (address >= p->base && address < p->base + p->length) {
        u64 unit = unit_of(p, address - p->base);
        note_fault(p, s, unit);
        s->wake = 0;
        int result = resolve(p, s, unit, address, flags & UFFD_PAGEFAULT_FLAG_WRITE ? WRITTEN : 0, false);
        if (result == DONE) record_latency(p, s, now_ns() - since);
        if (result == DONE && s->wake) sys_wake(p, s, address & ~(PAGE - 1), PAGE);
        if (result == FAILED && STATE(atomic_load(&states(p)[unit])) == GONE) fill_page(p, s, address - p->base, address);
    } else {
        u64 offset = moved_offset(p, address);
        if (offset) fill_page(p, s, offset - 1, address);
        else sys_wake(p, s, address & ~(PAGE - 1), PAGE);
    }
    s->address = 0;
    atomic_store_explicit(&s->since_ns, 0, memory_order_relaxed);
}

// Everybody looks after everybody: the guardian after all, the others after the guardian.
static void look_after(pager *p, slot *by, u32 index) {
    if (atomic_load(&p->stopping)) return;
    slot *s = &p->slots[index];
    u32 alive = atomic_load(&s->alive);
    if (alive == STARTING) return;
    if (alive == RUNNING) {
        int code = pthread_mutex_trylock(&p->life[index]);
        if (code == EBUSY) return;
        if (code == EOWNERDEAD) pthread_mutex_consistent(&p->life[index]);
        // Another one may have been quicker.
        bool ours = (code == 0 || code == EOWNERDEAD) && atomic_compare_exchange_strong(&s->alive, &alive, STARTING);
        if (code == 0 || code == EOWNERDEAD) pthread_mutex_unlock(&p->life[index]);
        if (!ours) return;
        COUNT(handler_restart_count);
        repair(p, s, by);
        if (p->kind == SOURCE_WORKER) resend(p);
    }
    i64 value;
    int code = strike(p, by, AT_SPAWN, &value) == DO_ERRNO ? -(int)value : spawn(p, index);
    if (!code) return;
    atomic_store(&s->alive, NOT_THERE);
    if (s->reported) return;
    s->reported = 1;
    say("userfault: region '%s': a thread of it can't be started: %s; who needs it waits until it can: allow this user more threads "
        "(ulimit -u, the pids limit of its cgroup)\n", p->name, strerror(-code));
}

static void stalls(pager *p) {
    if (!p->stall_ms) return;
    u64 now = now_ns();
    for (u32 i = 0; i < MAX_SLOTS; i++) {
        slot *s = &p->slots[i];
        u64 since = atomic_load(&s->since_ns);
        if (!since || s->reported || now < since + p->stall_ms * 1000000ull) continue;
        s->reported = 1;
        COUNT(stall_count);
        say("userfault: thread %u has waited %.1f s for offset %#lx of region '%s'\n", s->waiter_tid, (double)(now - since) / 1e9,
            s->address >= p->base ? s->address - p->base : s->unit * p->unit, p->name);
    }
    for (u32 i = 0; i < MAX_PENDING; i++) {
        pending *w = &p->pendings[i];
        if (!atomic_load(&w->busy) || w->reported || w->ahead || now < w->first_ns + p->stall_ms * 1000000ull) continue;
        w->reported = 1;
        COUNT(stall_count);
        say("userfault: thread %u has waited %.1f s for the page worker of region '%s' to read %lu bytes at offset %#lx\n",
            w->waiter_tid, (double)(now - w->first_ns) / 1e9, p->name, w->length, w->offset);
    }
}

// Whoever still holds his mutex still uses the control block.
static void await_others(pager *p) {
    for (u32 i = BACKGROUND; i < MAX_SERVICE; i++) {
        while (atomic_load(&p->slots[i].alive) == STARTING) sched_yield();
        lock_robust(&p->life[i]);
        pthread_mutex_unlock(&p->life[i]);
    }
}

static void guardian(pager *p, slot *s) {
    for (u32 i = BACKGROUND; i < MAX_SERVICE; i++)
        if (needed(p, i) && atomic_load(&p->slots[i].alive) == NOT_THERE) spawn(p, i);
    atomic_store(&p->started, 1);
    futex_wake(&p->started);
    struct pollfd f = {.fd = p->event_fd, .events = POLLIN};
    while (!atomic_load(&p->stopping)) {
        poll(&f, 1, TICK_MS);
        strike(p, s, AT_TICK, NULL);
        for (u32 i = BACKGROUND; i < MAX_SERVICE; i++)
            if (needed(p, i)) look_after(p, s, i);
        for (u32 i = MAX_SERVICE; i < MAX_SLOTS; i++) { // a thread of the application that died in here
            u32 tid = atomic_load(&p->slots[i].owner);
            if (!tid || syscall(SYS_tgkill, p->pid, tid, 0) == 0 || errno != ESRCH) continue;
            repair(p, &p->slots[i], s);
            guest_leave(p, &p->slots[i]);
        }
        u32 sweeper = atomic_load(&p->paused);
        if (sweeper && syscall(SYS_tgkill, p->pid, sweeper, 0) && errno == ESRCH) atomic_store(&p->paused, 0);
        if (p->kind == SOURCE_WORKER) resend(p);
        stalls(p);
        bus_tick();
    }
    await_others(p); // the last one out
}

void enqueue(pager *p, u64 unit, u64 count) {
    lock_robust(&p->ring_lock);
    if (p->queue_tail - p->queue_head < QUEUE) p->queue[p->queue_tail++ % QUEUE] = unit << 16 | count;
    pthread_mutex_unlock(&p->ring_lock);
    ring_bell(p);
}

void ring_bell(pager *p) {
    atomic_fetch_add(&p->queue_bell, 1);
    futex_wake(&p->queue_bell);
}

static void background(pager *p, slot *s) {
    while (!atomic_load(&p->stopping)) {
        u32 bell = atomic_load(&p->queue_bell);
        if (atomic_exchange(&p->unsent, 0)) resend(p);
        lock_robust(&p->ring_lock);
        u64 item = p->queue_head < p->queue_tail ? p->queue[p->queue_head++ % QUEUE] : UINT64_MAX;
        pthread_mutex_unlock(&p->ring_lock);
        if (item == UINT64_MAX) {
            futex_wait(&p->queue_bell, bell, 500000000ull);
            look_after(p, s, GUARDIAN);
            continue;
        }
        u64 unit = item >> 16, count = item & 0xffff;
        atomic_store(&s->since_ns, now_ns());
        s->reported = 0;
        if (!count && unit < p->units && STATE(atomic_load(&states(p)[unit])) == ABSENT) resolve(p, s, unit, p->base + unit * p->unit, 0, false);
        for (u64 i = 0; i < count && unit + i < p->units && !atomic_load(&p->stopping); i++) {
            if (atomic_exchange(&p->unsent, 0)) resend(p);
            resolve(p, s, unit + i, p->base + (unit + i) * p->unit, AHEAD, false);
        }
        atomic_store(&s->since_ns, 0);
    }
}

static void handler(pager *p, slot *s) {
    struct pollfd f[2] = {{.fd = p->uffd, .events = POLLIN}, {.fd = p->event_fd, .events = POLLIN}};
    while (!atomic_load(&p->stopping)) {
        while (s->deferred_count) {
            u32 n = s->deferred_count - 1;
            u64 address = s->deferred[n].address, since = s->deferred[n].since_ns;
            u32 tid = s->deferred[n].tid, flags = s->deferred[n].flags;
            s->address = address;
            s->deferred_count = n;
            serve(p, s, address, tid, since, flags);
        }
        if (poll(f, 2, 200) == 0) look_after(p, s, GUARDIAN);
        if (!(f[0].revents & POLLIN)) continue;
        struct uffd_msg m;
        if (read(p->uffd, &m, sizeof m) != sizeof m) continue;
        if (m.event == UFFD_EVENT_PAGEFAULT) serve(p, s, m.arg.pagefault.address, m.arg.pagefault.ptid, now_ns(), m.arg.pagefault.flags);
        else event(p, s, &m);
    }
}

// A table of descriptors of our own, with nothing in it but what we need: a pipe that the application closes must close.
static void own_descriptors(pager *p) {
    if (unshare(CLONE_FILES)) return;
    int keep[] = {2, p->uffd, p->source_fd, p->swap_fd, p->worker_fd, p->pidfd, p->event_fd, p->pagemap_fd, p->memory_fd};
    int count = sizeof keep / sizeof *keep;
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++)
            if (keep[j] < keep[i]) { int x = keep[i]; keep[i] = keep[j], keep[j] = x; }
    unsigned from = 0;
    for (int i = 0; i < count; i++) {
        if (keep[i] < 0) continue;
        if ((unsigned)keep[i] > from) syscall(SYS_close_range, from, keep[i] - 1, 0);
        from = (unsigned)keep[i] + 1;
    }
    syscall(SYS_close_range, from, ~0u, 0);
    // Whoever is started from here finds the standard three taken.
    while (fcntl(1, F_GETFD) < 0)
        if (open("/dev/null", O_RDWR) < 0) break;
}

static void *service_main(void *argument) {
    slot *s = argument;
    u32 index = s->role - 1;
    pager *p = (pager *)((u8 *)(s - index) - offsetof(pager, slots));
    pthread_setname_np(pthread_self(), index == GUARDIAN ? "uf-guardian" : index == BACKGROUND ? "uf-background" : index == RECEIVER ? "uf-receiver" : "uf-handler");
    lock_robust(&p->life[index]);
    atomic_store(&s->owner, (u32)gettid_());
    atomic_store(&s->alive, RUNNING);
    if (index == GUARDIAN) {
        if (!atomic_load(&p->started)) own_descriptors(p);
        guardian(p, s);
    } else if (index == BACKGROUND) background(p, s);
    else if (index == RECEIVER) receiver_main(p);
    else handler(p, s);
    atomic_store(&s->owner, 0);
    if (index != GUARDIAN) atomic_store(&s->alive, NOT_THERE); // one that is not there is one that died, see stop_threads
    pthread_mutex_unlock(&p->life[index]);
    if (index == GUARDIAN) { atomic_store(&p->started, 2); futex_wake(&p->started); }
    return NULL;
}

int start_threads(pager *p) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < MAX_SERVICE; i++) pthread_mutex_init(&p->life[i], &a);
    pthread_mutex_init(&p->ring_lock, &a);
    pthread_mutex_init(&p->send_lock, &a);
    pthread_mutexattr_destroy(&a);
    // Our threads take no signals: a handler of the application would run on the fault path.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int code = spawn(p, GUARDIAN);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    while (!code && !atomic_load(&p->started)) futex_wait(&p->started, 0, 100000000ull);
    return code;
}

// It died, or could not be started anew, and nobody will try now. False as well where somebody is at it.
static bool guardian_is_lost(pager *p) {
    u32 alive = atomic_load(&p->slots[GUARDIAN].alive);
    if (alive == RUNNING) {
        int code = pthread_mutex_trylock(&p->life[GUARDIAN]);
        if (code == EOWNERDEAD) pthread_mutex_consistent(&p->life[GUARDIAN]);
        if (code == 0 || code == EOWNERDEAD) pthread_mutex_unlock(&p->life[GUARDIAN]);
        if (code != EOWNERDEAD) return false;
    }
    // Whoever looks after it, too late to see that all ends, finds that somebody else does.
    return alive != STARTING && atomic_compare_exchange_strong(&p->slots[GUARDIAN].alive, &alive, STARTING);
}

void stop_threads(pager *p) {
    atomic_store(&p->stopping, 1);
    u64 one = 1;
    if (write(p->event_fd, &one, sizeof one) < 0) {} // closed by the application: they look every fraction of a second
    atomic_fetch_add(&p->queue_bell, 1);
    futex_wake(&p->queue_bell);
    while (atomic_load(&p->started) != 2) {
        futex_wait(&p->started, 1, 100000000ull);
        if (guardian_is_lost(p)) {
            await_others(p);
            return;
        }
    }
}
