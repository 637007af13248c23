"""Pictures that no file holds, as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from trainables.data.picture import Picture


class MemorySource:
    """Pictures held in memory, whose reads can be watched."""

    uri = "memory"

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures

    def pictures(self) -> Sequence[Picture]:
        return self._pictures

    def signature(self) -> str:
        return hashlib.sha256("".join(picture.name for picture in self._pictures).encode()).hexdigest()
