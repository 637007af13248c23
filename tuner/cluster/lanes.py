"""The driver's pool of lanes: starts them, restarts what breaks, hands out jobs of its own, ends them.

A lane is one ``TorchTrainer.fit()`` in a thread of the driver, so that its placement group has an owner that outlives
every trial. Who wants a lane borrows it from the switchboard; the pool never stands between a trial and its lane.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainables.config import FeatureSettings
from trainables.errors import ForPeople, first_line
from trainables.files.outages import StorageAwayError
from trainables.jobs import LAST_WORDS, AnyJob, Message
from trainables.lanes.entry import run_lane

logger = logging.getLogger(__name__)

_STARTS = 3
"""How often in a row a lane is started without getting anywhere before it is given up."""

_WORKER_FAILURES = 2
"""How many deaths of a worker Ray Train mends by itself before it gives up on a lane and it is started anew.

Few: workers that cannot even begin would otherwise die for many minutes before anybody is told.
"""

_NO_SWITCHBOARD = "every lane is lost: the switchboard, which lends them, died"
_MACHINE_START_S = 1800
"""Longest time that a lane waits for its machines: booting, and installing what the workers import."""


class LaneError(ForPeople, RuntimeError):
    """A job failed on a lane, or the lane is lost."""


class LanesLostError(ForPeople, RuntimeError):
    """Every lane is lost: nothing can be trained any more, and nothing that was to be trained is to blame."""


@dataclass(frozen=True)
class LaneShape:
    """What one lane is made of.

    Attributes:
        num_workers: Ranks that train one trial together.
        cpus_per_worker: Ray's bookkeeping of processor cores, may be a fraction.
        gpus_per_worker: 0 trains on CPU; a fraction shares a GPU (one worker per lane then).
        threads_per_worker: Threads that torch uses in each worker.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int


