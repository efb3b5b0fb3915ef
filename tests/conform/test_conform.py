"""Model and running kernel agree; what makes them part is found, and made short."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from userfault import litmus
from userfault.cli import cli
from userfault.conform import emit, operations, report, sandbox, words
from userfault.conform.compare import Divergence, perform
from userfault.conform.drive import (
    ConformError,
    Progress,
    check,
    profile_named,
    run,
    sequence_of,
    shrunk,
    steps_of,
    surroundings,
)
from userfault.conform.mutants import find_mutant, mutant_library, mutated
from userfault.conform.needs import missing
from userfault.conform.operations import Op
from userfault.conform.profiles import FAMILIES, HUGE, MERGES, MOVES, PROFILES
from userfault.conform.quirks import Quirks, running
from userfault.conform.world import HUGE_PAGES, World
from userfault.kernel.agent import SYSCALL, Agent, Command
from userfault.kernel.child import ChildDied, call
from userfault.kernel.errors import Unavailable
from userfault.kernel.syscalls import libc
from userfault.kernel.uapi import Feature, RegisterMode
from userfault.litmus import Mutant
from userfault.model import fork, userfaultfd_move

PAGE = 4096
PAUSE = 34
"""pause(2) of x86-64."""


def find_compiler() -> list[str]:
    return [os.environ.get("CC", "gcc")]


@pytest.fixture(autouse=True)
def kernel(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if os.geteuid() != 0:
        cannot_run("only root sees page frames (/proc/kpagecount)", "run the tests as root")
    for needed in ("/proc/kpagecount", "/proc/kpageflags", "/dev/userfaultfd"):
        if not Path(needed).exists():
            cannot_run(
                f"there is no {needed}", "run the tests on a kernel with userfaultfd and CONFIG_PROC_PAGE_MONITOR"
            )


@pytest.fixture
def mergeable_is_ours(request: pytest.FixtureRequest, cannot_run: Callable[[str, str], NoReturn]) -> None:
    """For tests of profiles with ksmd: nobody else has memory that ksmd would scan."""
    given = request.node.callspec.params
    if (given["mutant"].test if "mutant" in given else given.get("name")) in ("ksm", "merges"):
        try:
            with surroundings(PROFILES["ksm"]):
                pass
        except Unavailable as error:
            cannot_run(error.reason, error.remedy)


@pytest.mark.parametrize("name", list(PROFILES))
def test_model_and_kernel_agree(name: str, mergeable_is_ours: None) -> None:
    for each in run(name, seed=7, operations=1000 // PROFILES[name].cost):
        assert not isinstance(each, Divergence), "\n".join(report.lines(each, PROFILES[name].window.first))


def test_a_sequence_depends_on_profile_seed_and_number_only() -> None:
    assert sequence_of(MOVES, 1, 5) == sequence_of(MOVES, 1, 5)
    assert sequence_of(MOVES, 1, 5) != sequence_of(MOVES, 2, 5)
    assert report.from_json(report.to_json(sequence_of(MOVES, 1, 5)), MOVES.window) == sequence_of(MOVES, 1, 5)


def test_a_divergence_is_found_shrunk_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfaultfd_move, "ENOENT", 5)
    found = [each for each in run("moves", 1, 5000) if isinstance(each, Divergence)]
    assert len(found) == 1
    short = shrunk(MOVES, found[0])
    assert short.what == "move: result"
    assert len(short.sequence) <= 4
    text = "\n".join(report.lines(short, MOVES.window.first))
    assert "model:  -5, output -5" in text
    assert "kernel: -2, output -2" in text
    monkeypatch.undo()
    assert check(MOVES, short.sequence) == len(short.sequence)


def test_a_divergence_is_made_short_when_the_run_has_given_the_machine_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    @contextmanager
    def once(timeout_s: float) -> Iterator[None]:
        assert not held, "who borrows the machine twice waits for itself"
        held.append(1)
        yield
        held.clear()

    monkeypatch.setattr("userfault.conform.drive.machine", once)
    monkeypatch.setattr("userfault.conform.drive.swap", lambda machine: None)
    monkeypatch.setattr("userfault.conform.drive.shrunk", lambda profile, found, tried: found)
    monkeypatch.setattr(userfaultfd_move, "ENOENT", 5)
    done = CliRunner().invoke(cli, ["conform", "--profile", "swaps", "--ops", "2000"])
    assert "model and kernel part" in done.output, done.exception


def test_what_takes_long_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userfault.cli.conform.SILENT_S", 0)
    monkeypatch.setattr("userfault.conform.drive.without_hypothesis", lambda: "not asked here")
    done = CliRunner().invoke(cli, ["conform", "--profile", "moves", "--ops", "120"])
    assert "moves: 120 operations agree so far\n" in done.stderr
    assert "so far" not in done.stdout
    monkeypatch.setattr(userfaultfd_move, "ENOENT", 5)
    done = CliRunner().invoke(cli, ["conform", "--profile", "moves", "--ops", "1200"])
    # A line for each try.
    assert done.stderr.count("moves: is still made short\n") > 3


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


def resumed(path: Path, *options: str) -> tuple[str, str]:
    """What a run says on stdout and stderr that is kept in a file."""
    done = CliRunner().invoke(cli, ["conform", "--resume", str(path), *options])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_a_resumed_run_says_what_was_done_before(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first, _ = resumed(path, "--ops", "100")
    length = MOVES.length
    assert first.startswith(f"moves: {length} operations agree (1 sequences, seed 1), ") and "before" not in first
    said = f"moves: {length} operations agree (1 sequences, seed 1), all done before: nothing was asked"
    assert resumed(path, "--ops", "100") == (f"{said}\n", "")
    more, _ = resumed(path, "--ops", str(2 * length))
    assert f"moves: {2 * length} operations agree (2 sequences, seed 1), {length} of them done before, " in more
    row = json.loads(resumed(path, "--ops", str(2 * length), "--json")[0])
    assert (row["operations"], row["before"], row["rate"]) == (2 * length, 2 * length, None)


@pytest.mark.parametrize(
    ("change", "of"),
    [({"code": "other"}, "another version of userfault"), ({"kernel": "6.1.0 #1"}, "kernel 6.1.0 #1")],
)
def test_what_other_code_or_another_kernel_agreed_with_is_done_again(
    change: dict[str, str], of: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    resumed(path, "--ops", "100")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    said, why = resumed(path, "--ops", "100")
    assert "before" not in said
    assert why == f"userfault conform: {path} has 1 sequences of {of}: they are done again\n"
    # They are kept as today's now.
    assert "nothing was asked" in resumed(path, "--ops", "100")[0]


def test_a_file_that_knows_not_of_what_it_is_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text(json.dumps({"profile": "moves", "seed": 1, "operations": 120, "unrepeated": ["x"], "done": [0]}))
    said, why = resumed(path, "--ops", "100")
    assert "another version of userfault" in why and "before" not in said and "did not come again" not in said


def test_two_runs_at_once_do_not_write_into_each_other_s_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is half-way through writing when the other renames what it wrote."""
    path = tmp_path / "run"
    write = Path.write_text

    def slow(self: Path, text: str) -> int:
        monkeypatch.setattr(Path, "write_text", write)
        write(self, text[:9])
        assert call(lambda: Progress("moves", 1, {7}).save(path), deadline_s=30) is None
        return write(self, text)

    monkeypatch.setattr(Path, "write_text", slow)
    Progress("moves", 1, {8}).save(path)
    assert Progress.load(path, "moves", 1).done == {8}
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_errors_mmap_says_the_one_of_the_kernel() -> None:
    """That it does not fit comes before that it is not aligned."""
    length = 1 << 47
    for addr, size in ((1, length), (1, -1), (length + 1, PAGE), (1, PAGE), (1, 0)):
        assert check(MOVES, (Op(0, "mmap", (addr, size, 3)),)) == 1, (addr, size)


