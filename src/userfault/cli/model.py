"""`userfault model`: the catalogue of modelled functions."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

import click

from ..model.catalogue import Citation


def order(each: Citation) -> tuple[str, int, str]:
    """That of the dossier's sections."""
    letter, _, number = each.section.partition(".")
    return letter, int("".join(c for c in number if c.isdigit()) or 0), each.function


def table() -> list[dict[str, Any]]:
    """One row a modelled function, in the order of the dossier's sections.

    model_steps: by era. no_steps: why an era has no number, as a sentence of the compiler, or the versions that have it.
    """
    from .steps import catalogue, steps_by_era

    steps = steps_by_era()
    return [
        {
            "section": each.section,
            "function": each.function,
            "file": each.file,
            "versions": each.versions,
            "dossier_steps": each.steps,
            "model_steps": {era: counts.steps[each.fn] for era, counts in steps.items() if each.fn in counts.steps},
            "no_steps": {era: counts.why_not[each.fn] for era, counts in steps.items() if each.fn in counts.why_not},
            "omits": each.omits,
            "errs": each.errs,
        }
        for each in sorted(catalogue(), key=order)
    ]


@click.command("model")
@click.option("--section", metavar="C.n", help="Only one section of the dossier's algorithms.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--omissions", is_flag=True, help="What each function leaves out, and which way that errs.")
@click.option("--diff", nargs=2, metavar="ERA ERA", help="What the second changes in the walkers of the reverse map.")
@click.option("--contrast", is_flag=True, help="What remap_file_pages costs the reverse map, and remap_anon_pages not.")
def command(section: str | None, as_json: bool, omissions: bool, diff: tuple[str, str] | None, contrast: bool) -> None:
    """The modelled functions: kernel file, function, versions, section and steps of the dossier, steps of the model."""
    if diff:
        print_diff(*diff)
        return
    if contrast:
        print_contrast()
        return
    from .steps import catalogue

    sections = list(dict.fromkeys(each.section for each in sorted(catalogue(), key=order)))
    if section is not None and section not in sections:
        click.echo(f"userfault model: there is no section {section!r}: one of {', '.join(sections)}", err=True)
        sys.exit(2)
    rows = [row for row in table() if section is None or row["section"] == section]
    if not as_json:
        from ..model.era import ERAS

        names = " ".join(f"{era:>10}" for era in ERAS)
        click.echo(f"{'':<6} {'steps':<50} {'dossier':>7} {names}")
    notes: dict[str, int] = {}
    for row in rows:
        if as_json:
            click.echo(json.dumps(row))
            continue
        steps = " ".join(f"{cell(row, era, notes):>10}" for era in ERAS)
        click.echo(f"{row['section']:<6} {row['function']:<50} {row['dossier_steps'] or '-':>7} {steps}")
        if omissions:
            click.echo(f"       {row['file']}, {row['versions']}")
            click.echo(f"       omits {row['omits']}; errs: {row['errs']}")
    if not as_json:
        click.echo(
            f"{len(rows)} functions. Steps of the model: where another CPU can come in, in the function and its helpers;"
        )
        click.echo(
            "what another row of the whole table counts is not counted again. since, until: the kernels that have it."
        )
        click.echo(
            "0: nothing in it that another CPU can change meanwhile. In the dossier's column, -: not counted there."
        )
        for note, number in notes.items():
            click.echo(f"[{number}] not compiled: {note}")


def cell(row: dict[str, Any], era: str, notes: dict[str, int]) -> str:
    """A number, or why there is none: in a word, or as a footnote."""
    if era in row["model_steps"]:
        return str(row["model_steps"][era])
    why: str = row["no_steps"][era]
    return why if len(why) <= 10 else f"[{notes.setdefault(why, len(notes) + 1)}]"


def print_diff(old: str, new: str) -> None:
    from ..model.era import ERAS
    from .walkers import changed

    for era in (old, new):
        if era not in ERAS:
            click.echo(f"userfault model: there is no era {era!r}: one of {', '.join(ERAS)}", err=True)
            sys.exit(2)
    walkers = changed(old, new)
    for name, lines in walkers:
        if lines:
            more, less = (sum(line.startswith(sign) for line in lines) for sign in "+-")
            click.echo(f"{name}: {more} lines more, {less} less")
            for line in lines:
                click.echo(click.style(f"    {line}", fg={"+": "green", "-": "red"}.get(line[:1])))
    same = [name for name, lines in walkers if not lines]
    text = f"{len(same)} of {len(walkers)} walkers are the same in {old} and {new}: {', '.join(same)}"
    click.echo(textwrap.fill(text, 80))


def print_contrast() -> None:
    from .contrast import rows

    click.echo("PTEs that the reverse map looks at to unmap one page:")
    click.echo(f"{'pages of the VMA':>18} {'linear':>8} {'remap_file_pages':>18} {'remap_anon_pages':>18}")
    for pages, linear, nonlinear, moved in rows():
        click.echo(f"{pages:>18} {linear:>8} {nonlinear:>18} {moved:>18}")
