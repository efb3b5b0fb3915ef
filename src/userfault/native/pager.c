// Making, asking and ending a region. Python calls what is EXPORTed here, through ctypes: never with the GIL held.
#include "pager.h"
#include "uapi.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// paging/native.py has the same.
typedef struct {
    u64 base, length, size, unit, budget_units;
    u32 mode, writable, kind, handlers, policy, direct, align, retries, retry_us, stall_ms, prefetch_units, spawn_argc;
    i32 uffd, source_fd, swap_fd, worker_fd, user_mode_only, worker_pid;
    u64 source_offset, source_address, policy_function, policy_context, record_capacity, arguments, arguments_bytes, job, job_bytes;
    char name[256];
    u8 peer[32];
    u32 peer_bytes, peer_timeout_ms;
} settings;

static u64 round_up(u64 n, u64 to) { return (n + to - 1) / to * to; }

// paging/native.py compares: the two descriptions of these structs must agree.
EXPORT u64 pager_sizeof(int which) { return which ? sizeof(settings) : offsetof(pager, pendings); }

// A userfaultfd, by whichever door is open: the system call, the device, the call for faults of user mode only.
static int open_userfaultfd(i32 *user_mode_only) {
    int flags = O_CLOEXEC | O_NONBLOCK, fd = -1;
    if (!*user_mode_only) {
        fd = (int)syscall(SYS_userfaultfd, flags);
        if (fd < 0) {
            int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
            if (device >= 0) {
                fd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
                close(device);
            }
        }
    }
    if (fd < 0) {
        fd = (int)syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
        *user_mode_only = 1;
    }
    return fd < 0 ? -errno : fd;
}

// One with all that a region needs of it, or -errno. `user_mode_only`: what is wanted, and then what it is.
EXPORT int pager_userfaultfd(u32 mode, u32 writable, i32 *user_mode_only) {
    int fd = open_userfaultfd(user_mode_only);
    if (fd < 0) return fd;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID |
        UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_POISON | UFFD_FEATURE_MOVE};
    if (writable) api.features |= UFFD_FEATURE_WP_ASYNC;
    if (mode == MODE_SIGBUS) api.features |= UFFD_FEATURE_SIGBUS;
    if (!ioctl(fd, UFFDIO_API, &api)) return fd;
    int code = -errno;
    close(fd);
    return code == -EINVAL ? -ENOSYS : code;
}

static int enroll(pager *p, void *at, u64 length, u64 mode) {
    struct uffdio_register r = {.range = {(u64)at, length}, .mode = mode};
    return ioctl(p->uffd, UFFDIO_REGISTER, &r) ? -errno : 0;
}

