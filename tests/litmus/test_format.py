"""The litmus format: what is wrong is said with its place; mutants apply; the matrix is what it says."""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import Path

import pytest

from userfault.check.engine import run
from userfault.litmus import LitmusError, compile_test, judged, load, matrix_jobs
from userfault.litmus.ast import PROPERTIES, WAITS, Atom, Formula
from userfault.litmus.mutants import parse_mutant, patch
from userfault.litmus.operations import KERNEL_OPERATIONS, OPERATIONS
from userfault.litmus.read import read, read_file
from userfault.model.anon_vma import put_anon_vma

GOOD = """userfault T
"Does it?"
{ A:0-1 = P; A:2-3 userfault; }
P0 : A ;
r0 = move 2 <- 0 ;
forall (0:r0 = 1)
expect v6.8 holds
"""

WRONG = [
    ("userfault T", "userfault", 2, "expected name"),
    ('"Does it?"', '"Does it"', 2, "unexpected"),
    ("A:0-1 = P", "A:0-0 = P", 3, "the range 0-0 is empty"),
    ("A:2-3", "A:0-3", 3, "this VMA overlaps another"),
    ("A:2-3", "A:20-21", 3, "beyond the model's 16 pages"),
    ("P0 : A", "P1 : A", 4, "this is no thread"),
    ("P0 : A", "P0 : B", 4, "there is no address space B"),
    ("move 2 <- 0", "jump 2 <- 0", 5, "there is no operation jump"),
    ("move 2 <- 0", "move 2", 5, "move takes addr <- addr"),
    ("move 2 <- 0", "move 9 <- 0", 5, "page 9 is beyond every VMA"),
    ("move 2 <- 0", "split Q", 5, "there is no page Q"),
    ("0:r0 = 1", "0:r7 = 1", 6, "no operation sets 0:r7"),
    ("expect v6.8 holds", "expect v6.8 violated", 7, "violated of what?"),
    ("expect v6.8 holds", "expect v3.10 holds", 5, "move does not exist in v3.10"),
    ("0:r0 = 1)", "0:r0 = -ENOSUCH)", 6, "ENOSUCH is no errno and no signal"),
    ("forall (0:r0 = 1)", "forall (dirty(A:0) = 1)", 6, "unexpected"),
    ("r0 = move 2 <- 0", "compact", 5, "no era of the model has compact"),
    ("r0 = move 2 <- 0", "r0 = wp 0", 5, "wp does not exist in v6.8"),
    ("A:0-1 = P;", "A:0-1 = P; waiting;", 3, "a fault of the model raises SIGBUS"),
    ("forall (0:r0 = 1)", "locations [0:r9;]", 6, "no operation sets 0:r9"),
    ("expect v6.8 holds", "", 6, "the file ends here"),
    ("expect v6.8 holds", "expect v6.8 violated page_is_liner", 7, "there is no property page_is_liner"),
    ("expect v6.8 holds", "ignore walk_is_complet\nexpect v6.8 holds", 7, "there is no property walk_is_complet"),
    ("expect v6.8 holds", "expect v6.9 holds", 7, "there is no era v6.9"),
    ("expect v6.8 holds", "ignore termination v9.9\nexpect v6.8 holds", 7, "there is no era v9.9"),
    ("A:0-1 = P;", "A:0-1 = P; swapout P dropped;", 3, "unexpected 'dropped'"),
]


@pytest.mark.parametrize(("good", "bad", "line", "problem"), WRONG)
def test_what_is_wrong_is_said_with_its_place(good: str, bad: str, line: int, problem: str) -> None:
    text = GOOD.replace(good, bad, 1)
    with pytest.raises(LitmusError) as caught:
        test = read(text, "t.litmus")
        compile_test(test, test.eras[0])
    message = str(caught.value)
    assert message.startswith(f"t.litmus:{line}:")
    assert problem in message
    assert message.splitlines()[2].strip() == "^"


def test_the_properties_that_a_test_may_name_are_those_that_break() -> None:
    """Every literal name in the sources, and `bound`, which is a verdict."""
    found = {"condition", "sometimes"}
    for room, calls in (("model", {"check": 1}), ("check", {"Failure": 0, "fail": 0})):
        for file in files(f"userfault.{room}").iterdir():
            if not file.name.endswith(".py"):
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    at = calls.get(getattr(node.func, "id", getattr(node.func, "attr", "")))
                    name = node.args[at] if at is not None and at < len(node.args) else None
                    if isinstance(name, ast.Constant):
                        found.add(str(name.value))
    assert found - {"bound"} == PROPERTIES


