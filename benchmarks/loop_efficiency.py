"""How close a real trial's epoch comes to bare steps on tensors in memory: images per second, at least 0.9 of them.

The trial is a ``TrialRun`` as a lane runs it: pictures from a packed table, views, normalisation, schedule, the look
whether it is still wanted. The bare loop has normalised tensors in memory and does nothing but forward, backward and
step, with the same network, batch size, precision, layout, optimizer and threads. Its pictures do not go through the
data room at all, so what is compared is everything that Thaw adds.

The first epoch is shown beside; the bar is for the epochs from the one on in which every view (4 of each picture, as by
default) has been computed once and is kept.

    python benchmarks/loop_efficiency.py --check
    python benchmarks/loop_efficiency.py --images DIR --weights mobilenet_v2=FILE --num-pictures 244
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import Disturbance, conclude, make_pictures, median, parser, report, span
from torch import nn
from torch.nn import functional as F

from trainables.backbones.families import build_model
from trainables.backbones.weights import resolve_weights
from trainables.backbones.zoo import Backbone, load_backbone
from trainables.config import (
    AugmentationConfig,
    BackboneConfig,
    ComputeConfig,
    DataConfig,
    Precision,
    TrialConfig,
    WeightsFile,
)
from trainables.data.packing import pack
from trainables.data.side import plan_epoch
from trainables.data.sources import open_source
from trainables.data.table import ImageTable
from trainables.frozen_prefix import memory_format
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.repeatable import make_repeatable
from trainables.training.trained_part import build_optimizer, split_network
from trainables.training.workbench import Workbench

BAR = 0.9
# Turns in which other processes took more of the machine than this are repeated, as long as patience lasts: torch's
# threads wait for each other, so a neighbour on one core costs far more than the core.
CALM = 0.03
MOST_TRIES = 4
NUM_VIEWS = AugmentationConfig.model_fields["num_views"].default


class Case(NamedTuple):
    """One row of the table."""

    backbone: str
    precision: Precision
    depth: int
    num_stages: int


class Pair(NamedTuple):
    """One turn."""

    images_per_s: float
    bare_images_per_s: float
    disturbance: float


def build_config(
    case: Case,
    data: DataConfig,
    weights: WeightsFile | None,
    options: argparse.Namespace,
    num_views: int = NUM_VIEWS,
) -> TrialConfig:
    return TrialConfig(
        data=data,
        backbone=BackboneConfig(name=case.backbone, weights=weights),
        freeze_depth=case.depth,
        augmentation=AugmentationConfig(policy="flip_crop", num_views=num_views),
        batch_size=options.batch_size,
        epochs=MOST_TRIES * options.repeats + num_views,
        compute=ComputeConfig(precision=case.precision, prefix_precision=case.precision),
    )


@contextmanager
def as_torch_is(device: torch.device) -> Iterator[None]:
    """On a GPU, the kernels that torch takes by itself: those that Thaw asks for may be slower, which counts."""
    if device.type != "cuda":
        yield
        return
    torch.use_deterministic_algorithms(False)
    with torch.backends.cudnn.flags(enabled=True, deterministic=False):
        yield
    make_repeatable(device)


def bare_epoch(case: Case, config: TrialConfig, num_pictures: int, device: torch.device) -> Callable[[], float]:
    """A function that trains as many batches as the trial's epoch has, and returns the seconds that took."""
    num_classes = len(config.data.class_names)
    backbone = load_backbone(
        case.backbone,
        config.backbone.weights,
        num_classes=num_classes,
        input_size_px=config.data.image_size_px,
        seed=0,
    )
    network = split_network(backbone, case.depth)
    # Where all is trained there is nothing to cut, and torchvision's own module is the measure.
    tail = network.tail if case.depth else _whole_model(case.backbone, backbone)
    layout = memory_format(config.compute)
    tail, prefix = tail.to(device).to(memory_format=layout).train(), None
    if case.depth:
        prefix = backbone.graph.split(case.depth)[0].to(device).to(memory_format=layout).eval()
    optimizer = build_optimizer(tail, network.head_name, config.optimizer)
    is_bf16 = case.precision == "bf16"
    size, generator = config.data.image_size_px, torch.Generator().manual_seed(0)
    batches = []
    for positions in plan_epoch(num_pictures, config.batch_size, 0, 0):
        images = torch.randn(len(positions), 3, size, size, generator=generator).contiguous(memory_format=layout)
        labels = torch.randint(num_classes, (len(positions),), generator=generator)
        batches.append((images.to(device), labels.to(device)))

    def run() -> float:
        with as_torch_is(device):
            return train()

    def train() -> float:
        started = time.perf_counter()
        for images, labels in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
                inputs = images
                if prefix is not None:
                    with torch.no_grad():
                        inputs = prefix(images)
                loss = F.cross_entropy(tail(inputs).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return run


def _whole_model(name: str, backbone: Backbone) -> nn.Module:
    """Torchvision's module with the backbone's weights and head."""
    model, head = build_model(name), backbone.graph.head
    parent, _, attribute = head.name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Linear(head.in_features, head.num_classes))
    model.load_state_dict(backbone.model.state_dict())
    return model.requires_grad_(True)


