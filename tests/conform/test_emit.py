"""A test as a C program: it compiles without a warning, and shows what `userfault run` shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from userfault.cli import cli
from userfault.conform.needs import NEEDS, missing
from userfault.conform.races.emit import emit
from userfault.conform.races.lower import Unrunnable, lower
from userfault.kernel.race import crowded, defines, operations, pieces
from userfault.litmus import library, load

# Between them: every shape of initial state, address space, operation and final look.
NAMES = [
    "move+move",
    "move+fork",
    "cow+load",
    "move-huge+load",
    "move-huge+load-waiting",
    "wp-fork-event",
    "pin-fork+store",
]


def uses(name: str) -> frozenset[str]:
    """The operations of a test's race."""
    race = lower(load(name)).race
    return frozenset(op.name for ops in (*race.setup, *(ops for _, ops in race.threads), *race.observe) for op in ops)


def test_every_operation_of_the_library_compiles_without_a_warning(
    tmp_path: Path, cannot_run: Callable[[str, str], NoReturn]
) -> None:
    if shutil.which("gcc") is None:
        cannot_run("no gcc", "apt-get install gcc libc6-dev")
    # Of each operation the test with the fewest others: what no other piece uses shows there.
    smallest: dict[str, str] = {}
    for test in library():
        with suppress(Unrunnable):
            for each in uses(test.name):
                if each not in smallest or len(uses(test.name)) < len(uses(smallest[each])):
                    smallest[each] = test.name
    sources = []
    for name in sorted(set(smallest.values())):
        sources.append(tmp_path / f"{name}.c")
        sources[-1].write_text(emit(load(name)))
    assert {"reclaim", "migrate", "ksm", "collapse", "event"} <= set(smallest)
    command = ["gcc", "-c", "-pthread", "-Wall", "-Wextra", "-Werror", *map(str, sources)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiled(name: str, folder: Path) -> Path:
    source, program = folder / "test.c", folder / "test"
    source.write_text(emit(load(name)))
    command = ["gcc", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_runs_and_shows_what_the_author_expects(
    name: str, tmp_path: Path, cannot_run: Callable[[str, str], NoReturn]
) -> None:
    if shutil.which("gcc") is None:
        cannot_run("no gcc", "apt-get install gcc libc6-dev")
    test = load(name)
    program = compiled(name, tmp_path)
    for need in lower(test).needs:
        if problem := missing(need):
            cannot_run(problem, NEEDS[need].remedy)
    # The program has a limit of its own, which grows with the load.
    done = subprocess.run([program, "20", "0"], capture_output=True, text=True, timeout=60 * crowded())
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"Test {name} Required\nHistogram (")
    assert f"Observation {name} Always 20 0" in done.stdout


def test_what_the_condition_rules_out_has_its_exit_code(
    tmp_path: Path, cannot_run: Callable[[str, str], NoReturn]
) -> None:
    if shutil.which("gcc") is None:
        cannot_run("no gcc", "apt-get install gcc libc6-dev")
    if problem := missing("move"):
        cannot_run(problem, NEEDS["move"].remedy)
    wrong = tmp_path / "wrong.litmus"
    wrong.write_text(load("move+move").text.replace("forall", "~exists"))
    done = subprocess.run(
        [compiled(str(wrong), tmp_path), "20", "0"], capture_output=True, text=True, timeout=60 * crowded()
    )
    assert done.returncode == 1
    assert "Test move+move Forbidden" in done.stdout and "is NOT validated" in done.stdout


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory, cannot_run: Callable[[str, str], NoReturn]) -> Path:
    """The program of a test that any kernel with userfaultfd runs."""
    if shutil.which("gcc") is None:
        cannot_run("no gcc", "apt-get install gcc libc6-dev")
    if problem := missing("userfaultfd"):
        cannot_run(problem, NEEDS["userfaultfd"].remedy)
    return compiled("copy+copy", tmp_path_factory.mktemp("race"))


def test_a_program_says_how_it_is_called(race: Path) -> None:
    asked = subprocess.run([race, "--help"], capture_output=True, text=True)
    assert asked.returncode == 0 and "[ROUNDS [SECONDS]]" in asked.stdout and "copy+copy" in asked.stdout
    for wrong in (["x"], ["0"], ["-5"], ["9" * 30], ["7", "-1"], ["7", "1e9"], ["7", "8", "9"], [""]):
        refused = subprocess.run([race, *wrong], capture_output=True, text=True)
        assert refused.returncode == 2 and refused.stdout == ""
        assert refused.stderr.startswith("Usage: ")


def test_a_program_ends_with_its_rounds_or_its_seconds(race: Path) -> None:
    done = subprocess.run([race, str(10**15), "1"], capture_output=True, text=True, timeout=60 * crowded())
    assert done.returncode == 0 and "Observation copy+copy Always" in done.stdout, done.stdout


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_program_says_how_far_it_is_and_interrupted_what_it_has_seen(race: Path, sig: signal.Signals) -> None:
    with subprocess.Popen(
        [race, str(10**15), "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        while (line := running.stderr.readline()).startswith("0 of "):
            pass
        assert f" of {10**15} rounds, " in line
        running.send_signal(sig)
        seen, _ = running.communicate(timeout=60 * crowded())
    assert running.returncode == 128 + sig
    assert seen.startswith("Interrupted after ") and "\nObservation copy+copy Always " in seen


def test_who_was_given_the_device_can_race(race: Path, cannot_run: Callable[[str, str], NoReturn]) -> None:
    """In a mount namespace of its own, an ordinary user has a /dev/userfaultfd that all may open, or that root may."""
    device = Path("/dev/userfaultfd")
    if os.getuid() != 0 or not device.exists() or shutil.which("setpriv") is None:
        cannot_run("no other user can be given a userfaultfd", "run as root, on Linux 6.1 or newer, with util-linux")
    number = device.stat().st_rdev
    script = (
        f"mount -t tmpfs none /mnt && mknod /mnt/node c {os.major(number)} {os.minor(number)} && chmod $1 /mnt/node && "
        f"mount --bind /mnt/node {device} && cp {race} /mnt/race && cd /mnt && "
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups /mnt/race 20 0"
    )

    def as_ordinary_user(mode: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "sh", "-c", script, "sh", mode]
        return subprocess.run(command, capture_output=True, text=True, timeout=60 * crowded())

    done = as_ordinary_user("666")
    if "mount" in done.stderr or "unshare" in done.stderr:
        cannot_run(done.stderr.strip(), "run where mount namespaces may be made")
    assert done.returncode == 0 and "Observation copy+copy Always 20 0" in done.stdout, done
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "0":
        refused = as_ordinary_user("600")
        assert refused.returncode == 3 and "Operation not permitted" in refused.stdout, refused
        assert "validated" not in refused.stdout


def test_only_what_a_test_uses_is_in_its_program() -> None:
    source = emit(load("move+move"))
    assert source.startswith("// SPDX-License-Identifier: Apache-2.0\n")
    assert "OP(move)" in source and "io_uring" not in source and "OP(fork)" not in source
    assert re.findall(r'#include "', source) == []


def test_every_operation_has_its_source() -> None:
    assert {name for piece in pieces() for name in defines(piece)} == set(operations())


def test_the_command_prints_it_or_says_why_not() -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ["litmus", "emit", "move+move", "--c"]).output == emit(load("move+move"))
    assert runner.invoke(cli, ["litmus", "emit", "move+move"]).exit_code == 2
    refused = runner.invoke(cli, ["litmus", "emit", "R14-get", "--c"])
    assert refused.exit_code == 2 and "can't be done from user space" in refused.output
