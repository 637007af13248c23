"""An MLflow server that hangs, refuses and dies under a sweep: training never waits, and every record arrives once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_support import Sweep
from servers import Gate, Server, reported, told

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.kill()


def test_a_server_that_hangs_refuses_and_dies(
    patient_sweep: Sweep, undisturbed: Sweep, server: Server, tmp_path: Path
) -> None:
    sweep = patient_sweep
    server.start()
    gate = Gate(server.port)
    with gate.serving():
        sweep.plant(["2-pause"] * 6, MLFLOW_TRACKING_URI=gate.uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
        server.await_answer()
        process = sweep.start()
        sweep.await_pause(process)
        gate.set("hold")
        sweep.go_on()
        gate.await_asked()
        # Two whole trials pass while MLflow says nothing at all.
        for _ in range(2):
            sweep.await_pause(process)
            sweep.go_on()
        sweep.await_pause(process)
        gate.set("refuse")
        gate.await_asked()
        gate.set("hold")
        gate.await_asked()
        server.kill()  # in mid-write
        gate.set("open")
        gate.await_asked()
        sweep.go_on()
        sweep.await_pause(process)
        server.start()
        server.await_answer()
        gate.set("slow")
        sweep.go_on()
        sweep.await_pause(process)
        gate.await_asked()
        gate.set("open")
        sweep.go_on()
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "MLflow is away" in err, "people are told what waits"
    assert sweep.numbers() == undisturbed.numbers()
    assert "models:/faulty/1" in out
    runs = told(tmp_path / "mlflow.db")
    assert reported(sweep.trials()) == {name: points for name, points in runs.items() if name.startswith("trial")}
    sweep.assert_nothing_is_left()
