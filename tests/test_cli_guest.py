"""Commands in a guest: what is left goes on in another one where it died, and what it died of is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from userfault.cli import conform
from userfault.cli.guest import DEATHS, EXIT_BOUND, Guest, Stage, alone
from userfault.cli.run import raced_there
from userfault.conform.panics import PANICS
from userfault.conform.profiles import PROFILES
from userfault.kernel import guest
from userfault.kernel.errors import KernelError
from userfault.kernel.guest import Ended
from userfault.litmus import load

PANIC = "Kernel panic - not syncing: sysrq triggered crash"
F19 = "Corrupted page table at address 7f782c000000"
FINDINGS = Path(__file__).parents[1] / "findings"
Script = Callable[..., list[list[list[str]]]]


def died(complaint: str, *statuses: int) -> Ended:
    why = "the guest's kernel died." if complaint else "it said nothing for 300 s"
    return Ended(statuses, "", "", "tcg", 1.0, why, complaint)


def lived(*statuses: int) -> Ended:
    return Ended(statuses, "", "", "tcg", 1.0)


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Called with what each guest says and how it ends; the list that it returns has the commands of each, in the end."""

    def script(*boots: tuple[Sequence[str], Ended]) -> list[list[list[str]]]:
        commands: list[list[list[str]]] = []

        def run(kernel: Path, given: list[list[str]], show: Callable[[str], None], **rest: Any) -> Ended:
            said, ended = boots[len(commands)]
            commands.append(given)
            for line in said:
                show(line)
            return ended

        monkeypatch.setattr(guest, "run", run)
        return commands

    return script


def several(*names: str) -> Stage:
    return Stage(names, lambda parts: ["run", *parts], lambda line: line.removeprefix("ended "))


def test_a_line_that_a_death_cut_off_is_shown_as_it_is(boots: Script, capsys: pytest.CaptureFixture[str]) -> None:
    stage = conform.profiles({"operations": 0, "name": "moves", "seeds": "1"}, ["--profile", "moves"])
    half = '{"profile": "moves", "se'
    boots(([half], died(PANIC)))
    assert go(stage) == EXIT_BOUND
    assert half in capsys.readouterr().out
    boots((['{"test": "move+mo'], died(PANIC)))
    assert raced_there(Guest(Path("k"), None, "tcg", 60.0, 30.0), [], [], ["move+move"], False) == EXIT_BOUND


def test_a_guest_that_does_not_boot_is_not_said_to_have_no_surprise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: object, **rest: object) -> Ended:
        raise KernelError("there is no qemu")

    monkeypatch.setattr(guest, "run", run)
    assert raced_there(Guest(Path("k"), None, "tcg", 60.0, 30.0), [], [], ["move+move"], False) == 2
    assert "no surprise" not in capsys.readouterr().out


def go(*stages: Stage, as_json: bool = False) -> int:
    return Guest(Path("k"), None, "tcg", 60.0, 30.0).run(stages, as_json=as_json)


def test_a_panic_is_told_with_its_part_and_the_rest_is_done(boots: Script, capsys: pytest.CaptureFixture[str]) -> None:
    commands = boots((["ended a"], died(PANIC, 0)), (["ended c"], lived(0)))
    assert go(alone("probe"), several("a", "b", "c")) == EXIT_BOUND
    assert commands == [[["probe"], ["run", "a", "b", "c"]], [["run", "c"]]]
    out, err = capsys.readouterr()
    assert f"panicked in b: {PANIC}" in out.splitlines()
    assert "the guest of k did not end well" in err


