"""The backbones of a sweep, ready to search: weights checked, stages known, pretraining resolved where there is any.

In: a spec whose backbones are named, and how pictures are read. Out: one `Network` each, the space over all of them,
and what every trial on each of them has in common. What can be wrong with one is found here, and said with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces.model_spec import BackboneChoice
from search_spaces.ranges import listed
from search_spaces.space import BackboneShape, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import DataConfig, TrialConfig, WeightsFile
from trainables.errors import InputError
from trainables.training.sizes import size_at
from tuner.networks.preparing import base_trial, build_cuts, kept_weights, still_here
from tuner.networks.pretraining import Pretraining, prepare_pretraining
from tuner.paths import HomePaths

if TYPE_CHECKING:
    from trainables.backbones.graph import CutGraph

_SIZE = "data.image_size_px: "
_PLACES = ("model.weights: ", "model.backbone: ")


@dataclass(frozen=True)
class Network:
    """One backbone of a sweep, at one size of pictures.

    Attributes:
        choice: What the spec says of it.
        image_size_px: Side of the square that it sees.
        cuts: Its stages.
        weights: What its trials start from; None: random weights, or those of `pretraining`.
        pretraining: How its weights are trained first; None: not at all.
    """

    choice: BackboneChoice
    image_size_px: int
    cuts: CutGraph
    weights: WeightsFile | None = None
    pretraining: Pretraining | None = None

    @property
    def first_weights(self) -> WeightsFile | None:
        """What was there before any training: the trials' weights, or those that their pretraining starts from."""
        return self.weights if self.pretraining is None else self.pretraining.config.backbone.weights


def prepare_networks(
    spec: SweepSpec,
    data: DataConfig,
    home: HomePaths,
    tracking_uri: str,
    counted: Callable[[str, int, int], None],
    *,
    pretrains: bool = True,
    note: Callable[[str], object] = lambda _: None,
    began_with: Mapping[str, WeightsFile] | None = None,
    pretrained: Mapping[str, WeightsFile] | None = None,
) -> dict[str, Network]:
    """The spec's backbones by name (see `ModelSpec.named`), in its order.

    Args:
        spec: Of which the backbones are named.
        data: How its pictures are read.
        home: Where weights are kept.
        tracking_uri: MLflow's, for weights that are ``models:/...``.
        counted: Told what is being done, how much of it, of how much.
        pretrains: Whether pretraining is prepared, which packs the pictures of its source.
        note: Told how weights are adapted to the pictures.
        began_with: The weights of a sweep that goes on, by network: an alias or a file may mean others by now.
        pretrained: What its pretraining has given it, likewise: its pictures may be gone by now.

    Raises:
        InputError: A backbone is none, its weights cannot be had, do not fit or are no longer what the sweep began
            with, or its pictures are too small.
    """
    before = began_with or {}
    recipes = spec.pretrain_specs()
    networks: dict[str, Network] = {}
    for name, choice in spec.model.named.items():
        size_px = choice.image_size_px if isinstance(choice.image_size_px, int) else data.image_size_px
        pretraining, weights = None, None
        with _named(spec, name):
            if isinstance(choice.weights, str):
                weights = kept_weights(before.get(name), choice.weights, choice.backbone, home, tracking_uri, note)
            elif pretrains:
                try:
                    pretraining = prepare_pretraining(recipes[name], home, tracking_uri, counted, before.get(name))
                except InputError as error:
                    given = (pretrained or {}).get(name)
                    weights = None if given is None else still_here(given, home)
                    if weights is None:
                        raise
                    note(f"{error}. The trials go on with the weights that this pretraining gave them")
            cuts = build_cuts(choice.backbone, len(data.class_names), size_px)
        _check_smallest(spec, cuts, choice.backbone, len(data.class_names), size_px)
        networks[name] = Network(choice, size_px, cuts, weights, pretraining)
    return networks


def _check_smallest(spec: SweepSpec, cuts: CutGraph, name: str, num_classes: int, size_px: int) -> None:
    """Refuses pictures that grow from a size at which the network is none, or another one."""
    smallest = spec.search.smallest_start_size
    if smallest == 1:
        return
    least_px = size_at(smallest, size_px)
    try:
        small = build_cuts(name, num_classes, least_px)
    except InputError:
        raise InputError(
            f"search.start_size: {smallest:g} of {size_px} px is {least_px} px, too few for {name}; give a larger share"
        ) from None
    if _num_parameters(small) != _num_parameters(cuts):
        raise InputError(
            f"search.start_size: the layers of {name} depend on how large pictures are, which cannot grow while they "
            "learn; leave start_size out"
        )


def _num_parameters(cuts: CutGraph) -> int:
    return cuts.head.num_parameters + sum(stage.num_parameters for stage in cuts.stages)


def space_over(spec: SweepSpec, networks: Mapping[str, Network]) -> SearchSpace:
    """What may vary from trial to trial.

    Raises:
        InputError: A depth lies beyond the stages of one of the networks, or there is no BatchNorm that could keep its
            statistics.
    """
    shapes = {
        name: BackboneShape(
            network.cuts.num_stages,
            network.choice.is_pretrained,
            network.choice.freeze_depth,
            network.cuts.batch_norm_depth,
            spec.can_probe,
        )
        for name, network in networks.items()
    }
    if "keep" in listed(spec.search.bn_mode) and not any(shape.batch_norm_depth for shape in shapes.values()):
        raise InputError(f"search.bn_mode: there is no BatchNorm to keep in {' or '.join(shapes)}; leave bn_mode out")
    return SearchSpace.over(spec.search, shapes)


def base_trials(
    spec: SweepSpec, data: DataConfig, networks: Mapping[str, Network], pretrained: Mapping[str, WeightsFile]
) -> dict[str, TrialConfig]:
    """What every trial on each backbone has in common.

    Args:
        spec: The sweep's.
        data: How its pictures are read.
        networks: By name.
        pretrained: Weights of those that were pretrained first.
    """
    return {
        name: base_trial(
            spec,
            data.model_copy(update={"image_size_px": network.image_size_px}),
            name,
            network.choice.backbone,
            pretrained.get(name, network.weights),
        )
        for name, network in networks.items()
    }


@contextmanager
def _named(spec: SweepSpec, backbone: str) -> Iterator[None]:
    """Where there are several backbones, says which one a message is about."""
    try:
        yield
    except InputError as error:
        place = next((place for place in _PLACES if str(error).startswith(place)), None)
        if str(error).startswith(_SIZE) and spec.model.named[backbone].image_size_px is not None:
            place = _SIZE
        if spec.model.backbone is not None or place is None:
            raise
        raise InputError(f"{spec.model.place_of(backbone)}: {str(error).removeprefix(place)}") from error
