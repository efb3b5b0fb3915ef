/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that operations are done to: it executes a list of system calls and memory accesses, in itself and in
 * processes that it forks, and after each one records what can be seen of a window of addresses.
 *
 * Everything that happens between two records is here and not in Python: an interpreter in the same process would touch memory
 * of its own, and a record a system call at a time is too slow. Nothing is decided here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* What was there when it was tried must not be missing later: the status says where, the message why. */
static void give_up(const char *what)
{
	dprintf(2, "userfault: the agent can't go on: %s: %s\n", what, errno ? strerror(errno) : "a short read");
	_exit(5);
}

EXPORT uint64_t uf_hash_page(const void *page);

static sigjmp_buf escape;
static volatile sig_atomic_t armed;

static void on_signal(int number)
{
	if (!armed) {
		signal(number, SIG_DFL);
		raise(number);
		return;
	}
	siglongjmp(escape, number);
}

static int64_t perform_access(struct op *op, struct result *out)
{
	volatile uint64_t *where = (volatile uint64_t *)op->arg[0];
	int caught = sigsetjmp(escape, 0);

	if (caught) {
		armed = 0;
		out->signal = caught;
		return 0;
	}
	armed = 1;
	if (op->kind == STORE)
		*where = op->arg[1];
	else
		out->value = (int64_t)*where;
	armed = 0;
	return 0;
}

