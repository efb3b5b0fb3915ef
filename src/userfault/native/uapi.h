// The kernel's user-space interface as far as we use it, in a table of our own: distributions ship headers older than the kernel
// that runs. C code includes this and never <linux/userfaultfd.h> or <asm-generic/mman-common.h>'s newer names.
// kernel/uapi.py is the same in Python; tests/kernel/test_uapi.py compares the two, and both with the system's headers where those
// know a name. That a name is here says nothing about the running kernel: probe.
#pragma once
#include <stdint.h>
#include <sys/ioctl.h>

// userfaultfd(2), ioctl_userfaultfd(2)
struct uffdio_range {
    uint64_t start, len;
};
struct uffdio_api {
    uint64_t api, features, ioctls;
};
struct uffdio_register {
    struct uffdio_range range;
    uint64_t mode, ioctls;
};
struct uffdio_copy {
    uint64_t dst, src, len, mode;
    int64_t copy;
};
struct uffdio_zeropage {
    struct uffdio_range range;
    uint64_t mode;
    int64_t zeropage;
};
struct uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};
struct uffdio_writeprotect {
    struct uffdio_range range;
    uint64_t mode;
};
struct uffdio_continue {
    struct uffdio_range range;
    uint64_t mode;
    int64_t mapped;
};
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
struct uffd_msg {
    uint8_t event, reserved1;
    uint16_t reserved2;
    uint32_t reserved3;
    union {
        struct {
            uint64_t flags, address;
            uint32_t ptid;
        } pagefault;
        struct {
            uint32_t ufd;
        } fork;
        struct {
            uint64_t from, to, len;
        } remap;
        struct {
            uint64_t start, end;
        } remove;  // and unmap
    } arg;
};

#define UFFD_API 0xAAull
#define UFFDIO_API _IOWR(0xAA, 0x3F, struct uffdio_api)
#define UFFDIO_REGISTER _IOWR(0xAA, 0x00, struct uffdio_register)
#define UFFDIO_UNREGISTER _IOR(0xAA, 0x01, struct uffdio_range)
#define UFFDIO_WAKE _IOR(0xAA, 0x02, struct uffdio_range)
#define UFFDIO_COPY _IOWR(0xAA, 0x03, struct uffdio_copy)
#define UFFDIO_ZEROPAGE _IOWR(0xAA, 0x04, struct uffdio_zeropage)
#define UFFDIO_MOVE _IOWR(0xAA, 0x05, struct uffdio_move)
#define UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct uffdio_writeprotect)
#define UFFDIO_CONTINUE _IOWR(0xAA, 0x07, struct uffdio_continue)
#define UFFDIO_POISON _IOWR(0xAA, 0x08, struct uffdio_poison)
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)

#define UFFD_USER_MODE_ONLY 1

#define UFFD_FEATURE_PAGEFAULT_FLAG_WP (1u << 0)
#define UFFD_FEATURE_EVENT_FORK (1u << 1)
#define UFFD_FEATURE_EVENT_REMAP (1u << 2)
#define UFFD_FEATURE_EVENT_REMOVE (1u << 3)
#define UFFD_FEATURE_MISSING_HUGETLBFS (1u << 4)
#define UFFD_FEATURE_MISSING_SHMEM (1u << 5)
#define UFFD_FEATURE_EVENT_UNMAP (1u << 6)
#define UFFD_FEATURE_SIGBUS (1u << 7)
#define UFFD_FEATURE_THREAD_ID (1u << 8)
#define UFFD_FEATURE_MINOR_HUGETLBFS (1u << 9)
#define UFFD_FEATURE_MINOR_SHMEM (1u << 10)
#define UFFD_FEATURE_EXACT_ADDRESS (1u << 11)
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1u << 12)
#define UFFD_FEATURE_WP_UNPOPULATED (1u << 13)
#define UFFD_FEATURE_POISON (1u << 14)
#define UFFD_FEATURE_WP_ASYNC (1u << 15)
#define UFFD_FEATURE_MOVE (1u << 16)

#define UFFDIO_REGISTER_MODE_MISSING (1u << 0)
#define UFFDIO_REGISTER_MODE_WP (1u << 1)
#define UFFDIO_REGISTER_MODE_MINOR (1u << 2)
#define UFFDIO_COPY_MODE_DONTWAKE (1u << 0)
#define UFFDIO_COPY_MODE_WP (1u << 1)
#define UFFDIO_ZEROPAGE_MODE_DONTWAKE (1u << 0)
#define UFFDIO_MOVE_MODE_DONTWAKE (1u << 0)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES (1u << 1)
#define UFFDIO_WRITEPROTECT_MODE_WP (1u << 0)
#define UFFDIO_WRITEPROTECT_MODE_DONTWAKE (1u << 1)
#define UFFDIO_CONTINUE_MODE_DONTWAKE (1u << 0)
#define UFFDIO_CONTINUE_MODE_WP (1u << 1)
#define UFFDIO_POISON_MODE_DONTWAKE (1u << 0)

#define UFFD_EVENT_PAGEFAULT 0x12
#define UFFD_EVENT_FORK 0x13
#define UFFD_EVENT_REMAP 0x14
#define UFFD_EVENT_REMOVE 0x15
#define UFFD_EVENT_UNMAP 0x16
#define UFFD_PAGEFAULT_FLAG_WRITE (1u << 0)
#define UFFD_PAGEFAULT_FLAG_WP (1u << 1)
#define UFFD_PAGEFAULT_FLAG_MINOR (1u << 2)

