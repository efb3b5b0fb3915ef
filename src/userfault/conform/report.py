"""A divergence as text: the sequence as a listing, both sides' states next to each other, and how to see it again."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..kernel.agent import MEANWHILE_DONE, PROCESSES, RESOLVED, VM_FLAGS, Message
from ..kernel.uapi import Event
from . import words
from .compare import Divergence
from .operations import KINDS, Op, Outcome, text
from .world import PAGE, Window


def listing(sequence: tuple[Op, ...]) -> Iterator[str]:
    """One numbered line an operation."""
    for at, op in enumerate(sequence):
        yield f"{at:4d}  {text(op)}"


def outcome(found: Outcome | None) -> str:
    if found is None:
        return "nothing"
    if found.signal:
        return f"signal {found.signal}"
    return f"{found.result}, output {found.out}"


def lines(found: Divergence, first_page: int) -> Iterator[str]:
    """The whole report. first_page: the number of the window's first page."""
    yield f"model and kernel part at operation {found.at}: {found.what}"
    yield ""
    yield from listing(found.sequence)
    yield ""
    yield f"model:  {outcome(found.model)}"
    yield f"kernel: {outcome(found.kernel)}"
    if found.model_messages != found.kernel_messages:
        for who, told in (("model", found.model_messages), ("kernel", found.kernel_messages)):
            yield f"messages, {who}: {'; '.join(map(message, told)) or 'none'}"
    if found.note:
        yield f"note:   {found.note}"
    for state, seen in zip(found.model_states, found.kernel_states, strict=False):
        if state.vmas != seen.vmas:
            yield f"P{state.process} VMAs, model:  {vmas(state.vmas, first_page)}"
            yield f"P{state.process} VMAs, kernel: {vmas(seen.vmas, first_page)}"
        if seen.areas and state.areas != seen.areas:
            for who, areas in (("model", state.areas), ("kernel", seen.areas)):
                yield f"P{state.process} areas, {who}: {'; '.join(map(area, areas))}"
    said = ""
    for which, at in found.places:
        state, seen = found.model_states[which], found.kernel_states[which]
        model, kernel = words.describe(state.words[at], True), words.describe(seen.words[at], True)
        line = f"model {model:50s} kernel {kernel}"
        if line == said:
            # So do the pages after it.
            continue
        said = line
        model, kernel = words.describe(state.words[at]), words.describe(seen.words[at])
        yield f"P{state.process} page {first_page + at}: model {model:50s} kernel {kernel}"
        if model == kernel:
            yield f"    contents: model {state.contents[at]:#x}, kernel {seen.contents[at]:#x}"
    if len(found.places) > 1:
        yield f"({len(found.places)} pages differ; a page that differs as the one before it is not listed)"


def message(said: Message) -> str:
    """`fd 0 REMOVE p511 p514`, addresses in pages from the window's base."""
    name = {MEANWHILE_DONE: "meanwhile", RESOLVED: "resolved"}.get(said.event) or Event(said.event).name
    words: tuple[object, ...] = (said.first, said.second)
    if said.event in (Event.REMAP, Event.REMOVE, Event.UNMAP):
        words = tuple(
            f"p{each // 4096}"
            for each in (said.first, said.second, said.third)[: 3 if said.event == Event.REMAP else 2]
        )
    elif said.event == Event.PAGEFAULT:
        words = (f"p{said.first // 4096}", f"flags {said.second}", f"P{said.third}")
    elif said.event == Event.FORK:
        words = (f"child's fd {said.first}",)
    return " ".join(map(str, (f"fd {said.fd}", name, *words)))


def area(found: tuple[int, ...]) -> str:
    """`rd wr ac rss 3 swap 0 huge 0 lazy 0 locked 0K`."""
    bits, rss, swap, huge, lazy, locked = found
    flags = " ".join(name for at, name in enumerate(VM_FLAGS) if bits >> at & 1)
    return f"{flags} rss {rss} swap {swap} huge {huge} lazy {lazy} locked {locked}K"


def vmas(found: tuple[tuple[int, int, int], ...], first_page: int) -> str:
    def prot(flags: int) -> str:
        return "".join(letter if flags & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))

    return " ".join(f"{first_page + start}-{first_page + end}:{prot(flags)}" for start, end, flags in found)


def to_json(sequence: tuple[Op, ...]) -> str:
    """A sequence for `userfault conform --replay`."""
    return json.dumps([[op.process, op.name, *op.args] for op in sequence], separators=(",", ":"))


def from_json(given: str, window: Window) -> tuple[Op, ...]:
    """The sequence that to_json wrote, of operations in `window`. Raises ValueError: what is wrong with it, and what was expected."""
    try:
        rows = json.loads(given)
    except ValueError:
        rows = None
    if not rows or not isinstance(rows, list):
        raise ValueError('this is no sequence: expected a list of [process, "operation", arguments...]')
    return tuple(_operation(at, row, window) for at, row in enumerate(rows))


ACCESSES = ("load", "store")


def _operation(at: int, row: object, window: Window) -> Op:
    match row:
        case [int(process), str(name), *rest] if all(type(each) is int for each in rest):
            args = tuple(each for each in rest if isinstance(each, int))
        case _:
            raise ValueError(f'operation {at} is {row!r}: expected [process, "operation", numbers...]')
    if name not in KINDS:
        raise ValueError(f"operation {at}: there is no {name!r}: one of {', '.join(KINDS)}")
    wanted = [each.lstrip("@:") for each in KINDS[name].parameters]
    if len(args) != len(wanted):
        raise ValueError(
            f"operation {at}: {name} takes {', '.join(wanted) or 'no arguments'}, and is given {len(args)}"
        )
    for each in args:
        if not -(1 << 63) <= each < 1 << 64:
            raise ValueError(f"operation {at}: {each} is no number of 64 bits")
    # What a system call is told is the kernel's to judge; an access is the CPU's.
    end = window.span * PAGE
    if name in ACCESSES and not 0 <= args[0] < end:
        raise ValueError(
            f"operation {at}: {name} of {args[0]}, where the profile has no memory: expected 0 to {end - 1}"
        )
    if not 0 <= process < PROCESSES:
        raise ValueError(f"operation {at}: there is no process {process}: 0 to {PROCESSES - 1}")
    return Op(process, name, args)
