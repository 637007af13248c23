"""What a sweep may plan on: machines that are up, and those that an autoscaler may still start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from search_spaces.spec import BudgetSpec
from trainables.errors import InputError
from tuner.cluster.capacity import find_capacity, potential_machines
from tuner.cluster.ray_cluster import choose_shape

HEAD, GPU = {"CPU": 1.0, "GPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}
SETTINGS: dict[str, Any] = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 1}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 4, "GPU": 1, "memory": 1e9}, "max_workers": 2},
    },
}


def node(kind: str | None, alive: bool = True, **resources: float) -> dict[str, Any]:
    labels = {"ray.io/node-id": "ab"} | ({"ray.io/node-group": kind} if kind else {})
    return {"Alive": alive, "Resources": {"memory": 1e9, **resources}, "Labels": labels}


@pytest.fixture
def launcher_file(tmp_path: Path) -> Path:
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ({"head": 1}, [GPU, GPU, {"CPU": 8.0, "GPU": 0.0}]),
        ({"head": 1, "gpu": 1}, [GPU, {"CPU": 8.0, "GPU": 0.0}]),
        ({"head": 1, "gpu": 2, "cpu": 1}, []),
        ({"head": 1, "cpu": 2}, [GPU]),
    ],
)
def test_the_autoscaler_adds_up_to_each_types_limit_and_the_clusters(
    present: dict[str, int], expected: list[dict[str, float]]
) -> None:
    assert list(potential_machines(SETTINGS, present)) == expected


def test_a_type_without_limit_or_resources() -> None:
    kinds = {"head": {}, "gpu": {"resources": {"GPU": 1, "CPU": 4}}, "unknown": {"resources": {}}}
    settings = {"max_workers": 2, "head_node_type": "head", "available_node_types": kinds}
    assert list(potential_machines(settings, {})) == [GPU, GPU]


def test_a_cluster_of_ray_up_counts_machines_that_are_not_there_yet(
    launcher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node("head", CPU=1), node("gpu", alive=False, CPU=4, GPU=1)])
    capacity = find_capacity(launcher_file)
    assert capacity.present == (HEAD,)
    assert capacity.potential == (GPU, GPU, {"CPU": 8.0, "GPU": 0.0})
    shape, lanes = choose_shape(BudgetSpec(device="cuda"), "auto", capacity.machines)
    assert (lanes, shape.num_workers, shape.gpus_per_worker) == (2, 1, 1)


@pytest.mark.parametrize("head", [None, "another-head"])
def test_a_fixed_cluster_stays_fixed_though_a_launchers_file_lies_about(
    launcher_file: Path, monkeypatch: pytest.MonkeyPatch, head: str | None
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(head, CPU=1)])
    capacity = find_capacity(launcher_file)
    assert capacity.machines == (HEAD,)
    with pytest.raises(InputError, match="1 x 1 GPU, the cluster has 0;"):
        choose_shape(BudgetSpec(device="cuda"), "auto", capacity.machines)
    assert find_capacity(launcher_file.with_name("none")).machines == (HEAD,)


@pytest.mark.parametrize(
    ("budget", "machines", "lanes", "cpus"),
    [
        ({}, [HEAD, GPU, GPU], 2, 3.8),  # the head's processor is no use to a worker on a GPU
        ({}, [{"CPU": 16, "GPU": 2}, GPU], 3, 3.8),  # the poorest machine decides
        ({"gpus_per_worker": 0.1}, [{"CPU": 16, "GPU": 0.9}], 9, 1.68),  # 0.9 / 0.1 is nine
        ({"concurrency": 1, "workers_per_trial": 2}, [GPU, GPU], 1, 3.8),  # one worker on each
        ({"device": "cpu", "concurrency": 1}, [{"CPU": 2}, {"CPU": 4}], 1, 3.8),  # never more than a machine has
        ({"device": "cpu", "concurrency": 1, "workers_per_trial": 2}, [{"CPU": 4}, {"CPU": 2}], 1, 1.9),
        ({"device": "cpu", "cpus_per_worker": 2}, [{"CPU": 4}, {"CPU": 4}], 2, 2),
    ],
)
def test_workers_fit_on_the_machines_they_share(
    budget: dict[str, Any], machines: list[dict[str, float]], lanes: int, cpus: float
) -> None:
    spec = BudgetSpec(**budget)
    shape, num_lanes = choose_shape(spec, spec.concurrency, machines)
    assert num_lanes == lanes
    assert shape.cpus_per_worker == pytest.approx(cpus, abs=0.011)


@pytest.mark.parametrize(
    ("budget", "machines", "words"),
    [
        (
            {"cpus_per_worker": 6},
            [{"CPU": 4}, {"CPU": 4}],
            "1 workers with 6 CPUs each, the cluster has 8 CPUs on 2 machines",
        ),
        ({"concurrency": 3, "cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 4}], "3 trials at once ask for 9 CPUs"),
        ({"gpus_per_worker": 2}, [GPU, GPU], "1 x 2 GPU, the cluster has 2 on 2 machines"),
    ],
)
def test_a_worker_cannot_straddle_two_machines(
    budget: dict[str, Any], machines: list[dict[str, float]], words: str
) -> None:
    spec = BudgetSpec(**budget)
    with pytest.raises(InputError, match=words):
        choose_shape(spec, spec.concurrency, machines)
