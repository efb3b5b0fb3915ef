"""A function's text is found without parsing its whole file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from userfault.check import source
from userfault.check.errors import CheckError
from userfault.check.source import parse

MODEL = sorted((Path(source.__file__).parents[1] / "model").glob("*.py"))

AWKWARD = '''
def decorate(*_):
    return lambda fn: fn


@decorate(
    1,
)
@decorate()
def first(
    a: int,
) -> int:
    """Text
at the margin, (and an open bracket
    """
    if a:
# a comment at the margin
        return 1

    return 2
# after it
def second() -> str:
    return """x
def third(): ..."""
x = 1


def outer():
    def inner():
        return [
            1,
        ]

    return inner
'''


def functions(text: str) -> list[tuple[int, ast.FunctionDef]]:
    """Every function of a file with its first line, by Python's own parser."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [(min([node.lineno, *(each.lineno for each in node.decorator_list)]), node) for node in found]


@pytest.mark.parametrize(
    "text", [*(path.read_text() for path in MODEL), AWKWARD], ids=[*map(str, range(len(MODEL))), "awkward"]
)
def test_the_statement_at_a_line_is_what_python_finds_there(text: str) -> None:
    lines = text.splitlines(keepends=True)
    for first, node in functions(text):
        _, found = source._block(lines, first)
        assert found is not None
        assert ast.dump(found) == ast.dump(node)


def test_a_function_without_a_file_is_refused() -> None:
    scope: dict[str, object] = {}
    exec("def f(): pass", scope)
    for fn in (scope["f"], len):
        with pytest.raises(CheckError, match="has no source that can be read"):
            parse(fn)


def test_a_lambda_is_refused() -> None:
    with pytest.raises(CheckError, match="is not a plain `def`"):
        parse(lambda: 1)