def test_a_worker_that_was_killed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(name: str, seed: int, numbers: Sequence[int]) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr("userfault.conform.drive.chunk", killed)
    killed.__module__, killed.__qualname__ = "userfault.conform.drive", "chunk"
    done = CliRunner().invoke(cli, ["conform", "--ops", "2000", "--jobs", "2"])
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("userfault: a worker process was killed")


def test_a_hung_operation_meets_its_deadline() -> None:
    agent = Agent(MOVES.window.start, 8, 8)
    pause = Command(SYSCALL, 0, PAUSE)
    result = agent.run([operations.command(Op(0, "load", (0,)), MOVES.window.base), pause], lambda: None, seconds=0.2)
    assert (result.hung, result.done) == (True, 1)
    assert result.answers[0].signal == 11


def test_an_interrupted_run_leaves_no_process() -> None:
    class Enough(Exception):
        pass

    def enough(*_: object) -> NoReturn:
        raise Enough

    before = signal.signal(signal.SIGALRM, enough)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Enough):
            Agent(MOVES.window.start, 1, 8).run([Command(SYSCALL, 0, PAUSE)], lambda: None, seconds=30)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True).stdout == b""


def test_the_agent_ends_with_whoever_started_it() -> None:
    """In an operation that does not come back it would wait for ever: nobody is left who has a deadline."""

    def killed() -> None:
        def setup() -> None:
            # Not killed with the others: it has the pipe by which the end of all is seen.
            os.setpgid(0, 0)
            os.kill(os.getppid(), signal.SIGKILL)

        Agent(MOVES.window.start, 1, 8).run([Command(SYSCALL, 0, PAUSE)], setup, seconds=4)

    with pytest.raises(ChildDied):
        call(killed, deadline_s=30)


def test_the_agent_sees_what_pagemap_and_kpageflags_say() -> None:
    first = MOVES.window.first * PAGE
    sequence = [
        Op(0, "mmap", (first, 3 * PAGE, 3)),
        Op(0, "store", (first, 1)),
        Op(0, "load", (first + PAGE,)),
    ]
    agent = Agent(MOVES.window.start, 8, 8)
    commands = [operations.command(each, MOVES.window.base) for each in sequence]
    result = agent.run(commands, lambda: None, seconds=30, areas=2)
    assert [len(seen.areas) for (seen,) in result.records] == [0, 1, 1]
    (seen,) = result.records[-1]
    assert seen.vmas == ((0, 3, 3),)
    assert report.area(seen.areas[0]) == "rd wr ac rss 1 swap 0 huge 0 lazy 0 locked 0K"
    assert [words.describe(word) for word in seen.words[:4]] == [
        "PX:c1:ANON,AE #1 [WRITTEN,PRESENT]",
        "P:c0:ZERO #2 [WRITTEN,PRESENT,PFNZERO]",
        "- [WRITTEN]",
        "-",
    ]
    assert seen.contents[0] == agent.hash_page((1).to_bytes(8, "little"))
    assert seen.contents[1] == 0


