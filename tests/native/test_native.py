"""The C core is taken only for what it was built of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from userfault import native

ROOM = Path(native.__file__).parent


def nothing(room: Path) -> None:
    pass


def change(room: Path) -> None:
    with (room / "explore.c").open("a") as file:
        file.write("\n")


def exchange(room: Path) -> None:
    """As long as before."""
    path = room / "explore.c"
    path.write_text(path.read_text().replace(" = 0;", " = 1;", 1))


def strip(room: Path) -> None:
    for path in [*room.glob("*.c"), *room.glob("*.h")]:
        path.unlink()


def remove(room: Path) -> None:
    (room / "_userfault.so").unlink()


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (nothing, ""),
        (strip, ""),
        (change, "is of other C sources"),
        (exchange, "is of other C"),
        (remove, "install a compiler"),
    ],
)
def test_a_core_of_other_sources_is_not_used(tmp_path: Path, do: Callable[[Path], None], says: str) -> None:
    assert native.library() is not None, native.why_missing()
    room = tmp_path / "native"
    shutil.copytree(ROOM, room, ignore=shutil.ignore_patterns("__pycache__"))
    do(room)
    code = "import native; print(native.library() is not None, native.why_missing())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded, _, why = done.stdout.partition(" ")
    assert loaded == str(not says)
    assert says in why and bool(why.strip()) == bool(says)
