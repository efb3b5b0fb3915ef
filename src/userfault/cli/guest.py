"""`--kernel`: a command in another kernel, for the commands that ask the running one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

EXIT_ENVIRONMENT, EXIT_BOUND = 2, 3
OWN = {"kernel", "modules", "guest_timeout", "accelerator"}


@dataclass(frozen=True)
class Guest:
    """A kernel to boot, and how: what --kernel and its companions say."""

    kernel: Path
    modules: Path | None
    accelerator: str
    timeout_s: float

    def run(self, commands: Sequence[Sequence[str]], show: Callable[[str], None] | None = None) -> int:
        """Run the commands there, each line that they print to `show` (none: printed). The exit code of the worst of them."""
        from ..kernel import guest
        from ..kernel.errors import KernelError

        lines = Lines(show or click.echo)
        files = {each: Path(each).absolute() for command in commands for each in command if names_a_file(each)}
        try:
            ended = guest.run(
                self.kernel,
                [[str(files.get(each, each)) for each in command] for command in commands],
                modules=self.modules,
                accelerator=self.accelerator,
                timeout_s=self.timeout_s,
                show=lines.feed,
                files=list(files.values()),
            )
        except KernelError as error:
            click.echo(f"userfault: {error}", err=True)
            return EXIT_ENVIRONMENT
        lines.end()
        if ended.exit_code is None:
            click.echo(f"userfault: the guest of {self.kernel} did not end well: {ended.why}", err=True)
            return EXIT_BOUND
        return ended.exit_code


def names_a_file(argument: str) -> bool:
    """A test of the library or a word is no file, whatever lies in this directory; a path or a name with a suffix is."""
    return ("/" in argument or "." in argument) and len(argument) < 256 and Path(argument).is_file()


@dataclass
class Lines:
    """Text that comes in pieces, as lines."""

    show: Callable[[str], None]
    rest: str = ""

    def feed(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.show(line)

    def end(self) -> None:
        if self.rest:
            self.show(self.rest)


def guest_options(
    inside: Callable[[Guest, click.Context], int],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds --kernel and its companions; with them, `inside` does the command, and its exit code is what `inside` returns."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--kernel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="In this bzImage, in qemu."
        )
        @click.option(
            "--modules", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its lib/modules/VERSION."
        )
        @click.option("--accelerator", type=click.Choice(["kvm", "tcg"]), help="Of qemu; kvm is tried first.")
        @click.option("--guest-timeout", default=1800.0, show_default=True, help="Seconds until the guest is given up.")
        @functools.wraps(function)
        def wrapper(
            kernel: Path | None, modules: Path | None, accelerator: str | None, guest_timeout: float, **rest: Any
        ) -> None:
            if kernel is None:
                function(**rest)
                return
            guest = Guest(kernel, modules, accelerator or "", guest_timeout)
            sys.exit(inside(guest, click.get_current_context()))

        return wrapper

    return decorate


def given(context: click.Context) -> list[str]:
    """The arguments that the user gave, but for the ones about the guest."""
    out: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in OWN or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        values = list(value) if isinstance(value, (tuple, list)) else [value]
        if isinstance(parameter, click.Option):
            if parameter.is_flag:
                out.append(parameter.opts[0] if value else (parameter.secondary_opts or parameter.opts)[0])
            else:
                out += [part for each in values for part in (parameter.opts[0], str(each))]
        else:
            out += map(str, values)
    return out