static void perform_syscall(struct op *op, struct result *out)
{
	uint64_t a[6];
	long value;

	memcpy(out->scratch, op->scratch, sizeof(out->scratch));
	for (int i = 0; i < 6; i++)
		a[i] = op->pointers >> i & 1 ? (uint64_t)((char *)out->scratch + op->arg[i]) : op->arg[i];
	errno = 0;
	value = syscall((long)op->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	out->value = value == -1 && errno ? -errno : value;
}

/* Read and write a whole small message; a process that is gone ends us. */
static void send_byte(int fd, char c)
{
	while (write(fd, &c, 1) != 1)
		if (errno != EINTR)
			_exit(3);
}

static char wait_byte(int fd)
{
	char c;
	ssize_t got;

	while ((got = read(fd, &c, 1)) != 1)
		if (got == 0 || errno != EINTR)
			_exit(3);
	return c;
}

/*
 * Pages that this process keeps: pinned (FOLL_PIN) as a registered buffer of an io_uring, or held (a plain reference) in a pipe.
 * A descriptor is one more than it is, so that 0 is none.
 */
static int ring[SLOTS], held_in[SLOTS][2], holds[SLOTS];

static int64_t result_of(long value)
{
	return value < 0 ? -errno : value;
}

static int64_t pin(uint64_t slot, void *address)
{
	struct iovec buffer = {address, PAGE};
	uint32_t parameters[30] = {0};

	if (!ring[slot]) {
		long made = syscall(SYS_io_uring_setup, 1, parameters);

		if (made < 0)
			give_up("io_uring_setup");
		ring[slot] = (int)made + 1;
	}
	return result_of(syscall(SYS_io_uring_register, ring[slot] - 1, 0 /* REGISTER_BUFFERS */, &buffer, 1));
}

static int64_t unpin(uint64_t slot)
{
	return ring[slot] ? result_of(syscall(SYS_io_uring_register, ring[slot] - 1, 1 /* UNREGISTER_BUFFERS */, 0, 0)) : -ENXIO;
}

static int64_t hold(uint64_t slot, void *address)
{
	struct iovec buffer = {address, PAGE};
	int64_t done;

	if (holds[slot])
		return -EBUSY;
	if (!held_in[slot][0]) {
		if (pipe2(held_in[slot], O_CLOEXEC))
			give_up("pipe2");
		held_in[slot][0]++;
		held_in[slot][1]++;
	}
	done = result_of(syscall(SYS_vmsplice, held_in[slot][1] - 1, &buffer, 1, 2 /* SPLICE_F_NONBLOCK */));
	holds[slot] = done == PAGE;
	return done;
}

/* What the page holds now. */
static int64_t release(uint64_t slot)
{
	static char copy[PAGE] __attribute__((aligned(PAGE)));

	if (!holds[slot])
		return -ENXIO;
	if (read(held_in[slot][0] - 1, copy, PAGE) != PAGE)
		give_up("a page in a pipe");
	holds[slot] = 0;
	return (int64_t)uf_hash_page(copy);
}

/* Before a process ends: the kernel takes an io_uring down in its own time. */
static void let_go(void)
{
	for (uint64_t slot = 0; slot < SLOTS; slot++) {
		unpin(slot);
		release(slot);
	}
}

/* After a fork: what the parent keeps is not ours. */
static void disown(void)
{
	for (int slot = 0; slot < SLOTS; slot++) {
		if (ring[slot])
			close(ring[slot] - 1);
		if (held_in[slot][0]) {
			close(held_in[slot][0] - 1);
			close(held_in[slot][1] - 1);
		}
		ring[slot] = held_in[slot][0] = held_in[slot][1] = holds[slot] = 0;
	}
}

/* A word by process_vm_readv: the page is pinned for reading meanwhile. */
static int64_t vmread(void *address, uint64_t *word)
{
	struct iovec to = {word, sizeof(*word)}, from = {address, sizeof(*word)};

	return result_of(syscall(SYS_process_vm_readv, getpid(), &to, 1, &from, 1, 0));
}

enum { SCANS = 4, KSM_MERGE = 1 };

static long long ksm_number(const char *path)
{
	char text[32] = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		give_up(path);
	close(fd);
	return atoll(text);
}

static int64_t ksm_run(char what)
{
	int fd = open("/sys/kernel/mm/ksm/run", O_WRONLY | O_CLOEXEC);
	int64_t done = fd < 0 ? -errno : result_of(write(fd, &what, 1));

	if (fd >= 0)
		close(fd);
	return done < 0 ? done : 0;
}

/* Whole scans: ksmd stops between two of them, as it is told to scan more pages at once than there are. */
static int64_t drive_ksmd(uint64_t what)
{
	static const char scans[] = "/sys/kernel/mm/ksm/full_scans";
	long long before = ksm_number(scans);
	int64_t failed = ksm_run((char)('0' + what));

	while (!failed && what == KSM_MERGE && ksm_number(scans) < before + SCANS)
		usleep(200);
	return failed ? failed : ksm_run('0');
}

static void serve(struct agent *a, struct op *ops, struct result *results, int me);

static void perform(struct agent *a, struct op *ops, struct result *results, uint64_t n, int me)
{
	struct op *op = &ops[n];
	struct result *out = &results[n];
	pid_t pid;

	switch (op->kind) {
	case LOAD:
	case STORE:
		perform_access(op, out);
		break;
	case FORK:
		if (op->arg[0] == 0 || op->arg[0] >= PROCESSES || a->pid[op->arg[0]] > 0) {
			out->value = -EEXIST;
			break;
		}
		pid = fork();
		if (pid == 0) {
			/* Only the agent may hold these: when it is gone, everybody reads the end of the pipe and goes. */
			for (int each = 1; each < PROCESSES; each++)
				close(a->command[each][1]);
			disown();
			serve(a, ops, results, (int)op->arg[0]);
		}
		a->pid[op->arg[0]] = pid;
		a->parent[op->arg[0]] = me;
		a->parent_pid[op->arg[0]] = a->pid[me];
		out->value = pid < 0 ? -errno : 0;
		break;
	case MEANWHILE:
		a->meanwhile = n + 1;
		break;
	case PIN:
		out->value = pin(op->arg[0] % SLOTS, (void *)op->arg[1]);
		break;
	case UNPIN:
		out->value = unpin(op->arg[0] % SLOTS);
		break;
	case HOLD:
		out->value = hold(op->arg[0] % SLOTS, (void *)op->arg[1]);
		break;
	case RELEASE:
		out->value = release(op->arg[0] % SLOTS);
		break;
	case KSM:
		out->value = drive_ksmd(op->arg[0]);
		break;
	case VMREAD:
		out->value = vmread((void *)op->arg[0], &out->scratch[0]);
		break;
	default:
		perform_syscall(op, out);
	}
}

static uint64_t hash_own(const void *page);

/*
 * A forked process: what to do is one byte. PERFORM: the operation that the agent is at; LOOK: say what a page of its own holds;
 * 0 to 7: wait for that process.
 */
static void serve(struct agent *a, struct op *ops, struct result *results, int me)
{
	for (;;) {
		char what = wait_byte(a->command[me][0]);

		if (what == LEAVE) {
			let_go();
			_exit(0);
		}
		if (what == PERFORM)
			perform(a, ops, results, a->done, me);
		else if (what == LOOK)
			a->look = hash_own((const void *)a->look);
		else
			waitpid((pid_t)a->pid[(int)what], NULL, 0);
		send_byte(a->answer[me][1], 0);
	}
}

static int open_proc(int64_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%lld/%s", (long long)pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void in_process(struct agent *a, int process, char what)
{
	send_byte(a->command[process][1], what);
	wait_byte(a->answer[process][0]);
}

/*
 * What waits in this CPU's batches reaches the LRU lists: new pages, and lazily freed ones. Advice on a page that was never
 * touched does nothing else.
 */
static void drain_batches(void)
{
	static char untouched[2 * PAGE];

	syscall(SYS_madvise, ((uint64_t)untouched + PAGE) & -(uint64_t)PAGE, PAGE, 20 /* MADV_COLD */);
}

static void run_one(struct agent *a, struct op *ops, struct result *results, uint64_t n)
{
	struct op *op = &ops[n];
	int p = (int)op->process, other;

	memset(&results[n], 0, sizeof(results[n]));
	if (a->pid[p] <= 0) {
		results[n].value = -ESRCH;
		return;
	}
	if (op->kind == EXIT && p == 0) {
		results[n].value = -EINVAL;
		return;
	}
	if (op->kind == EXIT) {
		send_byte(a->command[p][1], LEAVE);
		/* Its parent may be gone too: then it is ours (we are a subreaper). */
		other = a->parent[p];
		if (other == 0 || a->pid[other] != a->parent_pid[p]) {
			waitpid((pid_t)a->pid[p], NULL, 0);
		} else {
			in_process(a, other, (char)p);
		}
		close(a->pagemap[p]);
		close(a->maps[p]);
		close(a->mem[p]);
		close(a->smaps[p]);
		a->pid[p] = 0;
		return;
	}
	if (p == 0)
		perform(a, ops, results, n, 0);
	else
		in_process(a, p, PERFORM);
	if (op->kind == FORK && results[n].value == 0) {
		p = (int)op->arg[0];
		a->pagemap[p] = open_proc(a->pid[p], "pagemap");
		a->maps[p] = open_proc(a->pid[p], "maps");
		a->mem[p] = open_proc(a->pid[p], "mem");
		a->smaps[p] = open_proc(a->pid[p], "smaps");
		if (a->pagemap[p] < 0 || a->maps[p] < 0 || a->mem[p] < 0 || a->smaps[p] < 0)
			_exit(4);
	}
}

/* -- what userfaultfds say --------------------------------------------------------------------------------------- */

/* struct uffd_msg */
struct uffd_message {
	uint8_t event, reserved[7];
	union {
		struct {
			uint64_t flags, address;
			uint32_t thread;
		} pagefault;
		uint64_t word[3];
	};
};

enum { EVENT_PAGEFAULT = 0x12, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP };
enum { MOST_CONTEXTS = 256, WP_FAULT = 2 };
#define UFFDIO_WAKE _IOC(_IOC_READ, 0xaa, 0x02, 16)
#define UFFDIO_COPY _IOC(_IOC_READ | _IOC_WRITE, 0xaa, 0x03, 40)
#define UFFDIO_ZEROPAGE _IOC(_IOC_READ | _IOC_WRITE, 0xaa, 0x04, 32)
#define UFFDIO_WRITEPROTECT _IOC(_IOC_READ | _IOC_WRITE, 0xaa, 0x06, 24)

struct reader {
	struct agent *agent;
	struct op *ops;
	int ask[2], tell[2];
};

static struct reader reader;

static void tell(struct agent *a, struct message what)
{
	if (a->messages == MESSAGES)
		give_up("more messages than an operation may have");
	a->message[a->messages++] = what;
}

static int64_t ioctl_result(int fd, unsigned long request, uint64_t *argument)
{
	return ioctl(fd, request, argument) ? -errno : 0;
}

/* Resolve a fault, by a rule that depends on nothing but the message. The page is filled with its number, or with zeroes. */
static void resolve(struct agent *a, uint64_t context, int fd, const struct uffd_message *message)
{
	static uint64_t filled[PAGE / 8] __attribute__((aligned(PAGE)));
	uint64_t address = message->pagefault.address & -(uint64_t)PAGE, page = (address - a->origin) / PAGE;
	uint64_t range[4] = {address, PAGE, 0, 0}, copy[5] = {address, (uint64_t)filled, PAGE, 0, 0};
	struct message done = {RESOLVED, context, 0, 0, 0};

	if (message->pagefault.flags & WP_FAULT) {
		done.first = (uint64_t)ioctl_result(fd, UFFDIO_WRITEPROTECT, range);
		tell(a, done);
	} else if (page & 1) {
		done.first = (uint64_t)ioctl_result(fd, UFFDIO_ZEROPAGE, range);
		done.second = range[3];
		tell(a, done);
	}
	/* Zeroes don't go where a hole is marked as write-protected. */
	if (!(message->pagefault.flags & WP_FAULT) && (!(page & 1) || done.first)) {
		filled[0] = page;
		done.first = (uint64_t)ioctl_result(fd, UFFDIO_COPY, copy);
		done.second = copy[4];
		tell(a, done);
	}
	/* Somebody else was faster, and may not have woken who waits. */
	if (done.first)
		ioctl(fd, UFFDIO_WAKE, range);
}

static void do_meanwhile(struct agent *a, const struct op *op)
{
	uint64_t scratch[SCRATCH];
	int64_t out = (int64_t)op->arg[3];

	memcpy(scratch, op->scratch, sizeof(scratch));
	a->meanwhile = 0;
	tell(a, (struct message){MEANWHILE_DONE, op->arg[0] - a->first_context,
				 (uint64_t)ioctl_result((int)op->arg[0], op->arg[1], scratch), out < 0 ? 0 : scratch[out], 0});
}

static void read_message(struct agent *a, uint64_t context)
{
	struct uffd_message message;
	struct message out = {0, context, 0, 0, 0};
	int fd = (int)(a->first_context + context);

	if (a->meanwhile)
		do_meanwhile(a, &reader.ops[a->meanwhile - 1]);
	if (read(fd, &message, sizeof(message)) != sizeof(message)) {
		/* What was done meanwhile woke who waited. */
		if (errno == EAGAIN)
			return;
		give_up("a message of a userfaultfd");
	}
	out.event = message.event;
	switch (message.event) {
	case EVENT_PAGEFAULT:
		out.first = message.pagefault.address - a->origin;
		out.second = message.pagefault.flags;
		for (out.third = 0; out.third < PROCESSES && a->pid[out.third] != message.pagefault.thread;)
			out.third++;
		break;
	case EVENT_FORK:
		if (a->contexts == MOST_CONTEXTS)
			give_up("more userfaultfds than can be read");
		out.first = a->contexts;
		if (dup2((int)message.word[0], (int)(a->first_context + a->contexts)) < 0)
			give_up("the userfaultfd of a fork");
		close((int)message.word[0]);
		a->contexts++;
		break;
	default:
		out.first = message.word[0] - a->origin;
		out.second = message.word[1] - a->origin;
		out.third = message.event == EVENT_REMAP ? message.word[2] : 0;
	}
	tell(a, out);
	if (message.event == EVENT_PAGEFAULT)
		resolve(a, context, fd, &message);
}

/*
 * Reads what comes, which lets go of who waits for it; asked whether nothing is left, says so when it is. One operation is done at a
 * time, and waits at each of its messages: so their order is theirs.
 */
static void *read_messages(void *unused)
{
	struct agent *a = reader.agent;
	struct pollfd fds[MOST_CONTEXTS + 1];

	for (;;) {
		uint64_t contexts = a->contexts, ready = 0;

		for (uint64_t i = 0; i < contexts; i++)
			fds[i] = (struct pollfd){(int)(a->first_context + i), POLLIN, 0};
		fds[contexts] = (struct pollfd){reader.ask[0], POLLIN, 0};
		if (poll(fds, contexts + 1, -1) < 0)
			give_up("poll");
		for (uint64_t i = 0; i < contexts; i++)
			if (fds[i].revents & POLLIN) {
				read_message(a, i);
				ready++;
			}
		if (!ready && fds[contexts].revents) {
			wait_byte(reader.ask[0]);
			send_byte(reader.tell[1], 0);
		}
	}
	return unused;
}

static void start_reader(struct agent *a, struct op *ops)
{
	pthread_t thread;

	reader.agent = a;
	reader.ops = ops;
	if (pipe2(reader.ask, O_CLOEXEC) || pipe2(reader.tell, O_CLOEXEC) || pthread_create(&thread, NULL, read_messages, NULL))
		give_up("the thread that reads messages");
}

/* Everything that the operation raised is read; the reader may still be writing it down. */
static void wait_for_reader(void)
{
	send_byte(reader.ask[1], 0);
	wait_byte(reader.tell[0]);
}

/* -- what can be seen ------------------------------------------------------------------------------------------- */

/* A page's contents in one word; 0 for a page of zeroes. */
EXPORT uint64_t uf_hash_page(const void *page)
{
	const uint64_t *word = page;
	uint64_t lane[4] = {0, 0, 0, 0}, any = 0;

	/* Most of a huge page: no multiplications, and several words at once. */
	for (int i = 0; i < PAGE / 8; i++)
		any |= word[i];
	if (!any)
		return 0;
	for (int i = 0; i < PAGE / 8; i += 4)
		for (int k = 0; k < 4; k++)
			lane[k] = (lane[k] ^ word[i + k]) * 0x9e3779b97f4a7c15u + (lane[k] >> 29);
	return lane[0] ^ (lane[1] * 3) ^ (lane[2] * 5) ^ (lane[3] * 7);
}

/* The same of a page that is mapped here, by reading it; 1 where it can't be read. */
static uint64_t hash_own(const void *page)
{
	uint64_t hash = 1;

	if (sigsetjmp(escape, 0) == 0) {
		armed = 1;
		hash = uf_hash_page(page);
	}
	armed = 0;
	return hash;
}

struct scan_region {
	uint64_t start, end, categories;
};

struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct procmap {
	uint64_t size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
	uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
	uint64_t vma_name_addr, build_id_addr;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct scan_arg)
#define PROCMAP_QUERY _IOWR('f', 17, struct procmap)
#define COVERING_OR_NEXT 0x10

enum { MAX_PAGES = 8192, MARKER_TYPES = 20, PFN_BITS = 55 };
static uint64_t entry[MAX_PAGES], count[MAX_PAGES], flags[MAX_PAGES];
static struct scan_region region[MAX_PAGES];

/* The bits of a word, from the lowest: what pagemap says (6), PAGEMAP_SCAN (9), kpagecount (8), kpageflags (10), class. */
static const int pagemap_bits[] = {63, 62, 61, 58, 57, 56};
static const int flag_bits[] = {12, 34, 22, 15, 16, 21, 24, 13};

static uint64_t pfn_of(uint64_t page)
{
	return entry[page] & ((1ull << PFN_BITS) - 1);
}

static void observe_pages(struct agent *a, int p, uint64_t *word, uint64_t *content)
{
	uint64_t n = a->pages, base = a->base, i, k;
	struct scan_arg scan = {.size = sizeof(scan), .start = base, .end = base + n * PAGE, .vec = (uint64_t)region,
				.vec_len = MAX_PAGES, .return_mask = a->categories};
	long found = 0;

	if (pread(a->pagemap[p], entry, n * 8, (off_t)(base / PAGE * 8)) != (ssize_t)(n * 8))
		memset(entry, 0, sizeof(entry));
	memset(content, 0, n * 8);
	for (i = 0; i < n; i++) {
		/* Neighbours are alike, mostly. */
		if (i && (entry[i] ^ entry[i - 1]) >> PFN_BITS == 0) {
			word[i] = word[i - 1];
			continue;
		}
		for (k = 0, word[i] = 0; k < 6; k++)
			word[i] |= (entry[i] >> pagemap_bits[k] & 1) << k;
	}
	/* It was tried before: a failure now would look like pages without categories. */
	if (a->categories && (found = ioctl(a->pagemap[p], PAGEMAP_SCAN, &scan)) < 0)
		give_up("PAGEMAP_SCAN");
	for (long r = 0; r < found; r++)
		for (i = (region[r].start - base) / PAGE; i < (region[r].end - base) / PAGE; i++)
			word[i] |= (region[r].categories & 0x1ff) << 6;
	for (i = 0; i < n; i = k) {
		uint64_t pfn = pfn_of(i), step, length, shown = 0;

		k = i + 1;
		if (!(entry[i] >> 63))
			continue;
		/* Pages that are neighbours, or the zero page again and again. */
		step = k == n || pfn_of(k) != pfn;
		while (k < n && entry[k] >> 63 && pfn_of(k) == pfn + step * (k - i))
			k++;
		length = step ? (k - i) * 8 : 8;
		if (pread(a->kpagecount, count, length, (off_t)(pfn * 8)) != (ssize_t)length ||
		    pread(a->kpageflags, flags, length, (off_t)(pfn * 8)) != (ssize_t)length)
			give_up("/proc/kpagecount or kpageflags");
		for (uint64_t at = i, from = 0; at < k; at++, from += step) {
			if (at == i || count[from] != count[from - step] || flags[from] != flags[from - step]) {
				shown = (count[from] > 255 ? 255 : count[from]) << 15;
				for (uint64_t bit = 0; bit < 8; bit++)
					shown |= (flags[from] >> flag_bits[bit] & 1) << (23 + bit);
			}
			word[at] |= shown;
		}
	}
}

/* The lines of /proc/PID/maps that overlap the window, in flags as PROCMAP_QUERY gives them. */
static void read_maps(struct agent *a, int p, struct header *out)
{
	static char text[1 << 18];
	uint64_t base = a->base, end = a->base + a->pages * PAGE;
	ssize_t got, length = 0;

	while ((got = pread(a->maps[p], text + length, sizeof(text) - 1 - (size_t)length, length)) > 0)
		length += got;
	if (got < 0 || length == sizeof(text) - 1)
		give_up("/proc/PID/maps");
	text[length] = 0;
	for (char *line = text; *line && out->vmas < VMAS; line = strchr(line, '\n') + 1) {
		uint64_t first = strtoull(line, &line, 16), last = strtoull(line + 1, &line, 16);

		if (first < end && last > base)
			out->vma[out->vmas++] = (struct vma){(uint32_t)((int64_t)(first - base) / PAGE),
							     (uint32_t)((int64_t)(last - base) / PAGE),
							     (line[1] == 'r') | (line[2] == 'w') << 1 | (line[3] == 'x') << 2, 0};
	}
}

static void observe_vmas(struct agent *a, int p, struct header *out)
{
	uint64_t at = a->base, end = a->base + a->pages * PAGE;

	out->vmas = 0;
	if (!a->procmap_query) {
		read_maps(a, p, out);
		return;
	}
	while (out->vmas < VMAS) {
		struct procmap q = {.size = sizeof(q), .query_flags = COVERING_OR_NEXT, .query_addr = at};

		if (ioctl(a->maps[p], PROCMAP_QUERY, &q)) {
			if (errno != ENOENT)
				give_up("PROCMAP_QUERY");
			break;
		}
		if (q.vma_start >= end)
			break;
		out->vma[out->vmas++] = (struct vma){(uint32_t)((q.vma_start - a->base) / PAGE),
						     (uint32_t)((q.vma_end - a->base) / PAGE), (uint32_t)q.vma_flags, 0};
		at = q.vma_end;
		if (at >= end)
			break;
	}
}

static const char vm_flags[][4] = {"rd", "wr", "ex", "dc", "lo", "lf", "um", "uw", "hg", "nh", "wf", "dd", "ac", "mg"};

static uint32_t flags_of(const char *line)
{
	uint32_t flags = 0;

	for (; *line; line += 3)
		for (unsigned i = 0; i < sizeof(vm_flags) / sizeof(vm_flags[0]); i++)
			if (!strncmp(line, vm_flags[i], 2))
				flags |= 1u << i;
	return flags;
}

/* A line of smaps, of a VMA in the window. */
static void read_field(const char *line, struct area *out)
{
	unsigned long kilobytes;

	if (!strncmp(line, "VmFlags: ", 9))
		out->flags = flags_of(line + 9);
	else if (sscanf(line, "Rss: %lu", &kilobytes) == 1)
		out->rss = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "Swap: %lu", &kilobytes) == 1)
		out->swap = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "AnonHugePages: %lu", &kilobytes) == 1)
		out->huge = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "LazyFree: %lu", &kilobytes) == 1)
		out->lazy = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "Locked: %lu", &kilobytes) == 1)
		out->locked = (uint32_t)kilobytes;
}

