"""`userfault rmap`: who maps a page of a running process."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import click

from .parameters import duration

if TYPE_CHECKING:
    from ..kernel.rmap import MappedPage

MOST_MS = 2**31 - 1
"""What poll(2) can wait."""
SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@click.command("rmap")
@click.argument("pid", type=click.IntRange(1))
@click.argument("where", metavar="ADDR|RANGE")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a page; of --watch one more when the process ends."
)
@click.option("--watch", is_flag=True, help="Look again and again, and print what changed.")
@click.option(
    "--interval", callback=duration, default=1.0, show_default=True, help="Seconds between two looks of --watch."
)
@click.option(
    "--times",
    type=click.IntRange(0),
    default=0,
    help="Looks of --watch (0: until it is interrupted, or the process ends).",
)
def command(pid: int, where: str, as_json: bool, watch: bool, interval: float, times: int) -> None:
    """The reverse map of real pages: every process and address that maps the pages of process PID at ADDR or in RANGE.

    ADDR is hexadecimal, as in /proc/PID/maps; RANGE is START-END, START+LENGTH (bytes, with K, M or G), or a mapping's name in
    brackets: [heap], [stack].

    Exit codes: 0 everybody was found, 1 that could not be shown for some page, 2 usage or environment.
    """
    from ..kernel.errors import KernelError
    from ..kernel.rmap import reverse_map

    try:
        start, length = parse_range(pid, where)
        pages: list[MappedPage] = []
        shown = ""
        looks = 0
        while True:
            try:
                pages = reverse_map(pid, start, length)
            except KernelError:
                if looks:
                    click.echo(json.dumps({"pid": pid, "ended": True}) if as_json else f"process {pid} has ended")
                    break
                raise
            text = "\n".join(json.dumps(page.json()) for page in pages) if as_json else "\n".join(render(pages))
            if text != shown:
                if watch and not as_json:
                    click.echo(f"{time.strftime('%H:%M:%S')}")
                click.echo(text)
                shown = text
            looks += 1
            if not watch or looks == times:
                break
            pause(interval)
    except KeyboardInterrupt:
        pass
    except KernelError as error:
        click.echo(f"userfault rmap: {error}", err=True)
        sys.exit(2)
    if any(page.complete is not True for page in pages):
        sys.exit(1)


def pause(seconds: float) -> None:
    """Raises BrokenPipeError where whoever read the output has gone: it may be long until something is printed again."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    if reader.poll(min(seconds * 1000, MOST_MS)):
        raise BrokenPipeError


def parse_range(pid: int, where: str) -> tuple[int, int]:
    """Start and length in bytes. Raises KernelError for what is none."""
    from ..kernel.errors import KernelError
    from ..kernel.maps import maps

    if where.startswith("["):
        named = [vma for vma in maps(pid) if vma.name == where]
        if not named:
            raise KernelError(f"process {pid} has no mapping called {where}: see /proc/{pid}/maps")
        return named[0].start, named[-1].end - named[0].start
    try:
        first, plus, size = where.partition("+")
        if plus:
            unit = SUFFIXES.get(size[-1:].upper(), 0)
            length = int(size[:-1] if unit else size, 0) * (unit or 1)
            start = int(first, 16)
        else:
            first, minus, last = where.partition("-")
            start = int(first, 16)
            length = int(last, 16) - start if minus else 1
    except ValueError:
        length = start = 0
    if length <= 0 or start < 0 or start + length > 1 << 64:
        raise KernelError(
            f"{where!r} is no address or range: give a hexadecimal address, START-END, START+LENGTH (such as 7f0000000000+64K), or [heap]"
        )
    return start, length


def render(pages: list[MappedPage]) -> Iterator[str]:
    """Text: a paragraph for each run of pages that look alike."""
    for run in runs(pages):
        first, last = run[0], run[-1]
        span, many = f"{first.address:#x}", ""
        if len(run) > 1:
            span += f"-{last.address + run[1].address - first.address:#x}"
            many = f" ({len(run)} pages)"
        yield f"{span}{many}  {headline(run)}"
        for mapper in first.mappers:
            one = " as one huge page" if mapper.huge else ""
            also = f" (also {', '.join(map(str, mapper.also))})" if mapper.also else ""
            yield (
                f"  {mapper.pid:>7} {mapper.command:<15} {mapper.address:#x} {mapper.entry.letters:<3}"
                f" {mapper.vma.start:x}-{mapper.vma.end:x} {mapper.vma.permissions} {mapper.vma.name or 'anonymous'}{one}{also}"
            )
        if first.why:
            yield f"  {first.why}"


def headline(run: list[MappedPage]) -> str:
    """`anonymous  frame 0x1234  mapped 2x  not exclusive  ANON,SWAPBACKED  complete`."""
    first = run[0]
    parts = [first.kind]
    if frames := [page.entry.pfn for page in run if page.entry.pfn is not None]:
        pieces = 1 + sum(one + 1 != other for one, other in pairwise(frames))
        parts.append(
            f"frame {frames[0]:#x}"
            if len(frames) == 1
            else f"frames {frames[0]:#x}-{frames[-1]:#x}"
            if pieces == 1
            else f"frames {frames[0]:#x}... in {pieces} pieces"
        )
    if first.compound:
        parts.append(f"of a page of {first.compound[1]} frames at {first.compound[0]:#x}")
    if first.swap_device:
        parts.append(first.swap_device)
    if first.map_count is not None:
        parts.append(f"mapped {first.map_count}x")
    if first.exclusive is not None:
        parts.append("exclusive" if first.exclusive else "not exclusive")
    if names := flags_shown(first):
        parts.append(",".join(names))
    if first.kind != "none":
        parts.append({True: "complete", False: "INCOMPLETE", None: "may be incomplete"}[first.complete])
    return "  ".join(parts)


def flags_shown(page: MappedPage) -> list[str]:
    """The flags that do not come and go by themselves, without heads and tails: the frames tell these."""
    from ..kernel.pagemap import flag_names
    from ..kernel.snapshot import STEADY_FLAGS

    return [name for name in flag_names(page.flags & STEADY_FLAGS) if not name.startswith("COMPOUND_")]


def runs(pages: list[MappedPage]) -> Iterator[list[MappedPage]]:
    """Runs of pages that follow each other and are mapped alike."""
    run: list[MappedPage] = []
    for page in pages:
        if run and (shape(run[-1]) != shape(page) or page.kind == "swap" or "COMPOUND_HEAD" in page.flag_names):
            yield run
            run = []
        run.append(page)
    if run:
        yield run


def shape(page: MappedPage) -> object:
    """What pages of one run have in common; the places of their mappings are one page after the other."""
    places = [(each.pid, each.address - page.address, each.vma.start, each.huge, each.also) for each in page.mappers]
    return (
        page.kind,
        page.map_count,
        flags_shown(page),
        page.complete,
        page.why,
        page.entry.letters,
        page.compound,
        places,
    )
