"""What may vary from trial to trial, as the section ``search`` of a spec says it.

In: a mapping. Out: `SearchSpec`, with every default filled in. What the fields mean to a trial is in
`trainables.config`; which of them have an effect together, in `search_spaces.space`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from search_spaces.ranges import (
    Alpha,
    AlphaRange,
    Chosen,
    Count,
    CountOrAuto,
    CountOrUnlimited,
    CountRange,
    Decay,
    DecayRange,
    Depth,
    DepthRange,
    Int,
    Magnitude,
    MagnitudeRange,
    NonNegative,
    NonNegativeRange,
    Positive,
    PositiveRange,
    Rate,
    RateRange,
    Searched,
    Share,
    ShareRange,
    SizePx,
    SpecPart,
    StartSize,
    StartSizeRange,
    listed,
)
from trainables.config import MOST_HIDDEN, BatchNormMode, ClassBalance, HeadKind, PolicyName, Precision, Schedule

OptimizerName = Literal["adamw", "sgd"]
HeadInitName = Literal["auto", "probe", "random"]
SamplerName = Literal["tpe", "gp", "cmaes", "random", "grid", "brute_force"]
LISTING_SAMPLERS: tuple[SamplerName, ...] = ("grid", "brute_force")
"""Those that try every point once and then end the search."""
USUAL_NUM_TRIALS = 16
MOST_REPEATS = 20


class SearchSpec(SpecPart):
    """What varies from trial to trial: each field one value, a list of choices, or a range."""

    num_trials: CountOrAuto = Field(
        "auto",
        description="Trials in all, those that are stopped early included. 'auto': "
        f"{USUAL_NUM_TRIALS}; or as many as budget.flops or budget.time_s allows, where one is given; with the "
        "samplers grid and brute_force every point of the space.",
    )
    repeats: Int = Field(
        1,
        ge=1,
        le=MOST_REPEATS,
        description="Seeds that every trial is trained with: the sweep's and those that follow it. Its score is the "
        "mean, so that luck with order and initial weights decides less; it costs so many times as much.",
    )
    sampler: SamplerName = Field(
        "tpe",
        description="Who proposes trials: 'tpe', a tree-structured Parzen estimator (Bergstra et al. 2011); 'gp', a "
        "Gaussian process; 'cmaes', an evolution strategy over the numbers, for long searches; 'random', nobody: the "
        "first trials of these are the same. 'grid' and 'brute_force' try every point once: grid in random order, "
        "brute_force common advice first, and then at random.",
    )
    cost_aware: bool = Field(
        False,
        strict=True,
        description="Whether proposals weigh what a trial should bring against what it computes: improvement per FLOP "
        "at first, improvement alone at the end.",
    )
    probe: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether a linear classifier on the features behind every stage is fitted first, in closed form; "
        "it takes one pass over the pictures, and its accuracy by depth chooses the first trials. 'auto': where "
        "weights are pretrained and there are depths, or networks, to choose from; not with several labels, nor under "
        "the sampler grid.",
    )
    freeze_depth: Searched[Depth, DepthRange] = Field(
        DepthRange(),
        description="Number of leading stages kept frozen; 0 trains everything, 'all' only the head. "
        "`--dry-run` lists the stages.",
    )
    lr: Searched[Positive, PositiveRange] = Field(
        PositiveRange(low=3e-4, high=3e-2, log=True), description="Peak learning rate of the head."
    )
    backbone_lr_ratio: Searched[Positive, PositiveRange] = Field(
        PositiveRange(low=0.03, high=1.0, log=True), description="The unfrozen backbone learns at lr times this."
    )
    layer_decay: Searched[Rate, RateRange] = Field(
        1.0, description="Each stage further from the head learns at this times the rate of the next one; 1: alike."
    )
    optimizer: Chosen[OptimizerName] = Field(("adamw", "sgd"), description="AdamW, or SGD with Nesterov momentum.")
    schedule: Chosen[Schedule] = Field(
        "cosine", description="How the rate goes on from its peak: cosine, linear, constant, or one_cycle as a whole."
    )
    weight_decay: Searched[NonNegative, NonNegativeRange] = Field(
        NonNegativeRange(low=1e-5, high=1e-2, log=True), description="Weight decay."
    )
    head: Chosen[HeadKind] = Field(
        "linear",
        description=f"The last layer: 'linear'; 'mlp', one hidden layer of {MOST_HIDDEN} units (fewer where fewer "
        "features come in) with ReLU; 'cosine', angles between features and one direction per class, times a learnt "
        "scale (Gidaris & Komodakis 2018), for few pictures.",
    )
    head_init: Chosen[HeadInitName] = Field(
        "auto",
        description="What a linear head starts from: 'probe', a linear classifier fitted in closed form on the frozen "
        "network's features, or 'random'. A probe is ahead in the first epochs and not always at the end, so 'auto' "
        "tries both where weights are pretrained; else it is random.",
    )
    dropout: Searched[Share | None, ShareRange] = Field(
        None,
        description="Share of the head's inputs that are dropped in training; none: what the network itself has there.",
    )
    bn_mode: Chosen[BatchNormMode] = Field(
        "update",
        description="BatchNorm of the trained part: 'update', by the statistics of each batch; 'keep', by the "
        "pretrained ones, which stay as they are while scale and shift learn: for small batches.",
    )
    augmentation: Chosen[PolicyName] = Field(
        ("none", "flip", "flip_crop", "randaugment"),
        description="Views of a picture to learn from: 'none' as it is; 'flip' mirrored or not; 'crop' a part of it; "
        "'flip_crop' both; 'color' other brightness, contrast, saturation; 'industrial' small shifts, brightness and "
        "contrast, never mirrored; 'erasing' flip_crop with a blank patch; 'randaugment', 'trivialaugment', 'augmix' "
        "flip_crop with those on top.",
    )
    magnitude: Searched[Magnitude, MagnitudeRange] = Field(
        MagnitudeRange(low=3, high=15),
        description="Strength of color, industrial, randaugment and augmix, of 30; only with them.",
    )
    num_views: Searched[CountOrUnlimited, CountRange] = Field(
        4,
        description="Epoch e trains on view e modulo this number; what is behind frozen layers of them can be stored.",
    )
    image_size_px: Chosen[SizePx] | None = Field(
        None,
        description="Sides of the square that every network is tried at, each as one of `model.backbones`; none: "
        "data.image_size_px, which is the most: pictures are kept for it.",
    )
    start_size: Searched[StartSize, StartSizeRange] = Field(
        1.0,
        description="Share of the image size that training begins with: a third of the epochs at it, a third half-way, "
        "the last third at the full size, at which every epoch is judged. Smaller pictures train faster; those of the "
        "first two thirds are not stored. 1: the full size throughout.",
    )
    batch_size: Searched[Count, CountRange] = Field(
        (16, 32, 64), description="Pictures per step over all workers together."
    )
    label_smoothing: Searched[Share, ShareRange] = Field(
        (0.0, 0.1), description="Share of the target spread over all classes."
    )
    warmup_epochs: Searched[NonNegative, NonNegativeRange] = Field(
        (0.0, 1.0), description="Epochs of linear warm-up; one_cycle has its own."
    )
    mixup_alpha: Searched[Alpha, AlphaRange] = Field(
        0.0,
        description="Mixup (Zhang et al. 2018) of what enters the trained part: of pictures at freeze_depth 0, of "
        "features behind frozen stages (manifold mixup, Verma et al. 2019), so that stored ones serve. 0: off; 0.2 is "
        "usual.",
    )
    cutmix_alpha: Searched[Alpha, AlphaRange] = Field(
        0.0,
        description="CutMix (Yun et al. 2019) of the same maps; where they have no extent, mixup. 0: off; 1 is usual. "
        "Beside mixup_alpha, each batch draws one of the two.",
    )
    class_balance: Chosen[ClassBalance] = Field(
        "none",
        description="'weighted': a picture's loss counts by the inverse of its class's share, 1 on average. "
        "'balanced': an epoch draws as many pictures as there are, of each class equally many; rare ones repeat.",
    )
    ema_decay: Searched[Decay | None, DecayRange] = Field(
        None,
        description="Moving average of the weights, by step of the optimizer, judged and kept in their place; shorter "
        "at first. none: the weights themselves; 0.99 is usual for hundreds of steps.",
    )
    grad_accumulation: Searched[Count, CountRange] = Field(
        1, description="Batches whose gradients make one step of the optimizer, as one batch so many times as large."
    )
    grad_clip_norm: Searched[Positive | None, PositiveRange] = Field(
        (None, 1.0), description="Largest global norm of the gradient; none: any."
    )
    precision: Chosen[Precision] | None = Field(
        None, description="Of the trained part, fp32 or bf16, where it is to be searched; none: as compute.precision."
    )

    @field_validator("head_init")
    @classmethod
    def _auto_stands_alone(cls, value: Any) -> Any:
        if isinstance(value, tuple) and "auto" in value:
            raise ValueError("'auto' in a list says nothing; write auto alone, or list probe and random")
        return value

    @property
    def smallest_start_size(self) -> float:
        """The smallest share of the side that a trial may begin with."""
        start = self.start_size
        return float(start.low if isinstance(start, StartSizeRange) else min(listed(start)))
