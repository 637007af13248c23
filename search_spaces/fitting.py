"""A spec for a set of pictures, chosen by rules that are said beside each choice.

In: a few facts about the pictures and the machine. Out: YAML text of a sweep's spec, with the reason behind each field.
Pure: who looks at pictures is `tuner.pictures.facts`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

import yaml

_SIZES_PX = (32, 64, 96, 128, 160, 224)
_MOST_ON_CPU_PX, _MOST_ON_GPU_PX = 128, 224
_FEW, _MANY = 1000, 10_000
_VERY_FEW = 500
_A_HANDFUL = 64
_TINY_PX = 32
_UNEVEN = 3.0
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class DataFacts:
    """What the choices rest on.

    Attributes:
        source: As a spec names it.
        class_counts: Pictures of each class.
        has_sides: Whether the source itself says what is trained on and what is judged on.
        short_side_px: The shorter side of a picture in the middle of all.
        has_gpu: Whether this machine has a CUDA GPU.
        is_grey: Whether no picture that was looked at has a colour.
        label_separator: Between the labels of a picture that may have several; None: each has one class.
        num_files: Pictures, where they may have several labels and the classes' do not add up.
        num_to_learn: Pictures that are not held out, where the source says which; None: it does not.
    """

    source: str
    class_counts: dict[str, int]
    has_sides: bool
    short_side_px: int
    has_gpu: bool
    is_grey: bool = False
    label_separator: str | None = None
    num_files: int | None = None
    num_to_learn: int | None = None

    @property
    def num_pictures(self) -> int:
        """Of all classes."""
        return sum(self.class_counts.values()) if self.num_files is None else self.num_files

    @property
    def num_an_epoch(self) -> int:
        """About so many are learnt from."""
        return self.num_pictures if self.num_to_learn is None else self.num_to_learn

    @property
    def unevenness(self) -> float:
        """How many times as many pictures the largest class has as the smallest."""
        return max(self.class_counts.values()) / max(1, min(self.class_counts.values()))


@dataclass(frozen=True)
class Choice:
    """One field of the spec, its value as YAML, and why; a field with a dot in it lies in a section."""

    field: str
    value: str
    reason: str = ""


def choose(facts: DataFacts) -> Iterator[Choice]:
    """The choices, in the order of a spec."""
    count, most_px = facts.num_pictures, _MOST_ON_GPU_PX if facts.has_gpu else _MOST_ON_CPU_PX
    yield Choice("version", "1")
    yield Choice("name", _quoted(name_for(facts.source)))
    yield Choice("data.source", _quoted(facts.source))
    if facts.label_separator is not None:
        yield Choice("data.labels", "multi", "a picture may have several labels, or none")
        yield Choice("data.label_separator", _quoted(facts.label_separator))
    size = max((px for px in _SIZES_PX if px <= min(most_px, facts.short_side_px)), default=_SIZES_PX[0])
    yield Choice(
        "data.image_size_px",
        str(size),
        f"pictures are about {facts.short_side_px} px; no more than {most_px} on a {'GPU' if facts.has_gpu else 'CPU'}",
    )
    if not facts.has_sides:
        split = "{train: 0.7, val: 0.15, test: 0.15}" if count < _VERY_FEW else "{train: 0.8, val: 0.1, test: 0.1}"
        why = "few, so that both are large enough to judge by" if count < _VERY_FEW else "enough to judge by a tenth"
        yield Choice("data.split", split, f"{count} pictures: {why}")
    yield from _network(facts)
    count = facts.num_an_epoch
    batches = "[4, 8]" if count < _A_HANDFUL else "[16, 32]" if count < _FEW else "[32, 64]"
    why = "small batches take more steps, which few pictures need" if count < _FEW else "an epoch has steps enough"
    yield Choice("search.batch_size", batches, why)
    if facts.is_grey:
        reason = "grey pictures, of digits or parts say: mirrored or cut ones may be of another class"
        yield Choice("search.augmentation", "[none, industrial]", reason)
    uneven = facts.label_separator is None and facts.unevenness > _UNEVEN
    if uneven:
        yield Choice(
            "search.class_balance",
            "[none, weighted]",
            f"the largest class has {facts.unevenness:.0f} times as many pictures as the smallest",
        )
    if count < _FEW:
        yield Choice("search.num_trials", "24", "few pictures: trials are short")
    else:
        yield Choice("search.num_trials", "16" if count < _MANY else "8", f"{count} pictures: trials take their time")
    epochs = 12 if count < _FEW else 8 if count < _MANY else 4
    yield Choice("budget.epochs", str(epochs), f"{count} pictures are {'few' if count < _FEW else 'enough'} an epoch")
    yield Choice(
        "compute.precision", "auto", "fp32 or bf16, whichever trains faster here: measured before the first trial"
    )
    yield Choice("compute.prefix_precision", "auto", "the same of the frozen part")
    if facts.label_separator is not None:
        yield Choice("metric", "val/map", "mean average precision: each label counts the same")
    else:
        metric = "val/balanced_accuracy" if uneven else "val/accuracy"
        yield Choice("metric", metric, "each class counts the same" if uneven else "classes are about even")
    is_pretrained = facts.has_gpu or facts.short_side_px > _TINY_PX
    baselines = "[head_only, full_finetune]" if is_pretrained else "[]"
    yield Choice("baselines", baselines, "what the champion is compared with" if is_pretrained else "it is one itself")


def _network(facts: DataFacts) -> Iterator[Choice]:
    if facts.short_side_px <= _TINY_PX and not facts.has_gpu:
        reason = f"a small network from scratch: at {_TINY_PX} px little is left to the last stages of an ImageNet one"
        yield Choice("model.backbone", "lenet", reason)
        yield Choice("model.weights", "none", "it has no published ones")
        yield Choice("search.freeze_depth", "0", "nothing is trained yet that could be kept")
        yield Choice("search.backbone_lr_ratio", "1", "nor anything that smaller steps would spare")
        return
    backbone = "resnet50" if facts.has_gpu else "mobilenet_v2"
    yield Choice("model.backbone", backbone, "a usual first choice on a " + ("GPU" if facts.has_gpu else "CPU"))
    yield Choice("model.weights", "default", "ImageNet, torchvision's download; or the path of a file")


def spec_text(facts: DataFacts) -> str:
    """The spec as YAML, each choice with its reason behind it."""
    classes = ", ".join(f"{_printable(name)} {count}" for name, count in list(facts.class_counts.items())[:12])
    more = f" and {len(facts.class_counts) - 12} more" if len(facts.class_counts) > 12 else ""  # noqa: PLR2004
    lines = [f"# {facts.num_pictures} pictures of {len(facts.class_counts)} classes: {classes}{more}"]
    section = ""
    for choice in choose(facts):
        parent, _, field = choice.field.rpartition(".")
        if parent and parent != section:
            lines.append(f"{parent}:")
        section = parent
        line = f"{'  ' if parent else ''}{field}: {choice.value}"
        lines.append(f"{line}  # {choice.reason}" if choice.reason else line)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=text.isprintable(), width=math.inf).strip()


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def name_for(source: str) -> str:
    """A name for a sweep on a source: the last part of its place, in letters that every file system takes."""
    scheme, _, place = source.partition(":")
    if scheme == "torchvision":
        place = place.partition(":")[0]  # the set; its folder often holds several
    place = place or source
    if scheme in ("csv", "parquet"):
        place = place.removesuffix(PurePath(place).suffix)  # models and files would bear it too
    last = [part for part in re.split(r"[/\\:]+", place) if part][-1:]
    name = _NOT_IN_A_NAME.sub("-", last[0] if last else "pictures").strip("-._")
    return (name if name and name[0].isalnum() else f"sweep-{name}".rstrip("-"))[:64]
