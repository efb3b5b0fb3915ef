"""Settings of the whole machine, borrowed and given back: swap, zram, huge pages, KSM, sysctls.

Whoever changes one of them, or depends on it, does so inside `machine()`, which is one at a time on a machine. How each change is undone
is written to a journal before the change is made: where a holder was killed, the next one undoes its changes first.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import KernelError, Unavailable, limit_met
from .syscalls import libc
from .uapi import PAGE_SIZE_BYTES

STATE = Path("/run/userfault")
"""Where the lock and the journal are: gone at the next boot, as the settings are."""

THP = Path("/sys/kernel/mm/transparent_hugepage")
KSM = Path("/sys/kernel/mm/ksm")
HUGETLB = Path("/sys/kernel/mm/hugepages")
ZRAM = Path("/sys/class/zram-control")
VM = Path("/proc/sys/vm")

SAID_AFTER_S = 1.0
"""Whoever waits longer for the lock says so: minutes of nothing look like something that hangs."""

_log = logging.getLogger(__name__)

_SWAP_FLAG_PREFER = 0x8000
_HIGHEST_PRIORITY = 0x7FFF

Undo = dict[str, str]


@dataclass(frozen=True)
class Swap:
    """A swap device of one's own, preferred to all others.

    kind: zram, brd or file. synchronous: a page that was read back leaves no copy in the swap cache, and huge pages are swapped whole.
    """

    path: Path
    kind: str
    size_bytes: int

    @property
    def synchronous(self) -> bool:
        """Whether reading a page back is over when the access is, so that the same calls do the same each time."""
        return self.kind != "file"


class Machine:
    """The right to change this machine, from `machine()`. Everything is put back when that ends, last change first."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._undo: list[Undo] = []

    def set(self, path: Path | str, value: str | int) -> str:
        """Write `value` to a file of sysfs or of /proc/sys; the value it had (of a list of choices, the chosen one).

        Raises Unavailable where the kernel does not have it or refuses the value.
        """
        old = setting(path)
        if old != str(value):
            self.keep(path)
            _write(Path(path), str(value))
        return old

    def keep(self, path: Path | str) -> None:
        """Put back at the end what a file says now, for what somebody else changes meanwhile. Raises Unavailable where there is none."""
        self._will({"kind": "write", "path": str(path), "value": setting(path)})

    def private_swap(self, size_bytes: int = 64 << 20, *, kinds: tuple[str, ...] = ("zram", "brd", "file")) -> Swap:
        """A swap device of one's own: zram, else a RAM disk (brd), else a file under /var/tmp. Used before all other swap.

        Raises Unavailable where none can be had: why not, for each kind, and what to do.
        """
        if size_bytes < 16 * PAGE_SIZE_BYTES:
            raise KernelError(f"a swap device of {size_bytes} bytes: it needs at least {16 * PAGE_SIZE_BYTES}")
        makers: dict[str, Callable[[int], Path]] = {"zram": self._zram, "brd": self._brd, "file": self._file}
        why: list[str] = []
        for kind in kinds:
            mark = len(self._undo)
            try:
                path = makers[kind](size_bytes)
                _write_swap_header(path, size_bytes)
                self._will({"kind": "swapoff", "path": str(path)})
                _swapon(path)
            except (OSError, Unavailable) as error:
                why.append(f"{kind}: {error.reason if isinstance(error, Unavailable) else error}")
                self._undo_down_to(mark)
                continue
            return Swap(path, kind, size_bytes)
        raise Unavailable(
            f"no swap device could be made ({'; '.join(why)})",
            "run as root (CAP_SYS_ADMIN) on a kernel with CONFIG_SWAP and CONFIG_ZRAM, or with room in /var/tmp",
        )

    def _zram(self, size_bytes: int) -> Path:
        if not ZRAM.is_dir():
            _modprobe("zram")
        if not ZRAM.is_dir():
            raise Unavailable(f"{ZRAM} does not exist", "load the zram module, or build the kernel with CONFIG_ZRAM")
        number = (ZRAM / "hot_add").read_text().strip()
        self._will({"kind": "zram", "number": number})
        _write(Path(f"/sys/block/zram{number}/disksize"), str(size_bytes))
        device = Path(f"/dev/zram{number}")
        # devtmpfs or udev makes the node a little later.
        deadline = time.monotonic() + 2
        while not device.exists():
            if time.monotonic() > deadline:
                raise Unavailable(f"{device} did not appear", "mount devtmpfs on /dev")
            time.sleep(0.01)
        return device

    def _brd(self, size_bytes: int) -> Path:
        if not Path("/sys/block/ram0").exists():
            _modprobe("brd", "rd_nr=1", f"rd_size={-(-size_bytes // 1024)}")
        used = Path("/proc/swaps").read_text() + Path("/proc/mounts").read_text()
        for device in sorted(Path("/dev").glob("ram[0-9]*")):
            if str(device) in used or int(Path("/sys/block", device.name, "size").read_text()) * 512 < size_bytes:
                continue
            with device.open("rb") as disk:
                if any(disk.read(1 << 16)):
                    continue
            self._will({"kind": "discard", "path": str(device)})
            return device
        raise Unavailable("no empty RAM disk", f"modprobe brd rd_nr=1 rd_size={-(-size_bytes // 1024)}")

    def _file(self, size_bytes: int) -> Path:
        handle, name = tempfile.mkstemp(prefix="userfault-swap-", dir="/var/tmp")
        try:
            self._will({"kind": "unlink", "path": name})
            os.posix_fallocate(handle, 0, size_bytes)
        finally:
            os.close(handle)
        return Path(name)

    def _will(self, undo: Undo) -> None:
        """Note how to undo what comes next, before it comes."""
        self._undo.append(undo)
        self._save()

    def _save(self) -> None:
        fresh = self._journal.with_suffix(".new")
        fresh.write_text(json.dumps(self._undo))
        fresh.replace(self._journal)

    def _undo_down_to(self, mark: int) -> None:
        failed = []
        while len(self._undo) > mark:
            step = self._undo[-1]
            try:
                _perform(step)
            except OSError as error:
                failed.append(f"{step}: {error}")
            self._undo.pop()
            self._save()
        if failed:
            raise KernelError("not everything could be put back: " + "; ".join(failed) + ". Put it back by hand.")


