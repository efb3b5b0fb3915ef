"""The Python in docs/kernel.md, and what README.md shows of the kernel room, runs."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from userfault.kernel.child import call
from userfault.kernel.uapi import Feature
from userfault.kernel.userfaultfd import supported_features

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = BLOCK.findall((ROOT / "docs" / "kernel.md").read_text())
README = [text for text in BLOCK.findall((ROOT / "README.md").read_text()) if "userfault.kernel" in text]


def _printed(example: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(example, "example", "exec"), {"__name__": "example"})
    return output.getvalue()


@pytest.mark.parametrize("example", EXAMPLES + README, ids=lambda text: text.splitlines()[0])
def test_an_example_runs(example: str, cannot_run: Callable[[str, str], NoReturn]) -> None:
    if not supported_features() & Feature.MOVE:
        cannot_run("no UFFDIO_MOVE", "run on Linux 6.8 or newer")

    printed = call(lambda: _printed(example), deadline_s=90)
    assert bool(printed) == ("print(" in example)


def test_there_are_examples() -> None:
    assert (len(EXAMPLES), len(README)) == (8, 1)


def test_the_readme_prints_what_it_says(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if os.geteuid() or not supported_features() & Feature.MOVE:
        cannot_run("page frames, or UFFDIO_MOVE, are not to be had", "run as root on Linux 6.8 or newer")
    said = re.findall(r"# (.*)$", README[0], re.MULTILINE)
    assert call(lambda: _printed(README[0])).splitlines() == said
