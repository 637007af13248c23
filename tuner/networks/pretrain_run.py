"""``thaw pretrain``: one pretraining on lanes of its own, outside any sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search_spaces.spec import PretrainSpec
from tuner.cluster.ray_cluster import open_lanes
from tuner.networks.pretraining import find_pretrained, prepare_pretraining, register_pretrained, train_backbone
from tuner.paths import HomePaths
from tuner.progress import Progress, shown


@dataclass(frozen=True)
class PretrainOutcome:
    """What a pretraining gave.

    Attributes:
        model_uri: ``models:/NAME/VERSION`` in MLflow; the file of its weights, where no whole model of it is here.
        accuracy: On the source's validation side.
        is_new: False when the same recipe was trained before.
    """

    model_uri: str
    accuracy: float
    is_new: bool


def run_pretrain(
    spec: PretrainSpec, *, home: str | Path | HomePaths | None = None, progress: Progress | None = None
) -> PretrainOutcome:
    """Trains a backbone and registers it, unless the same recipe has been trained on the same pictures.

    Raises:
        InputError: The spec or its surroundings will not do, or the training diverged.
        LaneError: The training failed.
        LanesLostError: There is no lane any more.
    """
    paths = HomePaths.resolve(home)
    with shown(progress) as seen:
        return _run(spec, paths, seen)


def _run(spec: PretrainSpec, paths: HomePaths, progress: Progress) -> PretrainOutcome:
    tracking_uri = paths.tracking_uri(spec.tracking.uri)
    pretraining = prepare_pretraining(spec, paths, tracking_uri, progress.counted)
    trained = find_pretrained(pretraining, paths, tracking_uri)
    is_new = trained is None
    if trained is None:
        storage = paths.uri_of(paths.weights / "pretraining" / "ray")
        with open_lanes(spec.resources, concurrency=1, most_lanes=1, storage=storage, progress=progress) as pool:
            trained = train_backbone(
                pretraining,
                paths,
                pool,
                lambda epoch, _: progress.counted(f"pretraining {spec.name}", epoch, spec.epochs),
            )
    progress.phase("registering the weights")
    uri = register_pretrained(pretraining, trained, paths, tracking_uri)
    return PretrainOutcome(uri or trained.weights.uri, trained.accuracy, is_new)
