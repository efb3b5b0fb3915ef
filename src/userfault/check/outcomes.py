"""How a program can end: every set of values that its observers read in some final state.

The search goes on past violations, but not through them: what would come after a broken state is in no outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import ir, native
from .engine import PLAIN, choose_engine
from .explore import Machine, State, Violation
from .ir import Failure
from .reduce import Reduction, reduction
from .result import Options

Outcome = tuple[int, ...]


@dataclass(slots=True)
class Outcomes:
    """The values of the observers, in the program's order, in each final state that differs in them.

    complete: False if a bound was hit, or if something is broken: there may be more outcomes then. failure: what is
    broken, the first that was met.
    """

    outcomes: set[Outcome] = field(default_factory=set)
    states: int = 0
    complete: bool = True
    failure: Failure | None = None


def find_outcomes(program: ir.Program, options: Options | None = None, engine: str = "auto") -> Outcomes:
    """Explore a program and read every final state. Raises CheckError as `engine.run` does."""
    options = options or Options()
    search = native_outcomes if choose_engine(engine) is native else reference_outcomes
    few = Options(max_states=min(options.max_states, PLAIN), max_bytes=options.max_bytes)
    found = search(program, few, None)
    if found.complete or found.failure is not None or few.max_states == options.max_states:
        return found
    # Persistent sets reach every final state; threads that change places would not give every register its value.
    return search(program, options, reduction(program, options.persistent, options.chains, symmetry=False, pools=False))


def read(machine: Machine, cells: list[int]) -> Outcome:
    """What the observers see of a final state."""
    program = machine.program
    values = []
    for spec, cell in zip(program.observers, program.observed, strict=True):
        seen = list(cells)
        machine.run(spec.code, 0, [0] * len(spec.locals), seen, (), [], None)
        values.append(seen[cell])
    return tuple(values)


def reference_outcomes(program: ir.Program, options: Options, reduced: Reduction | None) -> Outcomes:
    """In plain Python: what an outcome is."""
    machine = Machine(program, options.dead_locals)
    found = Outcomes()
    start = machine.initial()
    seen = {start}
    found.failure = machine.broken(start)
    work = [start] if found.failure is None else []
    while work:
        state = work.pop()
        if machine.ended(state):
            found.outcomes.add(read(machine, list(state[: machine.cell_count])))  # type: ignore[arg-type]
            continue
        alone = machine.alone(state, reduced) if reduced is not None else None
        after: list[State | Violation] = [alone] if alone is not None else []
        if alone is None:
            for thread in range(len(program.threads)):
                after += [each for _, each in machine.successors(state, thread)]
        for each in after:
            broken = each.failure if isinstance(each, Violation) else machine.broken(each)
            found.failure = found.failure or broken
            if broken is None and not isinstance(each, Violation) and each not in seen:
                seen.add(each)
                work.append(each)
        if len(seen) > options.max_states:
            found.complete = False
            break
    found.states = len(seen)
    found.complete = found.complete and found.failure is None
    return found


def native_outcomes(program: ir.Program, options: Options, reduced: Reduction | None) -> Outcomes:
    """As reference_outcomes: the same outcomes."""
    machine = Machine(program, options.dead_locals)
    result, ends = native.final_states(program, options, reduced)
    return Outcomes(
        outcomes={read(machine, cells) for cells in ends},
        states=result.states,
        complete=result.verdict == "holds",
        failure=result.failure,
    )
