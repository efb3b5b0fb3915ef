"""A sequence as a C program of one file, which does it to the kernel and prints what it gave back and what can be seen."""

from __future__ import annotations

from collections.abc import Sequence

from ..kernel.agent import MASK, MEANWHILE, Command
from ..kernel.uapi import Feature
from . import operations
from .operations import CONTEXT_FD, PIDFD, Op
from .profiles import Profile
from .world import WATCHED

HEAD = """\
// SPDX-License-Identifier: Apache-2.0
// {title}
// Build: gcc -O2 -Wall -pthread -o reproducer FILE.c; run as root (page frames are shown to root only).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
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

#define ORIGIN {origin:#x}UL
#define BASE {base:#x}UL
#define PAGES {pages}
#define PROCESSES 8

enum {{ {kinds} }};

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
static volatile int *meanwhile, *reading; // what is done while a message is unread, plus 1; whether one is being read

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

KSMD
KEEPER
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
DISOWN
			run((int)op->arg[0], n + 1);
			_exit(0);
		}
		break;
	case MEANWHILE:
		*meanwhile = n + 1;
		break;
DRIVE
KEEP
READ_PINNED
	case EXIT:
LET_GO
		printf("%3d  %s\\n", n, op->text);
		fflush(stdout);
		_exit(0); // whoever reaps us goes on to the next operation
	}
	while (*reading)
		sched_yield();
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

READER
int main(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	unsigned long features[] = {FEATURES};
	cpu_set_t one;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	meanwhile = turn + 1;
	reading = turn + 2;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
SMALL
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (unsigned i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		uint64_t api[3] = {0xaa, features[i], 0};
		int fd = syscall(323, O_NONBLOCK); // userfaultfd

		if (fd < 0 || ioctl(fd, 0xc018aa3f, api)) {
			perror("userfaultfd");
			return 2;
		}
		dup2(fd, FIRST_FD + i);
		close(fd);
	}
	dup2(syscall(434, getpid(), 0), PIDFD); // pidfd_open
AREA
START
	run(0, 0);
	return 0;
}
"""


KINDS = (
    "SYSCALL",
    "LOAD",
    "STORE",
    "FORK",
    "EXIT",
    "MEANWHILE",
    "PIN",
    "UNPIN",
    "HOLD",
    "RELEASE",
    "KSM_RUN",
    "VMREAD",
)
KEEPERS = ("pin", "unpin", "hold", "release")

KEEPER = """\
// Pages that a process keeps: pinned as registered buffers of io_urings, or held in pipes. 0: no descriptor.
static int ring[4], pipes[4][2], holds[4];

static long result_of(long value)
{
	return value < 0 ? -errno : value;
}

static long unpin(unsigned long slot)
{
	return ring[slot] ? result_of(syscall(427, ring[slot], 1 /* UNREGISTER_BUFFERS */, 0, 0)) : -ENXIO;
}

static long release(unsigned long slot)
{
	static uint64_t copy[512];

	if (!holds[slot] || read(pipes[slot][0], copy, 4096) != 4096)
		return -ENXIO;
	holds[slot] = 0;
	return (long)copy[0];
}

static long keep(int kind, unsigned long slot, unsigned long address)
{
	struct iovec buffer = {(void *)address, 4096};
	uint32_t parameters[30] = {0};
	long done;

	if (kind == PIN) {
		if (!ring[slot])
			ring[slot] = syscall(425, 1, parameters); // io_uring_setup
		return result_of(syscall(427, ring[slot], 0 /* REGISTER_BUFFERS */, &buffer, 1));
	}
	if (holds[slot])
		return -EBUSY;
	if (!pipes[slot][0] && pipe(pipes[slot]))
		return -errno;
	done = result_of(vmsplice(pipes[slot][1], &buffer, 1, SPLICE_F_NONBLOCK));
	holds[slot] = done == 4096;
	return done;
}

static void let_go(int ours)
{
	for (int i = 0; i < 4; i++) {
		if (ours) {
			unpin(i);
			release(i);
		} else if (ring[i] | pipes[i][0]) {
			close(ring[i] ? ring[i] : -1);
			close(pipes[i][0] ? pipes[i][0] : -1);
			close(pipes[i][1] ? pipes[i][1] : -1);
		}
		ring[i] = pipes[i][0] = pipes[i][1] = holds[i] = 0;
	}
}

"""

