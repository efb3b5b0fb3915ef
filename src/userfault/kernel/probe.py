"""What this kernel and this user can do: found out by doing it, in a child with a deadline.

A version says little: distributions backport, configure and lock down. `probes_*.py` are the list; each probe does its thing and returns
what it saw, or raises `Missing` with the reason and the remedy.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from .child import ChildDied, ChildHung, call
from .errors import KernelError, Unavailable, limit_met

Verdict = Literal["yes", "no", "unknown"]
DEADLINE_S = 10.0


class Missing(Unavailable):
    """What a probe found missing: the reason, and the remedy."""


class Unclear(Unavailable):
    """A probe could not find out: the reason, and the remedy."""


@dataclass(frozen=True)
class Finding:
    """What a probe found. seen: what was there, or the reason why not; remedy: empty where the verdict is yes."""

    name: str
    group: str
    about: str
    verdict: Verdict
    seen: str
    remedy: str = ""

    def json(self) -> dict[str, Any]:
        """As an object of `userfault probe --json`."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A question to the kernel. about: what it is good for."""

    name: str
    group: str
    about: str
    ask: Callable[[], str]

    def run(self) -> Finding:
        """Ask it in a child process."""
        found = partial(Finding, self.name, self.group, self.about)
        try:
            return found("yes", call(self.ask, deadline_s=DEADLINE_S))
        except Unclear as error:
            return found("unknown", error.reason, error.remedy)
        except Unavailable as error:
            return found("no", error.reason, error.remedy)
        except ChildHung:
            return found("no", f"it did not come to an end within {DEADLINE_S:g} s", "report it: it should")
        except ChildDied as error:
            return found("no", str(error), "report it: it should not")
        except (OSError, RuntimeError, KernelError) as error:
            if limit := limit_met(error):
                return found("unknown", limit.reason, limit.remedy)
            if isinstance(error, RuntimeError):
                raise
            return found("no", str(error), "run as root, or on a newer kernel: the reason is the kernel's")
        except AssertionError as error:
            return found("no", f"it is there and does something else: {error}", "report it, with the kernel's version")


PROBES: dict[str, Probe] = {}


def probe(name: str, group: str, about: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Enter a function into the list."""

    def enter(ask: Callable[[], str]) -> Callable[[], str]:
        if name in PROBES:
            raise KernelError(f"two probes are called {name}")
        PROBES[name] = Probe(name, group, about, ask)
        return ask

    return enter


def names() -> list[str]:
    """All that can be asked, in order."""
    _load()
    return list(PROBES)


def run(wanted: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Ask these probes, or all, one after the other.

    Raises KernelError for a name that there is not.
    """
    _load()
    unknown = [name for name in wanted if name not in PROBES]
    if unknown:
        raise KernelError(f"no probe is called {', '.join(unknown)}: there are {', '.join(PROBES)}")
    for name in wanted or PROBES:
        yield PROBES[name].run()


def here() -> dict[str, str | int]:
    """The kernel and the user that the answers are about. The version is for people: nothing follows from it."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "uid": os.geteuid(),
        "cpus": os.cpu_count() or 1,
    }


def _load() -> None:
    from . import probes_userfaultfd  # noqa: F401, I001 (they fill the list, in this order)
    from . import probes_memory  # noqa: F401
