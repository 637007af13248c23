"""How a sweep can end other than by a champion."""


class SweepFailedError(RuntimeError):
    """Every trial failed; the message says why."""
