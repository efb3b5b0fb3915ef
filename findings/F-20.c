// SPDX-License-Identifier: Apache-2.0
// F-20: UFFDIO_MOVE takes a page away that reclaim has unmapped and whose TLB entries it has not flushed yet, and returns.
//
//     gcc -O2 -static -pthread F-20.c -o F-20 && ./F-20 [SECONDS]
//
// In a guest, not on a machine that matters: two CPUs, root, and swap whose pages stay in the swap cache when they are read (a disk or a
// loop device; neither zram nor brd). One CPU reclaims 31 clean pages, which are flushed together; the other waits for the first of
// them to be unmapped, moves it and reads where it was. Nothing is there: SIGBUS is right, and what the page holds is wrong. Every
// other round asks MADV_COLD for that page before, which flushes what is pending.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, COUNT = 31, BEHIND = 48 };
enum { EMPTY, STILL_READ, NOT_YET_UNMAPPED, NOT_MOVED, OUTCOMES };
struct move { uint64_t dst, src, len, mode; int64_t move; };
#define MOVE _IOWR(0xAA, 5, struct move)
#define WORD 0x1000000ull

static char *pages, *place;
static int uffd, pagemap;
static volatile int go, ready, finished, flushes_first, outcome;
static sigjmp_buf back;

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static uint64_t entry(const char *at)
{
    uint64_t e = 0;
    if (pread(pagemap, &e, sizeof e, (off_t)((uintptr_t)at / PAGE * 8)) != sizeof e) die("pagemap");
    return e;
}

static int swapped(const char *at) { return (int)(entry(at) >> 62 & 1); }
static int there(const char *at) { return entry(at) >> 62 != 0; }

static void missing(int number)
{
    sigset_t these;
    sigemptyset(&these);
    sigaddset(&these, number);
    sigprocmask(SIG_UNBLOCK, &these, NULL);
    siglongjmp(back, 1);
}

static void pin_to(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one)) die("two CPUs are needed");
}

static void move(const char *dst, const char *src)
{
    struct move m = {(uintptr_t)dst, (uintptr_t)src, PAGE, 0, 0};
    // What it answers is not believed: up to v7.1 it may say EEXIST of what it moved (F-10).
    ioctl(uffd, MOVE, &m);
}

static void *mover(void *unused)
{
    pin_to(1);
    for (int round = 1;; round++) {
        while (go < round) ;
        volatile uint64_t *word = (volatile uint64_t *)pages;
        ready = round;
        // Reading keeps the translation; once it is gone, reading brings the page back, and reclaim has to come again.
        for (int i = 0; i < 3000; i++) {
            (void)*word;
            if (swapped(pages)) break;
        }
        if (flushes_first) madvise(pages, PAGE, MADV_COLD);
        move(place, pages);
        volatile int found = EMPTY;
        // Without the mask: no system call between the move and the read.
        if (!sigsetjmp(back, 0) && *word == WORD) found = STILL_READ;
        outcome = !there(place) ? NOT_MOVED : swapped(place) ? found : NOT_YET_UNMAPPED;
        finished = round;
    }
    return unused;
}

int main(int count, char **arguments)
{
    long seconds = count > 1 ? atol(arguments[1]) : 30, seen[2][OUTCOMES] = {{0}};
    pin_to(0);
    signal(SIGBUS, missing);
    struct uffdio_api api = {UFFD_API, UFFD_FEATURE_SIGBUS, 0};
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) die("userfaultfd");
    pagemap = open("/proc/self/pagemap", O_RDONLY);
    pages = mmap(NULL, (BEHIND + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pagemap < 0 || pages == MAP_FAILED) die("pagemap, mmap");
    place = pages + BEHIND * PAGE;
    munmap(pages + COUNT * PAGE, (BEHIND - COUNT) * PAGE);
    for (int i = 0; i < COUNT; i++) *(uint64_t *)(pages + i * PAGE) = WORD + (uint64_t)i;
    struct uffdio_register src = {{(uintptr_t)pages, COUNT * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    struct uffdio_register dst = {{(uintptr_t)place, PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (ioctl(uffd, UFFDIO_REGISTER, &src) || ioctl(uffd, UFFDIO_REGISTER, &dst)) die("UFFDIO_REGISTER");
    for (int i = 0; i < 50; i++) {
        madvise(pages, COUNT * PAGE, MADV_PAGEOUT);
        usleep(10000);
    }
    if (!swapped(pages)) die("the pages could not be swapped out: is swap on?");
    pthread_t other;
    if (pthread_create(&other, NULL, mover, NULL)) die("pthread_create");
    for (time_t end = time(NULL) + seconds; time(NULL) < end;) {
        // From the swap cache: clean, and none of them has to be written.
        for (int i = 0; i < COUNT; i++) (void)*(volatile uint64_t *)(pages + i * PAGE);
        int round = go + 1;
        flushes_first = round % 2;
        go = round;
        while (ready < round) ;
        madvise(pages, COUNT * PAGE, MADV_PAGEOUT);
        while (finished < round) ;
        seen[flushes_first][outcome]++;
        if (outcome == NOT_MOVED) continue;
        while (there(place)) move(pages, place);
        // A page that was moved while it was mapped is dirty: it is written now, not while others are raced for.
        for (int i = 0; i < 200 && !swapped(pages); i++) {
            madvise(pages, COUNT * PAGE, MADV_PAGEOUT);
            usleep(200);
        }
    }
    for (int flushed = 0; flushed < 2; flushed++) {
        long *s = seen[flushed];
        printf("%s: unmapped and moved, then empty %ld, still read %ld; moved before it was unmapped %ld; not moved %ld\n",
               flushed ? "flushed before the move" : "UFFDIO_MOVE alone", s[EMPTY], s[STILL_READ], s[NOT_YET_UNMAPPED], s[NOT_MOVED]);
    }
    return seen[0][STILL_READ] != 0;
}
