/* SPDX-License-Identifier: Apache-2.0 */
/* What an operation is: an access, a system call, a page kept, ksmd driven. */
#include "agent.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

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

void agent_catch_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER};

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

static void perform_access(const struct op *op, struct result *out)
{
	volatile uint64_t *where = (volatile uint64_t *)op->arg[0];
	int caught = sigsetjmp(escape, 0);

	if (caught) {
		armed = 0;
		out->signal = caught;
		return;
	}
	armed = 1;
	if (op->kind == STORE)
		*where = op->arg[1];
	else
		out->value = (int64_t)*where;
	armed = 0;
}

static void perform_syscall(const struct op *op, struct result *out)
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
			agent_give_up("io_uring_setup");
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
			agent_give_up("pipe2");
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
		agent_give_up("a page in a pipe");
	holds[slot] = 0;
	return (int64_t)uf_hash_page(copy);
}

/* Before a process ends: the kernel takes an io_uring down in its own time. */
void agent_let_go(void)
{
	for (uint64_t slot = 0; slot < SLOTS; slot++) {
		unpin(slot);
		release(slot);
	}
}

/* After a fork: what the parent keeps is not ours. */
void agent_disown(void)
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

enum { SCANS = 12, KSM_MERGE = 1 };

static long long ksm_number(const char *path)
{
	char text[32] = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		agent_give_up(path);
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

/* ksmd's copies wait in its CPU's batch for the LRU lists, where reclaim finds them: moving no pages drains all CPUs'. */
static void drain_all_batches(void)
{
	int node = 0;

	syscall(SYS_move_pages, 0, 0, NULL, &node, NULL, 0);
}

/* Whole scans: ksmd stops between two of them, as it is told to scan more pages at once than there are. */
static int64_t drive_ksmd(uint64_t what)
{
	static const char scans[] = "/sys/kernel/mm/ksm/full_scans";
	long long before = ksm_number(scans);
	int64_t failed = ksm_run((char)('0' + what));

	while (!failed && what == KSM_MERGE && ksm_number(scans) < before + SCANS)
		usleep(200);
	if (!failed)
		failed = ksm_run('0');
	drain_all_batches();
	return failed;
}

/* Everything but FORK, EXIT and MEANWHILE, which are not one process's to do. */
void agent_operate(const struct op *op, struct result *out)
{
	switch (op->kind) {
	case LOAD:
	case STORE:
		perform_access(op, out);
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

/* The same of a page that is mapped here, by reading it; 1 where it can't be read. */
uint64_t agent_hash_own(const void *page)
{
	uint64_t hash = 1;

	if (sigsetjmp(escape, 0) == 0) {
		armed = 1;
		hash = uf_hash_page(page);
	}
	armed = 0;
	return hash;
}
