"""What a user asks for: one sweep, or one backbone to pretrain, typed, frozen and checked.

In: the mapping a spec file holds. Out: `SweepSpec` or `PretrainSpec`, with every default filled in. Whether folders
exist, weights fit or a backbone has that many stages is for those who know them; this module imports neither torch nor
Ray, Optuna or MLflow, so that checking a spec takes no time.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from search_spaces.compute_spec import ComputeSpec
from search_spaces.contradictions import contradictions, resource_contradictions
from search_spaces.cost_matrix import Costs
from search_spaces.data_spec import DataSpec
from search_spaces.model_spec import ModelSpec, PretrainRecipe
from search_spaces.ranges import (
    NAME_RULE,
    Count,
    CountOrAuto,
    Epochs,
    Float,
    Gigabytes,
    Int,
    Positive,
    Resource,
    SpecPart,
    are_distinct,
    at_most,
    check_name,
    is_kept,
    listed,
)
from search_spaces.search_spec import LISTING_SAMPLERS, USUAL_NUM_TRIALS, SearchSpec
from trainables.config import ComputeConfig
from trainables.files.typed_path import path_problem
from trainables.wording import shorten, shorten_place

SPEC_VERSION = 1
MetricName = Literal[
    "val/accuracy", "val/balanced_accuracy", "val/macro_f1", "val/loss", "val/auroc", "val/cost", "val/map"
]
_SMALL_IS_GOOD: tuple[MetricName, ...] = ("val/loss", "val/cost")
BaselineName = Literal["head_only", "full_finetune", "from_scratch"]
_OLD_TIME = "time_budget_s"


def _check_version(version: Any) -> Any:
    if type(version) is int and version > SPEC_VERSION:
        raise ValueError(f"{version} is newer than {SPEC_VERSION}, the newest this Thaw reads; install a newer Thaw")
    return version


def _raise_any(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(problems))


class ResourceSpec(SpecPart):
    """What one trial runs on."""

    workers_per_trial: Count = Field(1, description="Training workers of one trial; its batch is shared among them.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="'auto': CUDA where the cluster has GPUs.")
    cpus_per_worker: Resource | None = Field(
        None, description="CPU cores a worker asks for; none: an even share of what the cluster has."
    )
    gpus_per_worker: Resource = Field(
        1.0, description="GPUs a worker asks for where the device is CUDA; below 1, several trials share one."
    )
    threads_per_worker: Annotated[CountOrAuto, at_most(1024)] = Field(
        "auto", description="Threads of torch; 'auto': the cores a worker has."
    )
    trial_timeout_s: Annotated[Positive, at_most(1_000_000_000)] | None = Field(
        1800.0, description="A trial that takes no step for so many seconds is failed, its stack logged; none: never."
    )


class BudgetSpec(ResourceSpec):
    """What the sweep may spend."""

    epochs: Epochs = Field(8, description="Most epochs of one trial.")
    last_epoch: Epochs | None = Field(
        None,
        description="The epoch at which trials end, along the schedule of all `epochs`: as the trial went that "
        "`thaw best --spec` wrote down; none: the last one.",
    )
    time_s: Positive | None = Field(
        None,
        description="No trial starts after this many seconds of searching, interruptions not counted, and running "
        "ones end at their next epoch.",
    )
    flops: Positive | None = Field(
        None, description="The same with computed FLOPs: what is read from the feature store is not computed."
    )
    concurrency: CountOrAuto = Field(
        "auto",
        description="Trials that run side by side; 'auto': on GPUs as many as they take (see gpus_per_worker), on CPUs "
        "one per four cores.",
    )

    @property
    def trial_epochs(self) -> int:
        """How many epochs a trial has that nothing ends before."""
        return self.last_epoch or self.epochs

    @model_validator(mode="after")
    def _ends_within_its_schedule(self) -> BudgetSpec:
        if self.last_epoch is not None and self.last_epoch > self.epochs:
            raise ValueError(
                f"last_epoch is {self.last_epoch} of {self.epochs} epochs; set it to at most {self.epochs}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _old_name_of_time_s(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or _OLD_TIME not in raw:
            return raw
        if raw.get("time_s") is not None:
            raise ValueError(f"{_OLD_TIME} is the old name of time_s, and both are given; leave {_OLD_TIME} out")
        return {**{name: value for name, value in raw.items() if name != _OLD_TIME}, "time_s": raw[_OLD_TIME]}


_LONGEST_MODEL_NAME = 256


class TrackingSpec(SpecPart):
    """Where MLflow keeps records and models."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; none: MLFLOW_TRACKING_URI, else SQLite in Thaw's home."
    )
    model_name: str | None = Field(None, description="Name of the registered model; none: the spec's name.")

    @field_validator("model_name")
    @classmethod
    def _is_model_name(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None or is_kept(info):
            return name
        if not name.strip() or name.startswith("..") or name == "." or set(name) & set("/:@"):
            raise ValueError(f"{shorten(name)} cannot name a model in MLflow; use a name without '/', ':' and '@'")
        if not name.isprintable() or len(name) > _LONGEST_MODEL_NAME:
            raise ValueError(f"{shorten(name)} cannot name a model in MLflow; use at most 256 letters that print")
        return name


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


class PopulationSpec(SpecPart):
    """How trials take over from each other under the scheduler pbt; both shares are Ray Tune's defaults."""

    perturbation_interval: Count = Field(
        2,
        description="Epochs from one exchange to the next; all trials wait for the last one. Tune's own default, 60, "
        "counts seconds.",
    )
    quantile_fraction: Float = Field(
        0.25, gt=0, le=0.5, description="The worst of this share of the trials take over from the best of it."
    )
    resample_probability: Float = Field(
        0.25,
        ge=0,
        le=1,
        description="How often a setting that is taken over is drawn anew from its range or list; else a number moves "
        "by a fifth, a listed value to its neighbour.",
    )


class EarlyStoppingSpec(SpecPart):
    """When a trial is given up. One that trains the head alone is spared by all but patience."""

    scheduler: Literal["asha", "hyperband", "median", "pbt", "none"] = Field(
        "asha",
        description="'asha', successive halving in which no trial waits (Li et al., MLSys 2020); 'hyperband', in "
        "brackets of different haste, in which trials wait for each other (Li et al., JMLR 2018); 'median', a trial "
        "ends when its best epoch is worse than the median of the others' means (Golovin et al. 2017); 'pbt', "
        "population-based training: no trial ends, poor ones go on with the weights and the changed settings of good "
        "ones (Jaderberg et al. 2017); 'none', every trial runs all its epochs.",
    )
    grace_period: Count = Field(
        2, description="Epochs that every trial gets under asha and median, never more than there are."
    )
    reduction_factor: Float = Field(
        3.0, ge=1.1, description="At each rung of asha and hyperband about one trial in this many goes on."
    )
    patience: Count | None = Field(
        None,
        description="A trial ends when its best epoch, by `metric`, is so many epochs ago; none: never.",
    )
    population: PopulationSpec = Field(PopulationSpec(), description="How trials take over from each other: pbt.")


class CacheSpec(SpecPart):
    """Where features of frozen layers are kept, for every trial, sweep and night after."""

    budget_gb: Gigabytes = Field(20.0, description="What they may take on disk; the least recently used go first.")
    directory: str | None = Field(None, description="Folder for them; none: in Thaw's home, on a cluster on each node.")
    shared_uri: str | None = Field(None, description="Storage behind the local folders, such as s3://bucket/features.")

    @field_validator("directory")
    @classmethod
    def _is_a_folder(cls, directory: str | None, info: ValidationInfo) -> str | None:
        if directory is None or is_kept(info):
            return directory
        if "://" in directory or not directory.strip():
            raise ValueError(
                f"{shorten_place(directory)} is no folder; give one, and a storage behind it by shared_uri"
            )
        if problem := path_problem(directory):
            raise ValueError(f"{shorten_place(directory)}: {problem}")
        return directory


class SweepSpec(SpecPart):
    """One sweep: what `thaw sweep` takes."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    name: str = Field(description=f"Name of the sweep and of its MLflow experiment. {NAME_RULE}")
    data: DataSpec = Field(description="Which pictures, and how they are dealt to the sides.")
    model: ModelSpec = Field(description="Which network, and what it starts from.")
    search: SearchSpec = Field(SearchSpec(), description="What varies from trial to trial.")
    budget: BudgetSpec = Field(BudgetSpec(), description="What the sweep may spend.")
    compute: ComputeSpec = Field(ComputeSpec(), description="Choices of speed and rounding; 'auto' measures them.")
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
    metric: MetricName = Field(
        "val/accuracy",
        description="What chooses between epochs and between trials, and champion from challenger. 'val/auroc': area "
        "under the ROC curve, with more than two classes the mean of each against the rest; 'val/cost': by `costs`; "
        "'val/map': mean average precision of the classes, the default where `data.labels` is multi.",
    )
    costs: Costs | None = Field(
        None,
        description="What it costs to take a picture of one class for another: {true class: {predicted class: cost}}, "
        "0 on the diagonal and 1 elsewhere unless given, or a matrix in the order of the classes. The model then "
        "decides for the class that is expected to cost least; none: for the most probable.",
    )
    baselines: Annotated[tuple[BaselineName, ...], AfterValidator(are_distinct)] = Field(
        (), description="Runs beside the search, to compare the champion with."
    )
    tracking: TrackingSpec = Field(TrackingSpec(), description="Where MLflow keeps records and models.")
    seed: Int = Field(
        0,
        ge=0,
        le=2**32 - 1,
        description="Seed of the search and of every trial. Pictures have the same views under each, so that features "
        "are used again.",
    )

    check_its_name = field_validator("name")(check_name)

    @field_validator("name")
    @classmethod
    def _is_of_its_own(cls, name: str, info: ValidationInfo) -> str:
        if name == "Default" and not is_kept(info):
            raise ValueError("'Default' is an experiment of MLflow's own; give another name")
        return name

    check_version = field_validator("version", mode="before")(_check_version)

    @model_validator(mode="before")
    @classmethod
    def _several_labels_have_a_metric_of_their_own(cls, raw: Any) -> Any:
        data = raw.get("data") if isinstance(raw, dict) else None
        labels = data.get("labels") if isinstance(data, dict) else getattr(data, "labels", None)
        return {**raw, "metric": "val/map"} if labels == "multi" and "metric" not in raw else raw

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> SweepSpec:
        _raise_any(list(contradictions(self, begins=not is_kept(info))))
        return self

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether a good trial has a small or a large metric."""
        return "min" if self.metric in _SMALL_IS_GOOD else "max"

    @property
    def is_head_only(self) -> bool:
        """Whether every trial trains the head alone, on whichever network."""
        own = [entry.freeze_depth for entry in self.model.entries] or [None]
        return all(listed(self.search.freeze_depth if each is None else each) == ("all",) for each in own)

    @property
    def can_probe(self) -> bool:
        """Whether a linear probe of the frozen network is worth fitting, and there is one for such labels."""
        return self.is_pretrained and self.data.labels == "single"

    @property
    def is_pretrained(self) -> bool:
        """Whether a backbone starts from weights rather than at random."""
        return self.model.backbones == "auto" or any(entry.is_pretrained for entry in self.model.entries)

    @property
    def most_trials(self) -> int | None:
        """Trials in all; None where the budget, or the last point of the space, ends the search."""
        if isinstance(self.search.num_trials, int):
            return self.search.num_trials
        if self.is_population:
            return USUAL_NUM_TRIALS
        if self.search.sampler in LISTING_SAMPLERS:
            return None
        is_bounded = self.budget.flops is not None or self.budget.time_s is not None
        return None if is_bounded else USUAL_NUM_TRIALS

    @property
    def is_population(self) -> bool:
        """Whether trials take over from each other."""
        return self.early_stopping.scheduler == "pbt"

    @property
    def grace_period(self) -> int:
        """Epochs before ASHA may stop a trial, within the epochs there are."""
        return min(self.early_stopping.grace_period, self.budget.trial_epochs)

    def compute_of(self, name: str) -> ComputeSpec:
        """Speed and rounding of one of the networks, as `ModelSpec.named` names them."""
        choice = self.model.named.get(name)
        return self.compute if choice is None or choice.compute is None else choice.compute

    def recipe_compute(self, name: str, recipe: PretrainRecipe) -> ComputeConfig:
        """Speed and rounding of a network's pretraining.

        A recipe names its weights on every machine, so it takes the defaults in place of what is measured.
        """
        return recipe.compute or self.compute_of(name).without_auto()

    def pretrain_specs(self) -> dict[str, PretrainSpec]:
        """The networks to train first, as `ModelSpec.named` names them, on the sweep's resources."""
        resources = ResourceSpec(**{name: getattr(self.budget, name) for name in ResourceSpec.model_fields})
        return {
            name: PretrainSpec(
                **{field: getattr(choice.weights.pretrain, field) for field in PretrainRecipe.model_fields}
                | {"compute": self.recipe_compute(name, choice.weights.pretrain)},
                backbone=choice.backbone,
                resources=resources,
                tracking=TrackingSpec(uri=self.tracking.uri),
            )
            for name, choice in self.model.named.items()
            if not isinstance(choice.weights, str)
        }
