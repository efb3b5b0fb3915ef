"""The compiler: what it refuses and how; and that compiled code does what Python does."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userfault.check.compile import Call, ThreadSpec, compile_program
from userfault.check.errors import CompileError
from userfault.check.explore import Machine

from . import programs as p

REFUSED = [
    ("    try:\n        s.x = 1\n    finally:\n        pass", "`try` is outside", "error values"),
    ("    with s.a:\n        pass", "`with` is outside", "lock and unlock"),
    ("    assert s.x", "`assert` is outside", "BUG_ON"),
    ("    y = [s.x]", "List expression is outside", "tuple"),
    ("    s.z = 1", "shared has no field `z`", "declared field"),
    ("    s.x = s.x / 2", "this operator", "+ - *"),
    ("    s.x = f'{s.x}'", "JoinedStr expression", "string literal"),
    ("    s.other = other_t(1)", "making a other_t", "allocation function"),
    ("    s.items = s.items", "assigning the list", "append and remove"),
    ("    s.x = undefined_name", "`undefined_name` has no value", "assigned on every path"),
    ("    s.x = s.other", "a reference where a number", "comparison"),
    ("    if s.other == s.x:\n        pass", "comparing a reference with a number", "two references"),
    ("    for i in s.x:\n        pass", "iterating over this", "list field"),
    ("    s.items.sort()", "`.sort` of a list", "append"),
]


@pytest.mark.parametrize(("body", "problem", "instead"), REFUSED)
def test_code_outside_the_subset_is_refused_with_its_place(
    tmp_path: Path, body: str, problem: str, instead: str
) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(f"def bad(s: shared) -> None:\n    s.y = 0\n{body}\n")
    scope: dict[str, Any] = dict(vars(p))
    exec(compile(file.read_text(), str(file), "exec"), scope)
    s = p.fresh()
    with pytest.raises(CompileError) as caught:
        compile_program("bad", [ThreadSpec("P0", [Call(scope["bad"], (s,))])], roots=[p.other_t()])
    message = str(caught.value)
    assert problem in message
    assert instead in message
    lines = message.splitlines()
    assert lines[0].startswith(f"{tmp_path.name}/snippet.py:3:")
    assert lines[1].strip() == body.splitlines()[0].strip()
    column = int(lines[0].split(":")[2])
    assert lines[2] == " " * (4 + column - 1) + "^"


def run_both(fn: Callable[..., Any], s: p.shared, twin: p.shared) -> tuple[dict[str, int], dict[str, int]]:
    """x and y after the compiled function ran alone, and after Python ran it on the twin."""
    program = compile_program("alone", [ThreadSpec("P0", [Call(fn, (s,))])])
    machine = Machine(program)
    state = machine.initial()
    while not machine.ended(state):
        state, _ = machine.step(state, 0)
    compiled = {"x": s.x, "y": s.y}
    for cell, value in zip(program.cells, state, strict=False):
        name = cell.name.rpartition(".")[2]
        if cell.name.startswith("shared0.") and name in compiled:
            assert isinstance(value, int)
            compiled[name] = value
    fn(twin)
    return compiled, {"x": twin.x, "y": twin.y}


names = st.sampled_from(["s.x", "s.y", "v", "w"])
numbers = st.integers(0, 5).map(str)
atoms = st.one_of(names, numbers)
exprs = st.recursive(
    atoms,
    lambda sub: st.one_of(
        st.tuples(sub, st.sampled_from(["+", "-", "*", "&", "|", "^"]), sub).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(sub, sub, sub, sub).map(lambda t: f"({t[0]} if {t[1]} < {t[2]} else {t[3]})"),
        st.tuples(sub, sub).map(lambda t: f"min({t[0]}, {t[1]})"),
    ),
    max_leaves=4,
)
conds = st.one_of(
    st.tuples(exprs, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), exprs).map(" ".join),
    st.tuples(names, names, names).map(lambda t: f"{t[0]} < 3 and not {t[1]} == {t[2]}"),
    st.tuples(names, names).map(lambda t: f"{t[0]} in (1, 2) or {t[1]} > 4"),
)
assigns = st.tuples(names, exprs).map(lambda t: f"{t[0]} = ({t[1]}) & 7")


def _indent(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _while(cond: str, body: list[str]) -> str:
    """A loop with a counter of its own, whatever loops its body holds."""
    used = [int(number) for number in re.findall(r"n(\d+)", "".join(body))]
    n = f"n{max(used, default=0) + 1}"
    return f"{n} = 0\nwhile {n} < 3 and ({cond}):\n{_indent([f'{n} += 1', *body])}"


blocks = st.recursive(
    assigns,
    lambda sub: st.one_of(
        st.tuples(conds, st.lists(sub, min_size=1, max_size=3), st.lists(sub, min_size=1, max_size=2)).map(
            lambda t: f"if {t[0]}:\n{_indent(t[1])}\nelse:\n{_indent(t[2])}"
        ),
        st.tuples(st.integers(1, 3), st.lists(sub, min_size=1, max_size=2), conds).map(
            lambda t: f"for i in range({t[0]}):\n{_indent([*t[1], f'if {t[2]}:', '    break', 'w = i'])}"
        ),
        st.tuples(conds, st.lists(sub, min_size=1, max_size=2)).map(lambda t: _while(t[0], t[1])),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(blocks, min_size=1, max_size=5), st.integers(0, 7), st.integers(0, 7))
def test_compiled_code_does_what_python_does(body: list[str], x: int, y: int) -> None:
    text = "def fn(s: shared) -> None:\n    v = 1\n    w = 2\n" + _indent(body)
    scope: dict[str, Any] = dict(vars(p))
    exec(compile(text, "random.py", "exec"), scope)
    fn = scope["fn"]
    fn.__source__ = ("random.py", 1, text.splitlines())
    s, twin = p.fresh(), p.fresh()
    s.x = twin.x = x
    s.y = twin.y = y
    compiled, python = run_both(fn, s, twin)
    assert compiled == python, text


def lists(s: p.shared) -> None:
    one = s.items[0]
    s.items.remove(one)
    s.items.append(one)
    s.items.insert(0, s.other)
    for each in s.items:
        s.x = (s.x * 2 + each.value) & 7
        if each is one:
            break
    if one in s.items and len(s.items) == 3:
        s.y = 7


def test_lists_grow_and_shrink_as_pythons_do() -> None:
    def make() -> p.shared:
        s = p.fresh()
        s.other = p.other_t(1)
        s.items = [p.other_t(2), p.other_t(3)]
        return s

    compiled, python = run_both(lists, make(), make())
    assert compiled == python


def pairs(s: p.shared, h: p.holder) -> None:
    h.pair = p.pair_t(low=3, ref=s.other, set=True)
    got = h.pair
    h.pair = got._replace(high=got.low + 2)
    if h.pair.ref is s.other and h.pair.set and h.pair != got:
        s.x = h.pair.high
        s.y = h.pair.low


def test_value_types_are_words_of_fields() -> None:
    s, twin = p.fresh(), p.fresh()
    s.other = p.other_t(1)
    twin.other = p.other_t(1)

    program = compile_program("pairs", [ThreadSpec("P0", [Call(pairs, (s, p.holder()))])])
    machine = Machine(program)
    state = machine.initial()
    while not machine.ended(state):
        state, _ = machine.step(state, 0)
    values = {cell.name: value for cell, value in zip(program.cells, state, strict=False)}
    pairs(twin, p.holder())
    assert (values["shared0.x"], values["shared0.y"]) == (twin.x, twin.y) == (5, 3)


def test_what_nobody_writes_costs_nothing() -> None:
    s = p.fresh()
    program = compile_program("t", [ThreadSpec("P0", [Call(p.increment, (s, False))])])
    assert [cell.name for cell in program.cells] == ["shared0.x"]
