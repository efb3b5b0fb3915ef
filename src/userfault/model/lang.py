"""The words the model is written in.

Model code is ordinary Python and runs as such: one thread, real objects. The same functions, handed to the checker,
are compiled so that every access to a struct's field is a step. The checker recognises these words by the
attribute `__intrinsic__`, `__atomic__`, `__ghost__` or `__struct__` and knows nothing else of this room.

What a modelled function may use: assignments, `if`, `while`, `for` over a list field, a tuple or `range`, `break`, `continue`,
`return`, `assert`-free calls of other modelled functions, field access, `list.append/remove/insert/index`, `in`, arithmetic and comparisons
of small integers, `is None`, `isinstance`, and constructing value types (`NamedTuple`s).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


NULL: Any = None
"""A pointer field's start. Pointers may be NULL whatever their annotation says, as in C."""


class ModelError(Exception):
    """The model's code did something that no kernel may do; `property` names what it broke."""

    def __init__(self, property: str, message: str) -> None:
        super().__init__(f"{property}: {message}")
        self.property = property


class WouldBlock(Exception):
    """A sequential run waits for a condition that nobody else is there to make true."""


@dataclass(frozen=True)
class Range:
    """In `Annotated[int, Range(lo, hi)]`: the values that a field can hold."""

    lo: int
    hi: int


@dataclass(frozen=True)
class CpuId:
    """In `Annotated[int, CpuId()]`: 0 for nobody, 1 + n for the thread on CPU n.

    `owned`: a lock's ownership; nobody but the named CPU changes it while it is set.
    """

    owned: bool = False


@dataclass(frozen=True)
class PerCpu:
    """In `Annotated[list[...], PerCpu()]`: one element a CPU, indexed by CPU number."""

    owned: bool = False


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def struct(cls: C) -> C:
    """A kernel struct: an object with identity whose fields are shared between CPUs."""
    dataclass(eq=False, repr=False)(cls)
    cls.__struct__ = True  # type: ignore[attr-defined]
    return cls


def atomic(fn: F) -> F:
    """The whole function is one step: a lock operation, an atomic instruction, an access of one machine word."""
    fn.__atomic__ = True  # type: ignore[attr-defined]
    return fn


def ghost(fn: F) -> F:
    """Bookkeeping of the model that the kernel does not have: it is part of the step that precedes it."""
    fn.__ghost__ = True  # type: ignore[attr-defined]
    return fn


def raw(fn: F) -> F:
    """Accesses in this function pass the sanitizer (`__on_access__`) by: the allocator's own."""
    fn.__raw__ = True  # type: ignore[attr-defined]
    return fn


def intrinsic(name: str) -> Callable[[F], F]:
    def mark(fn: F) -> F:
        fn.__intrinsic__ = name  # type: ignore[attr-defined]
        return fn

    return mark


@intrinsic("read_once")
def READ_ONCE(value: T) -> T:
    """Marks a lockless read, as in the kernel. Every read of the model is a single read already."""
    return value


@intrinsic("wait_until")
def wait_until(condition: bool) -> None:
    """First thing in an atomic function: the step happens only in states where the condition holds."""
    if not condition:
        raise WouldBlock("nobody else is running who could make this condition true")


@intrinsic("check")
def check(condition: bool, property: str, message: str) -> None:
    """`property` holds here, or the run is a counterexample. `message` says what was found."""
    if not condition:
        raise ModelError(property, message)


@intrinsic("choose")
def choose(n: int) -> int:
    """Any of 0..n-1; a sequential run takes 0."""
    return 0


@intrinsic("reached")
def reached(sometimes: str) -> None:
    """The situation named was reached: guards a passing test against passing for nothing."""


TOUCHED: set[Any] = set()
"""The locks that a sequential run has taken, and the page tables whose entries it has set, since this was emptied."""


@intrinsic("touched")
def touched(what: Any) -> None:
    """A lock, whose holder may change what it protects, or a page table: for whoever looks at a sequential run."""
    TOUCHED.add(what)


@intrinsic("exhausted")
def exhausted(what: str) -> None:
    """A pool of the checked configuration is empty: the verdict is "bound", never "holds".

    A sequential run goes on; its pools grow.
    """


@intrinsic("current_cpu")
def smp_processor_id() -> int:
    """The CPU (thread) that runs this code, from 0. A sequential run is on CPU 0."""
    return 0


def BUG_ON(condition: bool) -> None:
    """The kernel's own assertion (`BUG_ON`, `VM_BUG_ON`)."""
    check(not condition, "bug_on", "BUG_ON")
