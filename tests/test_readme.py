"""What README.md shows is what happens: each console example runs, with the exit code and the output shown.

In a ```console block a line `$ command` runs in the repository's root; `# exit N` after it states an exit
code other than 0. The lines below it must be lines of its output, where `...` stands for anything. For `make`
only targets are looked up (`make test` would run this file again); `$ git clone` and `$ cd` are skipped.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300


class Example(NamedTuple):
    line: int
    command: str
    exit_code: int
    shown: list[str]


def examples(markdown: str) -> list[Example]:
    found: list[Example] = []
    in_console = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.startswith("```"):
            in_console = line.strip() == "```console"
        elif in_console and line.startswith("$ "):
            command, _, code = line[2:].partition("# exit ")
            found.append(Example(number, command.strip(), int(code or 0), []))
        elif in_console and line.strip():
            assert found, f"line {number}: output without a command"
            found[-1].shown.append(line.rstrip())
    return found


def complaints(example: Example, exit_code: int, output: str) -> list[str]:
    found = []
    if exit_code != example.exit_code:
        found.append(f"exit code {exit_code}, not {example.exit_code}")
    for shown in example.shown:
        pattern = re.escape(shown).replace(re.escape("..."), ".*")
        if shown.strip() != "..." and not re.search(rf"^{pattern}\s*$", output, re.MULTILINE):
            found.append(f"not in the output: {shown}")
    return found


def run(command: str) -> tuple[int, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # timeout(1) ends the whole process group, not only the shell.
    done = subprocess.run(
        ["timeout", "--kill-after=5", str(TIMEOUT_SECONDS), "bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


README = [
    example
    for example in examples((ROOT / "README.md").read_text())
    if not example.command.startswith(("git clone ", "cd "))
]


@pytest.mark.parametrize("example", README, ids=lambda example: f"line {example.line}: {example.command}")
def test_readme_example(example: Example) -> None:
    program, *words = example.command.split()
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words if re.fullmatch(r"\w[\w-]*", word)} <= targets
        return
    exit_code, output = run(example.command)
    assert not complaints(example, exit_code, output), output


def test_examples_are_read_with_exit_code_and_output() -> None:
    markdown = "\n".join(
        [
            "$ not this",
            "```console",
            "$ one --flag  # exit 2",
            "a",
            "",
            "...",
            "$ two",
            "```",
            "```sh",
            "$ nor this",
            "```",
        ]
    )
    assert examples(markdown) == [Example(3, "one --flag", 2, ["a", "..."]), Example(7, "two", 0, [])]


def test_a_true_example_raises_no_complaint() -> None:
    example = Example(1, "echo '12 states in 3 s'; echo more >&2; exit 3", 3, ["12 states in ...", "...", "more"])
    assert complaints(example, *run(example.command)) == []


@pytest.mark.parametrize(
    "example",
    [
        Example(1, "false", 0, []),
        Example(1, "true", 1, []),
        Example(1, "echo word", 0, ["wor"]),
        Example(1, "echo a.b", 0, ["a+b"]),
        Example(1, "userfault-is-no-such-command", 0, []),
    ],
)
def test_an_untrue_example_raises_a_complaint(example: Example) -> None:
    assert complaints(example, *run(example.command))
