"""A small digits sweep, run as a user would."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_thaw import TINY_DATA

TINY = f"""
version: 1
name: tiny
{TINY_DATA}
search:
  num_trials: 5
  probe: on
  head_init: [probe, random]
  lr: {{low: 1.0e-3, high: 3.0e-2, log: true}}
  augmentation: [none, flip_crop]
  batch_size: [16, 32]
budget: {{epochs: 5, threads_per_worker: 1}}
early_stopping: {{grace_period: 1, reduction_factor: 2, patience: 4}}
baselines: [head_only]
"""


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(TINY)
    return path
