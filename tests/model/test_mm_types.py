"""The structs: the comment behind a field says which lock protects it, or why it needs none."""

from __future__ import annotations

import ast
import inspect

from userfault.model import mm_types

PROTECTS = (
    "mmap_sem",
    "page lock",
    "page_table_lock",
    "rwsem",
    "PTL",
    "PMD lock",
    "swap lock",
    "lru_lock",
    "compound_lock",
    "i_mmap_mutex",
    "event_wqh.lock",
    "the lock itself",
    "a lock",
    "atomic",
    "const",
    "ghost",
    "this CPU's own",
    "ksmd's own",
    "slab",
    "buddy",
    "no lock",
)


def fields_without_a_lock(source: str) -> list[str]:
    lines = source.splitlines()
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef) or not any(
            isinstance(each, ast.Name) and each.id == "struct" for each in node.decorator_list
        ):
            continue
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                assert isinstance(field.target, ast.Name) and field.end_lineno is not None
                text = "\n".join(lines[field.lineno - 1 : field.end_lineno])
                comment = " ".join(line.partition("#")[2] for line in text.splitlines())
                if not any(word in comment for word in PROTECTS):
                    found.append(f"{node.name}.{field.target.id}")
    return found


def test_every_field_says_which_lock_protects_it() -> None:
    assert fields_without_a_lock(inspect.getsource(mm_types)) == []


def test_a_field_that_does_not_is_found() -> None:
    text = "@struct\nclass s:\n    a: int = 0  # mmap_sem\n    b: int = 0  # how many\n    c: int = 0\n"
    assert fields_without_a_lock(text) == ["s.b", "s.c"]
