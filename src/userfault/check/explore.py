"""The reference engine: breadth-first search in plain Python. It defines the semantics; the native one hurries.

A state is a flat tuple: the cells, then for each thread where it stands and the values of its live locals.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from . import ir
from .analysis import bits
from .errors import CheckError
from .ir import ARITHMETIC, Failure, Op
from .pools import Mix
from .reduce import Reduction
from .result import DEADLOCK, DEREFERENCE, LIVELOCK, RANGE, Move, Options, Result

State = tuple[object, ...]
Place = TypeVar("Place")
"""A state, or one with what a search knows beside it."""

LOCAL_LIMIT = 100_000
"""Instructions of one step; more means local work that never comes to its next shared access."""


@dataclass(slots=True)
class Access:
    """What a step did to a cell: for traces."""

    source: int
    cell: int
    old: int
    new: int
    write: bool


class Violation(Exception):
    """A step broke a property."""

    def __init__(self, failure: Failure, source: int) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.source = source


class Blocked(Exception):
    """The thread is not enabled."""


class Machine:
    """A program ready to execute: one thread, one step at a time."""

    def __init__(self, program: ir.Program, dead_locals: bool = True) -> None:
        self.program = program
        self.cell_count = len(program.cells)
        self.live: list[dict[int, list[int]]] = []
        for thread in program.threads:
            live = {pc: bits(word) for pc, word in thread.live.items()}
            if not dead_locals:
                ever = sorted({local for members in live.values() for local in members})
                live = dict.fromkeys(live, ever)
            self.live.append(live)
        self.number = [{pc: at for at, pc in enumerate(live)} for live in self.live]
        self.reached: set[int] = set()
        self.held: dict[int, list[tuple[int, int]]] = {}
        """Of an invariant or final condition: the cells that it read, and what they were, when it last held."""

    def initial(self) -> State:
        """Every thread before its first step."""
        cells = [cell.init for cell in self.program.cells]
        tail: list[object] = []
        for number, thread in enumerate(self.program.threads):
            values = [local.lo if local.lo > 0 else 0 for local in thread.locals]
            pc = 0 if thread.code[0].step else self.run(thread.code, 0, values, cells, (), [], None)
            tail += [pc, self.frame(number, pc, values)]
        return (*cells, *tail)

    def frame(self, thread: int, pc: int, values: list[int]) -> tuple[int, ...]:
        if pc < 0:
            return ()
        variables = self.program.threads[thread].locals
        out = []
        for local in self.live[thread][pc]:
            value = values[local]
            if not variables[local].lo <= value <= variables[local].hi:
                raise Violation(RANGE, self.program.threads[thread].code[pc].source)
            out.append(value)
        return tuple(out)

    def pc(self, state: State, thread: int) -> int:
        """Where a thread stands; -1 when it has ended."""
        return state[self.cell_count + 2 * thread]  # type: ignore[return-value]

    def ended(self, state: State) -> bool:
        return all(self.pc(state, t) < 0 for t in range(len(self.program.threads)))

    def step(
        self,
        state: State,
        thread: int,
        choices: tuple[int, ...] = (),
        log: list[Access] | None = None,
    ) -> tuple[State, list[int]]:
        """Execute one step; returns the state and, for each choice met, how many values it had.

        Raises Blocked, or Violation.
        """
        n = self.cell_count
        pc = state[n + 2 * thread]
        assert isinstance(pc, int)
        if pc < 0:
            raise Blocked
        body = self.program.threads[thread]
        values = [0] * len(body.locals)
        for local, value in zip(self.live[thread][pc], state[n + 2 * thread + 1], strict=True):  # type: ignore[call-overload]
            values[local] = value
        cells: list[int] = list(state[:n])  # type: ignore[arg-type]
        widths: list[int] = []
        after = self.run(body.code, pc, values, cells, choices, widths, log)
        frame = self.frame(thread, after, values)
        tail = list(state[n:])
        tail[2 * thread] = after
        tail[2 * thread + 1] = frame
        return (*cells, *tail), widths

    def run(
        self,
        code: Sequence[ir.Instr],
        pc: int,
        values: list[int],
        cells: list[int],
        choices: tuple[int, ...],
        widths: list[int],
        log: list[Access] | None,
    ) -> int:
        """From `pc` to the next step (returned) or the end (-1)."""
        program = self.program
        consts = program.consts
        first = pc
        for executed in count():
            instr = code[pc]
            if instr.step and (executed or first != pc):
                return pc
            if executed > LOCAL_LIMIT:
                raise CheckError(f"{program.sources[instr.source]}: a loop without a shared access does not end")
            op = instr.op
            if op is Op.JMP:
                pc = instr.base
                continue
            a = 0
            if op <= Op.WAIT:
                a = values[instr.a] if instr.a >= 0 else consts[-1 - instr.a]
            if op is Op.LOAD:
                if not instr.lo <= a <= instr.hi:
                    raise Violation(DEREFERENCE, instr.source)
                values[instr.d] = cells[instr.base + a]
                if log is not None:
                    log.append(Access(instr.source, instr.base + a, values[instr.d], values[instr.d], False))
            elif op is Op.STORE:
                if not instr.lo <= a <= instr.hi:
                    raise Violation(DEREFERENCE, instr.source)
                b = values[instr.b] if instr.b >= 0 else consts[-1 - instr.b]
                cell = program.cells[instr.base + a]
                if not cell.lo <= b <= cell.hi:
                    raise Violation(RANGE, instr.source)
                if log is not None:
                    log.append(Access(instr.source, instr.base + a, cells[instr.base + a], b, True))
                cells[instr.base + a] = b
            elif op is Op.LOADK:
                if not instr.lo <= a <= instr.hi:
                    raise Violation(DEREFERENCE, instr.source)
                values[instr.d] = program.tables[instr.base][a + instr.b]
            elif op is Op.BR:
                pc = instr.base if a else instr.lo
                continue
            elif op is Op.MOV:
                values[instr.d] = a
            elif op is Op.NOT:
                values[instr.d] = int(not a)
            elif op is Op.WAIT:
                if not a:
                    raise Blocked
            elif op is Op.FAIL:
                raise Violation(program.failures[instr.base], instr.source)
            elif op is Op.CHOOSE:
                at = len(widths)
                widths.append(instr.base)
                values[instr.d] = choices[at] if at < len(choices) else 0
            elif op is Op.REACH:
                self.reached.add(instr.base)
            elif op is Op.END:
                return -1
            else:
                b = values[instr.b] if instr.b >= 0 else consts[-1 - instr.b]
                values[instr.d] = ARITHMETIC[op](a, b)
            pc += 1
        raise AssertionError  # pragma: no cover

    def successors(self, state: State, thread: int) -> Iterator[tuple[tuple[int, ...], State | Violation]]:
        """Each outcome of a thread's next step; none if it is not enabled."""
        choices: tuple[int, ...] = ()
        while True:
            widths: list[int] = []
            try:
                after: State | Violation
                after, widths = self.step(state, thread, choices)
            except Blocked:
                return
            except Violation as violation:
                after = violation
                widths = self.widths(state, thread, choices)
            taken = choices + (0,) * (len(widths) - len(choices))
            yield taken, after
            for at in reversed(range(len(widths))):
                if taken[at] + 1 < widths[at]:
                    choices = (*taken[:at], taken[at] + 1)
                    break
            else:
                return

    def alone(self, state: State, reduction: Reduction) -> State | Violation | None:
        """What comes of the first thread whose next step commutes with all that the others can do; None: no such thread."""
        places = [self.number[t].get(self.pc(state, t), len(self.number[t])) for t in range(len(self.number))]
        for thread, rows in enumerate(reduction.rows):
            row = rows.get(self.pc(state, thread))
            if row is None or any(t != thread and not row[t] >> at & 1 for t, at in enumerate(places)):
                continue
            for _, after in self.successors(state, thread):
                return after
        return None

    def canonical(self, state: State, groups: list[list[int]]) -> State:
        """The representative of the states that differ only in which of some alike threads stands where."""
        if not groups:
            return state
        out = list(state)
        for group in groups:
            at = [self.cell_count + 2 * thread for thread in group]
            number = self.number[group[0]]
            order = sorted(at, key=lambda n: (number.get(state[n], len(number)), state[n + 1]))  # type: ignore[call-overload]
            for place, n in zip(at, order, strict=True):
                out[place], out[place + 1] = state[n], state[n + 1]
        return tuple(out)

    def parts(self, state: State) -> tuple[tuple[int, ...], list[list[tuple[int, int]]]]:
        """The cells, and of each thread its live locals and their values."""
        n = self.cell_count
        frames = []
        for thread, live in enumerate(self.live):
            members = live.get(self.pc(state, thread), [])
            frames.append(list(zip(members, state[n + 2 * thread + 1], strict=True)))  # type: ignore[call-overload]
        return state[:n], frames  # type: ignore[return-value]

    def representative(self, state: State, reduction: Reduction, before: set[int], mix: Mix) -> State:
        """Of the states that differ only by the reduction's symmetries. before: the slots taken where the step began."""
        state = self.canonical(state, reduction.alike)
        pools = reduction.pools
        if pools is None:
            return state
        cells, frames = self.parts(state)
        order = pools.taken(cells, frames)
        pools.note(mix, before, order, cells)
        changed, moved = pools.renumbered(cells, frames, order)
        tail: list[object] = []
        for thread, frame in enumerate(moved):
            tail += [self.pc(state, thread), tuple(value for _, value in frame)]
        return self.canonical((*changed, *tail), reduction.alike)

    def widths(self, state: State, thread: int, choices: tuple[int, ...]) -> list[int]:
        """The widths of the choices met by a step that breaks a property."""
        n = self.cell_count
        pc = state[n + 2 * thread]
        assert isinstance(pc, int)
        body = self.program.threads[thread]
        values = [0] * len(body.locals)
        for local, value in zip(self.live[thread][pc], state[n + 2 * thread + 1], strict=True):  # type: ignore[call-overload]
            values[local] = value
        widths: list[int] = []
        try:
            after = self.run(body.code, pc, values, list(state[:n]), choices, widths, None)  # type: ignore[arg-type]
            self.frame(thread, after, values)
        except Violation:
            pass
        return widths

    def broken(self, state: State) -> Failure | None:
        """The first invariant (or, in a final state, final condition) that the state breaks."""
        specs = self.program.invariants
        if self.program.finals and self.ended(state):
            specs = specs + self.program.finals
        for number, spec in enumerate(specs):
            # What reads the same finds the same.
            if number in self.held and all(state[cell] == value for cell, value in self.held[number]):
                continue
            log: list[Access] = []
            try:
                self.run(spec.code, 0, [0] * len(spec.locals), list(state[: self.cell_count]), (), [], log)  # type: ignore[arg-type]
            except Violation as violation:
                return violation.failure
            self.held[number] = [(access.cell, access.new) for access in log]
        return None


