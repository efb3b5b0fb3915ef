/* SPDX-License-Identifier: Apache-2.0 */
/* What userfaultfds say: a thread reads it, resolves faults, and keeps the userfaultfds of children. */
#include "agent.h"
#include "uapi.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { MOST_CONTEXTS = 256 };

struct reader {
	struct agent *agent;
	struct op *ops;
	int ask[2], tell[2];
};

static struct reader reader;

static void tell(struct agent *a, struct message what)
{
	if (a->messages == MESSAGES)
		agent_give_up("more messages than an operation may have");
	a->message[a->messages++] = what;
}

static int64_t ioctl_result(int fd, unsigned long request, uint64_t *argument)
{
	return ioctl(fd, request, argument) ? -errno : 0;
}

/* Resolve a fault, by a rule that depends on nothing but the message. The page is filled with its number, or with zeroes. */
static void resolve(struct agent *a, uint64_t context, int fd, const struct uffd_msg *message)
{
	static uint64_t filled[PAGE / 8] __attribute__((aligned(PAGE)));
	uint64_t address = message->arg.pagefault.address & -(uint64_t)PAGE, page = (address - a->origin) / PAGE;
	uint64_t range[4] = {address, PAGE, 0, 0}, copy[5] = {address, (uint64_t)filled, PAGE, 0, 0};
	struct message done = {RESOLVED, context, 0, 0, 0};

	if (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
		done.first = (uint64_t)ioctl_result(fd, UFFDIO_WRITEPROTECT, range);
		tell(a, done);
	} else if (page & 1) {
		done.first = (uint64_t)ioctl_result(fd, UFFDIO_ZEROPAGE, range);
		done.second = range[3];
		tell(a, done);
	}
	/* Zeroes don't go where a hole is marked as write-protected. */
	if (!(message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) && (!(page & 1) || done.first)) {
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
	struct uffd_msg message;
	struct message out = {0, context, 0, 0, 0};
	int fd = (int)(a->first_context + context);

	if (a->meanwhile)
		do_meanwhile(a, &reader.ops[a->meanwhile - 1]);
	if (read(fd, &message, sizeof(message)) != sizeof(message)) {
		/* What was done meanwhile woke who waited. */
		if (errno == EAGAIN)
			return;
		agent_give_up("a message of a userfaultfd");
	}
	out.event = message.event;
	switch (message.event) {
	case UFFD_EVENT_PAGEFAULT:
		out.first = message.arg.pagefault.address - a->origin;
		out.second = message.arg.pagefault.flags;
		for (out.third = 0; out.third < PROCESSES && a->pid[out.third] != message.arg.pagefault.ptid;)
			out.third++;
		break;
	case UFFD_EVENT_FORK:
		if (a->contexts == MOST_CONTEXTS)
			agent_give_up("more userfaultfds than can be read");
		out.first = a->contexts;
		if (dup2((int)message.arg.fork.ufd, (int)(a->first_context + a->contexts)) < 0)
			agent_give_up("the userfaultfd of a fork");
		close((int)message.arg.fork.ufd);
		a->contexts++;
		break;
	default:
		out.first = message.arg.remap.from - a->origin;
		out.second = message.arg.remap.to - a->origin;
		out.third = message.event == UFFD_EVENT_REMAP ? message.arg.remap.len : 0;
	}
	tell(a, out);
	if (message.event == UFFD_EVENT_PAGEFAULT)
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
			agent_give_up("poll");
		for (uint64_t i = 0; i < contexts; i++)
			if (fds[i].revents & POLLIN) {
				read_message(a, i);
				ready++;
			}
		if (!ready && fds[contexts].revents) {
			agent_wait_byte(reader.ask[0]);
			agent_send_byte(reader.tell[1], 0);
		}
	}
	return unused;
}

void agent_start_reader(struct agent *a, struct op *ops)
{
	pthread_t thread;

	reader.agent = a;
	reader.ops = ops;
	if (pipe2(reader.ask, O_CLOEXEC) || pipe2(reader.tell, O_CLOEXEC) || pthread_create(&thread, NULL, read_messages, NULL))
		agent_give_up("the thread that reads messages");
}

/* Everything that the operation raised is read; the reader may still be writing it down. */
void agent_wait_for_reader(void)
{
	agent_send_byte(reader.ask[1], 0);
	agent_wait_byte(reader.tell[0]);
}
