"""From a spec and its pictures to what lanes can train on: checked weights, a traced backbone, a trial's common part.

Everything that can be wrong with a spec and its surroundings is found here, before any training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from search_spaces.cost_matrix import cost_matrix
from search_spaces.ranges import CountRange, listed
from search_spaces.spec import SweepSpec
from trainables.config import (
    BackboneConfig,
    DataConfig,
    FeatureSettings,
    TrialConfig,
    WeightsFile,
)
from trainables.data.sources import open_source
from trainables.errors import InputError
from trainables.files.storage import join
from trainables.files.typed_path import expand
from trainables.wording import shorten_place
from tuner.paths import HomePaths
from tuner.pictures.dealt import PreparedData
from tuner.records.kept_places import feature_folder, is_weights_file
from tuner.records.shared_home import check_local
from tuner.tracking.access import check_access, holds_password, without_password

if TYPE_CHECKING:
    from trainables.backbones.graph import CutGraph

_LEAST_OF_HYPERBAND = 2


class OtherWeightsError(InputError):
    """What a spec names has come to mean other weights."""


def settle_fit(spec: SweepSpec, data: PreparedData, note: Callable[[str], object]) -> SweepSpec:
    """The spec with its fit named, so that whoever goes on with the sweep shows networks the same; see `choose_fit`.

    Args:
        spec: Whose `data.fit` may be 'auto'.
        data: Its pictures.
        note: Told the choice with its reason.
    """
    if spec.data.fit != "auto":
        return spec
    note(f"data.fit: {data.fit.fit}: {data.fit.reason}")
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fit": data.fit.fit})})


def prepare_weights(
    weights: str, backbone: str, home: HomePaths, tracking_uri: str, note: Callable[[str], object] = lambda _: None
) -> WeightsFile | None:
    """The pretrained tensors that ``weights`` names, checked against the backbone; None for random ones.

    Args:
        weights: As a spec names them.
        backbone: The network that they are for.
        home: Where they are kept.
        tracking_uri: MLflow's, for weights that are ``models:/...``.
        note: Told what a file says of the pictures that it was trained on, and what was adapted.

    Raises:
        InputError: They cannot be had, hold pickled code, or do not fit.
    """
    from trainables.backbones.weights import resolve_weights, store_weights

    if not weights.startswith("models:/"):
        return resolve_weights(weights, backbone, home.uri_of(home.weights), note)
    from tuner.models.registry import load_weights

    return store_weights(load_weights(weights, tracking_uri), backbone, home.uri_of(home.weights))


def kept_weights(
    began_with: WeightsFile | None,
    weights: str,
    backbone: str,
    home: HomePaths,
    tracking_uri: str,
    note: Callable[[str], object] = lambda _: None,
) -> WeightsFile | None:
    """The weights that a sweep began with, as they are kept; of a new sweep `prepare_weights`.

    Args:
        began_with: Those; None: the sweep is new.
        weights: As `prepare_weights`.
        backbone: As `prepare_weights`.
        home: As `prepare_weights`.
        tracking_uri: As `prepare_weights`.
        note: As `prepare_weights`.

    Raises:
        InputError: They are not kept any more, and ``weights`` names others, or none that can be had.
    """
    if began_with is None:
        return prepare_weights(weights, backbone, home, tracking_uri, note)
    if (here := still_here(began_with, home)) is not None:
        return here
    found = prepare_weights(weights, backbone, home, tracking_uri, note)
    if found is None or found.sha256 != began_with.sha256:
        raise OtherWeightsError(
            f"model.weights: {weights} are no longer those that the sweep began with, and its copy, "
            f"{began_with.sha256}.safetensors in {home.uri_of(home.weights)}, is gone: bring either back, or start a "
            "new sweep under another name"
        )
    return found


def still_here(began_with: WeightsFile, home: HomePaths) -> WeightsFile | None:
    """Weights that a sweep began with, as this home keeps them; None where it does not."""
    from trainables.backbones.weights import is_whole

    here = began_with.model_copy(update={"uri": join(home.uri_of(home.weights), f"{began_with.sha256}.safetensors")})
    return here if is_whole(here.uri, here.sha256) else None


def lasting_weights(
    began_with: WeightsFile | None, weights: str, backbone: str, home: HomePaths, tracking_uri: str
) -> str:
    """What names the weights that a sweep began with, whatever an alias or a file has come to mean since.

    Args:
        began_with: Those; None: nothing is known of them.
        weights: As the sweep's spec names them.
        backbone: The network that they are for.
        home: Where they are kept.
        tracking_uri: MLflow's, for weights that are ``models:/...``.

    Raises:
        InputError: They are not kept any more, and ``weights`` names others.
    """
    if began_with is None or not (is_weights_file(weights) or weights.startswith("models:/")):
        return weights
    kept = kept_weights(began_with, weights, backbone, home, tracking_uri)
    # What a file says of its pictures is not in its copy.
    if kept is not None and began_with.mean is None and not home.is_shared:
        return kept.uri
    found = prepare_weights(weights, backbone, home, tracking_uri)
    if found is None or found.key != began_with.key:
        raise OtherWeightsError(
            f"model.weights: {weights} are no longer those that the sweep began with: bring them back"
        )
    return weights


def check_batches(spec: SweepSpec, num_train: int) -> None:
    """Refuses batches that hold more than there is to learn from: in one of them an epoch is one step.

    Raises:
        InputError: The smallest does, or several do, and those would be one and the same.
    """
    sizes = spec.search.batch_size
    every = (sizes.low, sizes.high - 1, sizes.high) if isinstance(sizes, CountRange) else listed(sizes)
    folds = spec.data.folds
    most = num_train * (folds - 1) // folds if folds else num_train
    largest = max(every)
    if min(every) > most or sum(size > most for size in set(every)) > 1:
        raise InputError(
            f"search.batch_size: {largest} is more than the {most} pictures on the train side, so that an epoch "
            f"would be a single step; use at most {most}, better {max(1, most // 4)} or fewer"
        )


def build_cuts(backbone: str, num_classes: int, image_size_px: int) -> CutGraph:
    """The stages of a backbone by name, without its weights."""
    from trainables.backbones.zoo import load_backbone

    return load_backbone(backbone, None, num_classes=num_classes, input_size_px=image_size_px, seed=0).graph


def feature_settings(spec: SweepSpec, home: HomePaths) -> FeatureSettings | None:
    """Where the sweep's lanes keep features; None when they are to compute them each time.

    Raises:
        InputError: See `feature_folder`.
    """
    if spec.features == "off":
        return None
    cache = spec.cache
    return FeatureSettings(
        mode=spec.features,
        directory=feature_folder(cache) or home.features,
        budget_bytes=round(cache.budget_gb * 1e9),
        shared_uri=cache.shared_uri,
    )


def base_trial(spec: SweepSpec, data: DataConfig, name: str, backbone: str, weights: WeightsFile | None) -> TrialConfig:
    """What every trial of a sweep on one backbone has in common; the search fills in the rest."""
    return TrialConfig(
        data=data,
        backbone=BackboneConfig(name=backbone, weights=weights),
        freeze_depth=0,
        epochs=spec.budget.epochs,
        compute=spec.compute_of(name).without_auto(),
        costs=cost_matrix(spec.costs, data.class_names),
        seed=spec.seed,
        repeats=spec.search.repeats,
    )


def check_metric(spec: SweepSpec, data: PreparedData) -> None:
    """Whether these pictures can be judged as the spec wants.

    Raises:
        InputError: The costs do not fit the classes, or the validation side or a fold shows too little for the metric.
    """
    cost_matrix(spec.costs, data.config.class_names)
    folds = spec.data.folds
    what = "one fold" if folds else "the validation side"
    remedy = "give fewer folds" if folds else "give data.split.val a larger share"
    if spec.metric == "val/map" and not all(any(side.counts.values()) for side in data.judged):
        raise InputError(
            f"metric: val/map is the mean over labels, and no picture of {what} has any: {remedy}, or try another "
            "data.split.seed"
        )
    if spec.metric != "val/auroc":
        return
    for side in data.judged:
        if not any(0 < count < side.size for count in side.counts.values()):
            present = ", ".join(repr(name) for name, count in side.counts.items() if count) or "nothing"
            raise InputError(
                f"metric: val/auroc compares pictures, and all of {what} show {present}: {remedy}, or choose another "
                "metric"
            )


def refuse_password(spec: SweepSpec) -> None:
    """Says how to give a password that stands in a spec, which goes further than its file.

    Raises:
        InputError: There is one.
    """
    if spec.tracking.uri is not None and holds_password(spec.tracking.uri):
        raise InputError(
            f"tracking.uri: {without_password(spec.tracking.uri)} with a password; a spec is kept, told to MLflow and "
            "exported: leave it out, and give the whole address by MLFLOW_TRACKING_URI"
        )


def _refuse_crowded_rungs(spec: SweepSpec) -> None:
    early = spec.early_stopping
    if early.scheduler == "hyperband" and early.reduction_factor < _LEAST_OF_HYPERBAND:
        raise InputError(
            f"early_stopping.reduction_factor: {early.reduction_factor}, and hyperband would judge at several rungs by "
            f"the same whole epoch; give at least {_LEAST_OF_HYPERBAND}, or use the scheduler asha"
        )


def _check_shared_store(uri: str | None) -> None:
    """Refuses what is no storage; one that is merely away is warned of, and the sweep goes on without it."""
    from trainables.features.shared import SharedStore

    if uri is None:
        return
    if "://" not in uri and not uri.startswith("/"):
        raise InputError(
            f"cache.shared_uri: {shorten_place(uri)} is no address of storage; give a URI such as s3://bucket/folder, "
            "or a whole path that every machine has"
        )
    SharedStore(uri)


def check_quickly(spec: SweepSpec, home: HomePaths, *, goes_on: bool = False) -> None:
    """What can be wrong and costs no time to see: runs before Ray is started.

    Args:
        spec: What to search.
        home: Where everything is written.
        goes_on: The sweep was begun before, and has kept its weights.

    Raises:
        InputError: The source of pictures or the file of weights is not there, MLflow's address is none or does not
            take this user, or the home cannot be written to.
    """
    check_local(home)
    if not goes_on:
        refuse_password(spec)
        _refuse_crowded_rungs(spec)
        _check_shared_store(spec.cache.shared_uri)
    check_access(home.tracking_uri(spec.tracking.uri))
    try:
        open_source(spec.data.source, spec.data.label_separator if spec.data.labels == "multi" else None)
    except InputError as error:
        if not goes_on:
            raise
        raise InputError(f"{error}; if the pictures have moved, --set data.source=... says where to") from error
    for choice in spec.model.entries:
        weights, place = choice.weights, spec.model.place_of(choice.backbone)
        if is_weights_file(weights) and not goes_on and not expand(str(weights), place).is_file():
            raise InputError(
                f"{place}: there is no file {shorten_place(str(weights))}; give the path of an existing file"
            )
