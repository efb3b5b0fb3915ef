"""Every pair (or triple) of operations against each other, on the smallest configurations (protocol.md D.5).

The tests are generated, not written: `matrix/CONFIGURATION/OP+OP`. What such a test is expected to do is that everything
holds, but for what `known.txt` lists: violations that are understood, each with the number of its entry in `findings/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, combinations_with_replacement

from ..model.era import ERAS
from .ast import Test
from .errors import LitmusError
from .mutants import find_mutant
from .operations import OPERATIONS
from .read import read


@dataclass(frozen=True)
class Configuration:
    """An initial state and the operations that are raced on it, by short name."""

    init: str
    operations: dict[str, str]


CONFIGURATIONS = {
    "page": Configuration(
        "A:0-1 = P; A:2-3 userfault;",
        {
            "move": "move 2 <- 0",
            "referenced": "referenced P",
            "reclaim": "reclaim P",
            "migrate": "migrate P",
            "store": "store 0 5",
            "load": "load 0",
            "loaddst": "load 2",
            "dontneed": "dontneed 0 1",
            "munmap": "munmap 0 1",
            "munmapdst": "munmap 2 1",
            "fork": "fork {child}",
            "pinwrite": "pinwrite 0 6",
            "ksm": "ksm 0",
            "get": "get_anon_vma P",
        },
    ),
    "swap": Configuration(
        "A:0-1 = P; A:2-3 userfault; swapout P cached;",
        {
            "move": "move 2 <- 0",
            "load": "load 0",
            "store": "store 0 5",
            "loaddst": "load 2",
            "reclaim": "reclaim P",
            "migrate": "migrate P",
            "dontneed": "dontneed 0 1",
            "munmap": "munmap 0 1",
            "fork": "fork {child}",
        },
    ),
    "huge": Configuration(
        "A:0-2 = huge P; A:4-6 userfault; pool page 2;",
        {
            "move": "move 4 <- 0 2",
            "movepart": "move 4 <- 0 1",
            "split": "split P",
            "migrate": "migrate P",
            "referenced": "referenced P",
            "pinwrite": "pinwrite 0 6",
            "store": "store 0 5",
            "munmap": "munmap 0 2",
            "munmapdst": "munmap 4 2",
            "fork": "fork {child}",
            "get": "get_anon_vma P",
        },
    ),
    "table": Configuration(
        "A:0-2 = P, Q; A:4-6 userfault;",
        {
            "collapse": "collapse 0",
            "move": "move 4 <- 0",
            "referenced": "referenced P",
            "reclaim": "reclaim P",
            "migrate": "migrate P",
            "store": "store 0 5",
            "dontneed": "dontneed 0 1",
            "pinwrite": "pinwrite 0 6",
        },
    ),
}


MOVES = {"move", "movepart"}
PASSING = {"walk_is_complete": ("walk_is_complete",), "page_is_linear": ("page_is_linear", "walk_is_complete")}
"""Properties that a run goes on after, nothing in the machine being out of joint; and what it then breaks too."""
SPARE = " pool page 6; pool page_table 2; pool swap_slot 2;"
"""For triples: an operation may need its page again and again while others take it away."""


@cache
def known() -> dict[tuple[str, str], tuple[str, str]]:
    """(test, era) -> (property, finding) of the violations that are understood."""
    out = {}
    for line in files(__package__).joinpath("known.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            test, era, prop, finding = line.split()
            out[test, era] = (prop, finding)
    return out


def in_pairs(configuration: str, picked: Sequence[str], era: str) -> list[str]:
    """The properties that two of these operations are understood to break."""
    order = list(CONFIGURATIONS[configuration].operations)
    found = []
    for some in combinations(sorted(picked, key=order.index), 2):
        prop, _ = known().get((f"matrix/{configuration}/{'+'.join(some)}", era), ("", ""))
        if prop and prop not in found:
            found.append(prop)
    return found


def understood(name: str, era: str) -> tuple[str, list[str]]:
    """(the property that is understood to break, or "", properties to look past)."""
    _, configuration, operations = name.split("/")
    picked = operations.split("+")
    exact, _ = known().get((name, era), ("", ""))
    if len(picked) == 2:
        return exact, []
    pairs = in_pairs(configuration, picked, era)
    past = sorted({each for prop in pairs for each in PASSING.get(prop, ())})
    stopping = [prop for prop in pairs if prop not in PASSING]
    prop = exact or (stopping[0] if stopping else "")
    return "" if prop == "-" else prop, past


def _text(name: str, configuration: str, picked: Sequence[str], eras: Sequence[str]) -> str:
    chosen = CONFIGURATIONS[configuration]
    heads = " | ".join(f"P{n} : A" for n in range(len(picked)))
    cells = " | ".join(chosen.operations[op].format(child=f"B{n}") for n, op in enumerate(picked))
    ignore, expect = [], []
    for era in eras:
        # What two of the operations break is known: look what else three do.
        prop, past = understood(name, era)
        ignore += [f"ignore {each} {era}" for each in past]
        expect.append(f"expect {era} violated {prop}" if prop else f"expect {era} holds")
    spare = SPARE if len(picked) > 2 else ""
    question = f"Can {' and '.join(picked)} run at the same time?"
    lines = [
        f"userfault {name}",
        f'"{question}"',
        f"{{ {chosen.init}{spare} }}",
        f"{heads} ;",
        f"{cells} ;",
        *ignore,
        *expect,
    ]
    return "\n".join(lines) + "\n"


def _eras(configuration: str, picked: Sequence[str]) -> list[str]:
    """The eras in which all of the operations exist."""
    words = [CONFIGURATIONS[configuration].operations[op].split()[0] for op in picked]
    return [era for era in ERAS if all(not OPERATIONS[word].eras or era in OPERATIONS[word].eras for word in words)]


def generate(name: str) -> Test:
    """The test of that name. Raises LitmusError if there is none."""
    parts = name.split("/")
    if len(parts) != 3 or parts[1] not in CONFIGURATIONS:
        raise LitmusError(
            f"{name!r} is no test of the matrix: matrix/CONFIGURATION/OP+OP with {', '.join(CONFIGURATIONS)}"
        )
    picked = parts[2].split("+")
    for op in picked:
        if op not in CONFIGURATIONS[parts[1]].operations:
            names = ", ".join(CONFIGURATIONS[parts[1]].operations)
            raise LitmusError(f"{name!r}: there is no operation {op!r} on {parts[1]}: one of {names}")
    return read(_text(name, parts[1], picked, _eras(parts[1], picked)), name)


def matrix_jobs(eras: Sequence[str], size: int, mutant: str = "") -> list[tuple[str, str, str]]:
    """(test, era, mutant) for every choice of up to `size` operations: the pairs first, then what races with a move."""
    if mutant:
        find_mutant(mutant)
    for era in eras:
        if era not in ERAS:
            raise LitmusError(f"there is no era {era!r}: one of {', '.join(ERAS)}")
    choices = [
        (configuration, picked)
        for count in range(2, size + 1)
        for configuration, chosen in CONFIGURATIONS.items()
        for picked in combinations_with_replacement(chosen.operations, count)
    ]
    # A run that is stopped early has asked about moves by then.
    choices.sort(key=lambda choice: (len(choice[1]), MOVES.isdisjoint(choice[1])))
    return [
        (f"matrix/{configuration}/{'+'.join(picked)}", era, mutant)
        for configuration, picked in choices
        for era in _eras(configuration, picked)
        if not eras or era in eras
    ]
