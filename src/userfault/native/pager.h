// The pager: one `struct pager` a region, in shared memory of its own that outlives every thread of it.
//
// Between "event read" and "page installed" there is no malloc, no GIL, and no page of a managed region: what a handler
// needs lies in the control block or in its slot's buffers. Whatever a thread is in the middle of stands in its slot, so
// that a successor can finish or undo it.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))
#define PAGE ((uint64_t)4096)
#define PAGER_MAGIC 0x7265676170667375ull // "usfpager"
#define PAGER_VERSION 3
#define MOVE_FROM_BYTES 65536 // moving a page costs two TLB flushes, copying costs a copy: this is where it turns
#define MAX_SERVICE 16  // handlers, background, receiver, guardian
#define MAX_SLOTS 64    // service threads first, then guests: threads of the application that resolve for themselves
#define MAX_BATCH 64    // victims of one eviction
#define MAX_PENDING 64  // requests at a worker
#define MAX_RULES 16
#define MAX_ERRORS 8
#define ERROR_TEXT 8192
#define MAX_REMAPS 16
#define QUEUE 1024
#define BUCKETS 256     // of the latency histogram: 8 a doubling, from 1 ns

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;
typedef _Atomic u32 au32;
typedef _Atomic u64 au64;

enum { SOURCE_ZERO, SOURCE_FILE, SOURCE_MEMORY, SOURCE_WORKER, SOURCE_PEER };
enum { MODE_THREADS, MODE_SIGBUS };
enum { POLICY_CLOCK, POLICY_FIFO, POLICY_LRU, POLICY_RANK, POLICY_CUSTOM };

// A unit's state word: what it is in the low bits, who works on it in the upper half (of one in limbo: 1 + its place there).
enum { ABSENT, FILLING, PRESENT, EVICTING, POISONED, GONE, LIMBO };
#define STATE(word) ((word) & 7u)
#define WAITED 8u   // somebody's fault was put off until the owner is done: the owner wakes
#define REF 16u     // used since the clock's hand came by
#define QUEUED 32u  // has an entry in the ring of residents
#define AHEAD 64u   // was fetched before anybody asked
#define DOOMED 128u // unmapped while it was in work: it is GONE when that is done
#define WRITTEN 256u // filled for a write: no need to look whether it was written
#define OWNER(index) (((u32)(index) + 1) << 16)
#define OWNER_OF(word) ((word) >> 16)
#define OWNER_WORKER OWNER(1000)

enum { EVICT_IDLE, EVICT_CLAIM, EVICT_DROP, EVICT_TAKE, EVICT_SAVED };

// Where a rule of the fault injection can strike, and what it does there. paging/inject.py has the same names.
enum {
    AT_COPY, AT_MOVE_IN, AT_MOVE_OUT, AT_SCAN, AT_DROP, AT_POISON, AT_WAKE,       // system calls on memory
    AT_SPAWN,                                                                      // and for a thread
    AT_SOURCE_READ, AT_SWAP_READ, AT_SWAP_WRITE, AT_SEND,                          // input and output
    AT_EVENT_READ, AT_CLAIMED, AT_RESERVED, AT_VICTIMS, AT_TAKEN, AT_SAVED,        // steps between them
    AT_FILLED, AT_INSTALLED, AT_WOKEN, AT_BEFORE_TAKE, AT_SUBMITTED, AT_TICK,
    AT_LIMBO_LOCKED, AT_LIMBO_LEFT, AT_LIMBO_MOVED, AT_LIMBO_KEPT,
};
enum { DO_NOTHING, DO_ERRNO, DO_RIVAL, DO_PARTIAL, DO_DELAY, DO_DIE };

typedef struct {
    au32 left;    // how many times it still strikes
    au32 skip;    // how many hits it lets pass first
    u32 point, effect;
    i64 value;    // errno, bytes, or microseconds
    au64 struck_count;
} rule;

