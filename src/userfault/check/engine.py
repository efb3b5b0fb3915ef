"""Which engine searches: the native one where it could be built, else the reference engine."""

from __future__ import annotations

import time
from dataclasses import replace
from types import ModuleType

from . import explore, ir, native
from .errors import CheckError
from .ir import Failure
from .reduce import Reduction, reduction
from .result import Move, Options, Result

PLAIN = 200_000
"""States of a search that is over before the static analysis of a reduction would be."""

TRIAL = 50_000
"""States that show whether the symmetry of pools is worth its while."""

ENGINES = ("auto", "python", "native")


def choose_engine(name: str) -> ModuleType:
    """The module that searches. Raises CheckError if there is none of that name, or it was not built."""
    if name not in ENGINES:
        raise CheckError(f"there is no engine {name!r}: one of {', '.join(ENGINES)}")
    if name == "python":
        return explore
    if native.available():
        return native
    if name == "native":
        raise CheckError(f"the native engine can't run: {native.why_missing()}")
    return explore


def run(program: ir.Program, options: Options | None = None, engine: str = "auto") -> Result:
    """Search a program; with reductions, once it turns out to be large.

    Raises CheckError for an unknown engine, or `native` where it was not built.
    """
    options = options or Options()
    started = time.perf_counter()
    module = choose_engine(engine)
    reduce = options.persistent or options.symmetry or options.pools
    # By one worker, whose order of discovery has one value: most searches end here, and so do not differ from run to run.
    first = replace(options, max_states=min(options.max_states, PLAIN), threads=1) if reduce else options
    result: Result = module.explore(program, first)
    if result.verdict != "bound" or result.failure is not None or first.max_states == options.max_states:
        return result
    asked = reduction(program, options.persistent, options.chains, options.symmetry, options.pools)
    if asked.pools is not None and not _pays(module, program, asked, options):
        asked = replace(asked, pools=None)
    reduced = _reduced(module, program, asked, options)
    done = reduced.failure is None and (reduced.verdict == "bound" or not (options.liveness and reduced.cyclic))
    # What is broken, how soonest, and which cycles are fair: questions for the full graph.
    result = reduced if done else module.explore(program, options)
    result.seconds = time.perf_counter() - started
    return result


def _reduced(module: ModuleType, program: ir.Program, asked: Reduction, options: Options) -> Result:
    """A reduced search, without the pools whose slots turn out not to be alike."""
    while True:
        reduced: Result = module.explore_reduced(program, asked, options)
        if not reduced.mixed:
            return reduced
        asked = asked.without(program, reduced.mixed)


def _pays(module: ModuleType, program: ir.Program, asked: Reduction, options: Options) -> bool:
    """Does the symmetry of pools save so much in the beginning that it makes up for what it takes at every step?"""
    few = replace(options, max_states=min(options.max_states, TRIAL), threads=1)
    without = module.explore_reduced(program, replace(asked, pools=None), few)
    tried = _reduced(module, program, asked, few)
    return bool(tried.levels > without.levels or 3 * tried.states < 2 * without.states)


def fewest_switches(
    program: ir.Program, target: Failure, options: Options | None = None, engine: str = "auto"
) -> list[Move] | None:
    """The schedule to a violation with the fewest context switches, then the fewest steps."""
    moves: list[Move] | None = choose_engine(engine).fewest_switches(program, target, options)
    return moves
