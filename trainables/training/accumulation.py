"""Which batches make one step of the optimizer.

In: an epoch's batches. Out: for each of them, its step and the number of pictures that the step's gradient is the mean
over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Turn(NamedTuple):
    """A batch among those of one step.

    Attributes:
        step: Number of the step in its epoch.
        num_pictures: Of all batches of the step, over all ranks.
        is_first: Whether gradients begin at 0.
        is_last: Whether the optimizer steps.
    """

    step: int
    num_pictures: int
    is_first: bool
    is_last: bool


def turns_of(plan: Sequence[np.ndarray], grad_accumulation: int) -> list[Turn]:
    """One turn per batch.

    Steps have nearly equally many batches, none more than ``grad_accumulation``, so that no remainder of an epoch gets
    a step of its own; what a step is the mean over is counted, so none is too long or too short.
    """
    turns: list[Turn] = []
    num_steps = -(-len(plan) // grad_accumulation)
    for step, numbers in enumerate(np.array_split(np.arange(len(plan)), num_steps)):
        num_pictures = sum(len(plan[number]) for number in numbers)
        turns += [Turn(step, num_pictures, number == numbers[0], number == numbers[-1]) for number in numbers]
    return turns
