"""The C core, loaded with ctypes. It is optional: whoever asks for it must have a slower way, and say so."""

from ctypes import CDLL, c_uint32
from functools import cache
from pathlib import Path
from zlib import crc32


def library() -> CDLL | None:
    """The native library, or None where it was not built or can't be loaded."""
    return _load()[0]


def why_missing() -> str:
    """One sentence for the user: why library() is None and what to do; empty if it isn't."""
    return _load()[1]


@cache
def _load() -> tuple[CDLL | None, str]:
    path = Path(__file__).with_name("_userfault.so")
    if not path.exists():
        return None, (
            "The native core was not built at installation (no working C compiler): install a compiler "
            "(`apt-get install gcc libc6-dev`) and reinstall userfault."
        )
    try:
        lib = CDLL(str(path), use_errno=True)
        if not _is_of(lib, path.parent):
            return None, (
                f"The native core is of other C sources than those in {path.parent}: "
                "reinstall userfault (in a checkout: `make check`) to build it anew."
            )
        return lib, ""
    except OSError as error:
        return None, (
            f"The native core can't be loaded ({error}): reinstall userfault on this machine to build it anew."
        )


def _is_of(lib: CDLL, directory: Path) -> bool:
    """Whether it was built of the sources beside it; without sources, or built by hand: yes."""
    sources = sorted(directory.glob("*.[ch]"))
    if not sources:
        return True
    try:
        stamp = lib.uf_sources
    except AttributeError:
        return False
    stamp.restype = c_uint32
    return stamp() in (0, crc32(b"".join(path.read_bytes() for path in sources)))
