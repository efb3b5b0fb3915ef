"""The command: exit codes, JSON, replay."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest
from click.testing import CliRunner, Result

from userfault.check import native
from userfault.check.result import Options
from userfault.cli import cli, jobs
from userfault.litmus import load
from userfault.model.era import ERAS

COMMAND = [sys.executable, "-c", "from userfault.cli import main; main()"]


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


def test_a_hole_is_expected_and_shown() -> None:
    result = run("check", "S1", "--era", "v3.10+seed")
    assert result.exit_code == 0
    assert "broken: walk_is_complete" in result.output
    assert "1 checked" in result.output


def test_what_brings_the_kernel_down_is_shown_before_a_shorter_run_that_only_surprises() -> None:
    assert "\nS3 on v3.10+seed\n" in run("check", "move+dontneed-tables", "S3").output
    assert "\nmove+dontneed-tables on v6.18\n" in run("check", "move+dontneed-tables", "guard+load").output


def test_json_is_one_object_a_line_with_the_documented_keys() -> None:
    result = run("check", "S3", "--json")
    keys = {"test", "era", "mutant", "verdict", "property", "states", "transitions", "seconds", "steps", "replay"}
    for line in result.output.splitlines():
        row = json.loads(line)
        assert keys | {"expected"} <= set(row)
        assert row["verdict"] in ("holds", "violated", "bound")


def test_a_replay_string_reproduces_the_trace() -> None:
    row = json.loads(run("check", "S4", "--era", "v3.10+seed", "--json").output)
    replayed = run("replay", row["replay"])
    assert replayed.exit_code == 0
    assert "broken: page_is_linear" in replayed.output


def test_a_surprise_a_usage_error_and_a_bound_have_their_codes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.litmus"
    wrong.write_text(load("S1").text.replace("v6.8       holds", "v6.8       violated walk_is_complete"))
    surprise = run("check", str(wrong), "--era", "v6.8")
    assert surprise.exit_code == 1
    assert "UNEXPECTED" in surprise.output
    assert run("check", "nonesuch").exit_code == 2
    assert run("check", "S1", "--era", "v9").exit_code == 2
    assert run("replay", "rubbish").exit_code == 2
    for schedule in ("0x0", "9x0", "0x3.9x0"):
        nothing = run("replay", f"S1@v6.8:{schedule}")
        assert nothing.exit_code == 2
        assert "no step" in nothing.output
    bound = run("check", "R9-movers", "--era", "v6.8", "--max-states", "50")
    assert bound.exit_code == 3
    assert "bound" in bound.output
    assert "holds" not in bound.output


@pytest.mark.parametrize(
    ("tests", "asked", "workers"), [(["S1"], [], 2), (["S1"], ["--jobs", "1"], 1), (["S1", "S3"], [], 1)]
)
def test_the_cores_go_to_the_tests_or_else_to_the_one_search(
    tests: list[str], asked: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform = jobs.perform

    def note(job: jobs.Job, options: Options, engine: str) -> jobs.Outcome:
        return replace(perform(job, options, engine), found=f"{options.threads} workers")

    monkeypatch.setattr(jobs, "perform", note)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    done = run("check", *tests, "--era", "v6.8", "--json", *asked)
    given = [json.loads(line)["found"] for line in done.output.splitlines()]
    assert given == [f"{workers} workers"] * len(tests)


def test_who_interrupts_a_check_does_not_wait_for_it() -> None:
    started = subprocess.Popen([*COMMAND, "check", "--matrix", "--jobs", "2"], stdout=PIPE, stderr=PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline().startswith("matrix/")
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "interrupted" in err
    assert "checked" not in out


@pytest.mark.parametrize("args", [("litmus", "show", "S4"), ("--help",)])
def test_output_that_can_not_be_written_is_said(args: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *args], stdout=full, stderr=PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "userfault: the output could not be written: No space left on device\n"


@pytest.mark.parametrize("args", [("check", "--nonesuch"), ("nonesuch",), ("--nonesuch",), ("check", "nonesuch"), ()])
def test_a_wrong_use_is_one_where_nobody_can_be_told(args: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([*COMMAND, *args], stderr=full).returncode == 2


@pytest.mark.parametrize("args", [("check", "S4"), ("check", "S1", "S3", "--jobs", "2"), ("conform", "--ops", "10")])
def test_where_nothing_can_be_started_that_is_said(args: tuple[str, ...]) -> None:
    # Another user is limited; the files are root's still.
    limited = """
import ctypes, os, resource
if not os.geteuid():
    os.setresuid(1_000_000 + os.getpid(), 1_000_000, 0)
    ctypes.CDLL(None).setfsuid(0)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
