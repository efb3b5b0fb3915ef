"""Reading litmus tests: text -> `ast.Test`."""

from __future__ import annotations

import errno
import signal
import sys
import textwrap
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from ..model.era import ERAS
from .ast import PROPERTIES, WAITS, At, Atom, Column, Expectation, Formula, Operation, Setup, Test, Value, Vma
from .errors import LitmusError, at_place

_FRIENDLY = {
    "QUESTION": 'the question that the test asks, in quotes, ending in `?"`',
    "LBRACE": "the initial state in `{ ... }`",
    "SEMICOLON": "`;` at the end of the statement or row",
    "ERA": "an era such as v6.8",
    "VERDICT": "`holds` or `violated PROPERTY`",
    "EXPECT": "`expect ERA VERDICT`",
    "USERFAULT": "`userfault NAME` in the first line",
}


LONGEST_BYTES = 1 << 20
"""Of a test's text: who names a device or a core dump by mistake is told, before all of it is in memory."""


@cache
def _parser() -> Lark:
    grammar = files(__package__).joinpath("litmus.lark").read_text()
    # The tables take as long as a small test. They are kept as bytecode is: beside it, and not where Python is to write none.
    kept = str(Path(__file__).parent / "__pycache__" / f"litmus.lark.{sys.implementation.cache_tag}")
    return Lark(grammar, parser="lalr", propagate_positions=True, cache=False if sys.dont_write_bytecode else kept)


def read(text: str, file: str) -> Test:
    """Parse a test. Raises LitmusError with line, column and a caret."""
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(text, file, error) from None
    return _Reader(text, file).test(tree)


