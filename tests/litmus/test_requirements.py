"""docs/requirements.md is true: every claim has a test, a mutant or a reason, and every test and mutant has a row."""

from __future__ import annotations

import re
from pathlib import Path

from userfault.litmus import library, mutant_library

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "requirements.md").read_text()


def tables() -> list[list[dict[str, str]]]:
    """Every table: its rows by the heads of their columns."""
    out: list[list[dict[str, str]]] = []
    heads: list[str] = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            heads = []
        elif not heads:
            heads = cells
            out.append([])
        elif set(line) - set("| -"):
            assert len(cells) == len(heads), line
            out[-1].append(dict(zip(heads, cells, strict=True)))
    return out


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_claim_has_a_test_a_mutant_or_a_reason() -> None:
    claims, steps, *_ = tables()
    assert [row["R"] for row in claims] == [f"R{n}" for n in range(1, 41)]
    assert [row["D"] for row in steps] == [f"D-{n}" for n in range(1, 36) if n != 17]
    for table in tables():
        for row in table:
            why = next((row[head] for head in row if head.startswith("why")), "")
            named = names(row.get("tests", "")) + names(row.get("mutants", ""))
            assert bool(named) != bool(why), row


def test_what_no_interleaving_can_break_has_a_test_of_another_kind() -> None:
    for row in tables()[0]:
        if not names(row["tests"]) and row["R"] != "R20":
            file, _, test = re.findall(r"tests/\S+", row["why nothing here breaks it"])[0].partition("::")
            assert f"def {test}(" in (ROOT / file).read_text(), row


def test_every_invariant_has_mutants_that_break_its_properties() -> None:
    (rows,) = (table for table in tables() if "invariant" in table[0])
    assert [row["invariant"] for row in rows] == [*(f"I{n}" for n in range(1, 15)), "sometimes"]
    breaks = {mutant.name: mutant.property for mutant in mutant_library()}
    for row in rows:
        assert {breaks[name] for name in names(row["mutants"])} == set(row["properties"].split(", ")), row
    shown = {each for row in rows for each in row["properties"].split(", ")}
    assert shown == {mutant.property for mutant in mutant_library() if not mutant.closes}


def test_every_name_is_there_and_has_a_row() -> None:
    tests, mutants = {test.name for test in library()}, {mutant.name for mutant in mutant_library()}
    rows = [row for table in tables() for row in table]
    assert {name for row in rows for name in names(row.get("tests", ""))} == tests
    assert {name for row in rows for name in names(row["mutants"])} == mutants


def test_a_name_says_its_row() -> None:
    """`R16-gup` and the mutant `R16-lock` are about R16, `D-5-split` about D-5, `E-14-root` about E-14."""
    by_id = {next(iter(row.values())): row for table in tables() for row in table}
    for kind, every in (("tests", library()), ("mutants", mutant_library())):
        for each in every:
            about = re.match(r"R\d+|[DE]-\d+|S\d", each.name)
            if about and about[0] in by_id and kind in by_id[about[0]]:
                assert each.name in names(by_id[about[0]][kind]), (each.name, about[0])
