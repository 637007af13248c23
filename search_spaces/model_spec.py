"""Which network or networks, and what they start from, as the section ``model`` of a spec says it.

In: a mapping. Out: `ModelSpec`, with every default filled in. Whether there is such a network and such weights is for
those who load them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, Union

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator

from search_spaces.compute_spec import ComputeSpec
from search_spaces.data_spec import DataSpec
from search_spaces.naming import at_size
from search_spaces.ranges import (
    CHOICES,
    NAME_RULE,
    RANGE,
    VALUE,
    WORD,
    Chosen,
    Count,
    CountOrUnlimited,
    Depth,
    DepthRange,
    Epochs,
    Int,
    Magnitude,
    NonNegative,
    Positive,
    Searched,
    Share,
    SizePx,
    SpecPart,
    are_distinct,
    check_name,
    is_kept,
    listed,
)
from search_spaces.search_spec import OptimizerName
from trainables.config import ComputeConfig, PolicyName
from trainables.wording import shorten, visible

MOST_CHOSEN = 4
"""Networks that `backbones: auto` takes."""
_MOST_NAMED = 3


class PretrainRecipe(SpecPart):
    """How a backbone is trained on a set; `thaw pretrain` takes `backbone`, `resources` and `tracking` beside these."""

    name: str = Field(description=f"Name under which the weights are registered. {NAME_RULE}")
    data: DataSpec = Field(description="The source data set.")
    weights: str = Field("none", description="What it starts from, as a sweep's `model.weights`.")
    epochs: Epochs = Field(20, description="Epochs; the best on validation is kept.")
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
    seed: Int = Field(0, ge=0, le=2**32 - 1, description="Seed of initial weights and order.")
    compute: ComputeConfig | None = Field(
        None, description="Choices of speed and rounding; none: the sweep's, and the defaults for what it measures."
    )

    check_its_name = field_validator("name")(check_name)

    @field_validator("warmup_epochs")
    @classmethod
    def _ends(cls, warmup_epochs: float, info: ValidationInfo) -> float:
        epochs = info.data.get("epochs")
        if not is_kept(info) and epochs is not None and warmup_epochs > epochs:
            raise ValueError(f"{warmup_epochs:g} is more than the {epochs} of epochs; lower it, or train longer")
        return warmup_epochs

    @field_validator("data")
    @classmethod
    def _is_plain(cls, data: DataSpec) -> DataSpec:
        if data.labels == "multi":
            raise ValueError("data.labels is multi, and backbones are pretrained on pictures of one class; set single")
        if data.folds:
            raise ValueError(f"folds is {data.folds}, but pretraining keeps one network; leave data.folds out here")
        return data

    def params(self) -> dict[str, Any]:
        """The recipe as a point of a search space: see `search_spaces.space.apply_params`."""
        left_out = {"name", "data", "weights", "epochs", "seed", "version", "backbone", "compute", "resources"}
        return {"freeze_depth": 0, **self.model_dump(exclude={*left_out, "tracking"})}


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
    image_size_px: Chosen[SizePx] | None = Field(
        None,
        description="Side of the square that this network sees, or several; none: as search.image_size_px says.",
    )
    compute: ComputeSpec | None = Field(
        None, description="Speed and rounding of this network; none: as the section compute says."
    )

    @property
    def is_pretrained(self) -> bool:
        """Whether it starts from weights rather than at random."""
        return self.weights != "none"

    def by_size(self) -> tuple[BackboneChoice, ...]:
        """The same network at each of its sizes."""
        return tuple(self.model_copy(update={"image_size_px": size}) for size in listed(self.image_size_px))


def _form_of_backbones(value: object) -> str:
    return CHOICES if isinstance(value, (list, tuple)) else WORD


def _name_of(entry: str | BackboneChoice) -> str:
    return entry if isinstance(entry, str) else entry.backbone


def _are_other_networks(entries: tuple[str | BackboneChoice, ...]) -> tuple[str | BackboneChoice, ...]:
    if not entries:
        raise ValueError("the list is empty; give at least one network")
    names = [_name_of(entry) for entry in entries]
    sizes = [None if isinstance(entry, str) else entry.image_size_px for entry in entries]
    for name, size in zip(names, sizes, strict=True):
        if size is None and names.count(name) > 1:
            raise ValueError(f"{shorten(name)} is listed twice; list it once, or give each an image_size_px of its own")
    are_distinct(tuple(at_size(name, each) for name, size in zip(names, sizes, strict=True) for each in listed(size)))
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
        f"{MOST_CHOSEN} of torchvision's, the best of each family by published top-1 within the bounds below.",
    )
    max_parameters: Count = Field(
        30_000_000, description="Most parameters of a network that `backbones: auto` may take, in all its layers."
    )
    max_gflops: Positive | None = Field(
        None,
        description="Most GFLOPs that it may need for one picture of data.image_size_px, forward; none: any number.",
    )
    max_latency_ms: Positive | None = Field(
        None,
        description="Longest that it may take for one picture of data.image_size_px, in milliseconds: measured on one "
        "core of the machine that starts the sweep, the whole network in fp32, and remembered; none: any time.",
    )

    @field_validator("backbones", mode="before")
    @classmethod
    def _is_auto_or_a_list(cls, value: Any) -> Any:
        if value is None or value == "auto" or isinstance(value, (list, tuple)):
            return value
        raise ValueError(
            f"{shorten(value)} is neither 'auto' nor a list; write a list such as [resnet18, mobilenet_v2]"
        )

    @property
    def entries(self) -> tuple[BackboneChoice, ...]:
        """The networks, whichever way they are given; none as long as 'auto' has not chosen them."""
        if self.backbone is not None:
            return (BackboneChoice(backbone=self.backbone, weights=self.weights),)
        if not isinstance(self.backbones, tuple):
            return ()
        return tuple(BackboneChoice(backbone=each) if isinstance(each, str) else each for each in self.backbones)

    @property
    def named(self) -> dict[str, BackboneChoice]:
        """What is searched, each at one size, by the names that a sweep has for it.

        A network's own name; where it is searched at several sizes, ``resnet18-128px`` and so on.
        """
        choices = [choice for entry in self.entries for choice in entry.by_size()]
        networks = [choice.backbone for choice in choices]
        return {
            name if networks.count(name) == 1 else at_size(name, choice.image_size_px): choice
            for name, choice in zip(networks, choices, strict=True)
        }

    @property
    def label(self) -> str:
        """The networks in a few words, for titles."""
        names = list(self.named)
        return ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)} backbones"

    def place_of(self, backbone: str) -> str:
        """Where the spec speaks of a network's weights, for messages."""
        return "model.weights" if self.backbone is not None else f"model.backbones: {visible(backbone)}"
