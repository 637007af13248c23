"""What drivers that have ended still hold on a Ray cluster: placement groups that nobody will give back.

In: the cluster that ``RAY_ADDRESS`` names. Out: `Finding`s. Ray frees a driver's groups when it ends; this finds those
that it did not free, and that keep processors from every later sweep.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from trainables.errors import first_line
from tuner.doctor.installation import Finding

_HELD = ("PENDING", "CREATED", "RESCHEDULING")
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_MOST = 10_000
_PATIENCE_S = 10


def check_placement_groups(environ: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Groups whose driver has ended, though they were not made to outlive it; silent where no cluster is named."""
    address = (os.environ if environ is None else environ).get("RAY_ADDRESS", "")
    if not address:
        return
    from ray.exceptions import RayError
    from ray.util.state.exception import RayStateApiException

    try:
        groups, ended = _groups_and_ended_jobs(address)
    except (RayStateApiException, RayError, OSError, RuntimeError, ValueError) as error:
        text = f"placement groups cannot be listed ({first_line(error)})"
        yield Finding("Ray", "warning", text, "start the head with its dashboard, or ask `ray status`")
        return
    left = [
        group for group in groups if group.state in _HELD and group.creator_job_id in ended and not group.is_detached
    ]
    if not left:
        yield Finding("Ray", "ok", f"{len(groups)} placement groups, none of a driver that has ended")
        return
    text = f"{len(left)} placement groups of drivers that have ended hold {_resources(left)}"
    ids = [group.placement_group_id for group in left]
    yield Finding("Ray", "warning", text, "remove them", partial(_remove, address, ids))


def _groups_and_ended_jobs(address: str) -> tuple[list[Any], set[str]]:
    from ray.util.state import list_actors, list_jobs, list_placement_groups

    options: dict[str, Any] = {"address": address, "limit": _MOST, "timeout": _PATIENCE_S, "detail": True}
    # The jobs first: one that ends in between is not taken for one that left something behind.
    ended = {str(job.job_id) for job in list_jobs(**options) if job.status in _ENDED}
    # Actors may outlive their driver, as a service's do, and keep their groups.
    actors = list_actors(filters=[("state", "=", "ALIVE")], **options)
    # Ray Train's cleaner outlives every driver that was killed, and is no service of its.
    alive = {str(actor.job_id) for actor in actors if actor.class_name != "PlacementGroupCleaner"}
    return list_placement_groups(**options), ended - alive


def _resources(groups: Sequence[Any]) -> str:
    total: Counter[str] = Counter()
    for group in groups:
        for bundle in group.bundles or ():
            total.update(bundle.get("unit_resources") or {})
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(total.items())) or "nothing"


def _remove(address: str, ids: Sequence[str]) -> str:
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    ray.init(address=address, namespace="thaw", log_to_driver=False, logging_level=logging.ERROR)
    try:
        for group in ids:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    finally:
        ray.shutdown()
    return f"{len(ids)} removed"
