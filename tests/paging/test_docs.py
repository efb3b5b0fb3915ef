"""The programs in docs/paging.md and docs/paging-sources.md run, and the contract holds for the store that the latter shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from userfault import paging

DOCUMENT = Path(__file__).parents[2] / "docs" / "paging-sources.md"
TIMEOUT_S = 60


@pytest.mark.usefixtures("can_page")
def test_the_examples_run_and_their_contract_holds(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    function, objects, store, use, contract = blocks
    np.ones((2000, 128), dtype="<f4").tofile(tmp_path / "vectors.f32")
    (tmp_path / "script.py").write_text(function + objects + store + use)
    (tmp_path / "test_store.py").write_text(f"{store}{contract}\n    sizes_bytes, example_count = (30_003,), 10\n")
    run(tmp_path, "script.py")
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_store.py")
    assert re.search(r"^1[5-9] passed in", done, re.MULTILINE), done


def run(directory: Path, *arguments: str) -> str:
    command = ["timeout", "-k", "1", str(TIMEOUT_S), sys.executable, *arguments]
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.usefixtures("can_page")
def test_the_examples_of_the_first_page_run(tmp_path: Path) -> None:
    np.ones((2000, 768), dtype="<f4").tofile(tmp_path / "vectors.f32")
    text = (DOCUMENT.parent / "paging.md").read_text()
    first, ranks, function = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (policy,) = re.findall(r"^```c\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "policy.c").write_text(policy)
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", tmp_path / "policy.so", tmp_path / "policy.c"], check=True)
    (tmp_path / "script.py").write_text(f"{first}{ranks}{function}print(memory.stats())\n")
    printed = run(tmp_path, "script.py")
    assert "1.536e+06 present" in printed
    assert "of 512.0 KiB resident" in printed.splitlines()[-1]
    assert "768." in printed
    assert "of 256.0 KiB resident" in printed


def test_every_method_named_in_the_document_exists() -> None:
    text = (DOCUMENT.parent / "paging.md").read_text()
    names = set(re.findall(r"`(\w+)\(", text)) - {"fork", "madvise", "in_child", "page_fault_injection"}
    assert {"close", "flush", "ensure", "mark", "dirty", "will_need", "working_set", "replay"} <= names
    assert all(hasattr(paging.Region, name) for name in names), names