SEEDS = {
    "account": 6,
    "batch-occupied": 2,
    "collapse-compound": 2,
    "event-remap-protection": 2,
    "exact-address": 4,
    "fault-flags": 4,
    "free-populated": 3,
    "free-shared-cache": 5,
    "free-written": 6,
    "hold-collapse": 5,
    "hold-reuse-part": 7,
    "keep-last-part": 4,
    "ksm-alone": 15,
    "ksm-no-node": 2,
    "ksm-referred": 2,
    "ksm-remapped": 8,
    "ksm-swapin-copy": 2,
    "ksm-swapin-node": 6,
    "ksm-unmap-forks": 3,
    "ksm-unmerge-protection": 4,
    "merge-registered": 2,
    "swapin-write-protected": 2,
    "unshare-huge": 5,
    "unshare-protection": 7,
    "upgrade-shared": 8,
    "wp-huge-fork": 6,
    "wp-huge-zero-split": 3,
}
"""With the first seed these take thousands of operations, with these some hundred, or one thousand."""


@pytest.mark.parametrize("mutant", mutant_library(), ids=[mutant.name for mutant in mutant_library()])
def test_a_mutant_of_the_model_is_found(mutant: Mutant, mergeable_is_ours: None) -> None:
    with mutated(mutant):
        found = [each for each in run(mutant.test, SEEDS.get(mutant.name, 1), 20000) if isinstance(each, Divergence)]
    assert found


def test_a_mutant_is_gone_afterwards() -> None:
    before = fork.copy_one_pte
    with mutated(find_mutant("fork-swap")):
        assert fork.copy_one_pte is not before
    assert fork.copy_one_pte is before
    with pytest.raises(KeyError, match="there is no mutant"):
        find_mutant("nothing")


@pytest.mark.parametrize("name", ["forks", "events", "pins", "ksm", "huge", "families", "merges"])
def test_a_sequence_is_a_c_program_that_gives_the_same(name: str, tmp_path: Path, mergeable_is_ours: None) -> None:
    profile = PROFILES[name]
    steps = steps_of(profile, 1, 3)
    source = tmp_path / "reproducer.c"
    source.write_text(emit.c_program([step.op for step in steps], profile, "a test"))
    program = tmp_path / "reproducer"
    compiler = find_compiler()
    subprocess.run([*compiler, "-O2", "-Wall", "-Werror", "-pthread", "-o", str(program), str(source)], check=True)
    with surroundings(profile):
        out = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=60).stdout
    lines = out.splitlines()
    told = [line for line in lines if line.startswith("     ")]
    assert len(told) == sum(len(step.messages) for step in steps)
    shown = [line for line in lines if not line.startswith("    ")]
    assert len(shown) == len(steps)
    for line, step in zip(shown, steps, strict=True):
        if step.op.name in ("exit", "mmap", "mremap", "release", "pageout", "mincore"):
            continue
        wanted = str(step.outcome.result)
        if step.outcome.signal:
            wanted = f"signal {step.outcome.signal}"
        elif operations.KINDS[step.op.name].out >= 0 and step.op.name not in operations.MEANWHILES:
            wanted = f"{step.outcome.result}, output {step.outcome.out}"
        assert line.endswith(f": {wanted}"), (line, wanted)


def test_a_run_of_several_profiles_and_seeds() -> None:
    invoke = CliRunner().invoke
    done = invoke(cli, ["conform", "--profile", "moves", "--seed", "1..2", "--ops", "100", "--json"])
    assert [(each["profile"], each["seed"]) for each in map(json.loads, done.output.splitlines())] == [
        ("moves", 1),
        ("moves", 2),
    ]
    for wrong, why in (("5..1", "is an empty range"), ("x", "is no number")):
        refused = invoke(cli, ["conform", "--seed", wrong])
        assert refused.exit_code == 2 and why in refused.output
    refused = invoke(cli, ["conform", "--profile", "all", "--resume", "nowhere"])
    assert refused.exit_code == 2 and "one profile and one seed" in refused.output


