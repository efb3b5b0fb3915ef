"""`userfault litmus`: the library."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..litmus import Test

EXIT_USAGE = 2


@click.group("litmus")
def command() -> None:
    """The library of litmus tests and of mutants."""


WIDTH, NAME = 80, 24


def entry(name: str, text: str) -> str:
    """A name, and its text beside it in a column of its own."""
    lines = textwrap.wrap(text, WIDTH - NAME) or [""]
    if len(name) >= NAME:
        lines = ["", *lines]
    return "\n".join(f"{name if n == 0 else '':<{NAME}}{line}".rstrip() for n, line in enumerate(lines))


@command.command("list")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--mutants", is_flag=True, help="The mutants instead: what each drops and what kills it.")
@click.option("--verdicts", is_flag=True, help="What is expected of each era too.")
def list_(words: tuple[str, ...], mutants: bool, verdicts: bool) -> None:
    """Each test and the question that it asks; with WORDs, those whose name or question has one of them."""
    from ..litmus import library

    def wanted(*texts: str) -> bool:
        return not words or any(word.lower() in text.lower() for word in words for text in texts)

    if mutants:
        shown = [entry(*row) for row in told_of_mutants() if wanted(*row)]
    else:
        shown = [told_of(test, verdicts) for test in library() if wanted(test.name, test.question)]
    if not shown:
        click.echo(f"userfault litmus: nothing in the library has {' or '.join(map(repr, words))}", err=True)
        sys.exit(EXIT_USAGE)
    click.echo("\n".join(shown))


def told_of_mutants() -> Iterator[tuple[str, str]]:
    """Each mutant's name, and what it drops or adds and what comes of it."""
    from ..litmus import mutant_library

    for mutant in mutant_library():
        if mutant.closes:
            yield mutant.name, f"Adds {mutant.removes}. Closes {mutant.test} on {mutant.era}."
        else:
            text = f"Removes {mutant.removes}. Killed by {mutant.property} in {mutant.test} on {mutant.era}."
            yield mutant.name, text


def told_of(test: Test, verdicts: bool) -> str:
    """A test's name and its question, and what is expected of it."""
    lines = [entry(test.name, test.question)]
    if verdicts:
        told = [f"{each.era} {each.verdict} {each.property}".rstrip() for each in test.expect]
        lines.append(entry("", "; ".join(told) or f"on the running kernel only: {test.kernel_only}"))
    return "\n".join(lines)


@command.command("show")
@click.argument("test")
def show(test: str) -> None:
    """The text of one test."""
    from ..litmus import LitmusError, load

    try:
        click.echo(load(test).text.rstrip())
    except LitmusError as error:
        click.echo(f"userfault litmus: {error}", err=True)
        sys.exit(2)


@command.command("emit")
@click.argument("test")
@click.option("--c", "as_c", is_flag=True, help="As a C program: one file, without dependencies.")
def emit(test: str, as_c: bool) -> None:
    """Print one test as a program that asks the running kernel: compile it with `gcc -pthread`."""
    from ..conform.races.emit import emit as emit_c
    from ..conform.races.lower import Unrunnable
    from ..litmus import LitmusError, load

    try:
        if not as_c:
            raise LitmusError("emit as what? Only C is known: add --c")
        click.echo(emit_c(load(test)), nl=False)
    except (LitmusError, Unrunnable) as error:
        click.echo(f"userfault litmus: {error}", err=True)
        sys.exit(2)
