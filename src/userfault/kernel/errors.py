"""What can go wrong at this machine's kernel."""

from __future__ import annotations

import errno
import resource


class KernelError(Exception):
    """What failed, on what, why, and what to do."""


class Unavailable(KernelError):
    """Something that this kernel, or this user, does not have: `reason`, and the `remedy`."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[Unavailable], tuple[str, str]]:
        return type(self), (self.reason, self.remedy)


def limit_met(error: BaseException) -> Unavailable | None:
    """The limit that an error is about, however little it says itself: of open files, or of processes and threads. None for others.

    EAGAIN is taken for fork(2)'s.
    """
    match error:
        case OSError(errno=errno.EMFILE):
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return Unavailable(f"too many open files: a process may have {most}", "raise that limit, `ulimit -n`")
        case OSError(errno=errno.ENFILE):
            return Unavailable("too many open files on this machine", "raise that limit, `sysctl fs.file-max`")
        case OSError(errno=errno.EAGAIN):
            pass
        case RuntimeError() if "can't start new thread" in str(error):
            pass
        case _:
            return None
    return Unavailable(
        "no process or thread can be started: this user, or this container, has as many as it may",
        "end some, or raise that limit, `ulimit -u` (of a container: pids.max of its cgroup)",
    )
