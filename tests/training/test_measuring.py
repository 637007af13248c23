"""Times of steps: every combination once, remembered under all that they depend on, and nothing else touched."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.config import Precision
from trainables.jobs import MeasureJob, parse_job
from trainables.ranks import Ranks
from trainables.training import measuring, stopwatch
from trainables.training.measuring import run_measure

CPU = torch.device("cpu")
BOTH: tuple[Precision, ...] = ("fp32", "bf16")


def job_in(folder: Path, **changes: Any) -> MeasureJob:
    values = {
        "backbone": "lenet", "num_classes": 3, "image_size_px": 16, "freeze_depth": 1, "deepest": 4, "batch_size": 4,
        "prefix_batch_size": 4, "precisions": BOTH, "prefix_precisions": BOTH, "layouts": (True, False),
        "memory": str(folder), **changes,
    }  # fmt: skip
    return MeasureJob.model_validate(values)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_MOST_ROUNDS", 1)
    monkeypatch.setattr(measuring, "_times_of_a_convolution", lambda _: {"fp32": 1.0, "bf16": 1.0})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many combinations each measurement timed."""
    found: list[int] = []
    real = measuring._steps

    def steps(*args: Any) -> Any:
        made = real(*args)
        found.append(len(made))
        return made

    monkeypatch.setattr(measuring, "_steps", steps)
    return found


def test_each_combination_is_timed_once_and_remembered(tmp_path: Path, counted: list[int]) -> None:
    job = job_in(tmp_path)
    assert parse_job(job.model_dump(mode="json")) == job
    state = torch.get_rng_state()
    first = run_measure(job, Ranks(CPU))
    assert torch.equal(torch.get_rng_state(), state)
    asked = {(part, precision, last) for part in ("trained", "frozen") for precision in BOTH for last in (True, False)}
    assert {(each["part"], each["precision"], each["channels_last"]) for each in first["timings"]} == asked
    assert all(0 < each["seconds"] < 60 for each in first["timings"])
    assert (first["place"], first["is_remembered"]) == ("this CPU", False)
    again = run_measure(job, Ranks(CPU))
    assert again["is_remembered"]
    assert again["timings"] == first["timings"]
    assert counted == [8]
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["backbone"] == "lenet"


def test_only_what_is_open_is_timed(tmp_path: Path) -> None:
    message = run_measure(job_in(tmp_path, precisions=(), layouts=(True,)), Ranks(CPU))
    assert [(each["part"], each["precision"]) for each in message["timings"]] == [
        ("frozen", "fp32"),
        ("frozen", "bf16"),
    ]


def test_another_size_batch_or_thread_count_is_measured_anew(tmp_path: Path, counted: list[int]) -> None:
    plain = {"precisions": (), "layouts": (True,)}
    for changes in ({}, {"image_size_px": 24}, {"batch_size": 8}):
        assert not run_measure(job_in(tmp_path, **plain, **changes), Ranks(CPU))["is_remembered"]
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert not run_measure(job_in(tmp_path, **plain), Ranks(CPU))["is_remembered"]
    finally:
        torch.set_num_threads(before)
    assert run_measure(job_in(tmp_path, **plain), Ranks(CPU))["is_remembered"]
    assert len(counted) == 4


def test_a_damaged_memory_is_measured_again_and_a_full_one_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {"precisions": (), "layouts": (True,)}
    run_measure(job_in(tmp_path, **plain), Ranks(CPU))
    (file,) = tmp_path.glob("*.json")
    endless = file.read_text().replace('"seconds": ', '"seconds": -')
    for damage in ("", "{", '{"timings": 3}', '{"timings": [{"part": "trained"}]}', endless):
        file.write_text(damage)
        assert not run_measure(job_in(tmp_path, **plain), Ranks(CPU))["is_remembered"]
    blocked = tmp_path / "a file"
    blocked.touch()
    assert run_measure(job_in(blocked, **plain), Ranks(CPU))["timings"]
    assert "cannot be kept" in caplog.text