def test_what_can_t_keep_a_run_is_refused(tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    (tmp_path / "binary").write_bytes(b"\xff")
    nowhere = tmp_path / "no" / "where"
    refused = invoke(cli, ["conform", "--ops", "100", "--resume", str(nowhere)])
    assert refused.exit_code == 2 and f"{nowhere} can't be written (No such" in refused.output
    for name, why in (("nonsense", "No such file"), (tmp_path / "binary", "no text")):
        refused = invoke(cli, ["conform", "--replay", str(name)])
        assert refused.exit_code == 2 and f"--replay {name} is no sequence" in refused.output and why in refused.output


@pytest.mark.parametrize(
    "change",
    [
        {"done": "abc"},
        {"done": ["0"]},
        {"done": [-7, 0]},
        {"operations": "x"},
        {"operations": 1.5},
        {"unrepeated": 3},
        {"unrepeated": [1]},
        {"seed": True},
    ],
)
def test_a_damaged_file_of_a_run_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "run").write_text(
        json.dumps({"profile": "moves", "seed": 1, "operations": 120, "unrepeated": [], "done": [0], **change})
    )
    refused = CliRunner().invoke(cli, ["conform", "--ops", "120", "--resume", str(tmp_path / "run")])
    assert refused.exit_code == 2 and "is no file of a run" in refused.output
    assert next(iter(change)) in refused.output


def test_where_nothing_can_be_kept_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> NoReturn:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConformError, match="can't be written"):
        Progress("moves", 1, set()).save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sequence", "why"),
    [
        ("[]", "is no sequence"),
        ("[1", "is no sequence"),
        ("[1]", "operation 0 is 1: expected"),
        ('[[0,"exit"],[0,"load","x"]]', "operation 1 is [0, 'load', 'x']: expected"),
        ('[[0,"nonsense",1]]', "operation 0: there is no 'nonsense': one of mmap, "),
        ('[[0,"mmap",1]]', "operation 0: mmap takes addr, length, prot, and is given 1"),
        ('[[8,"load",0]]', "operation 0: there is no process 8: 0 to 7"),
        (f'[[0,"load",{1 << 64}]]', f"operation 0: {1 << 64} is no number of 64 bits"),
        (f'[[0,"load",{1 << 62}]]', f"operation 0: load of {1 << 62}, where the profile has no memory"),
        (f'[[0,"store",{-(1 << 50)},1]]', f"operation 0: store of {-(1 << 50)}, where"),
        ("", "this is no sequence"),
    ],
)
def test_what_is_no_sequence_is_refused(sequence: str, why: str) -> None:
    refused = CliRunner().invoke(cli, ["conform", f"--replay={sequence}"])
    assert refused.exit_code == 2 and why in refused.output


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--seed", "1.."], "'1..' is no number, and no range"),
        (["--cpus", "2"], "--cpus is about the guest of --kernel"),
        (["--mutant", ""], "there is no mutant ''"),
        (["--c"], "--c prints a sequence that is known: name it with --replay"),
        (["--mutant", "all", "--jobs", "2"], "leave out --replay, --resume and --jobs"),
        (["--jobs", "257"], "257 is not in the range"),
    ],
)
def test_options_that_say_nothing_are_refused(options: list[str], why: str) -> None:
    refused = CliRunner().invoke(cli, ["conform", *options, "--ops", "120"])
    assert refused.exit_code == 2 and why in refused.output


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_is_asked_for_more_than_there_is_time_begins_at_once(jobs: int) -> None:
    with closing(run("moves", 1, 10**15, jobs=jobs)) as results:
        assert isinstance(next(results), Progress)


def test_a_mutant_that_fits_no_more_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hunk = litmus.mutants.Hunk("gup", "gup_pte_range", ("-    nothing like this",))
    broken = Mutant("M", "x", "moves", "v6.18", "move", (hunk,))
    monkeypatch.setattr("userfault.conform.mutants.mutant_library", lambda: (broken,))
    refused = CliRunner().invoke(cli, ["conform", "--mutant", "M"])
    assert refused.exit_code == 2 and "mutant M: its hunk for gup.gup_pte_range fits nowhere" in refused.output


def test_a_process_that_can_t_be_set_up_is_no_divergence() -> None:
    """An ordinary user's can't open what tells of page frames: that is for whoever runs it to change, not a bug of model or kernel."""

    def forbidden() -> None:
        raise PermissionError(errno.EPERM, "userfaultfd: Operation not permitted")

    agent = Agent(MOVES.window.start, 1, 8)
    load = operations.command(Op(0, "load", (0,)), MOVES.window.base)
    with pytest.raises(Unavailable, match="set up: userfaultfd: Operation not permitted: run as root"):
        agent.run([load], forbidden, seconds=30)
    assert agent.run([load], lambda: None, seconds=30).done == 1


CAP_DAC_OVERRIDE, CAP_IPC_LOCK, CAP_SYS_PTRACE, CAP_SYS_ADMIN = 1, 14, 19, 21


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({CAP_DAC_OVERRIDE, CAP_SYS_PTRACE}, "hides which frame a page has: run as root (CAP_SYS_ADMIN)"),
        (
            {CAP_DAC_OVERRIDE, CAP_SYS_PTRACE, CAP_SYS_ADMIN},
            "may not lock 64 MiB of memory: run as root (CAP_IPC_LOCK)",
        ),
    ],
)
def test_what_this_user_may_not_do_is_no_divergence(kept: set[int], why: str) -> None:
    """Of the files alone that tell of page frames, such a user can open all."""

    def restricted() -> tuple[int, str]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
        word = sum(1 << each for each in kept)
        # struct __user_cap_header_struct (version 3), __user_cap_data_struct[2]: effective, permitted, inheritable.
        head, data = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", word, word, 0, 0, 0, 0)
        libc.capset(head, data)
        done = CliRunner().invoke(cli, ["conform", "--ops", "120"])
        return done.exit_code, done.output

    code, said = call(restricted, deadline_s=30)
    assert code == 2 and why in said


