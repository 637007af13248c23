"""A lane's loop in this process, with a switchboard that is played: what is left when it waits for the next job."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from training_support import DEVICE, train

from trainables.backbones.weights import store_weights
from trainables.backbones.zoo import load_backbone
from trainables.config import TrialConfig
from trainables.jobs import BEST_CHECKPOINT, Message, ScoreJob, TrainJob
from trainables.lanes import lane
from trainables.lanes.switchboard import Order
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.replicas import ReplicatedRun
from trainables.training.workbench import Workbench


class Board:
    """Hands out jobs one after the other, hears what is said of them, and looks for what the last one left behind.

    Args:
        jobs: What to hand out.
        drop_after: How often the lane may ask whether its job is still wanted before it is not.
        notice_after: How often it may ask whether its machine goes away before it does.
    """

    def __init__(self, jobs: list[TrainJob | ScoreJob], drop_after: int = 10**9, notice_after: int = 10**9) -> None:
        self.jobs, self.drop_after = [job.model_dump(mode="json") for job in jobs], drop_after
        self.notice_after, self.looks = notice_after, 0
        self.heard: list[list[Message]] = []
        self.alive: list[list[str]] = []
        self.runs: list[tuple[weakref.ref[Any], ...]] = []
        self.questions = 0

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self, f"on_{name}"))

    def on_next_job(self, lane: int, last_number: int, node: str = "", group: str = "") -> Order | None:
        self.alive.append([str(reference()) for run in self.runs for reference in run if reference() is not None])
        assert last_number == (len(self.heard) or -1)
        if len(self.heard) == len(self.jobs):
            return None
        self.heard.append([])
        self.questions = 0
        return Order(len(self.heard), self.jobs[len(self.heard) - 1], 0)

    def on_report(self, lane: int, number: int, message: Message) -> bool:
        assert number == len(self.heard)
        self.heard[-1].append(message)
        return True

    def on_wants_more(self, lane: int, number: int) -> bool:
        return True

    def on_dropped(self, lane: int, number: int) -> str:
        return "not yet"

    def notice(self) -> str | None:
        self.looks += 1
        return "a node goes away" if self.looks > self.notice_after else None

    def is_dropped(self) -> bool:
        self.questions += 1
        return self.questions > self.drop_after


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Board], None]]:
    """Runs a lane to its end on a played switchboard."""
    import ray.train.torch

    def run_lane(board: Board) -> None:
        class Watched(TrialRun):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                board.runs.append(tuple(map(weakref.ref, (self, self._tail, next(self._tail.parameters())))))

        monkeypatch.setattr(lane, "TrialRun", Watched)
        monkeypatch.setattr(lane, "_LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []) if board.is_dropped() else ([], refs))
        monkeypatch.setattr(ray.train, "get_preemption_info", board.notice)
        lane.lane_loop({"switchboard": board, "lane": 0, "threads": 1, "features": None, "timeout_s": 600.0})

    monkeypatch.setattr(ray.train.torch, "get_device", lambda: DEVICE)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    # Asking Ray itself would start one.
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(lane.logger, "disabled", True)  # pytest keeps what is logged, tracebacks and their frames too
    yield run_lane
    gc.unfreeze()


def test_nothing_of_a_job_is_left_when_the_lane_waits_for_the_next(
    play: Callable[[Board], None], config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """One that ends, one that diverges, one that breaks, one that scores."""
    plain = config(epochs=2)
    wild = config(depth=1, optimizer={"name": "sgd", "lr": 1e6}, epochs=30)
    board = Board(
        [
            TrainJob(config=plain, directory=str(tmp_path / "plain")),
            TrainJob(config=wild, directory=str(tmp_path / "wild")),
            TrainJob(config=plain, directory=str(tmp_path / "unknown metric"), metric="val/beauty"),
            ScoreJob(config=plain, checkpoint=str(tmp_path / "plain" / BEST_CHECKPOINT), side="val"),
            TrainJob(config=plain, directory=str(tmp_path / "again")),
        ]
    )
    play(board)
    assert len(board.runs) == 5
    assert board.alive == [[]] * 6
    assert [messages[-1].get("outcome") or messages[-1]["kind"] for messages in board.heard] == [
        "completed", "diverged", "failed", "score", "completed",
    ]  # fmt: skip
    assert board.heard[2][-1]["reason"] == "KeyError: 'val/beauty'"
    first, again = ([message["metrics"]["val/loss"] for message in board.heard[job]] for job in (0, 4))
    assert first == again == [epoch["val/loss"] for epoch in train(plain)[0]]


def test_a_job_that_is_dropped_in_mid_epoch_leaves_nothing(
    play: Callable[[Board], None], config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    job = TrainJob(config=config(epochs=5), directory=str(tmp_path))
    board = Board([job, job], drop_after=4)  # three steps an epoch: in the second epoch's second step
    play(board)
    assert [[message["epoch"] for message in messages] for messages in board.heard] == [[1], [1, 2]]
    assert board.alive == [[]] * 3


def test_a_lane_whose_machine_goes_away_leaves_between_epochs(
    play: Callable[[Board], None], config: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reports nothing but epochs that are kept; the successor goes on from them."""
    job = TrainJob(config=config(epochs=4), directory=str(tmp_path))
    board = Board([job], notice_after=2)  # before the job, and after its first epoch
    with pytest.raises(RuntimeError, match="about to be taken away: a node goes away"):
        play(board)
    successor = Board([job])
    play(successor)
    epochs = [[message["epoch"] for message in messages] for messages in (board.heard[0], successor.heard[0])]
    assert epochs == [[1, 2], [1, 2, 3, 4]]
    assert successor.heard[0][:2] == board.heard[0]
    losses = [message["metrics"]["val/loss"] for message in successor.heard[0]]
    assert losses == [epoch["val/loss"] for epoch in train(job.config)[0]]
    # Alone on one machine there is nobody to tell, and nobody is asked.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    alone = Board([TrainJob(config=config(epochs=1), directory=str(tmp_path / "alone"))], notice_after=0)
    play(alone)
    assert alone.looks == 0


