"""Another process's regions can be looked at, and their numbers are that process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from userfault import paging
from userfault.cli import cli
from userfault.paging import PagingError
from userfault.paging.inspect import stats_of_process

pytestmark = pytest.mark.usefixtures("can_page")

PROGRAM = """
from userfault import paging
memory = paging.open(bytes(100_000), unit="4 KiB", resident="16 KiB", prefetch_units=0, name="looked at")
other = paging.open(None, size_bytes=1 << 20, access="c", name="another")
for at in range(0, 40_960, 4096):
    memory[at]
print("ready", flush=True)
input()
"""


@contextmanager
def program() -> Iterator[int]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.write("\n")


def test_another_processes_regions() -> None:
    with program() as pid:
        one, other = sorted(stats_of_process(pid), key=lambda stats: stats.name, reverse=True)
        assert (one.name, one.pid, one.fault_count, one.budget_bytes) == ("looked at", pid, 10, 16_384)
        assert 0 < one.resident_bytes <= 16_384
        assert one.fault_us_p50 > 0
        assert (other.name, other.fault_count) == ("another", 0)
        done = CliRunner().invoke(cli, ["page", "stat", str(pid)])
        assert done.exit_code == 0
        assert "looked at: 97.7 KiB in units of 4.0 KiB" in done.output
        done = CliRunner().invoke(cli, ["page", "stat", str(pid), "--json"])
        assert {json.loads(line)["name"] for line in done.output.splitlines()} == {"looked at", "another"}


def test_ones_own_regions() -> None:
    with paging.open(bytes(5000), name="mine") as memory:
        assert memory[0] == 0
        assert next(stats for stats in stats_of_process(os.getpid()) if stats.name == "mine").fault_count == 1
    assert not [stats for stats in stats_of_process(os.getpid()) if stats.name == "mine"]


def test_a_process_without_regions() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert stats_of_process(process.pid) == []
        done = CliRunner().invoke(cli, ["page", "stat", str(process.pid)])
        assert (done.exit_code, "no region" in done.output) == (1, True)
        assert process.stdin
        process.stdin.close()


def test_no_such_process() -> None:
    with pytest.raises(PagingError, match="no process"):
        stats_of_process(1 << 30)
    assert CliRunner().invoke(cli, ["page", "stat", str(1 << 30)]).exit_code == 2
