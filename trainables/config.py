"""The settings of one trial: typed, frozen, and written as canonical JSON.

In: a point of the search space with everything else resolved (weights as a file, data as a packed table).
Out: what a lane needs to train it, and nothing else. No torch here: Ray Tune's light actors import this module.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PolicyName = Literal[
    "none", "flip", "crop", "flip_crop", "color", "industrial", "erasing", "randaugment", "trivialaugment", "augmix"
]
POLICIES_WITH_MAGNITUDE: tuple[PolicyName, ...] = ("color", "industrial", "randaugment", "augmix")
"""Those whose strength `AugmentationConfig.magnitude` sets; the others have one strength."""
SplitName = Literal["train", "val", "test"]
Fit = Literal["crop", "squash", "pad"]
FitOrAuto = Literal["auto", "crop", "squash", "pad"]
Precision = Literal["fp32", "bf16"]
HeadKind = Literal["linear", "mlp", "cosine"]
OTHER_HEADS: tuple[HeadKind, ...] = ("mlp", "cosine")
MOST_HIDDEN = 512
"""Width of the hidden layer of an MLP head; where fewer features come in, as many as those."""
HeadInit = Literal["probe", "random"]
BatchNormMode = Literal["update", "keep"]
Schedule = Literal["cosine", "linear", "constant", "one_cycle"]
ClassBalance = Literal["none", "weighted", "balanced"]
MOST_ALPHA = 100.0
"""Of mixup and CutMix: from there on nearly every share is one half."""
LEAST_START_SIZE = 0.25
"""Of the side; a sixteenth of the pixels."""
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")
WEIGHTS_ENDINGS = (".pth", ".pt", ".safetensors")
"""Of the names of files that weights are read from."""


class Settings(BaseModel):
    """Base of every settings class: immutable, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical_json(self) -> str:
        """The settings as JSON with sorted keys and no white space: equal settings give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


class SplitConfig(Settings):
    """How pictures are dealt to the train, validation and test sides; always by a hash of their content."""

    train: float = Field(0.8, ge=0, le=1, description="Share of the pictures to learn from.")
    val: float = Field(0.1, ge=0, le=1, description="Share that chooses between epochs and trials.")
    test: float = Field(0.1, ge=0, le=1, description="Share that is read once, for the champion.")
    source: Literal["auto", "ignore"] = Field(
        "auto",
        description="'auto': sides that the source gives, by folders, a column or torchvision's parts, are kept; "
        "without a test side `test_share_of_val` of val becomes it, without a val side it is dealt from train. "
        "'ignore': pool all and deal by the shares.",
    )
    test_share_of_val: float = Field(
        0.5, ge=0, lt=1, description="See `source`; 0 keeps val whole, and then nothing is tested."
    )
    seed: int = Field(0, ge=0, description="Another seed deals the pictures differently.")


class DataConfig(Settings):
    """One packed image table and how a trial reads it."""

    table: str = Field(description="Path or URI of the packed Arrow image table.")
    fingerprint: str = Field(description="SHA-256 that names the table's content.")
    class_names: tuple[str, ...] = Field(description="The classes in label order; other classes are left out.")
    label_separator: str | None = Field(
        None, description="Between the labels of a picture that has several; none: each picture has one class."
    )
    split: SplitConfig = SplitConfig()
    group_pattern: str | None = Field(None, description="Regular expression on names: equal finds stay on one side.")
    image_size_px: int = Field(ge=8, le=1024, description="Side of the square that the network sees.")
    fit: Fit = Field("crop", description="How pictures are brought to that square; older settings lack it: 'crop'.")
    folds: int = Field(0, ge=0, description="Of cross-validation, over all pictures that are not tested; 0: none.")
    fold: int | Literal["all"] | None = Field(
        None,
        description="With folds: which one is judged, the others being learnt from. 'all': every one is learnt from "
        "and none is judged. None: each in its turn, see `TrialConfig.replicas`.",
    )


class AugmentationConfig(Settings):
    """Which views of a picture the network is trained on."""

    policy: PolicyName = "flip_crop"
    magnitude: int = Field(9, ge=0, le=30, description="Strength of the policies that have one, of 30.")
    num_views: int | Literal["unlimited"] = Field(4, description="Epoch e trains on view e modulo this number.")
    seed: int = 0

    @property
    def effective_magnitude(self) -> int | None:
        """The magnitude where it has an effect."""
        return self.magnitude if self.policy in POLICIES_WITH_MAGNITUDE else None


class OptimizerConfig(Settings):
    """How fast the trained part learns."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of the head.")
    backbone_lr_ratio: float = Field(1.0, gt=0, description="The unfrozen backbone learns at lr times this.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each stage further from the head learns at this times the rate of the next one."
    )
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Schedule = Field("cosine", description="How the rate goes on from its peak.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum of SGD.")
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of linear warm-up; one_cycle has its own.")
    grad_clip_norm: float | None = Field(None, gt=0, description="Largest global norm of the gradient.")


