"""The findings: what their replay strings stand for still happens, and the table and `known.txt` know each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from userfault.check.trace import render
from userfault.cli.jobs import decode
from userfault.litmus import matrix_jobs, mutant_library
from userfault.litmus.matrix import known, understood
from userfault.model.era import ERAS

FINDINGS = Path(__file__).parents[1] / "findings"
FILES = sorted(FINDINGS.glob("F-*.md"))
OUTSIDE = {
    "F-7": "the model was wrong",
    "F-14": "userfault conform found it",
    "F-15": "userfault conform found it",
    "F-18": "userfault conform found it",
    "F-19": "userfault run found it, in a guest",
    "F-23": "found with userfault conform",
    "F-25": "userfault conform found it",
}
"""Findings without a trace of the model."""


def traces() -> Iterator[tuple[str, str, str]]:
    """(finding, property, replay string) of every trace."""
    for file in FILES:
        for prop, string in re.findall(
            r"^broken: (\w+)\n(?:.+\n)*?replay: userfault replay '(.+)'$", file.read_text(), re.M
        ):
            yield file.stem, prop, string


TRACES = list(traces())


@pytest.mark.parametrize(
    ("finding", "prop", "string"), TRACES, ids=[f"{name}-{string[:20]}" for name, _, string in TRACES]
)
def test_a_trace_can_be_replayed(finding: str, prop: str, string: str) -> None:
    replay = decode(string)
    text = render(replay.program, replay.moves, replay.lasso)  # raises if the schedule does not fit: `make findings`
    assert f"\nbroken: {prop}\n" in text


def test_every_finding_of_the_model_has_a_trace() -> None:
    assert {name for name, _, _ in TRACES} | OUTSIDE.keys() == {file.stem for file in FILES}
    assert not {name for name, _, _ in TRACES} & OUTSIDE.keys()


def test_every_finding_is_in_the_table_and_what_is_known_is_a_finding() -> None:
    listed = re.findall(r"^\| \[(F-\d+)\]\(\1\.md\) \|", (FINDINGS / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(file.stem for file in FILES)
    assert {finding for _, finding in known().values()} <= set(listed)


def test_what_was_run_is_counted_as_it_is_now() -> None:
    """So many there are, and are understood to be violated: a run that counts otherwise has surprises."""
    text = " ".join((FINDINGS / "README.md").read_text().replace(",", "").split())
    counts = [
        tuple(map(int, each)) for each in re.findall(r"All (\d+) (?:pairs|triples)[^.]*?(\d+) hold (\d+) are", text)
    ]
    names = [[job for job in matrix_jobs([*ERAS], 3) if job[0].count("+") == extra] for extra in (1, 2)]
    violated = [sum(understood(name, era)[0] != "" for name, era, _ in jobs) for jobs in names]
    assert counts == [(len(jobs), len(jobs) - some, some) for jobs, some in zip(names, violated, strict=True)]
    closing = sum(mutant.closes for mutant in mutant_library())
    total = len(mutant_library())
    assert f"All {total} mutants: {total - closing} are killed" in text and f"under the {closing} others" in text
