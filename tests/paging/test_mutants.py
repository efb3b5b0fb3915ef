"""Each protection of the C pager is there for something: without it, a named test fails. USERFAULT_LONG=1 builds and runs them.

A mutant is a copy of the package with one place of the C code changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 200


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    killed_by: str


MUTANTS = {
    "a page that looked clean is dropped, whoever faulted meanwhile": Mutant(
        "pager_evict.c",
        "unwritten && faults_so_far() != before",
        "0",
        "test_inject.py::test_a_write_between_look_and_move_is_not_lost",
    ),
    "what has to be saved anyway is not looked at for a write after the mark": Mutant(
        "pager_evict.c",
        "unwritten && faults_so_far() != before",
        "dirty < count && faults_so_far() != before",
        "test_inject.py::test_what_others_fault_meanwhile_makes_no_page_a_written_one",
    ),
    "what is nowhere else counts as written whenever others fault": Mutant(
        "pager_evict.c",
        "(seen[i] && !memcmp(to",
        "(0 && !memcmp(to",
        "test_inject.py::test_what_others_fault_meanwhile_makes_no_page_a_written_one",
    ),
    "an older state in the swap file passes for the page's": Mutant(
        "pager_evict.c",
        "            forget_swap(p, first + i);\n        }\n        if (w ||",
        "        }\n        if (w ||",
        "test_inject.py::test_an_older_state_in_the_swap_file_is_forgotten",
    ),
    "a sweep leaves the older state in the swap file": Mutant(
        "pager.c",
        "left; left &= left - 1) forget_swap",
        "0 && left; left &= left - 1) forget_swap",
        "test_inject.py::test_an_older_state_in_the_swap_file_is_forgotten",
    ),
    "a successor does not finish what a dead handler began": Mutant(
        "pager_threads.c", "        repair(p, s, by);\n", "", "test_inject.py::test_a_handler_dies_at_every_step"
    ),
    "nobody is put in a dead handler's place": Mutant(
        "pager_threads.c",
        "        COUNT(handler_restart_count);\n",
        "        return;\n",
        "test_inject.py::test_all_handlers_die_at_once",
    ),
    "who was put off is not woken": Mutant(
        "pager_fill.c",
        "    if (!(old & WAITED)) return;\n",
        "    return;\n",
        "test_inject.py::test_a_fault_on_a_unit_that_is_leaving_waits_and_is_served",
    ),
    "what can't be filled is not poisoned": Mutant(
        "pager_fill.c",
        "    int poisoned = sys_poison(p, s, at, length);\n",
        "    int poisoned = 0;\n",
        "test_region.py::test_a_truncated_file_is_a_loud_sigbus_elsewhere",
    ),
    "what is about to be overwritten whole is fetched": Mutant(
        "pager_fill.c",
        "    if (s->given) {",
        "    if (0) {",
        "test_region.py::test_what_is_overwritten_whole_is_not_fetched",
    ),
    "what is overwritten in part is not fetched": Mutant(
        "pager.c",
        "content && whole ?",
        "content && offset <= first ?",
        "test_region.py::test_what_is_overwritten_whole_is_not_fetched",
    ),
    "the handlers use the application's descriptors": Mutant(
        "pager_threads.c", "if (unshare(CLONE_FILES)) return;", "return;", "test_application.py::test_close_range"
    ),
    "what was read from a descriptor is taken for the source's": Mutant(
        "pager_sys.c",
        "    if (s && !s->role && !(point == AT_SWAP_READ ?",
        "    if (0 && !(point == AT_SWAP_READ ?",
        "test_application.py::test_a_descriptor_that_names_another_file_just_before_the_read",
    ),
    "a thread of the program asks the worker by its own descriptor": Mutant(
        "pager_worker.c",
        "    if (s && !s->role) { // the application's descriptor",
        "    if (0) { //",
        "test_region_stores.py::test_after_a_workers_death_the_programs_own_threads_ask_its_successor",
    ),
    "a worker whose interpreter is stuck outlives its owner": Mutant(
        "pager_worker.c",
        "        if (now_ns() > end) _exit(1);",
        "        if (0) _exit(1);",
        "test_worker.py::test_a_worker_ends_when_its_owner_is_killed",
    ),
    "a thread that can't be started says nothing": Mutant(
        "pager_threads.c",
        "    if (s->reported) return;\n    s->reported = 1;\n    say(",
        "    s->reported = 1;\n    if (0) say(",
        "test_inject.py::test_a_handler_that_can_not_be_started_anew_is_told_of",
    ),
    "a page that a write fetches is armed, for a second fault": Mutant(
        "pager_fill.c",
        "(atomic_load(&states(p)[unit]) & WRITTEN ? UNARMED : 0)",
        "0",
        "test_region.py::test_a_page_that_a_write_fetches_counts_as_written_until_the_next_mark",
    ),
    "what is only read counts as written": Mutant(
        "pager_fill.c",
        "!(how & UNARMED), &done)",
        "false, &done)",
        "test_region.py::test_dirty_is_exact",
    ),
    "who ends a region waits for a guardian that is dead": Mutant(
        "pager_threads.c",
        "if (guardian_is_lost(p)) {",
        "if (0) {",
        "test_inject.py::test_a_region_ends_without_its_guardian",
    ),
    "the budget is not looked at": Mutant(
        "pager_evict.c",
        "    while (p->budget_units && (count = atomic_load(&p->resident_units)) > p->budget_units) {",
        "    while (0) {",
        "test_region.py::test_reads_are_the_source",
    ),
    "a unit unmapped while it was in work comes back as present": Mutant(
        "pager_threads.c",
        "in_work ? old | DOOMED : GONE",
        "in_work ? old : GONE",
        "test_application.py::test_unmapped_while_it_is_filled",
    ),
    "a dead thread's places in limbo stay locked": Mutant(
        "pager_evict.c",
        "    limbo_repair(p, dead, by);\n",
        "",
        "test_limbo.py::test_a_death_at_any_step_loses_no_unit_and_no_place",
    ),
    "a victim of whom only the word says that it is in limbo is forgotten": Mutant(
        "pager_limbo.c",
        "if (!unit && dead->victim_count && holds(p, index, dead->victims[0]))",
        "if (0)",
        "test_limbo.py::test_a_death_at_any_step_loses_no_unit_and_no_place",
    ),
    "what a dead thread had locked and not moved is dropped": Mutant(
        "pager_limbo.c",
        "if (unit && holds(p, index, unit - 1))",
        "if (0)",
        "test_limbo.py::test_a_death_at_any_step_loses_no_unit_and_no_place",
    ),
    "a unit that a dead thread had claimed out of limbo loses its room twice": Mutant(
        "pager_limbo.c",
        "forget(p, index, !(atomic_load(&dead->filling) && dead->unit == unit - 1));",
        "forget(p, index, true);",
        "test_limbo.py::test_a_death_on_the_way_back",
    ),
    "a dead thread's room is given back though its unit is in limbo": Mutant(
        "pager_evict.c",
        "STATE(word) != FILLING && STATE(word) != LIMBO)",
        "STATE(word) != FILLING)",
        "test_limbo.py::test_a_death_on_the_way_back",
    ),
    "a dead thread's room is given back though its unit had it": Mutant(
        "pager_fill.c",
        "    s->filling = 3;\n",
        "",
        "test_limbo.py::test_a_death_at_any_step_loses_no_unit_and_no_place",
    ),
    "a unit that is unmapped on its way to limbo stays there": Mutant(
        "pager_limbo.c",
        "do moved &= !(old & DOOMED);",
        "do moved &= 1;",
        "test_limbo.py::test_what_is_unmapped_on_its_way_to_limbo_is_gone",
    ),
    "a unit that is unmapped in limbo keeps its place": Mutant(
        "pager_threads.c",
        "            if (STATE(old) == LIMBO) {",
        "            if (0) {",
        "test_limbo.py::test_what_is_unmapped_while_it_is_in_limbo_is_gone",
    ),
    "nothing goes to limbo": Mutant(
        "pager_limbo.c",
        "return p->limbo_units && (i64)",
        "return 0 && (i64)",
        "test_limbo.py::test_what_is_touched_in_limbo_comes_back_without_the_source",
    ),
    "a huge page is moved to where a table of small ones is": Mutant(
        "pager.c",
        "!p->writable && p->unit >= 1 << 21 ? MADV_HUGEPAGE",
        "0 ? MADV_HUGEPAGE",
        "test_region.py::test_units_of_2_mib_are_huge_pages",
    ),
    "threads of the program write to their own descriptor of the worker": Mutant(
        "pager_worker.c",
        "if (s && !s->role) {",
        "if (0) {",
        "test_inject.py::test_threads_of_the_program_find_the_workers_successor",
    ),
    "a worker that says nothing is waited for": Mutant(
        "pager_worker.c",
        "silent_ms > p->peer_timeout_ms",
        "0",
        "test_inject.py::test_a_worker_that_says_nothing_is_replaced",
    ),
    "what the kernel swapped out counts as never written": Mutant(
        "pager_sys.c",
        ".category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,",
        ".category_anyof_mask = PAGE_IS_PRESENT,",
        "test_swapped.py::test_what_the_kernel_swapped_out_is_not_lost",
    ),
    "what the kernel swapped out counts as a hole": Mutant(
        "pager_sys.c",
        "there[i] |= entries[i] >> 62 != 0;",
        "there[i] |= entries[i] >> 63 != 0;",
        "test_swapped.py::test_what_the_kernel_swapped_out_is_not_lost",
    ),
    "a poisoned page counts as written": Mutant(
        "pager_sys.c",
        "if (!(found[i].categories & PAGE_IS_PRESENT) && ",
        "if (0 && ",
        "test_swapped.py::test_a_page_that_could_not_be_had_is_not_a_written_one",
    ),
    "a request is read before it is this one's turn to send": Mutant(
        "pager_worker.c",
        "    if (strike(p, s, AT_SEND, &value) == DO_ERRNO) return;\n"
        "    lock_robust(&p->send_lock);\n"
        "    if (atomic_load(&w->busy) == 2 && atomic_load(&w->sent) != w->id) {\n"
        "        header h =",
        "    pending seen = *w;\n"
        "    if (strike(p, s, AT_SEND, &value) == DO_ERRNO) return;\n"
        "    lock_robust(&p->send_lock);\n"
        "    if (!atomic_load(&w->sent)) {\n"
        "        pending *now = w;\n"
        "        atomic_store(&now->sent, 1), w = &seen;\n"
        "        header h =",
        "test_inject.py::test_a_request_is_not_sent_in_the_name_of_the_next",
    ),
    "who waits for what is fetched ahead gets its error": Mutant(
        "pager_worker.c",
        "else if (ahead) release_unit",
        "else if (ahead && !(atomic_load(&states(p)[unit]) & WAITED)) release_unit",
        "test_prefetch.py::test_who_waits_for_a_fetch_ahead_that_fails_asks_anew",
    ),
    "ranks are compared as ages": Mutant(
        "pager_evict.c",
        "if (atomic_load(&ranks[units[i]]) < atomic_load(&ranks[units[best]])) best = i;",
        "if ((i32)(atomic_load(&ranks[units[i]]) - atomic_load(&ranks[units[best]])) < 0) best = i;",
        "test_prefetch.py::test_the_lowest_rank_leaves",
    ),
    "a policy may choose units in work": Mutant(
        "pager_evict.c",
        "n += STATE(atomic_load(&states(p)[units[n]])) == PRESENT;",
        "n++;",
        "test_prefetch.py::test_lru_does_not_wait_for_a_unit_in_work",
    ),
}


def run(directory: Path, test: str) -> subprocess.CompletedProcess[str]:
    command = [
        "timeout",
        "-k",
        "1",
        str(TIMEOUT_S),
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(directory / "src"),
        "USERFAULT_LONG": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    arguments = [*command, f"tests/paging/{test}"]
    return subprocess.run(
        arguments, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_the_place_is_there(name: str) -> None:
    mutant = MUTANTS[name]
    assert (ROOT / "src/userfault/native" / mutant.file).read_text().count(mutant.old) == 1
    file, _, test = mutant.killed_by.partition("::")
    assert f"def {test}(" in (ROOT / "tests/paging" / file).read_text()


@pytest.mark.skipif(not os.environ.get("USERFAULT_LONG"), reason="half a minute each: set USERFAULT_LONG=1")
@pytest.mark.usefixtures("can_page")
@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_killed(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    for part in ("src", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.so*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    native = tmp_path / "src/userfault/native"
    code = (native / mutant.file).read_text()
    (native / mutant.file).write_text(code.replace(mutant.old, mutant.new))
    sources = sorted(map(str, native.glob("*.c")))
    flags = ["-std=c11", "-O2", "-fvisibility=hidden", "-pthread", "-fPIC", "-shared", "-w"]
    subprocess.run(["cc", *flags, "-o", str(native / "_userfault.so"), *sources], check=True)
    done = run(tmp_path, mutant.killed_by)
    assert done.returncode in (1, 124, 137), done.stdout
    assert " failed" in done.stdout or done.returncode != 1, done.stdout
