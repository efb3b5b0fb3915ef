"""The examples are short and do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES_MAX = 20
TIMEOUT_S = 60


def run(name: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that the example prints."""
    done = subprocess.run(
        ["timeout", "-k", "1", str(TIMEOUT_S), sys.executable, str(EXAMPLES / name), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def code_lines(text: str) -> list[str]:
    """Without the docstring, blank lines and comments."""
    body = text.split('"""', 2)[2]
    return [line for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(code_lines(path.read_text())) <= LINES_MAX


@pytest.mark.parametrize("name", ["copy_on_write_view.py", "lazy_weights.py"])
def test_an_example_that_is_told_nothing_says_what_it_takes(name: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("usage: ")


@pytest.mark.usefixtures("can_page")
def test_a_function_is_a_source() -> None:
    first, second, stats = run("function_as_source.py")
    assert (int(first), int(second)) == (123_456_789**2, 10**8)
    assert stats.startswith("squares: 7.5 GiB in units of 64.0 KiB, ")


@pytest.mark.usefixtures("can_page")
def test_weights_are_fetched_when_they_are_touched(s3: Any) -> None:
    tensors = {"small": np.arange(7, dtype="<i4"), "large": np.arange(2_000_000, dtype="<f4").reshape(2000, 1000)}
    header, at = {}, 0
    for name, tensor in tensors.items():
        kind = {"int32": "I32", "float32": "F32"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values())
    url = s3.put("model.safetensors", body)
    values, stats = run("lazy_weights.py", url, "large", **s3.environment)
    assert values == "(2000, 1000) [0.0, 1.0, 2.0, 3.0] [1999000.0, 1999001.0, 1999002.0, 1999003.0]"
    fetched = stats.split("; in ")[1].split(",")[0]
    assert fetched.endswith("KiB") and float(fetched.split()[0]) < 2000


@pytest.mark.usefixtures("can_page")
def test_an_array_larger_than_memory() -> None:
    first, second = run("array_larger_than_memory.py")
    assert first == "8 GiB, rows 1 and 8192"
    assert int(second.split()[0]) <= 64


@pytest.mark.usefixtures("can_page")
def test_a_copy_on_write_view(tmp_path: Path) -> None:
    file = tmp_path / "data"
    content = np.random.default_rng(1).integers(0, 255, 3_000_000, dtype=np.uint8).tobytes()
    file.write_bytes(content)
    assert run("copy_on_write_view.py", str(file)) == [
        "120 KiB differ from the file",
        "still 255 after leaving memory",
    ]
    assert file.read_bytes() == content