@pytest.mark.parametrize("call", ["next_job", "report", "wants_more", "dropped"])
def test_a_lane_that_nobody_can_hear_blames_no_trial(
    play: Callable[[Board], None],
    config: Callable[..., TrialConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """It ends, having said nothing that would end the trial; the successor goes on from what is kept."""
    lost = object()
    job = TrainJob(config=config(epochs=3), directory=str(tmp_path))
    board = Board([job], drop_after=4 if call == "dropped" else 10**9)  # in the second epoch
    answer = getattr(board, f"on_{call}")
    setattr(board, f"on_{call}", lambda *of: lost if call == "dropped" or any(board.heard) else answer(*of))

    def get(given: Any) -> Any:
        if given is lost:
            raise ray.exceptions.ActorUnavailableError("the wire is cut", None)
        return given

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        play(board)
    assert [message["epoch"] for message in board.heard[0]] == ([1, 2, 3] if call == "next_job" else [1])
    successor = Board([job])
    play(successor)
    losses = [message["metrics"]["val/loss"] for message in successor.heard[0]]
    assert losses == [epoch["val/loss"] for epoch in train(job.config)[0]]


def test_a_trial_in_folds_goes_on_where_it_stopped_and_is_fitted_again(
    play: Callable[[Board], None], config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    plain = config(epochs=3, depth=2)
    trial = plain.model_copy(update={"data": plain.data.model_copy(update={"folds": 3})})
    job = TrainJob(config=trial, directory=str(tmp_path / "trial"))
    board = Board([job], notice_after=2)
    with pytest.raises(RuntimeError, match="about to be taken away"):
        play(board)
    # What is kept is one model that can be scored; the refit keeps its last epoch, and starts again if that is another.
    refit, kept = trial.refit(), str(tmp_path / "refit" / BEST_CHECKPOINT)
    refits = [TrainJob(config=refit, directory=str(tmp_path / "refit"), last_epoch=last) for last in (2, 1)]
    scores = [ScoreJob(config=refit, checkpoint=kept, side="test") for _ in refits]
    first = ScoreJob(config=trial.replicas()[0], checkpoint=str(tmp_path / "trial" / BEST_CHECKPOINT), side="test")
    successor = Board([job, first, refits[0], scores[0], refits[1], scores[1]])
    play(successor)
    trained, _, two, after_two, one, after_one = successor.heard
    assert [message["epoch"] for message in trained] == [1, 2, 3]
    assert trained[0] == board.heard[0][0]
    run = ReplicatedRun(trial, Workbench(), Ranks(DEVICE))
    assert [message["metrics"]["val/loss"] for message in trained] == [run.run_epoch()["val/loss"] for _ in range(3)]
    assert [(message["epoch"], message["outcome"]) for message in two] == [(1, None), (2, "completed")]
    assert [(message["epoch"], message["outcome"]) for message in one] == [(1, "completed")]
    assert not any(name.startswith("val/") for name in two[0]["metrics"])
    alone = TrialRun(refit, Workbench(), Ranks(DEVICE))
    for expected in (after_one, after_two):
        alone.run_epoch()
        assert expected[0]["metrics"] == alone.evaluate("test").metrics


def test_a_trial_that_ends_before_its_schedule_keeps_its_best_epoch(
    play: Callable[[Board], None], config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = config(epochs=6, depth=2)
    whole = TrainJob(config=trial, directory=str(tmp_path / "whole"), metric="val/loss", mode="max")
    short = whole.model_copy(update={"directory": str(tmp_path / "short"), "last_epoch": 3})
    board = Board([whole, short])
    play(board)
    first, again = board.heard
    told = [(message["metrics"]["val/loss"], message["is_best"]) for message in first]
    assert [(message["metrics"]["val/loss"], message["is_best"]) for message in again] == told[:3]
    assert [message["outcome"] for message in again] == [None, None, "completed"]
    assert not all(is_best for _, is_best in told[:3]), "the loss falls, and the greatest counts as best"


def test_weights_at_another_place_are_the_same_weights(
    play: Callable[[Board], None], config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """A home that was moved, or is mounted elsewhere, loses no epoch."""
    trial = config(epochs=2, depth=2)
    state = load_backbone("lenet", None, num_classes=5, input_size_px=16, seed=3).model.state_dict()
    jobs = []
    for place in ("here", "there"):
        weights = store_weights(dict(state), "lenet", tmp_path / place)
        there = trial.model_copy(update={"backbone": trial.backbone.model_copy(update={"weights": weights})})
        jobs.append(TrainJob(config=there, directory=str(tmp_path / "trial")))
    board = Board([jobs[0]], notice_after=1)
    with pytest.raises(RuntimeError, match="about to be taken away"):
        play(board)
    shutil.rmtree(tmp_path / "here")
    successor = Board([jobs[1]])
    play(successor)
    assert [message["epoch"] for message in successor.heard[0]] == [1, 2]
    assert successor.heard[0][:1] == board.heard[0], "told again, with its seconds, and not trained again"


def test_what_torch_says_of_a_lone_picture_is_explained(config: Callable[..., TrialConfig]) -> None:
    run = TrialRun(config("resnet18", 0, size_px=32, epochs=1, batch_size=1), Workbench(), Ranks(DEVICE))
    with pytest.raises(ValueError, match="more than 1 value per channel") as refused:
        run.run_epoch()
    run.close()
    assert lane._explain(refused.value).startswith(
        "BatchNorm of a single picture's single pixel; a larger batch_size, or"
    )
