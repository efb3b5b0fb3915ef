"""How a region ends: by close, with its last view, or with its process. Nothing turns into zeros and nothing is lost in silence."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from userfault import paging
from userfault.paging.inject import inject
from userfault.paging.pytest_plugin import check

pytestmark = pytest.mark.usefixtures("can_page")

SIZE = 100_000
DATA = bytes(at % 251 for at in range(SIZE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    return file


def run_script(text: str, *arguments: object) -> str:
    """What it prints."""
    command = ["timeout", "-k", "1", "20", sys.executable, "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.parametrize("mode", ["threads", "sigbus"])
def test_it_is_still_served_when_the_interpreter_exits(path: Path, mode: str) -> None:
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(list(memory[50000:50003])))\n"
        "from userfault import paging\n"
        "memory = paging.open(sys.argv[1], mode=sys.argv[2], unit='4 KiB', prefetch_units=0)\n"
        "memory[0]\n"
    )
    assert run_script(script, path, mode) == f"{list(DATA[50000:50003])}\n"


def test_what_was_not_flushed_is_flushed_when_the_interpreter_exits(path: Path) -> None:
    script = (
        "import sys\n"
        "from userfault import paging\n"
        "memory = paging.open(sys.argv[1], access='r+')\n"
        "memory[70000] = 252\n"
        "print(open(sys.argv[1], 'rb').read()[70000])\n"
    )
    assert run_script(script, path) == f"{DATA[70000]}\n"
    assert path.read_bytes()[70000] == 252


def test_what_is_lost_with_the_last_view_is_said(path: Path) -> None:
    def child() -> None:
        memory = paging.open(path, access="r+")
        with memory:
            memory[0] = 252
            view = memoryview(memory)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del memory
            gc.collect()
        view[70_000] = 252
        with pytest.warns(RuntimeWarning, match=r"4\.0 KiB written to .*data since its last flush are lost"):
            del view
            gc.collect()
        assert path.read_bytes() == b"\xfc" + DATA[1:]

    check(child)


def test_another_thread_in_a_call_keeps_it_open(path: Path) -> None:
    def child() -> None:
        memory = paging.open(path, unit="4 KiB", prefetch_units=0)
        got: list[bytes] = []
        with inject(memory, "source_read", "delay", 300_000) as struck:
            reader = threading.Thread(target=lambda: got.append(memory.read_at(0, SIZE)))
            reader.start()
            while not struck.struck_count:
                time.sleep(0.001)
            with pytest.raises(BufferError, match="let calls of it return"):
                memory.close()
            reader.join()
        assert got == [DATA]
        memory.close()
        for call in (memory.working_set, memory.ensure, memory.evict, lambda: memory.state_of(0)):
            with pytest.raises(ValueError, match="closed"):
                call()
        assert memory.stats().fill_count

    check(child)
