// Operations of litmus tests that read a page in the kernel, or keep it there: pipes, and an io_uring's buffers.
//
// In pieces, as race.h says.
#pragma once
#include "race.h"

//= pipe:
static int pipes[MAX_MMS][2];

// One pipe for each address space, empty.
static void empty_pipes(void)
{
    char byte[4096];
    for (int mm = 0; mm < test->mms; mm++) {
        if (!pipes[mm][1] && pipe2(pipes[mm], O_NONBLOCK | O_CLOEXEC)) return;
        while (read(pipes[mm][0], byte, sizeof byte) > 0)
            ;
    }
}

//= read: pipe
// A system call reads the page at x: write(2) of it to the pipe of address space y, and what came there.
OP(read)
{
    long value;
    if (write(pipes[y][1], base + x, sizeof value) != sizeof value) return -errno;
    return read(pipes[y][0], &value, sizeof value) == sizeof value ? value : -errno;
}

//= vmsplice: pipe
// The page at x into the pipe of address space y, as a reference.
OP(vmsplice)
{
    struct iovec from = {base + x, sizeof(long)};
    return syscall(SYS_vmsplice, pipes[y][1], &from, 1, 0) == sizeof(long) ? 0 : -errno;
}

//= splice: pipe
// What the pipe of address space y holds.
OP(splice)
{
    long value;
    return read(pipes[y][0], &value, sizeof value) == sizeof value ? value : -errno;
}

//= ring: pipe
struct ring {
    int fd;
    char *memory;
    struct { uint32_t head, tail, mask, entries, flags, dropped, array, resv1; uint64_t user_addr; } sq;
    struct { uint32_t head, tail, mask, entries, overflow, cqes, flags, resv1; uint64_t user_addr; } cq;
    struct sqe { uint8_t opcode, flags; uint16_t prio; int32_t fd; uint64_t off, addr; uint32_t len, rw; uint64_t data; uint16_t buffer, more[11]; } *sqes;
};
static struct ring ring = {.fd = -1};

// An io_uring: its registered buffers are pinned for as long as they are.
static long open_ring(void)
{
    struct { uint32_t sq_entries, cq_entries, flags, cpu, idle, features, wq, resv[3]; uint32_t sq[10], cq[10]; } p = {0};
    ring.fd = (int)syscall(425 /* io_uring_setup */, 2, &p);
    if (ring.fd < 0) return -errno;
    memcpy(&ring.sq, p.sq, sizeof p.sq);
    memcpy(&ring.cq, p.cq, sizeof p.cq);
    // Both rings lie in one mapping since v5.4.
    size_t size = ring.cq.cqes + p.cq_entries * 16;
    if (size < ring.sq.array + p.sq_entries * 4) size = ring.sq.array + p.sq_entries * 4;
    ring.memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, 0);
    ring.sqes = mmap(0, p.sq_entries * sizeof(struct sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, 0x10000000);
    return ring.memory == MAP_FAILED || ring.sqes == MAP_FAILED ? -errno : 0;
}

// Take the pin of the last round back.
static void let_go(void)
{
    if (ring.fd >= 0) syscall(427 /* io_uring_register */, ring.fd, 1 /* UNREGISTER_BUFFERS */, 0, 0);
}

//= pin: ring
OP(pin)
{
    struct iovec buffer = {base + x, SMALL};
    long r = ring.fd < 0 ? open_ring() : 0;
    return r < 0 ? r : ret(syscall(427, ring.fd, 0 /* REGISTER_BUFFERS */, &buffer, 1));
}

//= unpin: ring
OP(unpin)
{
    let_go();
    return 0;
}

//= pinned: ring
// What lies in the pinned page, which was at x: a write from it to the pipe of address space y.
OP(pinned)
{
    _Atomic uint32_t *tail = (_Atomic uint32_t *)(ring.memory + ring.sq.tail);
    _Atomic uint32_t *head = (_Atomic uint32_t *)(ring.memory + ring.cq.head);
    uint32_t at = *tail & *(uint32_t *)(ring.memory + ring.sq.mask);
    ring.sqes[at] = (struct sqe){
        .opcode = 5 /* WRITE_FIXED */, .fd = pipes[y][1], .addr = (uintptr_t)base + (uint64_t)x, .len = sizeof(long)};
    ((uint32_t *)(ring.memory + ring.sq.array))[at] = at;
    atomic_fetch_add(tail, 1);
    long r = ret(syscall(426 /* io_uring_enter */, ring.fd, 1, 1, 1 /* GETEVENTS */, 0, 0));
    if (r < 0) return r;
    int32_t done = *(int32_t *)(ring.memory + ring.cq.cqes + 16 * (*head & *(uint32_t *)(ring.memory + ring.cq.mask)) + 8);
    atomic_fetch_add(head, 1);
    if (done < 0) return done;
    long value;
    return read(pipes[y][0], &value, sizeof value) == sizeof value ? value : -errno;
}