def test_a_limit_of_open_files_is_named_and_not_taken_for_a_want_of_privilege() -> None:
    def limited(most: int, setup: Callable[[], object]) -> str:
        def there() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            setup()

        load = operations.command(Op(0, "load", (0,)), MOVES.window.base)
        with pytest.raises(Unavailable) as refused:
            Agent(MOVES.window.start, 1, 8).run([load], there, seconds=30)
        return str(refused.value)

    # Below the numbers that the agent's userfaultfds have, and so few that nothing can be opened.
    few = limited(150, lambda: sandbox.prepare(False, False, Feature(0), ()))
    assert few.endswith(f"may have 150 open files, and it needs {sandbox.FILES}: `ulimit -n {sandbox.FILES}`")
    assert "root" not in few

    def probed() -> None:
        missing.cache_clear()
        sandbox.allowed()

    assert limited(6, probed).endswith("too many open files: a process may have 6: raise that limit, `ulimit -n`")
    none = limited(4, lambda: os.open("/dev/null", os.O_RDONLY))
    assert none.endswith("too many open files: a process may have 4: raise that limit, `ulimit -n`")


def test_litmus_is_run_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litmus, "library", lambda: [litmus.load("move+move")])
    done = CliRunner().invoke(cli, ["conform", "--litmus"])
    assert done.exit_code == 0, done.output
    assert "Test move+move Required" in done.output and "Model move+move v6.18" in done.output


def test_litmus_tests_have_as_many_rounds_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litmus, "library", lambda: [litmus.load("move+move")])
    done = CliRunner().invoke(cli, ["conform", "--litmus", "--rounds", "7"])
    assert done.exit_code == 0 and "1 run, 7 rounds" in done.output
    refused = CliRunner().invoke(cli, ["conform", "--rounds", "7"])
    assert refused.exit_code == 2 and "--rounds is of litmus tests" in refused.output


@pytest.mark.parametrize("option", [["--ops", "5"], ["--seed", "2"], ["--profile", "fills"], ["--mutant", "all"]])
def test_litmus_refuses_what_it_would_ignore(option: list[str]) -> None:
    refused = CliRunner().invoke(cli, ["conform", "--litmus", *option])
    assert refused.exit_code == 2 and f"of which {option[0]} says nothing" in refused.output


def test_the_tables_of_freedom_and_profiles_are_shown() -> None:
    shown = CliRunner().invoke(cli, ["conform", "--profile", "freedom"]).output
    assert "physical addresses: Which page frame" in shown
    assert "moves " in CliRunner().invoke(cli, ["conform", "--profile", "list"]).output


def test_mincore_of_more_than_is_compared_is_refused() -> None:
    given = '[[0,"mmap",0,409600,3],[0,"mincore",0,36864]]'
    result = CliRunner().invoke(cli, ["conform", "--replay", given])
    assert result.exit_code == 2 and "ask for 8 pages at most" in result.output


def test_looking_at_a_page_leaves_no_reference_to_it() -> None:
    """The second look is to make it active: what does that holds it until its batch drains, and the next write copied it."""
    given = (
        '[[0,"mmap",2088960,32768,3],[0,"store",2117632,7],[0,"fork",2],[0,"dontneed",2117632,4096],[2,"free",2109440,12288],'
        '[2,"load",2105344],[2,"populate_write",2117632,4096],[2,"pageout",2117632,4096]]'
    )
    result = CliRunner().invoke(cli, ["conform", "--profile", "swaps", "--replay", given])
    assert result.exit_code == 0 and "8 operations agree" in result.output, result.output


def test_of_all_profiles_one_that_can_t_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(held: object) -> NoReturn:
        raise Unavailable("no swap device could be made", "load zram")

    monkeypatch.setattr("userfault.conform.drive.swap", none)
    monkeypatch.setattr("userfault.conform.profiles.PROFILES", {name: PROFILES[name] for name in ("moves", "swaps")})
    invoke = CliRunner().invoke
    done = invoke(cli, ["conform", "--profile", "all", "--ops", "120"])
    assert done.exit_code == 0 and "swaps: skipped: no swap device could be made: load zram" in done.output
    monkeypatch.setattr("userfault.conform.profiles.PROFILES", {name: PROFILES[name] for name in ("swaps",)})
    assert invoke(cli, ["conform", "--profile", "all", "--ops", "120"]).exit_code == 2
    alone = invoke(cli, ["conform", "--profile", "swaps", "--ops", "120"])
    assert alone.exit_code == 2 and "load zram" in alone.output


def test_what_a_child_may_write_only_is_looked_at_by_the_child() -> None:
    first = MOVES.window.first * PAGE
    sequence = [
        Op(0, "mmap", (first, PAGE, 3)),
        Op(0, "store", (first, 5)),
        Op(0, "fork", (1,)),
        Op(1, "mprotect", (first, PAGE, 2)),
        Op(1, "store", (first, 6)),
        Op(1, "mprotect", (first, PAGE, 0)),
    ]
    agent = Agent(MOVES.window.start, 1, 8)
    result = agent.run([operations.command(each, MOVES.window.base) for each in sequence], lambda: None, seconds=30)
    written, unreadable = ([each.contents[0] for each in record] for record in result.records[-2:])
    assert written == [agent.hash_page(bytes([value])) for value in (5, 6)]
    assert unreadable[1] == 1


