"""What the tests of paging share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest

from userfault import paging


@pytest.fixture(scope="session")
def can_page(cannot_run: Callable[[str, str], NoReturn]) -> None:
    """Skips where memory can't be paged at all, and says what to do."""
    try:
        paging.open(None, size_bytes=4096, unit="4 KiB").close()
    except (OSError, paging.PagingError) as error:
        cannot_run("memory can't be paged here", str(error))
