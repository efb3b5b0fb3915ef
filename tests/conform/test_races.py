"""Litmus tests on the running kernel: histogram, condition, comparison, and what can't be run is said."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from userfault.cli import cli
from userfault.conform.races.compare import compare
from userfault.conform.races.histogram import make_histogram, render
from userfault.conform.races.lower import Unrunnable, lower
from userfault.kernel.race import Outcomes
from userfault.litmus import load
from userfault.litmus.read import read


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


def test_a_usage_error_has_its_code() -> None:
    assert run("nonesuch").exit_code == 2
