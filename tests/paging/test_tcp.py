from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from userfault.paging import wire
from userfault.paging.callables import CallableSource
from userfault.paging.files import FileStore
from userfault.paging.memory import MemorySource, MemoryStore
from userfault.paging.retry import RetryPolicy
from userfault.paging.source import Source, SourceError, Store
from userfault.paging.tcp import HELLO, Address, PageServer, RemoteSource, RemoteStore
from userfault.paging.testing import StoreContract, read
from userfault.paging.wire import Kind, Message

USERFAULT = str(Path(sys.executable).with_name("userfault"))
TIMEOUT_S = 20.0


@contextmanager
def serving(source: Source, address: str = "127.0.0.1:0", *, writable: bool = False) -> Iterator[PageServer]:
    with PageServer.listen(source, address, writable=writable, policy=RetryPolicy(deadline_s=5)) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            server.close()
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


class TestRemoteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def servers(self) -> Iterator[None]:
        with ExitStack() as self.running:
            yield

    def make(self, data: bytes, directory: Path) -> Store:
        (directory / "file").write_bytes(data)
        return self.reopen(directory)

    def reopen(self, directory: Path) -> Store:
        server = self.running.enter_context(PageServer.listen(FileStore(directory / "file"), writable=True))
        threading.Thread(target=server.serve, daemon=True).start()
        return RemoteStore(f"tcp://{server.address}")

    def make_broken(self, directory: Path) -> Store:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        return RemoteStore(f"tcp://127.0.0.1:{port}")


def read_again(source: Source, offset: int, length: int) -> bytes:
    """As a worker reads: a connection that turns out to be broken is made anew."""
    return RetryPolicy().call(lambda: read(source, offset, length), source.is_transient)


def test_over_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here ({error}): enable it with sysctl net.ipv6.conf.lo.disable_ipv6=0")
    with serving(MemorySource(b"0123"), "[::1]:0") as server:
        assert str(server.address).startswith("[::1]:")
        with RemoteSource(f"tcp://{server.address}") as source:
            assert read(source, 1, 10) == b"123"


def test_a_connection_that_breaks_is_made_anew(tmp_path: Path) -> None:
    data = MemoryStore(bytearray(b"0123"))
    with serving(data, writable=True) as server:
        source = RemoteSource(f"tcp://{server.address}").open()
        assert read(source, 0, 4) == b"0123"
    with pytest.raises(SourceError) as caught:
        read(source, 0, 4)
    assert caught.value.transient
    with serving(MemorySource(b"abcd"), f"127.0.0.1:{server.address.port}"):
        assert read_again(source, 0, 4) == b"abcd"
    source.close()


def test_a_flush_after_the_server_was_started_anew_says_that_pages_may_be_lost() -> None:
    memory = bytearray(8)
    with serving(MemoryStore(memory), writable=True) as server:
        store = RemoteStore(f"tcp://{server.address}").open()
        store.write_from(0, memoryview(b"lost"))
    with serving(MemoryStore(memory), str(server.address), writable=True):
        assert read_again(store, 0, 4) == b"lost"
        with pytest.raises(SourceError, match="may be lost"):
            store.flush()
        store.write_from(0, memoryview(b"kept"))
        store.flush()
        store.close()


def test_a_server_that_changed_its_size_is_refused() -> None:
    with serving(MemorySource(b"0123")) as server:
        source = RemoteSource(f"tcp://{server.address}").open()
    with serving(MemorySource(b"01234"), str(server.address)):
        with pytest.raises(SourceError, match="now has 5 bytes where it had 4"):
            read_again(source, 0, 4)
        source.close()


def test_what_is_served_read_only_is_not_written() -> None:
    with serving(MemoryStore(bytearray(4))) as server, pytest.raises(SourceError, match="start it with --writable"):
        RemoteStore(f"tcp://{server.address}").open()
    with pytest.raises(TypeError, match="not a store"), PageServer.listen(MemorySource(b""), writable=True):
        pass


def test_an_error_of_the_far_end_says_where_that_is() -> None:
    def failing(offset: int, view: memoryview) -> None:
        raise KeyError("no such chunk")

    with (
        serving(CallableSource(failing, 10)) as server,
        RemoteSource(f"tcp://{server.address}") as source,
        pytest.raises(SourceError, match=r"failing at tcp://127\.0\.0\.1:\d+ failed: KeyError") as caught,
    ):
        read(source, 0, 10)
    assert 'raise KeyError("no such chunk")' in caught.value.details


