"""How a source gets into its worker: cloudpickle, so that closures, lambdas and what a script defines travel whole."""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

from .source import SourceError


def dumps(what: object, name: str) -> bytes:
    """`what`, pickled; `name` is for the message. Raises SourceError where that can't be done."""
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(what)
    except Exception as error:
        typed = SourceError.of("open", name, 0, 0, error)
        typed.remedy = "it must be possible to pickle it: open files, locks and connections in acquire(), in the worker"
        raise typed from error
    return file.getvalue()


is_loading = False
"""Whether a worker is importing what its source needs."""


def loads(data: bytes | bytearray) -> Any:
    """What `dumps` took. Raises SourceError where a module is missing or an object does not want to."""
    global is_loading
    is_loading = True
    try:
        return pickle.loads(data)
    except SourceError:
        raise
    except Exception as error:
        typed = SourceError.of("open", "a source sent to its worker", 0, 0, error)
        typed.remedy = (
            "what comes from a module is sent by its name, so the worker must be able to import that module; "
            "what is defined in a script or inside a function is sent whole"
        )
        raise typed from error
    finally:
        is_loading = False


def _rebuilt(build: Callable[..., CodeType], arguments: tuple[Any, ...], file_name: str) -> CodeType:
    return build(*arguments).replace(co_filename=file_name)


def _reduced(code: CodeType) -> tuple[Any, ...]:
    build, arguments, *_rest = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _rebuilt, (build, arguments, code.co_filename)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Keeps the file names of code, which cloudpickle drops: a traceback from the worker shows the user's lines."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduced}, cloudpickle.Pickler.dispatch_table)
