"""How a value is shown in a message."""

from __future__ import annotations

LONGEST_VALUE = 60


def shorten(value: object) -> str:
    """The value as it would be written in Python, cut to a length that fits in a line."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
