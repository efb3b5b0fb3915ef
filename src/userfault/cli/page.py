"""`userfault page`: memory that is paged in user space."""

from __future__ import annotations

import sys

import click


@click.group("page")
def command() -> None:
    """Memory that is paged in user space."""


@command.command("serve")
@click.argument("what")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:7437",
    show_default=True,
    help="[::1]:PORT for IPv6; port 0: any.",
)
@click.option("--writable", is_flag=True, help="Let clients write pages back.")
def serve(what: str, listen: str, writable: bool) -> None:
    """Give out the pages of WHAT, a file or URL, to other processes and hosts, until interrupted.

    They read it as tcp://HOST:PORT. Whoever reaches the port may: there is no authentication.
    """
    from ..paging.source import SourceError
    from ..paging.sources import open_source
    from ..paging.tcp import PageServer

    try:
        source = open_source(what, writable=writable)
        with PageServer.listen(source, listen, writable=writable) as server:
            click.echo(f"{source.name} ({source.size_bytes} bytes) on tcp://{server.address}")
            sys.stdout.flush()
            try:
                server.serve()
            except KeyboardInterrupt:
                click.echo("closing", err=True)
    except (SourceError, OSError, ValueError, TypeError) as error:
        click.echo(f"userfault page serve: {error.summary if isinstance(error, SourceError) else error}", err=True)
        sys.exit(2)


@command.command("stat")
@click.argument("pid", type=int)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a region.")
def stat(pid: int, as_json: bool) -> None:
    """What the regions of process PID have done so far: faults, latencies, bytes in and out, what is resident.

    It reads the process's memory (the same user, or root) and does not stop it. Exit code 1: it has no region.
    """
    import json
    from dataclasses import asdict

    from ..paging.errors import PagingError
    from ..paging.inspect import stats_of_process

    try:
        found = stats_of_process(pid)
    except PagingError as error:
        click.echo(f"userfault page stat: {error}", err=True)
        sys.exit(2)
    for stats in found:
        if as_json:
            click.echo(json.dumps(asdict(stats)))
            continue
        click.echo(str(stats))
        rest = {name: value for name, value in asdict(stats).items() if name.endswith(("_count", "_bytes")) and value}
        click.echo("\n".join(f"  {name:<22} {value:>15,}" for name, value in rest.items()))
    if not found:
        click.echo(f"process {pid} has no region of userfault.paging", err=True)
        sys.exit(1)
