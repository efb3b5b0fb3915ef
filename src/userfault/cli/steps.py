"""The steps of the modelled functions, era by era: what `userfault model` counts."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..check.count import count_steps
from ..check.errors import CheckError
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


@dataclass(frozen=True)
class Counts:
    """An era's functions: their steps, or why there is no number. Every modelled function is in one of the two."""

    steps: dict[Fn, int]
    why_not: dict[Fn, str]


@cache
def steps_by_era() -> dict[str, Counts]:
    """The steps that the operations of litmus tests come to, and of what else the era's kernel has.

    What runs only outside tests (system calls of random sequences, file pages) is counted beside the operations, so
    that their numbers are those of a test.
    """
    now = eras.era.name
    versions = {each.fn: each.versions for each in catalogue()}
    out: dict[str, Counts] = {}
    try:
        for name in eras.ERAS:
            eras.use(name)
            starts = boot(name)
            steps = count_steps(starts, versions, [machine])
            why_not = {fn: absent(cited, name) for fn, cited in versions.items() if fn not in steps}
            others = [fn for fn, why in why_not.items() if not why]
            refused: dict[Fn, CheckError] = {}
            beside = count_steps([*starts, *others], versions, [machine], refused=refused)
            for fn in others:
                if fn in refused:
                    why_not[fn] = reason(fn, refused[fn])
                else:
                    steps[fn] = beside[fn]
                    del why_not[fn]
            out[name] = Counts(steps, why_not)
    finally:
        eras.use(now)
    return out


def reason(fn: Fn, error: Exception) -> str:
    """The first line of what the compiler says, with the function's place if it names none."""
    said = str(error).splitlines()[0]
    if said.startswith("model/"):
        return said
    return f"model/{fn.__module__.rpartition('.')[2]}.py:{fn.__code__.co_firstlineno}: {said}"


def absent(cited: str, era: str) -> str:
    """Why an era's kernel has no such function, from the versions cited for it; empty if it has it."""
    found = re.findall(r"v(\d+)\.(\d+)(?:\.\d+)?(\+seed)?", re.sub(r"\(.*?\)", "", cited))
    versions = [(int(major), int(minor), bool(seed)) for major, minor, seed in found]
    first, last = min(versions), max(versions)
    here = next((int(major), int(minor)) for major, minor in re.findall(r"v(\d+)\.(\d+)", era))
    if first[2] and last[2]:
        return "" if era.endswith("+seed") else "seed only"
    if here < first[:2]:
        return f"since {first[0]}.{first[1]}"
    if here > last[:2]:
        return f"until {last[0]}.{last[1]}"
    return ""


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
