"""Which engine searches: the native one where it could be built, else the reference engine."""

from __future__ import annotations

from types import ModuleType

from . import explore, ir, native
from .errors import CheckError
from .ir import Failure
from .result import Move, Options, Result

ENGINES = ("auto", "python", "native")


def _engine(name: str) -> ModuleType:
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
    """Search a program. Raises CheckError for an unknown engine, or `native` where it was not built."""
    result: Result = _engine(engine).explore(program, options)
    return result


def fewest_switches(
    program: ir.Program, target: Failure, options: Options | None = None, engine: str = "auto"
) -> list[Move] | None:
    """The schedule to a violation with the fewest context switches, then the fewest steps."""
    moves: list[Move] | None = _engine(engine).fewest_switches(program, target, options)
    return moves
