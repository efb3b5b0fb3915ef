"""Model and running kernel agree; what makes them part is found, and made short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from userfault.conform import operations, report, words
from userfault.conform.compare import Divergence
from userfault.conform.drive import ConformError, Progress, check, profile_named, run, sequence_of, shrunk
from userfault.conform.generate import MOVES, PROFILES
from userfault.conform.operations import Op
from userfault.kernel.agent import SYSCALL, Agent, Command
from userfault.model import userfaultfd

PAGE = 4096


def can_run() -> str:
    """Why the kernel can't be asked here; empty if it can."""
    if os.geteuid() != 0:
        return "only root sees page frames (/proc/kpagecount): run the tests as root"
    for needed in ("/proc/kpagecount", "/proc/kpageflags", "/dev/userfaultfd"):
        if not Path(needed).exists():
            return f"there is no {needed}: run the tests on a kernel with userfaultfd and CONFIG_PROC_PAGE_MONITOR"
    return ""


@pytest.fixture(autouse=True)
def kernel() -> None:
    reason = can_run()
    if reason and os.environ.get("USERFAULT_KERNEL") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", list(PROFILES))
def test_model_and_kernel_agree(name: str) -> None:
    for each in run(name, seed=7, operations=1000):
        assert not isinstance(each, Divergence), "\n".join(report.lines(each, PROFILES[name].window.first))


def test_a_sequence_depends_on_profile_seed_and_number_only() -> None:
    assert sequence_of(MOVES, 1, 5) == sequence_of(MOVES, 1, 5)
    assert sequence_of(MOVES, 1, 5) != sequence_of(MOVES, 2, 5)
    assert report.from_json(report.to_json(sequence_of(MOVES, 1, 5))) == sequence_of(MOVES, 1, 5)


def test_a_divergence_is_found_shrunk_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfaultfd, "linear_page_index", lambda vma, addr: 0)
    monkeypatch.setattr(userfaultfd, "ENOENT", 5)
    found = [each for each in run("moves", 1, 5000) if isinstance(each, Divergence)]
    assert len(found) == 1
    short = shrunk(MOVES, found[0])
    assert short.what == "move: result"
    assert len(short.sequence) <= 3
    text = "\n".join(report.lines(short, MOVES.window.first))
    assert "model:  -5, output -5" in text
    assert "kernel: -2, output -2" in text
    monkeypatch.undo()
    assert check(MOVES, short.sequence) == len(short.sequence)


def test_a_run_is_resumed_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = Progress.load(path, "moves", 3)
    for _ in run("moves", 3, 300, progress=first):
        first.save(path)
    again = Progress.load(path, "moves", 3)
    assert again == first and len(again.done) == 3
    assert list(run("moves", 3, 300, progress=again)) == []
    with pytest.raises(ConformError, match="is of profile moves and seed 3"):
        Progress.load(path, "moves", 4)
    with pytest.raises(ConformError, match="there is no profile"):
        profile_named("nothing")


def test_a_hung_operation_meets_its_deadline() -> None:
    agent = Agent(MOVES.window.start, 8, 8)
    pause = Command(SYSCALL, 0, 34)
    result = agent.run([operations.command(Op(0, "load", (0,)), MOVES.window.base), pause], lambda: None, seconds=0.2)
    assert (result.hung, result.done) == (True, 1)
    assert result.answers[0].signal == 11


def test_the_agent_sees_what_pagemap_and_kpageflags_say() -> None:
    first = MOVES.window.first * PAGE
    sequence = [
        Op(0, "mmap", (first, 3 * PAGE, 3)),
        Op(0, "store", (first, 1)),
        Op(0, "load", (first + PAGE,)),
    ]
    agent = Agent(MOVES.window.start, 8, 8)
    result = agent.run([operations.command(each, MOVES.window.base) for each in sequence], lambda: None, seconds=5)
    (seen,) = result.records[-1]
    assert seen.vmas == ((0, 3, 3),)
    assert [words.describe(word) for word in seen.words[:4]] == [
        "PX:c1:ANON,AE #1 [WRITTEN,PRESENT]",
        "P:c0:ZERO #2 [WRITTEN,PRESENT,PFNZERO]",
        "- [WRITTEN]",
        "-",
    ]
    assert seen.contents[0] == agent.hash_page((1).to_bytes(8, "little"))
    assert seen.contents[1] == 0
