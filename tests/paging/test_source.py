from __future__ import annotations

import errno
import pickle

import pytest

from userfault.paging.source import Source, SourceError, Store, ZeroSource, redacted


class Bytes(Store):
    """A store in a bytearray; `fails` is raised by whatever is called next."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size_bytes, self.name = bytearray(data), len(data), "bytes"
        self.fails: Exception | None = None
        self.releases = 0

    def fail(self) -> None:
        if self.fails:
            raise self.fails

    def acquire(self) -> None:
        self.fail()

    def release(self) -> None:
        self.releases += 1

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self.fail()
        view[:] = self.data[offset_bytes : offset_bytes + len(view)]

    def write_exactly(self, offset_bytes: int, view: memoryview) -> None:
        self.fail()
        self.data[offset_bytes : offset_bytes + len(view)] = view

    def sync(self) -> None:
        self.fail()


def read(source: Source, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xaa" * length)
    count = source.read_into(offset, memoryview(buffer))
    assert buffer[count:] == b"\xaa" * (length - count)
    return bytes(buffer[:count])


def test_a_read_is_short_only_at_the_end() -> None:
    with Bytes(b"0123456789") as source:
        assert read(source, 0, 4) == b"0123"
        assert read(source, 8, 4) == b"89"
        assert read(source, 10, 4) == b""
        assert read(source, 99, 4) == b""
        assert read(source, 3, 0) == b""


def test_a_write_past_the_end_is_refused_whole() -> None:
    with Bytes(b"0123456789") as store:
        store.write_from(8, memoryview(b"xy"))
        with pytest.raises(SourceError, match=r"write 3 bytes at offset 8 of bytes failed: it ends at 10; write only"):
            store.write_from(8, memoryview(b"abc"))
        assert store.data == b"01234567xy"


def test_closed_and_unopened_sources_refuse() -> None:
    source = Bytes(b"0123")
    with pytest.raises(SourceError, match="not open; call its open"):
        read(source, 0, 1)
    source.open().open()
    source.close()
    source.close()
    assert source.releases == 1
    for call in (lambda: read(source, 0, 1), source.flush, source.open, lambda: source.write_from(0, memoryview(b"a"))):
        with pytest.raises(SourceError, match="closed") as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_an_exception_becomes_a_typed_error_with_its_traceback() -> None:
    with Bytes(b"0123") as source:
        source.fails = ConnectionResetError(errno.ECONNRESET, "gone")
        with pytest.raises(
            SourceError, match="read 2 bytes at offset 1 of bytes failed: ConnectionResetError"
        ) as caught:
            read(source, 1, 2)
    error = caught.value
    assert (error.errno, error.transient, error.offset_bytes, error.length_bytes) == (errno.ECONNRESET, True, 1, 2)
    assert "in read_exactly" in error.details
    assert error.__cause__ is source.fails


def test_a_failed_open_releases_and_may_be_tried_again() -> None:
    source = Bytes(b"0123")
    source.fails = TimeoutError("slow")
    with pytest.raises(SourceError, match="open bytes failed: TimeoutError: slow; check that the other end") as caught:
        source.open()
    assert (source.releases, caught.value.errno) == (1, errno.ETIMEDOUT)
    source.fails = None
    assert read(source.open(), 0, 4) == b"0123"


def test_a_source_without_a_size_does_not_open() -> None:
    class Forgetful(Bytes):
        def acquire(self) -> None:
            self.size_bytes = -1

    with pytest.raises(SourceError, match=r"Forgetful.acquire\(\) left size_bytes at -1"):
        Forgetful(b"").open()


def test_negative_offsets_are_a_mistake_of_the_caller() -> None:
    with Bytes(b"0123") as store, pytest.raises(ValueError, match="offsets start at 0"):
        store.read_into(-1, memoryview(bytearray(1)))


def error_with(details: str) -> SourceError:
    return SourceError("read", "s", 4096, 10, "boom", remedy="r", details=details, errno=errno.ENOENT, transient=True)


def test_an_error_crosses_processes_whole() -> None:
    error = error_with('traceback "quoted"\n')
    for copy in (SourceError.from_record(error.to_record()), pickle.loads(pickle.dumps(error))):
        assert str(copy) == str(error)
        assert (copy.errno, copy.transient, copy.offset_bytes) == (errno.ENOENT, True, 4096)


@pytest.mark.parametrize("limit", [400, 1000, 8192])
def test_a_long_record_is_cut_in_the_middle_of_its_traceback(limit: int) -> None:
    record = error_with("first " + "\n\x01é" * 100_000 + " last").to_record(limit)
    assert len(record) <= limit
    error = SourceError.from_record(record)
    assert error.details.startswith("first ") and error.details.endswith(" last")
    assert (error.cause, error.remedy) == ("boom", "r")


@pytest.mark.parametrize("record", [b"", b"\xff", b"[]", b"{}", b'{"operation": "read"}', b"7"])
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="no error record"):
        SourceError.from_record(record)


def test_notes_are_part_of_the_cause() -> None:
    error = OSError("two\nlines")
    error.add_note("tried 3 times")
    typed = SourceError.of("read", "s", 0, 1, error)
    assert typed.cause == "OSError: two lines (tried 3 times)"
    typed.add_note("and once more")
    assert SourceError.of("read", "s", 0, 1, typed).cause == "OSError: two lines (tried 3 times) (and once more)"
    assert SourceError.of("read", "s", 0, 1, typed).cause.count("once more") == 1


def test_passwords_are_blotted_out() -> None:
    assert redacted("redis://me:secret@host:1/0 and http://a:b@c") == "redis://me:***@host:1/0 and http://a:***@c"
    assert redacted("s3://bucket/a:b@c") == "s3://bucket/a:b@c"


def test_zeros() -> None:
    with ZeroSource(10) as source:
        assert read(source, 4, 100) == bytes(6)
