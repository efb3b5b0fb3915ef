"""A function's source, parsed once: its AST, its lines, and which names it assigns where."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
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
    given = getattr(fn, "__source__", None)
    indent = 0
    if given is None:
        try:
            file = fn.__code__.co_filename
            lines, functions = _module(file)
            node = functions[fn.__code__.co_firstlineno]
        except (OSError, AttributeError, KeyError) as error:
            raise CheckError(f"{fn!r} has no source that can be read: give the checker a function of a file") from error
        first = 1
    else:
        file, first, lines = given
        text = "\n".join(lines)
        indent = len(text) - len(text.lstrip())
        made = ast.parse(textwrap.dedent(text)).body[0]
        if not isinstance(made, ast.FunctionDef):
            raise CheckError(f"{file}:{first}: {fn!r} is not a plain `def`")
        node = made
    uses = _collect(node)
    given_names = {arg.arg for arg in node.args.args}
    direct = frozenset(name for name, use in uses.items() if name not in given_names and _is_direct(use))
    scope = dict(fn.__globals__)
    if fn.__closure__:
        scope.update(
            {name: cell.cell_contents for name, cell in zip(fn.__code__.co_freevars, fn.__closure__, strict=True)}
        )
    hints = get_type_hints(fn, include_extras=True)
    spec = node.args
    parameters = inspect.signature(fn).parameters
    return Function(
        params=tuple(
            (
                arg.arg,
                _kind(hints[arg.arg], fn.__name__) if arg.arg in hints else None,
                parameters[arg.arg].default
                if parameters[arg.arg].default is not inspect.Parameter.empty
                else NO_DEFAULT,
            )
            for arg in [*spec.args, *spec.kwonlyargs]
        ),
        variadic=bool(spec.vararg or spec.kwarg or spec.posonlyargs),
        return_kinds=tuple(_kind(arg, fn.__name__) for arg in getattr(hints.get("return"), "__args__", ())),
        kinds={name: _kind(hint, fn.__name__) for name, hint in hints.items()},
        fn=fn,
        name=fn.__name__,
        file=_short(file),
        first_line=first,
        lines=lines,
        indent=indent,
        node=node,
        hints=hints,
        scope=scope,
        direct=direct,
        loops={loop: _stored(loop) for loop in ast.walk(node) if isinstance(loop, ast.For | ast.While)},
        assigned=frozenset(name for name, use in uses.items() if use.stores),
    )


@cache
def _module(file: str) -> tuple[list[str], dict[int, ast.FunctionDef]]:
    """The lines of a file, and its functions by the line that they (or their decorators) begin at: read and parsed once."""
    lines = [line.rstrip("\n") for line in linecache.getlines(file)]
    if not lines:
        raise OSError(f"{file} can't be read")
    functions = {
        min([node.lineno, *(each.lineno for each in node.decorator_list)]): node
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.FunctionDef)
    }
    return lines, functions


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


def _stored(loop: ast.stmt) -> tuple[str, ...]:
    names = [sub.id for sub in ast.walk(loop) if isinstance(sub, ast.Name) and isinstance(sub.ctx, ast.Store)]
    return tuple(dict.fromkeys(names))


def _collect(node: ast.FunctionDef) -> dict[str, _Uses]:
    uses: dict[str, _Uses] = {}

    def visit(tree: ast.AST, loops: tuple[int, ...]) -> None:
        if isinstance(tree, ast.Name):
            use = uses.setdefault(tree.id, _Uses())
            (use.loads if isinstance(tree.ctx, ast.Load) else use.stores).append(loops)
            return
        if isinstance(tree, ast.AugAssign) and isinstance(tree.target, ast.Name):
            use = uses.setdefault(tree.target.id, _Uses())
            use.stores += [loops, loops]
        if isinstance(tree, ast.For | ast.While):
            inner = (*loops, id(tree))
            if isinstance(tree, ast.For):
                visit(tree.iter, loops)
                visit(tree.target, inner)
            else:
                visit(tree.test, inner)
            for statement in tree.body:
                visit(statement, inner)
            for statement in tree.orelse:
                visit(statement, loops)
            return
        for child in ast.iter_child_nodes(tree):
            visit(child, loops)

    for statement in node.body:
        visit(statement, ())
    for arg in node.args.args + node.args.kwonlyargs:
        # The call is the first assignment: a parameter that is assigned again is never direct.
        uses.setdefault(arg.arg, _Uses())
    return uses
