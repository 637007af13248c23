"""How a sweep can end other than by a champion."""

from trainables.errors import ForPeople


class SweepFailedError(ForPeople, RuntimeError):
    """There is no champion, or nothing to train on; the message says why, and what to do."""
