"""Ray Train's side of a lane: workers that stay up and train job after job.

``lane_loop`` is the training function of one long ``TorchTrainer.fit()``, reached by way of ``entry.run_lane``. Rank 0
talks to the switchboard and tells the others; all train. A job's own failure is reported and the lane goes on; with
several ranks the group is restarted after one, because the other ranks may be waiting in a collective that will never
complete.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import ray
import torch
from pydantic import ValidationError

from trainables.config import FeatureSettings, TrialConfig
from trainables.data.splits import clusters_of
from trainables.files.outages import StorageAwayError, patiently
from trainables.files.storage import join, make_durable
from trainables.jobs import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    MeasureJob,
    Message,
    ProbeJob,
    ScoreJob,
    TrainJob,
    parse_job,
)
from trainables.lanes.switchboard import Order
from trainables.lanes.watchdog import Watchdog
from trainables.memory import give_back_freed_memory, keep_freed_memory
from trainables.ranks import Ranks, is_lost_peer
from trainables.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from trainables.training.loop import DivergedError, StoppedError, TrialRun
from trainables.training.measuring import run_measure
from trainables.training.probing import run_probe
from trainables.training.repeatable import make_repeatable
from trainables.training.replicas import ReplicatedRun
from trainables.training.workbench import Workbench

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
"""How often, at most, a lane looks whether its job is still wanted."""


AnyRun = TrialRun | ReplicatedRun


_COPIES_S = 15.0
"""How long a lane that is told to end waits for its copies; the pool waits longer where there are such."""


class _NodeDrainedError(RuntimeError):
    """A machine that this lane runs on is about to be taken away."""


def lane_loop(settings: dict[str, Any]) -> None:
    """Trains jobs from the switchboard until it says that the lane is to end.

    Args:
        settings: ``switchboard`` (actor handle), ``lane`` (its number), ``threads`` (per worker), ``features`` (see
            `FeatureSettings`, or None), ``timeout_s`` (longest time of one step, or None).
    """
    import ray.train.torch

    torch.set_num_threads(settings["threads"])
    keep_freed_memory()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    make_repeatable(device)
    ranks = Ranks.join(device)
    line = _Line(settings["switchboard"], settings["lane"], ranks)
    features = settings["features"]
    bench = Workbench(features=None if features is None else FeatureSettings(**features))
    watchdog = Watchdog(settings["timeout_s"] or math.inf)
    bench.beat = watchdog.beat
    bench.waiting = ranks.waiting = watchdog.waiting
    if bench.store is not None:
        bench.store.waiting = watchdog.waiting
    gc.freeze()  # what is here before the first job stays; collections need not look at it again and again
    while (order := line.next_order()) is not None:
        try:
            _leave_drained_nodes()
            with watchdog.watching(partial(line.fail, order)):
                _run_job(order, bench, ranks, line, watchdog)
        except StoppedError:
            pass
        except _NodeDrainedError:
            raise  # Ray Train starts the workers elsewhere, and they ask for the same job
        except StorageAwayError as error:
            line.fail(order, str(error), is_interrupted=True)
            if ranks.world_size > 1:
                raise
        except ray.exceptions.RayError:
            # A wire that is cut says nothing of the trial: like dead workers', its successors ask for the same job.
            logger.warning("job %s of lane %s lost its connection to the sweep", order.number, settings["lane"])
            raise
        except Exception as error:
            if ranks.world_size > 1 and is_lost_peer(error):
                # Who failed has said why; who was killed is mended by Ray Train, and its successor asks for the job.
                logger.warning("job %s of lane %s lost another of its workers", order.number, settings["lane"])
                raise
            logger.exception("job %s of lane %s failed", order.number, settings["lane"])
            line.fail(order, _explain(error))
            if ranks.world_size > 1:
                raise
        _free_memory(device)
    if bench.store is not None:
        bench.store.close(_COPIES_S)  # what is copied to a shared store meanwhile is there for the next night


def _run_job(order: Order, bench: Workbench, ranks: Ranks, line: _Line, watchdog: Watchdog) -> None:
    # A function of its own, so that nothing of the job is left in the lane's loop when it waits for the next one.
    job = parse_job(order.job)
    if isinstance(job, ProbeJob):
        with ranks.while_first_works():
            line.report(order, run_probe(job, bench, ranks))
        return
    if isinstance(job, MeasureJob):
        with ranks.while_first_works():
            line.report(order, run_measure(job, ranks, bench.beat))
        return
    if isinstance(job, ScoreJob):
        with closing(TrialRun(job.config, bench, ranks)) as run:
            _score(run, job, order, line)
        return
    with closing(_begin(job, bench, ranks)) as run:
        _train(run, job, order, ranks, line, watchdog)


def _begin(job: TrainJob, bench: Workbench, ranks: Ranks) -> AnyRun:
    if len(job.config.replicas()) > 1:
        return ReplicatedRun(job.config, bench, ranks, job.cuts_to_keep)
    return TrialRun(job.config, bench, ranks, job.cuts_to_keep)


def _free_memory(device: torch.device) -> None:
    """Frees what the last job held: a traced network is full of reference cycles, so its tensors wait for this."""
    gc.collect()
    give_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _Line:
    """Rank 0's connection to the switchboard; the other ranks get its answers."""

    def __init__(self, switchboard: Any, lane: int, ranks: Ranks) -> None:
        self._switchboard, self._lane, self._ranks = switchboard, lane, ranks
        self._last_number = -1
        self._node = ray.get_runtime_context().get_node_id()
        group = ray.util.get_current_placement_group()
        self._group = "" if group is None else group.id.hex()

    def next_order(self) -> Order | None:
        """The next job, the same on every rank; None when the lane is to end."""
        answer = None
        if self._ranks.is_first:
            try:
                asked = self._switchboard.next_job.remote(self._lane, self._last_number, self._node, self._group)
                answer = ray.get(asked)
            except ray.exceptions.ActorDiedError:
                # Without a switchboard nobody can want anything of this lane: it ends like one that is told to.
                logger.warning("the switchboard is gone; lane %s ends", self._lane)
        order: Order | None = self._ranks.agree(answer)
        if order is not None:
            self._last_number = order.number
        return order

    def fail(self, order: Order, reason: str, *, is_interrupted: bool = False) -> None:
        """Says, from whichever rank, that the job is over; if interrupted, through no fault of its own."""
        message: Message = {"kind": "failed", "reason": reason}
        if is_interrupted:
            message["outcome"] = "interrupted"
        ray.get(self._switchboard.report.remote(self._lane, order.number, message))

    def report(self, order: Order, message: Message) -> bool:
        """Sends a message of the first rank; False, on every rank, when the job is no longer wanted."""
        wanted = False
        if self._ranks.is_first:
            wanted = ray.get(self._switchboard.report.remote(self._lane, order.number, message))
        return self._ranks.agree_to(wanted)

    def wants_more(self, order: Order) -> bool:
        """Waits for the asker to want one more epoch; False, on every rank, when it has dropped the job."""
        wanted = False
        if self._ranks.is_first:
            wanted = ray.get(self._switchboard.wants_more.remote(self._lane, order.number))
        return self._ranks.agree_to(wanted)

    def watch(self, order: Order) -> Callable[[], bool]:
        """A cheap question for rank 0 to ask between batches: is the job no longer wanted?"""
        if not self._ranks.is_first:
            return lambda: False
        dropped = self._switchboard.dropped.remote(self._lane, order.number)
        next_look = 0.0

        def is_dropped() -> bool:
            nonlocal next_look
            if time.monotonic() < next_look:
                return False
            next_look = time.monotonic() + _LOOK_EVERY_S
            if not ray.wait([dropped], timeout=0)[0]:
                return False
            ray.get(dropped)  # a question that got lost is not an answer
            return True

        return is_dropped


