"""Lanes on a real Ray: jobs through the switchboard to warm workers, and what happens when something breaks."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import DEVICE, num_stages, numbers, train

from trainables.config import SplitConfig, TrialConfig
from trainables.jobs import BEST_CHECKPOINT, LAST_CHECKPOINT, Message, ProbeJob, ScoreJob, TrainJob
from trainables.ranks import Ranks
from trainables.training.checkpoint import load_checkpoint
from trainables.training.loop import TrialRun
from trainables.training.probing import run_probe
from trainables.training.workbench import Workbench
from tuner.cluster.lanes import LaneError, LanePool, LaneShape

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Lanes:
    """A lane of one worker and one of two, both with one thread per worker, as this process has."""

    one: LanePool
    two: LanePool


@pytest.fixture(scope="module")
def lanes(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    import ray

    storage = str(tmp_path_factory.mktemp("ray"))
    found = Lanes(*(LanePool(LaneShape(workers, 0.3, 0.0, 1), 1, storage) for workers in (1, 2)))
    before = {key for key, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}
    found.one.start()
    found.two.start()
    yield found
    found.one.close()
    found.two.close()
    left = {key for key, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}
    assert left <= before, "a placement group stayed behind"
    wait_until(lambda: not worker_pids())


def worker_pids() -> set[int]:
    """Training workers among the descendants of this process; other Rays on this machine are not ours."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), [os.getpid()]
    while todo:
        for pid in children.get(todo.pop(), []):
            todo.append(pid)
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                    found.add(pid)
            except OSError:
                continue
    return found


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def run(pool: LanePool, config: TrialConfig, folder: Path, **more: Any) -> list[Message]:
    return list(pool.run(TrainJob(config=config, directory=str(folder), **more)))


def epochs_of(messages: list[Message]) -> list[dict[str, float]]:
    """The numbers of each epoch, once it is sure that none is missing or there twice."""
    assert [message["epoch"] for message in messages] == list(range(1, len(messages) + 1))
    assert [message.get("outcome") for message in messages] == [None] * (len(messages) - 1) + ["completed"]
    return [numbers(message["metrics"]) for message in messages]


