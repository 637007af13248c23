"""The pool and Tune's trial against a real switchboard actor, with stand-ins for what Ray Train starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainables.config import TrialConfig
from trainables.jobs import ScoreJob, TrainJob
from tuner.cluster.lanes import LaneError, LanePool, LaneShape, LanesLostError

pytestmark = pytest.mark.ray

SHAPE = LaneShape(2, 0.3, 0.0, 1)


class BrokenPool(LanePool):
    """Ray Train gives every lane up as soon as it is started."""

    num_fits = 0

    def _fit(self, lane: int, board: Any) -> None:
        from ray.train import TrainingFailedError

        self.num_fits += 1
        raise TrainingFailedError("no GPU here\nand a long traceback")


class StumblingPool(LanePool):
    """Workers that answer one job each and then break the whole fit, as a rank's failure does at last."""

    num_fits = 0

    def _fit(self, lane: int, board: Any) -> None:
        import ray
        from ray.train import TrainingFailedError

        self.num_fits += 1
        order = ray.get(board.next_job.remote(lane, -1))
        if order is not None:
            ray.get(board.report.remote(lane, order.number, {"kind": "failed", "reason": f"fit {self.num_fits}"}))
            raise TrainingFailedError("broken")


class HomelessPool(LanePool):
    """The first lane's machine goes after an epoch, and there is no other for it; the second lane has one."""

    num_fits = 0

    def _fit(self, lane: int, board: Any) -> None:
        import ray
        from ray.train import ControllerError
        from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

        self.num_fits += lane == 0
        if lane == 1:
            time.sleep(1)  # not the first to be lent
        if lane == 0 and self.num_fits > 1:
            time.sleep(0.2)
            raise ControllerError(WorkerGroupStartupTimeoutError(1))
        last = -1
        while (order := ray.get(board.next_job.remote(lane, last))) is not None:
            last = order.number
            for epoch in range(order.reported_epochs + 1, 4):
                message = {"kind": "epoch", "epoch": epoch, "metrics": {"lane": lane}, "outcome": None}
                message |= {"outcome": "completed"} if epoch == 3 else {}
                ray.get(board.wants_more.remote(lane, order.number))
                ray.get(board.report.remote(lane, order.number, message))
                if lane == 0:
                    raise ControllerError(WorkerGroupStartupTimeoutError(1))


@pytest.fixture
def homeless(ray_cluster: None) -> Iterator[HomelessPool]:
    yield from closing(HomelessPool(SHAPE, 2, "nowhere"))  # type: ignore[misc]


def test_a_job_goes_on_elsewhere_when_its_lane_has_no_place(
    homeless: HomelessPool, config: Callable[..., TrialConfig]
) -> None:
    job = TrainJob(config=config(), directory="nowhere")
    messages = list(homeless.run(job))
    assert [message["epoch"] for message in messages] == [1, 2, 3]
    assert [message["metrics"]["lane"] for message in messages] == [0, 1, 1]
    again = list(homeless.run(job))
    assert [message["metrics"]["lane"] for message in again] == [1, 1, 1], "a lane without workers is lent to nobody"
    assert homeless.lost is None
    assert homeless.num_fits > 3, "waiting for a place is nobody's failure"


@pytest.fixture
def score(config: Callable[..., TrialConfig]) -> ScoreJob:
    return ScoreJob(config=config(), checkpoint="nowhere", side="val")


def closing(pool: LanePool) -> Iterator[LanePool]:
    pool.start()
    yield pool
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 10
    assert not any(thread.is_alive() for thread in pool._threads)


@pytest.fixture
def broken(ray_cluster: None) -> Iterator[BrokenPool]:
    yield from closing(BrokenPool(SHAPE, 2, "nowhere"))  # type: ignore[misc]


@pytest.fixture
def stumbling(ray_cluster: None) -> Iterator[StumblingPool]:
    yield from closing(StumblingPool(SHAPE, 1, "nowhere"))  # type: ignore[misc]


def test_when_no_lane_comes_up_whoever_waits_is_told_why(broken: BrokenPool, score: ScoreJob) -> None:
    with pytest.raises(LanesLostError, match=r"every lane is lost; the last one: .*no GPU here$"):
        next(broken.run(score))
    assert broken.lost is not None
    assert broken.num_fits == 6, "each of two lanes was started three times"
    assert broken.num_ready() == 0