/* smaps in the order of addresses, no further than the window reaches. */
static void observe_areas(struct agent *a, int p, struct header *out)
{
	static char text[1 << 16];
	uint64_t base = a->base, end = a->base + a->pages * PAGE;
	size_t kept = 0;
	int inside = 0;
	ssize_t got;

	lseek(a->smaps[p], 0, SEEK_SET);
	while ((got = read(a->smaps[p], text + kept, sizeof(text) - 1 - kept)) > 0) {
		char *line = text, *stop;

		text[kept += (size_t)got] = 0;
		for (; (stop = strchr(line, '\n')); line = stop + 1) {
			unsigned long first, last;

			*stop = 0;
			/* Names of fields begin with a capital letter. */
			if (*line < 'A' || *line > 'Z') {
				if (sscanf(line, "%lx-%lx", &first, &last) != 2)
					give_up("smaps");
				if (first >= end)
					return;
				inside = last > base && out->areas < VMAS;
				if (inside)
					memset(&out->area[out->areas++], 0, sizeof(struct area));
			} else if (inside) {
				read_field(line, &out->area[out->areas - 1]);
			}
		}
		kept = strlen(line);
		memmove(text, line, kept + 1);
	}
}

/* What a process may do with a page, as PROT_*. */
static int allowed(const struct header *vmas, uint64_t page)
{
	for (uint32_t v = 0; v < vmas->vmas; v++)
		if (vmas->vma[v].first <= page && page < vmas->vma[v].last)
			return vmas->vma[v].flags & 7;
	return 0;
}

