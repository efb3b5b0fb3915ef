"""Settings of the machine are borrowed one at a time and given back, whatever happens."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from userfault.cli import end_as_interrupted
from userfault.kernel.child import Child, ChildDied, call
from userfault.kernel.errors import KernelError, Unavailable
from userfault.kernel.machine import Machine, machine, setting, swap_devices


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Stands for a file of sysfs."""
    path = tmp_path / "setting"
    path.write_text("old\n")
    return path


def test_settings_come_back(tmp_path: Path, file: Path) -> None:
    with machine(state=tmp_path) as held:
        assert held.set(file, "new") == "old"
        assert held.set(file, "newer") == "new"
        assert setting(file) == "newer"
    assert setting(file) == "old"


def test_settings_come_back_after_an_error(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ZeroDivisionError), machine(state=tmp_path) as held:
        held.set(file, "new")
        raise ZeroDivisionError
    assert setting(file) == "old"


def test_what_somebody_else_changes_comes_back(tmp_path: Path, file: Path) -> None:
    with machine(state=tmp_path) as held:
        held.keep(file)
        file.write_text("theirs")
    assert setting(file) == "old"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_settings_come_back_after_an_interruption_and_another_one(how: int, tmp_path: Path, file: Path) -> None:
    def slowly_undone() -> None:
        end_as_interrupted()
        undo = Machine._undo_down_to

        def interrupted_again(self: Machine, mark: int) -> None:
            os.kill(os.getpid(), how)
            undo(self, mark)

        with machine(state=tmp_path) as held:
            held.set(file, "new")
            held._undo_down_to = interrupted_again.__get__(held)  # type: ignore[method-assign]
            os.kill(os.getpid(), how)

    with pytest.raises(KeyboardInterrupt):
        call(slowly_undone)
    assert setting(file) == "old"
    assert not (tmp_path / "journal").exists()


def test_the_next_holder_undoes_what_a_killed_one_left(tmp_path: Path, file: Path) -> None:
    def dies() -> None:
        with machine(state=tmp_path) as held:
            held.set(file, "new")
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ChildDied):
        call(dies)
    assert setting(file) == "new"
    with machine(state=tmp_path):
        assert setting(file) == "old"
    assert not (tmp_path / "journal").exists()


def test_a_child_neither_undoes_nor_keeps_what_its_parent_borrowed(tmp_path: Path, file: Path) -> None:
    borrowed = machine(state=tmp_path)
    borrowed.__enter__().set(file, "new")

    def child() -> Iterator[str]:
        borrowed.__exit__(None, None, None)
        yield setting(file)

    with Child(child) as alive:
        assert alive.step() == "new"
        borrowed.__exit__(None, None, None)
        assert setting(file) == "old"
        # The child is still there.
        with machine(state=tmp_path, timeout_s=0):
            pass


def test_a_second_holder_waits_and_then_says_for_whom(tmp_path: Path) -> None:
    with machine(state=tmp_path):
        message = call(lambda: _refused(tmp_path))
    assert f"process {os.getpid()} has held" in message
    with machine(state=tmp_path, timeout_s=0):
        pass


def test_whoever_waits_says_so_once_and_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userfault.kernel.machine.SAID_AFTER_S", 0.05)
    with machine(state=tmp_path):
        told = call(lambda: _told(tmp_path))
    assert len(told) == 1
    assert f"waits up to 0.2 s for process {os.getpid()}" in told[0]


def _told(state: Path) -> list[str]:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("userfault.kernel.machine").addHandler(handler)
    with pytest.raises(Unavailable), machine(state=state, timeout_s=0.2):
        pass
    return told


def _refused(state: Path) -> str:
    try:
        with machine(state=state, timeout_s=0.05):
            return "not refused"
    except Unavailable as error:
        return str(error)


def test_the_choice_in_brackets_is_the_value(tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert setting(tmp_path / "enabled") == "madvise"
    with pytest.raises(Unavailable, match="can't be read"):
        setting(tmp_path / "none")


def test_what_can_not_be_put_back_is_reported_and_the_rest_is_put_back(tmp_path: Path, file: Path) -> None:
    gone = tmp_path / "directory" / "gone"
    gone.parent.mkdir()
    gone.write_text("1")
    with pytest.raises(KernelError, match="directory/gone"), machine(state=tmp_path) as held:
        held.set(file, "new")
        held.set(gone, "2")
        gone.unlink()
        gone.parent.rmdir()
    assert setting(file) == "old"


@pytest.mark.parametrize("kind", ["zram", "file"])
def test_a_private_swap_comes_and_goes(
    kind: str, held: Machine, cannot_run: Callable[[str, str], NoReturn], tmp_path: Path
) -> None:
    before = swap_devices()
    try:
        swap = held.private_swap(8 << 20, kinds=(kind,))
    except Unavailable as error:
        cannot_run(error.reason, error.remedy)
    assert swap.kind == kind and swap.path in [path for path, _, _ in swap_devices()]
    # Undone as a later holder would, from the journal.
    later = Machine(tmp_path / "journal")
    later._undo = json.loads(held._journal.read_text())
    later._undo_down_to(0)
    assert swap_devices() == before and not swap.path.exists()


def test_without_any_way_to_swap_each_reason_is_given(tmp_path: Path) -> None:
    with machine(state=tmp_path) as held, pytest.raises(Unavailable, match="no swap device could be made"):
        held.private_swap(kinds=())
    with machine(state=tmp_path) as held, pytest.raises(KernelError, match="needs at least"):
        held.private_swap(1)


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room in "), (errno.EACCES, "run as root")])
def test_why_nothing_can_be_kept_is_said(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(Unavailable) as refused, machine(state=tmp_path / "state"):
        pass
    assert refused.value.remedy.startswith(remedy)
