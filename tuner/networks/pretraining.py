"""Backbones trained here: on a source data set, on a lane, kept by what decides their weights.

In: a ``PretrainSpec``. Out: a weights file that trials start from, and a registered model. The same recipe on the same
pictures is trained once: the home remembers it, and so does MLflow's registry, for another machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.space import apply_params
from search_spaces.spec import PretrainSpec
from trainables.config import BackboneConfig, TrialConfig, WeightsFile
from trainables.errors import InputError
from trainables.files.locks import mutex
from trainables.files.storage import join, read_bytes, write_bytes
from trainables.jobs import BEST_CHECKPOINT, TrainJob
from tuner.cluster.lanes import LanePool
from tuner.models.registry import find_backbone
from tuner.networks.preparing import kept_weights
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.pictures.dealt import PreparedData

_LOOK_EVERY_S = 5.0
Counted = Callable[[str, int, int], None]
_NOT_IN_RECIPES = (
    "head", "head_init", "dropout", "bn_mode",
    "class_balance", "mixup_alpha", "cutmix_alpha", "ema_decay", "grad_accumulation", "costs", "start_size",
)  # fmt: skip


@dataclass(frozen=True)
class Pretraining:
    """A pretraining with everything resolved.

    Attributes:
        spec: What was asked for.
        config: The trial that trains it.
        recipe: Canonical JSON of what decides the weights.
        data: Its pictures.
    """

    spec: PretrainSpec
    config: TrialConfig
    recipe: str
    data: PreparedData

    @property
    def params(self) -> dict[str, Any]:
        """Settings worth showing."""
        return {
            "backbone": self.spec.backbone,
            "epochs": self.spec.epochs,
            "classes": list(self.data.config.class_names),
            **self.spec.params(),
        }


@dataclass(frozen=True)
class Pretrained:
    """Trained weights and how they came about.

    Attributes:
        weights: What trials start from.
        epochs: Metrics by epoch; empty when another machine trained them.
        seconds: What the training took.
    """

    weights: WeightsFile
    epochs: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the best epoch, NaN when another machine trained them."""
        return max((epoch["val/accuracy"] for epoch in self.epochs), default=math.nan)


def prepare_pretraining(
    spec: PretrainSpec, home: HomePaths, tracking_uri: str, counted: Counted, began_with: WeightsFile | None = None
) -> Pretraining:
    """Packs the source data set and resolves the recipe.

    Args:
        spec: What to train.
        home: Where pictures and weights are kept.
        tracking_uri: MLflow's, for weights that are ``models:/...``.
        counted: Told what is being done, how much of it, of how much.
        began_with: See `kept_weights`.

    Raises:
        InputError: Its data or weights will not do.
    """
    data = prepare_data(spec.data, home, counted)
    config = apply_params(
        spec.params(),
        TrialConfig(
            data=data.config,
            backbone=BackboneConfig(
                name=spec.backbone,
                weights=kept_weights(began_with, spec.weights, spec.backbone, home, tracking_uri),
            ),
            freeze_depth=0,
            epochs=spec.epochs,
            compute=spec.compute,
            seed=spec.seed,
        ),
    )
    # Where the table and the weights lie does not decide the numbers; what is in them does.
    decisive = config.model_dump(mode="json")
    del decisive["data"]["table"]
    # Nothing that a recipe can set, and older recipes do not have it.
    for name in _NOT_IN_RECIPES:
        del decisive[name]
    del decisive["data"]["folds"], decisive["data"]["fold"], decisive["repeats"]
    del decisive["optimizer"]["layer_decay"], decisive["optimizer"]["schedule"]
    del decisive["data"]["label_separator"]
    if config.data.fit == "crop" or data.fit.is_moot:
        del decisive["data"]["fit"]
    if config.data.group_pattern is None:
        del decisive["data"]["group_pattern"]
    if config.backbone.weights is not None:
        del decisive["backbone"]["weights"]["uri"]
        for name in ("mean", "std"):  # older recipes do not have them
            if decisive["backbone"]["weights"][name] is None:
                del decisive["backbone"]["weights"][name]
    return Pretraining(spec, config, json.dumps(decisive, sort_keys=True, separators=(",", ":")), data)


