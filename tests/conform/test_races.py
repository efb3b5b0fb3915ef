"""Litmus tests on the running kernel: histogram, condition, comparison, and what can't be run is said."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

import pytest
from click.testing import CliRunner, Result

from userfault.cli import cli
from userfault.cli.guest import Guest, Stage, alone
from userfault.cli.run import exit_code, raced_there
from userfault.conform.needs import NEEDS, missing
from userfault.conform.races import eras
from userfault.conform.races.compare import Comparison, compare
from userfault.conform.races.histogram import make_histogram, render
from userfault.conform.races.lower import Unrunnable, lower
from userfault.conform.races.needs import borrowed, require
from userfault.conform.races.report import report, summary
from userfault.conform.races.run import Run, from_json, hold_against_model, run_test
from userfault.kernel.machine import machine
from userfault.kernel.race import WAITS, Op, Outcomes, Race, crowded, run_race
from userfault.litmus import ast, library, load
from userfault.litmus.read import read
from userfault.model.era import ERAS


@pytest.fixture
def need(cannot_run: Callable[[str, str], NoReturn]) -> Callable[..., None]:
    """Called with what a test needs of this machine."""

    def check(*needs: str) -> None:
        for each in needs:
            if problem := missing(each):
                cannot_run(problem, NEEDS[each].remedy)

    return check


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["run", *args])


def test_the_histogram_is_litmus7_s() -> None:
    test = load("move+move")
    seen = Outcomes({(1, -17, -1, 1): 3, (1, -2, -1, 1): 1}, rounds=4)
    assert render(make_histogram(test, test.outcome, seen)).splitlines()[:7] == [
        "Test move+move Required",
        "Histogram (2 states)",
        "3       *>0:r0=1; 1:r0=-EEXIST; [A:0]=-1; [A:2]=1;",
        "1       *>0:r0=1; 1:r0=-ENOENT; [A:0]=-1; [A:2]=1;",
        "Ok",
        "",
        "Witnesses",
    ]


def test_a_seen_outcome_that_the_model_rules_out_is_a_mismatch_with_the_nearest_trace() -> None:
    test = load("move+move")
    seen = Outcomes({(1, -17, -1, 1): 3, (1, 1, -1, 1): 2}, rounds=5)
    found = compare(make_histogram(test, test.outcome, seen), "v6.8")
    [(values, count, near)] = found.mismatches
    assert (values, count) == ((1, 1, -1, 1), 2)
    assert near is not None and near.values in found.allowed
    assert sum(a != b for a, b in zip(near.values, values, strict=True)) == 1
    assert near.schedule
    assert found.unseen == 3


def test_a_stranger_s_reference_is_the_kernel_s_freedom_and_nothing_else_is() -> None:
    # The huge page had to be split, and somebody had a reference to it; that it moved and is not there is nobody's freedom.
    test = load("move-huge+load-dst")
    rare, wrong = (-16, -7, 1, -1), (2, -7, 1, -1)
    seen = Outcomes({(2, 1, -1, 1): 90, rare: 1, wrong: 1}, rounds=92)
    done = Run(test, histogram=make_histogram(test, test.outcome, seen), seen=seen, era="v6.18")
    hold_against_model(done)
    assert done.comparison is not None and done.surprise
    assert done.comparison.visited == ((rare, 1),)
    assert [values for values, _, _ in done.comparison.mismatches] == [wrong]
    assert "Stranger 1 times: 0:r0=-EBUSY;" in report(done)
    del seen.counts[wrong]
    done = Run(test, histogram=make_histogram(test, test.outcome, seen), seen=seen, era="v6.18")
    hold_against_model(done)
    assert done.validated and not done.surprise and done.histogram is not None and not done.histogram.validated


def test_a_kernel_between_eras_is_held_against_what_it_was_found_to_be() -> None:
    # On a kernel without F-10 its EEXIST is a mismatch.
    test, forgot = load("move-huge+load-dst"), (-17, -7, -1, 1)
    seen = Outcomes({forgot: 1}, rounds=1)
    done = Run(test, histogram=make_histogram(test, test.outcome, seen), seen=seen, era="v6.18")
    done.differences = {"move_keeps_eagain": False, "move_batches": False}
    done = from_json(test, json.loads(json.dumps(done.json())))
    hold_against_model(done)
    assert done.comparison is not None
    assert [values for values, _, _ in done.comparison.mismatches] == [forgot]
    assert "Nearest of the model: 0:r0=2;" in report(done)
    assert "the model of this kernel is v6.18 with move_keeps_eagain=False, move_batches=False" in summary([done])
    assert ERAS["v6.18"].move_keeps_eagain and ERAS["v6.18"].move_batches


@pytest.mark.parametrize(
    ("moved", "found"),
    [
        (-16, {"move_split_is_busy": True}),
        (-17, {"move_split_is_busy": False, "move_keeps_eagain": True}),
        (1, {"move_split_is_busy": False, "move_keeps_eagain": False}),
        (-1, {}),
    ],
)
def test_what_a_held_huge_page_says_of_a_kernel(
    moved: int, found: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userfault.conform.needs.run_race", lambda *_, **__: Outcomes({(moved,): 1}, rounds=1))
    assert eras.split_while_held() == found
    assert all(hasattr(ERAS["v6.18"], name) for name in found)
    # Sequences would not come back from such a move.
    tries_for_ever = found.get("move_split_is_busy") is False
    assert bool(missing.__wrapped__("held-split")) == tries_for_ever


def test_the_running_kernel_is_asked_which_era_it_is(need: Callable[..., None]) -> None:
    need("userfaultfd", "move")
    era = eras.running_era()
    assert era.name in ERAS
    assert all(getattr(ERAS[era.name], name) != answer for name, answer in era.differences.items())


def test_a_model_that_breaks_as_its_author_expects_is_no_bound() -> None:
    found = Comparison("v6.18", frozenset(), False, "lock_misuse", 1, (), 0)
    assert not Run(load("MIG-move"), comparison=found, era="v6.18").bound
    assert Run(load("move+move"), comparison=found, era="v6.18").bound


def test_what_the_kernel_can_t_be_asked_is_said() -> None:
    with pytest.raises(Unrunnable, match="get_anon_vma can't be done from user space"):
        lower(load("R14-get"))
    result = run("R14-get")
    assert result.exit_code == 2
    assert "R14-get skipped" in result.output


def test_a_huge_page_is_two_of_the_model_s() -> None:
    lowered = lower(load("D-3-split"))
    assert lowered.race.huge
    assert lowered.race.setup[0][0].args[:2] == (0, 2 << 20)
    move = lowered.race.threads[1][1][0]
    assert move.args == (4 << 20, 0, 2 << 20, 0)


def test_a_range_that_is_no_block_is_refused() -> None:
    text = 'userfault T\n"Which?"\n{ A:0-4 = huge P; A:4-8 userfault; }\nP0 : A ;\nmove 4 <- 0 3 ;\nexpect v6.8 holds\n'
    with pytest.raises(Unrunnable, match="no whole huge pages"):
        lower(read(text, "t"))


def test_json_has_the_documented_keys() -> None:
    row = json.loads(run("move+move", "--rounds", "50", "--json").output.splitlines()[0])
    assert {"test", "skipped", "rounds", "fields", "histogram", "observation", "validated", "surprise"} <= set(row)


def test_what_could_not_be_borrowed_is_said_and_the_tests_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("userfault.conform.races.needs.machine", lambda: machine(state=tmp_path, timeout_s=0))
    with machine(state=tmp_path), borrowed([load("free-huge+cold")]):
        pass
    [told] = caplog.messages
    assert f"process {os.getpid()} has held" in told and "make do" in told


# What the model says never ends may not end on the kernel either (F-10): `userfault run` waits ten seconds for that.
ENDLESS = {test.name for test in library() for each in test.expect if each.property == "termination"}
LIBRARY = [
    test for test in library() if ((test.outcome and "+" in test.name) or test.kernel_only) and test.name not in ENDLESS
]


def test_the_library_shows_what_its_authors_expect_on_this_kernel(need: Callable[..., None]) -> None:
    need("userfaultfd", "move")
    with borrowed(LIBRARY):
        done = [run_test(test, rounds=10, seconds=1.0) for test in LIBRARY]
    assert sum(not each.skipped for each in done) >= 40
    assert [each.test.name for each in done if each.surprise] == []
    assert [each.hang for each in done if each.hang] == []


@pytest.mark.parametrize(
    "name", ["move+load", "move+fork", "move-part+load", "cow+cow", "copy+store", "move-holes+store"]
)
def test_the_model_allows_what_this_kernel_shows(name: str, need: Callable[..., None]) -> None:
    need("userfaultfd", "move", "thp")
    done = run_test(load(name), rounds=100, comparing=True)
    assert done.skipped == "" and done.not_compared == ""
    assert done.comparison is not None and done.comparison.complete
    assert done.comparison.mismatches == ()


def test_a_thread_that_forks_is_not_hurt_by_the_threads_that_were_here(need: Callable[..., None]) -> None:
    need("userfaultfd", "move")
    # Their stacks are reused by the C library, and what the caller has is kept from a round's children.
    for _ in range(2):
        done = run_test(load("move+fork"), rounds=20, comparing=True)
        assert done.seen is not None and done.seen.failures == 0
        assert sum(done.seen.counts.values()) == 20


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        # Seldom as it may be: each races with the test's own threads, and compaction with how fragmented memory is.
        ("R13-migrate", 60),
        ("R10-collapse", 20),
        ("R37-swap", 20),
        ("move+ksm", 2000),
        ("move+reclaim", 1000),
    ],
)
def test_the_kernel_is_seen_to_do_its_part(name: str, rounds: int, need: Callable[..., None]) -> None:
    need("userfaultfd", "move", "thp", "compaction", "kpagecount")
    with borrowed([load(name)]):
        # Compaction may find nothing to do for a while.
        for _ in range(5):
            done = run_test(load(name), rounds)
            if done.provoked:
                break
    assert done.skipped == "" and done.provoked is not None
    assert 0 < done.provoked <= rounds
    assert f"Provoked {name} {done.provoked} of {rounds}" in report(done)


def test_a_page_is_looked_for_wherever_the_test_may_take_it() -> None:
    asked = [op for _, ops in lower(load("R37-swap")).race.threads for op in ops if op.name == "reclaim"]
    assert [op.args for op in asked] == [(0, 2 * 4096, 4 * 4096, 0)]


@pytest.mark.parametrize(("order", "skipped"), [(9, True), (10, False)])
def test_that_compaction_leaves_huge_pages_alone_is_said(
    order: int, skipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[..., None]
) -> None:
    need("thp", "compaction")
    (tmp_path / "pagetypeinfo").write_text(f"Page block order: {order}\nPages per block:  {1 << order}\n")
    monkeypatch.setattr("userfault.conform.needs.PAGETYPEINFO", tmp_path / "pagetypeinfo")
    missing.cache_clear()
    done = run_test(load("MIG-load"), rounds=1)
    missing.cache_clear()
    assert done.skipped.startswith("compaction leaves huge pages where they are") == skipped


def test_a_kernel_that_does_not_do_its_part_is_said() -> None:
    idle = Run(load("move+migrate"), seen=Outcomes(rounds=5), provoked=0)
    assert "the kernel was never seen to do its part in move+migrate" in summary([idle])
    assert "its part" not in summary([Run(load("move+move"), seen=Outcomes(rounds=5))])


def test_ksmd_is_not_waited_for_where_pages_are_not_the_same(need: Callable[..., None]) -> None:
    need("kpagecount")
    different = (Op("map", (0, 2 * 4096, 0, 3)), Op("store", (0, 1)), Op("store", (4096, 2)))
    with borrowed([load("move+ksm")]):
        seen = run_race(Race((different,), ((0, (Op("ksm", (0, 4096), 0),)),), ((),), 1), 20)
    assert seen.counts == {(-errno.EAGAIN,): 20} and seen.provoked == 0
    assert seen.seconds < 20 * 0.2 * crowded()


def test_a_condition_that_fails_here_is_a_surprise(tmp_path: Path, need: Callable[..., None]) -> None:
    need("userfaultfd", "move")
    wrong = tmp_path / "wrong.litmus"
    wrong.write_text(load("move+move").text.replace("-EEXIST", "-EFAULT"))
    result = run(str(wrong), "--rounds", "50")
    assert result.exit_code == 1
    assert "is NOT validated" in result.output and "SURPRISES: move+move" in result.output


def test_a_kernel_only_test_says_why_it_is_not_compared() -> None:
    done = run_test(load("mremap-dontunmap+store"), rounds=20, comparing=True)
    assert "has no MREMAP_DONTUNMAP" in done.not_compared


def test_a_thread_that_nobody_wakes_is_let_go_and_is_a_surprise(need: Callable[..., None]) -> None:
    need("userfaultfd")
    done = run_test(read(WAITING % "", "t"), rounds=1)
    assert done.seen is not None and done.seen.unblocked == 1 and done.seen.counts == {(WAITS, 0): 1}
    assert done.surprise


WAITING = """userfault T
"Who comes?"
{ A:0-1 userfault; waiting; }
 P0 : A       ;
 r0 = load 0  ;
 r1 = load 0  ;