typedef struct {
    au32 owner;        // thread id of who has the slot; 0: free
    au32 alive;        // service threads: set while the thread runs
    au32 filling;      // `unit` is claimed by this slot; 2: and counted against the budget; 3: and there, which counts it
    au32 evicting;     // EVICT_*
    u64 unit;
    u32 victim_count;
    u32 bounce_populated;
    u32 place;         // 1 + place in limbo whose pages are the buffer; 0: it is `bounce`
    u32 victims[MAX_BATCH];
    u64 written;       // bit i: victim i is known to be written
    au64 since_ns;     // when the work in hand began; 0: idle
    u64 address;       // of the fault being served
    u32 waiter_tid;    // who faulted
    u32 reported;      // the stall watchdog has spoken
    u32 deferred_count;
    u32 role;
    u32 wake;          // the call that installed the page may not have woken who waits for it
    struct { u64 address; u64 since_ns; u32 tid; u32 flags; } deferred[64];
    i32 peer_fd;       // connection to the page server, of inode `peer_ino`
    u32 peer_busy, peer_id, record_bytes;
    u64 peer_ino;      // 0: none
    const u8 *given;   // what the unit is about to be overwritten with, as a whole: nobody needs what its source has
    u8 *bounce, *take; // staging, registered with the userfaultfd so that pages can be moved out into it
    u8 *peek;          // as much as `take`: what was in the victims a moment before they were looked at
    char record[ERROR_TEXT]; // what a page server says of an error, if `record_bytes`
} slot;

typedef struct {
    au32 busy;         // 0, or 1 + generation
    u32 id;
    u64 unit, offset, length, next;
    u64 first_ns;
    au32 sent;         // the id that the worker was asked with; 0: it was not
    u32 attempts, reported, waiter_tid, ahead;
} pending;

typedef struct {
    au64 sequence;     // 0: empty
    u64 address, offset, length;
    i32 code;          // errno
    u32 worker;        // `text` is a worker's record
    u32 tid, length_text;
    char text[ERROR_TEXT];
} failure;

typedef struct {
    au64 fault_count, stale_fault_count, fill_count, prefetch_count, prefetch_hit_count, refill_count;
    au64 in_bytes, out_bytes, swap_in_bytes;
    au64 evict_clean_count, evict_dirty_count, evict_busy_count, suspicious_count;
    au64 copy_count, move_count, move_fallback_count;
    au64 eagain_count, eexist_count, ebusy_count, partial_count, gone_count;
    au64 retry_count, poison_count, error_count, stall_count;
    au64 handler_restart_count, worker_restart_count, remap_count, unmap_count;
    au64 resident_max_units, soft_fault_count;
    au64 latency[BUCKETS];
} counters;

typedef struct pager {
    u64 magic;
    u32 version, pid;
    u64 base, length, size;       // bytes mapped (whole pages) and bytes of data
    u64 unit, units, budget_units; // budget 0: unbounded
    u32 mode, writable, kind, handlers;
    u32 policy, direct, align, batch;
    u32 retries, retry_us, stall_ms, prefetch_units;
    i32 uffd, source_fd, swap_fd, worker_fd, pidfd, event_fd, pagemap_fd, memory_fd;
    u32 user_mode_only;
    u64 source_offset, source_address;
    u64 source_dev, source_ino, swap_dev, swap_ino;
    char name[256];
    u64 state_offset, bitmap_offset, ring_offset, stamp_offset, control_bytes, job_offset, job_bytes;
    u64 pages, ring_capacity, limbo_offset, limbo_units, limbo_places;
    au64 limbo_count;
    u64 policy_function, policy_context;
    counters count;
    au64 resident_units;
    au32 stopping, started, inject_armed, worker_lost;
    au64 ring_head, ring_tail;
    au64 queue_head, queue_tail;
    au32 queue_bell;
    au64 error_sequence;
    u32 spawn_argc;
    au32 paused;                   // thread that looks at the whole region: nobody evicts meanwhile
    u64 started_ns;
    struct { u64 from, to, length; } remaps[MAX_REMAPS];
    au32 remap_count;
    u64 last_unit, stride, stride_hits;
    u64 record_count, record_capacity, record_offset;
    u64 queue[QUEUE];
    rule rules[MAX_RULES];
    failure errors[MAX_ERRORS];
    counters of_slot[MAX_SLOTS];   // what happens at every fault is counted here, without a locked instruction, and added up by who looks
    pending pendings[MAX_PENDING];
    slot slots[MAX_SLOTS];
    pthread_mutex_t ring_lock;
    pthread_mutex_t life[MAX_SERVICE]; // robust, each held by a service thread for as long as it lives
    pthread_mutex_t send_lock;
    u8 peer[32];                   // a struct sockaddr
    u32 peer_bytes, peer_timeout_ms; // a page server's or a worker's time for one request
    i32 worker_pid;
    u32 worker_silent;             // it did not answer in time
    u8 *staging;
    u64 staging_bytes, random, repeat_address;
    u32 repeats;
    u64 place_offset, extent_offset, free_extent_offset, extent_count, used_extent_count, free_extent_count;
    au32 any_written;
    au32 unsent;                   // a thread of the application has a request for the worker that it can't send itself
    au64 limbo_head, limbo_tail;
    u8 *limbo_pages;
    u64 memory_dev, memory_ino;
    i64 source_position, swap_position; // by which descriptors are known to be ours; 0: they are known by their files
} pager;

