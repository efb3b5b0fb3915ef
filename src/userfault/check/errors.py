"""What the checker refuses, and how it says so."""

from __future__ import annotations


class CheckError(Exception):
    """The checker can't do what was asked; the message says what, where, why and what to do instead."""


class TooLarge(CheckError):
    """A program that the native engine has no room for."""


class CompileError(CheckError):
    """Model code outside the restricted subset, shown with its line and a caret."""

    def __init__(self, file: str, line: int, col: int, text: str, problem: str, instead: str) -> None:
        self.parts = (file, line, col, text, problem, instead)
        self.file, self.line, self.col = file, line, col
        caret = " " * col + "^"
        super().__init__(f"{file}:{line}:{col + 1}: {problem}\n    {text}\n    {caret}\n  write instead: {instead}")

    def __reduce__(self) -> tuple[type[CompileError], tuple[str, int, int, str, str, str]]:
        """It crosses from a worker process to the command."""
        return CompileError, self.parts
