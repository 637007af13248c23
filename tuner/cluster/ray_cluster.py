"""Ray for one sweep: joins the cluster that there is, or starts one on this machine, and decides the lanes' shape."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from trainables.config import FeatureSettings
from trainables.errors import InputError, first_line
from tuner.cluster.capacity import Machine, find_capacity
from tuner.cluster.lanes import LanePool, LaneShape, await_machines, quicken_ray_train
from tuner.outcomes import SweepFailedError
from tuner.progress import Progress

if TYPE_CHECKING:
    from search_spaces.spec import ResourceSpec

_LEAST_CPUS = 1 / 16
"""Of a worker for which the spec asks nothing: more of them on a processor would only wait for each other."""
_FOR_THE_REST = 0.05
"""Share of a machine's processors, in Ray's bookkeeping, that stays free for Tune's light actors."""


def start_ray() -> bool:
    """Joins the cluster of ``RAY_ADDRESS`` (set inside a Ray job), else starts one on this machine.

    Must run in a thread that outlives the sweep: the kernel ends Ray's processes with the thread that started them.

    Returns:
        Whether the cluster was started here, so that what it has is all there will be.

    Raises:
        SweepFailedError: Ray does not start, or the cluster does not answer.
    """
    quicken_ray_train()
    # A trial that diverges in its first epoch has no validation metric to report.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints tables of its own at any verbosity
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"namespace": "thaw", "log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        _init(f"the cluster at RAY_ADDRESS={address} does not answer", options)
        return False
    # The only machine gives no notice of its end, and the watcher's process would start when workers need the cores.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    _init("Ray did not start on this machine", {"address": "local", "include_dashboard": False, **options})
    _start_coordinator()
    return True


def _init(failure: str, options: dict[str, Any]) -> None:
    import ray

    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises its base class where a process of its own is late
        ray.shutdown()
        raise SweepFailedError(
            f"{failure}: {first_line(error)}; nothing is lost: try again when the machine is less busy; `thaw doctor` "
            "looks at Ray"
        ) from error
    # Ray's own handler ends the process with 15, and says nothing of what goes on.
    if callable(at_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, at_sigterm)


def _start_coordinator() -> None:
    """Starts the actor that Ray Train's controller waits for before it asks for workers.

    The controller would start it itself, and sit idle for the second and a half that its process takes.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def import_ray() -> None:
    """Imports Ray's core, so that it is not slowed down by what another thread imports meanwhile."""
    import ray

    del ray


def import_torch() -> None:
    """Imports torch, which takes seconds; meant for a thread beside ``start_ray``.

    Ray's own packages import each other in circles, which two threads at once can break: they stay with the main one.
    """
    import torch

    del torch


@contextmanager
def open_lanes(
    budget: ResourceSpec,
    *,
    concurrency: int | Literal["auto"],
    most_lanes: int,
    storage: str,
    progress: Progress,
    features: FeatureSettings | None = None,
    check: Callable[[], object] = lambda: None,
) -> Iterator[LanePool]:
    """Ray and a pool of lanes that are starting; both are ended whatever happens.

    Args:
        budget: What one trial runs on.
        concurrency: Trials side by side.
        most_lanes: More would have nothing to do.
        storage: Path or URI for Ray Train's own records.
        progress: Shows what is being done.
        features: Where lanes keep what frozen parts computed; None computes it each time.
        check: Called once Ray runs and before any lane starts; what it raises ends everything.
    """
    import ray

    progress.phase("starting Ray")
    is_ours = start_ray()
    try:
        check()
        import ray.train.torch  # before any lane's thread does, see ``import_torch``
        import ray.tune

        capacity = find_capacity()
        wanted = concurrency if concurrency == "auto" else min(concurrency, most_lanes)
        shape, num_lanes = choose_shape(budget, wanted, capacity.machines)
        progress.num_lanes = min(num_lanes, most_lanes)
        if capacity.potential:
            await_machines()
        pool = LanePool(shape, progress.num_lanes, storage, features, budget.trial_timeout_s)
        try:
            pool.start()
            progress.phase(f"starting {pool.num_lanes} x {shape.num_workers} training worker(s)")
            if capacity.potential:
                progress.note("The cluster starts machines as they are needed; the first takes some minutes.")
            yield pool
        finally:
            # A cluster that ends with the sweep takes what is left with it; in one that stays, lanes end in good order.
            has_copies = features is not None and features.shared_uri is not None
            pool.close(timeout_s=(20.0 if has_copies else 5.0) if is_ours else 60.0)
    finally:
        if is_ours:
            ray.shutdown()


_ANY = 1_000_000
"""More workers than any machine takes."""