static inline au32 *states(pager *p) { return (au32 *)((u8 *)p + p->state_offset); }
static inline au32 *stamps(pager *p) { return (au32 *)((u8 *)p + p->stamp_offset); }
// Where in the swap file a page's last state is: 1 + page number in the file, 0: nowhere.
static inline au32 *places(pager *p) { return (au32 *)((u8 *)p + p->place_offset); }
static inline au32 *extents(pager *p) { return (au32 *)((u8 *)p + p->extent_offset); } // pages in use of each
static inline u32 *free_extents(pager *p) { return (u32 *)((u8 *)p + p->free_extent_offset); }
// Reading its source again costs more than reading memory.
static inline bool costly(pager *p) { return p->kind == SOURCE_WORKER || p->kind == SOURCE_PEER || p->direct; }
static inline bool in_swap(pager *p, u64 page) { return p->writable && atomic_load(&places(p)[page]); }

// One bit a page: its content is newer than the source's; it was written since the mark; it is on its way to the store.
enum { UNSAVED, MARKED, FLUSHING, BITMAPS };
static inline au64 *bitmap(pager *p, int which) {
    return (au64 *)((u8 *)p + p->bitmap_offset) + (u64)which * ((p->pages + 63) / 64);
}
static inline bool bit(pager *p, int which, u64 page) {
    return atomic_load(&bitmap(p, which)[page / 64]) >> (page % 64) & 1;
}
static inline void set_bit(pager *p, int which, u64 page) {
    if (!bit(p, which, page)) atomic_fetch_or(&bitmap(p, which)[page / 64], 1ull << (page % 64));
}
static inline void clear_bit(pager *p, int which, u64 page) {
    if (bit(p, which, page)) atomic_fetch_and(&bitmap(p, which)[page / 64], ~(1ull << (page % 64)));
}

// Units and the ring's capacity are powers of two: a fault does not wait for divisions.
static inline u64 unit_of(pager *p, u64 offset) { return offset >> __builtin_ctzll(p->unit); }
static inline u32 *ring_at(pager *p, u64 index) { return &((u32 *)((u8 *)p + p->ring_offset))[index & (p->ring_capacity - 1)]; }

static inline u64 unit_bytes(pager *p, u64 unit) {
    u64 at = unit * p->unit;
    return p->length - at < p->unit ? p->length - at : p->unit;
}
#define ADD(counter, n) atomic_fetch_add_explicit(&p->count.counter, (n), memory_order_relaxed)
#define COUNT(counter) ADD(counter, 1)
// By the thread that has the slot, and so by one at a time.
static inline void tally(au64 *counter, u64 n) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}
#define TALLY(s, counter, n) tally(&p->of_slot[(s) - p->slots].counter, (n))

