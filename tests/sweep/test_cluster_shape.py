"""How lanes share out what a cluster has."""

from __future__ import annotations

import os

import pytest

from search_spaces.spec import BudgetSpec
from trainables.errors import InputError
from tuner.cluster.ray_cluster import choose_shape, start_ray
from tuner.outcomes import SweepFailedError


@pytest.mark.parametrize(
    ("budget", "cluster", "lanes", "workers", "threads", "gpus"),
    [
        ({}, {"CPU": 2}, 1, 1, 2, 0),
        ({}, {"CPU": 16}, 4, 1, 4, 0),
        ({"concurrency": 2}, {"CPU": 2}, 2, 1, 1, 0),
        ({"workers_per_trial": 2}, {"CPU": 2}, 1, 2, 1, 0),
        ({}, {"CPU": 16, "GPU": 4}, 4, 1, 3, 1),
        ({"gpus_per_worker": 0.5}, {"CPU": 16, "GPU": 1}, 2, 1, 7, 0.5),
        ({"workers_per_trial": 2}, {"CPU": 16, "GPU": 4}, 2, 2, 3, 1),
        ({"device": "cpu"}, {"CPU": 8, "GPU": 1}, 2, 1, 4, 0),
        ({"threads_per_worker": 3}, {"CPU": 2}, 1, 1, 3, 0),
    ],
)
def test_shape(budget: dict, cluster: dict, lanes: int, workers: int, threads: int, gpus: float) -> None:
    spec = BudgetSpec(**budget)
    shape, num_lanes = choose_shape(spec, spec.concurrency, [cluster])
    assert (num_lanes, shape.num_workers, shape.threads_per_worker, shape.gpus_per_worker) == (
        lanes,
        workers,
        threads,
        gpus,
    )
    # Every lane runs at once, and Tune's light actors (0.01 each) still find room.
    assert num_lanes * (shape.num_workers * shape.cpus_per_worker + 0.01) <= cluster["CPU"]
    assert num_lanes * shape.num_workers * shape.gpus_per_worker <= cluster.get("GPU", 0)


@pytest.mark.parametrize(
    ("budget", "machines", "lanes", "cpus"),
    [
        # A head that trains nothing takes nothing away from the others.
        ({"cpus_per_worker": 2, "concurrency": 2}, [{"CPU": 0}, {"CPU": 8}], 2, 2.0),
        ({"cpus_per_worker": 7}, [{"CPU": 0}, *[{"CPU": 8, "GPU": 1}] * 4], 4, 7.0),
        # As many as fit on each machine, not as the sum of all would hold.
        ({"cpus_per_worker": 5}, [{"CPU": 8}] * 3, 3, 5.0),
        ({"cpus_per_worker": 4}, [{"CPU": 8, "GPU": 4}], 2, 3.97),
    ],
)
def test_several_machines(budget: dict, machines: list[dict], lanes: int, cpus: float) -> None:
    spec = BudgetSpec(**budget)
    shape, num_lanes = choose_shape(spec, spec.concurrency, machines)
    assert (num_lanes, shape.cpus_per_worker) == (lanes, pytest.approx(cpus, abs=0.02))


@pytest.mark.parametrize(
    ("budget", "cluster", "words"),
    [
        ({"workers_per_trial": 3}, {"CPU": 2}, ["3 workers", "has 2 CPUs", "budget.workers_per_trial"]),
        ({"cpus_per_worker": 8}, {"CPU": 2}, ["8 CPUs", "has 2"]),
        ({"device": "cuda"}, {"CPU": 2}, ["1 x 1 GPU", "has 0", "budget.device: cpu"]),
        ({"workers_per_trial": 2}, {"CPU": 8, "GPU": 1}, ["2 x 1 GPU", "has 1"]),
        ({"device": "cuda", "concurrency": 3}, {"CPU": 8, "GPU": 2}, ["3 trials at once", "budget.concurrency"]),
    ],
)
def test_too_little_is_said_with_both_numbers(budget: dict, cluster: dict, words: list[str]) -> None:
    spec = BudgetSpec(**budget)
    with pytest.raises(InputError) as caught:
        choose_shape(spec, spec.concurrency, [cluster])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("address", "line"),
    [(None, "Ray did not start on this machine"), ("10.9.9.9:6379", "RAY_ADDRESS=10.9.9.9:6379 does")],
)
def test_ray_that_does_not_start_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, address: str | None, line: str
) -> None:
    import ray

    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    monkeypatch.setattr(os, "environ", environment | ({"RAY_ADDRESS": address} if address else {}))
    with pytest.raises(SweepFailedError, match=rf"{line}.*timed out during startup\.; nothing is lost: try again"):
        start_ray()
