"""mm/swapfile.c: the slots of a swap device and who refers to them."""

from __future__ import annotations

from .catalogue import modelled
from .lang import atomic, check, exhausted
from .locks import spin_lock, spin_unlock
from .machine import machine, new_swap_slot
from .mm_types import swap_slot


@atomic
def get_swap_page() -> swap_slot:
    """mm/swapfile.c get_swap_page: a free slot, marked as having a cache."""
    for each in machine.swap_slots:
        if each.swap_map == 0 and not each.has_cache:
            each.has_cache = True
            return each
    exhausted("swap_slot")
    fresh = new_swap_slot()
    fresh.has_cache = True
    return fresh


@modelled("mm/swapfile.c", versions="v3.10 .. v6.8", section="A.4", omits="count continuation, bad slots")
def swap_duplicate(slot: swap_slot) -> bool:
    """One more swap PTE refers to the slot; False if the slot was freed."""
    spin_lock(machine.swap_lock)
    if slot.swap_map == 0 and not slot.has_cache:
        spin_unlock(machine.swap_lock)
        return False
    slot.swap_map += 1
    spin_unlock(machine.swap_lock)
    return True


@modelled("mm/swapfile.c", versions="v3.10 .. v6.8", section="C.7", omits="discard, the cluster allocator")
def swap_free(slot: swap_slot) -> int:
    """One swap PTE less; returns how many are left."""
    spin_lock(machine.swap_lock)
    left = swap_entry_free(slot)
    spin_unlock(machine.swap_lock)
    return left


def swap_entry_free(slot: swap_slot) -> int:
    """swap_free's work; the swap lock is held."""
    check(slot.swap_map > 0, "refcount", "a swap slot's count fell below zero")
    slot.swap_map -= 1
    return slot.swap_map


@modelled("mm/swapfile.c", versions="v3.10+seed (linux-mm posting of 3 Oct 2014, 11/17)", section="A.4", steps=2)
def swp_entry_swapcount(slot: swap_slot) -> int:
    """How many swap PTEs refer to the slot, without the cache (R28)."""
    spin_lock(machine.swap_lock)
    count = slot.swap_map
    spin_unlock(machine.swap_lock)
    return count
