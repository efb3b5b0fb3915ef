"""Another kernel, booted in qemu: userfault commands run in it as they would here.

The guest's root is an initramfs (`initramfs.py`); the command's output comes over a second serial port, the kernel's log over the
first. An oops in the guest is a panic, and a panic ends it.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from . import initramfs
from .errors import KernelError
from .workers import end_with

MODULES = ("zram", "lzo-rle", "brd")
"""What a guest may lack: a block device in memory, to swap to (up to v6.11, zram compresses by the crypto API's modules)."""
READY, STATUS, DONE = "userfault-guest ready", "userfault-guest status ", "userfault-guest done"
"""Lines of a guest's that are about the guest: it is up; the exit code of a command; all of them ended."""
COMPLAINT = re.compile(r"BUG:|Corrupted|Oops|panic|general protection|WARNING:")
KVM_BOOT_S = 12.0
"""A guest under KVM that is not up by then does not run there (nested virtualisation): TCG is tried."""

_INIT = """
import ctypes, os, subprocess, sys, tty
PLACES = {"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev", "debugfs": "/sys/kernel/debug", "tracefs": "/sys/kernel/tracing"}
for kind, where in PLACES.items():
    ctypes.CDLL(None).mount(kind.encode(), where.encode(), kind.encode(), 0, None)
for number in range(len(os.listdir("/modules")) if os.path.isdir("/modules") else 0):
    with open(f"/modules/{number}", "rb") as module:
        ctypes.CDLL(None).syscall(313, module.fileno(), b"", 0)
try:
    with open("/sys/kernel/mm/transparent_hugepage/enabled", "w") as file:
        file.write("madvise")
except OSError:
    pass
with open("/proc/sys/kernel/printk", "w") as file:
    file.write("4")
job = %(job)s
out = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
tty.setraw(out)
os.write(out, b"%(ready)s\\n")
os.environ.update(job["environment"])
for number, arguments in enumerate(job["commands"]):
    if len(job["commands"]) > 1:
        os.write(out, f"$ userfault {' '.join(arguments)}\\n".encode())
    if number == job["panic_at"]:
        with open("/proc/sysrq-trigger", "w") as file:
            file.write("c")
    status = subprocess.call([*job["python"], *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    os.write(out, f"\\n%(status)s{status}\\n".encode())
os.write(out, b"%(done)s\\n")
import termios, time
termios.tcdrain(out)
time.sleep(0.3)
os.sync()
ctypes.CDLL(None).reboot(0x4321fedc)
"""


@dataclass(frozen=True)
class Ended:
    """How commands in a guest ended. statuses: the exit codes of those that did. why: empty, or what ended the guest before its
    work was done; complaint: then, if its kernel died, the first line in which that complained. timed_out: the time for everything was up.
    """

    statuses: tuple[int, ...]
    output: str
    kernel_log: str
    accelerator: str
    boot_s: float
    why: str = ""
    complaint: str = ""
    timed_out: bool = False

    @property
    def exit_code(self) -> int | None:
        """The worst one; None where the guest did not come to its end."""
        return None if self.why else max(self.statuses, key=abs, default=0)


def run(
    kernel: Path,
    commands: Sequence[Sequence[str]],
    *,
    modules: Path | None = None,
    accelerator: str = "",
    memory_mib: int = 1536,
    cpus: int = 1,
    timeout_s: float = 600.0,
    silence_s: float = math.inf,
    show: Callable[[str], None] | None = None,
    files: Sequence[Path] = (),
    panic_at: int = -1,
) -> Ended:
    """Boot `kernel` (a bzImage) and run each of `commands` (arguments of userfault) in it, one after the other.

    modules: a lib/modules/VERSION directory; found beside the kernel where a Debian package was unpacked. accelerator: "kvm" or "tcg";
    the first is tried before the second where nothing is said. timeout_s: for everything. silence_s: after so many without a line of
    output the guest is given up. show: called with each line of the output as it comes. files: what the commands read, at the same
    place there. panic_at: the guest's kernel is made to panic instead of that command, for tests of what comes of it.
    Raises KernelError where no guest can be booted, with what to install.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise KernelError(
            "qemu-system-x86_64 is not installed: apt-get install --no-install-recommends qemu-system-x86"
        )
    if not kernel.is_file():
        raise KernelError(f"{kernel} is no file: name a kernel's bzImage (boot/vmlinuz-... of an unpacked package)")
    with tempfile.TemporaryDirectory(prefix="userfault-guest-") as name:
        directory = Path(name)
        job = {
            "python": [str(Path(sys.executable).resolve()), "-S", "-c", _MAIN],
            "commands": [list(each) for each in commands],
            "panic_at": panic_at,
            "environment": {
                "PYTHONPATH": os.pathsep.join(_python_path()),
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "PATH": os.defpath,
            },
        }
        init = _INIT % {"job": json.dumps(job), "ready": READY, "status": STATUS, "done": DONE}
        with open(directory / "initramfs", "wb") as out:
            initramfs.write(out, init, initramfs.module_files(modules or modules_beside(kernel), MODULES), files)
        for each in [accelerator] if accelerator else _accelerators():
            last = each == "tcg" or bool(accelerator)
            command = [
                *(
                    qemu,
                    "-M",
                    # Its memory is none of ours: it would be scanned and merged with what is tested here.
                    "pc,mem-merge=off",
                    "-accel",
                    _OPTIONS.get(each, each),
                    "-cpu",
                    "max,la57=off,cx16=off",
                    "-m",
                    str(memory_mib),
                    "-smp",
                    str(cpus),
                ),
                *(
                    "-display",
                    "none",
                    "-no-reboot",
                    "-nodefaults",
                    "-kernel",
                    str(kernel),
                    "-initrd",
                    str(directory / "initramfs"),
                ),
                *("-serial", f"file:{directory / 'log'}", "-serial", f"file:{directory / 'output'}"),
                *("-append", "console=ttyS0 panic=-1 oops=panic quiet mitigations=off"),
            ]
            limits = _Limits(timeout_s, silence_s, math.inf if last else KVM_BOOT_S)
            ended = _boot(command, directory, each, limits, show)
            if ended is not None:
                return ended
    raise AssertionError("the last accelerator always ends")


def _accelerators() -> list[str]:
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


_OPTIONS = {"tcg": "tcg,thread=multi,tb-size=512"}
_MAIN = "from userfault.cli import main; main()"


@dataclass(frozen=True)
class _Limits:
    """Seconds that a guest has for everything, between two lines of its output, and until it is up."""

    all_s: float
    silence_s: float
    boot_s: float


@dataclass
class _Output:
    """What a guest says on its second serial port, as lines; those about the guest are kept back."""

    path: Path
    show: Callable[[str], None] | None
    up: bool = False
    done: bool = False
    statuses: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    rest: str = ""
    read: int = 0
    blank: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def more(self, ended: bool = False) -> bool:
        """Take what has come since; was it something?"""
        with open(self.path, "rb") as file:
            file.seek(self.read)
            come = file.read()
        self.read += len(come)
        *lines, self.rest = (self.rest + self.decoder.decode(come).replace("\r", "")).split("\n")
        for each in [*lines, *([self.rest] if ended and self.rest else [])]:
            self.take(each)
        return bool(come)

    def take(self, line: str) -> None:
        if READY in line:
            self.up = True
        elif line.startswith(STATUS):
            self.statuses.append(int(line.removeprefix(STATUS)))
            # Before it, init ended whatever line the command left behind.
            self.blank = max(self.blank - 1, 0)
        elif line.startswith(DONE):
            self.done = True
        elif self.up and not line:
            self.blank += 1
        elif self.up:
            for each in [""] * self.blank + [line]:
                self.lines.append(each)
                if self.show:
                    self.show(each)
            self.blank = 0


def _boot(
    command: list[str], directory: Path, accelerator: str, limits: _Limits, show: Callable[[str], None] | None
) -> Ended | None:
    """One guest from start to end; None where it did not come up within its time for that, if it has one."""
    output, log = _Output(directory / "output", show), directory / "log"
    for each in (output.path, log):
        each.write_bytes(b"")
    with open(directory / "qemu", "w+") as complaints:
        started = heard = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=complaints,
            stderr=complaints,
            preexec_fn=partial(end_with, os.getpid()),
        )
        boot_s, why, timed_out = 0.0, "", False
        try:
            while True:
                ended = process.poll() is not None
                if output.more(ended):
                    heard = time.monotonic()
                now = time.monotonic()
                if output.up and not boot_s:
                    boot_s = now - started
                if ended:
                    break
                if not output.up and now - started > limits.boot_s:
                    return None
                if now - started > limits.all_s:
                    why, timed_out = f"it had {limits.all_s:.0f} s and was not done", True
                elif now - heard > limits.silence_s:
                    why = f"it said nothing for {limits.silence_s:.0f} s"
                if why:
                    break
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        complaints.seek(0)
        said = complaints.read().strip()
    kernel_log = log.read_text(errors="replace")
    if not output.up:
        if limits.boot_s < math.inf:
            return None
        tail = "\n".join([*last_words(kernel_log), *said.splitlines()[-5:]])
        raise KernelError(f"the guest did not come up: {why or 'qemu ended'}. Its last words:\n{tail}")
    complaint = ""
    if not output.done and not why:
        words = last_words(kernel_log)
        complaint = re.sub(r"^\[[ \d.]+\] ", "", next(filter(COMPLAINT.search, words), "it did not say why")).strip()
        why = "the guest's kernel died. Its last words:\n" + "\n".join(words)
    text = "\n".join(output.lines)
    return Ended(tuple(output.statuses), text, kernel_log, accelerator, boot_s, why, complaint, timed_out)


def last_words(kernel_log: str) -> list[str]:
    """What a kernel said from its first complaint on, or at the end."""
    lines = kernel_log.splitlines()
    first = next((at for at, line in enumerate(lines) if COMPLAINT.search(line)), len(lines) - 15)
    return lines[max(first, 0) :][:60]


def modules_beside(kernel: Path) -> Path | None:
    """lib/modules/VERSION of the tree that boot/vmlinuz-VERSION lies in, or what such a link leads into."""
    version = kernel.name.removeprefix("vmlinuz-")
    tree = kernel.absolute().parent.parent
    for found in (tree / "lib/modules" / version, tree / "usr/lib/modules" / version, kernel.resolve().parent):
        if (found / "kernel").is_dir():
            return found
    return None


def _python_path() -> list[str]:
    """Where this process finds packages."""
    return [each for each in dict.fromkeys(map(os.path.realpath, filter(None, sys.path))) if Path(each).is_dir()]
