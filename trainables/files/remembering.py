"""Small facts that take seconds to find out, kept between processes; whoever cannot have one finds it out again.

In: a place and a fact. Out: the same fact later, or None. No torch.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from trainables.files.storage import read_bytes, write_bytes

_log = logging.getLogger(__name__)


def remember(uri: str, content: dict[str, Any]) -> None:
    """Writes a fact as JSON; a place that takes none is a warning."""
    try:
        write_bytes(uri, json.dumps(content, indent=1).encode())
    except OSError as error:
        _log.warning("what was measured cannot be kept at %s: %s", uri, error)


def recall(uri: str) -> dict[str, Any] | None:
    """A fact; None where there is none, or the file is damaged."""
    try:
        content = json.loads(read_bytes(uri))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