KEEP = """\
	case PIN:
	case HOLD:
		value = keep(op->kind, op->arg[0], op->arg[1]);
		break;
	case UNPIN:
		value = unpin(op->arg[0]);
		break;
	case RELEASE:
		value = release(op->arg[0]);
		break;
"""

KSMD = """\
#define KSM "/sys/kernel/mm/ksm/"

static long ksm_number(void)
{
	char text[32] = {0};
	int fd = open(KSM "full_scans", O_RDONLY);
	long got = read(fd, text, sizeof(text) - 1);

	close(fd);
	return got > 0 ? atol(text) : -1;
}

static long ksm_set(const char *name, const char *value)
{
	int fd = open(name, O_WRONLY);
	long done = write(fd, value, strlen(value));

	close(fd);
	return done < 0 ? -errno : 0;
}

// Twelve whole scans, or everything unmerged. How ksmd works is not put back.
static long drive_ksmd(long what)
{
	long before = ksm_number(), failed;
	int node = 0;

	ksm_set(KSM "sleep_millisecs", "0");
	ksm_set(KSM "pages_to_scan", "1000000000");
	ksm_set(KSM "smart_scan", "0");
	failed = ksm_set(KSM "run", what == 1 ? "1" : "2");
	while (!failed && what == 1 && ksm_number() < before + 12)
		usleep(200);
	if (!failed)
		failed = ksm_set(KSM "run", "0");
	// Its copies wait in its CPU's batch for the LRU lists; moving no pages drains all CPUs'.
	syscall(SYS_move_pages, 0, 0, NULL, &node, NULL, 0);
	return failed;
}

"""

DRIVE = """\
	case KSM_RUN:
		value = drive_ksmd(op->arg[0]);
		break;
"""

READ_PINNED = """\
	case VMREAD: {
		struct iovec to = {op->scratch, 8}, from = {(void *)a[0], 8};

		value = process_vm_readv(getpid(), &to, 1, &from, 1, 0) < 0 ? -errno : 8;
		break;
	}
"""

SMALL = """\
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
"""

AREA = """\
	// A process without an area that may be merged loses its place among those that are scanned.
	madvise(mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096, 12);
"""

READER = """\
struct message {
	unsigned char event, reserved[7];
	uint64_t word[3];
};

static int contexts;

static long result(int fd, unsigned long request, uint64_t *argument)
{
	return ioctl(fd, request, argument) ? -errno : 0;
}

// Zeroes in odd pages, else the page's number.
static void resolve(int number, const struct message *m)
{
	static uint64_t filled[512] __attribute__((aligned(4096)));
	uint64_t address = m->word[1] & -4096UL, page = (address - ORIGIN) / 4096;
	uint64_t range[4] = {address, 4096}, copy[5] = {address, (uint64_t)filled, 4096};
	long failed = 0;

	if (m->word[0] & 2)
		printf("     resolved: %ld\\n", failed = result(FIRST_FD + number, 0xc018aa06, range));
	else if (page & 1)
		printf("     resolved: %ld\\n", failed = result(FIRST_FD + number, 0xc020aa04, range));
	if (!(m->word[0] & 2) && (!(page & 1) || failed)) {
		filled[0] = page;
		printf("     resolved: %ld\\n", failed = result(FIRST_FD + number, 0xc028aa03, copy));
	}
	if (failed)
		ioctl(FIRST_FD + number, 0x8010aa02, range);
}

static void read_message(int number)
{
	struct message m;
	int n = *meanwhile - 1;

	if (n >= 0) {
		*meanwhile = 0;
		printf("     meanwhile %ld\\n", result(ops[n].arg[0], ops[n].arg[1], ops[n].scratch));
	}
	if (read(FIRST_FD + number, &m, sizeof(m)) != sizeof(m))
		return;
	printf("     userfaultfd %d says %#x", number, m.event);
	if (m.event == 0x13) { // fork
		printf(" %d\\n", contexts);
		dup2(m.word[0], FIRST_FD + contexts++);
		close(m.word[0]);
	} else if (m.event == 0x12) { // pagefault
		printf(" page %ld flags %ld\\n", (long)((m.word[1] - ORIGIN) / 4096), (long)m.word[0]);
		resolve(number, &m);
	} else {
		printf(" page %ld to %ld\\n", (long)((m.word[0] - ORIGIN) / 4096), (long)((m.word[1] - ORIGIN) / 4096));
	}
}

static void *read_messages(void *unused)
{
	for (;;) {
		struct pollfd fds[256];
		int all = contexts;

		for (int i = 0; i < all; i++)
			fds[i] = (struct pollfd){FIRST_FD + i, POLLIN, 0};
		poll(fds, all, -1);
		*reading = 1;
		for (int i = 0; i < all; i++)
			if (fds[i].revents & POLLIN)
				read_message(i);
		fflush(stdout);
		*reading = 0;
	}
	return unused;
}

"""

