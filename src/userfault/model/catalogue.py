"""The list of modelled functions: where each comes from, what it omits, and which way that errs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Citation:
    """A modelled function's origin.

    file: the kernel file. versions: first and last version of this shape. section: of the dossier, with its number of
    steps (`steps`, 0: not counted there). omits: what is left out. errs: "false alarm", "missed bug", "neither" or
    "both": what the omission can lead to.
    """

    file: str
    function: str
    versions: str
    section: str
    steps: int
    omits: str
    errs: str
    fn: Callable[..., Any]


CATALOGUE: list[Citation] = []


def modelled(
    file: str,
    *,
    versions: str,
    section: str,
    steps: int = 0,
    omits: str = "nothing that the protocol needs",
    errs: str = "neither",
    function: str = "",
) -> Callable[[F], F]:
    """Register a modelled function under its citation."""

    def mark(fn: F) -> F:
        CATALOGUE.append(Citation(file, function or fn.__name__, versions, section, steps, omits, errs, fn))
        return fn

    return mark
