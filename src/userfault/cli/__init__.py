"""The command line: one file a verb. Only this room prints."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

EXIT_ENVIRONMENT = 2
EXIT_INTERRUPTED = 130
"""A shell's for SIGINT; click's own is 1, which means a surprise here."""
EXIT_NOT_READ = 141
"""A shell's for SIGPIPE: whoever read the output has gone, as in `| head -1`. It says nothing of what was checked."""
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

VERBS = {
    "run": "Race litmus tests on the running kernel, and compare them with the model.",
    "check": "Explore every interleaving of litmus tests and say what holds.",
    "replay": "Show exactly the trace that a replay string stands for.",
    "model": "List the modelled kernel functions: source, versions, steps, omissions.",
    "conform": "Do random sequences on the model and on the running kernel, and compare.",
    "probe": "What this kernel and this user can do, and the remedy for what is missing.",
    "rmap": "Which processes map a page of a running process, and where.",
    "page": "Memory that is paged in user space: look at it, serve pages to others.",
    "litmus": "List the library of litmus tests, or show one.",
}


@contextmanager
def endings() -> Iterator[None]:
    """What ends every verb alike, and its exit code."""
    try:
        try:
            yield
        except click.ClickException as error:
            # Click would show it where nobody sees what becomes of that.
            error.show()
            sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("\nuserfault: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # What is still to be written when the interpreter leaves would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_NOT_READ)
    except (OSError, RuntimeError) as error:
        why = reason(error)
        if not why:
            raise
        with suppress(OSError):
            click.echo(f"userfault: {why}", err=True)
        sys.exit(EXIT_ENVIRONMENT)


def reason(error: OSError | RuntimeError) -> str:
    """Why the environment let no verb go on; empty where it is not the environment's fault."""
    # Of what prints: a verb says itself what is wrong with a file that it was given.
    if isinstance(error, OSError) and error.errno in NOT_WRITTEN and error.filename is None:
        return f"the output could not be written: {error.strerror}"
    from concurrent.futures import BrokenExecutor

    from ..kernel.errors import limit_met

    if isinstance(error, BrokenExecutor):
        return "a worker process was killed, by the kernel if memory ran out: run it again, with fewer --jobs (--resume keeps what is done)"
    return str(limit_met(error) or "")


class Verbs(click.Group):
    """Imports a verb only when it is used: the first verdict must not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        # It prints what --help and --version ask for.
        with endings():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> object:
        with endings():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="userfault")
def cli() -> None:
    """The moment when a page of memory moves while somebody else is walking to it."""


def main() -> None:
    """The entry point. Exit codes: 0 as expected, 1 a surprise, 2 usage or environment, 3 a bound was hit, 130 interrupted,
    141 nobody reads the output any more."""
    # Imports and compilation make many objects and next to no garbage: a tenth of a first verdict went into looking for it.
    gc.set_threshold(300_000, 50, 50)
    # At the end, too: the interpreter collects before it leaves, object by object, what the process gives back at once.
    atexit.register(gc.freeze)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Whoever started us closed it: the next file that is opened would be printed to.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the end)
    end_as_interrupted()
    cli(prog_name="userfault")


def end_as_interrupted() -> None:
    """SIGTERM, and the end of the terminal, are as Ctrl-C: what was borrowed is put back, and whoever was started ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Under nohup(1) it is ignored.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
