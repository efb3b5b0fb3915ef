// Operations of litmus tests on a userfaultfd, and who lets go whoever waits in vain.
//
// In pieces, as race.h says.
#pragma once
#include "race.h"

//= userfaultfd:
struct uffd_api { uint64_t api, features, ioctls; };
struct uffd_register { uint64_t start, len, mode, ioctls; };
#define UFFD_API _IOWR(0xAA, 0x3F, struct uffd_api)
#define UFFD_NEW _IO(0xAA, 0x00) // of /dev/userfaultfd
#define UFFD_REGISTER _IOWR(0xAA, 0x00, struct uffd_register)
#define FEATURE_FORK (1u << 1)
#define FEATURE_REMAP (1u << 2)
#define FEATURE_REMOVE (1u << 3)
#define FEATURE_UNMAP (1u << 6)
#define FEATURE_SIGBUS (1u << 7)
#define FEATURE_WP_UNPOPULATED (1u << 13)
#define FEATURE_MOVE (1u << 16)

static uint64_t uffd_features;

// A new descriptor, or -errno of the system call: who may not use that may have been given the device.
static int new_uffd(void)
{
    int flags = O_CLOEXEC | O_NONBLOCK, fd = (int)syscall(SYS_userfaultfd, flags), refused = -errno;
    if (fd >= 0) return fd;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) return refused;
    fd = (int)ret(ioctl(device, UFFD_NEW, flags));
    close(device);
    return fd;
}

// A userfaultfd of this process. A fault on it raises SIGBUS, unless the test is about threads that wait.
static long open_uffd(void)
{
    struct uffd_api asked = {.api = 0xAA};
    int fd = new_uffd();
    if (fd < 0) return fd;
    // The first call asks which features there are; a descriptor takes one.
    long r = ret(ioctl(fd, UFFD_API, &asked));
    close(fd);
    if (r < 0) return r;
    uint64_t wanted = FEATURE_WP_UNPOPULATED | FEATURE_MOVE | (uint64_t)test->events;
    if (!test->blocking) wanted |= FEATURE_SIGBUS;
    uffd_features = asked.features & wanted;
    uffd = new_uffd();
    if (uffd < 0) return uffd;
    struct uffd_api taken = {.api = 0xAA, .features = uffd_features};
    r = ret(ioctl(uffd, UFFD_API, &taken));
    if (r < 0) {
        // The next round is told the same.
        close(uffd);
        uffd = -1;
    }
    return r;
}

//= unregistering: userfaultfd
struct uffd_ranges { uint64_t start, len; };
#define UFFD_UNREGISTER _IOR(0xAA, 0x01, struct uffd_ranges)

static long unregister(char *start, uint64_t length)
{
    struct uffd_ranges args = {(uintptr_t)start, length};
    return ret(ioctl(uffd, UFFD_UNREGISTER, &args));
}

//= open: userfaultfd
// This process's userfaultfd is there.
OP(open) { return uffd < 0 ? open_uffd() : 0; }

//= register: open
// z: 1 missing, 2 write-protect, 3 both.
OP(register)
{
    long r = op_open(base, 0, 0, 0, 0);
    if (r < 0) return r;
    struct uffd_register args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, (uint64_t)z, 0};
    return ret(ioctl(uffd, UFFD_REGISTER, &args));
}

//= move: userfaultfd
struct uffd_move { uint64_t dst, src, len, mode; int64_t move; };
#define UFFD_MOVE _IOWR(0xAA, 0x05, struct uffd_move)

// Pages moved, or -errno if there were none. w: 2 allows holes.
OP(move)
{
    struct uffd_move args = {(uintptr_t)base + (uint64_t)x, (uintptr_t)base + (uint64_t)y, (uint64_t)z, (uint64_t)w, 0};
    if (!ioctl(uffd, UFFD_MOVE, &args)) return pages(args.move);
    return args.move > 0 ? pages(args.move) : -errno;
}

//= copy: userfaultfd
struct uffd_copy { uint64_t dst, src, len, mode; int64_t copy; };
#define UFFD_COPY _IOWR(0xAA, 0x03, struct uffd_copy)

// z: 2 makes the page write-protected.
OP(copy)
{
    long page[SMALL / sizeof(long)] = {y};
    struct uffd_copy args = {(uintptr_t)base + (uint64_t)x, (uintptr_t)page, SMALL, (uint64_t)z, 0};
    return ret(ioctl(uffd, UFFD_COPY, &args));
}

