"""Looking at the regions of another process: their control blocks are in its memory, under a name."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator

from .errors import PagingError
from .native import MAGIC, VERSION, Pager
from .stats import Stats

_MAPPING = re.compile(r"([0-9a-f]+)-[0-9a-f]+ rw-s \S+ \S+ \d+\s+/memfd:userfault-pager")


def stats_of_process(pid: int) -> list[Stats]:
    """One for each region that process `pid` has open now.

    Raises PagingError where there is no such process, or it may not be read (ptrace(2), "access mode checking").
    """
    return list(_stats(pid))


def _stats(pid: int) -> Iterator[Stats]:
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for found in _MAPPING.finditer(maps.read()):
                data = os.pread(memory.fileno(), ctypes.sizeof(Pager), int(found[1], 16))
                pager = Pager.from_buffer_copy(data)
                # The child of a fork has its parent's control blocks mapped, but not its regions.
                if pager.magic != MAGIC or pager.pid != pid:
                    continue
                if pager.version != VERSION:
                    raise PagingError(f"process {pid} runs another version of userfault", "look at it with that one")
                yield Stats.of(pager)
    except FileNotFoundError:
        raise PagingError(f"there is no process {pid}", "give the id of a running process") from None
    except (PermissionError, ProcessLookupError) as error:
        raise PagingError(f"process {pid} can't be read: {error.strerror}", "be its user, or root") from None
