"""What is wrong with a litmus test, where, why, and what to do."""

from __future__ import annotations


class LitmusError(Exception):
    """A test that can't be read, built or found."""


def at_place(file: str, line: int, column: int, text: str, problem: str, instead: str) -> LitmusError:
    """An error with its line and a caret; line and column from 1."""
    lines = text.splitlines()
    shown = lines[line - 1] if 0 < line <= len(lines) else ""
    caret = " " * (column - 1) + "^"
    return LitmusError(f"{file}:{line}:{column}: {problem}\n    {shown}\n    {caret}\n  {instead}")
