"""The Python table, the C table and, where they know a name, the system's headers say the same."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from userfault.kernel import uapi

HEADER = Path(__file__).parents[2] / "src" / "userfault" / "native" / "uapi.h"
PREFIXES: dict[type[uapi.Dated] | type[uapi.DatedNumber], str] = {
    uapi.Feature: "UFFD_FEATURE_",
    uapi.RegisterMode: "UFFDIO_REGISTER_MODE_",
    uapi.CopyMode: "UFFDIO_COPY_MODE_",
    uapi.ZeropageMode: "UFFDIO_ZEROPAGE_MODE_",
    uapi.MoveMode: "UFFDIO_MOVE_MODE_",
    uapi.WriteprotectMode: "UFFDIO_WRITEPROTECT_MODE_",
    uapi.ContinueMode: "UFFDIO_CONTINUE_MODE_",
    uapi.PoisonMode: "UFFDIO_POISON_MODE_",
    uapi.Event: "UFFD_EVENT_",
    uapi.PagefaultFlag: "UFFD_PAGEFAULT_FLAG_",
    uapi.ScanFlag: "PM_SCAN_",
    uapi.PageIs: "PAGE_IS_",
    uapi.Advice: "MADV_",
    uapi.Ioctl: "UFFDIO_",
    uapi.Syscall: "UF_SYS_",
    uapi.RemapFlag: "MREMAP_",
    uapi.LockFlag: "MLOCK_",
    uapi.NodeFlag: "MPOL_MF_",
    uapi.Prctl: "PR_",
    uapi.PageBit: "PM_",
    uapi.PageFlag: "KPF_",
}
OTHER_NAMES = {"UFFDIO_NEW": "USERFAULTFD_IOC_NEW", "UFFDIO_PAGEMAP_SCAN": "PAGEMAP_SCAN"}
STRUCTS = [
    uapi.uffdio_range,
    uapi.uffdio_api,
    uapi.uffdio_register,
    uapi.uffdio_copy,
    uapi.uffdio_zeropage,
    uapi.uffdio_move,
    uapi.uffdio_writeprotect,
    uapi.uffdio_continue,
    uapi.uffdio_poison,
    uapi.pm_scan_arg,
    uapi.page_region,
]


def constants() -> dict[str, int]:
    found = {
        "UFFD_API": uapi.UFFD_API,
        "UFFD_USER_MODE_ONLY": uapi.USER_MODE_ONLY,
        "MAP_DROPPABLE": uapi.MAP_DROPPABLE,
        "PM_PFN_MASK": uapi.PM_PFN_MASK,
        "PM_SWAP_TYPE_MASK": uapi.PM_SWAP_TYPE_MASK,
        "PM_SWAP_OFFSET_SHIFT": uapi.PM_SWAP_OFFSET_SHIFT,
    }
    for kind, prefix in PREFIXES.items():
        for member in kind:
            name = f"{prefix}{member.name}"
            found[OTHER_NAMES.get(name, name)] = int(member)
    return found


def layout() -> dict[str, int]:
    found = {"sizeof(struct uffd_msg)": uapi.UFFD_MSG.size}
    for each in STRUCTS:
        found[f"sizeof(struct {each.__name__})"] = ctypes.sizeof(each)
        for name, _type in each._fields_:  # type: ignore[misc]
            found[f"offsetof(struct {each.__name__}, {name})"] = getattr(each, name).offset
    return found


@pytest.fixture(scope="module")
def probe(
    tmp_path_factory: pytest.TempPathFactory, cannot_run: Callable[[str, str], NoReturn]
) -> Callable[[str], dict[str, int]]:
    """Compiles a program's text and returns the `name value` lines that it prints."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    command = next(filter(None, map(shutil.which, compilers)), None)
    if command is None:
        cannot_run("no C compiler found", "apt-get install gcc libc6-dev")

    def run(text: str) -> dict[str, int]:
        directory = tmp_path_factory.mktemp("probe")
        (directory / "probe.c").write_text(text)
        subprocess.run([command, "-o", str(directory / "probe"), str(directory / "probe.c")], check=True)
        lines = subprocess.run([directory / "probe"], check=True, capture_output=True, text=True).stdout.splitlines()
        return {name: int(value) % (1 << 64) for name, value in (line.rsplit(" ", 1) for line in lines)}

    return run


def program(includes: list[str], names: list[str], *, guarded: bool) -> str:
    lines = [f"#include {each}" for each in ["<stddef.h>", "<stdio.h>", "<sys/ioctl.h>", "<sys/mman.h>", *includes]]
    lines.append("int main(void) {")
    for name in names:
        show = f'printf("%s %lld\\n", "{name}", (long long)({name}));'
        lines += [f"#ifdef {name}", show, "#endif"] if guarded else [show]
    return "\n".join([*lines, "}", ""])


def test_the_c_table_is_the_python_table(probe: Callable[[str], dict[str, int]]) -> None:
    expected = constants() | layout()
    assert probe(program([f'"{HEADER}"'], list(expected), guarded=False)) == expected


def test_the_python_table_has_all_of_the_c_table() -> None:
    assert set(re.findall(r"^#define (\w+)", HEADER.read_text(), re.MULTILINE)) <= constants().keys()


def test_the_systems_headers_agree_where_they_know_a_name(probe: Callable[[str], dict[str, int]]) -> None:
    expected = constants()
    known = probe(program(["<linux/userfaultfd.h>"], list(expected), guarded=True))
    assert len(known) > 20
    assert known == {name: expected[name] for name in known}


def test_every_name_says_since_when() -> None:
    for kind in PREFIXES:
        for member in kind:
            assert member.since[0].isdigit()
