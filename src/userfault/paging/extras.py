"""Libraries that only some sources need: imported when they are used, and missed with a sentence that helps."""

from __future__ import annotations

import importlib
from typing import Any


def load(module: str, extra: str) -> Any:
    """The module; raises ModuleNotFoundError that names the extra of this package that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise
        raise ModuleNotFoundError(
            f"{module} is not installed: pip install 'userfault[{extra}]'", name=module
        ) from error
