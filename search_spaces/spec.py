"""What a user asks for: one sweep, or one backbone to pretrain, typed, frozen and checked.

In: the mapping a spec file holds. Out: `SweepSpec` or `PretrainSpec`, with every default filled in. Whether folders
exist, weights fit or a backbone has that many stages is for those who know them; this module imports neither torch nor
Ray, Optuna or MLflow, so that checking a spec takes no time.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, Union

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from search_spaces.contradictions import contradictions, resource_contradictions, split_contradiction
from search_spaces.ranges import (
    CHOICES,
    RANGE,
    VALUE,
    WORD,
    ClassNames,
    Count,
    CountOrAuto,
    CountOrUnlimited,
    Depth,
    DepthRange,
    Float,
    Int,
    Magnitude,
    NonNegative,
    Positive,
    Searched,
    Share,
    SpecPart,
    are_distinct,
)
from search_spaces.search_spec import USUAL_NUM_TRIALS, OptimizerName, SearchSpec
from trainables.config import ComputeConfig, PolicyName, SplitConfig

SPEC_VERSION = 1
MOST_CHOSEN = 4
"""Networks that `backbones: auto` takes."""
MetricName = Literal["val/accuracy", "val/balanced_accuracy", "val/macro_f1", "val/loss"]
BaselineName = Literal["head_only", "full_finetune", "from_scratch"]
_OLD_TIME = "time_budget_s"
_MOST_NAMED = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_RULE = "Letters, digits, '.', '_' and '-', at most 64, the first a letter or digit."


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a folder everywhere; use letters, digits, '.', '_' and '-', at most 64")
    return name


def _check_version(version: Any) -> Any:
    if type(version) is int and version > SPEC_VERSION:
        raise ValueError(f"{version} is newer than {SPEC_VERSION}, the newest this Thaw reads; install a newer Thaw")
    return version


def _raise_any(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(problems))


class DataSpec(SpecPart):
    """Which pictures, and how they are dealt to the sides."""

    source: str = Field(
        min_length=1,
        description="Where pictures are: 'folder:PATH' (class folders, or train/val[/test] above them), 'csv:PATH' "
        "(columns file and label, maybe split and group), 'parquet:URI' (image and label, maybe split and group), "
        "'torchvision:NAME[:FOLDER]' (one of its classification sets), or 'digits'.",
    )
    exclude_classes: ClassNames = Field((), description="Classes to leave out, by name.")
    max_per_class: Count | None = Field(
        None, description="Pictures of each class, for trying out: the same ones each time; none: all."
    )
    group_pattern: str | None = Field(
        None,
        description="Regular expression on the file names. Pictures in which its parenthesis (or all of it) finds the "
        "same text show one part, patient or scene, and stay on one side of the split; none: as the source says.",
    )
    image_size_px: Int = Field(224, ge=8, le=1024, description="Side of the square that the network sees, in pixels.")
    split: SplitConfig = Field(SplitConfig(), description="Shares of the train, validation and test sides.")

    @field_validator("group_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}); write \\ before . ( [ * + ?") from error
        return pattern

    @field_validator("split")
    @classmethod
    def _split_is_whole(cls, split: SplitConfig) -> SplitConfig:
        if problem := split_contradiction(split):
            raise ValueError(problem)
        return split


class ResourceSpec(SpecPart):
    """What one trial runs on."""

    workers_per_trial: Count = Field(1, description="Training workers of one trial; its batch is shared among them.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="'auto': CUDA where the cluster has GPUs.")
    cpus_per_worker: Positive | None = Field(
        None, description="CPU cores a worker asks for; none: an even share of what the cluster has."
    )
    gpus_per_worker: Positive = Field(
        1.0, description="GPUs a worker asks for where the device is CUDA; below 1, several trials share one."
    )
    threads_per_worker: CountOrAuto = Field("auto", description="Threads of torch; 'auto': the cores a worker has.")
    trial_timeout_s: Positive | None = Field(
        1800.0, description="A trial that takes no step for so many seconds is failed, its stack logged; none: never."
    )


class BudgetSpec(ResourceSpec):
    """What the sweep may spend."""

    epochs: Count = Field(8, description="Most epochs of one trial.")
    time_s: Positive | None = Field(
        None,
        description="No trial starts after this many seconds of searching, interruptions not counted, and running "
        "ones end at their next epoch.",
    )
    flops: Positive | None = Field(
        None, description="The same with computed FLOPs: what is read from the feature store is not computed."
    )
    concurrency: CountOrAuto = Field("auto", description="Trials that run side by side; 'auto': as many as fit.")

    @model_validator(mode="before")
    @classmethod
    def _old_name_of_time_s(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or _OLD_TIME not in raw:
            return raw
        if raw.get("time_s") is not None:
            raise ValueError(f"{_OLD_TIME} is the old name of time_s, and both are given; leave {_OLD_TIME} out")
        return {**{name: value for name, value in raw.items() if name != _OLD_TIME}, "time_s": raw[_OLD_TIME]}


class TrackingSpec(SpecPart):
    """Where MLflow keeps records and models."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; none: MLFLOW_TRACKING_URI, else SQLite in Thaw's home."
    )
    model_name: str | None = Field(None, description="Name of the registered model; none: the spec's name.")