def check_same(pretraining: Pretraining, found: Pretrained, given: WeightsFile | None) -> None:
    """Refuses other weights than those that a sweep's trials stand on.

    Args:
        pretraining: As it is now.
        found: What it gives now.
        given: What it gave the sweep before; None: nothing yet.

    Raises:
        InputError: They are others.
    """
    if given is not None and given.key != found.weights.key:
        raise InputError(
            f"resume: pretraining {pretraining.spec.name} gives other weights than those that the sweep's trials stand "
            f"on, and {given.sha256}.safetensors is no longer here: bring back its pictures as they were, or that "
            "file, or start a new sweep under another name"
        )


def find_pretrained(pretraining: Pretraining, home: HomePaths, tracking_uri: str) -> Pretrained | None:
    """Weights of the same recipe from the home, else from the registry; None when it was never trained.

    Raises:
        MLflowAwayError: The registry does not answer.
    """
    from trainables.backbones.weights import store_weights
    from tuner.models.registry import load_weights

    if (known := _remembered(pretraining, home)) is not None:
        return known
    version = find_backbone(pretraining.recipe, tracking_uri)
    if version is None:
        return None
    state = load_weights(version.uri, tracking_uri)
    found = Pretrained(store_weights(state, pretraining.spec.backbone, home.uri_of(home.weights)))
    _remember(pretraining, found, home)
    return found


def _remembered(pretraining: Pretraining, home: HomePaths) -> Pretrained | None:
    from trainables.backbones.weights import load_tensors

    try:
        memo = json.loads(read_bytes(_memo(pretraining, home)))
        weights = WeightsFile(**memo["weights"])
        load_tensors(weights)
        return Pretrained(weights, tuple(memo["epochs"]), memo["seconds"])
    except (FileNotFoundError, InputError, ValueError, KeyError):
        return None


def train_backbone(
    pretraining: Pretraining,
    home: HomePaths,
    pool: LanePool,
    see: Callable[[int, dict[str, float]], object],
    waits: Callable[[], object] = lambda: None,
) -> Pretrained:
    """Trains the recipe on the next free lane and keeps the best epoch's weights; once, however many sweeps want them.

    Where another process of this machine is at it, this one waits and takes what comes of it.

    Args:
        pretraining: What to train.
        home: Where weights are kept.
        pool: The lanes.
        see: Told each epoch's number and metrics.
        waits: Called now and then while another process is at it.

    Raises:
        LaneError: It failed.
        LanesLostError: There is no lane any more.
        InputError: It diverged.
    """
    folder = _folder(pretraining, home)
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with mutex(folder.with_name(f".{folder.name}.lock"), _LOOK_EVERY_S) as is_ours:
            if is_ours:
                return _remembered(pretraining, home) or _train_alone(pretraining, home, pool, see)
        waits()
        pool.check()