static int make_staging(pager *p) {
    u64 bounce = round_up(p->unit > 16384 ? p->unit : 16384, p->unit), take = p->batch * p->unit;
    u64 align = p->unit > PAGE ? p->unit : PAGE;
    p->staging_bytes = (bounce + 2 * take) * MAX_SLOTS + p->limbo_places * p->unit + align;
    p->staging = mmap(NULL, p->staging_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->staging == MAP_FAILED) return -errno;
    u8 *at = (u8 *)round_up((u64)p->staging, align);
    madvise(p->staging, p->staging_bytes, MADV_DONTFORK);
    madvise(p->staging, p->staging_bytes, p->unit >= 1 << 21 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    for (int i = 0; i < MAX_SLOTS; i++) {
        p->slots[i].bounce = at + i * (bounce + 2 * take);
        p->slots[i].take = p->slots[i].bounce + bounce;
        p->slots[i].peek = p->slots[i].take + take;
    }
    p->limbo_pages = at + MAX_SLOTS * (bounce + 2 * take);
    // Write-protect only: as a place to move pages to. A hole in it must not fault to us while we fill it.
    return enroll(p, p->staging, p->staging_bytes, UFFDIO_REGISTER_MODE_WP);
}

static void withdraw(pager *p, u64 at, u64 length) {
    struct uffdio_range r = {at, length};
    ioctl(p->uffd, UFFDIO_UNREGISTER, &r);
}

static void dispose(pager *p) {
    // A worker may still hold the userfaultfd, and nobody reads events any more: unmapping what is registered would wait for ever.
    // What the application moved away lives on, and its missing pages must not become zeros.
    for (u32 i = 0; i < p->remap_count; i++) {
        sys_poison(p, NULL, p->remaps[i].to, p->remaps[i].length);
        withdraw(p, p->remaps[i].to, p->remaps[i].length);
    }
    withdraw(p, p->base, p->length);
    if (p->staging && p->staging != MAP_FAILED) withdraw(p, (u64)p->staging, p->staging_bytes);
    int fds[] = {p->uffd, p->pidfd, p->event_fd, p->pagemap_fd, p->memory_fd, p->source_fd, p->swap_fd, p->worker_fd};
    for (u32 i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0) close(fds[i]);
    for (u32 i = MAX_SERVICE; i < MAX_SLOTS; i++) peer_disconnect(&p->slots[i]); // the handlers' went with their threads
    if (p->staging && p->staging != MAP_FAILED) munmap(p->staging, p->staging_bytes);
    p->uffd = -1;
    p->staging = NULL;
}

// A region over memory that is mapped and untouched. The descriptors are duplicated, but for the userfaultfd, which it keeps. *error: -errno, and `why` which step it was.
EXPORT pager *pager_start(settings *c, int *error, char *why, u64 why_bytes) {
    u64 units = (c->length + c->unit - 1) / c->unit, pages = (c->length + PAGE - 1) / PAGE;
    u64 capacity = 1;
    while (c->budget_units && capacity < 2 * (c->budget_units + MAX_SLOTS + MAX_BATCH)) capacity *= 2;
    u64 at = round_up(sizeof(pager), PAGE), record, state, bits, entries, stamp, job;
    state = at, at = round_up(at + units * 4, PAGE);
    bits = at, at = round_up(at + BITMAPS * ((pages + 63) / 64) * 8, PAGE);
    entries = at, at = round_up(at + capacity * 4, PAGE);
    stamp = at, at = round_up(at + units * 4, PAGE);
    // Only what is written needs places; only scattered pages need the log behind the homes.
    u64 extent_count = c->writable && c->unit <= 16384 ? (pages + MAX_BATCH - 1) / MAX_BATCH : 0, place, extent, spare;
    place = at, at = round_up(at + (c->writable ? pages * 4 : 0), PAGE);
    extent = at, at = round_up(at + extent_count * 4, PAGE);
    spare = at, at = round_up(at + extent_count * 4, PAGE);
    // A quarter of the budget, where a unit leaves by a move anyway, and where its source costs more than two moves: not where it is in memory,
    // or in the page cache, which is a second chance of its own. The upper half of a word is where a unit's place stands.
    u64 budget = c->budget_units < units ? c->budget_units : 0, limbo_units = 0, limbo;
    bool costs = c->kind == SOURCE_WORKER || c->kind == SOURCE_PEER || c->direct;
    if (costs && !c->writable && c->unit >= MOVE_FROM_BYTES && c->policy == POLICY_CLOCK) limbo_units = budget / 4 < 60000 ? budget / 4 : 60000;
    limbo = at, at = round_up(at + limbo_bytes(limbo_places(limbo_units)), PAGE);
    record = at, at = round_up(at + c->record_capacity * 4, PAGE);
    job = at, at = round_up(at + c->arguments_bytes + c->job_bytes, PAGE);
    const char *step = "making the control block";
    // A memfd has a name, by which `userfault page stat` finds it in /proc/PID/maps.
    int fd = (int)syscall(SYS_memfd_create, "userfault-pager", MFD_CLOEXEC);
    pager *p = MAP_FAILED;
    if (fd >= 0 && !ftruncate(fd, (off_t)at)) p = mmap(NULL, at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED) {
        *error = -errno;
        snprintf(why, why_bytes, "%s", step);
        if (fd >= 0) close(fd);
        return NULL;
    }
    close(fd);
    p->version = PAGER_VERSION, p->pid = (u32)getpid();
    p->base = c->base, p->length = c->length, p->size = c->size, p->unit = c->unit;
    p->units = units, p->pages = pages, p->budget_units = budget;
    p->limbo_offset = limbo, p->limbo_units = limbo_units, p->limbo_places = limbo_places(limbo_units);
    p->mode = c->mode, p->writable = c->writable, p->kind = c->kind, p->handlers = c->handlers;
    p->policy = c->policy, p->direct = c->direct, p->align = c->align, p->retries = c->retries, p->retry_us = c->retry_us;
    p->stall_ms = c->stall_ms, p->prefetch_units = c->prefetch_units;
    p->batch = c->unit <= 16384 ? MAX_BATCH : 1;
    p->source_offset = c->source_offset, p->source_address = c->source_address;
    p->policy_function = c->policy_function, p->policy_context = c->policy_context;
    p->state_offset = state, p->bitmap_offset = bits, p->ring_offset = entries, p->stamp_offset = stamp;
    p->place_offset = place, p->extent_offset = extent, p->free_extent_offset = spare, p->extent_count = extent_count;
    p->record_offset = record, p->record_capacity = c->record_capacity, p->job_offset = job, p->job_bytes = c->job_bytes;
    p->control_bytes = at, p->ring_capacity = capacity, p->spawn_argc = c->spawn_argc;
    memcpy(p->name, c->name, sizeof p->name - 1);
    memcpy(p->peer, c->peer, sizeof p->peer);
    p->peer_bytes = c->peer_bytes, p->peer_timeout_ms = c->peer_timeout_ms, p->worker_pid = c->worker_pid;
    if (p->kind == SOURCE_PEER) peer_prepare();
    memcpy((u8 *)p + job, (void *)c->arguments, c->arguments_bytes);
    memcpy((u8 *)p + job + c->arguments_bytes, (void *)c->job, c->job_bytes);
    p->uffd = p->pidfd = p->event_fd = p->pagemap_fd = p->memory_fd = p->source_fd = p->swap_fd = p->worker_fd = -1;
    p->started_ns = now_ns();
    p->source_fd = sys_own_file(c->source_fd, &p->source_position, &p->source_dev, &p->source_ino);
    p->swap_fd = sys_own_file(c->swap_fd, &p->swap_position, &p->swap_dev, &p->swap_ino);
    if (c->worker_fd >= 0) p->worker_fd = fcntl(c->worker_fd, F_DUPFD_CLOEXEC, 3);
    p->pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    p->memory_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (!fstat(p->memory_fd, &st)) p->memory_dev = (u64)st.st_dev, p->memory_ino = (u64)st.st_ino;
    p->uffd = c->uffd;
    p->user_mode_only = (u32)c->user_mode_only;
    int code;
    step = "registering the region";
    madvise((void *)p->base, p->length, MADV_DONTFORK);
    // What is in it is what we put there. But where huge pages may be, a fault leaves no table of small ones, which a huge page moved in
    // would have to be split for.
    madvise((void *)p->base, p->length, !p->writable && p->unit >= 1 << 21 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    code = enroll(p, (void *)p->base, p->length, UFFDIO_REGISTER_MODE_MISSING | (p->writable ? UFFDIO_REGISTER_MODE_WP : 0));
    if (code) goto failed;
    step = "making the staging area";
    code = make_staging(p);
    if (code) goto failed;
    step = "taking a place in the table of regions";
    code = bus_add(p);
    if (code) goto failed;
    step = "starting the handler threads";
    code = start_threads(p);
    if (code) { bus_remove(p); goto failed; }
    p->magic = PAGER_MAGIC;
    return p;
failed:
    *error = code;
    snprintf(why, why_bytes, "%s", step);
    dispose(p);
    munmap(p, at);
    return NULL;
}

// The memory itself must be unmapped by now, or never touched again: its missing pages would read as zeros.
EXPORT void pager_stop(pager *p) {
    stop_threads(p);
    bus_remove(p);
    for (u32 i = MAX_SERVICE; i < MAX_SLOTS; i++)
        while (atomic_load(&p->slots[i].owner)) sched_yield();
    dispose(p);
}

EXPORT void pager_free(pager *p) { munmap(p, p->control_bytes); }

static slot *enter(pager *p, sigset_t *old) {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    // A handler of the application that touches the region must not run while we hold the ring's lock.
    pthread_sigmask(SIG_SETMASK, &all, old);
    return guest_enter(p, now_ns());
}

static void leave(pager *p, slot *s, const sigset_t *old) {
    guest_leave(p, s);
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

// Have [offset, offset + length) in memory. 0, or 1 + the offset of a page that can't be had.
// `content`: what it is about to be overwritten with, or NULL. A unit of which nothing else remains is not fetched.
EXPORT u64 pager_ensure(pager *p, u64 offset, u64 length, const u8 *content) {
    sigset_t old;
    u64 result = 0;
    if (!length) return 0;
    slot *s = enter(p, &old);
    for (u64 unit = unit_of(p, offset); unit <= (offset + length - 1) / p->unit && !result; unit++) {
        u64 first = unit * p->unit, at = p->base + first, bytes = unit_bytes(p, unit), missing;
        u8 there[512];
        bool whole = offset <= first && (offset + length >= first + bytes || offset + length == p->size);
        s->given = content && whole ? content + (first - offset) : NULL;
        for (int tries = 0; tries < 1000; tries++) {
            u32 state = STATE(atomic_load(&states(p)[unit]));
            if (state == PRESENT) {
                if (sys_there(at, bytes, there)) break;
                for (missing = 0; missing < bytes / PAGE && there[missing]; missing++) {}
                if (missing == bytes / PAGE) { missing = 0; if (tries) break; } // there: only note that it is used
            } else missing = 0;
            s->address = at + missing * PAGE;
            if (resolve(p, s, unit, s->address, 0, true) == FAILED) { result = 1 + unit * p->unit; break; }
            if (state == PRESENT && !missing) break;
        }
    }
    leave(p, s, &old);
    return result;
}

EXPORT void pager_will_need(pager *p, u64 offset, u64 length) {
    u64 first = offset / p->unit, last = length ? (offset + length - 1) / p->unit : first;
    for (u64 at = first; at <= last; at += 0x8000) enqueue(p, at, last - at + 1 < 0x8000 ? last - at + 1 : 0x8000);
}

// Evict whatever can be of a range. 0 or -errno of the last that could not.
EXPORT i64 pager_evict(pager *p, u64 offset, u64 length) {
    sigset_t old;
    if (!length) return 0;
    slot *s = enter(p, &old);
    i64 code = evict_units(p, s, offset / p->unit, (offset + length - 1) / p->unit);
    leave(p, s, &old);
    return code;
}

// Nobody evicts until `go_on`: what is in memory and what the bitmaps say belong together.
static void stand_still(pager *p) {
    u32 nobody = 0;
    while (!atomic_compare_exchange_strong(&p->paused, &nobody, (u32)gettid_())) nobody = 0, sched_yield();
    for (int i = 0; i < MAX_SLOTS; i++)
        while (atomic_load(&p->slots[i].evicting) != EVICT_IDLE) sched_yield();
}

static void go_on(pager *p) {
    atomic_store(&p->paused, 0);
    futex_wake(&p->paused);
}

// What was written since it was armed, into the bitmaps and, added, into `bits`. `rearm`: it counts as unwritten from now on.
static int sweep(pager *p, bool rearm, bool mark, u64 *bits) {
    if (rearm && atomic_exchange(&p->any_written, 0)) // it is no longer known without looking
        for (u64 unit = 0; unit < p->units; unit++)
            if (atomic_load(&states(p)[unit]) & WRITTEN) atomic_fetch_and(&states(p)[unit], ~WRITTEN);
    for (u64 page = 0; page < p->pages; page += 4096) {
        u64 count = p->pages - page < 4096 ? p->pages - page : 4096, written[64];
        int code = sys_written(p, NULL, p->base + page * PAGE, count * PAGE, rearm, written, 64);
        if (code) return code;
        for (u64 i = 0; i < (count + 63) / 64; i++) {
            u64 word = page / 64 + i;
            if (!written[i]) continue;
            if (rearm) {
                atomic_fetch_or(&bitmap(p, UNSAVED)[word], written[i]);
                for (u64 left = written[i]; left; left &= left - 1) forget_swap(p, word * 64 + (u64)__builtin_ctzll(left));
                if (mark) atomic_fetch_or(&bitmap(p, MARKED)[word], written[i]);
            }
            if (bits) bits[word] |= written[i];
        }
    }
    return 0;
}

// From now on `pager_dirty` tells what is written from now on. 0 or -errno.
EXPORT int pager_mark(pager *p) {
    stand_still(p);
    int code = sweep(p, true, false, NULL);
    for (u64 i = 0; !code && i < (p->pages + 63) / 64; i++) atomic_store(&bitmap(p, MARKED)[i], 0);
    go_on(p);
    return code;
}

// Bits of the pages written since the mark. `bits`: zeroed, a bit a page.
EXPORT int pager_dirty(pager *p, u64 *bits) {
    stand_still(p);
    int code = sweep(p, false, false, bits);
    for (u64 i = 0; i < (p->pages + 63) / 64; i++) bits[i] |= atomic_load(&bitmap(p, MARKED)[i]);
    go_on(p);
    return code;
}

// Bits of the pages that the store does not have. They are on their way until `pager_flushed` says how that ended.
EXPORT int pager_take_unsaved(pager *p, u64 *bits) {
    stand_still(p);
    int code = sweep(p, true, true, NULL);
    for (u64 i = 0; !code && i < (p->pages + 63) / 64; i++) {
        u64 word = atomic_load(&bitmap(p, UNSAVED)[i]);
        atomic_fetch_or(&bitmap(p, FLUSHING)[i], word);
        atomic_store(&bitmap(p, UNSAVED)[i], 0);
        bits[i] |= word;
    }
    go_on(p);
    return code;
}

EXPORT void pager_flushed(pager *p, int stored) {
    stand_still(p);
    for (u64 i = 0; i < (p->pages + 63) / 64; i++) {
        u64 word = atomic_exchange(&bitmap(p, FLUSHING)[i], 0);
        if (!stored && word) atomic_fetch_or(&bitmap(p, UNSAVED)[i], word);
    }
    go_on(p);
}
