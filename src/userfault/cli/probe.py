"""`userfault probe`: what this kernel and this user can do."""

from __future__ import annotations

import json
import sys

import click

MARKS = {
    "yes": click.style("yes", fg="green"),
    "no": click.style("no ", fg="red"),
    "unknown": click.style("?  ", fg="yellow"),
}


@click.command("probe")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--missing", is_flag=True, help="Only what is missing, with its remedy.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the first is about the machine.")
def command(names: tuple[str, ...], missing: bool, as_json: bool) -> None:
    """What the running kernel lets this user do, found out by doing it; what is missing, and the remedy.

    With NAMEs, only these are asked. Exit codes: 0, 1 one of the NAMEs is missing, 2 usage.
    """
    from ..kernel.errors import KernelError
    from ..kernel.probe import here, run

    about = here()
    if as_json:
        click.echo(json.dumps(about))
    else:
        click.echo(f"Linux {about['kernel']} {about['machine']}, {about['cpus']} CPUs, uid {about['uid']}")
    group, counts = "", {"yes": 0, "no": 0, "unknown": 0}
    try:
        for found in run(names):
            counts[found.verdict] += 1
            if missing and found.verdict == "yes":
                continue
            if as_json:
                click.echo(json.dumps(found.json()))
                continue
            if found.group != group:
                group = found.group
                click.echo(f"\n{group}")
            click.echo(f"  {MARKS[found.verdict]} {found.name:<20} {found.seen}")
            if found.remedy:
                click.echo(f"      {'':<20} {found.about}")
                click.echo(f"      {'':<20} remedy: {found.remedy}")
    except KernelError as error:
        click.echo(f"userfault probe: {error}", err=True)
        sys.exit(2)
    if not as_json:
        click.echo(f"\n{counts['yes']} yes, {counts['no']} no, {counts['unknown']} could not be told")
    if names and counts["no"] + counts["unknown"]:
        sys.exit(1)
