"""A litmus test, read: what the file says, with the place of everything that can be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class At:
    """A place in the file, from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Vma:
    """`A:0-2 dontcopy pgoff 4 = P`: pages [first, last) of an address space."""

    at: At
    mm: str
    first: int
    last: int
    flags: frozenset[str] = frozenset()
    pgoff: int | None = None
    pages: tuple[str, ...] = ()
    huge: bool = False


@dataclass(frozen=True)
class Setup:
    """Another line of the initial state: `fork A B`, `swapout P cached`, `pool anon_vma 1`, `ksm`, `pin P`."""

    at: At
    what: str
    names: tuple[str, ...] = ()
    number: int = 0


@dataclass(frozen=True)
class Operation:
    """`r0 = move 2 <- 0` in a thread's column."""

    at: At
    name: str
    args: tuple[str | int, ...]
    register: str = ""


@dataclass(frozen=True)
class Column:
    """A thread: its name, the address space that it runs in (empty: a kernel thread's own), its operations."""

    at: At
    name: str
    mm: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Atom:
    """`0:r0 = 1`, `[A:2] = 7`, `mapcount(P) = 1`."""

    at: At
    kind: str
    name: str
    number: int
    compare: str
    value: int


@dataclass(frozen=True)
class Formula:
    """`and`, `or` or `not` over formulas and atoms."""

    kind: str
    parts: tuple[Formula | Atom, ...]


@dataclass(frozen=True)
class Expectation:
    """What the test's author expects of an era: a verdict and, if it is "violated", the property."""

    era: str
    verdict: str
    property: str = ""


@dataclass(frozen=True)
class Test:
    """A litmus test. `text` is the file, `file` its name for messages.

    ignore: properties that are not checked in it, because another test is about them and they would break first.
    """

    __test__: ClassVar[bool] = False  # not a class of tests, whatever its name

    name: str
    question: str
    init: tuple[Vma | Setup, ...]
    threads: tuple[Column, ...]
    quantifier: str
    condition: Formula | Atom | None
    sometimes: tuple[str, ...]
    ignore: frozenset[str]
    expect: tuple[Expectation, ...]
    file: str = ""
    text: str = field(default="", repr=False)

    @property
    def eras(self) -> tuple[str, ...]:
        return tuple(each.era for each in self.expect)
