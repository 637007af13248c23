"""Ray for one sweep: joins the cluster that there is, or starts one on this machine, and decides the lanes' shape."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from trainables.errors import InputError
from tuner.lanes import LanePool, LaneShape, quicken_ray_train
from tuner.progress import Progress

if TYPE_CHECKING:
    from search_spaces.spec import ResourceSpec

_FOR_THE_REST = 0.05
"""Share of a machine's processors, in Ray's bookkeeping, that stays free for Tune's light actors."""


def start_ray() -> bool:
    """Joins the cluster of ``RAY_ADDRESS`` (set inside a Ray job), else starts one on this machine.

    Must run in a thread that outlives the sweep: the kernel ends Ray's processes with the thread that started them.

    Returns:
        Whether the cluster was started here, so that what it has is all there will be.
    """
    quicken_ray_train()
    # A trial that diverges in its first epoch has no validation metric to report.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"namespace": "thaw", "log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
        return False
    ray.init("local", include_dashboard=False, **options)
    return True


@contextmanager
def open_lanes(
    budget: ResourceSpec,
    concurrency: int | Literal["auto"],
    most_lanes: int,
    storage: str,
    progress: Progress,
    check: Callable[[], object] = lambda: None,
) -> Iterator[LanePool]:
    """Ray and a pool of lanes that are starting; both are ended whatever happens.

    Args:
        budget: What one trial runs on.
        concurrency: Trials side by side.
        most_lanes: More would have nothing to do.
        storage: Path or URI for Ray Train's own records.
        progress: Shows what is being done.
        check: Called once Ray runs and before any lane starts; what it raises ends everything.
    """
    import ray

    progress.phase("starting Ray")
    is_ours = start_ray()
    try:
        check()
        shape, num_lanes = choose_shape(budget, concurrency, ray.cluster_resources())
        progress.num_lanes = min(num_lanes, most_lanes)
        pool = LanePool(shape, progress.num_lanes, storage)
        try:
            pool.start()
            progress.phase(f"starting {pool.num_lanes} x {shape.num_workers} training worker(s)")
            yield pool
        finally:
            pool.close()
    finally:
        if is_ours:
            ray.shutdown()


def choose_shape(
    budget: ResourceSpec, concurrency: int | Literal["auto"], cluster: dict[str, float]
) -> tuple[LaneShape, int]:
    """The shape of a lane and how many there are, from the budget and what the cluster has.

    By itself: one lane per GPU where there are GPUs, else one lane per four processors (at least one); a CPU lane's
    workers share out its processors.

    Args:
        budget: The spec's.
        concurrency: Lanes asked for.
        cluster: Ray's resources, ``CPU`` and ``GPU``.

    Raises:
        InputError: One trial asks for more than there is.
    """
    num_cpus, num_gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    workers = budget.workers_per_trial
    on_gpu = budget.device == "cuda" or (budget.device == "auto" and num_gpus > 0)
    gpus = float(budget.gpus_per_worker) if on_gpu else 0.0
    if on_gpu and gpus * workers > num_gpus:
        raise InputError(
            f"budget: one trial asks for {workers} x {gpus:g} GPU, the cluster has {num_gpus:g}; "
            "lower budget.workers_per_trial or budget.gpus_per_worker, or set budget.device: cpu"
        )
    asked_cpus = workers * (budget.cpus_per_worker or 1)
    if asked_cpus > num_cpus:
        raise InputError(
            f"budget: one trial asks for {workers} workers with {asked_cpus / workers:g} CPUs each, "
            f"the cluster has {num_cpus:g} CPUs; lower budget.workers_per_trial or budget.cpus_per_worker"
        )
    if concurrency != "auto":
        lanes = concurrency
    elif on_gpu:
        lanes = int(num_gpus // (gpus * workers))
    else:
        lanes = int(num_cpus // max(4, asked_cpus))
    lanes = max(1, lanes)
    cpus = _cpus_per_worker(budget.cpus_per_worker, num_cpus, lanes * workers)
    if lanes * workers * cpus > num_cpus or lanes * workers * gpus > num_gpus:
        raise InputError(
            f"budget: {lanes} trials at once ask for {lanes * workers * cpus:g} CPUs and {lanes * workers * gpus:g} "
            f"GPUs, the cluster has {num_cpus:g} and {num_gpus:g}; lower budget.concurrency"
        )
    cores = cpus if on_gpu else num_cpus / (lanes * workers)
    asked = budget.threads_per_worker
    threads = max(1, math.floor(cores)) if asked == "auto" else asked
    return LaneShape(workers, cpus, gpus, threads), lanes


def _cpus_per_worker(asked: float | None, num_cpus: float, num_workers: int) -> float:
    if asked is not None:
        # Whole processors for every worker would leave none for the light actors that Tune runs.
        return min(float(asked), math.floor(100 * (num_cpus - _FOR_THE_REST) / num_workers) / 100)
    share = num_cpus * (1 - _FOR_THE_REST) / num_workers
    return max(0.01, math.floor(100 * min(share, 8)) / 100)
