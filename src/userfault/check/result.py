"""What a search returns, and what may be asked of it; shared by the engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .ir import Failure


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds and reductions of a search. A reduction switched off never changes a verdict, only the cost.

    max_states: stop there with the verdict "bound". max_bytes: the same for the memory of the native engine.
    dead_locals: a local that will not be read again is forgotten. persistent: explore one thread where its next step
    commutes with all that the others can do before it. chains: store only states where something was to be
    decided. symmetry: threads that run the same code are interchangeable. pools: so are the slots that a pool's objects lie in.
    threads: cores of the native engine.
    keep_going: explore everything, do not stop at the first violation (used to compare engines).
    """

    max_states: int = 20_000_000
    max_bytes: int = 8 << 30
    dead_locals: bool = True
    persistent: bool = True
    chains: bool = True
    symmetry: bool = True
    pools: bool = True
    liveness: bool = True
    threads: int = 1
    keep_going: bool = False

    def unreduced(self) -> Options:
        """The same search with every reduction off."""
        return Options(
            max_states=self.max_states,
            max_bytes=self.max_bytes,
            dead_locals=False,
            persistent=False,
            chains=False,
            symmetry=False,
            pools=False,
            liveness=self.liveness,
            threads=self.threads,
            keep_going=self.keep_going,
        )


class Move(NamedTuple):
    """One step of a schedule: which thread, and the values of the choices it met."""

    thread: int
    choices: tuple[int, ...] = ()


@dataclass(slots=True)
class Result:
    """The outcome of a search.

    verdict: "holds", "violated" or "bound". failure: the property broken and what was found.
    states, transitions: distinct states stored and steps executed. depth: steps from the start to the violation.
    schedule: a shortest one to it. lasso: where in the schedule the cycle of a livelock begins, or -1.
    reached: the `sometimes` properties seen. cyclic: False if the search saw that no run is endless. levels: how far a reduced
    search came. mixed: the numbers of pools (a bit set) whose slots it took for alike when they were not: nothing else of
    it is true then.
    """

    verdict: str
    failure: Failure | None = None
    states: int = 0
    transitions: int = 0
    depth: int = 0
    schedule: list[Move] = field(default_factory=list)
    lasso: int = -1
    reached: frozenset[str] = frozenset()
    engine: str = ""
    seconds: float = 0.0
    bytes_per_state: float = 0.0
    cyclic: bool = True
    levels: int = 0
    mixed: int = 0


DEREFERENCE = Failure("dereference", "a NULL or wild pointer was followed")
RANGE = Failure("range", "a value left the range that its variable is declared with")
DEADLOCK = Failure("deadlock", "every thread that has not ended waits")
LIVELOCK = Failure("termination", "a fair cycle: the threads in it run forever without ending")
