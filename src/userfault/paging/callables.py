"""A Python function as source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

from .source import Source

Fill = Callable[[int, memoryview], object]
"""`fill(offset_bytes, view)` writes into the whole of `view`."""
Read = Callable[[int, int], Any]
"""`read(offset_bytes, length_bytes)` returns exactly that many bytes, as anything with a buffer."""

Style = Literal["view", "length"]
_NAMES: dict[str, Style] = {
    **dict.fromkeys(("view", "buffer", "buf", "out", "into", "destination", "dst"), "view"),
    **dict.fromkeys(("length", "length_bytes", "size", "size_bytes", "count", "n", "nbytes"), "length"),
}


class CallableSource(Source):
    """What a function computes: `function(offset, view)` fills the view, or `function(offset, length)` returns that many bytes.

    Which of the two it is follows from its second parameter's annotation (`memoryview` or `int`) or name (`view`, `buffer`, `out`, ... or
    `length`, `size`, `n`, ...), or is said with `style`. It runs in a worker process and sees a copy of what it closes over, as that
    was at the start; `parallel_count` is how many calls may run there at once. The end of the data never shows: all that is asked for
    lies within `size_bytes`.

    Raises TypeError where the style can't be told.
    """

    def __init__(
        self,
        function: Fill | Read,
        size_bytes: int,
        *,
        style: Style | None = None,
        parallel_count: int = 1,
        name: str | None = None,
    ) -> None:
        if size_bytes < 0:
            raise ValueError(f"size_bytes={size_bytes}: it can't be negative")
        if style not in (None, *get_args(Style)):
            raise ValueError(f"style={style!r}: it is one of {', '.join(get_args(Style))}")
        self.function = function
        self.size_bytes, self.parallel_count = size_bytes, parallel_count
        self.name = name or getattr(function, "__qualname__", None) or repr(function)
        self.style: Style = style or _style_of(function, self.name)

    def read_exactly(self, offset_bytes: int, view: memoryview) -> None:
        if self.style == "view":
            self.function(offset_bytes, view)  # type: ignore[arg-type]
            return
        data: Any = self.function(offset_bytes, len(view))  # type: ignore[arg-type]
        if data is None:
            raise TypeError(f"{self.name} returned nothing; to fill a view, say style='view'")
        with memoryview(data) as returned, returned.cast("B") as data_bytes:
            if len(data_bytes) != len(view):
                raise ValueError(f"{self.name} returned {len(data_bytes)} bytes where {len(view)} were asked for")
            view[:] = data_bytes


def _style_of(function: Callable[..., object], name: str) -> Style:
    instead = "name its second parameter `view` or `length`, or pass style='view' or style='length'"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise TypeError(f"{name} has no signature that Python can read: pass style='view' or style='length'") from None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise TypeError(f"{name} takes {len(positional)} positional parameters, not (offset, view) or (offset, length)")
    second = positional[1]
    by_annotation: dict[object, Style] = {memoryview: "view", "memoryview": "view", int: "length", "int": "length"}
    style = by_annotation.get(second.annotation) or _NAMES.get(second.name)
    if style is None:
        raise TypeError(f"{name}'s second parameter is called {second.name}, which says neither: {instead}")
    return style
