"""Whole sweeps whose trials give their lane back and go on later, killed in the middle and resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from running_thaw import TINY_DATA, numbers_of, start_thaw

from tuner.records.journal import read_records, read_trials

SPEC = f"""
version: 1
name: NAME
{TINY_DATA}
search:
  num_trials: TRIALS
  freeze_depth: [0, 1, 2]
  lr: {{low: 1.0e-3, high: 3.0e-2, log: true}}
  augmentation: none
budget: {{epochs: EPOCHS, threads_per_worker: 1, concurrency: 1}}
early_stopping: SCHEDULER
"""
HYPERBAND = {"TRIALS": "7", "EPOCHS": "4", "SCHEDULER": "{scheduler: hyperband, reduction_factor: 2}"}
POPULATION = {
    "TRIALS": "5",
    "EPOCHS": "3",
    "SCHEDULER": "{scheduler: pbt, population: {perturbation_interval: 1, quantile_fraction: 0.4}}",
}


def sweep(
    home: Path, name: str, settings: dict[str, str], *breaks: tuple[int, signal.Signals]
) -> dict[int, tuple[object, ...]]:
    """The numbers of a sweep that is sent a signal after so many epochs, and resumed each time."""
    spec = home.parent / f"{name}.yaml"
    text = SPEC
    for word, value in {"NAME": name, **settings}.items():
        text = text.replace(word, value)
    spec.write_text(text)
    journal = home / "sweeps" / name / "journal.jsonl"
    process = start_thaw(home, "sweep", str(spec))
    for num_epochs, signal_number in breaks:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            if journal.exists() and sum(r["event"] == "epoch" for r in read_records(journal)) >= num_epochs:
                break
        os.killpg(process.pid, signal_number)
        process.communicate(timeout=120)
        assert read_records(journal)[-1]["event"] != "finished", "it was broken off"
        process = start_thaw(home, "resume", name)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return numbers_of(read_trials(journal))


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
def test_trials_that_wait_go_on_with_the_numbers_of_trials_that_never_waited(tmp_path: Path) -> None:
    home = tmp_path / "home"
    whole = sweep(home, "whole", HYPERBAND)
    epochs = [len(trial[2]) for trial in whole.values()]  # type: ignore[arg-type]
    # Of 4 epochs with a factor of 2: a bracket of four trials with rungs at 1 and 2, and one of three with one at 2.
    assert sorted(epochs) == [1, 1, 2, 2, 4, 4, 4], whole
    events = read_records(home / "sweeps" / "whole" / "journal.jsonl")
    begins = [record["number"] for record in events if record["event"] == "trial"]
    assert len(begins) > len(set(begins)), "some trial gave its lane back and began again"
    assert sweep(home, "broken", HYPERBAND, (5, signal.SIGKILL)) == whole


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
def test_a_population_that_was_killed_and_interrupted_takes_over_what_it_would_have(tmp_path: Path) -> None:
    home = tmp_path / "home"
    whole = sweep(home, "whole", POPULATION)
    assert {(trial[1], len(trial[2])) for trial in whole.values()} == {("completed", 3)}  # type: ignore[arg-type]
    trials = read_trials(home.joinpath("sweeps", "whole", "journal.jsonl"))
    took_over = [trial for trial in trials if trial.lineage]
    assert took_over, "some trial took over another's weights"
    for trial in took_over:
        donor, until = trials[trial.lineage[-1].number], trial.lineage[-1].until
        if not any(ancestor.until > until for ancestor in donor.lineage):
            assert numbers_of([trial])[trial.number][2][:until] == numbers_of([donor])[donor.number][2][:until]  # type: ignore[index]
    assert sweep(home, "broken", POPULATION, (8, signal.SIGKILL), (12, signal.SIGINT)) == whole
