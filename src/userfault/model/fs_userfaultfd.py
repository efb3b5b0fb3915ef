"""fs/userfaultfd.c: the ioctls of a userfaultfd, with their results as user space sees them: (0 or -errno, the output field).

The output field is UNWRITTEN where the kernel does not write it. Addresses and lengths are bytes, and may be any value.
"""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, ESRCH
from .lang import NULL
from .locks import down_read, down_write, up_read
from .machine import config
from .memory import pte_alloc, pte_alloc_fails
from .mm_types import PmdKind, mm_struct, userfaultfd_ctx, vm, vm_area_struct
from .mmap import find_vma
from .pgtable import pmd_offset
from .slab import alloc_page, out_of_memory, put_page
from .user import peek
from .userfaultfd import mfill_atomic, mfill_atomic_install_pte, mfill_vma, mwriteprotect_range, uffd_wp_range
from .userfaultfd_move import uffdio_move
from .vma import vma_modify
from .vma_lock import mmap_write_unlock, vma_start_write

UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, UFFDIO_REGISTER_MODE_MINOR = 1, 2, 4
UFFD_FLAGS = int(vm.USERFAULT | vm.UFFD_WP)
RANGE_IOCTLS = 0x1C
"""Bits of the ioctls that any range may be used with: WAKE, COPY, ZEROPAGE."""
MOVE_IOCTL, WRITEPROTECT_IOCTL, POISON_IOCTL = 1 << 5, 1 << 6, 1 << 8
UNWRITTEN = 57005
"""What stands in an output field that the kernel does not write: no length, no errno, no set of ioctls."""