def test_a_lane_that_gets_somewhere_is_never_given_up(stumbling: StumblingPool, score: ScoreJob) -> None:
    for number in range(1, 8):
        with pytest.raises(LaneError, match=f"fit {number}"):
            next(stumbling.run(score))
    assert stumbling.lost is None


class Clients:
    """Trials on a switchboard whose one lane is played by the test."""

    def __init__(self) -> None:
        import ray

        from trainables.lanes.switchboard import Switchboard

        self.name = f"played-{time.monotonic_ns()}"
        options = {"num_cpus": 0, "name": self.name, "namespace": "thaw", "max_concurrency": 100}
        self.board = ray.remote(Switchboard).options(**options).remote()

    def config(self, number: int) -> dict[str, Any]:
        return {
            "switchboard": self.name,
            "namespace": "thaw",
            "number": number,
            "job": {"directory": f"trials/{number}"},
        }

    def ask(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self.board, method).remote(*args), timeout=20)


@pytest.fixture
def clients(ray_cluster: None) -> Iterator[Clients]:
    import ray

    played = Clients()
    yield played
    ray.kill(played.board)


def epoch(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number, "metrics": {"val/accuracy": 0.5}, **more}


def test_a_trial_turns_messages_into_steps_and_gives_its_lane_back(clients: Clients) -> None:
    from trainables.lanes.trial import EPOCH, OUTCOME, REASON, LaneLostError, LaneTrial

    trial = LaneTrial(clients.config(3))
    coming = clients.board.next_job.remote(0, -1)
    first = trial_step(clients, trial, coming, [epoch(1), epoch(2, outcome="diverged", reason="loss is nan")])
    assert (first[EPOCH], first[OUTCOME], first["done"], first["val/accuracy"]) == (1, None, False, 0.5)
    second = trial.step()
    assert (second[EPOCH], second[OUTCOME], second[REASON], second["done"]) == (2, "diverged", "loss is nan", True)
    assert clients.ask("borrow", "somebody else") == 0, "the lane is free at once"
    clients.ask("give_back", "somebody else")

    assert trial.reset_config(clients.config(4))
    coming = clients.board.next_job.remote(0, -1)
    failed = trial_step(clients, trial, coming, [{"kind": "failed", "reason": "no memory"}])
    assert (failed[EPOCH], failed[OUTCOME], failed[REASON], failed["done"]) == (0, "failed", "no memory", True)
    assert clients.ask("borrow", "somebody else") == 0
    clients.ask("give_back", "somebody else")

    assert trial.reset_config(clients.config(5))
    coming = clients.board.next_job.remote(0, -1)
    with pytest.raises(LaneLostError, match="lane 0 is lost"):
        trial_step(clients, trial, coming, [], then=("close_lane", 0, "lane 0 is lost"))
    trial.cleanup()


def trial_step(
    clients: Clients, trial: Any, coming: Any, messages: list[dict[str, Any]], then: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """The trial's first step while the lane answers with ``messages``, and the switchboard is asked for ``then``."""
    import threading

    import ray

    def play() -> None:
        order = ray.get(coming)
        for message in messages:
            clients.ask("report", 0, order.number, message)
        if then:
            clients.ask(*then)

    lane = threading.Thread(target=play)
    lane.start()
    try:
        return trial.step()
    finally:
        lane.join(20)


def test_a_dead_trial_is_known_by_its_number_even_while_it_waits(clients: Clients) -> None:
    """An actor that died before its first epoch has told nobody its name."""
    import ray

    from trainables.lanes.trial import LaneTrial, client_prefix

    trials = {number: LaneTrial(clients.config(number)) for number in (1, 11)}
    waiting = {number: clients.board.borrow.remote(trial._client) for number, trial in trials.items()}
    while not ray.wait([waiting[1]], timeout=0.1)[0]:  # its question may not have arrived yet
        clients.ask("give_back_all", client_prefix(1))
    clients.board.next_job.remote(0, -1)
    with pytest.raises(RuntimeError, match="given up while it waited"):
        ray.get(waiting[1], timeout=20)
    assert ray.get(waiting[11], timeout=20) == 0, "trial 11 is another one"
