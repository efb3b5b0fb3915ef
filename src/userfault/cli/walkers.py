"""`userfault model --diff`: what a kernel generation changes in the walkers of the reverse map (R1)."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Callable
from typing import Any

from ..check.source import parse
from ..model import era as eras

WALKERS = (
    "page_get_anon_vma",
    "page_lock_anon_vma_read",
    "page_check_address",
    "page_referenced_one",
    "page_referenced_anon",
    "try_to_unmap_one",
    "try_to_unmap",
    "remove_migration_pte",
    "remove_migration_ptes",
    "split_huge_page",
    "__split_huge_page",
)
"""The functions by which somebody comes from a page to its mappings."""


class Fold(ast.NodeTransformer):
    """A function's text with the questions `era.flag` answered: what is left is the code of that era."""

    def __init__(self, era: eras.Era) -> None:
        self.era = era

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id == "era":
            return ast.Constant(getattr(self.era, node.attr))
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        decides = isinstance(node.op, ast.Or)
        parts: list[ast.expr] = []
        for each in node.values:
            part = self.visit(each)
            if isinstance(part, ast.Constant) and isinstance(part.value, bool):
                if part.value is decides:
                    return part if not parts else ast.BoolOp(node.op, [*parts, part])
                continue
            parts.append(part)
        if not parts:
            return ast.Constant(not decides)
        return parts[0] if len(parts) == 1 else ast.BoolOp(node.op, parts)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.visit(node.operand)
        if isinstance(node.op, ast.Not) and isinstance(operand, ast.Constant):
            return ast.Constant(not operand.value)
        return ast.UnaryOp(node.op, operand)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        test = self.visit(node.test)
        if isinstance(test, ast.Constant):
            return self.visit(node.body if test.value else node.orelse)  # type: ignore[no-any-return]
        return ast.IfExp(test, self.visit(node.body), self.visit(node.orelse))

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """`reached(...)` is a word of the model, not a step of the kernel."""
        call = node.value
        ghost = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "reached"
        return None if ghost else node

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        test = self.visit(node.test)
        body, orelse = self.block(node.body), self.block(node.orelse)
        if isinstance(test, ast.Constant):
            return body if test.value else orelse
        return ast.If(test, body or [ast.Pass()], orelse)

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for each in statements:
            made = self.visit(each)
            out += made if isinstance(made, list) else [made] if made is not None else []
            if out and isinstance(out[-1], ast.Return | ast.Continue | ast.Break):
                break
        return out


def text_in(fn: Callable[..., Any], era: str) -> list[str]:
    """The lines of a modelled function as an era has it: no decorators, docstring or comments."""
    node = copy.deepcopy(parse(fn).node)
    assert isinstance(node, ast.FunctionDef)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    folded = Fold(eras.ERAS[era]).block(body)
    plain = ast.FunctionDef(
        name=node.name, args=node.args, body=folded or [ast.Pass()], decorator_list=[], returns=node.returns, lineno=1
    )
    return ast.unparse(ast.fix_missing_locations(plain)).splitlines()


def changed(old: str, new: str) -> list[tuple[str, list[str]]]:
    """(walker, lines of the diff) for every walker, between two eras; no lines: it is the same."""
    from .steps import catalogue

    out = []
    for name in WALKERS:
        found = [each.fn for each in catalogue() if each.fn.__name__ == name]
        for fn in found[:1]:
            before, after = text_in(fn, old), text_in(fn, new)
            lines = list(difflib.unified_diff(before, after, lineterm="", n=2))[2:]
            out.append((name, lines))
    return out
