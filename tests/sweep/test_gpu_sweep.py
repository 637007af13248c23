"""A sweep whose trials share one GPU, and what comes out of it: on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running_thaw import TINY_DATA, numbers_of, run_sweep_to_its_end, start_thaw

from tuner.records.journal import read_records, read_trials

pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.slow]

SPEC = f"""
name: shared
{TINY_DATA}
search:
  num_trials: 6
  sampler: random
  probe: on
  lr: {{low: 1.0e-3, high: 3.0e-2, log: true}}
  augmentation: [none, flip_crop]
budget: {{epochs: 4, device: cuda, gpus_per_worker: 0.5}}
early_stopping: {{scheduler: none}}
compute: {{precision: fp32}}
baselines: [head_only]
"""


def test_two_lanes_share_a_gpu_and_give_what_one_gives(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    (tmp_path / "two.yaml").write_text(SPEC)
    (tmp_path / "one.yaml").write_text(SPEC.replace("gpus_per_worker: 0.5", "gpus_per_worker: 1.0"))
    numbers = {}
    for name in ("two", "one"):
        folder = tmp_path / name
        folder.mkdir()
        home, out, err = run_sweep_to_its_end(folder / "home", tmp_path / f"{name}.yaml", 240)
        print(out, err)
        trials = read_trials(home.sweep("shared").journal)
        assert {trial.outcome for trial in trials} == {"completed"}
        assert "models:/shared/1" in out
        assert "were read from the store" in out
        events = [record["event"] for record in read_records(home.sweep("shared").journal)]
        assert events[-1] == "finished"
        numbers[name] = numbers_of(trials)
    assert numbers["two"] == numbers["one"]
    findings, _ = start_thaw(tmp_path / "two" / "home", "doctor").communicate(timeout=120)
    assert torch.cuda.get_device_name(0) in findings
