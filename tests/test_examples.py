"""The examples do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from userfault.conform.needs import NEEDS, missing

EXAMPLES = Path(__file__).parents[1] / "examples"


def no_arguments(directory: Path) -> list[str]:
    return []


def file(directory: Path) -> list[str]:
    (directory / "pixels").write_bytes(bytes(300_000))
    return [str(directory / "pixels")]


def weights(directory: Path) -> list[str]:
    """A safetensors file."""
    head = json.dumps({"layer": {"dtype": "I32", "shape": [2, 4], "data_offsets": [0, 32]}}).encode()
    data = b"".join(number.to_bytes(4, "little") for number in range(8))
    (directory / "model").write_bytes(len(head).to_bytes(8, "little") + head + data)
    return [str(directory / "model"), "layer"]


CASES = {
    "array_larger_than_memory": (no_arguments, "8 GiB, rows 1 and 8192"),
    "copy_on_write_view": (file, "12 KiB differ from the file\nstill 255 after leaving memory"),
    "function_as_source": (no_arguments, f"{123_456_789**2}\n{10**8}"),
    "lazy_weights": (weights, "(2, 4) [0, 1, 2, 3] [4, 5, 6, 7]"),
}


def test_every_example_is_here() -> None:
    assert {each.stem for each in EXAMPLES.glob("*.py")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_an_example_prints_what_it_promises(
    name: str, tmp_path: Path, cannot_run: Callable[[str, str], NoReturn]
) -> None:
    if problem := missing("userfaultfd"):
        cannot_run(problem, NEEDS["userfaultfd"].remedy)
    prepare, wanted = CASES[name]
    script = EXAMPLES / f"{name}.py"

    def example(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60)

    arguments = prepare(tmp_path)
    done = example(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(wanted)
    if arguments:
        refused = example()
        assert refused.returncode == 1 and refused.stderr.startswith("usage: ")