@modelled("fs/userfaultfd.c", versions="v4.3 .. v6.18", section="F.1", steps=1)
def validate_range(start: int, length: int) -> int:
    """Aligned, not empty, within user addresses: 0 or -EINVAL."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if start & mask or length & mask:
        return -EINVAL
    return validate_unaligned_range(start, length)


@modelled("fs/userfaultfd.c", versions="v6.3 .. v6.18", section="F.1", steps=1)
def validate_unaligned_range(start: int, length: int) -> int:
    """As validate_range, for a source that need not be aligned."""
    mask = (1 << config.PAGE_SHIFT) - 1
    if length & mask or length <= 0 or length > config.TASK_SIZE - config.MMAP_MIN_ADDR:
        return -EINVAL
    if start < config.MMAP_MIN_ADDR or start >= config.TASK_SIZE or length > config.TASK_SIZE - start:
        return -EINVAL
    return 0


@modelled(
    "fs/userfaultfd.c",
    versions="v4.3 .. v6.18",
    section="F.1",
    steps=4,
    omits="shmem, hugetlb and files: every VMA is anonymous",
)
def userfaultfd_register(ctx: userfaultfd_ctx, start: int, length: int, mode: int) -> tuple[int, int]:
    """UFFDIO_REGISTER: (0, the bits of the range's ioctls), or the error."""
    if mode == 0 or mode & ~7:
        return -EINVAL, UNWRITTEN
    err = validate_range(start, length)
    if err != 0:
        return err, UNWRITTEN
    flags = 0
    if mode & UFFDIO_REGISTER_MODE_MISSING:
        flags |= int(vm.USERFAULT)
    if mode & UFFDIO_REGISTER_MODE_WP:
        flags |= int(vm.UFFD_WP)
    mm = ctx.mm
    if not mm.allocated:
        return -ENOMEM, UNWRITTEN
    down_write(mm.mmap_sem)
    err = may_register(ctx, start, start + length, mode)
    if err != 0:
        mmap_write_unlock(mm)
        return err, UNWRITTEN
    err = userfaultfd_register_range(ctx, start, start + length, flags)
    mmap_write_unlock(mm)
    if err != 0:
        return err, UNWRITTEN
    return 0, range_ioctls(flags)


def range_ioctls(flags: int) -> int:
    """What a range that is registered with these flags may be used with."""
    out = RANGE_IOCTLS
    if era.uffdio_move:
        out |= MOVE_IOCTL
    if era.uffdio_poison:
        out |= POISON_IOCTL
    if flags & vm.UFFD_WP:
        out |= WRITEPROTECT_IOCTL
    return out


def may_register(ctx: userfaultfd_ctx, start: int, end: int, mode: int) -> int:
    """Is every VMA of the range anonymous and free for this context? Holes do not matter if anything is mapped."""
    found = False
    for vma in ctx.mm.mmap:
        if vma.vm_end > start and vma.vm_start < end:
            found = True
            # Minor faults are for shmem and hugetlb.
            if mode & UFFDIO_REGISTER_MODE_MINOR:
                return -EINVAL
            if vma.ctx is not None and vma.ctx is not ctx:
                return -EBUSY
            if era.register_keeps_protection and vma.vm_flags & vm.UFFD_WP and not mode & UFFDIO_REGISTER_MODE_WP:
                return -EBUSY
    return 0 if found else -EINVAL


@modelled("mm/userfaultfd.c", versions="v6.13 (fs/userfaultfd.c before) .. v6.18", section="F.1", steps=2)
def userfaultfd_register_range(ctx: userfaultfd_ctx, start: int, end: int, flags: int) -> int:
    """Give the part of each VMA that lies in the range to the context, unless it has these modes already. 0 or -ENOMEM."""
    at = start
    while True:
        vma = next_vma(ctx.mm, at, end)
        if vma is None:
            break
        if not (vma.ctx is ctx and vma.vm_flags & flags == flags):
            first, last = max(at, vma.vm_start), min(end, vma.vm_end)
            flags_then = (vma.vm_flags & ~UFFD_FLAGS) | flags
            changed = vma_modify(ctx.mm, vma, first, last, flags_then, ctx, not era.uffd_merges_rear)
            if changed is None:
                return -ENOMEM
            vma = changed
            vma_start_write(vma)
            vma.ctx = ctx
            vma.vm_flags = (vma.vm_flags & ~UFFD_FLAGS) | flags
        at = vma.vm_end
    return 0


def next_vma(mm: mm_struct, start: int, end: int) -> vm_area_struct | None:
    """The first VMA that has a part in [start, end)."""
    for vma in mm.mmap:
        if vma.vm_end > start and vma.vm_start < end and start < end:
            return vma
    return None


@modelled("fs/userfaultfd.c", versions="v4.3 .. v6.18", section="F.1", steps=3, omits="waking who waits for a fault")
def userfaultfd_unregister(ctx: userfaultfd_ctx, start: int, length: int) -> int:
    """UFFDIO_UNREGISTER: 0 or -EINVAL."""
    err = validate_range(start, length)
    if err != 0:
        return err
    mm = ctx.mm
    if not mm.allocated:
        return -ENOMEM
    end = start + length
    down_write(mm.mmap_sem)
    if next_vma(mm, start, end) is None:
        mmap_write_unlock(mm)
        return -EINVAL
    if era.unregister_asks_whose:
        for vma in mm.mmap:
            if vma.vm_end > start and vma.vm_start < end and vma.ctx is not None and vma.ctx is not ctx:
                mmap_write_unlock(mm)
                return -EINVAL
    at = start
    while True:
        each = next_vma(mm, at, end)
        if each is None:
            break
        if each.ctx is not None:
            cleared = userfaultfd_clear_vma(mm, each, max(at, each.vm_start), min(end, each.vm_end))
            if cleared is None:
                mmap_write_unlock(mm)
                return -ENOMEM
            each = cleared
        at = each.vm_end
    mmap_write_unlock(mm)
    return 0


@modelled("mm/userfaultfd.c", versions="v6.13 .. v6.18", section="F.1", steps=2)
def userfaultfd_clear_vma(mm: mm_struct, vma: vm_area_struct, start: int, end: int) -> vm_area_struct | None:
    """Take a part of a VMA from its context, and with it the write-protection. None: no memory, which a whole VMA never wants."""
    if vma.vm_flags & vm.UFFD_WP:
        uffd_wp_range(vma, start, end, False)
    changed = vma_modify(mm, vma, start, end, vma.vm_flags & ~UFFD_FLAGS, NULL, not era.uffd_merges_rear)
    if changed is None:
        if start != vma.vm_start or end != vma.vm_end:
            return None
        # give_up_on_oom: only the merge with a neighbour failed, which is not needed.
        changed = vma
    vma = changed
    vma_start_write(vma)
    vma.ctx = NULL
    vma.vm_flags = vma.vm_flags & ~UFFD_FLAGS
    return vma


@modelled(
    "fs/userfaultfd.c, mm/userfaultfd.c",
    function="userfaultfd_release, userfaultfd_release_all",
    versions="v4.3 .. v6.18",
    section="F.1",
    steps=3,
    omits="waking who waits for a fault, or for an event to be read (a child's userfaultfd that nobody took goes with it)",
    errs="missed bug",
)
def userfaultfd_release(ctx: userfaultfd_ctx) -> None:
    """The last descriptor is closed, so that nobody is in an ioctl: no VMA is registered any more. Faults fill holes again."""
    mm = ctx.mm
    if not mm.allocated:
        return
    down_write(mm.mmap_sem)
    while True:
        registered: vm_area_struct | None = None
        for vma in mm.mmap:
            if registered is None and vma.ctx is ctx:
                registered = vma
        if registered is None:
            break
        userfaultfd_clear_vma(mm, registered, registered.vm_start, registered.vm_end)
    mmap_write_unlock(mm)


@modelled("fs/userfaultfd.c", versions="v6.8 .. v6.18", section="F.1", steps=3, omits="waking who waits; a dying mm")
def userfaultfd_move(
    ctx: userfaultfd_ctx, current: mm_struct, dst: int, src: int, length: int, mode: int
) -> tuple[int, int]:
    """UFFDIO_MOVE by a process whose address space is `current`: (0 or -errno, bytes moved or -errno)."""
    mm = ctx.mm
    if ctx.mmap_changing != 0:
        return refused()
    if mm is not current:
        return -EINVAL, UNWRITTEN
    if validate_range(dst, length) != 0 or validate_range(src, length) != 0 or mode & ~3:
        return -EINVAL, UNWRITTEN
    done = uffdio_move(mm, dst, src, length, mode, ctx)
    if done < 0:
        return done, done
    return (0 if done == length else -EAGAIN), done


def refused() -> tuple[int, int]:
    """An event is unread."""
    return -EAGAIN, -EAGAIN if era.refusal_is_output else UNWRITTEN


def progress(done: int, length: int) -> tuple[int, int]:
    """(result, output field) of a fill that did `done` bytes or failed with an errno."""
    if done < 0:
        return done, done
    return (0 if done == length else -EAGAIN), done


def fill(ctx: userfaultfd_ctx, start: int, length: int, mode: int, poison: bool) -> tuple[int, int]:
    """UFFDIO_ZEROPAGE or, `poison`, UFFDIO_POISON."""
    if ctx.mmap_changing != 0:
        return refused()
    if validate_range(start, length) != 0 or mode & ~1:
        return -EINVAL, UNWRITTEN
    if not ctx.mm.allocated:
        return -ESRCH, UNWRITTEN
    return progress(mfill_atomic(ctx.mm, start, length, poison), length)


@modelled("fs/userfaultfd.c", versions="v6.9 .. v6.18", section="F.1", steps=3, omits="waking who waits")
def userfaultfd_zeropage(ctx: userfaultfd_ctx, start: int, length: int, mode: int) -> tuple[int, int]:
    """UFFDIO_ZEROPAGE: (0 or -errno, bytes done or -errno)."""
    return fill(ctx, start, length, mode, False)


@modelled("fs/userfaultfd.c", versions="v6.9 .. v6.18", section="F.1", steps=3, omits="waking who waits")
def userfaultfd_poison(ctx: userfaultfd_ctx, start: int, length: int, mode: int) -> tuple[int, int]:
    """UFFDIO_POISON: (0 or -errno, bytes done or -errno)."""
    return fill(ctx, start, length, mode, True)


@modelled("fs/userfaultfd.c", versions="v5.7 .. v6.18", section="F.1", steps=3, omits="waking who waits")
def userfaultfd_writeprotect(ctx: userfaultfd_ctx, start: int, length: int, mode: int) -> int:
    """UFFDIO_WRITEPROTECT: 0 or -errno. Mode 1 protects, 0 and 2 let go."""
    if ctx.mmap_changing != 0:
        return -EAGAIN
    if validate_range(start, length) != 0 or mode & ~3 or mode == 3:
        return -EINVAL
    if not ctx.mm.allocated:
        return -ESRCH
    return mwriteprotect_range(ctx.mm, start, length, mode == 1)


@modelled(
    "fs/userfaultfd.c, mm/userfaultfd.c",
    function="userfaultfd_copy, mfill_atomic",
    versions="v6.9 .. v6.18",
    section="F.1",
    steps=6,
    omits="the first try with faults disabled: the source is read without locks, and the destination looked up after it",
)
def userfaultfd_copy(
    ctx: userfaultfd_ctx, current: mm_struct, dst: int, src: int, length: int, mode: int
) -> tuple[int, int]:
    """UFFDIO_COPY from the memory of `current`: (0 or -errno, bytes done or -errno). Sequential runs only: it moves bytes."""
    mm = ctx.mm
    if ctx.mmap_changing != 0:
        return refused()
    if validate_source(src, length) != 0 or validate_range(dst, length) != 0 or mode & ~3:
        return -EINVAL, UNWRITTEN
    if not mm.allocated:
        return -ESRCH, UNWRITTEN
    size = 1 << config.PAGE_SHIFT
    done = 0
    err = 0
    while done < length and err == 0:
        err = copy_one(ctx, current, dst, dst + done, src + done, length, mode & 2 != 0)
        if err == 0:
            done += size
    return progress(done if done > 0 else err, length)


def validate_source(src: int, length: int) -> int:
    """Where UFFDIO_COPY may read: 0 or -EINVAL. Up to v6.1 it may be anywhere that does not wrap, and is EFAULT when it is read."""
    if era.copy_checks_source:
        return validate_unaligned_range(src, length)
    return -EINVAL if src + length >= config.WRAP_AT else 0


def copy_one(ctx: userfaultfd_ctx, current: mm_struct, start: int, dst: int, src: int, length: int, wp: bool) -> int:
    """One page of UFFDIO_COPY: 0 or -errno. The destination is looked at before the source, and again after a fault there."""
    mm = ctx.mm
    down_read(mm.mmap_sem)
    err = may_copy(mm, start, dst, length, wp)
    up_read(mm.mmap_sem)
    if err != 0:
        return err
    if validate_unaligned_range(src, 1 << config.PAGE_SHIFT) != 0:
        return -EFAULT
    data = peek(current, src, 1 << config.PAGE_SHIFT)
    if isinstance(data, int):
        return -EFAULT
    return install(mm, start, dst, length, data, wp)


def install(mm: mm_struct, start: int, dst: int, length: int, data: bytes, wp: bool) -> int:
    """The bytes are at hand: what was checked before they were is checked again. 0 or -errno."""
    vma: vm_area_struct | None = None
    down_read(mm.mmap_sem)
    err = may_copy(mm, start, dst, length, wp)
    if err == 0:
        err, vma = mfill_vma(mm, start, length)
    if err != 0 or vma is None:
        up_read(mm.mmap_sem)
        return err
    if out_of_memory():
        up_read(mm.mmap_sem)
        return -ENOMEM
    p = alloc_page()
    p.data = data
    err = mfill_atomic_install_pte(vma, dst, p, wp)
    if err != 0:
        put_page(p)
    up_read(mm.mmap_sem)
    return err


def copy_data(ctx: userfaultfd_ctx, dst: int, data: bytes) -> tuple[int, int]:
    """UFFDIO_COPY of one page from memory that is no process's of the model."""
    size = 1 << config.PAGE_SHIFT
    err = install(ctx.mm, dst, dst, size, data, False)
    return progress(size if err == 0 else err, size)


def may_copy(mm: mm_struct, start: int, dst: int, length: int, wp: bool) -> int:
    """The checks before a page is copied; a table for the destination comes with them. 0 or -errno."""
    err, vma = mfill_vma(mm, start, length, wp)
    if vma is None:
        return err
    if mm.mmap_changing != 0:
        return -EAGAIN
    if wp and not vma.vm_flags & vm.UFFD_WP:
        return -EINVAL
    if pmd_offset(mm, dst).pmd.kind == PmdKind.HUGE:
        return -EEXIST
    if pte_alloc_fails(mm, dst):
        return -ENOMEM
    pte_alloc(mm, dst)
    return 0


@modelled("fs/userfaultfd.c", versions="v4.3 .. v6.18", section="F.1", steps=1, omits="waking who waits")
def userfaultfd_wake(ctx: userfaultfd_ctx, start: int, length: int) -> int:
    """UFFDIO_WAKE: 0 or -EINVAL."""
    return validate_range(start, length)


@modelled("fs/userfaultfd.c", versions="v5.13 .. v6.18", section="F.1", steps=3, omits="shmem and hugetlb")
def userfaultfd_continue(ctx: userfaultfd_ctx, start: int, length: int, mode: int) -> tuple[int, int]:
    """UFFDIO_CONTINUE, which no anonymous memory has a use for: (-errno, -errno or UNWRITTEN)."""
    if ctx.mmap_changing != 0:
        return refused()
    if validate_range(start, length) != 0 or mode & ~3:
        return -EINVAL, UNWRITTEN
    if not ctx.mm.allocated:
        return -ESRCH, UNWRITTEN
    down_read(ctx.mm.mmap_sem)
    if era.fills_prepare_first:
        err, _ = mfill_vma(ctx.mm, start, length)
    else:
        vma = find_vma(ctx.mm, start)
        err = -ENOENT if vma is None or start + length > vma.vm_end or vma.ctx is None else 0
    up_read(ctx.mm.mmap_sem)
    return (err, err) if err != 0 else (-EINVAL, -EINVAL)