static void observe_contents(struct agent *a, int p, const struct header *vmas, uint64_t *content, uint64_t first,
			     uint64_t last)
{
	static char copy[PAGE];

	for (uint64_t i = first; i < last; i++) {
		void *page = (void *)(a->base + i * PAGE);
		int may;

		/* A read of a present page changes nothing but the accessed bit. */
		if (!(entry[i] >> 63))
			continue;
		may = p ? allowed(vmas, i) : 0;
		content[i] = 1;
		if (p == 0) {
			content[i] = hash_own(page);
		} else if (may & PROT_READ) {
			/* Not process_vm_readv, which pins the page, and so gives a shared one its own copy. */
			if (pread(a->mem[p], copy, PAGE, (off_t)page) != PAGE)
				give_up("/proc/PID/mem");
			content[i] = uf_hash_page(copy);
		} else if (may) {
			/* The CPU reads what may be written only; kernels differ in whether /proc/PID/mem does (proc_mem.force_override). */
			a->look = (uint64_t)page;
			in_process(a, p, LOOK);
			content[i] = a->look;
		}
	}
}

/* Which entries name the same page or the same swap slot: the class is 1 + the first place where it is seen. */
static uint64_t seen_key[4 * MAX_PAGES];
static uint32_t seen_at[4 * MAX_PAGES];
static uint64_t seen_epoch[4 * MAX_PAGES], epoch;

