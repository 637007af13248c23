"""Kernels that give the same bits each time, where a GPU has others that are a little faster.

A trial that was interrupted goes on with the numbers of one that was not, and stored features are those that would be
computed: both hold only where the same operation on the same numbers gives the same bits. A CPU does that by itself.
"""

from __future__ import annotations

import os

import torch
import torch.utils.deterministic

from trainables.features.machine import CUBLAS_WORKSPACE


def make_repeatable(device: torch.device) -> None:
    """Chooses such kernels for this process; to be called before it computes anything on ``device``.

    See "Reproducibility" in PyTorch's notes. What has no such kernel only warns: a trial with it is worth more than
    none.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Or every `torch.empty` would be filled with NaN, to show who reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
