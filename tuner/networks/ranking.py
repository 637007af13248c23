"""Backbones compared without training: how much their frozen features tell of the classes of some pictures.

In: a source of pictures and backbones with their weights. Out: one `Ranking` each. Runs in this process, without Ray:
one pass over the pictures per backbone, whose features later sweeps on this machine begin with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_spaces.data_spec import DataSpec
from search_spaces.seeding import best_depth
from trainables.config import BackboneConfig, ComputeConfig, FeatureSettings, TrialConfig
from trainables.errors import InputError
from trainables.jobs import DepthProbe, ProbeJob
from trainables.wording import visible
from tuner.networks.preparing import build_cuts, prepare_weights
from tuner.networks.probing import as_depths
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.pictures.dealt import PreparedData

_BUDGET_BYTES = 20 << 30


@dataclass(frozen=True)
class Ranking:
    """What one backbone's features are worth on some pictures.

    Attributes:
        backbone: Its name.
        weights: What was asked for: ``default``, a file, a URI, ``none``.
        probes: By depth, from 1.
        seconds: In all, loading the weights included.
        problem: Why there are no probes.
    """

    backbone: str
    weights: str
    probes: tuple[DepthProbe, ...] = ()
    seconds: float = 0.0
    problem: str | None = None

    @property
    def best(self) -> DepthProbe:
        """The probe of the depth that a search would begin with.

        Raises:
            ValueError: There are no probes.
        """
        return self.probes[best_depth(as_depths(self.probes)) - 1]

    @property
    def log_me(self) -> float:
        """LogME of the best depth; minus infinity where it was not probed."""
        return self.best["log_me"] if self.probes else -math.inf

    def row(self) -> dict[str, int | float | str | None]:
        """What people and programs are shown."""
        best = self.best if self.probes else None
        val = math.nan if best is None else best["probe_accuracy"]
        return {
            "backbone": self.backbone,
            "log_me": None if best is None else round(best["log_me"], 4),
            "accuracy": None if best is None else round(best["accuracy"], 4),
            "val_accuracy": None if math.isnan(val) else round(val, 4),
            "depth": None if best is None else best["depth"],
            "num_stages": len(self.probes) or None,
            "stage": None if best is None else best["stage"],
            "seconds": round(self.seconds, 2),
            "weights": self.weights,
            "problem": self.problem,
        }


def rank_backbones(
    data: DataSpec,
    weights: dict[str, str],
    home: HomePaths,
    *,
    tracking_uri: str,
    compute: ComputeConfig | None = None,
    counted: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Ranking]:
    """Probes backbones one after another; the best LogME comes first, and one that cannot be used comes last.

    Args:
        data: Which pictures.
        weights: Of each backbone by name, as a spec's `model.weights`.
        home: Where packed pictures, weights and features are kept.
        tracking_uri: MLflow's, for weights that are ``models:/...``.
        compute: Precision, layout and batch of the frozen network.
        counted: Told what is being done, how much of it, of how much.

    Raises:
        InputError: The pictures will not do, or there is no such backbone.
    """
    from trainables.backbones.zoo import check_name

    for name in weights:
        check_name(name)
    prepared = prepare_data(data, home, counted)
    rankings = []
    for number, (name, wanted) in enumerate(weights.items()):
        counted(f"probing {name}", number, len(weights))
        rankings.append(_rank(name, wanted, prepared, home, tracking_uri, compute or ComputeConfig()))
    return sorted(rankings, key=lambda ranking: (-ranking.log_me, ranking.backbone))


def _rank(
    name: str, wanted: str, data: PreparedData, home: HomePaths, tracking_uri: str, compute: ComputeConfig
) -> Ranking:
    import torch

    from trainables.ranks import Ranks
    from trainables.training.probing import run_probe
    from trainables.training.repeatable import make_repeatable
    from trainables.training.workbench import Workbench

    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_repeatable(device)  # as lanes do, or they would not read what is stored here
    bench = Workbench(features=_store_as_it_is(home))
    try:
        config = TrialConfig(
            data=data.config,
            backbone=BackboneConfig(name=name, weights=prepare_weights(wanted, name, home, tracking_uri)),
            freeze_depth=0,
            compute=compute,
        )
        cuts = build_cuts(name, len(data.config.class_names), data.config.image_size_px)
        message = run_probe(ProbeJob.of(config, cuts.num_stages), bench, Ranks(device))
    except InputError as error:
        # One that needs larger pictures, or whose weights cannot be had, says nothing about the others.
        return Ranking(name, wanted, seconds=time.perf_counter() - started, problem=str(error))
    return Ranking(name, wanted, tuple(message["probes"]), time.perf_counter() - started)


def _store_as_it_is(home: HomePaths) -> FeatureSettings:
    """Where a sweep was given more room, a ranking does not drive out what it holds."""
    from tuner.records.reuse import bytes_held

    settings = FeatureSettings(directory=home.features, budget_bytes=_BUDGET_BYTES)
    return settings.model_copy(update={"budget_bytes": max(_BUDGET_BYTES, bytes_held(settings) or 0)})


def read_weights(backbones: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """The weights of each backbone, in order.

    Args:
        backbones: Names.
        given: ``NAME=WEIGHTS`` each; a backbone that is not among them takes torchvision's default.

    Raises:
        InputError: A backbone is named twice, or weights are for none of them.
    """
    names = [name.strip() for name in backbones if name.strip()]
    if not names:
        raise InputError("--backbones: none is named; give one or more, such as resnet18,mobilenet_v2")
    found = dict.fromkeys(names, "default")
    if len(found) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--backbones: {twice} is named twice; name each once")
    for text in given:
        name, is_pair, value = text.partition("=")
        if not is_pair or not value:
            raise InputError(f"--weights {visible(text)}: not of the form NAME=WEIGHTS, such as resnet18=resnet18.pth")
        if name not in found:
            raise InputError(f"--weights {text}: {name!r} is not among --backbones {','.join(names)}; add it there")
        found[name] = value
    return found
