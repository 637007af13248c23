"""Files that a kept spec names, so that whoever goes on with the sweep or trains its champion finds them from anywhere.

In: a spec. Out: the same spec with its pictures, weights and stored features named from the root.
"""

from __future__ import annotations

import json
from typing import Any

from search_spaces.data_spec import DataSpec
from search_spaces.model_spec import BackboneChoice, PretrainWeights, Weights
from search_spaces.spec import CacheSpec, SweepSpec
from trainables.config import WEIGHTS_ENDINGS, WeightsFile
from trainables.data.sources import from_anywhere
from trainables.files.storage import make_durable, write_bytes
from trainables.files.typed_path import expand
from tuner.paths import SweepPaths


def is_weights_file(weights: object) -> bool:
    """Whether what a spec says of weights is the path of a file."""
    return isinstance(weights, str) and weights.endswith(WEIGHTS_ENDINGS)


def first_weights(paths: SweepPaths) -> dict[str, WeightsFile]:
    """What a sweep began with, by network; nothing of one that began before this was kept."""
    kept = json.loads(paths.data.read_bytes()).get("weights", {})
    return {name: WeightsFile.model_validate(weights) for name, weights in kept.items()}


def pretrained_weights(paths: SweepPaths) -> dict[str, WeightsFile]:
    """What a sweep's pretraining gave, by network; nothing where there was none, or before it has."""
    if not paths.pretrained.is_file():
        return {}
    kept = json.loads(paths.pretrained.read_bytes())
    return {name: WeightsFile.model_validate(weights) for name, weights in kept.items()}


def keep_pretrained(paths: SweepPaths, name: str, weights: WeightsFile) -> None:
    """Notes what a network's pretraining gave, before any trial stands on it."""
    kept = {**pretrained_weights(paths), name: weights}
    content = {each: file.model_dump() for each, file in kept.items()}
    write_bytes(str(paths.pretrained), json.dumps(content, indent=1).encode())
    make_durable(str(paths.pretrained))


def feature_folder(cache: CacheSpec) -> str | None:
    """Where a spec wants features, named from the root; None: where Thaw keeps them.

    Raises:
        InputError: The path begins with the home of a user whom this machine does not know.
    """
    return str(expand(cache.directory, "cache.directory").absolute()) if cache.directory else None


def settle_places(spec: SweepSpec) -> SweepSpec:
    """The spec with its local folders and files named from the root.

    Raises:
        InputError: A path begins with the home of a user whom this machine does not know.
    """
    model = spec.model
    settled: dict[str, Any] = {"weights": _settled(model.weights)}
    if isinstance(model.backbones, tuple):
        settled["backbones"] = tuple(
            entry.model_copy(update={"weights": _settled(entry.weights)})
            if isinstance(entry, BackboneChoice)
            else entry
            for entry in model.backbones
        )
    cache = spec.cache.model_copy(update={"directory": feature_folder(spec.cache)})
    update = {"data": _placed(spec.data), "model": model.model_copy(update=settled), "cache": cache}
    return spec.model_copy(update=update)


def _placed(data: DataSpec) -> DataSpec:
    return data.model_copy(update={"source": from_anywhere(data.source)})


def _settled(weights: Weights) -> Weights:
    if isinstance(weights, PretrainWeights):
        recipe = weights.pretrain
        placed = {"data": _placed(recipe.data), "weights": _settled(recipe.weights)}
        return PretrainWeights(pretrain=recipe.model_copy(update=placed))
    return str(expand(weights, "model.weights").resolve()) if is_weights_file(weights) else weights
