"""A short conformance run in another kernel: that of CI's Debian has no UFFDIO_MOVE."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from userfault.kernel import guest


def test_another_kernel_agrees(cannot_run: Callable[[str, str], NoReturn]) -> None:
    kernel = os.environ.get("USERFAULT_GUEST_KERNEL")
    if not kernel:
        cannot_run(
            "USERFAULT_GUEST_KERNEL names no kernel to boot",
            "apt-get download a linux-image package, dpkg-deb -x it, name boot/vmlinuz-*",
        )
    commands = [
        ["conform", "--profile", "quirks"],
        ["conform", "--profile", "fills", "--ops", "120"],
        ["conform", "--profile", "forks", "--ops", "120"],
        ["run", "copy+load", "fork+store", "--rounds", "20"],
    ]
    ended = guest.run(Path(kernel), commands, accelerator="tcg", timeout_s=600)
    assert (ended.exit_code, ended.why) == (0, ""), ended.output
    assert "era of the litmus tests" in ended.output
    assert "fills: 120 operations agree" in ended.output and "forks: 120 operations agree" in ended.output
    assert "2 run, 40 rounds" in ended.output and "no surprise" in ended.output