def test_what_is_moved_onto_itself_is_gone_before_it_is_made_shorter() -> None:
    page = MOVES.window.first * PAGE
    sequence = (Op(0, "mmap", (page, PAGE, 0)), Op(0, "mremap", (page, -PAGE, PAGE, 3, page)))
    world = World(MOVES.window, lambda data: 1, Quirks())
    assert [perform(op, world).outcome.result for op in sequence] == [0, -14]
    assert check(MOVES, sequence) == len(sequence)


def test_reclaim_makes_a_pinned_page_that_was_written_after_madv_free_like_any_other() -> None:
    page = MOVES.window.first * PAGE
    advised = (Op(0, "free", (page, PAGE)), Op(0, "store", (page, 1)), Op(0, "pageout", (page, PAGE)))
    sequence = (Op(0, "mmap", (page, PAGE, 3)), Op(0, "pin", (0, page)), *advised, Op(0, "unpin", (0,)))
    world = World(MOVES.window, lambda data: 1, Quirks())
    *_, last = (perform(op, world) for op in (*sequence, Op(0, "pageout", (page, PAGE))))
    assert words.describe(last.states[0].words[0]).startswith("S ")


def test_the_copy_of_a_pinned_page_that_nobody_may_use_can_t_be_used_either() -> None:
    page = MOVES.window.first * PAGE
    sequence = (
        Op(0, "mmap", (page, PAGE, 3)),
        Op(0, "pin", (0, page)),
        Op(0, "mprotect", (page, PAGE, 0)),
        Op(0, "fork", (1,)),
        Op(1, "hold", (1, page)),
    )
    world = World(MOVES.window, lambda data: 1, Quirks())
    assert [perform(op, world).outcome.result for op in sequence] == [0, 0, 0, 0, -14]
    if "io_uring" not in running().without:
        assert check(MOVES, sequence) == len(sequence)


def test_a_pin_for_reading_gives_a_process_a_page_of_its_own_first_and_finds_zeroes_in_a_hole() -> None:
    page = MOVES.window.first * PAGE
    sequence = (
        Op(0, "mmap", (page, 2 * PAGE, 3)),
        Op(0, "store", (page + 8, 5)),
        Op(0, "fork", (1,)),
        Op(1, "vmread", (page + 8,)),
        Op(1, "vmread", (page + PAGE,)),
        Op(0, "munmap", (page, PAGE)),
        Op(0, "vmread", (page,)),
    )
    world = World(MOVES.window, lambda data: 1, Quirks())
    done = [perform(op, world) for op in sequence]
    assert [each.outcome.result for each in done] == [0, 0, 0, 8, 8, 0, -errno.EFAULT]
    assert [each.outcome.out for each in done[3:5]] == [5, 0]
    shared, own = (words.describe(done[at].states[1].words[0]) for at in (2, 3))
    assert "ANON,AE" in own and "ANON,AE" not in shared
    assert check(MOVES, sequence) == len(sequence)


def test_a_pinned_small_page_is_in_the_way_of_madv_collapse_for_now() -> None:
    size = HUGE_PAGES * PAGE
    sequence = (
        Op(0, "mmap", (0, size, 3)),
        Op(0, "store", (PAGE, 1)),
        Op(0, "pin", (0, PAGE)),
        Op(0, "collapse", (0, size)),
        Op(0, "unpin", (0,)),
        Op(0, "collapse", (0, size)),
    )
    world = World(HUGE.window, lambda data: 1, Quirks())
    assert [perform(op, world).outcome.result for op in sequence] == [0, 0, 0, -errno.EAGAIN, 0, 0]
    if not {"io_uring", "collapse"} & set(running().without):
        assert check(HUGE, sequence) == len(sequence)


A_HUGE_PAGE = (
    Op(0, "mmap", (0, HUGE_PAGES * PAGE, 3)),
    Op(0, "hugepage", (0, HUGE_PAGES * PAGE)),
    Op(0, "store", (0, 1)),
)
SMALL_ENTRIES = tuple(Op(0, "mprotect", (PAGE, PAGE, prot)) for prot in (1, 3))
"""Protecting a part, and no more, leaves the huge page mapped by small entries."""


def test_all_of_a_huge_page_that_small_entries_map_is_freed_lazily_and_whole() -> None:
    size = HUGE_PAGES * PAGE
    sequence = (
        *A_HUGE_PAGE,
        *SMALL_ENTRIES,
        Op(0, "free", (0, size)),
    )

    def first(quirks: Quirks) -> str:
        world = World(HUGE.window, lambda data: 1, quirks)
        *_, last = (perform(op, world) for op in sequence)
        return words.describe(last.states[0].words[0])

    assert "THP" in first(Quirks())
    assert "THP" not in first(Quirks(advice_goes_by_batches=False))
    with surroundings(HUGE):
        assert check(HUGE, sequence) == len(sequence)
        # Then who is to write one part by another way than its entry says so of all of it.
        assert check(HUGE, (*sequence, Op(0, "populate_write", (2 * PAGE, PAGE)))) == len(sequence) + 1


