/* SPDX-License-Identifier: Apache-2.0 */
/* The list of operations: who does which, in which process, and what is recorded after it. */
#include "agent.h"
#include "uapi.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What was there when it was tried must not be missing later: the status says where, the message why. */
_Noreturn void agent_give_up(const char *what)
{
	dprintf(2, "userfault: the agent can't go on: %s: %s\n", what, errno ? strerror(errno) : "a short read");
	_exit(5);
}

/* Read and write a whole small message; a process that is gone ends us. */
void agent_send_byte(int fd, char c)
{
	while (write(fd, &c, 1) != 1)
		if (errno != EINTR)
			_exit(3);
}

char agent_wait_byte(int fd)
{
	char c;
	ssize_t got;

	while ((got = read(fd, &c, 1)) != 1)
		if (got == 0 || errno != EINTR)
			_exit(3);
	return c;
}

static void serve(struct agent *a, struct op *ops, struct result *results, int me);

static void perform(struct agent *a, struct op *ops, struct result *results, uint64_t n, int me)
{
	struct op *op = &ops[n];
	struct result *out = &results[n];
	pid_t pid;

	switch (op->kind) {
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
			agent_disown();
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
	default:
		agent_operate(op, out);
	}
}

/*
 * A forked process: what to do is one byte. PERFORM: the operation that the agent is at; LOOK: say what a page of its own holds;
 * 0 to 7: wait for that process.
 */
static void serve(struct agent *a, struct op *ops, struct result *results, int me)
{
	for (;;) {
		char what = agent_wait_byte(a->command[me][0]);

		if (what == LEAVE) {
			agent_let_go();
			_exit(0);
		}
		if (what == PERFORM)
			perform(a, ops, results, a->done, me);
		else if (what == LOOK)
			a->look = agent_hash_own((const void *)a->look);
		else
			waitpid((pid_t)a->pid[(int)what], NULL, 0);
		agent_send_byte(a->answer[me][1], 0);
	}
}

static int open_proc(int64_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%lld/%s", (long long)pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

void agent_in_process(struct agent *a, int process, char what)
{
	agent_send_byte(a->command[process][1], what);
	agent_wait_byte(a->answer[process][0]);
}

/*
 * What waits in this CPU's batches reaches the LRU lists: new pages, and lazily freed ones. Advice on a page that was never
 * touched does nothing else.
 */
static void drain_batches(void)
{
	static char untouched[2 * PAGE];

	syscall(SYS_madvise, ((uint64_t)untouched + PAGE) & -(uint64_t)PAGE, PAGE, MADV_COLD);
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
		agent_send_byte(a->command[p][1], LEAVE);
		/* Its parent may be gone too: then it is ours (we are a subreaper). */
		other = a->parent[p];
		if (other == 0 || a->pid[other] != a->parent_pid[p]) {
			waitpid((pid_t)a->pid[p], NULL, 0);
		} else {
			agent_in_process(a, other, (char)p);
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
		agent_in_process(a, p, PERFORM);
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
	agent_catch_signals();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (a->contexts)
		agent_start_reader(a, ops);
	for (uint64_t n = a->done; n < a->ops; n++) {
		run_one(a, ops, results, n);
		if (a->contexts)
			agent_wait_for_reader();
		drain_batches();
		if (observed) {
			agent_observe(a, n, records + n * a->record_bytes);
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
	a->pid[0] = getpid();
	a->pagemap[0] = open_proc(a->pid[0], "pagemap");
	a->maps[0] = open_proc(a->pid[0], "maps");
	a->smaps[0] = open_proc(a->pid[0], "smaps");
	a->kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	a->kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (a->pagemap[0] < 0 || a->maps[0] < 0 || a->smaps[0] < 0 || a->kpagecount < 0 || a->kpageflags < 0)
		return -errno;
	a->procmap_query = (uint64_t)agent_has_procmap_query(a->maps[0]);
	for (int p = 1; p < PROCESSES; p++)
		if (pipe2(a->command[p], O_CLOEXEC) || pipe2(a->answer[p], O_CLOEXEC))
			return -errno;
	return 0;
}