def test_a_server_that_is_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = RemoteSource(f"tcp://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)
        with pytest.raises(SourceError, match="TimeoutError"):
            source.open()


def test_a_server_that_falls_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def ready_and_silent() -> None:
            with listener.accept()[0] as connection:
                wire.receive(connection)
                wire.send(connection, Message(Kind.READY, wire.VERSION, 4096, wire.MAGIC))
                wire.receive(connection)
                wire.receive(connection)

        thread = threading.Thread(target=ready_and_silent)
        thread.start()
        with RemoteSource(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5) as source:
            with pytest.raises(SourceError, match=r"no answer within 0\.5 s") as caught:
                read(source, 0, 4096)
            assert caught.value.transient
        thread.join(TIMEOUT_S)


def test_a_damaged_page_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def damaging() -> None:
            with listener.accept()[0] as connection:
                wire.receive(connection)
                wire.send(connection, Message(Kind.READY, wire.VERSION, 4, wire.MAGIC))
                asked = wire.receive(connection)
                assert asked
                wire.send(connection, Message(Kind.DATA, asked.id, 0, wire.checksum(b"0123"), 4), b"0133")

        thread = threading.Thread(target=damaging)
        thread.start()
        source = RemoteSource(f"tcp://127.0.0.1:{listener.getsockname()[1]}").open()
        with pytest.raises(SourceError, match="damaged on its way"):
            read(source, 0, 4)
        source.close()
        thread.join(TIMEOUT_S)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(64),
        Message(Kind.START, wire.VERSION, 0, wire.MAGIC, 6).pack() + b"pickle",
        Message(Kind.START, wire.VERSION + 1, 0, wire.MAGIC).pack(),
        HELLO.pack() + Message(Kind.DONE).pack(),
        HELLO.pack() + Message(Kind.READ, 1, 0, 0, 1 << 50).pack(),
        HELLO.pack()[:7],
    ],
)
def test_a_peer_that_talks_nonsense_loses_its_connection_and_nothing_else(garbage: bytes) -> None:
    with serving(MemorySource(b"0123")) as server:
        with socket.create_connection(server.address, TIMEOUT_S) as peer:
            peer.sendall(garbage)
            # It may have hung up by now, and then there is nothing to shut down.
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while peer.recv(4096):
                    pass
        with RemoteSource(f"tcp://{server.address}") as source:
            assert read(source, 0, 4) == b"0123"


def test_a_source_that_takes_one_call_at_a_time_gets_one_even_from_many_clients() -> None:
    inside, most = 0, 0

    def alone(offset: int, length: int) -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return b"x" * length

    with serving(CallableSource(alone, 1000)) as server:

        def client() -> None:
            with RemoteSource(f"tcp://{server.address}") as source:
                for offset in range(10):
                    assert read(source, offset, 1) == b"x"

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert most == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [("localhost:1", ("localhost", 1)), ("tcp://[::1]:65535/", ("::1", 65535)), ("[::1]:0", ("::1", 0))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(Address.parse(text))) == address


@pytest.mark.parametrize(
    "text", ["localhost", "tcp://", ":1", "tcp://host:70000", "http://host:1", "tcp://host:1/path", "::1:1:x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


def test_the_command_serves_a_file_until_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    command = [USERFAULT, "page", "serve", str(tmp_path / "file"), "--listen", "127.0.0.1:0", "--writable"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        told = process.stdout.readline()
        assert told.startswith(f"{tmp_path / 'file'} (10 bytes) on tcp://127.0.0.1:")
        with RemoteStore(told.split()[-1]) as store:
            store.write_from(5, memoryview(b"xyz"))
            store.flush()
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    assert (tmp_path / "file").read_bytes() == b"01234xyz89"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["/nonexistent"], "No such file or directory"),
        ([os.devnull, "--listen", "nowhere"], "is no TCP address"),
        (["nosuch://x"], "Protocol not known: nosuch"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], why: str) -> None:
    command = [USERFAULT, "page", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert why in done.stderr and "Traceback" not in done.stderr
