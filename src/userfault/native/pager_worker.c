// Sources written in Python: a worker process fills pages through the userfaultfd that it was handed; here is who asks it, who hears
// its answers, and who starts its successor. All without an interpreter. paging/wire.py describes the messages.
#include "wire.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RESTARTS 5        // in a row, without an answer in between
#define READY_MS 60000

static int send_all(int fd, const void *data, u64 length) {
    while (length) {
        ssize_t n = send(fd, data, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -errno;
        data = (const u8 *)data + n, length -= (u64)n;
    }
    return 0;
}

static bool awaited(pager *p) {
    for (u32 i = 0; i < MAX_PENDING; i++)
        if (atomic_load(&p->pendings[i].busy) == 2 && atomic_load(&p->pendings[i].sent)) return true;
    return false;
}

// All of it, or false: the stream ended, the region stops, `deadline_ns` is over, or (0: none) a worker that has been asked says nothing
// for longer than one request may take. It gives up on its source by itself: this one is stopped, or its interpreter is.
static bool receive(pager *p, void *data, u64 length, u64 deadline_ns) {
    u64 silent_ms = 0; // of time that we ran ourselves
    while (length) {
        struct pollfd f[2] = {{.fd = p->worker_fd, .events = POLLIN}, {.fd = p->event_fd, .events = POLLIN}};
        if (poll(f, 2, 500) == 0) {
            if (deadline_ns && now_ns() > deadline_ns) return false;
            silent_ms = awaited(p) ? silent_ms + 500 : 0;
            if (!deadline_ns && silent_ms > p->peer_timeout_ms) { p->worker_silent = 1; return false; }
        }
        if (atomic_load(&p->stopping)) return false;
        if (!(f[0].revents)) continue;
        ssize_t n = recv(p->worker_fd, data, length, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data = (u8 *)data + n, length -= (u64)n;
    }
    return true;
}

// Requests name their entry by `id`: index and generation, so that an answer to an earlier tenant is known as such.
static void ask(pager *p, slot *s, pending *w) {
    i64 value;
    if (s && !s->role) { // the application's descriptor may be closed, another file's by now, or a dead worker's
        atomic_store(&p->unsent, 1);
        ring_bell(p);
        return;
    }
    // Once only: a fill that nobody expects any more would put old content where newer may have been. And read under the lock: whoever
    // saw an earlier tenant unsent must not send that one's request in this one's name.
    if (strike(p, s, AT_SEND, &value) == DO_ERRNO) return;
    lock_robust(&p->send_lock);
    if (atomic_load(&w->busy) == 2 && atomic_load(&w->sent) != w->id) {
        header h = {.kind = FILL, .id = w->id, .offset = w->offset, .address = p->base + w->offset, .length = w->length,
                    .flags = (p->writable ? WRITE_PROTECT : 0) | (w->ahead ? BACKGROUND : 0)};
        atomic_store(&w->sent, w->id);
        send_all(p->worker_fd, &h, sizeof h); // where it fails the receiver finds out, and asks the successor
    }
    pthread_mutex_unlock(&p->send_lock);
}

// The next run of pages of the unit that the worker has, from page `at` of the unit on; false where none is left.
static bool next_run(pager *p, pending *w, u64 at) {
    u64 first = w->unit * p->unit / PAGE, count = unit_bytes(p, w->unit) / PAGE, end;
    while (at < count && p->writable && in_swap(p, first + at)) at++;
    for (end = at; end < count && !(p->writable && in_swap(p, first + end)); end++) {}
    w->offset = (first + at) * PAGE, w->length = (end - at) * PAGE, w->next = end;
    return at < end;
}

// 0: asked; 1: it came from the swap file altogether; or -errno. The unit is claimed and its room is made.
int submit(pager *p, slot *s, u64 unit, bool ahead) {
    const char *what;
    u64 first = unit * p->unit / PAGE, count = unit_bytes(p, unit) / PAGE, swapped = 0;
    if (p->writable)
        for (u64 i = 0; i < count; i++) swapped += in_swap(p, first + i);
    if (swapped) {
        int code = read_unit(p, s, unit, s->bounce, true, &what);
        for (u64 i = 0; !code && i < count; i++) {
            if (!in_swap(p, first + i)) continue;
            code = install(p, s, s->bounce + i * PAGE, (first + i) * PAGE + p->base, PAGE, COPY_ONLY);
        }
        if (code) return code;
        if (swapped == count) return 1;
    }
    if (atomic_load(&p->worker_lost)) return -EIO;
    for (;;) {
        for (u32 i = 0; i < MAX_PENDING; i++) {
            pending *w = &p->pendings[i];
            u32 nobody = 0;
            if (!atomic_compare_exchange_strong(&w->busy, &nobody, 1)) continue;
            w->unit = unit, w->ahead = ahead, w->waiter_tid = s->waiter_tid;
            w->first_ns = s->since_ns ? (u64)s->since_ns : now_ns();
            w->attempts = w->reported = 0;
            atomic_store(&w->sent, 0);
            w->id = (w->id & ~(u32)(MAX_PENDING - 1)) + MAX_PENDING + i;
            next_run(p, w, 0);
            // From here on the entry owns the unit, not the thread.
            au32 *word = &states(p)[unit];
            u32 old = atomic_load(word);
            while (!atomic_compare_exchange_weak(word, &old, (old & 0xffffu) | OWNER_WORKER)) {}
            atomic_store(&w->busy, 2);
            s->filling = 0;
            strike(p, s, AT_SUBMITTED, NULL);
            ask(p, s, w);
            return 0;
        }
        if (atomic_load(&p->worker_lost)) return -EIO;
        if (s->role) resend(p);
        struct timespec t = {0, 100000};
        nanosleep(&t, NULL);
    }
}

// What is not sent: a thread may not, or died before it did, or the worker it was sent to died.
void resend(pager *p) {
    for (u32 i = 0; i < MAX_PENDING; i++) {
        pending *w = &p->pendings[i];
        if (atomic_load(&w->busy) == 2 && !atomic_load(&w->sent)) ask(p, NULL, w);
    }
}

static void end_pending(pager *p, slot *s, pending *w, int code, const char *what, const char *record, u32 record_bytes) {
    u64 unit = w->unit;
    u32 ahead = w->ahead;
    s->address = p->base + w->offset, s->waiter_tid = w->waiter_tid;
    u64 began = w->first_ns;
    if (!code) {
        atomic_store(&w->busy, 0);
        TALLY(s, in_bytes, unit_bytes(p, unit));
        finish(p, s, unit, ahead ? AHEAD : REF);
        sys_wake(p, s, p->base + unit * p->unit, unit_bytes(p, unit));
        if (!ahead) record_latency(p, s, now_ns() - began);
    } else {
        atomic_store(&w->busy, 0);
        if (sys_resident(p->base + unit * p->unit) < 0) release_unit(p, s, unit, GONE);
        else if (ahead) release_unit(p, s, unit, ABSENT); // nobody asked for it; who waits for it all the same asks now, and tries anew
        else give_up(p, s, unit, code, what, record, record_bytes);
        atomic_fetch_sub(&p->resident_units, 1);
    }
    s->address = 0;
}

static void end_all(pager *p, slot *s, bool sent_only, int code, const char *what) {
    for (u32 i = 0; i < MAX_PENDING; i++) {
        pending *w = &p->pendings[i];
        if (atomic_load(&w->busy) == 2 && (!sent_only || atomic_load(&w->sent))) end_pending(p, s, w, code, what, NULL, 0);
    }
}

// Its end of the socket is closed when the last thread of it is gone: nothing that it was asked for is installed after that.
static void put_down(pager *p, slot *s, pid_t worker) {
    struct pollfd f = {.fd = p->worker_fd, .events = POLLIN};
    char waste[4096];
    p->worker_silent = 0;
    kill(worker, SIGKILL);
    while (poll(&f, 1, 2000) > 0 && recv(p->worker_fd, waste, sizeof waste, MSG_DONTWAIT) > 0) {}
    end_all(p, s, true, -ETIMEDOUT, "the page worker did not answer in time and was killed; a source that never returns must not keep the "
                                    "interpreter to itself; allow more time with RetryPolicy(deadline_s=...)");
}

static char **spawn_arguments(pager *p, char **list) {
    char *text = (char *)p + p->job_offset;
    for (u32 i = 0; i < p->spawn_argc; i++) list[i] = text, text += strlen(text) + 1;
    list[p->spawn_argc] = NULL;
    return list;
}

extern char **environ;

// A new worker process, up to its READY. The job and its arguments were laid down when the region was made.
static int start_worker(pager *p, pid_t *pid) {
    int pair[2];
    if (!p->spawn_argc) return -ENOENT;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return -errno;
    char *arguments[16];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, 2, 1); // our table has no stdout
    posix_spawn_file_actions_adddup2(&actions, pair[1], 3); // wherever it is: a copy of its own, not close-on-exec
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    spawn_arguments(p, arguments);
    int code = -posix_spawn(pid, arguments[0], &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(pair[1]);
    if (code) { close(pair[0]); return code; }
    header h = {.kind = START, .id = WIRE_VERSION, .address = WIRE_MAGIC, .length = p->job_bytes};
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {{0}};
    struct iovec v = {&h, sizeof h};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &p->uffd, sizeof(int));
    if (sendmsg(pair[0], &m, MSG_NOSIGNAL) != sizeof h) { close(pair[0]); return -EPIPE; }
    char *argument = (char *)p + p->job_offset;
    for (u32 i = 0; i < p->spawn_argc; i++) argument += strlen(argument) + 1;
    code = send_all(pair[0], argument, p->job_bytes);
    lock_robust(&p->send_lock);
    dup2(pair[0], p->worker_fd);
    for (u32 i = 0; i < MAX_PENDING; i++) atomic_store(&p->pendings[i].sent, 0);
    pthread_mutex_unlock(&p->send_lock);
    close(pair[0]);
    if (code || !receive(p, &h, sizeof h, now_ns() + READY_MS * 1000000ull) || h.kind != READY) return code ? code : -EPIPE;
    return 0;
}

void *receiver_main(void *argument) {
    pager *p = argument;
    slot *s = &p->slots[2];
    u32 restarts = 0;
    pid_t child = 0;
    char *text = (char *)s->bounce; // as long as any unit, and no worker region fills through it here
    u64 room = p->unit;
    bool lost = false;
    while (!atomic_load(&p->stopping)) {
        header h;
        if (!lost && receive(p, &h, sizeof h, 0) && h.kind != READ) {
            pending *w = &p->pendings[h.id % MAX_PENDING];
            bool ours = atomic_load(&w->busy) == 2 && w->id == h.id;
            restarts = 0;
            if (h.kind == ERROR || h.kind == DATA) {
                u64 n = h.length < room - 1 ? h.length : room - 1;
                bool whole = receive(p, text, n, 0);
                for (u64 left = h.length - n; whole && left;) {
                    char waste[256];
                    u64 some = left < sizeof waste ? left : sizeof waste;
                    whole = receive(p, waste, some, 0);
                    left -= some;
                }
                if (!whole) { lost = true; continue; }
                text[n] = 0;
                if (ours) end_pending(p, s, w, h.status ? h.status : -EIO, "", text, (u32)n);
            } else if (ours && h.kind == ANSWER_DONE) {
                if (next_run(p, w, w->next)) atomic_store(&w->sent, 0), ask(p, s, w);
                else end_pending(p, s, w, 0, "", NULL, 0);
            }
            continue;
        }
        if (atomic_load(&p->stopping)) break;
        lost = true;
        if (p->worker_silent) put_down(p, s, child ? child : p->worker_pid);
        if (child) waitpid(child, NULL, WNOHANG);
        if (restarts++ >= RESTARTS) {
            atomic_store(&p->worker_lost, 1);
            end_all(p, s, false, -EIO, "the page worker died, and so did its successors");
            struct timespec t = {0, 20000000};
            nanosleep(&t, NULL);
            continue;
        }
        if (restarts > 1) {
            struct timespec t = {0, 50000000l << (restarts - 2)};
            nanosleep(&t, NULL);
        }
        COUNT(worker_restart_count);
        int code = start_worker(p, &child);
        if (!code) {
            lost = false;
            resend(p);
        } else if (restarts == 1) say("userfault: region '%s': its page worker died and a new one could not be started: %s\n", p->name, strerror(-code));
    }
    if (child) {
        close(p->worker_fd); // end of stream: it closes its source and ends
        for (int i = 0; i < 200 && waitpid(child, NULL, WNOHANG) == 0; i++) {
            struct timespec t = {0, 10000000};
            nanosleep(&t, NULL);
        }
        if (waitpid(child, NULL, WNOHANG) == 0) { kill(child, SIGKILL); waitpid(child, NULL, 0); }
    }
    return NULL;
}

// In the worker: it ends once its owner has been gone, or was told to close, for longer than it may take, whatever its interpreter does.
static struct { int fd; au64 since_ns, grace_ns; } owner = {.fd = -1};

static void *watch_owner(void *unused) {
    (void)unused;
    struct pollfd f = {.fd = owner.fd, .events = POLLRDHUP};
    while (poll(&f, 1, -1) < 0 && errno == EINTR) {}
    for (u64 gone_ns = now_ns();;) {
        u64 since = atomic_load(&owner.since_ns), end = (since > gone_ns ? since : gone_ns) + atomic_load(&owner.grace_ns);
        if (now_ns() > end) _exit(1);
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
}

// From now on it may take `grace_ms` after the end of stream of `fd`. 0 or -errno.
EXPORT int pager_end_with_owner(int fd, u64 grace_ms) {
    atomic_store(&owner.since_ns, now_ns());
    atomic_store(&owner.grace_ns, grace_ms * 1000000ull);
    if (owner.fd >= 0) return 0;
    owner.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (owner.fd < 0) return -errno;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    int code = pthread_create(&thread, NULL, watch_owner, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!code) pthread_detach(thread);
    return -code;
}
