"""`userfault litmus`: the library."""

from __future__ import annotations

import sys

import click


@click.group("litmus")
def command() -> None:
    """The library of litmus tests and of mutants."""


@command.command("list")
@click.option("--mutants", is_flag=True, help="The mutants instead: what each drops and what kills it.")
def list_(mutants: bool) -> None:
    """One line a test: its name and the question that it asks."""
    from ..litmus import library, mutant_library

    if mutants:
        for mutant in mutant_library():
            kills = f"killed by {mutant.property} in {mutant.test} on {mutant.era}"
            click.echo(f"{mutant.name:<10} {mutant.removes} ({kills})")
        return
    for test in library():
        click.echo(f"{test.name:<26} {test.question}")


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