static void classify(uint64_t *word, uint64_t n, uint64_t offset)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t key, at;

		if (!(entry[i] >> 62))
			continue;
		/* A marker is no swap slot: its type is beyond the types of swap devices. */
		if (!(entry[i] >> 63) && (entry[i] & 31) >= MARKER_TYPES)
			continue;
		key = pfn_of(i) << 2 | entry[i] >> 62;
		at = key * 0x9e3779b97f4a7c15u >> 49;
		while (seen_epoch[at] == epoch && seen_key[at] != key)
			at = (at + 1) & (4 * MAX_PAGES - 1);
		if (seen_epoch[at] != epoch) {
			seen_epoch[at] = epoch;
			seen_key[at] = key;
			seen_at[at] = (uint32_t)(offset + i + 1);
		}
		word[i] |= (uint64_t)seen_at[at] << 40;
	}
}

static void observe(struct agent *a, uint64_t n, char *record)
{
	struct record *head = (struct record *)record;
	uint64_t each = sizeof(struct header) + a->pages * 16, live = 0;
	uint64_t slice = a->contents ? a->contents : a->pages;
	uint64_t first = a->contents ? n * slice % a->pages : 0;

	epoch++;
	for (int p = 0; p < PROCESSES; p++) {
		struct header *out = (struct header *)(record + sizeof(*head) + live * each);
		uint64_t *word = (uint64_t *)(out + 1);

		if (a->pid[p] <= 0)
			continue;
		out->process = (uint32_t)p;
		observe_pages(a, p, word, word + a->pages);
		observe_vmas(a, p, out);
		out->areas = 0;
		if (a->areas && (n % a->areas == a->areas - 1 || n + 1 == a->ops))
			observe_areas(a, p, out);
		observe_contents(a, p, out, word + a->pages, first,
				 first + slice < a->pages ? first + slice : a->pages);
		classify(word, a->pages, live * a->pages);
		live++;
	}
	head->live = live;
	head->messages = a->messages;
	memcpy(head->message, a->message, a->messages * sizeof(struct message));
	a->messages = 0;
}

