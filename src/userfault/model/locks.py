"""The locks of mm, and their misuse.

Each lock knows its owner, so unlocking what one does not hold, sleeping where one must not, taking locks in the wrong order
and ending with a lock held are found in the run that does it. Not modelled: queue fairness (readers may pass a waiting
writer, so a reader that would deadlock behind one is missed) and spurious failure of trylocks.
"""

from __future__ import annotations

from .lang import atomic, check, ghost, raw, smp_processor_id, touched, wait_until
from .machine import machine, this_cpu
from .mm_types import LockClass, page, rw_semaphore, spinlock_t
from .slab import any_reader


@ghost
def might_sleep() -> None:
    """include/linux/kernel.h might_sleep."""
    here = this_cpu()
    check(
        here.held[LockClass.PTL] == 0 and here.held[LockClass.SWAP] == 0,
        "lock_misuse",
        "may sleep while a spinlock is held",
    )
    check(here.rcu_nesting == 0, "lock_misuse", "may sleep in an RCU read section")


@ghost
def lockdep_blocks(lock_class: LockClass, nested: bool) -> None:
    """A blocking acquisition: while something of the same or a higher rank is held it is an inversion."""
    held = this_cpu().held
    for other in range(lock_class + 1 if nested else lock_class, len(held)):
        check(held[other] == 0, "lock_order", "a lock was taken out of the documented order")
    held[lock_class] += 1


@ghost
def lockdep_acquired(lock_class: LockClass) -> None:
    this_cpu().held[lock_class] += 1


@ghost
def lockdep_released(lock_class: LockClass) -> None:
    this_cpu().held[lock_class] -= 1


@ghost
def check_no_locks_held() -> None:
    """At the end of an operation: nothing may be held."""
    here = this_cpu()
    for each in LockClass:
        check(here.held[each] == 0, "lock_leak", "a thread ended with a lock held")
    check(here.rcu_nesting == 0, "lock_leak", "a thread ended in an RCU read section")


# -- spinlocks --------------------------------------------------------------------------------------------------------


@atomic
def spin_lock(lock: spinlock_t) -> None:
    check(lock.owner != smp_processor_id() + 1, "lock_misuse", "spin_lock of a lock already held here")
    wait_until(lock.owner == 0)
    lock.owner = smp_processor_id() + 1
    lockdep_blocks(lock.lock_class, False)
    touched(lock)


@atomic
def spin_lock_nested(lock: spinlock_t) -> None:
    """A second lock of the same class: the caller promises an order (SINGLE_DEPTH_NESTING)."""
    check(lock.owner != smp_processor_id() + 1, "lock_misuse", "spin_lock of a lock already held here")
    wait_until(lock.owner == 0)
    lock.owner = smp_processor_id() + 1
    lockdep_blocks(lock.lock_class, True)
    touched(lock)


@atomic
def spin_unlock(lock: spinlock_t) -> None:
    check(lock.owner == smp_processor_id() + 1, "lock_misuse", "spin_unlock of a lock not held here")
    lock.owner = 0
    lockdep_released(lock.lock_class)


# -- rwsems -----------------------------------------------------------------------------------------------------------


@atomic
def down_read(sem: rw_semaphore) -> None:
    check(sem.writer != smp_processor_id() + 1, "lock_misuse", "down_read of an rwsem held for writing here")
    might_sleep()
    wait_until(sem.writer == 0)
    sem.readers[smp_processor_id()] = True
    lockdep_blocks(sem.lock_class, False)


@atomic
def down_read_trylock(sem: rw_semaphore) -> bool:
    if sem.writer != 0:
        return False
    sem.readers[smp_processor_id()] = True
    lockdep_acquired(sem.lock_class)
    return True


@atomic
def up_read(sem: rw_semaphore) -> None:
    check(sem.readers[smp_processor_id()], "lock_misuse", "up_read of an rwsem not held here")
    sem.readers[smp_processor_id()] = False
    lockdep_released(sem.lock_class)


@atomic
def down_write(sem: rw_semaphore) -> None:
    check(sem.writer != smp_processor_id() + 1, "lock_misuse", "down_write of an rwsem already held here")
    check(not sem.readers[smp_processor_id()], "lock_misuse", "down_write of an rwsem held for reading here")
    might_sleep()
    wait_until(sem.writer == 0 and not any_reader(sem))
    sem.writer = smp_processor_id() + 1
    lockdep_blocks(sem.lock_class, False)


@atomic
def down_write_nested(sem: rw_semaphore) -> None:
    """A second rwsem of the same class: fork's child mmap_sem, which nobody else can know yet."""
    might_sleep()
    wait_until(sem.writer == 0 and not any_reader(sem))
    sem.writer = smp_processor_id() + 1
    lockdep_blocks(sem.lock_class, True)


@atomic
def down_write_trylock(sem: rw_semaphore) -> bool:
    if sem.writer != 0 or any_reader(sem):
        return False
    sem.writer = smp_processor_id() + 1
    lockdep_acquired(sem.lock_class)
    return True


@atomic
def up_write(sem: rw_semaphore) -> None:
    check(sem.writer == smp_processor_id() + 1, "lock_misuse", "up_write of an rwsem not held for writing here")
    sem.writer = 0
    lockdep_released(sem.lock_class)


@atomic
def downgrade_write(sem: rw_semaphore) -> None:
    """The writer becomes a reader, without letting another writer in."""
    check(sem.writer == smp_processor_id() + 1, "lock_misuse", "downgrade_write of an rwsem not held for writing here")
    sem.writer = 0
    sem.readers[smp_processor_id()] = True


@atomic
def rwsem_is_locked(sem: rw_semaphore) -> bool:
    return sem.writer != 0 or any_reader(sem)


# -- the page lock ----------------------------------------------------------------------------------------------------


@atomic
def lock_page(p: page) -> None:
    """include/linux/pagemap.h lock_page / folio_lock: sleeps."""
    check(p.locked != smp_processor_id() + 1, "lock_misuse", "lock_page of a page already locked here")
    might_sleep()
    wait_until(p.locked == 0)
    p.locked = smp_processor_id() + 1
    lockdep_blocks(LockClass.PAGE, True)


@atomic
def trylock_page(p: page) -> bool:
    if p.locked != 0:
        return False
    p.locked = smp_processor_id() + 1
    lockdep_acquired(LockClass.PAGE)
    return True


@atomic
def unlock_page(p: page) -> None:
    check(p.locked == smp_processor_id() + 1, "lock_misuse", "unlock_page of a page not locked here")
    p.locked = 0
    lockdep_released(LockClass.PAGE)


@atomic
@raw
def wait_on_page_locked(p: page) -> None:
    """Sleeps until the page is unlocked; does not lock it."""
    might_sleep()
    wait_until(p.locked == 0)


@atomic
@raw
def locks_are_free() -> bool:
    """For invariants that hold only while nobody is in the middle of something: is no PTL held anywhere?"""
    free = True
    for table in machine.page_tables:
        if table.ptl.owner != 0:
            free = False
    for mm in machine.mms:
        if mm.page_table_lock.owner != 0:
            free = False
    return free