class LanePool:
    """Lanes of one shape, and the switchboard that lends them.

    Args:
        shape: Of each lane.
        num_lanes: How many are started.
        storage: Path or URI where Ray Train keeps its own (small) records.
        features: Where lanes keep what frozen parts computed; None computes it each time.
        timeout_s: Longest time of one step; a trial that takes longer is failed. None: any time.

    Attributes:
        lost: Why there is no lane any more; None while there is, or will be, one.
    """

    def __init__(
        self,
        shape: LaneShape,
        num_lanes: int,
        storage: str,
        features: FeatureSettings | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.shape, self.num_lanes, self.features, self._timeout_s = shape, num_lanes, features, timeout_s
        self.name = f"switchboard-{uuid.uuid4().hex[:12]}"
        self.namespace = "thaw"
        self._storage = storage
        self._board: Any = None
        self._threads: list[threading.Thread] = []
        self._is_closing = threading.Event()
        self._lock = threading.Lock()
        self._num_lost = 0
        self.lost: str | None = None

    def start(self) -> None:
        """Starts the switchboard and every lane, and returns at once; needs a running Ray."""
        import ray

        # Here, because its packages import each other in circles, which breaks when two lanes' threads begin at once.
        import ray.train.torch
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from trainables.lanes.switchboard import Switchboard

        # Beside the driver: no other machine's end may take it away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        ray_options = {
            "num_cpus": 0,
            "name": self.name,
            "namespace": self.namespace,
            "max_concurrency": 1000,
            "scheduling_strategy": here,
        }
        self._board = ray.remote(Switchboard).options(**ray_options).remote()
        for lane in range(self.num_lanes):
            thread = threading.Thread(target=self._keep_lane, args=(lane,), name=f"lane-{lane}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def num_ready(self) -> int:
        """Lanes whose workers are up."""
        import ray

        return int(ray.get(self._board.num_lanes.remote()))

    def take_back(self, client_prefix: str) -> None:
        """Takes back what a dead client held, or one that is kept for later."""
        import ray

        if self.lost is None:
            # A switchboard that died lends nothing; `lost` says so as soon as a lane's thread hears of it.
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(self._board.give_back_all.remote(client_prefix))

    def run(self, job: AnyJob) -> Iterator[Message]:
        """Runs a job of the driver's own on the next free lane and yields its messages.

        Raises:
            LaneError: The job failed, or its lane is lost.
            LanesLostError: Every lane is lost.
            StorageAwayError: The job's checkpoints found no place; it goes on when the sweep does.
        """
        import ray

        client = f"driver-{uuid.uuid4().hex[:8]}"
        values, num_lost = job.model_dump(mode="json"), 0
        try:
            while True:
                ray.get(self._board.borrow.remote(client))
                number = ray.get(self._board.start.remote(client, values))
                while (message := self._next_message(client, number))["kind"] != "dropped":
                    if message.get("outcome") == "interrupted":
                        raise StorageAwayError(message.get("reason") or "checkpoints cannot be written")
                    if message["kind"] == "failed":
                        self.check()
                        raise LaneError(message.get("reason", "it failed"))
                    yield message
                    if message["kind"] in LAST_WORDS or message.get("outcome"):
                        return
                    values, num_lost = {**values, "reported_epochs": message["epoch"]}, 0
                self.check()
                num_lost += 1
                if "reason" not in message or num_lost == _STARTS or self._is_closing.is_set():
                    raise LaneError(message.get("reason", "the lane was taken away"))
                ray.get(self._board.give_back.remote(client))  # its lane is gone: on another one, while there is one
        except ray.exceptions.RayTaskError as error:
            self.check()
            raise LaneError(first_line(error.cause)) from error
        except ray.exceptions.RayActorError as error:
            self.lost = self.lost or _NO_SWITCHBOARD
            raise LanesLostError(self.lost) from error
        finally:
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(self._board.give_back.remote(client))

    def _next_message(self, client: str, number: int) -> Message:
        import ray

        message: Message = ray.get(self._board.message.remote(client, number))
        return message

    def check(self) -> None:
        """Nothing, while there is a lane or will be one.

        Raises:
            LanesLostError: There is none.
        """
        if self.lost is not None:
            raise LanesLostError(self.lost)

    def close(self, timeout_s: float = 20.0) -> None:
        """Ends every lane in an orderly way, so that no placement group stays behind."""
        import ray

        if self._board is None:
            return
        self._is_closing.set()
        # A switchboard that died has ended the lanes already: their workers stop when nobody can want them.
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get([self._board.close_lane.remote(lane) for lane in range(self.num_lanes)])
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ray.kill(self._board)
        self._board = None

    def _keep_lane(self, lane: int) -> None:
        """The lane's thread: keeps it up until the pool closes, or tells everyone that it is lost."""
        import ray

        board = self._board
        try:
            reason = self._fit_again_and_again(lane, board)
            if self._is_closing.is_set():
                return
            with self._lock:
                self._num_lost += 1
                # Noted before anyone can hear of it.
                if self._num_lost == self.num_lanes:
                    self.lost = f"every lane is lost; the last one: {reason}"
            ray.get(board.close_lane.remote(lane, f"lane {lane} is lost: {reason}"))
            if self.lost is not None:
                ray.get(board.fail.remote(self.lost))
        except ray.exceptions.RayActorError:
            # Everyone who waits for the switchboard is told by Ray.
            self.lost = self.lost or _NO_SWITCHBOARD
            logger.warning("the switchboard is gone; lane %d is not started again", lane)

    def _fit_again_and_again(self, lane: int, board: Any) -> str:
        """Starts anew what Ray Train gave up, while it gets anywhere; returns why it ended the last time."""
        import ray
        from ray.train import ControllerError, TrainingFailedError
        from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

        reason, num_fruitless, num_reports = "", 0, 0
        while num_fruitless < _STARTS:
            try:
                self._fit(lane, board)
            except ControllerError as error:
                reason = _gist(error.controller_failure)
                logger.warning("lane %d did not come up: %s", lane, reason)
                if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
                    # A machine is gone, or busy, and may come back: waited for, while others take over what it had.
                    ray.get(board.set_aside.remote(lane, f"lane {lane} has no place to begin again: {reason}"))
                    num_fruitless -= 1
            except (TrainingFailedError, ray.exceptions.RayError) as error:
                failures = getattr(error, "worker_failures", None)
                reason = _gist(next(iter(failures.values()))) if failures else first_line(error)
                logger.warning("lane %d broke: %s", lane, reason)
            except Exception as error:  # a thread that dies of it would leave everyone waiting for this lane
                reason = first_line(error)
                logger.exception("lane %d broke", lane)
            if self._is_closing.is_set():
                break
            _remove_placement_group(ray.get(board.placement_group.remote(lane)))
            before, num_reports = num_reports, ray.get(board.num_reports.remote(lane))
            num_fruitless = 0 if num_reports > before else num_fruitless + 1
        return reason

    def _fit(self, lane: int, board: Any) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources = {"CPU": self.shape.cpus_per_worker}
        if self.shape.gpus_per_worker:
            resources["GPU"] = self.shape.gpus_per_worker
        TorchTrainer(
            run_lane,
            train_loop_config={
                "switchboard": board,
                "lane": lane,
                "threads": self.shape.threads_per_worker,
                "features": None if self.features is None else self.features.model_dump(),
                "timeout_s": self._timeout_s,
            },
            scaling_config=ScalingConfig(
                num_workers=self.shape.num_workers,
                use_gpu=self.shape.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=f"{self.name}-lane-{lane}-{uuid.uuid4().hex[:6]}",
                storage_path=self._storage,
                # Where there is no place for its workers Train would wait for ever, and tell nobody.
                failure_config=FailureConfig(max_failures=_WORKER_FAILURES, controller_failure_limit=0),
            ),
        ).fit()


def _gist(error: Exception) -> str:
    """Ray Train's own first line says that something failed, the last one what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else first_line(error)


def _remove_placement_group(group: str) -> None:
    """Frees what a broken lane's workers held, where Train's controller died and could not.

    Train's own cleaner asks Ray's dashboard whether the controller lives; without one it never frees anything, and the
    lane's successor would wait for these resources for ever.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if group:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def quicken_ray_train() -> None:
    """Makes Ray Train poll its workers often; read by Ray at import, so call it before."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def await_machines() -> None:
    """Has Ray Train wait for the machines that the cluster starts for it; its own minute is too short for that."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_MACHINE_START_S))
