"""A test that skips by itself fails where every test is asked for, as in CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = """
import pytest

def test_by_itself():
    pytest.skip("no IPv6 loopback here")

@pytest.mark.skipif(True, reason="to become nobody: run the tests as root")
def test_by_a_mark():
    pass

@pytest.mark.skipif(True, reason="half a minute each: set USERFAULT_LONG=1")
def test_by_request():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False
"""


def test_a_skip_is_a_failure_where_every_test_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    environment = {"PATH": "/usr/bin:/bin", "USERFAULT_KERNEL": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    said = done.stdout
    assert said.splitlines()[-1].startswith("1 failed, 1 skipped, 1 xfailed, 2 errors"), said
    for why in ("no IPv6 loopback here", "to become nobody: run the tests as root", "No module named 'no_such_module'"):
        assert f"{why} (USERFAULT_KERNEL=1 asks for this test)" in said
