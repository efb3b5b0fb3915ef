"""Numbers that code carries before it belongs to a program: the same in every program of a process."""

from __future__ import annotations

from typing import TypeVar

from .ir import Failure, Source

T = TypeVar("T")


class Names(dict[T, int]):
    """Things and their numbers, in the order in which they were first asked for."""

    def __init__(self) -> None:
        self.named: list[T] = []

    def __missing__(self, item: T) -> int:
        number = self[item] = len(self.named)
        self.named.append(item)
        return number


CONSTANTS: Names[int] = Names()
"""The operand of a constant is -1 - its number."""
FIELDS: Names[tuple[type, str]] = Names()
FAILURES: Names[Failure] = Names()
SOURCES: Names[Source] = Names()
SITUATIONS: Names[str] = Names()
"""What `reached` names."""
