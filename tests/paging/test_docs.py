"""The Python in docs/paging-sources.md runs, and the contract holds for the store that it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "paging-sources.md"
TIMEOUT_S = 60


@pytest.mark.usefixtures("can_page")
def test_the_examples_run_and_their_contract_holds(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    function, store, use, contract = blocks
    (tmp_path / "script.py").write_text(function + store + use)
    (tmp_path / "test_store.py").write_text(f"{store}{contract}\n    sizes_bytes, example_count = (30_003,), 10\n")
    run(tmp_path, "script.py")
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_store.py")
    assert re.search(r"^1[5-9] passed in", done, re.MULTILINE), done


def run(directory: Path, *arguments: str) -> str:
    command = ["timeout", "-k", "1", str(TIMEOUT_S), sys.executable, *arguments]
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout
