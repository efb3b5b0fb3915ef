"""The matrix: what it knows, and the triples that once found a mistake of the model."""

from __future__ import annotations

import pytest

from userfault.check.engine import run
from userfault.litmus import compile_test, expected, load
from userfault.litmus.matrix import CONFIGURATIONS, in_pairs, known

ONCE_WRONG = [
    ("swap/load+reclaim+reclaim", "v3.10+seed"),  # reclaim had a page that was being read in
    ("table/reclaim+migrate+store", "v6.8"),  # migration had one that a fault was about to map
    ("huge/split+store+fork", "v3.10+seed"),  # a fault took an entry that a split had made invalid for one to copy
    ("huge/movepart+store+fork", "v3.10+seed"),
    ("page/referenced+munmap+ksm", "v3.10"),  # the walk was blamed for an entry that KSM had taken out and put back
]


@pytest.mark.parametrize(("name", "era"), ONCE_WRONG)
def test_what_three_found_stays_mended(name: str, era: str) -> None:
    test = load(f"matrix/{name}")
    result = run(compile_test(test, era))
    assert (result.verdict, result.failure) == ("holds", None)


def test_a_triple_looks_past_what_its_pairs_break() -> None:
    test = load("matrix/page/move+referenced+reclaim")
    assert test.ignored("v3.10+seed") == {"walk_is_complete"}
    assert test.ignored("v6.8") == frozenset()
    assert expected(test, "v3.10+seed") == ("holds", "")


def test_a_triple_with_a_livelock_among_its_pairs_has_it() -> None:
    assert expected(load("matrix/page/move+referenced+ksm"), "v3.10+seed") == ("violated", "termination")
    assert in_pairs("page", ["ksm", "move"], "v3.10+seed") == ["termination"]


def test_a_triple_may_be_known_by_itself() -> None:
    assert expected(load("matrix/page/move+dontneed+ksm"), "v3.10+seed") == ("holds", "")
    assert expected(load("matrix/page/move+referenced+munmap"), "v3.10+seed") == ("violated", "use_after_free")


def test_everything_known_is_a_test_of_the_matrix() -> None:
    for name, era in known():
        assert era in load(name).eras
        _, configuration, operations = name.split("/")
        order = list(CONFIGURATIONS[configuration].operations)
        assert operations.split("+") == sorted(operations.split("+"), key=order.index)
