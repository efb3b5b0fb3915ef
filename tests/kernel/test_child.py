"""Children with a deadline."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from userfault.kernel.child import Child, ChildDied, ChildHung, call


def test_an_answer_comes_back() -> None:
    assert call(lambda: (os.getpid() != here, b"x" * 300_000)) == (True, b"x" * 300_000)


here = os.getpid()


def test_an_exception_comes_back_with_the_childs_traceback() -> None:
    def fails() -> None:
        raise ValueError("the child's")

    with pytest.raises(ValueError, match="the child's") as caught:
        call(fails)
    assert "in fails" in "".join(caught.value.__notes__)


def test_a_child_that_hangs_is_killed(children: Callable[[], set[str]]) -> None:
    before = children()
    with pytest.raises(ChildHung, match="was killed"):
        call(lambda: time.sleep(3600), deadline_s=0.1)
    assert children() <= before


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL])
def test_a_child_that_dies_says_of_what(how: signal.Signals) -> None:
    with pytest.raises(ChildDied, match=how.name) as caught:
        call(lambda: os.kill(os.getpid(), how))
    assert caught.value.signal == how


def test_a_child_that_exits_says_so() -> None:
    with pytest.raises(ChildDied, match="exited with 3"):
        call(lambda: os._exit(3))


def test_an_answer_that_cannot_be_sent_says_so() -> None:
    with pytest.raises(Exception, match="can't be sent"):
        call(lambda: lambda: 0)


def test_steps_alternate_with_the_parent() -> None:
    shared, give = os.pipe()

    def work() -> Iterator[bytes]:
        yield b"ready"
        yield os.read(shared, 10)

    with Child(work) as child:
        assert child.step() == b"ready"
        os.write(give, b"between")
        assert child.step() == b"between"
        assert child.step() is None
    assert child.wait() == -signal.SIGKILL
    os.close(shared)
    os.close(give)


def test_what_a_child_forked_ends_with_it() -> None:
    def work() -> Iterator[int]:
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(3600)
        yield grandchild
        time.sleep(3600)

    with Child(work, deadline_s=0.2) as child:
        handle = os.pidfd_open(child.step())
        with pytest.raises(ChildHung):
            child.step()
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    assert poll.poll(5000)
    os.close(handle)


def test_the_parent_need_not_wait() -> None:
    read, write = os.pipe()

    def work() -> Iterator[bytes]:
        yield os.read(read, 1)

    with Child(work) as child:
        child.go()
        os.write(write, b"x")
        assert child.answer() == b"x"
    os.close(read)
    os.close(write)
