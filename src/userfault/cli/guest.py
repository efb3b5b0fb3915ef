"""`--kernel`: a command in another kernel, for the commands that ask the running one."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .parameters import duration

if TYPE_CHECKING:
    from ..kernel.guest import Ended

EXIT_MISMATCH, EXIT_ENVIRONMENT, EXIT_BOUND = 1, 2, 3
OWN = {"kernel", "modules", "guest_timeout", "silence", "accelerator", "cpus"}
DEATHS = 3
"""So many deaths in a row, with nothing done between them, and no guest is booted again."""


def nothing(line: str) -> str:
    return ""


def worst_of(*codes: int) -> int:
    """The exit code of several commands: a mismatch, whatever else could not be done; else the one furthest from 0."""
    return max(codes, key=lambda code: (code == EXIT_MISMATCH, abs(code)))


@dataclass(frozen=True)
class Stage:
    """A command for a guest, which does its parts one after the other.

    command: its arguments, to do some of the parts. ended: the part that a line of its output is the last of (empty: of none).
    judges: its exit code counts; else what it prints is judged here, and the code only where a part is missing.
    """

    parts: tuple[str, ...]
    command: Callable[[tuple[str, ...]], list[str]]
    ended: Callable[[str], str] = nothing
    judges: bool = True


def alone(*command: str) -> Stage:
    """A command that is all or nothing."""
    return Stage((" ".join(command),), lambda parts: list(command))


@dataclass(frozen=True)
class Guest:
    """A kernel to boot, and how: what --kernel and its companions say."""

    kernel: Path
    modules: Path | None
    accelerator: str
    timeout_s: float
    silence_s: float
    cpus: int = 1

    def run(self, stages: Sequence[Stage], show: Callable[[str], None] = click.echo, as_json: bool = False) -> int:
        """Run the commands there, each line that they print to `show`. The exit code of the worst of them (worst_of).

        A guest that dies, or says nothing for too long, did so in the part that it had come to. That is said, and another one does
        what is left. It counts as EXIT_BOUND, unless it is known that kernels die of it (conform/panics.py).
        """
        from ..kernel.errors import KernelError

        until, worst, in_vain = time.monotonic() + self.timeout_s, 0, 0
        left = [(stage, stage.parts) for stage in stages]
        while left:
            done = set[str]()
            try:
                ended = self.boot(left, done, show, until - time.monotonic())
            except KernelError as error:
                click.echo(f"userfault: {error}", err=True)
                return EXIT_ENVIRONMENT
            for (stage, parts), code in zip(left, ended.statuses, strict=False):
                if stage.judges or not done.issuperset(parts):
                    worst = worst_of(worst, code)
            left = left[len(ended.statuses) :]
            if not ended.why:
                break
            part = "its end"
            if left:
                stage, parts = left.pop(0)
                part, *others = [each for each in parts if each not in done] or [
                    f"the end of {stage.command(parts)[0]}"
                ]
                if others:
                    left.insert(0, (stage, tuple(others)))
            worst = worst_of(worst, self.tell(part, ended, as_json))
            in_vain = 0 if done else in_vain + 1
            if left and (ended.timed_out or in_vain == DEATHS):
                undone = ", ".join(each for _, parts in left for each in parts)
                click.echo(f"userfault: not done: {undone}", err=True)
                return worst_of(worst, EXIT_BOUND)
        return worst

    def boot(
        self,
        left: Sequence[tuple[Stage, tuple[str, ...]]],
        done: set[str],
        show: Callable[[str], None],
        timeout_s: float,
    ) -> Ended:
        """One guest for what is left; the parts that it ends are added to `done`. Raises KernelError."""
        from ..kernel import guest

        def line(text: str) -> None:
            done.update(part for stage, _ in left if (part := stage.ended(text)))
            show(text)

        commands = [stage.command(parts) for stage, parts in left]
        files = {each: Path(each).absolute() for command in commands for each in command if names_a_file(each)}
        return guest.run(
            self.kernel,
            [[str(files.get(each, each)) for each in command] for command in commands],
            modules=self.modules,
            accelerator=self.accelerator,
            cpus=self.cpus,
            timeout_s=timeout_s,
            silence_s=self.silence_s,
            show=line,
            files=list(files.values()),
        )

    def tell(self, part: str, ended: Ended, as_json: bool) -> int:
        """Say in which part a guest died, and of what. The exit code of that."""
        from ..conform import panics

        how = "panicked" if ended.complaint else "did not go on"
        known = panics.known(part, ended.complaint)
        if as_json:
            said = {
                "part": part,
                how.replace(" ", "_"): ended.complaint or ended.why,
                "known": known.finding if known else "",
            }
            click.echo(json.dumps(said))
        else:
            because = f": it is known ({known.finding}): {known.what}" if known else ""
            click.echo(f"{how} in {part}: {ended.complaint or ended.why}{because}\n")
        if known:
            return 0
        click.echo(f"userfault: the guest of {self.kernel} did not end well: {ended.why}", err=True)
        return EXIT_BOUND


def row_of(line: str, key: str) -> dict[str, Any]:
    """The JSON object that a line is, if it begins with `key`; empty if not, or if the guest died in the middle of it."""
    if line.startswith(f'{{"{key}": '):
        with suppress(ValueError):
            row: dict[str, Any] = json.loads(line)
            return row
    return {}


def names_a_file(argument: str) -> bool:
    """A test of the library or a word is no file, whatever lies in this directory; a path or a name with a suffix is."""
    return ("/" in argument or "." in argument) and len(argument) < 256 and Path(argument).is_file()


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
        @click.option("--cpus", default=1, show_default=True, type=click.IntRange(1), help="Of the guest.")
        @click.option(
            "--guest-timeout",
            callback=duration,
            default=3600.0,
            show_default=True,
            help="Seconds until all is given up.",
        )
        @click.option(
            "--silence",
            callback=duration,
            default=300.0,
            show_default=True,
            help="Seconds without output until what a guest does is given up.",
        )
        @functools.wraps(function)
        def wrapper(
            kernel: Path | None,
            modules: Path | None,
            accelerator: str | None,
            cpus: int,
            guest_timeout: float,
            silence: float,
            **rest: Any,
        ) -> None:
            if kernel is None:
                context = click.get_current_context()
                for name in OWN:
                    if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                        raise click.UsageError(
                            f"--{name.replace('_', '-')} is about the guest of --kernel: name that, too"
                        )
                function(**rest)
                return
            guest = Guest(kernel, modules, accelerator or "", guest_timeout, silence, cpus)
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