// ioctl PAGEMAP_SCAN, Documentation/admin-guide/mm/pagemap.rst
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct page_region {
    uint64_t start, end, categories;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PM_SCAN_WP_MATCHING (1u << 0)
#define PM_SCAN_CHECK_WPASYNC (1u << 1)
#define PAGE_IS_WPALLOWED (1u << 0)
#define PAGE_IS_WRITTEN (1u << 1)
#define PAGE_IS_FILE (1u << 2)
#define PAGE_IS_PRESENT (1u << 3)
#define PAGE_IS_SWAPPED (1u << 4)
#define PAGE_IS_PFNZERO (1u << 5)
#define PAGE_IS_HUGE (1u << 6)
#define PAGE_IS_SOFT_DIRTY (1u << 7)
#define PAGE_IS_GUARD (1u << 8)

// madvise(2); only what the C library's headers of Debian 12 lack.
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

// system calls: not every libc has a wrapper, or a number, for them

#if defined(__x86_64__)
#define UF_SYS_USERFAULTFD 323
#define UF_SYS_MLOCK2 325
#define UF_SYS_MOVE_PAGES 279
#define UF_SYS_KCMP 312
#define UF_SYS_PROCESS_VM_READV 310
#define UF_SYS_PROCESS_VM_WRITEV 311
#define UF_SYS_MEMFD_CREATE 319
#elif defined(__aarch64__) || (defined(__riscv) && __riscv_xlen == 64) || defined(__loongarch__)
#define UF_SYS_USERFAULTFD 282
#define UF_SYS_MLOCK2 284
#define UF_SYS_MOVE_PAGES 239
#define UF_SYS_KCMP 272
#define UF_SYS_PROCESS_VM_READV 270
#define UF_SYS_PROCESS_VM_WRITEV 271
#define UF_SYS_MEMFD_CREATE 279
#else
#error "userfault knows the system call numbers of x86-64, aarch64, riscv64 and loongarch64 only"
#endif
#define UF_SYS_PIDFD_OPEN 434
#define UF_SYS_PROCESS_MADVISE 440
#define UF_SYS_PROCESS_MRELEASE 448
#define UF_SYS_MSEAL 462

// mremap(2), mlock2(2), move_pages(2), mmap(2), prctl(2): libc may have spelled them otherwise

#ifndef MREMAP_MAYMOVE
#define MREMAP_MAYMOVE 1
#endif
#ifndef MREMAP_FIXED
#define MREMAP_FIXED 2
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#ifndef MPOL_MF_MOVE
#define MPOL_MF_MOVE 2
#endif
#ifndef MPOL_MF_MOVE_ALL
#define MPOL_MF_MOVE_ALL 4
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif
#ifndef PR_SET_THP_DISABLE
#define PR_SET_THP_DISABLE 41
#endif
#ifndef PR_GET_THP_DISABLE
#define PR_GET_THP_DISABLE 42
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68
#endif

// /proc/PID/pagemap: one 64-bit entry a page

#define PM_PFN_MASK ((1ull << 55) - 1)
#define PM_SWAP_TYPE_MASK 0x1Full
#define PM_SWAP_OFFSET_SHIFT 5
#define PM_SOFT_DIRTY (1ull << 55)
#define PM_MMAP_EXCLUSIVE (1ull << 56)
#define PM_UFFD_WP (1ull << 57)
#define PM_GUARD_REGION (1ull << 58)
#define PM_FILE (1ull << 61)
#define PM_SWAP (1ull << 62)
#define PM_PRESENT (1ull << 63)

// /proc/kpageflags: bits. From 32 on they are the kernel's own and move with it.

#define KPF_LOCKED (1ull << 0)
#define KPF_ERROR (1ull << 1)
#define KPF_REFERENCED (1ull << 2)
#define KPF_UPTODATE (1ull << 3)
#define KPF_DIRTY (1ull << 4)
#define KPF_LRU (1ull << 5)
#define KPF_ACTIVE (1ull << 6)
#define KPF_SLAB (1ull << 7)
#define KPF_WRITEBACK (1ull << 8)
#define KPF_RECLAIM (1ull << 9)
#define KPF_BUDDY (1ull << 10)
#define KPF_MMAP (1ull << 11)
#define KPF_ANON (1ull << 12)
#define KPF_SWAPCACHE (1ull << 13)
#define KPF_SWAPBACKED (1ull << 14)
#define KPF_COMPOUND_HEAD (1ull << 15)
#define KPF_COMPOUND_TAIL (1ull << 16)
#define KPF_HUGE (1ull << 17)
#define KPF_UNEVICTABLE (1ull << 18)
#define KPF_HWPOISON (1ull << 19)
#define KPF_NOPAGE (1ull << 20)
#define KPF_KSM (1ull << 21)
#define KPF_THP (1ull << 22)
#define KPF_OFFLINE (1ull << 23)
#define KPF_ZERO_PAGE (1ull << 24)
#define KPF_IDLE (1ull << 25)
#define KPF_PGTABLE (1ull << 26)
#define KPF_RESERVED (1ull << 32)
#define KPF_MLOCKED (1ull << 33)
#define KPF_OWNER_2 (1ull << 34) // an anonymous page's "exclusive to this process"
#define KPF_PRIVATE (1ull << 35)
#define KPF_PRIVATE_2 (1ull << 36)
#define KPF_OWNER_PRIVATE (1ull << 37)
#define KPF_ARCH (1ull << 38)
#define KPF_UNCACHED (1ull << 39)
#define KPF_SOFTDIRTY (1ull << 40)
#define KPF_ARCH_2 (1ull << 41)
#define KPF_ARCH_3 (1ull << 42)
