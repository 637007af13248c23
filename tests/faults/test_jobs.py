"""A sweep that runs as a Ray job, stopped in mid-search by the people who run the cluster."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from faults_support import NAME, TITLES, Sweep
from heads import STORE, RayHead, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def ask(head: RayHead, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the head's dashboard answers."""
    headers = {"Authorization": f"Bearer {head.environ['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def submit(head: RayHead, entrypoint: str, environment: dict[str, str]) -> str:
    """Submits a job; a head that is up may still be without the agent that starts jobs."""
    deadline = time.monotonic() + 60
    while True:
        try:
            body = {"entrypoint": entrypoint, "runtime_env": {"env_vars": environment}}
            return str(ask(head, "", body)["submission_id"])
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_a_job_that_is_stopped_ends_in_order_and_goes_on(patient_sweep: Sweep, undisturbed: Sweep) -> None:
    """Ray gives it three seconds by default, then kills it: what counts is written down by then."""
    sweep = patient_sweep
    sweep.plant(["3-pause"])
    with running_head(2, STORE, **sweep.environment) as head:
        job = submit(head, sweep.command(), sweep.environment)
        sweep.wait_until(sweep.has_paused, None, 180)
        asked = subprocess.Popen(
            ["ray", "job", "stop", "--address", head.dashboard, job],
            env=head.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        sweep.wait_until(lambda: ask(head, f"{job}/logs")["logs"].count("Stopping after"), None, 60)
        sweep.go_on()
        out, _ = asked.communicate(timeout=120)
        assert asked.returncode == 0, out
        assert ask(head, job)["status"] == "STOPPED"
        records = sweep.records()
        assert records[-1]["event"] == "interrupted"
        (trial,) = (trial for trial in sweep.trials() if trial.outcome in (None, "interrupted"))
        assert len(trial.epochs) == 3, "the running epoch was finished"
        left = sweep.wait_until(lambda: not sweep.processes(*TITLES["worker"], *TITLES["controller"]), None, 60)
        assert left, "nothing of the job is left on the cluster"
        out = sweep.finish("resume", NAME, RAY_ADDRESS=head.gcs, **head.environ)
        assert "goes on: trial 0 after epoch 3" in out
    assert sweep.numbers() == undisturbed.numbers()
    sweep.assert_nothing_is_left()
