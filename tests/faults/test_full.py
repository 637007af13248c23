"""Disks that are full or cannot be written to: real ones, small and in memory, under a part of a sweep's home."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import fill
from faults_support import Sweep
from servers import rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

Disk = Callable[[Path, str], None]


def test_no_room_for_checkpoints(sweep: Sweep, undisturbed: Sweep, mount: Disk) -> None:
    """One that is freed in time is waited for; one that is not ends the sweep, which goes on when there is room."""
    disk = sweep.paths.trials
    mount(disk, "size=8m")
    sweep.plant(["2-pause", "3-pause"], THAW_PLANTED_PATIENCE_S="4")
    process = sweep.start()
    sweep.await_pause(process)
    filler = fill(disk)
    sweep.go_on()
    time.sleep(2)  # an epoch takes far less: by now its checkpoint could not be written
    filler.unlink()
    freed_at = time.time()
    sweep.await_pause(process)
    filler = fill(disk)
    sweep.go_on()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sweep.records()[-1]["event"] == "interrupted"
    assert "make room" in sweep.records()[-1]["reason"]
    assert "thaw resume faulty" in out
    filler.unlink()
    sweep.finish("resume", "faulty")
    sweep.note_recovery("no room for checkpoints, from there being room on", freed_at)
    assert sweep.numbers() == undisturbed.numbers()
    sweep.assert_nothing_is_left()


def test_a_disk_that_turns_read_only(sweep: Sweep, undisturbed: Sweep, mount: Disk) -> None:
    disk = sweep.paths.trials
    mount(disk, "size=8m")
    sweep.plant(["2-pause"])
    process = sweep.start()
    sweep.await_pause(process)
    mount(disk, "ro")
    sweep.go_on()
    time.sleep(2)  # an epoch takes far less: by now its checkpoint could not be written
    mount(disk, "rw")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sweep.numbers() == undisturbed.numbers()
    assert "models:/faulty/1" in out
    sweep.assert_nothing_is_left()


def test_a_home_that_cannot_be_written_to_is_refused_at_once(sweep: Sweep, mount: Disk) -> None:
    home = Path(sweep.home.root)
    mount(home, "size=8m,ro")
    process = sweep.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert f"{home} cannot be written to (Read-only file system); name another" in err
    assert "Traceback" not in err


def test_no_room_for_what_mlflow_keeps(patient_sweep: Sweep, undisturbed: Sweep, mount: Disk) -> None:
    """The search goes on; MLflow hears the rest, and gets the files, when there is room."""
    sweep = patient_sweep
    disk = sweep.home.artifacts
    mount(disk, "size=64k")
    sweep.plant(["2-pause"] * 6)
    filler = fill(disk)
    process = sweep.start()
    for number in range(6):
        sweep.await_pause(process)
        if number == 1:
            # MLflow is told from the first epoch on; its first run is there just before its first file is refused.
            sweep.wait_until(lambda: rows(sweep.home.mlflow_db, "SELECT run_uuid FROM runs"), process)
            time.sleep(2)
        sweep.go_on()
    sweep.await_record(lambda record: record["event"] == "champion", process)
    filler.unlink()
    mount(disk, "size=64m")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "MLflow is away" in err
    assert "models:/faulty/1" in out
    assert sweep.numbers() == undisturbed.numbers()
    assert list(disk.rglob("MLmodel"))
    sweep.assert_nothing_is_left()


def test_no_room_at_all(patient_sweep: Sweep, undisturbed: Sweep, mount: Disk) -> None:
    """Neither journal nor checkpoints, features or MLflow's database find any: waited for, and then resumed."""
    sweep = patient_sweep
    home = Path(sweep.home.root)
    mount(home, "size=96m")
    sweep.plant(["2-pause", "3-pause"], THAW_PLANTED_PATIENCE_S="6")
    process = sweep.start()
    sweep.await_pause(process)
    filler = fill(home)
    num_records = len(sweep.records())
    sweep.go_on()
    time.sleep(2)  # an epoch takes far less
    assert len(sweep.records()) == num_records
    filler.unlink()
    freed_at = time.time()
    sweep.await_pause(process)
    assert len(sweep.records()) > num_records
    sweep.note_recovery("no room at all, from there being room on", freed_at)
    filler = fill(home)
    sweep.go_on()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "make room" in err
    assert "Traceback" not in err
    assert "thaw resume faulty" in out
    filler.unlink()
    told = sweep.finish("resume", "faulty")
    assert "models:/faulty/1" in told
    assert sweep.numbers() == undisturbed.numbers()
    runs = rows(sweep.home.mlflow_db, "SELECT run_uuid FROM runs")
    assert len(runs) == len(sweep.trials()) + 1
    sweep.assert_nothing_is_left()