class PretrainRecipe(SpecPart):
    """How a backbone is trained on a source data set."""

    name: str = Field(description=f"Name under which the weights are registered. {_NAME_RULE}")
    data: DataSpec = Field(description="The source data set.")
    weights: str = Field("none", description="What it starts from, as a sweep's `model.weights`.")
    epochs: Count = Field(20, description="Epochs; the best on validation is kept.")
    optimizer: OptimizerName = Field("adamw", description="Optimiser.")
    lr: Positive = Field(3e-3, description="Peak learning rate.")
    weight_decay: NonNegative = Field(1e-4, description="Weight decay.")
    warmup_epochs: NonNegative = Field(1.0, description="Epochs of linear warm-up before the cosine.")
    grad_clip_norm: Positive | None = Field(None, description="Largest global norm of the gradient; none: any.")
    batch_size: Count = Field(64, description="Pictures per step over all workers together.")
    label_smoothing: Share = Field(0.0, description="Share of the target spread over all classes.")
    augmentation: PolicyName = Field("flip_crop", description="Views of a picture to learn from.")
    magnitude: Magnitude = Field(9, description="Strength of the policies that have one, of 30.")
    num_views: CountOrUnlimited = Field("unlimited", description="Epoch e trains on view e modulo this number.")
    seed: Int = Field(0, ge=0, description="Seed of initial weights, order and views.")

    check_name = field_validator("name")(_check_name)

    def params(self) -> dict[str, Any]:
        """The recipe as a point of a search space: see `search_spaces.space.apply_params`."""
        left_out = {"name", "data", "weights", "epochs", "seed", "version", "backbone", "compute", "resources"}
        return {"freeze_depth": 0, **self.model_dump(exclude={*left_out, "tracking"})}


