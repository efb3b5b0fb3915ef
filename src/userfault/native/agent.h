/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that operations are done to: it executes a list of system calls and memory accesses, in itself and in
 * processes that it forks, and after each one records what can be seen of a window of addresses.
 *
 * Everything that happens between two records is here and not in Python: an interpreter in the same process would touch memory
 * of its own, and a record a system call at a time is too slow. Nothing is decided here.
 *
 * agent.c: the list, and who does what of it. agent_operations.c: what an operation is. agent_messages.c: what userfaultfds say.
 * agent_pages.c and agent_areas.c: what can be seen, of pages and of mappings.
 */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))

enum { PROCESSES = 8, SCRATCH = 8, VMAS = 64, MESSAGES = 32, SLOTS = 4, PAGE = 4096 };
enum kind { SYSCALL, LOAD, STORE, FORK, EXIT, MEANWHILE, PIN, UNPIN, HOLD, RELEASE, KSM, VMREAD };
enum command { PERFORM = 100, LEAVE, LOOK };

struct op {
	uint32_t kind, process;
	uint64_t nr, arg[6];
	uint64_t pointers; /* bit i: arg[i] is a byte offset into scratch */
	uint64_t scratch[SCRATCH];
};

struct result {
	int64_t value; /* the system call's, or -errno; the word loaded */
	int64_t signal;
	uint64_t scratch[SCRATCH];
};

/* Where a record goes: for each observed process a header, its VMAs, and two words a page. */
struct vma {
	uint32_t first, last, flags, unused;
};

/* What /proc/PID/smaps says of a VMA: flags by their place in vm_flags[]; pages; `locked` in KiB. */
struct area {
	uint32_t flags, rss, swap, huge, lazy, locked;
};

struct header {
	uint32_t process, vmas;
	struct vma vma[VMAS];
	uint32_t areas, unused;
	struct area area[VMAS];
};

/*
 * What a userfaultfd said, in the order in which it was read. event: UFFD_EVENT_*, or of ours: MEANWHILE_DONE (first: result, second:
 * output field), RESOLVED (the same of the fill that ended a fault). Addresses are relative to the base.
 */
struct message {
	uint64_t event, fd, first, second, third;
};

enum { MEANWHILE_DONE = 1, RESOLVED = 2 };

/* Each record begins so; the observed processes follow. */
struct record {
	uint64_t live, messages;
	struct message message[MESSAGES];
};

struct agent {
	uint64_t base, pages;    /* the window */
	uint64_t ops, done;      /* how many there are, how many are finished (shared: tells where a hang is) */
	uint64_t contents;       /* pages whose contents are hashed after each operation; 0: all */
	uint64_t areas;          /* operations between two looks at smaps, which is also looked at after the last one; 0: never */
	uint64_t record_bytes;   /* distance between two records */
	uint64_t look;           /* the page that a process is to LOOK at, then what it holds */
	uint64_t categories;     /* what PAGEMAP_SCAN is asked for; 0: this kernel has none, and it is not called */
	uint64_t procmap_query;  /* found by uf_agent_open; 0: this kernel has none, and /proc/PID/maps is read */
	uint64_t origin;         /* what addresses in messages are relative to */
	uint64_t contexts;       /* userfaultfds whose messages are read: they have the numbers from first_context on; 0: nobody reads */
	uint64_t first_context;
	uint64_t meanwhile;      /* the operation to do before the next message is read, plus 1 */
	uint64_t messages;       /* since the last record */
	struct message message[MESSAGES];
	int64_t pid[PROCESSES], parent_pid[PROCESSES];
	int32_t parent[PROCESSES];
	int32_t command[PROCESSES][2], answer[PROCESSES][2];
	int32_t pagemap[PROCESSES], maps[PROCESSES], mem[PROCESSES], smaps[PROCESSES];
	int32_t kpagecount, kpageflags;
};

EXPORT uint64_t uf_hash_page(const void *page);

/* agent.c */
_Noreturn void agent_give_up(const char *what);
void agent_send_byte(int fd, char c);
char agent_wait_byte(int fd);
void agent_in_process(struct agent *a, int process, char what);

/* agent_operations.c */
void agent_catch_signals(void);
void agent_operate(const struct op *op, struct result *out);
uint64_t agent_hash_own(const void *page);
void agent_let_go(void);
void agent_disown(void);

/* agent_messages.c */
void agent_start_reader(struct agent *a, struct op *ops);
void agent_wait_for_reader(void);

/* agent_pages.c */
void agent_observe(struct agent *a, uint64_t n, char *record);

/* agent_areas.c */
int agent_has_procmap_query(int maps);
void agent_observe_vmas(struct agent *a, int p, struct header *out);
void agent_observe_areas(struct agent *a, int p, struct header *out);