from userfault.cli import main
main()"""
    done = subprocess.run([sys.executable, "-c", limited, *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("userfault") and done.stderr.count("\n") == 1
    assert "no process or thread can be started" in done.stderr and "`ulimit -u`" in done.stderr


def test_whoever_stops_reading_learns_nothing_of_the_verdicts() -> None:
    with subprocess.Popen([*COMMAND, "check", "S4", "S3", "--jobs", "1"], stdout=PIPE, stderr=PIPE) as started:
        assert started.stdout is not None and started.stderr is not None
        started.stdout.readline()
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 141


def test_what_is_closed_changes_no_verdict() -> None:
    closed = f"{shlex.join([*COMMAND, 'check', 'S4', '--json', '--jobs', '1'])} <&- 2>&-"
    done = subprocess.run(closed, shell=True, stdout=PIPE, text=True)
    assert done.returncode == 0 and done.stdout.startswith('{"test": "S4"')


@pytest.mark.parametrize("verb", ["check", "conform"])
def test_what_may_have_no_end_is_not_resumed(verb: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in ("/dev/full", str(pipe)):
        refused = run(verb, "--resume", path)
        assert refused.exit_code == 2
        assert f"{path} is no plain file" in refused.output


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("check", "--mutant", ""), "--mutant has no name"),
        (("model", "--section", "Z.9"), "there is no section 'Z.9'"),
        (("litmus", "list", "nonesuch", "nor this"), "nothing in the library has 'nonesuch' or 'nor this'"),
        (("litmus", "list", "nonesuch", "--mutants"), "nothing in the library has 'nonesuch'"),
        (("run", "S1", "--seconds", "nan"), "nan is no duration"),
        (("run", "S1", "--seconds", "-1"), "-1 is no duration"),
        (("check", ""), "there is no test ''"),
        (("check", "/dev/zero"), "/dev/zero: is longer than 1 MiB"),
        (("run", "/"), "/: can't be read: Is a directory"),
        (("rmap", "0", "[heap]"), "0 is not in the range"),
        (("rmap", "1", "0", "--watch", "--interval", "inf"), "inf is no duration"),
        (("conform", "--ops", "0"), "--ops"),
        (("conform", "--jobs", "-1"), "--jobs"),
        (("conform", "--replay", "[1,2]"), "operation 0 is 1: expected"),
        (("conform", "--replay", "["), "this is no sequence"),
    ],
)
def test_what_can_not_be_meant_is_refused(args: tuple[str, ...], why: str) -> None:
    refused = run(*args)
    assert refused.exit_code == 2, refused.output
    assert why in refused.output


@pytest.mark.parametrize("args", [("litmus", "list"), ("litmus", "list", "--mutants")])
def test_the_lists_are_there(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 0
    assert len(result.output.splitlines()) >= 2


def test_the_slow_engine_serves_where_the_native_one_is_missing() -> None:
    result = run("check", "S4", "--engine", "python")
    assert result.exit_code == 0
    assert "python engine" in result.output


def test_a_missing_core_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_missing", lambda: "there is no core")
    result = run("check", "S4")
    assert result.exit_code == 0
    assert result.output.count("there is no core") == 1
    assert "python engine" in result.output


def test_a_sample_of_the_matrix_says_what_it_leaves_out(tmp_path: Path) -> None:
    journal = tmp_path / "outcomes.jsonl"
    args = (
        "check",
        "--matrix",
        "--era",
        "v3.10",
        "--sample",
        "3",
        "--resume",
        str(journal),
        "--jobs",
        "1",
    )
    first = run(*args)
    assert first.exit_code == 0
    assert "3 checked" in first.output
    assert "tests of the matrix were not run" in first.output
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    journal.write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    again = run(*args)
    assert again.exit_code == 0
    assert "2 of them are from" in again.output
    assert journal.read_text().splitlines()[:2] == lines[:2]
    assert len(journal.read_text().splitlines()) == 3


def test_what_another_model_or_a_smaller_bound_said_is_checked_again(tmp_path: Path) -> None:
    journal = tmp_path / "outcomes.jsonl"
    args = ("check", "R31-hole", "--era", "v6.8", "--resume", str(journal), "--jobs", "1")
    assert run(*args, "--max-states", "5").exit_code == 3
    assert "are from" not in run(*args).output
    assert "1 of them are from" in run(*args).output
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["bound", "holds"]
    journal.write_text(json.dumps(rows[1] | {"asked": "another"}) + "\n")
    again = run(*args)
    assert again.exit_code == 0
    assert "1 outcomes of another version" in again.output and "are from" not in again.output


def test_parts_share_the_tests_among_them() -> None:
    parts = [
        run("check", "R31-hole", "R31-exist", "R2-move", "--part", part, "--json").output for part in ("1/2", "2/2")
    ]
    names = [{json.loads(line)["test"] for line in output.splitlines()} for output in parts]
    assert names == [{"R31-hole", "R2-move"}, {"R31-exist"}]
    assert run("check", "--part", "3/2").exit_code == 2


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not a journal\n")
    refused = run("check", "S4", "--resume", str(other))
    assert refused.exit_code == 2
    assert "is no file of outcomes" in refused.output
    assert run("check", "--sample", "3").exit_code == 2


def test_the_seed_changes_two_walkers_and_leaves_the_others_alone() -> None:
    result = run("model", "--diff", "v3.10", "v3.10+seed")
    assert result.exit_code == 0
    heads = [line.split(":")[0] for line in result.output.splitlines() if "lines more" in line]
    assert heads == ["page_lock_anon_vma_read", "split_huge_page"]
    added = [line.strip(" +") for line in result.output.splitlines() if line.strip().startswith("+")]
    assert added.count("if p.mapping is not mapping:") == 1
    assert "if p.mapping is mapping:" in added
    assert not [line for line in result.output.splitlines() if line.startswith("    -") and "era" in line]
    assert all(len(line) <= 80 for line in result.output.splitlines()[-4:])
    assert run("model", "--diff", "v3.10", "v9").exit_code == 2


def test_every_function_has_its_steps_in_every_era_or_the_reason_why_not() -> None:
    rows = [json.loads(line) for line in run("model", "--json").output.splitlines()]
    assert len(rows) > 150
    for row in rows:
        assert not row["model_steps"].keys() & row["no_steps"].keys()
        assert {*row["model_steps"], *row["no_steps"]} == {*ERAS}
        for why in row["no_steps"].values():
            assert why == "seed only" or why.startswith(("since ", "until ", "model/"))
    of = {(row["section"], row["function"]): row for row in rows}
    mover = of["C.13a", "move_present_pte"]
    assert mover["model_steps"].keys() == {"v6.8"}
    assert mover["no_steps"] == {"v3.10": "since 6.8", "v3.10+seed": "since 6.8", "v6.18": "until 6.17"}
    assert of["C.11", "remap_anon_pages_pte"]["no_steps"]["v6.8"] == "seed only"
    assert of["A.6", "try_to_unmap_file"]["model_steps"].keys() == {"v3.10", "v3.10+seed"}
    # What copies bytes of its own is no program of steps; the compiler says where.
    refused = of["F.1", "userfaultfd_copy, mfill_atomic"]["no_steps"]["v6.18"]
    assert refused.startswith("model/")
    text = run("model").output
    cells = [line[58:].split() for line in text.splitlines()[1:] if line[:1] in "ABCF" and "." in line[:6]]
    assert len(cells) == len(rows)
    assert not any("-" in each[1:] for each in cells)
    assert f"] not compiled: {refused}" in text


def test_an_era_differs_from_itself_in_nothing() -> None:
    result = run("model", "--diff", "v6.8", "v6.8")
    assert "lines more" not in result.output


def test_a_moved_page_is_found_by_one_look_and_a_nonlinear_one_by_a_scan() -> None:
    result = run("model", "--contrast")
    rows = [[int(word) for word in line.split()] for line in result.output.splitlines()[2:]]
    assert [row[0] for row in rows] == [32, 128, 512, 2048]
    for pages, linear, nonlinear, moved in rows:
        assert linear == moved == 1
        assert pages // 2 <= nonlinear <= pages


def test_the_library_reads_well_in_eighty_columns() -> None:
    for args in (("litmus", "list", "--verdicts"), ("litmus", "list", "--mutants")):
        assert max(len(line) for line in run(*args).output.splitlines()) <= 80
    names = [line.split()[0] for line in run("litmus", "list").output.splitlines() if not line.startswith(" ")]
    assert names.index("R2-move") < names.index("R10-munmap")
    found = run("litmus", "list", "splitter", "--verdicts").output
    assert "S3" in found and "v3.10+seed violated bug_on" in found and "R2-move" not in found


def test_of_all_mutants_those_of_a_test_can_be_asked() -> None:
    asked = run("check", "--mutant", "all", "S3", "--json")
    assert asked.exit_code == 0, asked.output
    assert {json.loads(line)["test"] for line in asked.output.splitlines()} == {"S3"}
    none = run("check", "--mutant", "all", "S1", "--era", "v3.10")
    assert none.exit_code == 2 and "no mutant is killed by S1 on v3.10" in none.output


def test_the_library_is_in_the_order_that_people_count_in() -> None:
    names = [line.split()[0] for line in run("litmus", "list", "--mutants").output.splitlines() if line[0] != " "]
    assert names.index("D-2") < names.index("D-10")
