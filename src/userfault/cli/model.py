"""`userfault model`: the catalogue of modelled functions."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Callable
from typing import Any

import click

from ..check.source import parse
from ..model.catalogue import Citation


def table() -> list[dict[str, str | int]]:
    """One row a modelled function, in the order of the dossier's sections."""
    modules = "fork fremap gup huge_memory ksm madvise memory migrate mmap rmap swap swapfile user userfaultfd vmscan"
    for name in modules.split():
        importlib.import_module(f"userfault.model.{name}")
    from ..model.catalogue import CATALOGUE

    def order(each: Citation) -> tuple[str, int, str]:
        letter, _, number = each.section.partition(".")
        return letter, int("".join(c for c in number if c.isdigit()) or 0), each.function

    return [
        {
            "section": each.section,
            "function": each.function,
            "file": each.file,
            "versions": each.versions,
            "dossier_steps": each.steps,
            "model_steps": lines_that_act(each.fn),
            "omits": each.omits,
            "errs": each.errs,
        }
        for each in sorted(CATALOGUE, key=order)
    ]


def lines_that_act(fn: Callable[..., Any]) -> int:
    """Statements of the function's own text that touch a field or call a function: its steps, as a reader counts them."""
    acts = 0
    for statement in ast.walk(parse(fn).node):
        if not isinstance(statement, ast.stmt) or isinstance(statement, ast.FunctionDef):
            continue
        own = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
        nodes = [node for child in own for node in ast.walk(child)]
        acts += any(isinstance(node, ast.Call | ast.Attribute) for node in nodes)
    return acts


@click.command("model")
@click.option("--section", metavar="C.n", help="Only one section of the dossier's algorithms.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--omissions", is_flag=True, help="What each function leaves out, and which way that errs.")
def command(section: str | None, as_json: bool, omissions: bool) -> None:
    """The modelled functions: kernel file, function, versions, section and steps of the dossier, steps of the model."""
    rows = [row for row in table() if section is None or row["section"] == section]
    for row in rows:
        if as_json:
            click.echo(json.dumps(row))
            continue
        steps = f"{row['dossier_steps'] or '-'}/{row['model_steps'] or '-'}"
        click.echo(f"{row['section']:<6} {row['function']:<34} {row['file']:<22} {steps:>8}  {row['versions']}")
        if omissions:
            click.echo(f"       omits {row['omits']}; errs: {row['errs']}")
    if not as_json:
        click.echo(f"{len(rows)} functions; steps: dossier/model (shared accesses in the function's own text)")
