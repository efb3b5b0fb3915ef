"""A litmus test, read: what the file says, with the place of everything that can be wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple


class At(NamedTuple):
    """A place in the file, from 1."""

    line: int
    column: int


class Vma(NamedTuple):
    """`A:0-2 dontcopy pgoff 4 = P`: pages [first, last) of an address space."""

    at: At
    mm: str
    first: int
    last: int
    flags: frozenset[str] = frozenset()
    pgoff: int | None = None
    pages: tuple[str, ...] = ()
    huge: bool = False


class Setup(NamedTuple):
    """Another line of the initial state: `fork A B`, `swapout P cached`, `pool anon_vma 1`, `ksm`, `pin P`."""

    at: At
    what: str
    names: tuple[str, ...] = ()
    number: int = 0


class Operation(NamedTuple):
    """`r0 = move 2 <- 0` in a thread's column."""

    at: At
    name: str
    args: tuple[str | int, ...]
    register: str = ""


class Column(NamedTuple):
    """A thread: its name, the address space that it runs in (empty: a kernel thread's own), its operations."""

    at: At
    name: str
    mm: str
    operations: tuple[Operation, ...]


WAITS = -(2**31)
"""The value of a register whose thread waited and nobody came: `1:r0 = waits`, on the running kernel."""
EXISTS = "the condition of the test"
"""What is reached where the condition of a test that says `exists` is true."""


class Value(NamedTuple):
    """Part of a final state. kind: `register` (0:r0), `memory` ([A:2]), `mapcount` (mapcount(P)), or a page's state:
    `present`, `swapped`, `wp` (present(A:2)), 1 or 0.
    """

    kind: str
    name: str
    number: int = 0

    def __str__(self) -> str:
        if self.kind == "register":
            return f"{self.number}:{self.name}"
        if self.kind == "memory":
            return f"[{self.name}:{self.number}]"
        if self.kind == "mapcount":
            return f"mapcount({self.name})"
        return f"{self.kind}({self.name}:{self.number})"


class Atom(NamedTuple):
    """`0:r0 = 1`, `[A:2] = 7`, `mapcount(P) = 1`."""

    at: At
    of: Value
    compare: str
    value: int

    def holds(self, value: int) -> bool:
        return _COMPARE[self.compare](value, self.value)


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Formula(NamedTuple):
    """`and`, `or` or `not` over formulas and atoms."""

    kind: str
    parts: tuple[Formula | Atom, ...]

    def holds(self, final: Mapping[Value, int]) -> bool:
        """Is it true of a final state?"""
        parts = (part.holds(final[part.of]) if isinstance(part, Atom) else part.holds(final) for part in self.parts)
        return not next(parts) if self.kind == "not" else any(parts) if self.kind == "or" else all(parts)


PROPERTIES = frozenset(
    {
        # What a test asks for, and what the engines find.
        *("condition", "sometimes", "deadlock", "dereference", "range", "termination"),
        # What the model checks.
        *("accounting", "anon_vma_is_the_pages", "bad_free", "bug_on", "exclusive_page_has_one_mapping"),
        *("freed_page_is_unmapped", "lock_leak", "lock_misuse", "lock_order", "mapcount_is_exact", "memory_leak"),
        *("missing_fault_is_missing", "no_migration_entry_is_lost", "not_present", "page_is_linear"),
        *("pinned_page_is_exclusive", "refcount", "references_cover_mappings", "references_cover_users"),
        *("swap_cache_is_mutual", "swap_count_is_exact", "use_after_free", "vma_is_linked", "walk_is_complete"),
        "writable_page_is_exclusive",
    }
)
"""The names that `expect` and `ignore` may say."""


class Expectation(NamedTuple):
    """What the test's author expects of an era: a verdict and, if it is "violated", the property."""

    era: str
    verdict: str
    property: str = ""


@dataclass(frozen=True)
class Test:
    """A litmus test. `text` is the file, `file` its name for messages.

    ignore: (property, era, or "" for all): not checked in it, because another test is about it and it would break first.
    locations: what an outcome shows besides what the condition speaks of. kernel_only: why no era of the model runs it (empty:
    some do).
    """

    __test__: ClassVar[bool] = False  # not a class of tests, whatever its name

    name: str
    question: str
    init: tuple[Vma | Setup, ...]
    threads: tuple[Column, ...]
    quantifier: str
    condition: Formula | Atom | None
    sometimes: tuple[str, ...]
    ignore: frozenset[tuple[str, str]]
    expect: tuple[Expectation, ...]
    locations: tuple[tuple[At, Value], ...] = ()
    kernel_only: str = ""
    file: str = ""
    text: str = field(default="", repr=False)

    def ignored(self, era: str) -> frozenset[str]:
        """The properties that are not checked on an era."""
        return frozenset(name for name, where in self.ignore if where in ("", era))

    @property
    def eras(self) -> tuple[str, ...]:
        return tuple(each.era for each in self.expect)

    @property
    def outcome(self) -> tuple[Value, ...]:
        """What tells final states apart: every register, then what `locations` and the condition name."""
        found: dict[Value, None] = {}
        for number, column in enumerate(self.threads):
            for op in column.operations:
                if op.register:
                    found[Value("register", op.register, number)] = None
        for _, value in self.locations:
            found[value] = None
        for atom in atoms(self.condition):
            found[atom.of] = None
        return tuple(found)


def atoms(node: Formula | Atom | None) -> Iterator[Atom]:
    """The atoms of a condition, in its order."""
    if isinstance(node, Atom):
        yield node
    elif node is not None:
        for part in node.parts:
            yield from atoms(part)
