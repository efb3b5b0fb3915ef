"""A guest's root, its modules, and a command in another kernel."""

from __future__ import annotations

import io
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner

from userfault.cli.guest import Guest, alone, given
from userfault.kernel import guest, initramfs
from userfault.kernel.errors import KernelError

KERNEL = "USERFAULT_GUEST_KERNEL"
"""Names a bzImage to boot."""


def entries(archive: bytes) -> list[tuple[str, int, bytes]]:
    """(path, mode, content) of each entry of a newc archive, in its order."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) & ~3
        content, at = archive[at : at + size], (at + size + 3) & ~3
        if name == "TRAILER!!!":
            assert len(archive) % 512 == 0
            return found
        found.append((f"/{name}", mode, content))


def test_files_lie_where_they_lie_with_the_links_that_lead_there(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "other").symlink_to(tmp_path / "link" / "deep")
    out = io.BytesIO()
    archive = initramfs.Archive(out)
    archive.file(tmp_path / "link" / "other" / "file")
    archive.file(tmp_path / "real" / "deep" / "file")
    archive.close()
    found = entries(out.getvalue())
    paths = [path for path, _mode, _content in found]
    assert len(set(paths)) == len(paths)
    kinds = {path.removeprefix(str(tmp_path)): (mode, content) for path, mode, content in found}
    assert kinds["/link"] == (stat.S_IFLNK | 0o777, b"real")
    assert kinds["/real/other"] == (stat.S_IFLNK | 0o777, str(tmp_path / "link" / "deep").encode())
    assert kinds["/real/deep/file"][1] == b"12345" and stat.S_ISREG(kinds["/real/deep/file"][0])
    for path in paths:
        assert os.path.dirname(path) in {"/", *paths[: paths.index(path)]}


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    for name, depends in (("zram", "zsmalloc,lzo-rle"), ("zsmalloc", ""), ("lzo-rle", "zsmalloc"), ("unwanted", "")):
        (tmp_path / f"{name}.ko").write_bytes(b"name=%s\0depends=%s\0" % (name.encode(), depends.encode()))
    # A key in the middle of .modinfo is preceded by a NUL.
    for path in tmp_path.iterdir():
        path.write_bytes(b"\0" + path.read_bytes())
    found = [
        content.split(b"name=")[1].split(b"\0")[0] for content in initramfs.module_files(tmp_path, ["zram", "brd"])
    ]
    assert found == [b"zsmalloc", b"lzo-rle", b"zram"]
    assert initramfs.module_files(None, ["zram"]) == []


@pytest.mark.parametrize("link", [False, True])
def test_modules_are_found_beside_their_kernel(link: bool, tmp_path: Path) -> None:
    modules = tmp_path / "usr/lib/modules/1.2"
    (modules / "kernel").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    kernel = tmp_path / "boot/vmlinuz-1.2"
    if link:
        (modules / "vmlinuz").touch()
        kernel = tmp_path / "vmlinuz"
        kernel.symlink_to("usr/lib/modules/1.2/vmlinuz")
    else:
        kernel.symlink_to("../usr/lib/modules/1.2/vmlinuz")
    assert guest.modules_beside(kernel) == modules
    assert guest.modules_beside(tmp_path / "boot/vmlinuz-1.3") is None


def test_the_package_and_what_it_requires_are_in_it() -> None:
    names = {path.name for path in initramfs.package_files("userfault")}
    assert {"S1.litmus", "guest.py", "litmus.lark"} <= names
    assert any("/click/" in str(path) for path in initramfs.package_files("userfault"))
    with pytest.raises(KernelError, match="no-such-thing is not installed"):
        list(initramfs.package_files("no-such-thing"))


def test_the_arguments_of_a_command_survive_the_way_into_the_guest() -> None:
    seen: list[str] = []

    @click.command()
    @click.argument("tests", nargs=-1)
    @click.option("--ops", default=5)
    @click.option("--pin/--no-pin", default=True)
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--kernel")
    def command(**_: object) -> None:
        seen.extend(given(click.get_current_context()))

    line = ["--ops", "7", "--no-pin", "--kernel", "x", "--json", "S1", "S3"]
    assert CliRunner().invoke(command, line, catch_exceptions=False).exit_code == 0
    assert seen == ["S1", "S3", "--ops", "7", "--no-pin", "--json"]


def test_files_that_a_command_names_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.litmus").write_text("a test")
    Path("S1").write_text("no test")
    asked: dict[str, object] = {}

    def run(kernel: Path, commands: list[list[str]], **rest: object) -> guest.Ended:
        asked.update(rest, commands=commands)
        return guest.Ended((0,), "", "", "tcg", 1.0)

    monkeypatch.setattr(guest, "run", run)
    assert Guest(Path("k"), None, "tcg", 1.0, 1.0).run([alone("run", "S1", "mine.litmus", "--rounds", "5")]) == 0
    mine = tmp_path / "mine.litmus"
    assert (asked["commands"], asked["files"]) == ([["run", "S1", str(mine), "--rounds", "5"]], [mine])
    out = io.BytesIO()
    initramfs.write(out, "", [], [mine])
    assert (str(mine), b"a test") in [(path, content) for path, _mode, content in entries(out.getvalue())]


def test_without_qemu_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="apt-get install"):
        guest.run(tmp_path / "vmlinuz", [["--version"]])


# The root takes seconds to write, and nobody boots here.
BOOTS = """
from userfault.kernel import initramfs
initramfs.write = lambda *arguments: None
from userfault.cli import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_guest_ends_with_whoever_booted_it(how: signal.Signals, tmp_path: Path) -> None:
    qemu, temporary, alive = (tmp_path / name for name in ("qemu-system-x86_64", "tmp", "alive"))
    os.mkfifo(alive)
    qemu.write_text(f"#!/bin/sh\nexec 3>{alive}\necho up >&3\nexec sleep 60\n")
    qemu.chmod(0o755)
    temporary.mkdir()
    booting = subprocess.Popen(
        [sys.executable, "-c", BOOTS, "conform", "--kernel", str(qemu), "--accelerator", "tcg"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(temporary)},
        stderr=subprocess.DEVNULL,
    )
    with open(os.open(alive, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        assert select.select([pipe], [], [], 60)[0]
        assert pipe.readline() == b"up\n"
        booting.send_signal(how)
        code = booting.wait(60)
        # What stands for qemu holds the other end of the pipe.
        assert select.select([pipe], [], [], 60)[0] and pipe.read() == b""
    assert code == (130 if how == signal.SIGTERM else -how)
    assert how == signal.SIGKILL or list(temporary.iterdir()) == []


def test_a_command_runs_in_another_kernel(cannot_run: Callable[[str, str], NoReturn]) -> None:
    kernel = os.environ.get(KERNEL)
    if not kernel:
        cannot_run(
            f"{KERNEL} names no kernel to boot",
            "apt-get download a linux-image package, dpkg-deb -x it, name boot/vmlinuz-*",
        )
    shown: list[str] = []
    ended = guest.run(
        Path(kernel), [["--version"], ["no-such-verb"]], accelerator="tcg", timeout_s=600, show=shown.append
    )
    assert (ended.exit_code, ended.why) == (2, ""), ended.kernel_log
    assert "version" in ended.output and "No such command" in ended.output
    assert "\n".join(shown) == ended.output and ended.statuses == (0, 2)


def test_a_guest_that_panics_is_said_to_have(cannot_run: Callable[[str, str], NoReturn]) -> None:
    kernel = os.environ.get(KERNEL)
    if not kernel:
        cannot_run(
            f"{KERNEL} names no kernel to boot",
            "apt-get download a linux-image package, dpkg-deb -x it, name boot/vmlinuz-*",
        )
    ended = guest.run(Path(kernel), [["--version"]] * 3, accelerator="tcg", timeout_s=600, panic_at=1)
    assert (ended.exit_code, ended.statuses) == (None, (0,)), ended.kernel_log
    assert "sysrq triggered crash" in ended.complaint and "the guest's kernel died" in ended.why
