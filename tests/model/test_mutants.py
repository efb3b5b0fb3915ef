"""What mutants quote of the model is still in it: who changes a function sees here which of them it concerns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from userfault import litmus
from userfault.conform import mutants
from userfault.litmus.mutants import Mutant, patch


@pytest.mark.parametrize("library", [litmus.mutant_library, mutants.mutant_library], ids=["litmus", "conform"])
def test_every_hunk_fits_in_one_place(library: Callable[[], tuple[Mutant, ...]]) -> None:
    for mutant in library():
        made = dict[Callable[..., Any], Callable[..., Any]]()
        for hunk in mutant.hunks:
            original = getattr(importlib.import_module(f"userfault.model.{hunk.module}"), hunk.function)
            made[original] = patch(mutant.name, made.get(original, original), hunk)