@contextmanager
def machine(*, timeout_s: float = 60.0, state: Path = STATE) -> Iterator[Machine]:
    """The right to change settings of this machine, one holder at a time; all changes are undone at the end, also after an error.

    timeout_s: how long to wait for the present holder; that there is a wait is logged as a warning. state: the directory of the lock.

    Raises Unavailable without privilege, or where the holder did not end in time (it says who that is).
    """
    try:
        state.mkdir(mode=0o755, exist_ok=True)
        handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        remedy = f"make room in {state.parent}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run as root"
        raise limit_met(error) or Unavailable(f"the machine's settings can't be changed: {error}", remedy) from error
    owner = os.getpid()
    _handles.add(handle)
    try:
        _acquire(handle, timeout_s)
        journal = state / "journal"
        with suppress(FileNotFoundError):
            left = Machine(journal)
            left._undo = json.loads(journal.read_text())
            left._undo_down_to(0)
        held = Machine(journal)
        try:
            yield held
        finally:
            # A forked child that leaves this block has borrowed nothing.
            if os.getpid() == owner:
                with _undisturbed():
                    held._undo_down_to(0)
                    journal.unlink(missing_ok=True)
                    os.ftruncate(handle, 0)
    finally:
        if os.getpid() == owner:
            _handles.discard(handle)
            os.close(handle)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever presses Ctrl-C twice waits for the first to be over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_handles: set[int] = set()


def _after_fork_in_child() -> None:
    """The lock is the holder's alone: a child that outlives it must not keep it."""
    while _handles:
        os.close(_handles.pop())


os.register_at_fork(after_in_child=_after_fork_in_child)


def setting(path: Path | str) -> str:
    """The value of a file of sysfs or of /proc/sys: of a list of choices ("always [madvise] never"), the chosen one.

    Raises Unavailable where the kernel does not have it.
    """
    try:
        text = Path(path).read_text().strip()
    except OSError as error:
        raise Unavailable(f"{path} can't be read: {error.strerror}", "this kernel is built without it") from error
    before, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket else before


def swap_devices() -> list[tuple[Path, int, int]]:
    """What this machine swaps to: path, size and use in bytes (proc_swaps of /proc)."""
    rows = [line.split() for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    return [(Path(row[0]), int(row[2]) << 10, int(row[3]) << 10) for row in rows]


def _acquire(handle: int, timeout_s: float) -> None:
    began, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited_s = time.monotonic() - began
            if waited_s > timeout_s:
                raise Unavailable(
                    f"process {_holder(handle)} has held this machine's settings for {timeout_s:g} s",
                    "wait for it, or end it",
                ) from None
            if waited_s > SAID_AFTER_S and not said:
                said = True
                _log.warning(
                    "waits up to %g s for process %s, which has borrowed this machine's settings (swap, huge pages, KSM)",
                    timeout_s,
                    _holder(handle),
                )
            time.sleep(0.02)
        else:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            return


def _holder(handle: int) -> str:
    return os.pread(handle, 32, 0).decode().strip() or "unknown"


def _perform(undo: Undo) -> None:
    """Undo one change; nothing happens where it was not made, or is undone already."""
    path = Path(undo.get("path", ""))
    match undo["kind"]:
        case "write":
            path.write_text(undo["value"])
        case "swapoff":
            if any(device == path for device, _, _ in swap_devices()) and libc.swapoff(bytes(path)):
                raise OSError(ctypes.get_errno(), f"swapoff {path}: {os.strerror(ctypes.get_errno())}")
        case "zram":
            block = Path("/sys/block", f"zram{undo['number']}")
            if block.exists():
                (block / "reset").write_text("1")
                (ZRAM / "hot_remove").write_text(undo["number"])
        case "unlink":
            path.unlink(missing_ok=True)
        case "discard":
            with path.open("r+b") as disk:
                disk.write(bytes(1 << 16))


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        why = os.strerror(error.errno or errno.EIO)
        raise Unavailable(
            f"{value} can't be written to {path}: {why}", "run as root, and look at what it takes"
        ) from error


def _write_swap_header(path: Path, size_bytes: int) -> None:
    """What mkswap writes (union swap_header of include/linux/swap.h): version, last page, no bad pages, and the magic word."""
    header = bytearray(PAGE_SIZE_BYTES)
    struct.pack_into("<III16s", header, 1024, 1, size_bytes // PAGE_SIZE_BYTES - 1, 0, uuid.uuid4().bytes)
    header[-10:] = b"SWAPSPACE2"
    with path.open("r+b") as disk:
        disk.write(header)
        disk.flush()
        os.fsync(disk.fileno())


def _swapon(path: Path) -> None:
    if libc.swapon(bytes(path), _SWAP_FLAG_PREFER | _HIGHEST_PRIORITY):
        number = ctypes.get_errno()
        raise OSError(number, f"swapon {path}: {os.strerror(number)}")


def _modprobe(*arguments: str) -> None:
    """Load a module where that can be done; whether it worked shows in what it makes."""
    command = shutil.which("modprobe", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if command:
        subprocess.run([command, "-q", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