@pytest.mark.parametrize(
    ("part", "complaint", "code"),
    [
        ("R25-zero", F19, 0),
        ("R25-zero", PANIC, EXIT_BOUND),
        ("move+move", F19, EXIT_BOUND),
        ("R25-zero", "", EXIT_BOUND),
    ],
)
def test_a_known_panic_is_expected_where_it_is_known(
    part: str, complaint: str, code: int, boots: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    boots(([], died(complaint)), (["ended last"], lived(0)))
    assert go(several(part, "last")) == code
    out = capsys.readouterr().out
    assert ("it is known (F-19)" in out) == (code == 0)
    assert out.startswith(f"panicked in {part}: " if complaint else f"did not go on in {part}: it said nothing")


def test_a_death_in_json_is_a_row(boots: Script, capsys: pytest.CaptureFixture[str]) -> None:
    boots(([], died(F19)))
    assert go(several("R25-zero"), as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"part": "R25-zero", "panicked": F19, "known": "F-19"}


def test_what_ended_before_a_death_keeps_its_exit_code(boots: Script) -> None:
    boots(([], died(F19, 1)), (["ended b"], lived(0)))
    assert go(alone("conform"), several("R25-zero", "b")) == 1


def test_a_mismatch_wins_over_what_could_not_be_done(boots: Script) -> None:
    boots((["ended a"], died(PANIC, 1)), (["ended c"], lived(0)))
    assert go(alone("conform"), several("a", "b", "c")) == 1
    boots(*[([], died(PANIC, 1))], *[([], died(PANIC))] * (DEATHS + 1))
    assert go(alone("conform"), several(*"abcdef")) == 1
    boots(([], lived(2, 1, 0)))
    assert go(*map(alone, "abc")) == 1
    boots(([], lived(2, -9, 0)))
    assert go(*map(alone, "abc")) == -9


def test_a_death_after_the_last_part_is_none_of_its_parts(boots: Script, capsys: pytest.CaptureFixture[str]) -> None:
    boots((["ended a", "ended b"], died(PANIC)))
    assert go(several("a", "b")) == EXIT_BOUND
    assert "panicked in the end of run: " in capsys.readouterr().out


def test_guests_that_only_die_are_not_booted_for_ever(boots: Script, capsys: pytest.CaptureFixture[str]) -> None:
    commands = boots(*[([], died(PANIC))] * DEATHS)
    assert go(several(*"abcdef")) == EXIT_BOUND
    assert len(commands) == DEATHS
    assert "not done: d, e, f" in capsys.readouterr().err


def test_an_output_that_is_judged_here_counts_only_where_it_is_whole(boots: Script) -> None:
    judged = Stage(("a", "b"), lambda parts: ["run", *parts], lambda line: line, judges=False)
    boots((["a", "b"], lived(1)))
    assert go(judged) == 0
    boots((["a"], lived(2)))
    assert go(judged) == 2


def test_a_profile_is_over_with_its_last_seed() -> None:
    asked = {"operations": 20_000, "name": "moves", "seeds": "1..2"}
    stage = conform.profiles(asked, ["--seed", "1..2"])
    assert stage.parts == tuple(PROFILES)
    assert stage.command(stage.parts)[-3:] == [",".join(PROFILES), "--ops", "480"]
    # One of several, with its share of the operations, though it is alone.
    assert stage.command(("huge",)) == ["conform", "--seed", "1..2", "--profile", "huge,", "--ops", "480"]
    assert conform.names_of("huge,") == ["huge"]
    said = "moves: 480 operations agree (4 sequences, seed %d), 133 a second"
    assert [stage.ended(said % 1), stage.ended(said % 2)] == ["", "moves"]
    assert stage.ended("swaps: skipped: no swap device") == "swaps"
    assert stage.ended('{"profile": "forks", "seed": 2, "operations": 480}') == "forks"
    assert stage.ended("moves: parts after 7 operations (errno), is made short") == ""
    alone_ = conform.profiles(asked | {"name": "huge"}, ["--profile", "huge", "--ops", "60", "--rounds", "9"])
    assert alone_.command(("huge",)) == ["conform", "--profile", "huge", "--ops", "20000"]


def test_every_known_panic_names_tests_or_profiles_and_a_finding() -> None:
    for each in PANICS:
        assert (FINDINGS / f"{each.finding}.md").is_file()
        for part in each.parts:
            assert part in PROFILES or load(part).name == part