def test_a_warm_lane_gives_the_numbers_of_this_process(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    wanted = config(depth=1, optimizer={"lr": 3e-3}, epochs=5)
    other = config("mobilenet_v2", depth=3, compute={"precision": "bf16"}, epochs=1)
    first = epochs_of(run(lanes.one, wanted, tmp_path / "first"))
    run(lanes.one, other, tmp_path / "other")
    again = epochs_of(run(lanes.one, wanted, tmp_path / "again"))
    expected, end = train(wanted)
    assert first == again == expected
    for name in ("first", "again"):
        tail = load_checkpoint(str(tmp_path / name / LAST_CHECKPOINT)).tail
        assert all(torch.equal(tensor, end[f"tail/{key}"]) for key, tensor in tail.items())


def test_two_workers_give_the_numbers_of_one(lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    wanted = config(depth=1, optimizer={"name": "sgd", "lr": 0.05}, epochs=3)
    first = epochs_of(run(lanes.two, wanted, tmp_path / "first"))
    run(lanes.two, config(depth=0, epochs=1), tmp_path / "other")
    again = epochs_of(run(lanes.two, wanted, tmp_path / "again"))
    assert first == again
    for found, expected in zip(first, train(wanted)[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)  # see test_two_ranks


@pytest.mark.parametrize("workers", ["one", "two"])
def test_a_lane_answers_a_probe_and_trains_on(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path, workers: str
) -> None:
    pool = getattr(lanes, workers)
    job = ProbeJob.of(config("lenet"), num_stages("lenet", 16))
    (answer,) = pool.run(job)
    expected = run_probe(job, Workbench(), Ranks(DEVICE))["probes"]
    assert [{**probe, "seconds": 0} for probe in answer["probes"]] == [{**probe, "seconds": 0} for probe in expected]
    wanted = config("lenet", 2, head_init="probe", epochs=1)
    (epoch,) = epochs_of(run(pool, wanted, tmp_path))
    assert epoch == pytest.approx(train(wanted)[0][0], rel=1e-4)  # see test_two_ranks


@pytest.mark.parametrize("workers", ["one", "two"])
def test_the_best_checkpoint_is_the_best_epochs(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path, workers: str
) -> None:
    """By its own record, and by what it scores. Wanted is a high loss, so that the best epoch is not the last."""
    pool = getattr(lanes, workers)
    wanted = config(optimizer={"lr": 0.05}, epochs=6)
    messages = run(pool, wanted, tmp_path, metric="val/loss", mode="max")
    losses = [message["metrics"]["val/loss"] for message in messages]
    best = losses.index(max(losses))
    assert best < 5
    assert [message["is_best"] for message in messages] == [
        loss > max([0.0, *losses[:position]]) for position, loss in enumerate(losses)
    ]
    checkpoint = tmp_path / BEST_CHECKPOINT
    assert load_checkpoint(str(checkpoint)).meta["epoch"] == best + 1
    (score,) = pool.run(ScoreJob(config=wanted, checkpoint=str(checkpoint), side="val"))
    assert {f"val/{k}": v for k, v in score["metrics"].items()} == {
        k: v for k, v in messages[best]["metrics"].items() if k.startswith("val/")
    }
    here = TrialRun(wanted, Workbench(), Ranks(DEVICE))
    here.restore(load_checkpoint(str(checkpoint)))
    assert score["confusion"] == here.evaluate("val").confusion.tolist()


def test_a_job_goes_on_from_its_directory_and_repeats_only_what_was_not_heard(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """Dropped after 2 epochs; then asked for by one who knows 1, and by one who knows all."""
    wanted = config(epochs=4, optimizer={"lr": 3e-3})
    expected = train(wanted)[0]
    started = lanes.one.run(TrainJob(config=wanted, directory=str(tmp_path)))
    heard = [numbers(next(started)["metrics"]) for _ in range(2)]
    started.close()
    assert heard == expected[:2]
    later = run(lanes.one, wanted, tmp_path, reported_epochs=1)
    assert [message["epoch"] for message in later] == [2, 3, 4]
    assert [numbers(message["metrics"]) for message in later] == expected[1:]
    (last,) = run(lanes.one, wanted, tmp_path, reported_epochs=4)
    assert (last["epoch"], last["outcome"], numbers(last["metrics"])) == (4, "completed", expected[3])


@pytest.mark.parametrize("damage", ["cut", "lost best", "another trial's"])
def test_storage_that_was_damaged_costs_time_and_no_trial(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path, damage: str
) -> None:
    wanted = config(epochs=2, optimizer={"lr": 3e-3})
    whole = epochs_of(run(lanes.one, wanted if damage != "another trial's" else config(epochs=2), tmp_path))
    if damage == "cut":
        content = (tmp_path / LAST_CHECKPOINT).read_bytes()
        (tmp_path / LAST_CHECKPOINT).write_bytes(content[: len(content) // 2])
    if damage == "lost best":
        (tmp_path / BEST_CHECKPOINT).unlink()
    found = epochs_of(run(lanes.one, wanted, tmp_path))
    assert found == train(wanted)[0]
    assert (found == whole) == (damage != "another trial's")
    assert load_checkpoint(str(tmp_path / BEST_CHECKPOINT)).meta["config"] == wanted.model_dump(mode="json")


def test_a_job_that_fails_leaves_the_same_worker_to_the_next(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    good = config(epochs=1)
    run(lanes.one, good, tmp_path / "before")
    workers = worker_pids()
    lost = good.model_copy(update={"data": good.data.model_copy(update={"table": str(tmp_path / "no table")})})
    with pytest.raises(LaneError, match=r"InputError: image table .*no table: not there"):
        run(lanes.one, lost, tmp_path / "lost")
    with pytest.raises(LaneError, match="freeze_depth: 99 is outside 0 to 4"):
        run(lanes.one, good.model_copy(update={"freeze_depth": 99}), tmp_path / "deep")
    with pytest.raises(LaneError, match=r"FileNotFoundError: .*never"):
        list(lanes.one.run(ScoreJob(config=good, checkpoint=str(tmp_path / "never"), side="val")))
    assert epochs_of(run(lanes.one, good, tmp_path / "after")) == train(good)[0]
    assert worker_pids() >= workers


@pytest.mark.parametrize("workers", ["one", "two"])
def test_a_job_that_diverges_says_so_and_leaves_the_lane_to_the_next(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path, workers: str
) -> None:
    pool, before = getattr(lanes, workers), worker_pids()
    messages = run(pool, config(optimizer={"name": "sgd", "lr": 1e6}, epochs=30), tmp_path / "wild")
    assert messages[-1]["outcome"] == "diverged"
    assert messages[-1]["metrics"] == {}
    assert "loss is" in messages[-1]["reason"]
    assert all(message["outcome"] is None for message in messages[:-1])
    assert len(epochs_of(run(pool, config(epochs=1), tmp_path / "next"))) == 1
    assert worker_pids() >= before


def test_a_dropped_job_frees_its_lane_within_the_epoch(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    split = SplitConfig(train=0.9, val=0.05, test=0.05)
    long = config("resnet18", size_px=96, split=split, batch_size=8)  # 100 steps, some tenths of a second each
    reasons: list[str] = []

    def ask() -> None:
        try:
            next(lanes.one.run(TrainJob(config=long, directory=str(tmp_path / "long"))))
        except LaneError as error:
            reasons.append(str(error))

    asker = threading.Thread(target=ask)
    asker.start()
    time.sleep(3.0)
    lanes.one.take_back("driver-")
    dropped = time.monotonic()
    asker.join(PATIENCE_S)
    assert reasons == ["the lane was taken away"]
    run(lanes.one, config(epochs=1), tmp_path / "next")
    # A step is under a second and a half even on a busy machine, an epoch is half a minute on an idle one.
    assert time.monotonic() - dropped < 8.0
    assert not (tmp_path / "long").exists(), "an epoch that nobody wanted was kept"


def test_a_failure_on_one_rank_of_two_fails_the_job_at_once(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """Rank 0 cannot write its checkpoint while the other rank already waits for it."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LaneError, match=r"NotADirectoryError|FileExistsError"):
        run(lanes.two, config(epochs=3), tmp_path / "file" / "below")


def test_a_worker_that_is_killed_costs_no_epoch(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    wanted = config(epochs=5, optimizer={"lr": 3e-3})
    (victim,) = pids_of(lanes.one, config, tmp_path)
    messages = []
    for message in lanes.one.run(TrainJob(config=wanted, directory=str(tmp_path / "killed"))):
        messages.append(message)
        if message["epoch"] == 2:
            os.kill(victim, signal.SIGKILL)
    assert epochs_of(messages) == train(wanted)[0]
    assert victim not in worker_pids()


def test_one_of_two_workers_that_is_killed_costs_no_epoch(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """The other one's sum over both fails at once, which is nobody's mistake."""
    wanted = config(depth=2, optimizer={"name": "sgd", "lr": 0.05}, epochs=4)
    victims = pids_of(lanes.two, config, tmp_path)
    assert len(victims) == 2
    messages = []
    for message in lanes.two.run(TrainJob(config=wanted, directory=str(tmp_path / "killed"))):
        messages.append(message)
        if message["epoch"] == 2:
            os.kill(max(victims), signal.SIGKILL)
    for found, expected in zip(epochs_of(messages), train(wanted)[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def pids_of(pool: LanePool, config: Callable[..., TrialConfig], tmp_path: Path) -> set[int]:
    """The workers of a pool's lane: the processes that map a table which only this lane was given."""
    plain = config(epochs=1)
    table = tmp_path / "copy of the table"
    shutil.copytree(plain.data.table, table)
    data = plain.data.model_copy(update={"table": str(table)})
    run(pool, plain.model_copy(update={"data": data}), tmp_path / "with the copy")
    return {pid for pid in worker_pids() if str(table) in Path(f"/proc/{pid}/maps").read_text()}


def test_two_workers_go_on_after_the_failure_of_one(
    lanes: Lanes, config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """Their group was restarted by a test before, because the other rank was left in a collective."""
    wanted = config(depth=2, optimizer={"name": "sgd", "lr": 0.05}, epochs=2)
    for found, expected in zip(epochs_of(run(lanes.two, wanted, tmp_path)), train(wanted)[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