START = """\
	pthread_t reader;
	contexts = sizeof(features) / sizeof(features[0]);
	pthread_create(&reader, NULL, read_messages, NULL);
"""


def c_program(sequence: Sequence[Op], profile: Profile, title: str, lacking: Feature = Feature(0)) -> str:  # noqa: B008
    """The program, for a kernel that is lacking some features. Where the profile needs swap, there must be some; where it has
    huge pages, they must be had where they are advised, and khugepaged must sleep (sandbox.py).
    """
    window, watched = profile.window, profile.contexts is WATCHED
    rows = []
    for op in sequence:
        command = operations.command(op, window.base)
        rows.append(row(op, command))
    keeps = any(op.name in KEEPERS for op in sequence)
    drives = any(op.name == "ksmd" for op in sequence)
    reads = any(op.name == "vmread" for op in sequence)
    kinds = KINDS if keeps or drives or reads else KINDS[: MEANWHILE + 1]
    head = HEAD.format(
        kinds=", ".join(kinds),
        title=title,
        origin=window.base,
        base=window.start,
        pages=window.pages,
        ops="\n".join(rows),
    )
    features = ", ".join(f"{int(each & ~lacking):#x}" for each in profile.contexts)
    tail = TAIL.replace("READER\n", READER if watched else "").replace("START\n", START if watched else "")
    for marker, text in (
        ("KEEPER", KEEPER),
        ("KEEP", KEEP),
        ("DISOWN", "\t\t\tlet_go(0);\n"),
        ("LET_GO", "\t\tlet_go(1);\n"),
    ):
        tail = tail.replace(f"{marker}\n", text if keeps else "")
    for marker, text in (("KSMD", KSMD), ("DRIVE", DRIVE), ("AREA", AREA)):
        tail = tail.replace(f"{marker}\n", text if drives else "")
    tail = tail.replace("SMALL\n", "" if profile.huge else SMALL)
    tail = tail.replace("READ_PINNED\n", READ_PINNED if reads else "")
    return head + tail.replace("{FEATURES}", f"{{{features}}}").replace("FIRST_FD", str(CONTEXT_FD)).replace(
        "PIDFD", str(PIDFD)
    )


def row(op: Op, command: Command) -> str:
    arguments = ", ".join(f"{value & MASK:#x}" for value in command.arguments)
    scratch = ", ".join(f"{value & MASK:#x}" for value in command.scratch)
    kind = KINDS[command.kind]
    out = -1 if command.kind == MEANWHILE else operations.KINDS[op.name].out
    return (
        f"\t{{{op.process}, {kind}, {command.number}, {{{arguments or 0}}}, {command.pointers:#x}, {out}, "
        f'{{{scratch or 0}}}, "{operations.text(op)}"}},'
    )
