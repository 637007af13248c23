"""What MLflow and people read of a sweep, in words and flat numbers."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from search_spaces.model_spec import BackboneChoice
from search_spaces.search_spec import LISTING_SAMPLERS
from search_spaces.spec import SweepSpec
from tuner.pictures.dealt import PreparedData
from tuner.records.reuse import Reuse
from tuner.report.figures import explanations, sentence
from tuner.report.result import Champion, Standing


def summary(spec: SweepSpec, data: PreparedData) -> dict[str, Any]:
    """What the parent run shows of the spec and the pictures."""
    named = spec.model.named
    sizes = list(dict.fromkeys(choice.image_size_px or spec.data.image_size_px for choice in named.values()))
    return {
        "backbone": _one_or_all(list(named)),
        "weights": _one_or_all([_weights(choice) for choice in named.values()]),
        "source": spec.data.source,
        "image_size_px": _one_or_all(sizes),
        "fit": data.config.fit,
        "num_classes": len(data.config.class_names),
        "num_train": data.size("train"),
        "num_val": data.size("val"),
        "num_test": data.size("test"),
        "num_folds": spec.data.folds,
        "num_repeats": spec.search.repeats,
        "num_bad_files": len(data.report.bad_files),
        "num_trials": spec.most_trials or ("every point" if spec.search.sampler in LISTING_SAMPLERS else "by budget"),
        "epochs": spec.budget.trial_epochs,
        "metric": spec.metric,
        "seed": spec.seed,
    }


def _weights(choice: BackboneChoice) -> str:
    weights = choice.weights
    return weights if isinstance(weights, str) else f"pretrain:{weights.pretrain.name}"


def _one_or_all(values: list[Any]) -> Any:
    return values if len(values) > 1 else values[0]


def environment() -> dict[str, str]:
    """What the numbers were made with: this machine, and the versions that decide them."""
    packages = ("thaw", "torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "pillow", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "machine": platform.platform(), **versions}


def flat(standing: Standing) -> dict[str, float]:
    """Scores with their side in the name: ``val/accuracy``, ``test/accuracy``..."""
    return {f"val/{name}": value for name, value in standing.val.items()} | {
        f"test/{name}": value for name, value in standing.test.items()
    }


def note(champion: Champion, baselines: list[Standing], reuse: Reuse, metric: str = "val/accuracy") -> str:
    """The parent run's description; ``metric`` is what chose."""
    lines = [f"Champion: trial {champion.number}, {sentence(champion.standing, metric)}."]
    lines += [f"Its weights were trained by {lineage}." for lineage in lineage_tags(champion).values()]
    lines += [f"- {standing.name}: {sentence(standing, metric)}" for standing in baselines]
    return "\n".join([*lines, *(f"\n{said}" for said in explanations(champion) + reuse.sentences())])


def lineage_tags(champion: Champion) -> dict[str, str]:
    """Who trained a champion's weights until when, as a tag; empty where it trained them alone."""
    if not champion.lineage:
        return {}
    told = [f"trial {each.number} to epoch {each.until}" for each in champion.lineage]
    return {"thaw.lineage": ", ".join([*told, f"trial {champion.number} from there"])}
