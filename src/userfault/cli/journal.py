"""A file of outcomes of `userfault check`, so that a long run can be stopped and taken up again; and what such files depend on."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from ..check.errors import CheckError
from ..litmus import load
from ..litmus.mutants import find_mutant
from .jobs import Job, Outcome

PACKAGE = Path(__file__).parents[1]

OF_CHECK = ("native/explore*", "model/*.py", "check/*.py", "litmus/*.py")
"""All that an outcome of a check depends on but for the test and the mutant."""
OF_CONFORM = ("native/agent*", "native/uapi.h", "model/*.py", "conform/*.py", "kernel/*.py")
"""All that a sequence and its comparison depend on but for the running kernel."""


@cache
def code(patterns: tuple[str, ...]) -> str:
    """A digest of these files of the package."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for file in sorted(PACKAGE.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def asked(job: Job) -> str:
    """What was checked, in short: it is something else after a change of the model, the checker, the test or the mutant."""
    hunks = repr(find_mutant(job.mutant).hunks) if job.mutant else ""
    return hashlib.sha256("\0".join((code(OF_CHECK), load(job.test).text, hunks)).encode()).hexdigest()[:16]


class Journal:
    """One JSON object a line: an outcome, and `asked` of its job.

    Raises CheckError if the file can't be read or written, or holds something else. A last line that was cut off is done again.
    stale: how many outcomes there are of another version of the model or of a test; they are done again.
    """

    def __init__(self, path: Path | None, max_states: int) -> None:
        """max_states: a search that gave up before is done again."""
        self.path = path
        self.of: dict[Job, Outcome] = {}
        self.stale = 0
        if path is None:
            return
        try:
            text = path.read_text() if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            rows = [json.loads(line) for line in whole.splitlines()]
            found = [(row.pop("asked"), Outcome(**row)) for row in rows]
            if whole != text:
                path.write_text(whole)
        except OSError as error:
            raise CheckError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError):
            raise CheckError(f"{path} is no file of outcomes of `userfault check --resume`: name another") from None
        for what, outcome in found:
            job = Job(outcome.test, outcome.era, outcome.mutant)
            if what != asked(job):
                self.stale += 1
            elif outcome.verdict != "bound" or outcome.states >= max_states:
                self.of[job] = outcome

    def add(self, outcome: Outcome) -> None:
        if self.path is None:
            return
        row = outcome.json() | {"asked": asked(Job(outcome.test, outcome.era, outcome.mutant))}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckError(f"{self.path}: {error.strerror}") from None
