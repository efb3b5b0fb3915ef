"""Make the traces in the findings anew: `make findings`, after a change of the model.

A trace is the block behind a line that ends in a command: "`userfault check TEST --era ERA`:", with `--mutant M` or not. A block that
begins with "broken:" is only the end of one, where the whole is too long to be read; `userfault replay` prints it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from userfault.check.result import Options
from userfault.check.trace import render
from userfault.cli.jobs import Job, decode, perform

BLOCK = re.compile(
    r"`userfault check (\S+) --era (\S+?)(?: --mutant (\S+))?`:\n\n```\n(.*?)\n```$", re.DOTALL | re.MULTILINE
)


def trace(job: Job) -> str:
    """The counterexample with the fewest context switches, as `userfault check` prints it. Exits if there is none."""
    outcome = perform(job, Options())
    if not outcome.replay:
        sys.exit(f"{job}: {outcome.verdict}, so there is no trace")
    replay = decode(outcome.replay)
    return f"{render(replay.program, replay.moves, replay.lasso)}\nreplay: userfault replay '{outcome.replay}'"


def renewed(text: str) -> str:
    """A finding with today's traces."""

    def block(found: re.Match[str]) -> str:
        test, era, mutant, old = found.groups()
        new = trace(Job(test, era, mutant or ""))
        return found[0].replace(old, new[new.index("broken:") :] if old.startswith("broken:") else new)

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    for file in sorted(Path(__file__).parent.glob("F-*.md")):
        before = file.read_text()
        after = renewed(before)
        if after != before:
            file.write_text(after)
            print(f"{file.name}: renewed")