def test_the_grammar_and_the_operations_are_in_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "litmus.md").read_text()
    grammar, operations = (docs.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Grammar", "Operations"))
    lark = files("userfault.litmus").joinpath("litmus.lark").read_text()
    words = [set(re.findall(r'"(~?[a-z]\w+)"', text)) for text in (lark, grammar)]
    assert words[0] <= words[1]
    assert words[1] - words[0] == {"remap", "remove", "unmap"}  # names of events
    shown = {word for code in re.findall(r"`([^`]+)`", operations) for word in code.split()}
    assert {*OPERATIONS, *KERNEL_OPERATIONS} <= shown


def test_an_errno_and_a_place_are_read() -> None:
    text = GOOD.replace("0:r0 = 1", "0:r0 = -EEXIST \\/ swapped(A:2) = 1").replace(
        "forall", "locations [[A:0];] forall"
    )
    test = read(text, "t.litmus")
    assert [str(value) for value in test.outcome] == ["0:r0", "[A:0]", "swapped(A:2)"]
    condition = test.condition
    assert isinstance(condition, Formula)
    register, _, swapped = test.outcome
    assert condition.holds({register: -17, swapped: 0}) and condition.holds({register: 1, swapped: 1})
    assert not condition.holds({register: 1, swapped: 0})


def test_a_wait_is_a_value_of_a_condition() -> None:
    condition = read(GOOD.replace("0:r0 = 1", "0:r0 = waits"), "t.litmus").condition
    assert isinstance(condition, Atom) and condition.value == WAITS


def test_a_kernel_only_test_has_no_era() -> None:
    test = read(GOOD.replace("expect v6.8 holds", 'kernel only "it has no model"'), "t.litmus")
    assert (test.eras, test.kernel_only) == ((), "it has no model")


def test_a_good_test_is_read(tmp_path: Path) -> None:
    file = tmp_path / "t.litmus"
    file.write_text(GOOD)
    test = load(str(file))
    assert (test.name, test.question, test.eras) == ("T", "Does it?", ("v6.8",))


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(LitmusError, match=r"there is no test .nonesuch."):
        load("nonesuch")
    with pytest.raises(LitmusError, match=r"no operation .jump. on page"):
        load("matrix/page/jump+move")
    with pytest.raises(LitmusError, match=r"no era .v9\.9."):
        matrix_jobs(["v9.9"], 2)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "t.litmus"
    file.write_bytes(GOOD.encode()[:9] + b"\xff")
    with pytest.raises(LitmusError, match=r"t\.litmus: is no text in UTF-8 \(byte 9\)"):
        read_file(file)


def test_the_matrix_holds_every_pair_once() -> None:
    jobs = matrix_jobs(["v6.8"], 2)
    assert len(jobs) == len(set(jobs))
    assert ("matrix/page/move+referenced", "v6.8", "") in jobs
    assert len(matrix_jobs(["v6.8"], 3)) > len(jobs)


@pytest.mark.parametrize(("value", "wanted"), [(1, ("holds", "")), (7, ("violated", "condition"))])
def test_exists_asks_for_a_run_that_ends_so(value: int, wanted: tuple[str, str]) -> None:
    test = read(GOOD.replace("forall (0:r0 = 1)", f"exists (0:r0 = {value})"), "t.litmus")
    assert judged(test, run(compile_test(test, "v6.8")))[:2] == wanted


def test_a_situation_that_is_never_reached_breaks_sometimes() -> None:
    text = GOOD.replace("forall (0:r0 = 1)", 'sometimes "a page was moved" sometimes "a page was migrated"')
    test = read(text, "t.litmus")
    assert judged(test, run(compile_test(test, "v6.8"))) == (
        "violated",
        "sometimes",
        "never reached: a page was migrated",
    )


def test_a_mutant_that_does_not_fit_is_refused() -> None:
    text = "removes: x\nkills: S1 v6.8 p\n@@ anon_vma.put_anon_vma @@\n-    nothing like this\n"
    mutant = parse_mutant("M", text)
    with pytest.raises(LitmusError, match="fits nowhere"):
        patch("M", put_anon_vma, mutant.hunks[0])
    with pytest.raises(LitmusError, match=r"needs `removes"):
        parse_mutant("M", "removes: x\n")