def explore(program: ir.Program, options: Options | None = None) -> Result:
    """Every interleaving, breadth first. The level of the first violation is finished, so counts have one value."""
    options = options or Options()
    started = time.perf_counter()
    machine = Machine(program, options.dead_locals)
    result = Result("holds", engine="python")
    start = machine.initial()
    parents: dict[State, tuple[State, Move] | None] = {start: None}
    level = [start]
    worst: tuple[int, State, Move | None, Failure] | None = None
    rank = {failure: number for number, failure in enumerate([*program.failures, DEREFERENCE, RANGE, DEADLOCK])}
    failure = machine.broken(start)
    if failure is not None:
        worst = (rank[failure], start, None, failure)
    threads = range(len(program.threads))
    depth = 0
    bound = False
    while level and (worst is None or options.keep_going) and not bound:
        following: list[State] = []
        for state in level:
            moved = False
            for thread in threads:
                for choices, after in machine.successors(state, thread):
                    moved = True
                    result.transitions += 1
                    move = Move(thread, choices)
                    if isinstance(after, Violation):
                        found: Failure | None = after.failure
                    else:
                        if after in parents:
                            continue
                        parents[after] = (state, move)
                        found = machine.broken(after)
                        if found is None:
                            following.append(after)
                    if found is not None and (worst is None or (depth == result.depth and rank[found] < worst[0])):
                        worst = (rank[found], state, move, found)
                        result.depth = depth
            if (
                not moved
                and not machine.ended(state)
                and (worst is None or (depth == result.depth and rank[DEADLOCK] < worst[0]))
            ):
                worst = (rank[DEADLOCK], state, None, DEADLOCK)
                result.depth = depth
        if len(parents) > options.max_states:
            bound = True
        level = following
        depth += 1
    result.states = len(parents)
    result.reached = frozenset(program.sometimes[number] for number in machine.reached)
    if worst is not None:
        _, state, last, result.failure = worst
        result.verdict = "bound" if result.failure.property == "bound" else "violated"
        result.schedule = _path(parents, state) + ([last] if last is not None else [])
        result.depth = len(result.schedule)
    elif bound:
        result.verdict = "bound"
    elif options.liveness:
        lasso = fair_cycle(machine, parents)
        if lasso is not None:
            prefix, cycle = lasso
            result.verdict, result.failure = "violated", LIVELOCK
            result.schedule, result.lasso = prefix + cycle, len(prefix)
            result.depth = len(result.schedule)
    result.seconds = time.perf_counter() - started
    return result


