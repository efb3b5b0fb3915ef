"""What a region has done so far."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields

from .native import COUNTERS, MODES, POLICIES, Pager
from .sizes import format_bytes


def bucket_ns(index: int) -> float:
    """The middle of a latency bucket: eight of them for each doubling."""
    log, part = divmod(index, 8)
    low = float(1 << log)
    return low * (1 + (part + 0.5) / 8)


def quantile_us(histogram: Sequence[int], q: float) -> float:
    """The latency below which a share `q` of the faults stayed, in µs; 0 where there were none. Buckets are 1/8 of a doubling wide."""
    total = sum(histogram)
    rank = q * total
    seen = 0
    for index, count in enumerate(histogram):
        seen += count
        if count and seen >= rank:
            return bucket_ns(index) / 1000
    return 0.0


@dataclass(frozen=True)
class Stats:
    """Counts since the region was opened; bytes and units as named. Latencies: from the fault's delivery until its page is there."""

    name: str
    pid: int
    mode: str
    policy: str
    source_kind: str
    size_bytes: int
    unit_bytes: int
    budget_bytes: int
    resident_bytes: int
    resident_max_bytes: int
    fault_us_p50: float
    fault_us_p90: float
    fault_us_p99: float
    fault_count: int
    stale_fault_count: int
    fill_count: int
    prefetch_count: int
    prefetch_hit_count: int
    refill_count: int
    in_bytes: int
    out_bytes: int
    swap_in_bytes: int
    soft_fault_count: int
    evict_clean_count: int
    evict_dirty_count: int
    evict_busy_count: int
    suspicious_count: int
    copy_count: int
    move_count: int
    move_fallback_count: int
    eagain_count: int
    eexist_count: int
    ebusy_count: int
    partial_count: int
    gone_count: int
    retry_count: int
    poison_count: int
    error_count: int
    stall_count: int
    handler_restart_count: int
    worker_restart_count: int
    remap_count: int
    unmap_count: int

    @staticmethod
    def of(pager: Pager) -> Stats:
        """A snapshot; the counters are read one by one."""
        # Most slots never had a thread; one that had has filled, copied or been asked for something.
        used = (part for part in pager.of_slot if part.fault_count or part.copy_count or part.fill_count)
        parts = [pager.count, *used]
        histogram = [sum(column) for column in zip(*(part.latency for part in parts), strict=True)]
        known = {field.name for field in fields(Stats)}
        return Stats(
            name=pager.name.decode(errors="replace"),
            pid=pager.pid,
            mode=MODES[pager.mode],
            policy=POLICIES[pager.policy],
            source_kind=("zero", "file", "memory", "worker", "page server")[pager.kind],
            size_bytes=pager.size,
            unit_bytes=pager.unit,
            budget_bytes=pager.budget_units * pager.unit,
            resident_bytes=min(pager.resident_units * pager.unit, pager.length),
            resident_max_bytes=min(pager.count.resident_max_units * pager.unit, pager.length),
            fault_us_p50=quantile_us(histogram, 0.5),
            fault_us_p90=quantile_us(histogram, 0.9),
            fault_us_p99=quantile_us(histogram, 0.99),
            **{name: sum(getattr(part, name) for part in parts) for name in COUNTERS if name in known},
        )

    @staticmethod
    def from_bytes(data: bytes) -> Stats:
        """From a copy of the control block's beginning."""
        return Stats.of(Pager.from_buffer_copy(data[: ctypes.sizeof(Pager)]))

    def __str__(self) -> str:
        budget = f" of {format_bytes(self.budget_bytes)}" if self.budget_bytes else ""
        return (
            f"{self.name}: {format_bytes(self.size_bytes)} in units of {format_bytes(self.unit_bytes)}, "
            f"{format_bytes(self.resident_bytes)}{budget} resident; {self.fault_count} faults, "
            f"p50 {self.fault_us_p50:.1f} us, p99 {self.fault_us_p99:.1f} us; "
            f"in {format_bytes(self.in_bytes)}, out {format_bytes(self.out_bytes)}; "
            f"evicted {self.evict_clean_count} clean, {self.evict_dirty_count} dirty"
        )
