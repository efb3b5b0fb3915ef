"""The C pager as ctypes sees it: native/pager.h's structs, and its functions with their types."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char, c_char_p, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache

from ..native import library, why_missing

PAGE_BYTES = 4096
MAGIC = 0x7265676170667375
VERSION = 3
QUEUE, MAX_SLOTS, MAX_RULES, MAX_ERRORS, ERROR_TEXT, MAX_REMAPS, BUCKETS = 1024, 64, 16, 8, 8192, 16, 256

MODES = ("threads", "sigbus")
POLICIES = ("clock", "fifo", "lru", "rank", "custom")
ABSENT, FILLING, PRESENT, EVICTING, POISONED, GONE, LIMBO = range(7)
STATE_MASK = 7


class Rule(ctypes.Structure):
    """One rule of the fault injection."""

    _fields_ = (
        ("left", c_uint32),
        ("skip", c_uint32),
        ("point", c_uint32),
        ("effect", c_uint32),
        ("value", c_int64),
        ("struck_count", c_uint64),
    )


class Failure(ctypes.Structure):
    """Why a unit could not be filled."""

    _fields_ = (
        ("sequence", c_uint64),
        ("address", c_uint64),
        ("offset", c_uint64),
        ("length", c_uint64),
        ("code", c_int32),
        ("worker", c_uint32),
        ("tid", c_uint32),
        ("length_text", c_uint32),
        ("text", c_char * ERROR_TEXT),
    )


COUNTERS = [
    "fault_count",
    "stale_fault_count",
    "fill_count",
    "prefetch_count",
    "prefetch_hit_count",
    "refill_count",
    "in_bytes",
    "out_bytes",
    "swap_in_bytes",
    "evict_clean_count",
    "evict_dirty_count",
    "evict_busy_count",
    "suspicious_count",
    "copy_count",
    "move_count",
    "move_fallback_count",
    "eagain_count",
    "eexist_count",
    "ebusy_count",
    "partial_count",
    "gone_count",
    "retry_count",
    "poison_count",
    "error_count",
    "stall_count",
    "handler_restart_count",
    "worker_restart_count",
    "remap_count",
    "unmap_count",
    "resident_max_units",
    "soft_fault_count",
]


class Counters(ctypes.Structure):
    """What the pager counts; all of them only grow."""

    _fields_ = (*((name, c_uint64) for name in COUNTERS), ("latency", c_uint64 * BUCKETS))


class Remap(ctypes.Structure):
    """A part of the region that mremap moved."""

    _fields_ = (("source", c_uint64), ("to", c_uint64), ("length", c_uint64))


def _fields(kind: type, names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names.split())


class Pager(ctypes.Structure):
    """`struct pager` up to its private part."""

    _fields_ = (
        ("magic", c_uint64),
        *_fields(c_uint32, "version pid"),
        *_fields(c_uint64, "base length size unit units budget_units"),
        *_fields(c_uint32, "mode writable kind handlers policy direct align batch"),
        *_fields(c_uint32, "retries retry_us stall_ms prefetch_units"),
        *_fields(c_int32, "uffd source_fd swap_fd worker_fd pidfd event_fd pagemap_fd memory_fd"),
        ("user_mode_only", c_uint32),
        *_fields(c_uint64, "source_offset source_address source_dev source_ino swap_dev swap_ino"),
        ("name", c_char * 256),
        *_fields(c_uint64, "state_offset bitmap_offset ring_offset stamp_offset control_bytes job_offset job_bytes"),
        *_fields(
            c_uint64,
            "pages ring_capacity limbo_offset limbo_units limbo_places limbo_count policy_function policy_context",
        ),
        ("count", Counters),
        ("resident_units", c_uint64),
        *_fields(c_uint32, "stopping started inject_armed worker_lost"),
        *_fields(c_uint64, "ring_head ring_tail queue_head queue_tail"),
        ("queue_bell", c_uint32),
        ("error_sequence", c_uint64),
        *_fields(c_uint32, "spawn_argc paused"),
        ("started_ns", c_uint64),
        ("remaps", Remap * MAX_REMAPS),
        ("remap_count", c_uint32),
        *_fields(c_uint64, "last_unit stride stride_hits record_count record_capacity record_offset"),
        ("queue", c_uint64 * QUEUE),
        ("rules", Rule * MAX_RULES),
        ("errors", Failure * MAX_ERRORS),
        ("of_slot", Counters * MAX_SLOTS),
    )


class Settings(ctypes.Structure):
    """What a region is made with."""

    _fields_ = (
        *_fields(c_uint64, "base length size unit budget_units"),
        *_fields(c_uint32, "mode writable kind handlers policy direct align retries retry_us stall_ms prefetch_units"),
        ("spawn_argc", c_uint32),
        *_fields(c_int32, "uffd source_fd swap_fd worker_fd user_mode_only worker_pid"),
        *_fields(c_uint64, "source_offset source_address policy_function policy_context record_capacity"),
        *_fields(c_uint64, "arguments arguments_bytes job job_bytes"),
        ("name", c_char * 256),
        ("peer", c_char * 32),
        *_fields(c_uint32, "peer_bytes peer_timeout_ms"),
    )


@cache
def pager_library() -> ctypes.CDLL:
    """The library with the pager's functions typed. Raises OSError with a remedy where it was not built or is another version's."""
    lib = library()
    if lib is None:
        raise OSError(f"memory can't be paged without the native core. {why_missing()}")
    signatures: dict[str, tuple[object, list[object]]] = {
        "pager_sizeof": (c_uint64, [c_int]),
        "pager_userfaultfd": (c_int, [c_uint32, c_uint32, POINTER(c_int)]),
        "pager_start": (c_void_p, [POINTER(Settings), POINTER(c_int), c_char_p, c_uint64]),
        "pager_stop": (None, [c_void_p]),
        "pager_free": (None, [c_void_p]),
        "pager_ensure": (c_uint64, [c_void_p, c_uint64, c_uint64, c_void_p]),
        "pager_will_need": (None, [c_void_p, c_uint64, c_uint64]),
        "pager_evict": (c_int64, [c_void_p, c_uint64, c_uint64]),
        "pager_copy": (c_uint64, [c_void_p, c_void_p, c_uint64]),
        "pager_mark": (c_int, [c_void_p]),
        "pager_dirty": (c_int, [c_void_p, c_void_p]),
        "pager_take_unsaved": (c_int, [c_void_p, c_void_p]),
        "pager_flushed": (None, [c_void_p, c_int]),
        "pager_end_with_owner": (c_int, [c_int, c_uint64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name, None)
        if function is None:
            raise OSError(f"the native core has no {name}: it is older than this userfault; reinstall userfault")
        function.restype, function.argtypes = result, arguments
    sizes = lib.pager_sizeof(0), lib.pager_sizeof(1)
    if sizes != (ctypes.sizeof(Pager), ctypes.sizeof(Settings)):
        raise OSError("the native core is another version's: reinstall userfault")
    return lib


def error_text(code: int) -> str:
    """`Device or resource busy (EBUSY)` for -errno or errno."""
    import errno

    number = abs(code)
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