class PretrainSpec(PretrainRecipe):
    """A backbone to train on a source data set: what `thaw pretrain` takes."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    backbone: str = Field(min_length=1, description="Name of the network, as torchvision spells it, or 'lenet'.")
    compute: ComputeConfig = Field(ComputeConfig(), description="Choices of speed and rounding.")
    resources: ResourceSpec = Field(ResourceSpec(), description="What the training runs on.")
    tracking: TrackingSpec = Field(TrackingSpec(), description="Where MLflow keeps records and models.")

    check_version = field_validator("version", mode="before")(_check_version)

    @model_validator(mode="after")
    def _is_consistent(self) -> PretrainSpec:
        _raise_any(list(resource_contradictions(self.resources, "resources")))
        return self


class PretrainWeights(SpecPart):
    """Weights that are trained first, on a source data set, and kept for the next time."""

    pretrain: PretrainRecipe = Field(description="How to train them; the backbone is the sweep's.")


Weights: TypeAlias = Annotated[
    Union[Annotated[str, Field(min_length=1), Tag(VALUE)], Annotated[PretrainWeights, Tag(RANGE)]],  # noqa: UP007
    Discriminator(lambda value: RANGE if isinstance(value, (dict, BaseModel)) else VALUE),
]


_WEIGHTS = (
    "'default' or a name of torchvision's weights (a download), a .pth or .safetensors file, 'models:/NAME@ALIAS' of "
    "MLflow, 'none' (random), or {pretrain: ...}: train them first."
)


class BackboneChoice(SpecPart):
    """One network of several that are searched at once."""

    backbone: str = Field(min_length=1, description="Name of the network, as torchvision spells it, or 'lenet'.")
    weights: Weights = Field("default", description=_WEIGHTS)
    freeze_depth: Searched[Depth, DepthRange] | None = Field(
        None, description="Depths of this network to search; none: as search.freeze_depth says."
    )
    image_size_px: Annotated[int, Field(strict=True, ge=8, le=1024)] | None = Field(
        None, description="Side of the square that this network sees; none: data.image_size_px, which is the most."
    )

    @property
    def is_pretrained(self) -> bool:
        """Whether it starts from weights rather than at random."""
        return self.weights != "none"


def _form_of_backbones(value: object) -> str:
    return CHOICES if isinstance(value, (list, tuple)) else WORD


def _name_of(entry: str | BackboneChoice) -> str:
    return entry if isinstance(entry, str) else entry.backbone


def _are_other_networks(entries: tuple[str | BackboneChoice, ...]) -> tuple[str | BackboneChoice, ...]:
    if not entries:
        raise ValueError("the list is empty; give at least one network")
    are_distinct(tuple(map(_name_of, entries)))
    return entries


BackboneEntry: TypeAlias = Annotated[
    Union[Annotated[str, Field(min_length=1), Tag(VALUE)], Annotated[BackboneChoice, Tag(RANGE)]],  # noqa: UP007
    Discriminator(lambda value: RANGE if isinstance(value, (dict, BaseModel)) else VALUE),
]
Backbones: TypeAlias = Annotated[
    Union[  # noqa: UP007
        Annotated[Literal["auto"], Tag(WORD)],
        Annotated[tuple[BackboneEntry, ...], AfterValidator(_are_other_networks), Tag(CHOICES)],
    ],
    Discriminator(_form_of_backbones),
]


class ModelSpec(SpecPart):
    """Which network or networks, and what they start from."""

    backbone: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Name of the network, as torchvision spells it, or 'lenet'. This or `backbones` is yours to give.",
    )
    weights: Weights = Field("default", description=f"Of `backbone`: {_WEIGHTS}")
    backbones: Backbones | None = Field(
        None,
        description="Several networks that are searched at once: a list of names (with weights: default) and of "
        "{backbone: ..., weights: ..., freeze_depth: ..., image_size_px: ...}; or 'auto': up to "
        f"{MOST_CHOSEN} of torchvision's, the best of each family by published top-1 within the two bounds below.",
    )
    max_parameters: Count = Field(
        30_000_000, description="Most parameters of a network that `backbones: auto` may take, in all its layers."
    )
    max_gflops: Positive | None = Field(
        None,
        description="Most GFLOPs that it may need for one picture of data.image_size_px, forward; none: any number.",
    )

    @field_validator("backbones", mode="before")
    @classmethod
    def _is_auto_or_a_list(cls, value: Any) -> Any:
        if value is None or value == "auto" or isinstance(value, (list, tuple)):
            return value
        raise ValueError(f"{value!r} is neither 'auto' nor a list; write a list such as [resnet18, mobilenet_v2]")

    @property
    def choices(self) -> tuple[BackboneChoice, ...]:
        """The networks, whichever way they are given; none as long as 'auto' has not chosen them."""
        if self.backbone is not None:
            return (BackboneChoice(backbone=self.backbone, weights=self.weights),)
        if not isinstance(self.backbones, tuple):
            return ()
        return tuple(BackboneChoice(backbone=each) if isinstance(each, str) else each for each in self.backbones)

    @property
    def label(self) -> str:
        """The networks in a few words, for titles."""
        names = [choice.backbone for choice in self.choices]
        return ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)} backbones"

    def place_of(self, backbone: str) -> str:
        """Where the spec speaks of a network's weights, for messages."""
        return "model.weights" if self.backbone is not None else f"model.backbones: {backbone}"


