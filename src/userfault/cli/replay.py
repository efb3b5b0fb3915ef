"""`userfault replay STRING`: exactly the trace that the string stands for."""

from __future__ import annotations

import sys

import click


@click.command("replay")
@click.argument("string", metavar="STRING")
def command(string: str) -> None:
    """Execute the schedule in STRING (the last line of a counterexample) step by step and print it."""
    from ..check.errors import CheckError
    from ..check.trace import render
    from ..litmus import LitmusError
    from .jobs import decode

    try:
        replay = decode(string)
        click.echo(render(replay.program, replay.moves, replay.lasso))
    except (CheckError, LitmusError) as error:
        click.echo(f"userfault replay: {error}", err=True)
        sys.exit(2)
