"""Mutants: small patches of modelled functions. Most remove a step of the protocol; a few close one of its holes."""

from __future__ import annotations

import importlib
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from .errors import LitmusError


class Hunk(NamedTuple):
    """`@@ module.function @@` and its lines."""

    module: str
    function: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Mutant:
    """A patch file.

    removes: which step it drops, or what it adds. test, era, property: what kills it, as the file's `kills` line says.
    closes: the other way round, the test is violated as the kernel was, and holds under the patch.
    """

    name: str
    removes: str
    test: str
    era: str
    property: str
    hunks: tuple[Hunk, ...]
    closes: bool = False

    def expected(self) -> tuple[str, str]:
        """(verdict, property) of its test under the patch."""
        return ("holds", "") if self.closes else ("violated", self.property)


def parse_mutant(name: str, text: str) -> Mutant:
    """Read a patch. Raises LitmusError."""
    header: dict[str, str] = {}
    hunks: list[Hunk] = []
    lines: list[str] = []
    where = key = ""
    for line in [*text.splitlines(), "@@ @@"]:
        if line.startswith("@@"):
            if where:
                module, _, function = where.rpartition(".")
                hunks.append(Hunk(module, function, tuple(lines)))
            where, lines = line.strip("@ "), []
        elif where:
            if line[:1] not in (" ", "-", "+") and line:
                raise LitmusError(f"mutant {name}: {line!r} is no line of a hunk: begin it with a space, `-` or `+`")
            lines.append(line or " ")
        elif line.startswith(" "):
            header[key] += f" {line.strip()}"
        elif line.strip():
            key, _, value = line.partition(":")
            header[key] = value.strip()
    closes = "closes" in header
    what = header.get("adds" if closes else "removes")
    target = header.get("closes" if closes else "kills", "").split()
    if what is None or len(target) != 3 or not hunks:
        raise LitmusError(
            f"mutant {name}: needs `removes: ...` and `kills: TEST ERA PROPERTY`, or `adds: ...` and `closes: TEST ERA PROPERTY`,"
            " and a hunk"
        )
    return Mutant(name, what, target[0], target[1], target[2], tuple(hunks), closes)


@cache
def mutant_library() -> tuple[Mutant, ...]:
    """Every mutant, by name."""
    folder = files(__package__).joinpath("mutants")
    found = [each for each in folder.iterdir() if each.name.endswith(".diff")]
    made = [parse_mutant(each.name.removesuffix(".diff"), each.read_text()) for each in found]
    return tuple(sorted(made, key=lambda mutant: in_order(mutant.name)))


def in_order(name: str) -> list[tuple[bool, int, str]]:
    """The key that sorts R2 before R10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def find_mutant(name: str) -> Mutant:
    for mutant in mutant_library():
        if mutant.name == name:
            return mutant
    names = ", ".join(mutant.name for mutant in mutant_library())
    raise LitmusError(f"there is no mutant {name!r}: one of {names}")


def substitutes(name: str) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Function -> its mutated twin, for the compiler."""
    out: dict[Callable[..., Any], Callable[..., Any]] = {}
    for hunk in find_mutant(name).hunks:
        module = importlib.import_module(f"userfault.model.{hunk.module}")
        original: Callable[..., Any] = getattr(module, hunk.function)
        base = out.get(original, original)
        out[original] = patch(name, base, hunk)
    return out


def source_of(fn: Callable[..., Any]) -> tuple[str, int, list[str]]:
    """(file, first line, lines) of a function, its decorators included."""
    given = getattr(fn, "__source__", None)
    if given is not None:
        file, first, lines = given
        return file, first, list(lines)
    file, first = fn.__code__.co_filename, fn.__code__.co_firstlineno
    lines = [line.rstrip("\n") for line in inspect.getblock(linecache.getlines(file)[first - 1 :])]
    return file, first, lines


def patch(name: str, fn: Callable[..., Any], hunk: Hunk) -> Callable[..., Any]:
    """Apply a hunk to a function's text. Raises LitmusError if its context is not there exactly once."""
    file, first, lines = source_of(fn)
    before = textwrap.dedent("\n".join(line[1:] for line in hunk.lines if line[0] in " -")).splitlines()
    stripped = [line.strip() for line in lines]
    want = [line.strip() for line in before]
    places = [at for at in range(len(lines)) if stripped[at : at + len(want)] == want]
    if len(places) != 1:
        count = "nowhere" if not places else f"{len(places)} times"
        raise LitmusError(
            f"mutant {name}: its hunk for {hunk.module}.{hunk.function} fits {count}: quote the function's lines as they are"
        )
    at = places[0]
    margin = len(lines[at]) - len(lines[at].lstrip())
    offset = margin - (len(hunk.lines[0][1:]) - len(hunk.lines[0][1:].lstrip()))
    after = []
    for line in hunk.lines:
        if line[0] in " +":
            body = line[1:]
            after.append(" " * max(0, offset + len(body) - len(body.lstrip())) + body.lstrip())
    patched = [*lines[:at], *after, *lines[at + len(want) :]]
    scope = dict(fn.__globals__)
    start = next(number for number, line in enumerate(patched) if line.startswith("def "))
    exec(compile("\n".join(patched[start:]), f"{Path(file).name}~{name}", "exec"), scope)
    made: Callable[..., Any] = scope[fn.__name__]
    made.__source__ = (f"{file}~{name}", first, patched)  # type: ignore[attr-defined]
    for mark in ("__atomic__", "__ghost__", "__raw__"):
        if hasattr(fn, mark):
            setattr(made, mark, getattr(fn, mark))
    return made