def _train_alone(
    pretraining: Pretraining, home: HomePaths, pool: LanePool, see: Callable[[int, dict[str, float]], object]
) -> Pretrained:
    from trainables.backbones.weights import store_weights
    from trainables.training.checkpoint import load_checkpoint

    started = time.monotonic()
    directory = home.uri_of(_folder(pretraining, home))
    epochs: list[dict[str, float]] = []
    job = TrainJob(config=pretraining.config, directory=directory)
    for message in pool.run(job):
        if message.get("outcome") == "diverged":
            raise InputError(f"pretraining {pretraining.spec.name} diverged; lower its lr ({message['reason']})")
        epochs.append({**message["metrics"], "epoch": float(message["epoch"])})
        see(message["epoch"], message["metrics"])
    checkpoint = load_checkpoint(join(directory, BEST_CHECKPOINT))
    best = (max if job.mode == "max" else min)(epochs, key=lambda epoch: epoch[job.metric])
    if checkpoint.meta["epoch"] != best["epoch"]:
        raise InputError(
            f"pretraining {pretraining.spec.name}: {directory} holds epoch {checkpoint.meta['epoch']} where "
            f"{best['epoch']:.0f} was the best: another machine trains it too; go on when that has ended"
        )
    tail = checkpoint.tail
    # Whatever it began with: pictures are normalised as they were then.
    began_with = pretraining.config.backbone.weights
    stated = {} if began_with is None or began_with.mean is None else {"mean": began_with.mean, "std": began_with.std}
    state = {"state_dict": dict(tail), **stated}
    weights = store_weights(state, pretraining.spec.backbone, home.uri_of(home.weights))
    trained = Pretrained(weights, tuple(epochs), time.monotonic() - started)
    _remember(pretraining, trained, home)
    return trained


def _remember(pretraining: Pretraining, found: Pretrained, home: HomePaths) -> None:
    memo = {
        "weights": found.weights.model_dump(),
        "epochs": list(found.epochs),
        "seconds": found.seconds,
        "name": pretraining.spec.name,
    }
    write_bytes(_memo(pretraining, home), json.dumps(memo, indent=1).encode())


def _memo(pretraining: Pretraining, home: HomePaths) -> str:
    return home.uri_of(_folder(pretraining, home).with_suffix(".json"))


def _folder(pretraining: Pretraining, home: HomePaths) -> Path:
    """What belongs to one recipe, on this machine; `HomePaths.uri_of` names what the lanes write."""
    return home.weights / "pretraining" / hashlib.sha256(pretraining.recipe.encode()).hexdigest()[:32]


def register_pretrained(
    pretraining: Pretraining, trained: Pretrained, home: HomePaths, tracking_uri: str
) -> str | None:
    """Registers a pretraining's whole model, with a run that shows its epochs, unless it is registered.

    Returns:
        The model's URI; None where only its weights are here.
    """
    from trainables.training.checkpoint import is_whole

    version = find_backbone(pretraining.recipe, tracking_uri)
    if version is not None:
        return version.uri
    if not is_whole(join(home.uri_of(_folder(pretraining, home)), BEST_CHECKPOINT)):
        return None  # its weights came from another MLflow, and its head with them
    return _register(pretraining, trained, home, tracking_uri)


def _register(pretraining: Pretraining, trained: Pretrained, home: HomePaths, tracking_uri: str) -> str:
    from tuner.models.model_file import ModelCard, save_model
    from tuner.models.registry import backbone_tags, log_run, register_model
    from tuner.models.whole_network import whole_network

    spec, config = pretraining.spec, pretraining.config
    directory = _folder(pretraining, home)
    model, mean, std = whole_network(config, join(home.uri_of(directory), BEST_CHECKPOINT))
    card = ModelCard(
        class_names=config.data.class_names,
        image_size_px=config.data.image_size_px,
        fit=config.data.fit,
        mean=mean,
        std=std,
        backbone=spec.backbone,
        data_fingerprint=config.data.fingerprint,
    )
    save_model(model, card, directory / "model")
    now = time.time()
    run_id = log_run(
        home,
        tracking_uri,
        experiment=spec.name,
        name=spec.name,
        params=pretraining.params,
        epochs=[dict(epoch) for epoch in trained.epochs],
        time_s=(now - trained.seconds, now),
    )
    version = register_model(
        directory / "model",
        spec.name,
        tracking_uri,
        run_id=run_id,
        time_s=now,
        metrics={"val/accuracy": trained.accuracy},
        tags=backbone_tags(pretraining.recipe),
        description=f"{spec.backbone} pretrained on {spec.data.source}",
    )
    return version.uri
