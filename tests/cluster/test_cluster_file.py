"""`cluster.yaml` is one that Ray's launcher takes, and says of itself what the sweep's plan counts on."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from search_spaces.spec import BudgetSpec
from tuner.cluster.capacity import potential_machines
from tuner.cluster.ray_cluster import choose_shape

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` does before it asks AWS anything."""
    prepared: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    return prepared


def test_rays_launcher_takes_it(settings: dict[str, Any]) -> None:
    validate_config(settings)
    settings["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(settings)
    del settings["available_node_types"]["gpu"]["min_worker"]


def test_no_gpu_is_paid_for_while_nothing_runs(settings: dict[str, Any]) -> None:
    types = settings["available_node_types"]
    workers = [kind for name, kind in types.items() if name != settings["head_node_type"]]
    assert workers
    assert all(kind["min_workers"] == 0 for kind in workers)
    assert "GPU" not in types[settings["head_node_type"]]["resources"]
    assert settings["idle_timeout_minutes"] <= 10


def test_a_sweep_plans_with_all_the_gpus_it_may_get(settings: dict[str, Any]) -> None:
    machines = [{"CPU": 1.0, "GPU": 0.0}, *potential_machines(settings, {"head": 1})]
    shape, lanes = choose_shape(BudgetSpec(), "auto", machines)
    assert (lanes, shape.gpus_per_worker) == (settings["max_workers"], 1)
    assert 1 < shape.cpus_per_worker < settings["available_node_types"]["gpu"]["resources"]["CPU"]


def test_the_nodes_install_the_pinned_versions_and_ask_for_the_token(settings: dict[str, Any]) -> None:
    setup = "\n".join(settings["setup_commands"])
    assert "--constraint ~/thaw/constraints.txt ~/thaw" in setup
    assert (ROOT / "constraints.txt").is_file()
    assert "RAY_AUTH_MODE=token" in setup
    mounts = settings["file_mounts"]
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    needed = packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    assert {f"/home/ubuntu/thaw/{name}": name for name in needed | set(project["project"]["license-files"])} == mounts
    # The entrypoint of a job is looked up on the PATH with which Ray was started.
    for command in settings["head_start_ray_commands"] + settings["worker_start_ray_commands"]:
        assert command.startswith(". ~/thaw.env")


def test_the_commands_are_whole(settings: dict[str, Any]) -> None:
    """Folded lines of YAML are easily folded wrong."""
    for part in (
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        assert settings[part]
        for command in settings[part]:
            assert "\n" not in command
            subprocess.run(["bash", "-n", "-c", command], check=True)