def choose_shape(
    budget: ResourceSpec, concurrency: int | Literal["auto"], machines: Sequence[Machine]
) -> tuple[LaneShape, int]:
    """The shape of a lane and how many there are, from the budget and the machines.

    By itself: one lane per GPU where there are GPUs, else one lane per four processors (at least one); the workers of a
    machine share out its processors.

    Args:
        budget: The spec's.
        concurrency: Lanes asked for.
        machines: Those that there are, and those that come when they are asked for.

    Raises:
        InputError: One trial asks for more than there is.
    """
    num_cpus, num_gpus = (sum(machine.get(kind, 0.0) for machine in machines) for kind in ("CPU", "GPU"))
    where = f" on {len(machines)} machines" if len(machines) > 1 else ""
    workers = budget.workers_per_trial
    on_gpu = budget.device == "cuda" or (budget.device == "auto" and num_gpus > 0)
    gpus = float(budget.gpus_per_worker) if on_gpu else 0.0
    room = _Room.on(machines, gpus)
    if on_gpu and room.most < workers:
        raise InputError(
            f"budget: one trial asks for {workers} x {gpus:g} GPU, the cluster has {num_gpus:g}{where}; "
            "lower budget.workers_per_trial or budget.gpus_per_worker, or set budget.device: cpu"
        )
    asked_cpus = budget.cpus_per_worker or 1
    if room.num_workers(asked_cpus) < workers:
        raise InputError(
            f"budget: one trial asks for {workers} workers with {asked_cpus:g} CPUs each, "
            f"the cluster has {num_cpus:g} CPUs{where}; lower budget.workers_per_trial or budget.cpus_per_worker"
        )
    # What is asked for by the spec is asked in full; what is not, is shared out.
    least_cpus = _LEAST_CPUS if budget.cpus_per_worker is None else budget.cpus_per_worker
    if concurrency != "auto":
        lanes = concurrency
    else:
        lanes = room.most // workers if on_gpu else int(num_cpus // max(4, workers * asked_cpus))
        lanes = max(1, min(lanes, room.num_workers(least_cpus) // workers))
    if room.num_workers(least_cpus) < lanes * workers:
        raise InputError(
            f"budget: {lanes} trials at once ask for {lanes * workers * asked_cpus:g} CPUs and "
            f"{lanes * workers * gpus:g} GPUs, the cluster has {num_cpus:g} and {num_gpus:g}{where}; "
            "lower budget.concurrency"
        )
    cpus = _cpus_per_worker(budget.cpus_per_worker, room, lanes * workers)
    cores = cpus if on_gpu else room.largest_share(lanes * workers)
    asked = budget.threads_per_worker
    threads = max(1, math.floor(cores)) if asked == "auto" else asked
    return LaneShape(workers, cpus, gpus, threads), lanes


@dataclass(frozen=True)
class _Room:
    """Where workers can go.

    Attributes:
        cpus: Processors of each machine.
        places: Workers that each machine takes at most, by its GPUs.
    """

    cpus: tuple[float, ...]
    places: tuple[int, ...]

    @classmethod
    def on(cls, machines: Sequence[Machine], gpus_per_worker: float) -> _Room:
        gpus = [machine.get("GPU", 0.0) for machine in machines]
        places = [_times(gpu, gpus_per_worker) if gpus_per_worker else _ANY for gpu in gpus]
        return cls(tuple(machine.get("CPU", 0.0) for machine in machines), tuple(places))

    @property
    def most(self) -> int:
        """Workers that the GPUs are enough for."""
        return sum(self.places)

    def num_workers(self, cpus_per_worker: float) -> int:
        """Workers that fit when each has so many processors."""
        return sum(min(most, _times(cpus, cpus_per_worker)) for cpus, most in zip(self.cpus, self.places, strict=True))

    def largest_share(self, num_workers: int) -> float:
        """The most processors that each of so many workers can have; the best of all even divisions of a machine."""
        shares = {cpus / part for cpus in self.cpus if cpus > 0 for part in range(1, num_workers + 1)}
        return max((share for share in shares if self.num_workers(share) >= num_workers), default=0.0)


def _times(total: float, each: float) -> int:
    """How often ``each`` fits, where 0.3 fits three times into 0.9."""
    return math.floor(total / each + 1e-9)


def _cpus_per_worker(asked: float | None, room: _Room, num_workers: int) -> float:
    # Whole processors for every worker would leave none for the light actors that Tune runs.
    if asked is not None:
        spared = replace(room, cpus=tuple(max(0.0, cpus - _FOR_THE_REST) for cpus in room.cpus))
        return min(float(asked), math.floor(100 * spared.largest_share(num_workers)) / 100)
    spared = replace(room, cpus=tuple(cpus * (1 - _FOR_THE_REST) for cpus in room.cpus))
    return max(0.01, math.floor(100 * min(spared.largest_share(num_workers), 8)) / 100)
