"""An initramfs with this Python, this package and what both need: the root of a guest (`guest.py`).

Files lie where they lie on the host, so that nothing has to be relocated. The archive is "newc" cpio, as
Documentation/driver-api/early-userspace/buffer-format.rst describes it.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from .errors import KernelError

LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages", "pydoc_data"}
"""Parts of the standard library that no guest needs."""
INIT = "/init"


class Archive:
    """Writes a newc archive: directories are made as needed, and nothing is written twice."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.inode, self.seen = out, 0, {"/"}

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, b"")
        self.out.write(b"\0" * (-self.out.tell() % 512))

    def directory(self, path: str) -> None:
        if path not in self.seen:
            self.directory(os.path.dirname(path))
            self.seen.add(path)
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def data(self, path: str, content: bytes, mode: int = 0o644, modified: int = 0) -> None:
        if path not in self.seen:
            self.directory(os.path.dirname(path))
            self.seen.add(path)
            self._entry(path, stat.S_IFREG | mode, content, modified)

    def device(self, path: str, major: int, minor: int) -> None:
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFCHR | 0o600, b"", 0, (major, minor))

    def file(self, path: Path) -> None:
        """A file of the host, at its place, with every link that leads there."""
        at, rest = Path("/"), [*path.absolute().parts[1:]]
        while rest:
            at /= rest.pop(0)
            if at.is_symlink():
                target = os.readlink(at)
                if str(at) not in self.seen:
                    self.directory(str(at.parent))
                    self.seen.add(str(at))
                    self._entry(str(at), stat.S_IFLNK | 0o777, target.encode())
                rest = [*Path(os.path.normpath(at.parent / target)).parts[1:], *rest]
                at = Path("/")
        if str(at) not in self.seen:
            about = at.stat()
            # A compiled module is valid for a source of its time only.
            self.data(str(at), at.read_bytes(), about.st_mode & 0o777, int(about.st_mtime))

    def _entry(self, path: str, mode: int, content: bytes, modified: int = 0, device: tuple[int, int] = (0, 0)) -> None:
        self.inode += 1
        name = path.lstrip("/").encode() + b"\0"
        fields = [self.inode, mode, 0, 0, 1, modified, len(content), 0, 0, *device, len(name), 0]
        head = b"070701" + b"".join(b"%08X" % each for each in fields) + name
        self.out.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))


def python_files() -> Iterator[Path]:
    """The interpreter, its standard library, and the shared libraries of both."""
    interpreter = Path(sys.executable).resolve()
    yield interpreter
    binaries = [interpreter]
    for directory in {
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}),
    }:
        for path in sorted(Path(directory).rglob("*")):
            inside = path.relative_to(directory).parts
            if not path.is_file() or LEFT_OUT.intersection(inside) or inside[0].startswith("config-"):
                continue
            if path.suffix in (".py", ".pyc", ".so") and ".opt-" not in path.name:
                yield path
                if path.suffix == ".so":
                    binaries.append(path)
    yield from shared_libraries(binaries)


def shared_libraries(binaries: Iterable[Path]) -> list[Path]:
    """What the dynamic linker would load for these."""
    listed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout
    return sorted({Path(found) for found in re.findall(r"(?:=> |^\s)(/\S+) \(0x", listed, re.MULTILINE)})


def package_files(name: str, seen: set[str] | None = None) -> Iterator[Path]:
    """The installed files of a distribution and of what it requires, without extras."""
    seen = set() if seen is None else seen
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    seen.add(key)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise KernelError(
            f"{name} is not installed as a package: install userfault with pip to run it in a guest"
        ) from None
    if name == "userfault":
        # An editable installation lists no files of its own.
        yield from (
            each
            for each in Path(__file__).parents[1].rglob("*")
            if each.suffix in (".py", ".so", ".lark", ".litmus", ".diff", ".txt")
        )
    for each in found.files or ():
        path = Path(str(found.locate_file(each)))
        if (path.suffix in (".py", ".pyc", ".so", ".lark") or path.name == "METADATA") and path.is_file():
            yield path
    for requirement in found.requires or ():
        if "extra ==" not in requirement:
            yield from package_files(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0], seen)


def module_files(directory: Path | None, names: Iterable[str]) -> list[bytes]:
    """Kernel modules, each after what it depends on, uncompressed. Names that the directory lacks are built in, or not to be had."""
    if directory is None:
        return []
    by_name = {path.name.split(".")[0].replace("-", "_"): path for path in directory.rglob("*.ko*")}
    out: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = by_name.get(name.replace("-", "_"))
        if path is None or name in out:
            return
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for each in found[1].decode().split(",") if found and found[1] else ():
            add(each)
        out[name] = content

    for name in names:
        add(name)
    return list(out.values())


def write(out: BinaryIO, init: str, modules: Iterable[bytes], files: Iterable[Path] = ()) -> None:
    """The whole archive; `init` is a Python program that runs as the first process, the modules are /modules/0, 1, ...

    files: of the host, which lie there where they lie here.
    """
    archive = Archive(out)
    for directory in ("/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/etc"):
        archive.directory(directory)
    archive.device("/dev/console", 5, 1)
    archive.data(INIT, f"#!{Path(sys.executable).resolve()} -S\n{init}".encode(), 0o755)
    for number, content in enumerate(modules):
        archive.data(f"/modules/{number}", content)
    for path in [*python_files(), *package_files("userfault"), *files]:
        archive.file(path)
    archive.close()