%s
kernel only "a wait"
"""


@pytest.mark.parametrize(
    ("condition", "surprise"),
    [("", True), ("forall (0:r1 = 0)", True), ("forall (0:r0 = waits)", False), ("forall (0:r0 = 0)", True)],
)
def test_a_wait_in_vain_is_no_surprise_where_the_condition_says_so(condition: str, surprise: bool) -> None:
    test = read(WAITING % condition, "t")
    seen = Outcomes({(WAITS, 0): 1}, rounds=1, unblocked=1)
    done = Run(test, histogram=make_histogram(test, test.outcome, seen), seen=seen, era="v6.18")
    assert done.surprise == surprise
    assert "0:r0=waits; 0:r1=0;" in report(done)
    assert from_json(test, json.loads(json.dumps(done.json()))).surprise == surprise


def test_waits_is_one_value_in_both_worlds() -> None:
    assert ast.WAITS == WAITS


def test_a_usage_error_has_its_code() -> None:
    assert run("nonesuch").exit_code == 2


class FakeGuest:
    """Says what a guest would."""

    def __init__(self, *said: str) -> None:
        self.said, self.commands, self.ended = said, list[list[str]](), list[str]()

    def run(self, stages: list[Stage], show: Callable[[str], None], as_json: bool) -> int:
        self.commands = [stage.command(stage.parts) for stage in stages]
        for line in self.said:
            self.ended += [part for stage in stages if (part := stage.ended(line))]
            show(line)
        return 0


def raced(values: list[int], era: str = "v6.18", known: str = "") -> str:
    """What `userfault run move+move --json` prints there."""
    test = load("move+move")
    seen = Outcomes({tuple(values): 5}, rounds=5)
    done = Run(test, histogram=make_histogram(test, lower(test).fields, seen), seen=seen, era=era, known=known)
    return json.dumps(done.json())


def test_a_guest_races_and_the_model_is_explored_here(capsys: pytest.CaptureFixture[str]) -> None:
    guest = FakeGuest("a line of a command before", raced([1, -17, -1, 1], known="an older one"), "")
    assert raced_there(cast(Guest, guest), [alone("probe")], ["--rounds", "5"], (), False) == 0
    said = capsys.readouterr().out
    assert guest.commands == [["probe"], ["run", "--rounds", "5", "--json"]]
    assert guest.ended == ["move+move"]
    assert "a line of a command before" in said and "v6.18 stands in for this kernel: an older one" in said
    assert "Model move+move v6.18: 1 outcomes seen, all allowed" in said


def test_an_outcome_of_a_guest_that_the_model_rules_out_is_a_mismatch(capsys: pytest.CaptureFixture[str]) -> None:
    guest = FakeGuest(raced([1, 1, -1, 1]))
    assert raced_there(cast(Guest, guest), [], [], ("move+move",), False) == 1
    assert "1 NOT allowed" in capsys.readouterr().out


def test_a_run_in_which_nothing_ran_is_not_green() -> None:
    skipped, ran = Run(load("R14-get"), skipped="no such call"), Run(load("move+move"))
    assert exit_code([skipped]) == 2
    assert exit_code([skipped, ran]) == 0


def test_a_guest_that_says_why_it_skipped_is_believed(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = json.dumps(Run(load("move+move"), skipped="no UFFDIO_MOVE").json())
    assert raced_there(cast(Guest, FakeGuest(skipped)), [], [], (), False) == 2
    assert "skipped move+move: no UFFDIO_MOVE" in capsys.readouterr().out


def test_a_hang_is_explained_by_an_older_era_only_where_that_one_has_it() -> None:
    hang = "round 3 did not end"
    assert Run(load("THP-pinned"), era="v6.18", hang=hang).hang_era == "v6.8"
    explained = Run(load("THP-pinned"), era="v6.18", hang=hang)
    unexplained = Run(load("move+move"), era="v6.18", hang=hang)
    assert not explained.bound and unexplained.bound and unexplained.hang_era == ""


def test_a_user_without_userfaultfd_is_not_told_that_the_kernel_has_no_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eras, "_moves_zero_page", lambda: -errno.EPERM)
    found = eras.running_era.__wrapped__()
    assert "this user may not use userfaultfd" in found.known
    monkeypatch.setattr("userfault.conform.races.needs.missing", lambda need: f"no {need}")
    with pytest.raises(Unrunnable, match="no userfaultfd: run as root"):
        require(lower(load("move+load")))
