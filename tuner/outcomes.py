"""How a sweep can end other than by a champion."""


class SweepFailedError(RuntimeError):
    """There is no champion, or nothing to train on; the message says why, and what to do."""