def read_file(path: Path) -> Test:
    """Parse a file, or a pipe. Raises LitmusError."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_BYTES + 1)
        if len(data) > LONGEST_BYTES:
            raise LitmusError(f"{path}: is longer than {LONGEST_BYTES >> 20} MiB: that is no litmus test")
        return read(data.decode(), str(path))
    except OSError as error:
        raise LitmusError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LitmusError(f"{path}: is no text in UTF-8 (byte {error.start}): that is no litmus test") from None


def _syntax_error(text: str, file: str, error: UnexpectedInput) -> LitmusError:
    line, column = error.line, error.column
    if isinstance(error, UnexpectedEOF) or line < 1:
        lines = text.splitlines() or [""]
        line, column = len(lines), len(lines[-1]) + 1
        problem = "the file ends here"
    elif isinstance(error, UnexpectedToken):
        problem = f"unexpected {str(error.token)!r}" if error.token.type != "$END" else "the file ends here"
    elif isinstance(error, UnexpectedCharacters):
        problem = f"unexpected {error.char!r}"
    else:
        problem = "this can't be read"
    wanted = sorted(set(getattr(error, "expected", None) or getattr(error, "allowed", None) or ()))
    names = [_FRIENDLY.get(each, each.lower()) for each in wanted]
    return at_place(file, line, max(column, 1), text, problem, "expected " + " or ".join(names[:6]))


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file

    def fail(self, at: At, problem: str, instead: str) -> LitmusError:
        return at_place(self.file, at.line, at.column, self.text, problem, instead)

    def test(self, tree: Tree[Token]) -> Test:
        name, question, init, threads, *rest = tree.children
        condition: Formula | Atom | None = None
        quantifier = "forall"
        sometimes: list[str] = []
        ignore: set[tuple[str, str]] = set()
        expect: list[Expectation] = []
        locations: tuple[tuple[At, Value], ...] = ()
        kernel_only = ""
        for part in rest:
            if part is None:
                continue
            assert isinstance(part, Tree)
            if part.data == "condition":
                quantifier = str(part.children[0])
                condition = self.formula(part.children[1])
            elif part.data == "locations":
                locations = tuple((self.at(each), self.value(each)) for each in part.children)
            elif part.data == "kernel_only":
                kernel_only = " ".join(str(part.children[0])[1:-1].split())
            elif part.data == "ignore":
                prop, era = part.children
                ignore.add((self.property(prop), "" if era is None else self.era(era)))
            elif part.data == "sometimes":
                sometimes.append(str(part.children[0])[1:-1])
            else:
                era, verdict, prop = part.children
                if (verdict == "violated") != (prop is not None):
                    at = At(era.line or 1, era.column or 1)  # type: ignore[union-attr]
                    raise self.fail(at, f"{verdict} of what?", "write `violated PROPERTY`, or `holds` alone")
                expect.append(Expectation(self.era(era), str(verdict), "" if prop is None else self.property(prop)))
        assert isinstance(init, Tree) and isinstance(threads, Tree)
        return Test(
            name=str(name),
            question=" ".join(str(question)[1:-1].split()),
            init=tuple(self.statement(each) for each in init.children if isinstance(each, Tree)),
            threads=self.threads(threads),
            quantifier=quantifier,
            condition=condition,
            sometimes=tuple(sometimes),
            ignore=frozenset(ignore),
            expect=tuple(expect),
            locations=locations,
            kernel_only=kernel_only,
            file=self.file,
            text=self.text,
        )

    def era(self, node: Any) -> str:
        if str(node) not in ERAS:
            raise self.fail(self.at(node), f"there is no era {node}", f"one of {', '.join(ERAS)}")
        return str(node)

    def property(self, node: Any) -> str:
        if str(node) not in PROPERTIES:
            names = textwrap.fill(", ".join(sorted(PROPERTIES)), 100, subsequent_indent="  ")
            raise self.fail(self.at(node), f"there is no property {node}", f"one of {names}")
        return str(node)

    def at(self, node: Any) -> At:
        if isinstance(node, Token):
            return At(node.line or 1, node.column or 1)
        return At(getattr(node.meta, "line", 1), getattr(node.meta, "column", 1))

    def statement(self, tree: Tree[Token]) -> Vma | Setup:
        at = self.at(tree)
        if tree.data != "vma":
            what = {"forked": "fork", "pinned": "pin"}.get(str(tree.data), str(tree.data))
            tokens = [t for t in tree.children if isinstance(t, Token)]
            names = [str(t) for t in tokens if t.type == "NAME"]
            names += [str(t.data) for t in tree.children if isinstance(t, Tree)]
            number = next((int(t) for t in tokens if t.type == "INT"), 0)
            return Setup(at, what, tuple(names), number)
        place, *others = tree.children
        assert isinstance(place, Tree)
        mm, first, last = place.children
        flags: set[str] = set()
        pgoff: int | None = None
        pages: tuple[str, ...] = ()
        huge = False
        for part in others:
            if part is None:
                continue
            assert isinstance(part, Tree)
            if part.data == "pgoff":
                pgoff = int(str(part.children[0]))
            elif part.data in ("pages", "huge"):
                pages = tuple(str(each) for each in part.children)
                huge = part.data == "huge"
            else:
                flags.add(str(part.data))
        vma = Vma(at, str(mm), int(str(first)), int(str(last)), frozenset(flags), pgoff, pages, huge)
        if vma.last <= vma.first:
            raise self.fail(
                at, f"the range {vma.first}-{vma.last} is empty", "write FIRST-END, END not included: 0-1 is one page"
            )
        return vma

    def threads(self, tree: Tree[Token]) -> tuple[Column, ...]:
        rows = [row for row in tree.children if isinstance(row, Tree)]
        head, *body = rows
        columns: list[Column] = []
        for number, cell in enumerate(head.children):
            assert isinstance(cell, Tree)
            words = [str(each) for each in cell.children]
            at = self.at(cell.children[0]) if cell.children else self.at(head)
            if (
                not words
                or words[0] != f"P{number}"
                or len(words) not in (1, 3)
                or (len(words) == 3 and words[1] != ":")
            ):
                raise self.fail(
                    at, "this is no thread", f"the first row names the threads: `P{number}` or `P{number} : MM`"
                )
            operations = []
            for row in body:
                if len(row.children) != len(head.children):
                    raise self.fail(
                        self.at(row), f"{len(row.children)} cells in a row of {len(head.children)} threads", "use `|`"
                    )
                sub = row.children[number]
                assert isinstance(sub, Tree)
                if sub.children:
                    operations.append(self.operation(sub))
            columns.append(Column(at, words[0], words[2] if len(words) == 3 else "", tuple(operations)))
        return tuple(columns)

    def operation(self, cell: Tree[Token]) -> Operation:
        words = [each for each in cell.children if isinstance(each, Token)]
        at = self.at(words[0])
        register = ""
        if len(words) > 1 and words[1].type == "EQUALS":
            register = str(words[0])
            words = words[2:]
        if not words or words[0].type != "NAME":
            raise self.fail(at, "an operation is missing here", "write `[rN =] OPERATION ARGUMENTS`")
        args: list[str | int] = [int(w) if w.type == "INT" else str(w) for w in words[1:]]
        return Operation(at, str(words[0]), tuple(args), register)

    def formula(self, node: Any) -> Formula | Atom:
        assert isinstance(node, Tree)
        if node.data == "compare":
            value, compare, number = node.children
            assert isinstance(number, Token)
            return Atom(self.at(node), self.value(value), str(compare), self.number(number))
        kind = {"disjunction": "or", "conjunction": "and", "negation": "not"}[str(node.data)]
        return Formula(kind, tuple(self.formula(each) for each in node.children if isinstance(each, Tree)))

    def value(self, node: Any) -> Value:
        assert isinstance(node, Tree)
        parts = [str(each) for each in node.children]
        kind = str(node.data)
        if kind == "register":
            return Value(kind, parts[1], int(parts[0]))
        if kind == "memory":
            return Value(kind, parts[0], int(parts[1]))
        if kind == "mapcount":
            return Value(kind, parts[0])
        return Value(parts[0], parts[1], int(parts[2]))

    def number(self, token: Token) -> int:
        """A number, `waits`, or the negative errno or signal of its name."""
        if token.type == "INT":
            return int(token)
        if token.type == "WAITS":
            return WAITS
        name = str(token)[1:]
        code = getattr(signal if name.startswith("SIG") else errno, name, None)
        if not isinstance(code, int):
            raise self.fail(self.at(token), f"{name} is no errno and no signal", "such as -EEXIST or -SIGBUS")
        return -code