EXPORT uint64_t uf_agent_sizes(int what)
{
	uint64_t sizes[] = {sizeof(struct op), sizeof(struct result), sizeof(struct header), sizeof(struct agent), PROCESSES,
			    sizeof(struct record)};

	return what < 6 ? sizes[what] : 0;
}

/*
 * Run the operations from a->done on, with a record before the first and after each. Returns 0; a deadline is the caller's
 * business: it kills us. `observed`: whether records are wanted.
 */
EXPORT int uf_agent_run(struct agent *a, struct op *ops, struct result *results, char *records, int observed)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER};

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (a->contexts)
		start_reader(a, ops);
	for (uint64_t n = a->done; n < a->ops; n++) {
		run_one(a, ops, results, n);
		if (a->contexts)
			wait_for_reader();
		drain_batches();
		if (observed) {
			observe(a, n, records + n * a->record_bytes);
			/* A page that was looked at twice waits to become active, by a reference that would make the next write copy it. */
			drain_batches();
		}
		a->done = n + 1;
	}
	return 0;
}

/* Open what is needed to observe; the caller is the process that operations will be done to. Returns 0 or -errno. */
EXPORT int uf_agent_open(struct agent *a)
{
	struct procmap q = {.size = sizeof(q), .query_flags = COVERING_OR_NEXT};

	a->pid[0] = getpid();
	a->pagemap[0] = open_proc(a->pid[0], "pagemap");
	a->maps[0] = open_proc(a->pid[0], "maps");
	a->smaps[0] = open_proc(a->pid[0], "smaps");
	a->kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	a->kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (a->pagemap[0] < 0 || a->maps[0] < 0 || a->smaps[0] < 0 || a->kpagecount < 0 || a->kpageflags < 0)
		return -errno;
	a->procmap_query = !ioctl(a->maps[0], PROCMAP_QUERY, &q) || errno != ENOTTY;
	for (int p = 1; p < PROCESSES; p++)
		if (pipe2(a->command[p], O_CLOEXEC) || pipe2(a->answer[p], O_CLOEXEC))
			return -errno;
	return 0;
}