def test_what_protects_parts_of_a_huge_page_at_once_makes_all_dirty_of_which_one_is() -> None:
    size = HUGE_PAGES * PAGE
    sequence = (
        *A_HUGE_PAGE,
        *SMALL_ENTRIES,
        Op(0, "free", (0, size)),
        Op(0, "store", (5 * PAGE, 1)),
        Op(0, "mprotect", (2 * PAGE, 8 * PAGE, 1)),
        Op(0, "mprotect", (2 * PAGE, 8 * PAGE, 3)),
    )

    def lazily_freed(quirks: Quirks) -> int:
        world = World(HUGE.window, lambda data: 1, quirks)
        *_, last = (perform(op, world) for op in sequence)
        return last.states[0].areas[0][4]

    # Of pages 2 to 9, entry 5 alone may be written once the others may not.
    assert lazily_freed(Quirks(protection_goes_by_batches=False)) == HUGE_PAGES - 1
    assert lazily_freed(Quirks()) < HUGE_PAGES - 1
    with surroundings(HUGE):
        assert check(HUGE, sequence) == len(sequence)


def test_the_last_part_of_a_huge_page_is_copied_so_that_the_page_is_freed() -> None:
    size = HUGE_PAGES * PAGE
    sequence = (
        *A_HUGE_PAGE,
        Op(0, "fork", (1,)),
        Op(0, "dontneed", (2 * PAGE, size - 2 * PAGE)),
        Op(1, "exit", ()),
        # Two parts are left: the first is ours again, and then it is given back.
        Op(0, "store", (0, 2)),
        Op(0, "dontneed", (0, PAGE)),
        Op(0, "store", (PAGE, 2)),
    )
    world = World(FAMILIES.window, lambda data: 1, Quirks())
    *_, taken, _, copied = (perform(op, world) for op in sequence)
    assert "THP" in words.describe(taken.states[0].words[0])
    assert "THP" not in words.describe(copied.states[0].words[1])
    with surroundings(FAMILIES):
        assert check(FAMILIES, sequence) == len(sequence)


def test_parts_that_one_process_has_left_are_the_same_pages_in_the_one_that_has_all() -> None:
    size = HUGE_PAGES * PAGE
    sequence = (
        *A_HUGE_PAGE,
        Op(0, "fork", (1,)),
        Op(0, "dontneed", (0, 3 * PAGE)),
        Op(0, "dontneed", (5 * PAGE, size - 5 * PAGE)),
    )
    world = World(FAMILIES.window, lambda data: 1, Quirks())
    *_, last = (perform(op, world) for op in sequence)
    parent, child = ([words.describe(word) for word in state.words[3:5]] for state in last.states)
    assert ["#4" in parent[0], "#5" in parent[1], "#4" in child[0], "#5" in child[1]] == [True] * 4
    with surroundings(FAMILIES):
        assert check(FAMILIES, sequence) == len(sequence)


def test_a_huge_page_that_is_write_protected_whole_stays_whole_and_loses_that_by_a_move() -> None:
    size = HUGE_PAGES * PAGE
    start = (
        Op(0, "mmap", (0, 2 * size, 3)),
        Op(0, "hugepage", (0, 2 * size)),
        Op(0, "register", (0, 0, 2 * size, RegisterMode.WP)),
    )
    protect = Op(0, "writeprotect", (0, 0, size, 1))
    for touch in (Op(0, "store", (0, 1)), Op(0, "load", (0,))):
        sequence = (*start, touch, protect, Op(0, "move", (0, size, 0, size, 0)))
        world = World(FAMILIES.window, lambda data: 1, Quirks())
        done = [perform(op, world) for op in sequence]
        assert all(each.outcome.result == 0 for each in done)
        before, after = done[4].states[0].words[0], done[-1].states[0].words[HUGE_PAGES]
        assert before & words.W and before & words.HUGE
        assert after & words.HUGE and not after & words.W
        with surroundings(FAMILIES):
            assert check(FAMILIES, sequence) == len(sequence)


def test_a_write_keeps_a_part_of_a_huge_page_that_no_other_process_has_any_more() -> None:
    size, start = HUGE_PAGES * PAGE, [*A_HUGE_PAGE, *SMALL_ENTRIES]
    child = [Op(0, "fork", (1,)), Op(1, "exit", ())]
    all_parts = (*start, *child, Op(0, "store", (0, 2)))
    last_part = (*start, Op(0, "dontneed", (PAGE, size - PAGE)), *child, Op(0, "store", (0, 2)))

    def is_kept(quirks: Quirks, sequence: tuple[Op, ...]) -> bool:
        world = World(FAMILIES.window, lambda data: 1, quirks)
        *_, last = (perform(op, world) for op in sequence)
        return "THP" in words.describe(last.states[0].words[0])

    # As v6.18, v6.12 and v6.1.
    assert is_kept(Quirks(), all_parts) and not is_kept(Quirks(), last_part)
    between = Quirks(reuses_parts=False)
    assert not is_kept(between, all_parts) and not is_kept(between, last_part)
    before = Quirks(reuses_parts=False, copies_last_part=False)
    assert not is_kept(before, all_parts) and is_kept(before, last_part)
    with surroundings(FAMILIES):
        for sequence in (all_parts, last_part):
            assert check(FAMILIES, sequence) == len(sequence)