def explore_reduced(program: ir.Program, reduction: Reduction, options: Options | None = None) -> Result:
    """Does it hold? By a search of fewer interleavings (see reduce.py).

    "violated" says that `explore` will find a violation, perhaps another one; there is no schedule. Termination is not
    judged: `cyclic` says whether there is anything to judge. If pools were `mixed`, it has to be done without them.
    """
    options = options or Options()
    started = time.perf_counter()
    machine = Machine(program, options.dead_locals)
    result = Result("holds", engine="python", cyclic=False)
    start = machine.initial()
    seen = {start}
    failure = machine.broken(start)
    level = [start]
    mix = Mix()
    while level and failure is None:
        following: list[State] = []
        fresh: set[State] = set()
        for state in level:
            outcomes: list[State | Violation] = []
            pools = reduction.pools
            before = set(pools.taken(*machine.parts(state))) if pools is not None else set()
            alone = machine.alone(state, reduction)
            if alone is not None:
                outcomes = [alone]
            else:
                for thread in range(len(program.threads)):
                    outcomes += [after for _, after in machine.successors(state, thread)]
                if not outcomes and not machine.ended(state):
                    failure = failure or DEADLOCK
            for after in outcomes:
                result.transitions += 1
                found = after.failure if isinstance(after, Violation) else machine.broken(after)
                while reduction.chains and found is None and not isinstance(after, Violation):
                    alone = machine.alone(after, reduction)
                    if alone is None:
                        break
                    result.transitions += 1
                    after = alone
                    found = after.failure if isinstance(after, Violation) else machine.broken(after)
                failure = failure or found
                if isinstance(after, Violation):
                    continue
                after = machine.representative(after, reduction, before, mix)
                if after not in seen:
                    seen.add(after)
                    fresh.add(after)
                    if found is None:
                        following.append(after)
                elif after not in fresh:
                    result.cyclic = True
        result.levels += 1
        if mix.pools():
            failure, result.verdict, result.mixed = None, "bound", mix.pools()
            break
        if len(seen) > options.max_states:
            result.verdict = "bound"
            break
        level = following
    if failure is not None:
        result.verdict = "bound" if failure.property == "bound" else "violated"
        result.failure = failure
    result.states = len(seen)
    result.reached = frozenset(program.sometimes[number] for number in machine.reached)
    result.seconds = time.perf_counter() - started
    return result


