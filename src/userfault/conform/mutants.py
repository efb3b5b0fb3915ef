"""Mutants of the model's sequential semantics: each must make it part from the kernel (the files under mutants/).

The format is that of litmus/mutants; a `kills` line names the profile that finds it, the era, and the operation where it shows.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from types import ModuleType

from .. import model
from ..litmus.mutants import Mutant, parse_mutant, patch


@cache
def mutant_library() -> tuple[Mutant, ...]:
    """Every mutant, by name."""
    folder = files(__package__).joinpath("mutants")
    found = sorted(each.name for each in folder.iterdir() if each.name.endswith(".diff"))
    return tuple(parse_mutant(name.removesuffix(".diff"), folder.joinpath(name).read_text()) for name in found)


def find_mutant(name: str) -> Mutant:
    """A mutant by its name. Raises KeyError, which says what there is."""
    for each in mutant_library():
        if each.name == name:
            return each
    raise KeyError(f"there is no mutant {name!r}: one of {', '.join(each.name for each in mutant_library())}")


def model_modules() -> Iterator[ModuleType]:
    for each in pkgutil.iter_modules(model.__path__, f"{model.__name__}."):
        yield importlib.import_module(each.name)


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """The model, with the mutant in place of what it changes, wherever the function was imported to."""
    undo = []
    try:
        for hunk in mutant.hunks:
            original = getattr(importlib.import_module(f"{model.__name__}.{hunk.module}"), hunk.function)
            twin = patch(mutant.name, original, hunk)
            for module in model_modules():
                for name, value in list(vars(module).items()):
                    if value is original:
                        undo.append((module, name, original))
                        setattr(module, name, twin)
        yield
    finally:
        for module, name, original in reversed(undo):
            setattr(module, name, original)
