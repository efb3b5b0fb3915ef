"""A sequence as a C program of one file, which does it to the kernel and prints what it gave back and what can be seen."""

from __future__ import annotations

from collections.abc import Sequence

from ..kernel.agent import MASK, Command
from ..kernel.uapi import Feature
from . import operations
from .operations import CONTEXT_FD, PIDFD, Op
from .world import CONTEXTS, Window

HEAD = """\
// SPDX-License-Identifier: Apache-2.0
// {title}
// Build: gcc -O2 -Wall -o reproducer FILE.c; run as root (page frames are shown to root only).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASE {base:#x}UL
#define PAGES {pages}
#define PROCESSES 8

enum {{ SYSCALL, LOAD, STORE, FORK, EXIT }};

// process: who does it. pointers: bit i says that argument i is an offset into scratch. out: the scratch word to print, or -1.
static struct op {{
\tint process, kind;
\tlong number;
\tunsigned long arg[6], pointers;
\tint out;
\tuint64_t scratch[8];
\tconst char *text;
}} ops[] = {{
{ops}
}};

"""

TAIL = """\
enum { OPS = sizeof(ops) / sizeof(ops[0]) };
static sigjmp_buf escape;
static volatile int *turn; // the operation whose time it is, shared by all processes

static void on_signal(int number)
{
	siglongjmp(escape, number);
}

static void show(void)
{
	uint64_t entry[PAGES], flags;
	int pagemap = open("/proc/self/pagemap", O_RDONLY), kpageflags = open("/proc/kpageflags", O_RDONLY);

	if (pread(pagemap, entry, sizeof(entry), BASE / 4096 * 8) != sizeof(entry))
		return;
	for (int i = 0; i < PAGES; i++) {
		if (!(entry[i] & 7UL << 61) && !(entry[i] & 3UL << 57))
			continue;
		flags = 0;
		if (entry[i] >> 63 && pread(kpageflags, &flags, 8, (entry[i] & ((1UL << 55) - 1)) * 8) != 8)
			flags = 0;
		printf("    page %3d: pagemap %#018lx kpageflags %#lx\\n", i, entry[i], flags);
	}
	close(pagemap);
	close(kpageflags);
}

static void perform(int n, int me);

// Everybody goes through the list and does what is his; who waits also reaps children that have ended.
static void run(int me, int from)
{
	for (int n = from; n < OPS; n++) {
		while (*turn < n) {
			if (waitpid(-1, NULL, WNOHANG) > 0)
				++*turn;
			sched_yield();
		}
		if (ops[n].process == me)
			perform(n, me);
	}
	while (*turn < OPS) {
		if (waitpid(-1, NULL, WNOHANG) > 0)
			++*turn;
		sched_yield();
	}
}

static void perform(int n, int me)
{
	struct op *op = &ops[n];
	unsigned long a[6];
	long value = 0;
	int caught = 0;
	static char untouched[8192];

	// What waits in this CPU's batches reaches the LRU lists.
	madvise((void *)(((unsigned long)untouched + 4096) & -4096UL), 4096, 20);
	for (int i = 0; i < 6; i++)
		a[i] = op->pointers >> i & 1 ? (unsigned long)op->scratch + op->arg[i] : op->arg[i];
	switch (op->kind) {
	case SYSCALL:
		value = syscall(op->number, a[0], a[1], a[2], a[3], a[4], a[5]);
		if (value == -1 && errno)
			value = -errno;
		break;
	case LOAD:
	case STORE:
		caught = sigsetjmp(escape, 1);
		if (!caught && op->kind == LOAD)
			value = *(volatile long *)a[0];
		else if (!caught)
			*(volatile long *)a[0] = a[1];
		break;
	case FORK:
		fflush(stdout);
		if (fork() == 0) {
			run((int)op->arg[0], n + 1);
			_exit(0);
		}
		break;
	case EXIT:
		printf("%3d  %s\\n", n, op->text);
		fflush(stdout);
		_exit(0); // whoever reaps us goes on to the next operation
	}
	printf("%3d  %s: ", n, op->text);
	if (caught)
		printf("signal %d\\n", caught);
	else if (op->out >= 0)
		printf("%ld, output %ld\\n", value, (long)op->scratch[op->out]);
	else
		printf("%ld\\n", value);
	if (n == OPS - 1)
		show();
	fflush(stdout);
	++*turn;
	(void)me;
}

int main(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	unsigned long features[] = {FEATURES};
	cpu_set_t one;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (unsigned i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		uint64_t api[3] = {0xaa, features[i], 0};
		int fd = syscall(323, 0); // userfaultfd

		if (fd < 0 || ioctl(fd, 0xc018aa3f, api)) {
			perror("userfaultfd");
			return 2;
		}
		dup2(fd, FIRST_FD + i);
		close(fd);
	}
	dup2(syscall(434, getpid(), 0), PIDFD); // pidfd_open
	run(0, 0);
	return 0;
}
"""


def c_program(sequence: Sequence[Op], window: Window, title: str, lacking: Feature = Feature(0)) -> str:  # noqa: B008
    """The program, for a kernel that is lacking some features. Where the profile needs swap, there must be some."""
    rows = []
    for op in sequence:
        command = operations.command(op, window.base)
        rows.append(row(op, command))
    head = HEAD.format(title=title, base=window.start, pages=window.pages, ops="\n".join(rows))
    features = ", ".join(f"{int(each & ~lacking):#x}" for each in CONTEXTS)
    return head + TAIL.replace("{FEATURES}", f"{{{features}}}").replace("FIRST_FD", str(CONTEXT_FD)).replace(
        "PIDFD", str(PIDFD)
    )


def row(op: Op, command: Command) -> str:
    arguments = ", ".join(f"{value & MASK:#x}" for value in command.arguments)
    scratch = ", ".join(f"{value & MASK:#x}" for value in command.scratch)
    kind = ("SYSCALL", "LOAD", "STORE", "FORK", "EXIT")[command.kind]
    out = operations.KINDS[op.name].out
    return (
        f"\t{{{op.process}, {kind}, {command.number}, {{{arguments or 0}}}, {command.pointers:#x}, {out}, "
        f'{{{scratch or 0}}}, "{operations.text(op)}"}},'
    )
