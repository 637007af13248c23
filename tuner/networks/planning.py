"""What a sweep knows before anything is trained: pictures, networks and the space over them, checked in this order.

In: a spec. Out: a `Plan`, for `thaw sweep` as for ``--dry-run``. No lane is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from search_spaces.listing import check_sampler
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import WeightsFile
from tuner.networks.choosing import settle_backbones
from tuner.networks.network import Network, prepare_networks, space_over
from tuner.networks.preparing import check_batches, check_metric, settle_fit
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.pictures.dealt import PreparedData
from tuner.progress import Progress
from tuner.records.kept_places import settle_places


class Plan(NamedTuple):
    """What is to be searched; the spec is the one that a sweep begins with: fit, backbones and places named."""

    spec: SweepSpec
    data: PreparedData
    networks: dict[str, Network]
    space: SearchSpace


def plan_sweep(
    spec: SweepSpec,
    home: HomePaths,
    progress: Progress,
    *,
    pretrains: bool = True,
    goes_on: bool = False,
    before_networks: Callable[[], object] = lambda: None,
    began_with: Mapping[str, WeightsFile] | None = None,
    pretrained: Mapping[str, WeightsFile] | None = None,
) -> Plan:
    """Packs pictures, checks weights and the space.

    Args:
        spec: What to search; `check_quickly` found nothing wrong with it.
        home: Where tables and weights are kept.
        progress: Told what is done and what was chosen.
        pretrains: See `prepare_networks`.
        goes_on: The sweep was begun before, and is not refused what it was allowed then.
        before_networks: Called between the pictures and the networks, whose import takes seconds.
        began_with: See `prepare_networks`.
        pretrained: See `prepare_networks`.

    Raises:
        InputError: Something will not do.
    """
    data = prepare_data(spec.data, home, progress.counted)
    for note in data.notes:
        progress.note(f"data: {note}", style="yellow")
    check_metric(spec, data)
    if not goes_on:
        check_batches(spec, data.size("train"))
    before_networks()
    spec = settle_fit(spec, data, progress.note)
    spec = settle_backbones(spec, home, progress.note)
    uri = home.tracking_uri(spec.tracking.uri)
    networks = prepare_networks(
        spec,
        data.config,
        home,
        uri,
        progress.counted,
        pretrains=pretrains,
        note=progress.note,
        began_with=began_with,
        pretrained=pretrained,
    )
    space = space_over(spec, networks)
    check_sampler(spec, space)
    return Plan(settle_places(spec), data, networks, space)