class WeightsFile(Settings):
    """Pretrained tensors as a safetensors file whose content is known."""

    uri: str
    sha256: str = Field(description="Of the names, shapes, dtypes and bytes of the tensors.")
    mean: tuple[float, float, float] | None = Field(
        None, description="Of the pictures in [0, 1] that they were trained on; None: as torchvision's own."
    )
    std: tuple[float, float, float] | None = Field(None, description="Likewise.")

    @property
    def key(self) -> str:
        """Names what a network computes with them."""
        return self.sha256 if self.mean is None else f"{self.sha256} {self.mean} {self.std}"


class BackboneConfig(Settings):
    """Which network, and what it starts from."""

    name: str
    weights: WeightsFile | None = Field(None, description="None: random weights, drawn from the trial's seed.")


class ComputeConfig(Settings):
    """Choices that change speed and rounding, not the method."""

    precision: Precision = Field("fp32", description="Of the trained part; bf16 is autocast.")
    prefix_precision: Precision = Field("fp32", description="Of the frozen part; bf16 is autocast.")
    channels_last: bool = Field(True, description="Memory layout of pictures and weights.")
    prefix_batch_size: int = Field(
        32, ge=1, description="The frozen part always runs in batches of this size, the last one padded."
    )


class FeatureSettings(Settings):
    """Where a lane keeps what frozen parts computed; decides speed, never a number."""

    mode: Literal["auto", "required"] = "auto"
    directory: str | None = Field(None, description="None: in this node's cache.")
    budget_bytes: int = Field(20 << 30, ge=0)
    shared_uri: str | None = None
    resident_bytes: int | None = Field(
        None, ge=0, description="Memory of a worker that mapped features may take; None: a quarter of the machine's."
    )


class TrialConfig(Settings):
    """Everything that decides the numbers of one trial."""

    data: DataConfig
    backbone: BackboneConfig
    freeze_depth: int = Field(ge=0, description="Number of leading stages frozen; 0 trains everything.")
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(32, ge=1, description="Pictures per step over all workers together.")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup_alpha: float = Field(
        0.0,
        ge=0,
        le=MOST_ALPHA,
        description="Of mixup at the input of the trained part; 0: off. See `training.mixing`.",
    )
    cutmix_alpha: float = Field(
        0.0, ge=0, le=MOST_ALPHA, description="Of CutMix there; 0: off. With both, each batch gets one of them."
    )
    class_balance: ClassBalance = Field(
        "none",
        description="'weighted': a picture's loss counts by the inverse of its class's share, 1 on average. "
        "'balanced': an epoch draws as many pictures as there are, of each class equally many.",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Of the moving average of the weights that is judged and kept; None: none is."
    )
    start_size: float = Field(
        1.0,
        ge=LEAST_START_SIZE,
        le=1,
        description="Share of the pictures' side that training begins with; it grows to 1: see `training.sizes`.",
    )
    grad_accumulation: int = Field(1, ge=1, description="Batches whose gradients make one step of the optimizer.")
    costs: tuple[tuple[float, ...], ...] | None = Field(
        None, description="By true class and by decision: decisions are those expected to cost least. None: argmax."
    )
    epochs: int = Field(8, ge=1)
    head: HeadKind = Field("linear", description="The last layer: see `backbones.heads`.")
    head_init: HeadInit = Field(
        "random", description="'probe': the head starts as a ridge classifier on the frozen network's features."
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Rate in front of the head; None: what the network itself has there."
    )
    bn_mode: BatchNormMode = Field(
        "update",
        description="'keep': BatchNorm of the trained part normalises by the statistics that it came with and leaves "
        "them as they are; its scale and shift learn.",
    )
    compute: ComputeConfig = ComputeConfig()
    seed: int = 0
    repeats: int = Field(1, ge=1, description="Seeds that the trial is trained with: this one and those that follow.")

    @model_validator(mode="after")
    def _probe_fits_the_head(self) -> TrialConfig:
        if self.head_init == "probe" and self.head != "linear":
            raise ValueError(f"head_init: a probe is a linear head, and head is {self.head}; set head_init to random")
        return self

    def replicas(self) -> tuple[TrialConfig, ...]:
        """The trainings whose mean is this trial, each a trial of its own: by fold, and in it by seed."""
        folds = range(self.data.folds) if self.data.folds and self.data.fold is None else (self.data.fold,)
        return tuple(
            self.model_copy(
                update={
                    "data": self.data.model_copy(update={"fold": fold}),
                    "seed": self.seed + repeat,
                    "repeats": 1,
                }
            )
            for fold in folds
            for repeat in range(self.repeats)
        )

    def refit(self) -> TrialConfig:
        """The same once, on every picture that is not tested; see `tuner.ending.refitting`."""
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": "all"}), "repeats": 1})