def measure(case: Case, config: TrialConfig, bench: Workbench, repeats: int, device: torch.device) -> dict[str, Any]:
    """One trial and one bare loop, epoch by epoch in turns."""
    trial = TrialRun(config, bench, Ranks(device))
    num_pictures = len(trial.side("train"))
    bare = bare_epoch(case, config, num_pictures, device)
    first = num_pictures / trial.run_epoch()["time/train_s"]
    bare()
    for _ in range(1, NUM_VIEWS):  # until every view is kept: steady from then on
        trial.run_epoch()
    pairs: list[Pair] = []
    while sum(pair.disturbance < CALM for pair in pairs) < repeats and len(pairs) < MOST_TRIES * repeats:
        with Disturbance() as others:
            real = num_pictures / trial.run_epoch()["time/train_s"]
            pairs.append(Pair(real, num_pictures / bare(), 0.0))
        pairs[-1] = pairs[-1]._replace(disturbance=others.share)
    calmest = sorted(pairs, key=lambda pair: pair.disturbance)[:repeats]
    ratios = [pair.images_per_s / pair.bare_images_per_s for pair in calmest]
    return {
        **case._asdict(),
        "first_epoch_images_per_s": round(first, 1),
        "images_per_s": round(median([pair.images_per_s for pair in calmest]), 1),
        "bare_images_per_s": round(median([pair.bare_images_per_s for pair in calmest]), 1),
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "disturbance": round(max(pair.disturbance for pair in calmest), 3),
    }


def prepare_data(options: argparse.Namespace, folder: Path) -> DataConfig:
    """Packs the pictures given, or made-up ones."""
    images = options.images
    if images is None:
        images = folder / "pictures"
        make_pictures(images, {"train": options.num_pictures, "val": 32}, side_px=options.px * 3 // 2)
    packed = pack(open_source(f"folder:{images}"), folder / "tables", side_px=options.px * 3 // 2)
    table = ImageTable.open(packed.path)
    return DataConfig(
        table=str(packed.path),
        fingerprint=table.fingerprint,
        class_names=table.class_names,
        image_size_px=options.px,
    )


def parse_options(
    description: str | None, repeats: int, num_pictures: int, precisions: Sequence[Precision] = ("fp32", "bf16")
) -> argparse.Namespace:
    """The options of a benchmark that trains in this process, which is made ready for the device."""
    options = parser(description, repeats)
    options.add_argument("--images", type=Path, help="folder of pictures (default: made-up ones)")
    options.add_argument("--weights", action="append", default=[], metavar="BACKBONE=FILE", help="default: random")
    options.add_argument("--backbones", nargs="+", default=["resnet18", "mobilenet_v2"])
    options.add_argument("--precisions", nargs="+", default=list(precisions), choices=["fp32", "bf16"])
    options.add_argument("--num-pictures", type=int, default=num_pictures, help="made-up ones to train on")
    options.add_argument("--px", type=int, default=128)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda:0")
    chosen = options.parse_args()
    make_repeatable(chosen.device)
    return chosen


def main() -> int:
    options = parse_options(__doc__, repeats=5, num_pictures=128)
    torch.set_num_threads(options.threads)
    results = []
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as name:
        folder = Path(name)
        data = prepare_data(options, folder)
        named = dict(text.split("=", 1) for text in options.weights)
        for backbone in options.backbones:
            weights = resolve_weights(named.get(backbone, "none"), backbone, folder / "weights")
            stages = load_backbone(backbone, None, num_classes=2, input_size_px=options.px, seed=0).graph.num_stages
            for precision in options.precisions:
                for depth in (0, stages // 2):
                    case = Case(backbone, precision, depth, stages)
                    config = build_config(case, data, weights, options)
                    # A workbench of its own, so that every case has a first epoch.
                    results.append(measure(case, config, Workbench(), options.repeats, options.device))
    rows = [
        [
            f"{result['backbone']} {result['precision']}, {result['depth']} of {result['num_stages']} stages frozen",
            f"{result['first_epoch_images_per_s']}",
            f"{result['images_per_s']}",
            f"{result['bare_images_per_s']}",
            span(result["ratios"]),
            f"{result['disturbance']:.0%}",
        ]
        for result in results
    ]
    report(
        f"Images per second, {options.px} px, batch {options.batch_size}, {options.threads} threads",
        ["", "first epoch", "later epochs", "bare loop", "later / bare", "taken by others"],
        rows,
    )
    is_met = all(result["ratio"] >= BAR for result in results)
    return conclude("loop_efficiency", results, is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
