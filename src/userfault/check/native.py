"""The native engine: hands a program (layout.py, encode.py) to native/explore*.c and takes back what it found."""

from __future__ import annotations

import ctypes
import threading
import time
from array import array
from dataclasses import replace
from typing import Any

from ..native import library
from ..native import why_missing as why_not_built
from . import ir
from .encode import MAX_CHOICES, Encoder, cells_of, signed
from .encode_pools import POOL_ARRAYS, pool_arrays
from .errors import CheckError, TooLarge
from .ir import Failure
from .reduce import Reduction
from .result import DEADLOCK, DEREFERENCE, LIVELOCK, RANGE, Move, Options, Result

NO_MEMORY = "the search got no memory: lower --max-states"


class _Program(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_pc", ctypes.c_int32),
        ("entry", ctypes.c_void_p),
        ("affects", ctypes.c_void_p),
        ("bodies", ctypes.c_void_p),
        ("consts", ctypes.c_void_p),
        ("table_at", ctypes.c_void_p),
        ("seen_by", ctypes.c_void_p),
        ("made", ctypes.c_void_p),
        ("failed", ctypes.c_void_p),
        ("cell_words", ctypes.c_int32),
        ("first_const", ctypes.c_int32),
        ("pc_word", ctypes.c_void_p),
        ("pc_shift", ctypes.c_void_p),
        ("pc_mask", ctypes.c_void_p),
        ("pc_end", ctypes.c_void_p),
        ("regs", ctypes.c_void_p),
        ("reg_count", ctypes.c_int32),
        ("cells", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("initial", ctypes.c_void_p),
        ("invariants", ctypes.c_int32),
        ("finals", ctypes.c_int32),
        ("spec_entry", ctypes.c_void_p),
        ("spec_regs", ctypes.c_void_p),
        ("failures", ctypes.c_int32),
        ("alone", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("row_words", ctypes.c_int32),
        ("chains", ctypes.c_int32),
        ("alike", ctypes.c_void_p),
        ("pools", ctypes.c_void_p),
    )


class _Pools(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in POOL_ARRAYS),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("max_states", ctypes.c_int64),
        ("max_bytes", ctypes.c_int64),
        ("workers", ctypes.c_int32),
        ("keep_going", ctypes.c_int32),
        ("liveness", ctypes.c_int32),
        ("collect", ctypes.c_int32),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("verdict", ctypes.c_int32),
        ("failure", ctypes.c_int32),
        ("states", ctypes.c_int64),
        ("transitions", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("levels", ctypes.c_int64),
        ("lasso", ctypes.c_int64),
        ("cyclic", ctypes.c_int64),
        ("reached", ctypes.c_uint64 * 4),
        ("moves", ctypes.POINTER(ctypes.c_int32)),
        ("moves_length", ctypes.c_int64),
        ("ends", ctypes.POINTER(ctypes.c_uint64)),
        ("ends_count", ctypes.c_int64),
        ("moves_room", ctypes.c_int64),
        ("mixed", ctypes.c_uint64),
    )


def available() -> bool:
    """Could the C core be built and loaded?"""
    return library() is not None


def why_missing() -> str:
    return why_not_built()


def _failures(program: ir.Program) -> list[Failure]:
    return [*program.failures, DEREFERENCE, RANGE, DEADLOCK, LIVELOCK]


def _struct(encoder: Encoder, reduction: Reduction | None) -> tuple[_Program, list[object]]:
    """The C view; the encoder, and what it points into, must be kept alive."""
    layout, program = encoder.layout, encoder.program
    threads, specs = len(program.threads), len(program.invariants) + len(program.finals)
    kept: list[object] = []

    def at(words: array[int]) -> int:
        kept.append(words)
        return words.buffer_info()[0]

    made = _Program(
        words=layout.words,
        threads=threads,
        max_pc=encoder.max_pc,
        entry=at(encoder.entry),
        affects=at(encoder.affects),
        bodies=ctypes.addressof(encoder.bodies),
        consts=at(encoder.consts),
        table_at=at(encoder.table_at),
        seen_by=at(encoder.seen_by),
        made=ctypes.addressof(encoder.made),
        failed=ctypes.addressof(encoder.failed),
        cell_words=encoder.cell_words,
        first_const=encoder.first_const,
        pc_word=at(array("i", [p.word for p in layout.pc])),
        pc_shift=at(array("i", [p.shift for p in layout.pc])),
        pc_mask=at(array("i", [signed((1 << p.bits) - 1) for p in layout.pc])),
        pc_end=at(array("i", [len(n) for n in layout.numbers])),
        regs=at(encoder.registers(threads)),
        reg_count=encoder.reg_count,
        cells=at(cells_of(layout.cells)),
        tables=at(encoder.tables),
        initial=at(encoder.initial),
        invariants=len(program.invariants),
        finals=len(program.finals),
        spec_entry=at(encoder.spec_entry),
        spec_regs=at(encoder.registers(specs)),
        failures=len(program.failures),
    )
    if reduction is not None:
        alone, rows, made.row_words = encoder.persistent_sets(reduction)
        made.alone, made.rows, made.chains = at(alone), at(rows), reduction.chains
        made.alike = at(encoder.alike(reduction.alike))
        if reduction.pools is not None:
            arrays = pool_arrays(reduction.pools, encoder.layout, encoder.max_pc)
            pools = _Pools(len(reduction.pools.pools), **{name: at(words) for name, words in arrays.items()})
            kept.append(pools)
            made.pools = ctypes.addressof(pools)
    return made, kept


def _c_options(options: Options) -> _Options:
    return _Options(options.max_states, options.max_bytes, options.threads, options.keep_going, options.liveness)


AT_ONCE = 200_000
"""States of a search that is over before a thread for it, on a busy machine, is worth its while."""

_last: dict[str, Any] = {}
"""The program encoded last: a verdict and its counterexample are two searches of one program."""


def _call(
    program: ir.Program,
    options: Options,
    target: int | None,
    reduction: Reduction | None = None,
    collect: bool = False,
) -> tuple[_Result, list[Move], Encoder]:
    lib = library()
    if lib is None:
        raise CheckError(f"the native engine can't run: {why_not_built()}")
    key = (id(program), options.dead_locals)
    new = _last.get("key") != key
    encoder: Encoder = Encoder(program, options, lib) if new else _last["encoder"]
    struct, keep = _struct(encoder, reduction)
    if new:
        if lib.uf_encode_specs(ctypes.byref(struct)):
            raise CheckError(f"{program.name}: {NO_MEMORY}")
        _last.update(key=key, program=program, encoder=encoder)
    c_options, out = _c_options(options), _Result()
    c_options.collect = collect
    lib.uf_stop(0)

    ended = threading.Event()

    def search() -> None:
        try:
            if target is None:
                lib.uf_explore(ctypes.byref(struct), ctypes.byref(c_options), ctypes.byref(out))
            else:
                lib.uf_fewest(ctypes.byref(struct), ctypes.byref(c_options), target, ctypes.byref(out))
        finally:
            ended.set()

    if options.max_states > AT_ONCE and threading.current_thread() is threading.main_thread():
        # Ctrl-C must reach a long search: the main thread waits where Python can take the signal.
        worker = threading.Thread(target=search, daemon=True)
        try:
            worker.start()
            while not ended.wait(0.2):
                pass
        except KeyboardInterrupt:
            lib.uf_stop(1)
            # Not by join: one that was interrupted takes the thread for dead (CPython 3.11), and what it uses is freed.
            while worker.ident is not None and not ended.wait(0.2):
                pass
            raise
    else:
        search()
    del keep
    if encoder.failed.value:
        out.verdict, encoder.failed.value = 5, 0
    if out.verdict in (3, 5, 6, 7):
        lib.uf_free(out.moves)
        lib.uf_free(out.ends)
    if out.verdict == 3:
        raise CheckError(f"{program.name}: a loop without a shared access does not end")
    if out.verdict == 5:
        raise CheckError(f"{program.name}: {NO_MEMORY}")
    if out.verdict == 6:
        raise TooLarge(f"{program.name}: a step chooses more than {MAX_CHOICES} times, the native engine holds no more")
    if out.verdict == 7:
        raise TooLarge(
            f"{program.name}: a step computes a value that does not fit in 32 bits: the native engine's words"
        )
    moves: list[Move] = []
    at = 0
    while at < out.moves_length:
        count = out.moves[at + 1]
        moves.append(Move(out.moves[at], tuple(out.moves[at + 2 + i] for i in range(count))))
        at += 2 + count
    lib.uf_free(out.moves)
    return out, moves, encoder


def explore(program: ir.Program, options: Options | None = None) -> Result:
    """As explore.explore: the same counts, verdict and depth."""
    return _explore(program, options or Options(), None)


def explore_reduced(program: ir.Program, reduction: Reduction, options: Options | None = None) -> Result:
    """As explore.explore_reduced: the same verdict and, where it holds, counts."""
    return _explore(program, options or Options(), reduction)


def _explore(program: ir.Program, options: Options, reduction: Reduction | None) -> Result:
    started = time.perf_counter()
    out, moves, encoder = _call(program, options, None, reduction)
    result = _result(encoder, out, moves)
    result.seconds = time.perf_counter() - started
    return result


def final_states(
    program: ir.Program, options: Options, reduction: Reduction | None = None
) -> tuple[Result, list[list[int]]]:
    """Search past violations; the result, and the cells of every final state that breaks nothing."""
    options = replace(options, keep_going=True, liveness=False)
    out, moves, encoder = _call(program, options, None, reduction, collect=True)
    words = encoder.layout.words
    ends = []
    for at in range(0, out.ends_count * words, words):
        state = out.ends[at : at + words]
        ends.append(
            [(state[p.word] >> p.shift & (1 << p.bits) - 1) + p.lo for p in encoder.layout.cells],
        )
    library().uf_free(out.ends)  # type: ignore[union-attr]
    return _result(encoder, out, moves), ends


def _result(encoder: Encoder, out: _Result, moves: list[Move]) -> Result:
    program = encoder.program
    failures = _failures(program)
    result = Result("holds", engine="native")
    result.states, result.transitions, result.cyclic = out.states, out.transitions, bool(out.cyclic)
    result.levels = out.levels
    result.reached = frozenset(
        name
        for number, name in enumerate(program.sometimes)
        if out.reached[number >> 6] >> (number & 63) & 1 or number in encoder.reached
    )
    if out.verdict == 1:
        result.failure = failures[out.failure]
        result.verdict = "bound" if result.failure.property == "bound" else "violated"
        result.schedule, result.lasso = moves, out.lasso
        result.depth = len(moves)
    elif out.verdict in (2, 4, 8):
        result.verdict = "bound"
    if out.verdict == 8:
        result.mixed = out.mixed
    result.bytes_per_state = out.bytes / max(out.states, 1)
    return result


def fewest_switches(program: ir.Program, target: Failure, options: Options | None = None) -> list[Move] | None:
    """As explore.fewest_switches."""
    options = options or Options()
    out, moves, _ = _call(program, options, _failures(program).index(target))
    return moves if out.verdict == 1 else None
