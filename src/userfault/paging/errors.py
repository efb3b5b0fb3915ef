"""What goes wrong with regions; what goes wrong with sources is `SourceError`."""

from __future__ import annotations


class PagingError(Exception):
    """What failed, and the remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)