def _path(parents: dict[Place, tuple[Place, Move] | None], state: Place) -> list[Move]:
    moves: list[Move] = []
    link = parents[state]
    while link is not None:
        state, move = link
        moves.append(move)
        link = parents[state]
    return moves[::-1]


def fair_cycle(
    machine: Machine, parents: dict[State, tuple[State, Move] | None]
) -> tuple[list[Move], list[Move]] | None:
    """A reachable cycle that fairness allows: whoever can go on somewhere in it does go on in it.

    That is weak fairness, and strong for waits: a lock's queue serves everybody in the end, so a thread that could take
    its lock again and again is not kept from it forever. Threads are finite but for their retry loops, so an endless fair run
    is one in which somebody retries forever, and it ends in such a cycle. A component of the graph may be no such cycle as
    a whole and contain one: its states in which the threads that never move in it could are taken away, and what is left
    is looked at again (as Emerson and Lei do, Modalities for Model Checking, 1987). Returns the way there and once around.
    """
    threads = range(len(machine.program.threads))
    edges: dict[State, list[tuple[Move, State]]] = {}
    enabled: dict[State, set[int]] = {}
    for state in parents:
        every = [
            (Move(thread, choices), after) for thread in threads for choices, after in machine.successors(state, thread)
        ]
        enabled[state] = {move.thread for move, _ in every}
        edges[state] = [(move, after) for move, after in every if not isinstance(after, Violation) and after in parents]
    regions = [edges]
    while regions:
        for component in _components(regions.pop()):
            members = set(component)
            inside = {s: [(m, t) for m, t in edges[s] if t in members] for s in component}
            movers = {m.thread for out in inside.values() for m, _ in out}
            if not movers:
                continue
            left_out = set().union(*(enabled[s] for s in component)) - movers
            if not left_out:
                start = min(component, key=lambda s: len(_path(parents, s)))
                return _path(parents, start), _around(inside, start, movers)
            rest = {s for s in component if not enabled[s] & left_out}
            if rest:
                regions.append({s: [(m, t) for m, t in inside[s] if t in rest] for s in component if s in rest})
    return None