def test_minor_mode_is_refused_for_anonymous_memory() -> None:
    page = MOVES.window.first * PAGE
    sequence = (
        Op(0, "mmap", (page, PAGE, 3)),
        Op(0, "register", (0, page, PAGE, RegisterMode.MINOR)),
        Op(0, "register", (0, page, PAGE, RegisterMode.MISSING | RegisterMode.MINOR)),
    )
    world = World(MOVES.window, lambda data: 1, Quirks())
    assert [perform(op, world).outcome.result for op in sequence] == [0, -22, -22]
    assert check(MOVES, sequence) == len(sequence)


def test_ksmd_splits_huge_pages_of_which_it_merges_a_part_and_the_zero_page_takes_the_place_of_the_others() -> None:
    size = HUGE_PAGES * PAGE
    sequence = (
        Op(0, "mmap", (0, 2 * size, 3)),
        Op(0, "hugepage", (0, 2 * size)),
        Op(0, "mergeable", (0, 2 * size)),
        Op(0, "store", (PAGE, 1)),
        Op(0, "store", (size + 2 * PAGE, 1)),
        Op(0, "ksmd", (operations.MERGE,)),
    )
    world = World(MERGES.window, lambda data: 1, Quirks())
    *_, last = (perform(op, world) for op in sequence)
    first, merged, second = (words.describe(last.states[0].words[at]) for at in (0, 1, HUGE_PAGES + 2))
    assert "ZERO" in first and "THP" not in first
    assert "c2:ANON,KSM #2" in merged and "c2:ANON,KSM #2" in second
    with surroundings(MERGES):
        assert check(MERGES, sequence) == len(sequence)
        # Somebody who refers to a part of one keeps both as they are.
        held = (*sequence[:-1], Op(0, "hold", (0, 5 * PAGE)), sequence[-1], Op(0, "release", (0,)), sequence[-1])
        assert check(MERGES, held) == len(held)


def test_a_ksm_page_that_a_page_table_maps_twice_is_in_the_way_of_madv_collapse_for_now() -> None:
    size = HUGE_PAGES * PAGE
    merged = (
        Op(0, "mmap", (0, 2 * size, 3)),
        Op(0, "mergeable", (0, 2 * size)),
        Op(0, "store", (PAGE, 1)),
        Op(0, "store", (size, 1)),
        Op(0, "store", (2 * PAGE, 2)),
        Op(0, "store", (3 * PAGE, 2)),
        Op(0, "ksmd", (operations.MERGE,)),
    )
    twice, once = Op(0, "collapse", (0, size)), Op(0, "collapse", (size, size))
    world = World(MERGES.window, lambda data: 1, Quirks())
    *_, refused, copied = (perform(op, world) for op in (*merged, twice, once))
    assert refused.outcome.result == -errno.EAGAIN and copied.outcome.result == 0
    assert "THP" in words.describe(copied.states[0].words[HUGE_PAGES])
    assert "KSM" in words.describe(copied.states[0].words[1])
    if "collapse" not in running().without:
        with surroundings(MERGES):
            assert check(MERGES, (*merged, twice, once)) == len(merged) + 2


def test_who_pins_a_part_of_a_huge_page_has_pinned_all_of_it_and_who_only_refers_to_it_does_not_keep_it_where_it_is() -> (
    None
):
    size = HUGE_PAGES * PAGE
    start = (*A_HUGE_PAGE, Op(0, "mmap", (size, size, 3)), Op(0, "register", (0, size, size, 1)))
    whole, cold = Op(0, "move", (0, size, 0, size, 0)), Op(0, "cold", (PAGE, PAGE))
    # What is in use is not split, but small entries may map it, and then it can't be put together.
    in_use = (cold, *SMALL_ENTRIES, cold, Op(0, "collapse", (0, size)))
    pinned = (*start, Op(0, "pin", (0, 5 * PAGE)), whole, *in_use, Op(0, "unpin", (0,)), cold)
    held = (*start, Op(0, "hold", (0, 5 * PAGE)), *in_use, Op(0, "release", (0,)), Op(0, "collapse", (0, size)))
    moved = (*start, Op(0, "hold", (0, 5 * PAGE)), whole)

    def results(sequence: tuple[Op, ...]) -> dict[str, int]:
        world = World(HUGE.window, lambda data: 1, Quirks())
        return {step.op.name: step.outcome.result for step in (perform(op, world) for op in sequence)}

    assert results(pinned) | {"move": -errno.EBUSY, "collapse": -errno.EAGAIN} == results(pinned)
    assert results(held)["collapse"] == 0 and results(moved)["move"] == 0
    with surroundings(HUGE):
        for sequence in (pinned, held, moved):
            if not {op.name for op in sequence if running().lacks(op.name)}:
                assert check(HUGE, sequence) == len(sequence)
