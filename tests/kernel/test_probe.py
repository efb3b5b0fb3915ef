"""`userfault probe`: answers by doing, reasons and remedies for what is missing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

import pytest
from click.testing import CliRunner

from userfault.cli.probe import command
from userfault.kernel import probe, probe_kit
from userfault.kernel.child import become, call
from userfault.kernel.errors import KernelError
from userfault.kernel.probe import Finding, Missing, Probe, Unclear
from userfault.kernel.uapi import Feature
from userfault.kernel.userfaultfd import supported_features


def test_every_probe_gives_a_verdict_and_a_remedy_for_what_is_missing() -> None:
    found = list(probe.run(tuple(name for name in probe.names() if not name.startswith("swap-"))))
    assert len(found) > 40
    for each in found:
        assert each.seen and each.about and each.verdict in ("yes", "no", "unknown")
        assert (each.verdict == "yes") == (not each.remedy)
        assert "report it" not in each.remedy, each


def test_a_feature_of_this_kernel_is_found_by_its_behaviour() -> None:
    behaviour = {
        Feature.MOVE: "move",
        Feature.POISON: "poison",
        Feature.WP_ASYNC: "wp-async",
        Feature.EVENT_REMOVE: "event-remove",
        Feature.EXACT_ADDRESS: "exact-address",
    }
    for feature, name in behaviour.items():
        (found,) = probe.run((name,))
        assert found.verdict == ("yes" if supported_features() & feature else "no")


def test_a_feature_that_the_kernel_hides_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_kit, "supported_features", lambda: Feature(0))
    (found,) = probe.run(("move",))
    assert found.verdict == "no" and found.remedy


def test_an_ordinary_user_learns_what_is_missing(cannot_run: Callable[[str, str], NoReturn]) -> None:
    if os.geteuid():
        cannot_run("this test becomes an ordinary user", "run it as root")

    def work() -> dict[str, Finding]:
        become(65534)
        return {
            each.name: each for each in probe.run(("uffd-user-mode-only", "kpagecount", "swap-zram", "move", "pagemap"))
        }

    found = call(work)
    assert [found[name].verdict for name in ("uffd-user-mode-only", "move")] == ["yes", "yes"]
    for name in ("kpagecount", "swap-zram", "pagemap"):
        assert found[name].verdict == "no" and "root" in found[name].remedy


def _dies() -> str:
    signal.raise_signal(signal.SIGBUS)
    return "still here"


def _hangs() -> str:
    time.sleep(60)
    return "still here"


@pytest.mark.parametrize(
    ("ask", "verdict", "seen"),
    [
        (lambda: "fine", "yes", "fine"),
        (lambda: _raise(Missing("none", "get one")), "no", "none"),
        (lambda: _raise(Unclear("busy", "wait")), "unknown", "busy"),
        (lambda: _raise(OSError(1, "Operation not permitted")), "no", "not permitted"),
        (lambda: _raise(AssertionError("odd")), "no", "something else: odd"),
        (_dies, "no", "SIGBUS"),
        (_hangs, "no", "did not come to an end"),
    ],
)
def test_whatever_happens_in_a_probe_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[], str], verdict: str, seen: str
) -> None:
    monkeypatch.setattr(probe, "DEADLINE_S", 0.2)
    found = Probe("name", "group", "about", ask).run()
    assert found.verdict == verdict and seen in found.seen and bool(found.remedy) == (verdict != "yes")


def _raise(error: Exception) -> str:
    raise error


def test_no_two_probes_have_one_name() -> None:
    assert probe.names()
    with pytest.raises(KernelError, match="called move"):
        probe.probe("move", "", "")(lambda: "")


def test_the_command_prints_and_exits() -> None:
    run = CliRunner().invoke
    text = run(command, ["guard", "soft-dirty"])
    assert "\nmemory\n" in text.output and "soft-dirty" in text.output
    objects = [json.loads(line) for line in run(command, ["--json", "guard"]).output.splitlines()]
    assert "kernel" in objects[0] and objects[1]["name"] == "guard"
    wrong = run(command, ["nonsense"])
    assert wrong.exit_code == 2 and "no probe is called nonsense" in wrong.output


def test_the_exit_code_says_whether_what_was_asked_for_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.PROBES, "none", Probe("none", "g", "a", lambda: _raise(Missing("not there", "get it"))))
    monkeypatch.setitem(probe.PROBES, "some", Probe("some", "g", "a", lambda: "there"))
    run = CliRunner().invoke
    assert run(command, ["some"]).exit_code == 0
    answer = run(command, ["none", "some", "--missing"])
    assert (
        answer.exit_code == 1 and "remedy: get it" in answer.output and "there\n" not in answer.output.split("not ")[0]
    )