def _train(run: AnyRun, job: TrainJob, order: Order, ranks: Ranks, line: _Line, watchdog: Watchdog) -> None:
    history = _resume(run, job, ranks)
    for number, past in enumerate(history, start=1):
        # The last message also says that the job is over, so it is repeated even to one who knows its epoch.
        if (number > order.reported_epochs or past.get("outcome")) and not line.report(order, past):
            return
    is_dropped = line.watch(order)
    while run.epoch < job.num_epochs:
        try:
            metrics = run.run_epoch(is_dropped)
        except DivergedError as error:
            line.report(
                order,
                {
                    "kind": "epoch",
                    "epoch": run.epoch + 1,
                    "metrics": {},
                    "outcome": "diverged",
                    "reason": str(error),
                },
            )
            return
        with watchdog.waiting():
            is_wanted = line.wants_more(order)
        if not is_wanted:
            return
        is_best = _is_best(metrics, history, job)
        message: Message = {
            "kind": "epoch",
            "epoch": run.epoch,
            "metrics": metrics,
            "is_best": is_best,
            "outcome": "completed" if run.epoch == job.num_epochs else None,
        }
        history.append(message)
        with watchdog.waiting():
            if ranks.is_first:
                patiently(partial(_keep, run, job, history), "checkpoints")
            is_wanted = line.report(order, message)
        if not is_wanted:
            return
        _leave_drained_nodes()


def _leave_drained_nodes() -> None:
    """Ends the lane's workers, on every rank together, when one of their machines has had notice of its end.

    Called when there is nothing to lose: between two epochs, after a checkpoint.

    Raises:
        _NodeDrainedError: It has.
    """
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return  # nobody would tell, and asking costs a call to an actor
    notice = ray.train.get_preemption_info()
    if notice is not None:
        raise _NodeDrainedError(f"leaving machines that are about to be taken away: {notice}")


