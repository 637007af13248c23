"""A sweep as a Ray job, on heads that this test starts: the home behind a storage URI, the token asked for."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from heads import ROOT, RayHead, free_port, running_head
from ray._private.runtime_env.packaging import create_package
from ray.util import get_node_ip_address

from tuner.records.journal import read_trials

TINY = ["search.num_trials=2", "budget.epochs=2", "budget.concurrency=1", "model.weights=none", "baselines=[]"]
JOB_TIMEOUT_S = 400
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def sweep(*overrides: str) -> list[str]:
    return ["-m", "tuner", "sweep", "digits", *(part for each in (*TINY, *overrides) for part in ("--set", each))]


def settings(bucket_uri: str, tmp_path: Path) -> dict[str, str]:
    """What a cluster's head has in its environment; the driver's own folder is not that of the user who tests."""
    (tmp_path / "driver").mkdir()
    return {
        "THAW_HOME": bucket_uri,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "THAW_CACHE": str(tmp_path / "node"),
        "HOME": str(tmp_path / "driver"),
    }


def check_home(bucket: Path, node: Path) -> None:
    """The trials are in the home, and the worker has mapped a copy of the one table in it."""
    folder = bucket / "sweeps" / "digits"
    trials = read_trials(folder / "journal.jsonl")
    assert [(trial.number, trial.outcome, len(trial.epochs)) for trial in trials] == [
        (0, "completed", 2),
        (1, "completed", 2),
    ]
    for trial in trials:
        assert (folder / "trials" / f"{trial.number:04d}" / "best.ckpt").is_file()
    (manifest,) = bucket.glob("tables/*/manifest.json")
    fingerprint = json.loads(manifest.read_text())["fingerprint"]
    assert [path.name.partition("-")[0] for path in node.glob("tables/[!.]*")] == [fingerprint]


def test_the_package_of_a_job_holds_the_code_and_nothing_heavy(tmp_path: Path) -> None:
    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
        size = sum(info.file_size for info in package.infolist())
    code = {
        path.relative_to(ROOT).as_posix()
        for room in ("trainables", "search_spaces", "tuner")
        for path in (ROOT / room).rglob("*")
        if path.suffix in {".py", ".yaml", ".json"}
    }
    assert "trainables/data/table.py" in code
    assert code <= names
    assert not {name.split("/")[0] for name in names} & {".git", ".venv", "data", "shared", "tests"}
    assert size < 10e6


def submitted(command: list[str], head: RayHead) -> subprocess.CompletedProcess[str]:
    """A submission and its job's end; a head that is up may still be without the agent that starts jobs."""
    deadline = time.monotonic() + 60
    while True:
        job = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=head.environ,
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
        )
        if "No available agent to submit job" not in job.stderr or time.monotonic() > deadline:
            return job
        time.sleep(1)


@pytest.fixture
def head() -> Iterator[RayHead]:
    with running_head(2) as head:
        yield head


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
def test_a_submitted_sweep_leaves_its_trials_in_the_home(
    head: RayHead, bucket: Path, bucket_uri: str, node: Path, tmp_path: Path
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=10)
    refused.value.close()
    assert refused.value.code == 401
    environment = json.dumps({"env_vars": settings(bucket_uri, tmp_path)})
    command = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--runtime-env-json"]
    job = submitted([*command, environment, "--", "python", *sweep()], head)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "models:/digits/1 is champion" in job.stdout
    check_home(bucket, node)
    # From any other machine, which has nothing but the address of the home.
    (tmp_path / "elsewhere").mkdir()
    table = subprocess.run(
        [sys.executable, "-m", "tuner", "trials", "digits", "--format", "csv"],
        env={**head.environ, "THAW_HOME": bucket_uri, "HOME": str(tmp_path / "elsewhere")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(table.stdout.splitlines()) == 3
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (3,)
    database.close()


@pytest.fixture
def growing_head(tmp_path: Path, node: Path) -> Iterator[RayHead]:
    """A head with one processor, whose autoscaler starts a machine with two when something asks for them."""
    port = free_port()
    head_id = "f" * 51 + "00000"
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "head_node_id": head_id,
        "gcs_address": f"{get_node_ip_address()}:{port}",
    }
    types = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    launcher = {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        # Fields that `ray up` fills in for a provider of its own.
        **{f"{part}_commands": [] for part in COMMANDS},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "auth": {},
    }
    # Where `ray up` puts it on a head: in the user's folder.
    (tmp_path / "user").mkdir()
    path = tmp_path / "user" / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(launcher))
    environ = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "RAY_CLOUD_INSTANCE_ID": head_id,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
        "RAY_FAKE_CLUSTER": "1",
        "THAW_CACHE": str(node),  # a machine's own, so it goes with what starts the machine
    }
    with running_head(1, f"--autoscaling-config={path}", port=port, **environ) as head:
        yield head


ALONE_AGAIN = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
seen = len(ray.nodes())
while sum(node["Alive"] for node in ray.nodes()) > 1:
    time.sleep(1)
print(seen)
"""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
def test_a_machine_comes_for_the_sweep_and_goes_after_it(
    growing_head: RayHead, bucket: Path, bucket_uri: str, node: Path, tmp_path: Path
) -> None:
    environ = growing_head.environ | settings(bucket_uri, tmp_path) | {"RAY_ADDRESS": growing_head.gcs}

    def run(*arguments: str, **others: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=ROOT,
            env=environ | others,
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
        )

    wide = sweep("budget.cpus_per_worker=2")
    fixed = run(*wide)
    assert fixed.returncode == 2, fixed.stdout + fixed.stderr
    assert "1 workers with 2 CPUs each, the cluster has 1 CPUs" in fixed.stderr
    grown = run(*wide, HOME=str(tmp_path / "user"))
    assert grown.returncode == 0, grown.stdout + grown.stderr
    assert "The cluster starts machines as they are needed" in grown.stderr
    check_home(bucket, node)
    alone = run("-c", ALONE_AGAIN, growing_head.gcs)
    # Ray may have printed something of its own before.
    assert (alone.returncode, alone.stdout.split()[-1:]) == (0, ["2"]), alone.stderr
