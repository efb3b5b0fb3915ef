"""Each quirk changes what the model shows, and the running kernel's are found."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from signal import SIGSEGV
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from userfault.cli import cli
from userfault.conform import panics, quirks
from userfault.conform import words as w
from userfault.conform.compare import Step, perform
from userfault.conform.generate import Generator
from userfault.conform.needs import NEEDS, missing
from userfault.conform.operations import MEANWHILES, Op, Outcome
from userfault.conform.profiles import FILLS, PROFILES
from userfault.conform.quirks import KERNELS, QUIRKS, Quirks, lines, running, table
from userfault.conform.world import CONTEXTS, WATCHED, Window, World
from userfault.kernel.agent import MEANWHILE_DONE, VM_FLAGS, Message
from userfault.kernel.errors import KernelError, Unavailable
from userfault.model.errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM
from userfault.model.fs_userfaultfd import UNWRITTEN
from userfault.model.huge_split import split_folio
from userfault.model.lang import NULL
from userfault.model.mm_types import page
from userfault.model.page_flags import folio_mapcount


def test_every_quirk_has_its_row() -> None:
    assert [*(quirk.field for quirk in QUIRKS), "without", "unasked"] == [each.name for each in fields(Quirks)]


def test_the_table_is_in_the_documentation() -> None:
    page = Path(__file__).parents[2] / "docs" / "kernel.md"
    assert "\n".join(table()) in page.read_text()
    assert "\n".join(f"  {line}" for line in panics.table()) in page.read_text()


def test_every_quirk_was_seen_and_not_seen() -> None:
    for quirk in QUIRKS:
        assert len(quirk.seen) == len(KERNELS) and {"y", "n"} <= set(quirk.seen) <= set("yn-")


def test_the_running_kernel_has_an_answer_for_each(cannot_run: Callable[[str, str], NoReturn]) -> None:
    try:
        found = running()
    except OSError as error:
        cannot_run(f"no userfaultfd ({error})", "see `userfault probe`")
    if missing("kpagecount"):
        cannot_run(missing("kpagecount"), NEEDS["kpagecount"].remedy)
    for quirk in QUIRKS:
        if quirk.need not in found.without:
            # Asked again, it says the same, and nothing that was refused passes for an answer.
            assert quirk.ask() == (None if quirk.field in found.unasked else getattr(found, quirk.field)), quirk.field


def test_no_remedy_promises_a_version() -> None:
    for name, need in NEEDS.items():
        assert not re.search(r"\bv?[2-9]\.[0-9]", need.remedy), name


def test_what_a_user_may_not_ask_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> NoReturn:
        raise Unavailable("/proc/kpagecount: Permission denied", "run as root")

    first, *others = QUIRKS
    monkeypatch.setattr(quirks, "QUIRKS", (first._replace(ask=refused, need=""), *others))
    found = running.__wrapped__()
    assert first.field in found.unasked
    assert any(line.startswith(f"not asked {first.field}") for line in lines(found))


def test_where_nothing_can_be_asked_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_core() -> NoReturn:
        raise KernelError("there is no native core")

    monkeypatch.setattr("userfault.conform.races.eras.running_era", no_core)
    told = CliRunner().invoke(cli, ["conform", "--profile", "quirks"])
    assert told.exit_code == 2 and told.output == "userfault conform: there is no native core\n"


BASE = 1 << 40
WINDOW = Window(BASE, 0, 4)
PAGE, HUGE = 4096, 2 << 20
AREA = [Op(0, "mmap", (0, 4 * PAGE, 3)), Op(0, "store", (0, 7))]
PROTECT = Op(0, "register", (0, 0, PAGE, 2))
GUARD = [
    Op(0, "register", (0, 0, 4 * PAGE, 1)),
    Op(0, "guard_install", (PAGE, PAGE)),
    Op(0, "copy", (0, PAGE, 0, PAGE, 0)),
]


def last(operations: list[Op], quirks: Quirks) -> Step:
    watched = any(op.name in MEANWHILES for op in operations)
    world = World(WINDOW, lambda data: 1, quirks, features=WATCHED if watched else CONTEXTS)
    steps = [perform(op, world) for op in operations]
    assert not steps[-1].broken
    return steps[-1]


@pytest.mark.parametrize("written", [True, False])
def test_holes_count_as_written_or_not(written: bool) -> None:
    words = last(AREA, replace(Quirks(), holes_are_written=written)).states[0].words
    assert bool(words[1] & w.WRITTEN) == written and words[0] & w.WRITTEN


@pytest.mark.parametrize("needed", [True, False])
def test_what_is_not_registered_counts_as_written_or_not(needed: bool) -> None:
    quirks = replace(Quirks(), written_needs_protection=needed)
    registered, plain, hole, *_ = last([*AREA, Op(0, "store", (PAGE, 7)), PROTECT], quirks).states[0].words
    assert registered & w.WRITTEN and bool(plain & w.WRITTEN) == bool(hole & w.WRITTEN) != needed
    huge = words_of_huge(SHARED_HUGE, quirks)[0]
    assert huge & w.P and bool(huge & w.WRITTEN) != needed


@pytest.mark.parametrize("shown", [True, False])
def test_anonymous_pages_show_the_ksm_bit_or_not(shown: bool) -> None:
    words = last(AREA, replace(Quirks(), anon_shows_ksm=shown)).states[0].words
    assert bool(words[0] & w.KSM) == shown and not words[1] & w.KSM


@pytest.mark.parametrize(("replaced", "result"), [(True, 0), (False, -EEXIST)])
def test_a_fill_replaces_a_guard_or_not(replaced: bool, result: int) -> None:
    outcome = last(AREA + GUARD, replace(Quirks(), fills_replace_guards=replaced)).outcome
    assert outcome is not None and outcome.result == result


def test_an_access_may_go_past_a_window_that_ends_with_a_page_table() -> None:
    world = World(Window(BASE, 510, 2), lambda data: 1, Quirks())
    step = perform(Op(0, "load", (512 * PAGE,)), world)
    assert not step.broken and step.outcome is not None and step.outcome.signal == SIGSEGV


@pytest.mark.parametrize(("succeeds", "result"), [(True, 0), (False, -EINVAL)])
def test_less_than_a_huge_page_is_nothing_to_collapse_or_an_error(succeeds: bool, result: int) -> None:
    world = World(PROFILES["huge"].window, lambda data: 1, replace(Quirks(), collapse_of_less_succeeds=succeeds))
    operations = [Op(0, "mmap", (0, 2 * HUGE, 3)), Op(0, "store", (0, 1))]
    for op in [*operations, Op(0, "collapse", (PAGE, PAGE)), Op(0, "collapse", (HUGE - PAGE, 2 * PAGE))]:
        step = perform(op, world)
        assert step.outcome is not None
        assert step.outcome.result == (result if op.args == (PAGE, PAGE) else 0), op


@pytest.mark.parametrize("without", [frozenset(), frozenset({"guard-bits"})])
def test_guards_are_shown_or_not(without: frozenset[str]) -> None:
    quirks = replace(Quirks(), without=without, fills_replace_guards=False)
    word = last(AREA + GUARD, quirks).states[0].words[1]
    assert word & w.S and bool(word & w.G) == bool(word & w.SCAN_GUARD) == (not without)


def test_without_a_scan_its_categories_are_not_compared() -> None:
    words = last(AREA, replace(Quirks(), without=frozenset({"pagemap-scan"}))).states[0].words
    assert words[0] & w.P and words[0] & w.AE and not any(word & w.ALL_SCAN for word in words)


def test_no_part_of_a_huge_page_in_use_is_moved_where_that_would_try_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def split(head: page, lock_at: page = NULL) -> int:
        asked.append(head.refcount.counter - folio_mapcount(head) > 1)
        return split_folio(head, lock_at)

    def splits_in_use(without: frozenset[str]) -> int:
        """How often moves of some sequences came to split a huge page to which others refer, too."""
        asked.clear()
        for number in range(12):
            world = World(PROFILES["huge"].window, lambda data: 1, replace(Quirks(), without=without), slice=1)
            generator = Generator(PROFILES["huge"], random.Random(number), world)
            for _ in range(PROFILES["huge"].length):
                assert not perform(generator.draw(), world).broken
        return sum(asked)

    monkeypatch.setattr("userfault.model.userfaultfd_move.split_folio", split)
    assert splits_in_use(frozenset()) > 0
    assert splits_in_use(frozenset({"held-split"})) == 0 and asked
    assert NEEDS["held-split"].left_out == "in sequences, no move of a part of a huge page in use (generate.py)"


@pytest.mark.parametrize("need", [name for name, need in NEEDS.items() if need.operations])
def test_what_is_not_there_is_not_drawn(need: str) -> None:
    def drawn(without: frozenset[str]) -> set[str]:
        world = World(FILLS.window, lambda data: 1, replace(Quirks(), without=without))
        return {name for profile in PROFILES.values() for name in Generator(profile, random.Random(0), world).names}

    everything = drawn(frozenset())
    absent = {name for name in everything if name.removeprefix("meanwhile_") in NEEDS[need].operations}
    assert set(NEEDS[need].operations) <= absent and drawn(frozenset({need})) == everything - absent


def test_a_userfaultfd_lacks_the_features_that_the_kernel_lacks() -> None:
    world = World(WINDOW, lambda data: 1, replace(Quirks(), without=frozenset({"wp-async"})))
    assert [(each.wp_unpopulated, each.wp_async) for each in world.contexts] == [
        (False, False),
        (True, False),
        (True, False),
    ]


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(
        Quirks(),
        without=frozenset({"guard", "move", "pagemap-scan"}),
        unasked=frozenset({"fills_replace_guards"}),
    )
    monkeypatch.setattr("userfault.conform.needs.missing", lambda name: f"no {name}")
    said = lines(gone)
    assert f"left out: no move (no move in sequences); remedy: {NEEDS['move'].remedy}" in said
    assert any("WRITTEN" in line and "not compared" in line for line in said)
    assert any(line.startswith("not asked fills_replace_guards") for line in said)


MAPPED = Op(0, "mmap", (0, 4 * PAGE, 3))


def vmas(step: Step) -> list[tuple[int, int]]:
    return [(start, end) for start, end, _flags in step.states[0].vmas]


def present(step: Step) -> str:
    return "".join("P" if word & w.P else "-" for word in step.states[0].words)


LO, LF, UM = (1 << VM_FLAGS.index(flag) for flag in ("lo", "lf", "um"))

# quirk, operations, what is looked at after the last one, what it is with the quirk and without.
BEHAVIOURS: dict[str, tuple[list[Op], Callable[[Step], object], object, object]] = {
    "merge_spares_fork_children": (
        [
            MAPPED,
            Op(0, "dontdump", (0, PAGE)),
            Op(0, "store", (PAGE, 1)),
            Op(0, "dontdump", (PAGE, 3 * PAGE)),
        ],
        vmas,
        [(0, 4)],
        [(0, 1), (1, 4)],
    ),
    "mremap_moves_several": (
        [
            MAPPED,
            Op(0, "store", (0, 1)),
            Op(0, "store", (3 * PAGE, 1)),
            Op(0, "mprotect", (PAGE, PAGE, 1)),
            Op(0, "mremap", (0, 2 * PAGE, 2 * PAGE, 3, 2 * PAGE)),
        ],
        lambda step: (step.outcome.result, present(step)),
        (0, "--P-"),
        (-EFAULT, "P---"),
    ),
    "dontunmap_splits_locked": (
        [MAPPED, Op(0, "mlock", (0, 2 * PAGE, 0)), Op(0, "mremap", (0, PAGE, PAGE, 7, 3 * PAGE))],
        lambda step: [area[0] & LO for area in step.states[0].areas],
        [0, LO, 0, LO],
        [0, 0, LO],
    ),
    "dontunmap_resets_offset": (
        [
            MAPPED,
            Op(0, "store", (0, 1)),
            Op(0, "mremap", (0, PAGE, PAGE, 3, 2 * PAGE)),
            Op(0, "mremap", (2 * PAGE, PAGE, PAGE, 7, 0)),
            Op(0, "dontdump", (PAGE, PAGE)),
            Op(0, "dodump", (PAGE, PAGE)),
        ],
        vmas,
        [(0, 3), (3, 4)],
        [(0, 2), (2, 3), (3, 4)],
    ),
    "dontunmap_keeps_source_apart": (
        [MAPPED, Op(0, "munmap", (PAGE, PAGE)), Op(0, "mremap", (0, PAGE, PAGE, 7, PAGE))],
        vmas,
        [(0, 1), (1, 4)],
        [(0, 4)],
    ),
    "swapin_goes_through_cache": (
        [
            MAPPED,
            Op(0, "store", (0, 1)),
            Op(0, "fork", (1,)),
            Op(1, "exit", ()),
            Op(0, "pageout", (0, PAGE)),
            Op(0, "load", (0,)),
        ],
        lambda step: (bool(step.states[0].words[0] & w.AE), bool(step.states[0].words[0] & w.SWAPCACHE)),
        (False, False),
        (True, False),
    ),
    "mremap_drops_protection": (
        [
            MAPPED,
            Op(0, "store", (0, 1)),
            Op(0, "register", (0, 0, PAGE, 2)),
            Op(0, "writeprotect", (0, 0, PAGE, 1)),
            Op(0, "mremap", (0, PAGE, PAGE, 3, 2 * PAGE)),
        ],
        lambda step: bool(step.states[0].words[2] & w.W),
        False,
        True,
    ),
    "mremap_spares_neighbours": (
        [MAPPED, Op(0, "register", (0, 0, 2 * PAGE, 1)), Op(0, "mremap", (PAGE, PAGE, PAGE, 3, 2 * PAGE))],
        lambda step: [area[0] & UM for area in step.states[0].areas],
        [UM, 0, 0],
        [0, 0, 0],
    ),
    "populate_stops_at_holes": (
        [MAPPED, Op(0, "munmap", (PAGE, PAGE)), Op(0, "populate_write", (0, 4 * PAGE))],
        lambda step: (step.outcome.result, present(step)),
        (-ENOMEM, "P---"),
        (-ENOMEM, "P-PP"),
    ),
    "writeprotect_spans_vmas": (
        [
            MAPPED,
            Op(0, "dontdump", (0, PAGE)),
            Op(0, "register", (0, 0, 4 * PAGE, 2)),
            Op(0, "writeprotect", (0, 0, 2 * PAGE, 1)),
        ],
        lambda step: step.outcome.result,
        0,
        -ENOENT,
    ),
    "unregister_asks_whose": (
        [MAPPED, Op(0, "register", (0, 0, 4 * PAGE, 1)), Op(0, "unregister", (1, 0, 4 * PAGE))],
        lambda step: step.outcome.result,
        -EINVAL,
        0,
    ),
    "register_keeps_protection": (
        [MAPPED, Op(0, "register", (1, 0, PAGE, 3)), Op(0, "register", (1, 0, 2 * PAGE, 1))],
        lambda step: (step.outcome.result, vmas(step)),
        (-EBUSY, [(0, 1), (1, 4)]),
        (0, [(0, 1), (1, 2), (2, 4)]),
    ),
    "refusal_is_output": (
        [
            MAPPED,
            Op(0, "register", (0, 0, PAGE, 1)),
            Op(0, "meanwhile_zeropage", (0, 0, PAGE, 0)),
            Op(0, "dontneed", (0, PAGE)),
        ],
        lambda step: step.messages[0],
        Message(MEANWHILE_DONE, 0, -EAGAIN, -EAGAIN),
        Message(MEANWHILE_DONE, 0, -EAGAIN, UNWRITTEN),
    ),
    "copy_checks_source": (
        [MAPPED, Op(0, "register", (0, 0, PAGE, 1)), Op(0, "copy", (0, 0, 1 << 47, PAGE, 0))],
        lambda step: step.outcome,
        Outcome(-EINVAL, UNWRITTEN),
        Outcome(-EFAULT, -EFAULT),
    ),
    "mmap_merges_both_sides": (
        [MAPPED, Op(0, "munmap", (PAGE, PAGE)), Op(0, "store", (2 * PAGE, 1)), Op(0, "mmap", (PAGE, PAGE, 3))],
        vmas,
        [(0, 4)],
        [(0, 1), (1, 4)],
    ),
    "shows_lock_on_fault": (
        [MAPPED, Op(0, "mlock", (0, PAGE, 1))],
        lambda step: step.states[0].areas[0][0] - step.states[0].areas[1][0],
        LO | LF,
        LO,
    ),
    "mprotect_unaccounts": (
        [MAPPED, Op(0, "mmap", (PAGE, 3 * PAGE, 1)), Op(0, "mprotect", (0, PAGE, 1))],
        vmas,
        [(0, 4)],
        [(0, 1), (1, 4)],
    ),
    "fills_prepare_first": (
        [
            MAPPED,
            Op(0, "dontdump", (PAGE, 3 * PAGE)),
            Op(0, "copy", (0, 0, 2 * PAGE, PAGE, 0)),
            Op(0, "store", (PAGE, 1)),
            Op(0, "dontdump", (0, PAGE)),
        ],
        vmas,
        [(0, 1), (1, 4)],
        [(0, 4)],
    ),
    "uffd_merges_rear": (
        [MAPPED, Op(0, "register", (0, 0, 2 * PAGE, 1)), Op(0, "unregister", (0, PAGE, PAGE))],
        vmas,
        [(0, 1), (1, 4)],
        [(0, 1), (1, 2), (2, 4)],
    ),
    "lazyfree_is_kept_busy": (
        [
            MAPPED,
            *(Op(0, "store", (at * PAGE, 1)) for at in range(3)),
            Op(0, "hold", (0, 0)),
            Op(0, "free", (0, 2 * PAGE)),
            Op(0, "pageout", (0, 3 * PAGE)),
            Op(0, "release", (0,)),
            Op(0, "pageout", (0, 3 * PAGE)),
        ],
        lambda step: [(bool(word & w.P), bool(word & w.S)) for word in step.states[0].words[:3]],
        [(False, False), (False, False), (False, True)],
        [(False, True), (False, False), (False, True)],
    ),
    "ksmd_forgets_checksums": (
        [
            MAPPED,
            Op(0, "mergeable", (0, 4 * PAGE)),
            *(Op(0, "store", (at * PAGE, content)) for at, content in enumerate((5, 7, 7))),
            Op(0, "ksmd", (1,)),
            *(Op(0, "store", (at * PAGE, 7)) for at in range(3)),
            Op(0, "register", (0, 0, 4 * PAGE, 2)),
            Op(0, "writeprotect", (0, 0, 4 * PAGE, 1)),
            Op(0, "ksmd", (1,)),
        ],
        # Only the page that stays keeps its protection (F-23).
        lambda step: "".join("W" if word & w.W else "-" for word in step.states[0].words[:3]),
        "-W-",
        "--W",
    ),
}
# F-18: page 1 has the index that the neighbour's first page has, too, since that was moved from here.
WRONG_NEIGHBOUR = [
    MAPPED,
    *(Op(0, "store", (at * PAGE, 1)) for at in range(3)),
    Op(0, "mremap", (PAGE, PAGE, PAGE, 3, 2 * PAGE)),
    Op(0, "mmap", (PAGE, PAGE, 3)),
    Op(0, "store", (PAGE, 4)),
    Op(0, "register", (0, 0, 2 * PAGE, 1)),
    Op(0, "unregister", (0, PAGE, PAGE)),
    Op(0, "pageout", (PAGE, PAGE)),
]


@pytest.mark.parametrize("right", [True, False])
def test_a_merge_with_the_wrong_neighbour_loses_a_page(right: bool) -> None:
    world = World(WINDOW, lambda data: 1, replace(Quirks(), uffd_merges_rear=right))
    *_, unregister, pageout = (perform(op, world) for op in WRONG_NEIGHBOUR)
    assert vmas(unregister) == ([(0, 1), (1, 2), (2, 3), (3, 4)] if right else [(0, 1), (1, 3), (3, 4)])
    assert pageout.broken == ("" if right else "ModelError: walk_is_complete: the walk missed a mapping of the page")


SHARED_HUGE = [Op(0, "mmap", (0, HUGE, 3)), Op(0, "hugepage", (0, HUGE)), Op(0, "store", (0, 1)), Op(0, "fork", (1,))]


def words_of_huge(operations: list[Op], quirks: Quirks) -> Sequence[int]:
    """The words of the first process's pages."""
    world = World(Window(BASE, 0, HUGE // PAGE), lambda data: 1, quirks)
    *_, last = (perform(op, world) for op in operations)
    return last.states[0].words


@pytest.mark.parametrize("first", [True, False])
def test_a_huge_entry_shows_how_often_its_first_part_is_mapped_or_each(first: bool) -> None:
    quirks = replace(Quirks(), huge_entry_shows_first_part=first)
    head, part, *_ = words_of_huge([*SHARED_HUGE, Op(1, "dontneed", (PAGE, PAGE))], quirks)
    assert (head >> w.COUNT_AT & 255, part >> w.COUNT_AT & 255) == (2, 1)
    assert not head & w.X and bool(part & w.X) != first
    head, part, *_ = words_of_huge([*SHARED_HUGE, Op(1, "dontneed", (0, PAGE))], quirks)
    assert head & w.X and bool(part & w.X) == first


@pytest.mark.parametrize("shown", [True, False])
def test_the_huge_zero_page_shows_the_bit_of_files_or_not(shown: bool) -> None:
    read = [*SHARED_HUGE[:2], Op(0, "load", (0,))]
    words = words_of_huge(read, replace(Quirks(), huge_zero_page_is_file=shown))
    assert [bool(word & w.F) for word in words[:2]] == [shown, shown] and words[0] & w.THP


@pytest.mark.parametrize("reused", [True, False])
def test_a_part_of_a_huge_page_is_taken_over_or_copied(reused: bool) -> None:
    written = [*SHARED_HUGE, Op(0, "store", (PAGE, 1)), Op(1, "exit", ()), Op(0, "store", (2 * PAGE, 1))]
    first, copied, last, *_ = words_of_huge(written, replace(Quirks(), reuses_parts=reused))
    assert first & w.THP and not copied & w.THP and bool(last & w.THP) == reused


@pytest.mark.parametrize("field", BEHAVIOURS)
@pytest.mark.parametrize("does", [True, False])
def test_a_quirk_is_a_behaviour_of_the_model(field: str, does: bool) -> None:
    operations, look, with_it, without_it = BEHAVIOURS[field]
    changes: dict[str, Any] = {field: does}
    if field == "mmap_merges_both_sides":
        # The rule of that time: it is what keeps the two apart.
        changes["merge_spares_fork_children"] = does
    assert look(last(operations, replace(Quirks(), **changes))) == (with_it if does else without_it)