//= zeropage: userfaultfd
struct uffd_zeropage { uint64_t start, len, mode; int64_t zeropage; };
#define UFFD_ZEROPAGE _IOWR(0xAA, 0x04, struct uffd_zeropage)

OP(zeropage)
{
    struct uffd_zeropage args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, 0, 0};
    return ret(ioctl(uffd, UFFD_ZEROPAGE, &args));
}

//= wp: userfaultfd
struct uffd_wp { uint64_t start, len, mode; };
#define UFFD_WP _IOWR(0xAA, 0x06, struct uffd_wp)

// z: 1 protects, 0 takes the protection back.
OP(wp)
{
    struct uffd_wp args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, (uint64_t)z};
    return ret(ioctl(uffd, UFFD_WP, &args));
}

//= poison: userfaultfd
struct uffd_poison { uint64_t start, len, mode; int64_t updated; };
#define UFFD_POISON _IOWR(0xAA, 0x08, struct uffd_poison)

OP(poison)
{
    struct uffd_poison args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y, 0, 0};
    return ret(ioctl(uffd, UFFD_POISON, &args));
}

//= wake: userfaultfd
struct uffd_range { uint64_t start, len; };
#define UFFD_WAKE _IOR(0xAA, 0x02, struct uffd_range)

OP(wake)
{
    struct uffd_range args = {(uintptr_t)base + (uint64_t)x, (uint64_t)y};
    return ret(ioctl(uffd, UFFD_WAKE, &args));
}

//= event: userfaultfd
static int child_uffd[MAX_MMS], children_uffd;

static void close_children(void)
{
    while (children_uffd) close(child_uffd[--children_uffd]);
}

// The next event of the userfaultfd: 19 fork, 20 remap, 21 remove, 22 unmap. It is waited for x milliseconds, and no longer than
// there is somebody who may raise one.
OP(event)
{
    struct { uint8_t event, pad[7]; uint64_t arg[3]; } message;
    struct pollfd wait = {.fd = uffd, .events = POLLIN};
    for (int ready = 0, left = (int)x; !ready; left--) {
        int last = left <= 0 || atomic_load(&shared->done) + 1 >= (uint32_t)test->threads;
        ready = poll(&wait, 1, last ? 0 : 1);
        if (ready < 0) return -errno;
        if (last) break;
    }
    if (read(uffd, &message, sizeof message) != sizeof message) return -errno;
    // A fork's message brings a descriptor for the child's memory, which keeps what was registered there.
    if (message.event == 19 && children_uffd < MAX_MMS) child_uffd[children_uffd++] = (int)(uint32_t)message.arg[0];
    return message.event;
}

//= unregister: unregistering
OP(unregister) { return unregister(base + x, (uint64_t)y); }

//= rescue: unregistering event place
// Does every thread that is not done sleep? Then nobody comes to wake them. One that only had no CPU yet does not sleep.
static int all_asleep(void)
{
    int standing = 0;
    for (int t = 0; t < test->threads; t++) {
        if (!atomic_load(&shared->at[t])) continue;
        char line[512], *name_ends;
        snprintf(line, sizeof line, "/proc/%d/stat", (int)shared->tid[t]);
        int fd = open(line, O_RDONLY | O_CLOEXEC);
        ssize_t length = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
        if (fd >= 0) close(fd);
        line[length < 0 ? 0 : length] = 0;
        if (!(name_ends = strrchr(line, ')')) || !strchr("SD", name_ends[2])) return 0;
        standing++;
    }
    return standing;
}

// Who waits for a page, or for an event to be read, and nobody comes, is let go.
static void *rescuer(void *unused)
{
    uint32_t round = 0;
    for (int same = 0;; same = number_of_round == round && all_asleep() ? same + 1 : 0) {
        round = number_of_round;
        usleep(20000);
        if (same < 50 || uffd < 0) continue;
        // The next round waits for the end of this, unless the round is over by itself.
        atomic_store(&shared->rescue_begun, round);
        if (atomic_load(&shared->ended_round) != round) {
            for (int t = 0; t < test->threads; t++) atomic_store(&shared->waited_at[t], atomic_load(&shared->at[t]));
            while (op_event(arena, 0, 0, 0, 0) >= 0)
                ;
            unregister(base_of(round), ARENA - 4 * BLOCK);
        }
        atomic_store(&shared->rescue_ended, round);
    }
    return unused;
}