def _around(inside: dict[State, list[tuple[Move, State]]], start: State, movers: set[int]) -> list[Move]:
    """A closed walk from `start` in which each of the movers moves."""
    walk: list[Move] = []
    at = start
    for mover in [*sorted(movers), -1]:
        if any(move.thread == mover for move in walk):
            continue
        back: dict[State, tuple[State, Move] | None] = {at: None}
        queue = deque([at])
        goal: tuple[State, Move, State] | None = None
        if mover == -1 and at == start:
            break
        while queue and goal is None:
            state = queue.popleft()
            for move, after in inside[state]:
                if (mover >= 0 and move.thread == mover) or (mover == -1 and after == start):
                    goal = (state, move, after)
                    break
                if after not in back:
                    back[after] = (state, move)
                    queue.append(after)
        assert goal is not None
        walk += [*_path(back, goal[0]), goal[1]]
        at = goal[2]
    return walk


def _components(edges: dict[State, list[tuple[Move, State]]]) -> Iterator[list[State]]:
    """Tarjan's strongly connected components, without recursion."""
    index: dict[State, int] = {}
    low: dict[State, int] = {}
    on_stack: set[State] = set()
    stack: list[State] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            state, at = work.pop()
            if at == 0:
                index[state] = low[state] = len(index)
                stack.append(state)
                on_stack.add(state)
            descended = False
            for number in range(at, len(edges[state])):
                after = edges[state][number][1]
                if after not in index:
                    work += [(state, number + 1), (after, 0)]
                    descended = True
                    break
                if after in on_stack:
                    low[state] = min(low[state], index[after])
            if descended:
                continue
            for _, after in edges[state]:
                if after in on_stack and index[after] > index[state]:
                    low[state] = min(low[state], low[after])
            if low[state] == index[state]:
                component = []
                while True:
                    member = stack.pop()
                    on_stack.discard(member)
                    component.append(member)
                    if member == state:
                        break
                yield component


def fewest_switches(program: ir.Program, target: Failure, options: Options | None = None) -> list[Move] | None:
    """The schedule to `target` with the fewest context switches, then the fewest steps; None if the bound is hit.

    Dijkstra over (state, thread that moved last): staying on a CPU is free, switching costs one.
    """
    options = options or Options()
    machine = Machine(program, True)
    start = machine.initial()
    key0 = (start, -1)
    best: dict[tuple[State, int], tuple[tuple[State, int], Move] | None] = {key0: None}
    done: set[tuple[State, int]] = set()
    current: dict[int, list[tuple[tuple[State, int], tuple[tuple[State, int], Move] | None]]] = {0: [(key0, None)]}
    while current:
        coming: dict[int, list[tuple[tuple[State, int], tuple[tuple[State, int], Move] | None]]] = {}
        steps = min(current)
        while current:
            steps = min(current)
            for key, link in current.pop(steps):
                if key in done:
                    continue
                done.add(key)
                best[key] = link
                if len(done) > options.max_states:
                    return None
                state, last = key
                moved = False
                for thread in range(len(program.threads)):
                    for choices, after in machine.successors(state, thread):
                        moved = True
                        move = Move(thread, choices)
                        if isinstance(after, Violation):
                            if after.failure == target:
                                return [*_path(best, key), move]
                            continue
                        broken = machine.broken(after)
                        if broken == target:
                            return [*_path(best, key), move]
                        if broken is not None:
                            continue
                        following = (after, thread)
                        if following in done:
                            continue
                        where = current if last in (-1, thread) or machine.pc(state, last) < 0 else coming
                        where.setdefault(steps + 1, []).append((following, (key, move)))
                if not moved and not machine.ended(state) and target == DEADLOCK:
                    return _path(best, key)
        current = coming
    return None
