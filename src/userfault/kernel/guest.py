"""Another kernel, booted in qemu: userfault commands run in it as they would here.

The guest's root is an initramfs (`initramfs.py`); the command's output comes over a second serial port, the kernel's log over the
first. An oops in the guest is a panic, and a panic ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import initramfs
from .errors import KernelError

MODULES = ("zram", "lzo-rle", "brd")
"""What a guest may lack: a block device in memory, to swap to (up to v6.11, zram compresses by the crypto API's modules)."""
READY, EXIT = "userfault-guest ready", "userfault-guest exit "
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
worst = 0
for arguments in job["commands"]:
    if len(job["commands"]) > 1:
        os.write(out, f"$ userfault {' '.join(arguments)}\\n".encode())
    status = subprocess.call([*job["python"], *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    worst = max(worst, status, key=abs)
os.write(out, f"\\n%(exit)s{worst}\\n".encode())
import termios, time
termios.tcdrain(out)
time.sleep(0.3)
os.sync()
ctypes.CDLL(None).reboot(0x4321fedc)
"""


@dataclass(frozen=True)
class Ended:
    """How commands in a guest ended. exit_code: the worst one; None where the guest died or its time was up (`why` says which)."""

    exit_code: int | None
    output: str
    kernel_log: str
    accelerator: str
    boot_s: float
    why: str = ""


def run(
    kernel: Path,
    commands: Sequence[Sequence[str]],
    *,
    modules: Path | None = None,
    accelerator: str = "",
    memory_mib: int = 1536,
    cpus: int = 1,
    timeout_s: float = 600.0,
    show: Callable[[str], None] | None = None,
    files: Sequence[Path] = (),
) -> Ended:
    """Boot `kernel` (a bzImage) and run each of `commands` (arguments of userfault) in it, one after the other.

    modules: a lib/modules/VERSION directory; found beside the kernel where a Debian package was unpacked. accelerator: "kvm" or "tcg";
    the first is tried before the second where nothing is said. timeout_s: for everything. show: called with the output as it comes.
    files: what the commands read, at the same place there.
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
            "environment": {
                "PYTHONPATH": os.pathsep.join(_python_path()),
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "PATH": os.defpath,
            },
        }
        init = _INIT % {"job": json.dumps(job), "ready": READY, "exit": EXIT}
        with open(directory / "initramfs", "wb") as out:
            initramfs.write(out, init, initramfs.module_files(modules or modules_beside(kernel), MODULES), files)
        for each in [accelerator] if accelerator else _accelerators():
            last = each == "tcg" or bool(accelerator)
            command = [
                *(
                    qemu,
                    "-M",
                    "pc",
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
            ended = _boot(command, directory, each, timeout_s, None if last else KVM_BOOT_S, show)
            if ended is not None:
                return ended
    raise AssertionError("the last accelerator always ends")


def _accelerators() -> list[str]:
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


_OPTIONS = {"tcg": "tcg,thread=multi,tb-size=512"}
_MAIN = "from userfault.cli import main; main()"


def _boot(
    command: list[str],
    directory: Path,
    accelerator: str,
    timeout_s: float,
    boot_timeout_s: float | None,
    show: Callable[[str], None] | None,
) -> Ended | None:
    """One guest from start to end; None where it did not come up within `boot_timeout_s`."""
    output, log = directory / "output", directory / "log"
    for each in (output, log):
        each.write_bytes(b"")
    with open(directory / "qemu", "w+") as complaints:
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints)
        boot_s, shown, why = 0.0, 0, ""
        try:
            while True:
                done = process.poll() is not None
                text = output.read_text(errors="replace")
                if not boot_s and READY in text:
                    boot_s, shown = time.monotonic() - started, text.index(READY) + len(READY) + 1
                visible = text.split(f"\n{EXIT}", 1)[0]
                if boot_s and show and len(visible) > shown:
                    end = len(visible) if done else visible.rfind("\n") + 1
                    if end > shown:
                        show(visible[shown:end])
                        shown = end
                if done:
                    break
                now = time.monotonic() - started
                if not boot_s and boot_timeout_s is not None and now > boot_timeout_s:
                    return None
                if now > timeout_s:
                    why = f"it had {timeout_s:.0f} s and was not done"
                    break
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        complaints.seek(0)
        said = complaints.read().strip()
    text, kernel_log = output.read_text(errors="replace"), log.read_text(errors="replace")
    if not boot_s:
        if boot_timeout_s is not None:
            return None
        tail = "\n".join([*last_words(kernel_log), *said.splitlines()[-5:]])
        raise KernelError(f"the guest did not come up: {why or 'qemu ended'}. Its last words:\n{tail}")
    body = text.split(READY, 1)[1].lstrip("\r\n")
    code: int | None = None
    if f"\n{EXIT}" in body:
        body, _, tail = body.partition(f"\n{EXIT}")
        with contextlib.suppress(ValueError):
            code = int(tail.split()[0])
    elif not why:
        why = "the guest's kernel died. Its last words:\n" + "\n".join(last_words(kernel_log))
    return Ended(code, body, kernel_log, accelerator, boot_s, why)


def last_words(kernel_log: str) -> list[str]:
    """What a kernel said from its first complaint on, or at the end."""
    lines = kernel_log.splitlines()
    complaint = re.compile(r"BUG:|Corrupted|Oops|panic|general protection|WARNING:")
    first = next((at for at, line in enumerate(lines) if complaint.search(line)), len(lines) - 15)
    return lines[max(first, 0) :][:60]


def modules_beside(kernel: Path) -> Path | None:
    """lib/modules/VERSION of the tree that boot/vmlinuz-VERSION lies in."""
    version = kernel.name.removeprefix("vmlinuz-")
    for each in ("lib/modules", "usr/lib/modules"):
        found = kernel.resolve().parent.parent / each / version
        if found.is_dir():
            return found
    return None


def _python_path() -> list[str]:
    """Where this process finds packages."""
    return [each for each in dict.fromkeys(map(os.path.realpath, filter(None, sys.path))) if Path(each).is_dir()]
