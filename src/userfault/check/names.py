"""Numbers that code carries before it belongs to a program: the same in every program of a process."""

from __future__ import annotations

from typing import Generic, TypeVar

from .ir import Failure, Source

T = TypeVar("T")


class Names(Generic[T]):
    """Things by number, in the order in which they were first asked for."""

    def __init__(self) -> None:
        self.numbers: dict[T, int] = {}
        self.items: list[T] = []

    def __call__(self, item: T) -> int:
        number = self.numbers.get(item)
        if number is None:
            number = self.numbers[item] = len(self.items)
            self.items.append(item)
        return number


CONSTANTS: Names[int] = Names()
"""The operand of a constant is -1 - its number."""
FIELDS: Names[tuple[type, str]] = Names()
FAILURES: Names[Failure] = Names()
SOURCES: Names[Source] = Names()
SITUATIONS: Names[str] = Names()
"""What `reached` names."""
