"""A function's source, parsed once: its AST, its lines, and which names it assigns where."""

from __future__ import annotations

import ast
import linecache
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_type_hints

from .errors import CheckError
from .types import Type, from_hint

NO_DEFAULT = object()


@dataclass(slots=True)
class Function:
    """What the compiler needs of a Python function."""

    fn: Callable[..., Any]
    name: str
    file: str
    first_line: int
    lines: list[str]
    indent: int
    node: ast.FunctionDef
    hints: dict[str, Any]
    scope: dict[str, Any]
    direct: frozenset[str] = frozenset()
    assigned: frozenset[str] = frozenset()
    kinds: dict[str, Type | None] = field(default_factory=dict)
    return_kinds: tuple[Type | None, ...] = ()
    params: tuple[tuple[str, Type | None, Any], ...] = ()
    variadic: bool = False
    loops: dict[ast.stmt, tuple[str, ...]] = field(default_factory=dict)
    """The names that each loop assigns."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Its lines in names.SOURCES."""
    declared: dict[ast.AnnAssign, Type] = field(default_factory=dict)
    """The types of its annotated variables, as they were met."""

    def text(self, line: int) -> str:
        return self.lines[line - self.first_line] if 0 <= line - self.first_line < len(self.lines) else ""


@dataclass(slots=True)
class _Uses:
    """For one name: the loops around each of its assignments and uses, outermost first."""

    stores: list[tuple[int, ...]] = field(default_factory=list)
    loads: list[tuple[int, ...]] = field(default_factory=list)


@cache
def parse(fn: Callable[..., Any]) -> Function:
    """Parse a function. A function made from patched text carries it as `__source__` (file, first line, lines)."""
    file, first, lines, node = _text(fn)
    uses, loops = _collect(node)
    spec = node.args
    given_names = {arg.arg for arg in [*spec.args, *spec.kwonlyargs]}
    direct = frozenset(name for name, use in uses.items() if name not in given_names and _is_direct(use))
    scope = dict(fn.__globals__)
    if fn.__closure__:
        scope.update(
            {name: cell.cell_contents for name, cell in zip(fn.__code__.co_freevars, fn.__closure__, strict=True)}
        )
    hints = get_type_hints(fn, include_extras=True)
    kinds = {name: _kind(hint, fn.__name__) for name, hint in hints.items()}
    values = fn.__defaults__ or ()
    defaults = dict(zip([arg.arg for arg in spec.args[len(spec.args) - len(values) :]], values, strict=True))
    defaults |= fn.__kwdefaults__ or {}
    return Function(
        params=tuple(
            (arg.arg, kinds.get(arg.arg), defaults.get(arg.arg, NO_DEFAULT)) for arg in [*spec.args, *spec.kwonlyargs]
        ),
        variadic=bool(spec.vararg or spec.kwarg or spec.posonlyargs),
        return_kinds=tuple(_kind(arg, fn.__name__) for arg in getattr(hints.get("return"), "__args__", ())),
        kinds=kinds,
        fn=fn,
        name=fn.__name__,
        file=_short(file),
        first_line=first,
        lines=lines,
        indent=len(lines[0]) - len(lines[0].lstrip()),
        node=node,
        hints=hints,
        scope=scope,
        direct=direct,
        loops=loops,
        assigned=frozenset(name for name, use in uses.items() if use.stores),
    )


def _text(fn: Callable[..., Any]) -> tuple[str, int, list[str], ast.FunctionDef]:
    """The file of a function, its first line, its lines, and the tree of them."""
    given = getattr(fn, "__source__", None)
    node: ast.stmt | None = None
    if given is not None:
        file, first, lines = given
        node = ast.parse(textwrap.dedent("\n".join(lines))).body[0]
    else:
        code = getattr(fn, "__code__", None)
        file, first = (code.co_filename, code.co_firstlineno) if code is not None else ("", 1)
        lines, node = _block(linecache.getlines(file), first)
        if node is None:
            raise CheckError(f"{fn!r} has no source that can be read: give the checker a function of a file")
    if not isinstance(node, ast.FunctionDef):
        raise CheckError(f"{file}:{first}: {fn!r} is not a plain `def`")
    return file, first, lines, node


def _block(whole: list[str], first: int) -> tuple[list[str], ast.stmt | None]:
    """The statement that begins at a line, and its tree. (To parse whole files takes as long as to compile a test.)"""
    lines: list[str] = []
    margin, began = -1, False
    for line in chain(islice(whole, first - 1, None), ["end"]):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if began and text and text[0] not in "#)]}" and indent <= margin:
            # Nothing is cut off: an open bracket or string would not parse.
            with suppress(SyntaxError):
                return lines, ast.parse(textwrap.dedent("\n".join(lines))).body[0]
        margin = indent if margin < 0 else margin
        began |= not text.startswith("@")
        lines.append(line.rstrip("\n"))
    return [], None


def _kind(hint: Any, where: str) -> Type | None:
    """The type of an annotation, or None where it is not one of a single value."""
    try:
        return from_hint(hint, where)
    except CheckError:
        return None


def _short(file: str) -> str:
    parts = Path(file).parts
    return "/".join(parts[-2:])


def _is_direct(use: _Uses) -> bool:
    """A name assigned once whose uses all lie inside the loops of the assignment needs no variable of its own."""
    if len(use.stores) != 1:
        return False
    loops = use.stores[0]
    return all(load[: len(loops)] == loops for load in use.loads)


def _collect(node: ast.FunctionDef) -> tuple[dict[str, _Uses], dict[ast.stmt, tuple[str, ...]]]:
    """Of each name, where it is assigned and used; of each loop, the names that it assigns."""
    uses: dict[str, _Uses] = {}
    stored: dict[ast.stmt, dict[str, None]] = {}
    around: list[ast.stmt] = []

    def use(name: str, loops: tuple[int, ...], stores: int) -> None:
        found = uses.setdefault(name, _Uses())
        if stores:
            found.stores += [loops] * stores
            for loop in around:
                stored[loop][name] = None
        else:
            found.loads.append(loops)

    def visit(tree: ast.AST, loops: tuple[int, ...]) -> None:
        if isinstance(tree, ast.Name):
            use(tree.id, loops, 0 if isinstance(tree.ctx, ast.Load) else 1)
            return
        if isinstance(tree, ast.AugAssign) and isinstance(tree.target, ast.Name):
            use(tree.target.id, loops, 2)
        if isinstance(tree, ast.For | ast.While):
            inner = (*loops, id(tree))
            stored[tree] = {}
            around.append(tree)
            if isinstance(tree, ast.For):
                visit(tree.iter, loops)
                visit(tree.target, inner)
            else:
                visit(tree.test, inner)
            for statement in tree.body:
                visit(statement, inner)
            around.pop()
            for statement in tree.orelse:
                visit(statement, loops)
            return
        # As ast.iter_child_nodes, without the many nodes that have no children.
        for name in tree._fields:
            child = getattr(tree, name)
            for each in child if type(child) is list else (child,):
                if isinstance(each, ast.AST) and each._fields:
                    visit(each, loops)

    for statement in node.body:
        visit(statement, ())
    for arg in node.args.args + node.args.kwonlyargs:
        # The call is the first assignment: a parameter that is assigned again is never direct.
        uses.setdefault(arg.arg, _Uses())
    return uses, {loop: tuple(names) for loop, names in stored.items()}
