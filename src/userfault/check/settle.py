"""From emitted code to instructions: by analysis.py, which defines it, or native/settle.c, which does the same faster."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import POINTER, c_int32, c_uint64, c_void_p

from ..native import library
from . import ir
from .analysis import Settled, settled
from .errors import CheckError
from .names import FAILURES, FIELDS, SITUATIONS
from .ranges import UNDECLARED, bound
from .template import WIDTH, rows_of
from .types import NoneT, Scalar
from .unit import Traits, Unit

FEW = 64
"""Rows that are not worth the way to the native core and back."""

_FIELD, _TABLE, _SITUATION, _FAILURE = range(4)


class _Settling(ctypes.Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("count", c_int32),
        ("placed", c_void_p),
        ("place", c_void_p),
        ("numbers", c_void_p * 4),
        ("spans", c_void_p),
        ("met", c_void_p),
        ("variables", c_int32),
        ("open_ended", ctypes.c_char_p),
        ("placed_count", c_int32),
        ("met_count", c_int32),
        ("lasting_count", c_int32),
        ("locals_count", c_int32),
        ("steps_count", c_int32),
        ("live_words", c_int32),
        ("definitions_count", c_int32),
        ("lasting", POINTER(c_int32)),
        ("steps_at", POINTER(c_int32)),
        ("live", POINTER(c_uint64)),
        ("definitions", POINTER(c_int32)),
    )


def settle(
    unit: Unit, words: array[int], variables: list[tuple[str, Scalar | NoneT]]
) -> tuple[Sequence[ir.Instr], list[ir.Local], dict[int, int]]:
    """Emitted code as instructions, its locals, and which of them are alive where (`ir.Thread.live`).

    The ranges of locals that are part of a state are narrowed to what their definitions give.
    """
    traits = unit.declared([kind for _, kind in variables])
    slow = len(words) < FEW * WIDTH or library() is None
    done = settled(unit, list(rows_of(words)), len(variables)) if slow else _settled(unit, words, traits)
    narrowed = bound(unit.program, done.definitions, [each[0] for each in traits], done.lasting)
    kept = [
        ir.Local(name, *narrowed.get(local, declared), show, thread_id, kind)
        for local, name, (declared, show, thread_id, kind) in (
            (local, variables[local][0], traits[local]) for local in done.lasting
        )
    ]
    kept += [ir.Local("", 0, 0)] * (done.locals_count - len(done.lasting))
    return done.code, kept, done.live


def _settled(unit: Unit, words: array[int], traits: list[Traits]) -> Settled:
    """As analysis.settled, by native/settle.c."""
    lib = library()
    assert lib is not None
    count = len(words) // WIDTH
    placed, place = array("i", bytes(2 * 4 * len(words))), array("i", bytes(4 * count))
    fields = b"\xff" * (4 * len(FIELDS.named))
    numbers = [
        array("i", each)
        for each in (fields, fields, b"\xff" * (4 * len(SITUATIONS.named)), b"\xff" * (4 * len(FAILURES.named)))
    ]
    spans = array("i", fields)
    met = array("i", bytes(8 * sum(len(each) for each in numbers)))
    s = _Settling(
        rows=_at(words), count=count, placed=_at(placed), place=_at(place), spans=_at(spans), met=_at(met),
        variables=len(traits), open_ended=bytes([each[0] == UNDECLARED for each in traits]),
    )  # fmt: skip
    s.numbers[:] = [_at(each) for each in numbers]
    here = ctypes.byref(s)
    name = unit.program.name
    if lib.uf_order(here):
        raise CheckError(f"{name}: no memory for {count} instructions")
    named = unit.base, unit.table, unit.situation, unit.failure
    for kind, number in zip(met[: 2 * s.met_count : 2], met[1 : 2 * s.met_count : 2], strict=True):
        numbers[kind][number] = named[kind](number)
        if kind in (_FIELD, _TABLE):
            spans[number] = unit.span(number)
    if lib.uf_settle(here):
        raise CheckError(f"{name}: no memory for {count} instructions")
    try:
        wide = s.live_words
        live = s.live[: wide * s.steps_count]
        return Settled(
            ir.Code(placed[: 9 * s.placed_count]),
            s.lasting[: s.lasting_count],
            s.locals_count,
            {pc: _joined(live[wide * at : wide * at + wide]) for at, pc in enumerate(s.steps_at[: s.steps_count])},
            list(rows_of(s.definitions[: 9 * s.definitions_count])),
        )
    finally:
        lib.uf_unsettle(here)


def _at(words: array[int]) -> int:
    return words.buffer_info()[0]


def _joined(words: list[int]) -> int:
    word = 0
    for each in reversed(words):
        word = word << 64 | each
    return word