class EarlyStoppingSpec(SpecPart):
    """When a trial is given up (asynchronous successive halving, Li et al., MLSys 2020)."""

    scheduler: Literal["asha", "none"] = Field("asha", description="'none': every trial runs all its epochs.")
    grace_period: Count = Field(2, description="Epochs that every trial gets; never more than there are.")
    reduction_factor: Float = Field(3.0, gt=1, description="At each rung about one trial in this many goes on.")
    patience: Count | None = Field(
        None,
        description="A trial ends when its best epoch, by `metric`, is so many epochs ago; none: never.",
    )


class CacheSpec(SpecPart):
    """Where features of frozen layers are kept, for every trial, sweep and night after."""

    budget_gb: Positive = Field(20.0, description="What they may take on disk; the least recently used go first.")
    directory: str | None = Field(None, description="Folder for them; none: in Thaw's home, on a cluster on each node.")
    shared_uri: str | None = Field(None, description="Storage behind the local folders, such as s3://bucket/features.")


class SweepSpec(SpecPart):
    """One sweep: what `thaw sweep` takes."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    name: str = Field(description=f"Name of the sweep and of its MLflow experiment. {_NAME_RULE}")
    data: DataSpec = Field(description="Which pictures, and how they are dealt to the sides.")
    model: ModelSpec = Field(description="Which network, and what it starts from.")
    search: SearchSpec = Field(SearchSpec(), description="What varies from trial to trial.")
    budget: BudgetSpec = Field(BudgetSpec(), description="What the sweep may spend.")
    compute: ComputeConfig = Field(ComputeConfig(), description="Choices of speed and rounding.")
    features: Literal["auto", "off", "required"] = Field(
        "auto",
        description="Whether frozen layers' features are stored and read: the numbers are the same either way. "
        "'required': training without them is an error.",
    )
    cache: CacheSpec = Field(CacheSpec(), description="Where those features are kept.")
    early_stopping: EarlyStoppingSpec = Field(EarlyStoppingSpec(), description="When a trial is given up.")
    keep_checkpoints: Count = Field(
        3, description="Trials, the best ones, whose trained weights stay on disk after they have ended."
    )
    metric: MetricName = Field("val/accuracy", description="What chooses between epochs and between trials.")
    baselines: Annotated[tuple[BaselineName, ...], AfterValidator(are_distinct)] = Field(
        (), description="Runs beside the search, to compare the champion with."
    )
    tracking: TrackingSpec = Field(TrackingSpec(), description="Where MLflow keeps records and models.")
    seed: Int = Field(0, ge=0, le=2**32 - 1, description="Seed of the search and of every trial.")

    check_name = field_validator("name")(_check_name)
    check_version = field_validator("version", mode="before")(_check_version)

    @model_validator(mode="after")
    def _is_consistent(self) -> SweepSpec:
        _raise_any(list(contradictions(self)))
        return self

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether a good trial has a small or a large metric."""
        return "min" if self.metric == "val/loss" else "max"

    @property
    def is_pretrained(self) -> bool:
        """Whether a backbone starts from weights rather than at random."""
        return self.model.backbones == "auto" or any(choice.is_pretrained for choice in self.model.choices)

    @property
    def most_trials(self) -> int | None:
        """Trials in all; None where the budget, or the last point of the space, ends the search."""
        if isinstance(self.search.num_trials, int):
            return self.search.num_trials
        if self.search.sampler in ("grid", "brute_force"):
            return None
        is_bounded = self.budget.flops is not None or self.budget.time_s is not None
        return None if is_bounded else USUAL_NUM_TRIALS

    @property
    def grace_period(self) -> int:
        """Epochs before ASHA may stop a trial, within the epochs there are."""
        return min(self.early_stopping.grace_period, self.budget.epochs)

    def pretrain_specs(self) -> dict[str, PretrainSpec]:
        """The backbones to train first, by name, on the sweep's resources."""
        resources = ResourceSpec(**{name: getattr(self.budget, name) for name in ResourceSpec.model_fields})
        return {
            choice.backbone: PretrainSpec(
                **{name: getattr(choice.weights.pretrain, name) for name in PretrainRecipe.model_fields},
                backbone=choice.backbone,
                compute=self.compute,
                resources=resources,
                tracking=TrackingSpec(uri=self.tracking.uri),
            )
            for choice in self.model.choices
            if not isinstance(choice.weights, str)
        }