def _keep(run: AnyRun, job: TrainJob, history: list[Message]) -> None:
    # The best weights first: a crash in between repeats an epoch, and the same numbers come again.
    if history[-1]["is_best"]:
        save_checkpoint(join(job.directory, BEST_CHECKPOINT), run.checkpoint(weights_only=True))
    save_checkpoint(join(job.directory, LAST_CHECKPOINT), run.checkpoint({"history": history}))
    if history[-1]["outcome"]:
        make_durable(join(job.directory, BEST_CHECKPOINT))  # an outcome is for ever; an epoch can be run again


def _resume(run: AnyRun, job: TrainJob, ranks: Ranks) -> list[Message]:
    """Takes ``run`` to its newest usable checkpoint; returns the messages of the epochs before.

    Raises:
        CheckpointError: There is none, and the trial went on with weights that it had not trained itself.
    """
    # One rank reads and tells the others: each for itself might find another file, and then they would part.
    found: Checkpoint | None = None
    with ranks.waiting():
        if ranks.is_first:
            found = patiently(partial(_newest_checkpoint, job), "checkpoints", doing="read")
        checkpoint: Checkpoint | None = ranks.agree(found)
    if checkpoint is None and job.inherited_epochs:
        raise CheckpointError(f"{job.directory}: the weights that this trial took over from another one are lost")
    if checkpoint is None:
        return []
    run.restore(checkpoint)
    return list(checkpoint.meta["history"])


def _newest_checkpoint(job: TrainJob) -> Checkpoint | None:
    """What ``job`` can go on from: its last epoch's checkpoint, while its best epoch's is there too."""
    try:
        checkpoint = load_checkpoint(join(job.directory, LAST_CHECKPOINT))
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        logger.warning("%s; the trial starts again", error)
        return None
    if not _is_of(checkpoint, job.config):
        logger.warning("%s holds another trial's checkpoint; the trial starts again", job.directory)
        return None
    epoch, is_over = checkpoint.meta["epoch"], checkpoint.meta["history"][-1].get("outcome")
    if epoch > job.num_epochs or (is_over and epoch < job.num_epochs):
        logger.warning("%s was trained for %s epochs, not %s; it starts again", job.directory, epoch, job.num_epochs)
        return None
    try:
        load_checkpoint(join(job.directory, BEST_CHECKPOINT))
    except (FileNotFoundError, CheckpointError) as error:
        # No later epoch may be better than the lost one, and then nothing would ever be kept of this trial.
        logger.warning("the best epoch's checkpoint cannot be used (%s); the trial starts again", error)
        return None
    return checkpoint


def _is_of(checkpoint: Checkpoint, config: TrialConfig) -> bool:
    """Whether a checkpoint is that trial's; an older Thaw's lacks fields that came later."""
    try:
        known = TrialConfig.model_validate(checkpoint.meta["config"])
    except ValidationError:
        return False
    # Where pictures and weights lie decides nothing: what tells them from others is in the configuration too.
    data, backbone, here = known.data.model_copy(update={"table": config.data.table}), known.backbone, config.backbone
    if backbone.weights is not None and here.weights is not None:
        weights = backbone.weights.model_copy(update={"uri": here.weights.uri})
        backbone = backbone.model_copy(update={"weights": weights})
    return known.model_copy(update={"data": data, "backbone": backbone}) == config


def _is_best(metrics: dict[str, float], history: list[Message], job: TrainJob) -> bool:
    """Whether this epoch is better than all before; of equal epochs the first counts, without a judge the last."""
    if job.config.data.fold == "all":
        return True
    sign = 1 if job.mode == "max" else -1
    return all(sign * metrics[job.metric] > sign * past["metrics"][job.metric] for past in history)


def _score(run: TrialRun, job: ScoreJob, order: Order, line: _Line) -> None:
    run.restore(patiently(partial(load_checkpoint, job.checkpoint), "checkpoints", doing="read"))
    evaluation = run.evaluate(job.side)
    line.report(
        order,
        {
            "kind": "score",
            "metrics": evaluation.metrics,
            "confusion": evaluation.confusion.tolist(),
            "areas": list(evaluation.areas),
            "average_precisions": list(evaluation.average_precisions),
            "true": evaluation.true.tolist(),
            "decided": evaluation.decided.tolist(),
            "clusters": clusters_of(run.side(job.side), job.config.data),
        },
    )


def _explain(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory; a smaller batch_size, image size or more freezing needs less ({text})"
    if "more than 1 value per channel" in text:
        return f"BatchNorm of a single picture's single pixel; a larger batch_size, or bn_mode: keep, can ({text})"
    return text
