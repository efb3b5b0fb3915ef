"""A crash at any moment of a flush leaves the old file or the new one, and the next open makes it one of the two."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from userfault import paging
from userfault.paging import PagingError, SourceError, journal
from userfault.paging.pytest_plugin import check, run

OLD = random.Random(1).randbytes(30_000)
NEW = bytearray(OLD)
PIECES = [(0, 4096), (8192, 8192), (28_672, 1328)]
for at, length in PIECES:
    NEW[at : at + length] = random.Random(at + 2).randbytes(length)


def dying_at(number: int) -> Callable[[str], None]:
    left = iter(range(number, -1, -1))

    def step(_name: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def commit(path: Path, step: Callable[[str], object] = lambda _name: None) -> None:
    def read(offset: int, into: bytearray) -> None:
        into[:] = NEW[offset : offset + len(into)]

    fd = os.open(path, os.O_RDWR)
    try:
        journal.commit(str(path), fd, 0, PIECES, read, step)
    finally:
        os.close(fd)


def test_every_moment_of_a_commit(tmp_path: Path) -> None:
    seen = set()
    for number in range(100):
        path = tmp_path / f"file{number}"
        path.write_bytes(OLD)
        ended = run(commit, path, dying_at(number))
        assert ended.signal in (0, signal.SIGKILL), ended.stderr
        journal.recover(str(path))
        assert path.read_bytes() in (OLD, NEW)
        assert not Path(f"{path}{journal.SUFFIX}").exists()
        seen.add(path.read_bytes() == OLD)
        if not ended.signal:
            break
    assert number > 8
    assert seen == {True, False}


def test_every_moment_of_a_recovery(tmp_path: Path) -> None:
    for number in range(100):
        path = tmp_path / f"file{number}"
        path.write_bytes(OLD)
        durable = run(commit, path, dying_at(5))
        assert durable.signal == signal.SIGKILL
        ended = run(journal.recover, str(path), dying_at(number))
        assert journal.recover(str(path)) == bool(ended.signal)
        assert path.read_bytes() == NEW
        if not ended.signal:
            break
    assert number > 3


@pytest.mark.parametrize("keep", range(0, 13_000, 1000))
def test_a_torn_journal_is_thrown_away(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    run(commit, path, dying_at(5))
    torn = Path(f"{path}{journal.SUFFIX}")
    whole = torn.read_bytes()
    torn.write_bytes(whole[:keep])
    assert not journal.recover(str(path))
    assert path.read_bytes() == OLD
    torn.write_bytes(whole[:keep] + bytes([whole[keep] ^ 1]) + whole[keep + 1 :])
    assert not journal.recover(str(path))
    assert path.read_bytes() == OLD


def test_another_name_of_the_file_finds_its_journal(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "elsewhere" / "link"
    path.write_bytes(OLD)
    link.parent.mkdir()
    link.symlink_to(path)
    assert run(commit, link, dying_at(5)).signal == signal.SIGKILL
    assert journal.recover(str(path))
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("change", ["replaced", "longer", "shorter"])
def test_a_journal_is_not_applied_to_another_file(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    assert run(commit, path, dying_at(5)).signal == signal.SIGKILL
    now = {"replaced": b"n" * len(OLD), "longer": OLD + b"x", "shorter": OLD[:-1]}[change]
    if change == "replaced":
        other = tmp_path / "other"
        other.write_bytes(now)
        other.rename(path)
    else:
        path.write_bytes(now)
    with pytest.raises(PagingError, match=r"was changed since then.*delete .*-journal to keep the file"):
        journal.recover(str(path))
    assert path.read_bytes() == now
    Path(f"{path}{journal.SUFFIX}").unlink()
    assert not journal.recover(str(path))


@pytest.mark.skipif(os.getuid() != 0, reason="to become nobody: run the tests as root")
def test_a_journal_that_can_not_be_applied_is_loud(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    run(commit, path, dying_at(5))

    def child() -> None:
        os.setuid(65534)
        with pytest.raises(PagingError, match="was being written"):
            journal.recover(str(path))

    check(child)


@pytest.mark.usefixtures("can_page")
def test_a_region_flushes_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def child(number: int) -> None:
        commit_file: Callable[..., None] = journal.commit
        monkeypatch.setattr(journal, "commit", lambda *args: commit_file(*args, dying_at(number)))
        memory = paging.open(path, access="r+", unit="4 KiB", resident="8 KiB")
        for at, length in PIECES:
            memory[at : at + length] = bytes(NEW[at : at + length])
        memory.flush()

    for number in range(100):
        path.write_bytes(OLD)
        ended = run(child, number)
        with paging.open(path) as memory:
            assert memory[:] in (OLD, NEW)
            assert memory[:] == path.read_bytes()
        if not ended.signal:
            break
    assert path.read_bytes() == NEW


@pytest.mark.usefixtures("can_page")
def test_what_could_not_be_flushed_stays_to_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    def child() -> None:
        with paging.open(path, access="r+", unit="4 KiB", resident="8 KiB") as memory:
            memory[0] = OLD[0] ^ 1
            with monkeypatch.context() as patch:
                patch.setattr(journal, "commit", full)
                with pytest.raises(SourceError, match="No space left"):
                    memory.flush()
            assert path.read_bytes() == OLD
            memory.flush()
            assert path.read_bytes()[0] == OLD[0] ^ 1

    check(child)