// pager_sys.c: system calls, each with its injection point. 0 or -errno; `done` says how far a range operation came.
u64 now_ns(void);
int gettid_(void);
void forget_tid(void);
void futex_wait(au32 *word, u32 value, u64 timeout_ns);
void futex_wake(au32 *word);
int strike_armed(pager *p, slot *s, int point, i64 *value);
static inline int strike(pager *p, slot *s, int point, i64 *value) {
    return atomic_load_explicit(&p->inject_armed, memory_order_relaxed) ? strike_armed(p, s, point, value) : DO_NOTHING;
}
int sys_copy(pager *p, slot *s, u64 to, const void *from, u64 length, bool armed, u64 *done);
int sys_move(pager *p, slot *s, int point, u64 to, u64 from, u64 length, u64 *done);
int sys_poison(pager *p, slot *s, u64 at, u64 length);
void sys_wake(pager *p, slot *s, u64 at, u64 length);
int sys_written(pager *p, slot *s, u64 at, u64 length, bool rearm, u64 *written, u64 words);
int sys_there(u64 at, u64 length, u8 *there);
int sys_resident(u64 at);
void sys_peek(pager *p, slot *s, u64 at, u64 length, u8 *to, u8 *seen);
int sys_drop(pager *p, slot *s, const u32 *units, u32 count);
int sys_own_file(int fd, i64 *position, u64 *dev, u64 *ino);
int io_read(pager *p, slot *s, int point, int fd, void *to, u64 length, u64 offset, u64 *done);
int io_write(pager *p, slot *s, int fd, const void *from, u64 length, u64 offset);

// pager_fill.c
enum { DONE, PUT_OFF, FAILED };
int resolve(pager *p, slot *s, u64 unit, u64 address, u32 how, bool wait);
void finish(pager *p, slot *s, u64 unit, u32 flags);
void give_up(pager *p, slot *s, u64 unit, int code, const char *what, const char *record, u32 record_bytes);
int read_unit(pager *p, slot *s, u64 unit, u8 *to, bool swap_only, const char **what);
enum { COPY_ONLY = 1, UNARMED = 2 }; // how: not by a move; it is about to be written, so it counts as written from the start
int install(pager *p, slot *s, u8 *from, u64 to, u64 length, u32 how);
void release_unit(pager *p, slot *s, u64 unit, u32 to);
void wake_unit(pager *p, slot *s, u64 unit, u32 old);
void record_latency(pager *p, slot *s, u64 ns);
slot *guest_enter(pager *p, u64 since);
void guest_leave(pager *p, slot *s);

// pager_evict.c
int make_room(pager *p, slot *s);
void forget_swap(pager *p, u64 page);
int evict_units(pager *p, slot *s, u64 first, u64 last);
void repair(pager *p, slot *s, slot *by);
bool ring_push(pager *p, u64 unit);
int lock_robust(pthread_mutex_t *lock);
void begin(pager *p, slot *s);
void claim_victims(pager *p, slot *s, u32 want);
int evict_claimed(pager *p, slot *s);
int take_out(pager *p, slot *s, u64 at, u64 length, u8 *to);

// pager_limbo.c
u64 limbo_places(u64 units);
u64 limbo_bytes(u64 places);
bool limbo_displace(pager *p, slot *s);
void limbo_feed(pager *p, slot *s);
bool limbo_claim(pager *p, slot *s, u64 unit, u32 old);
u8 *limbo_buffer(pager *p, slot *s);
void limbo_release(pager *p, slot *s);
void limbo_drop(pager *p, slot *s, u64 unit, u32 to);
void limbo_repair(pager *p, slot *dead, slot *by);

// pager_threads.c
int start_threads(pager *p);
void stop_threads(pager *p);
bool drain_event(pager *p, slot *s);
void enqueue(pager *p, u64 unit, u64 count);
void ring_bell(pager *p);

// pager_worker.c
int submit(pager *p, slot *s, u64 unit, bool ahead);
void *receiver_main(void *);
void resend(pager *p);

// pager_peer.c
void peer_prepare(void);
int peer_read(pager *p, slot *s, u64 offset, u64 length, u8 *to, const char **what);
void peer_disconnect(slot *s);

// pager_bus.c
int bus_add(pager *p);
void bus_remove(pager *p);
void bus_tick(void);
void say(const char *text, ...);
