"""Build hook: compiles the C core into one shared library, and installs without it where that fails.

The library is loaded with ctypes and includes no Python.h, so one compiler call is the whole build.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from zlib import crc32

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src", "userfault", "native")
LIBRARY = NATIVE / "_userfault.so"
CFLAGS = ["-std=c11", "-O2", "-fvisibility=hidden", "-pthread", "-fPIC", "-shared", "-Wall", "-Wextra"]
WITHOUT_IT = (
    "userfault is installed without its native core and `userfault check` runs on the slower Python engine; "
    "to get the core, install a C compiler (`apt-get install gcc libc6-dev`) and reinstall userfault"
)


class NativeCore(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        sources = sorted(str(path.relative_to(root)) for path in (root / NATIVE).glob("*.c"))
        if not sources:
            return
        problem = compile_library(root, sources)
        if problem:
            # A library of older sources must not answer for these.
            (root / LIBRARY).unlink(missing_ok=True)
            self.app.display_warning(f"{WITHOUT_IT}: {problem}")
            return
        # git ignores the library; as an artifact it goes into the wheel all the same.
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compile_library(root: Path, sources: list[str]) -> str | None:
    """Compile all sources into LIBRARY; what went wrong, or None."""
    compiler = find_compiler()
    if compiler is None:
        tried = f"$CC is {os.environ['CC']!r}" if os.environ.get("CC") else "tried cc, gcc and clang"
        return f"no C compiler found ({tried})."
    # Compiled aside and renamed: a process that has the old library mapped keeps it intact.
    fresh = LIBRARY.with_name(f"{LIBRARY.name}.{os.getpid()}")
    # What native/__init__.py compares.
    stamp = crc32(b"".join(path.read_bytes() for path in sorted((root / NATIVE).glob("*.[ch]"))))
    command = [*compiler, *CFLAGS, f"-DUF_SOURCES={stamp}u", "-o", str(fresh), *sources]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
        if done.returncode:
            return f"the C compiler failed.\n{shlex.join(command)}\n{done.stderr.strip()}"
        os.replace(root / fresh, root / LIBRARY)
    except OSError as error:
        return f"the C compiler could not be run ({error})."
    finally:
        (root / fresh).unlink(missing_ok=True)
    return None


def find_compiler() -> list[str] | None:
    """$CC, which may carry arguments (`ccache gcc`), or else the first usual name on PATH."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for command in map(shlex.split, names):
        if command and shutil.which(command[0]):
            return command
    return None
