"""`--kernel`: a command in another kernel, for the commands that ask the running one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

EXIT_ENVIRONMENT, EXIT_BOUND = 2, 3
OWN = {"kernel", "modules", "guest_timeout", "accelerator"}


def guest_options(
    before: Sequence[Sequence[str]] = (), after: Sequence[Sequence[str]] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds --kernel and its companions: the command runs in that kernel, between the commands `before` and `after`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--kernel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="In this bzImage, in qemu."
        )
        @click.option(
            "--modules", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its lib/modules/VERSION."
        )
        @click.option("--accelerator", type=click.Choice(["kvm", "tcg"]), help="Of qemu; kvm is tried first.")
        @click.option("--guest-timeout", default=600.0, show_default=True, help="Seconds until the guest is given up.")
        @functools.wraps(function)
        def wrapper(
            kernel: Path | None, modules: Path | None, accelerator: str | None, guest_timeout: float, **rest: Any
        ) -> None:
            if kernel is None:
                function(**rest)
                return
            context = click.get_current_context()
            commands = [*before, [context.info_name or "", *given(context)], *after]
            in_guest(kernel, commands, modules, accelerator or "", guest_timeout)

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


def in_guest(
    kernel: Path, commands: Sequence[Sequence[str]], modules: Path | None, accelerator: str, timeout_s: float
) -> None:
    """Run the commands there and exit as the worst of them did."""
    from ..kernel import guest
    from ..kernel.errors import KernelError

    try:
        ended = guest.run(
            kernel,
            commands,
            modules=modules,
            accelerator=accelerator,
            timeout_s=timeout_s,
            show=lambda text: click.echo(text, nl=False),
        )
    except KernelError as error:
        click.echo(f"userfault: {error}", err=True)
        sys.exit(EXIT_ENVIRONMENT)
    if ended.exit_code is None:
        click.echo(f"userfault: the guest of {kernel} did not end well: {ended.why}", err=True)
        sys.exit(EXIT_BOUND)
    sys.exit(ended.exit_code)
