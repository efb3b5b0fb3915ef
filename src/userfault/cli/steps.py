"""The steps of the modelled functions, era by era: what `userfault model` counts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..check.count import count_steps
from ..litmus.build import Builder
from ..litmus.operations import OPERATIONS
from ..litmus.read import read
from ..model import era as eras
from ..model.catalogue import CATALOGUE, Citation
from ..model.machine import machine
from ..model.mm_types import address_space

Fn = Callable[..., Any]

INITIALLY = "{ A:0-2 = P, Q; A:4-6 userfault; fork A B; swapout Q; ksm; }"


def catalogue() -> list[Citation]:
    """Every modelled function, whichever file of the model it is in."""
    for file in sorted(Path(eras.__file__).parent.glob("*.py")):
        importlib.import_module(f"userfault.model.{file.stem}")
    return CATALOGUE


def steps_by_era() -> dict[str, dict[Fn, int]]:
    """era -> function -> its steps, for the functions that some operation of that era comes to."""
    now = eras.era.name
    functions = [each.fn for each in catalogue()]
    out: dict[str, dict[Fn, int]] = {}
    try:
        for name in eras.ERAS:
            eras.use(name)
            out[name] = count_steps(boot(name), functions, [machine])
    finally:
        eras.use(now)
    return out


def boot(era: str) -> list[Fn]:
    """A machine on which every operation of the era has something to do; the functions that the operations begin with."""
    values = {"addr": "0", "int": "1", "page": "P", "mm": "C"}
    operations = [
        " ".join([name, *(values.get(word, word) for word in takewhile("?".__ne__, kind.shape))])
        for name, kind in OPERATIONS.items()
        if not kind.eras or era in kind.eras
    ]
    rows = "\n".join(f"{each} | ;" for each in operations)
    text = f'userfault steps\n"What can be done?"\n{INITIALLY}\nP0 : A | P1 : A ;\n{rows}\nexpect {era} holds\n'
    test = Builder(read(text, "steps"), era)
    test.initial_state()
    starts = [call.fn for number, column in enumerate(test.test.threads) for call in test.thread(number, column).calls]
    test.provide()
    machine.files.append(address_space())
    return starts