class Machine:
    """A processor with a clock of its own, on which other work makes single steps slow.

    Args:
        seconds: For one picture, by part and precision, in either layout.
        noise: Share of the steps that take twenty times as long.
        first_s: What the first step takes beside.
        seed: Of the noise.
    """

    def __init__(
        self,
        seconds: Mapping[tuple[str, str], float],
        noise: float = 0.0,
        first_s: Mapping[tuple[str, str], float] | None = None,
        seed: int = 0,
    ) -> None:
        self._seconds, self._noise, self._chance = seconds, noise, random.Random(seed)
        self._first_s = dict(first_s or {})
        self.now, self.convolution = 0.0, 1.0
        self.sizes: dict[tuple[str, str], list[int]] = {case: [] for case in seconds}

    def perf_counter(self) -> float:
        return self.now

    def steps(self, _job: Any, cases: Any, *_: Any) -> Any:
        return [partial(self._step, (case.part, case.precision)) for case in cases]

    def _step(self, case: tuple[str, str], num_pictures: int) -> None:
        self.sizes[case].append(num_pictures)
        self.now += self._first_s.pop(case, 0.0)
        self.now += self._seconds[case] * num_pictures * (20 if self._chance.random() < self._noise else 1)


def measured_on(machine: Machine, job: MeasureJob, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    monkeypatch.undo()  # all rounds
    monkeypatch.setattr(measuring, "_times_of_a_convolution", lambda _: {"fp32": 1.0, "bf16": machine.convolution})
    monkeypatch.setattr(measuring, "_steps", machine.steps)
    monkeypatch.setattr(stopwatch, "time", machine)
    return {(each["part"], each["precision"]): each["seconds"] for each in run_measure(job, Ranks(CPU))["timings"]}


def test_nothing_is_computed_in_a_precision_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {("trained", "fp32"): 0.2, ("trained", "bf16"): 4.0, ("frozen", "fp32"): 0.05, ("frozen", "bf16"): 1.0}
    machine = Machine(seconds)
    machine.convolution = 20.0
    job = job_in(tmp_path, layouts=(True,), batch_size=64, prefix_batch_size=32)
    assert measured_on(machine, job, monkeypatch) == pytest.approx(seconds)
    assert machine.sizes["trained", "bf16"] == machine.sizes["frozen", "bf16"] == []
    assert machine.now < 4
    # Where bf16 alone is to be timed, it is.
    alone = measured_on(machine, job_in(tmp_path, precisions=["bf16"], prefix_precisions=()), monkeypatch)
    assert alone == pytest.approx({("trained", "bf16"): 4.0})


def test_a_convolution_is_timed_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    times = measuring._times_of_a_convolution(CPU)
    assert all(0 < seconds < 10 for seconds in times.values())
    assert times.keys() == {"fp32", "bf16"}


def test_a_network_that_is_slow_in_a_precision_costs_two_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {("trained", "fp32"): 0.2, ("trained", "bf16"): 4.0, ("frozen", "fp32"): 0.05, ("frozen", "bf16"): 1.0}
    machine = Machine(seconds)
    job = job_in(tmp_path, layouts=(True,), batch_size=64, prefix_batch_size=32)
    assert measured_on(machine, job, monkeypatch) == pytest.approx(seconds)
    assert machine.sizes["trained", "bf16"] == [2]
    assert machine.sizes["frozen", "bf16"] == [2, 2]
    assert machine.now < 16, "a batch of 64 in bf16 alone would take 256 s"


def test_what_the_choice_of_kernels_takes_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {("trained", "fp32"): 0.02, ("trained", "bf16"): 0.01}
    machine = Machine(seconds, first_s={("trained", "bf16"): 3.0})
    job = job_in(tmp_path, layouts=(True,), prefix_precisions=())
    assert measured_on(machine, job, monkeypatch) == pytest.approx(seconds)


def test_batches_grow_as_large_as_half_a_second_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {("trained", "fp32"): 0.05, ("trained", "bf16"): 0.03, ("frozen", "fp32"): 1e-4, ("frozen", "bf16"): 1e-4}
    machine = Machine(seconds)
    job = job_in(tmp_path, layouts=(True,), batch_size=64, prefix_batch_size=32)
    assert measured_on(machine, job, monkeypatch) == pytest.approx(seconds)
    assert max(machine.sizes["trained", "fp32"]) == max(machine.sizes["trained", "bf16"]) == 16
    assert max(machine.sizes["frozen", "fp32"]) == 32
    assert machine.now < 15


@pytest.mark.parametrize("seed", range(5))
def test_other_work_on_the_machine_does_not_change_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    seconds = {("trained", "fp32"): 0.01, ("trained", "bf16"): 0.012}
    job = job_in(tmp_path, layouts=(True,), prefix_precisions=())
    machine = Machine(seconds, noise=0.5, seed=seed)
    assert measured_on(machine, job, monkeypatch) == pytest.approx(seconds)
