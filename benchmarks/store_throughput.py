"""How fast the feature store reads shuffled batches, and what it costs to fill it.

Reading, beside a plain memory map of the same bytes: at least 0.8 of the map's rate for batches of 32 rows of 50 kB.
Filling, beside a bare forward pass of the frozen stages over the same pictures in the same batches, the pictures in
memory as bytes: at most 10% more seconds where the cut is in the middle of the network or at its end. Also printed,
without a bar: other row sizes and cuts, the rate of verification, and of writing beside a plain write of them.

    .venv/bin/python benchmarks/store_throughput.py --check
    .venv/bin/python benchmarks/store_throughput.py --check --precisions fp32 --px 32   # layers cheap, weights not
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import conclude, make_pictures, median, parser, report, span

from trainables.config import (
    AugmentationConfig,
    BackboneConfig,
    ComputeConfig,
    DataConfig,
    Precision,
    SplitConfig,
    TrialConfig,
)
from trainables.data.batches import ImageBatches, Normaliser, canonical_blocks
from trainables.data.kept_views import Views
from trainables.data.packing import PackReport, pack
from trainables.data.sources import open_source
from trainables.features.key import FeatureKey, FrozenPart, Machine, ViewKey
from trainables.features.reading import Features
from trainables.features.source import StoredFeatures, visit
from trainables.features.store import FeatureStore
from trainables.frozen_prefix import FrozenPrefix, memory_format
from trainables.memory import keep_freed_memory
from trainables.ranks import Ranks
from trainables.training.workbench import Workbench

CPU = torch.device("cpu")
BAR = 0.8
FILL_BAR = 1.1
BATCH_SIZE = 32
# Name, dtype, shape of one row, rows: 50 kB as a convolution's output and as a flat one, and a head's input.
CASES: tuple[tuple[str, Precision, tuple[int, ...], int], ...] = (
    ("50 kB fp32, channels last", "fp32", (64, 14, 14), 4096),
    ("50 kB bf16, channels last", "bf16", (128, 14, 14), 4096),
    ("2 kB fp32, flat", "fp32", (512,), 4096),
    ("50 kB fp32, 600 rows", "fp32", (64, 14, 14), 600),
)
BAR_CASES = 2  # the first ones; the others are information
NUM_PICTURES, SIZE_PX = 384, 128
# Network, precision, which cuts are stored in one pass, and whether the bar counts for them. One alone is what a
# trial stores by default; to store the first one saves little and takes much, so the cost model leaves it out.
FILL_CASES: tuple[tuple[str, Precision, str, bool], ...] = (
    ("resnet18", "bf16", "middle", True),
    ("resnet18", "bf16", "last", True),
    ("resnet18", "fp32", "middle", True),
    ("mobilenet_v2", "bf16", "middle", True),
    ("mobilenet_v2", "bf16", "last", True),
    ("mobilenet_v2", "fp32", "middle", True),
    ("resnet18", "bf16", "all but first", False),
    ("mobilenet_v2", "bf16", "all but first", False),
    ("mobilenet_v2", "bf16", "first", False),
)


def make_key(dtype: Precision) -> FeatureKey:
    frozen = FrozenPart(backbone="none", cut=("cut",), program="", prefix_hash="", mean=(0.0,), std=(1.0,))
    machine = Machine(device="cpu", processor="", threads=1, software=(), numerics=())
    view = ViewKey(policy="none", magnitude=None, seed=None, index=0)
    return FeatureKey(
        table="", rows="", view=view, input_size_px=224, frozen=frozen, dtype=dtype, batch_size=64, channels_last=True,
        machine=machine,
    )  # fmt: skip


def make_rows(dtype: Precision, shape: tuple[int, ...], count: int) -> torch.Tensor:
    rows = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    rows = rows.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    return rows.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else rows


def fill(store: FeatureStore, key: FeatureKey, rows: torch.Tensor) -> float:
    started = time.perf_counter()
    with store.fill(key, len(rows), tuple(rows.shape[1:])) as writer:
        for part in writer.parts():
            writer.put(part, rows[part.first : part.stop])
    return time.perf_counter() - started


def words_of(rows: torch.Tensor) -> np.ndarray:
    """The rows as a plain file would hold them: 16-bit or 32-bit words [N, D] in the order of memory."""
    flat = (rows.permute(0, 2, 3, 1) if rows.dim() == 4 else rows).reshape(len(rows), -1)
    return flat.view(torch.int16 if rows.dtype == torch.bfloat16 else torch.int32).numpy()


def plain_write(path: Path, words: np.ndarray) -> float:
    started = time.perf_counter()
    words.tofile(path)
    return time.perf_counter() - started


def read_plainly(mapped: np.memmap, positions: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(mapped[positions]))


def seconds(read: Callable[[np.ndarray], torch.Tensor], plan: list[np.ndarray]) -> float:
    started = time.perf_counter()
    for positions in plan:
        read(positions)
    return time.perf_counter() - started


def epoch_plan(num_rows: int, seed: int) -> list[np.ndarray]:
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(num_rows)
    return [order[first : first + BATCH_SIZE] for first in range(0, num_rows, BATCH_SIZE)]


def measure(folder: Path, dtype: Precision, shape: tuple[int, ...], count: int, repeats: int) -> dict[str, list[float]]:
    rows, key, plain = make_rows(dtype, shape, count), make_key(dtype), folder / "plain"
    words = words_of(rows)
    found: dict[str, list[float]] = {
        name: [] for name in ("ratio", "store GB/s", "map GB/s", "fill ratio", "check GB/s")
    }
    for turn in range(repeats):
        store = FeatureStore(folder / f"store{turn}", 1 << 40, spare_bytes=0)
        found["fill ratio"].append(plain_write(plain, words) / fill(store, key, rows))
        started = time.perf_counter()
        report_of_check = store.verify()
        found["check GB/s"].append(report_of_check.num_bytes / (time.perf_counter() - started) / 1e9)
        mapped = np.memmap(plain, dtype=words.dtype, mode="r", shape=words.shape)
        opened = store.open(key)
        if not isinstance(opened, Features):
            raise TypeError("the store did not take the features")
        readers = {"store": opened.rows, "map": partial(read_plainly, mapped)}
        plan = epoch_plan(count, turn)
        for read in readers.values():  # both in the page cache and mapped
            seconds(read, plan)
        times: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(5):
            for name, read in readers.items():
                times[name].append(seconds(read, plan))
        found["ratio"].append(median(times["map"]) / median(times["store"]))
        for name in readers:
            found[f"{name} GB/s"].append(words.nbytes / median(times[name]) / 1e9)
        opened.close()
        store.clear()
    return found


class Filling:
    """One network and the pictures of one side, their views in memory."""

    def __init__(self, table: PackReport, backbone: str, precision: Precision, size_px: int) -> None:
        config = TrialConfig(
            data=DataConfig(
                table=str(table.path),
                fingerprint=table.fingerprint,
                class_names=("class0", "class1"),
                split=SplitConfig(train=1.0, val=0.0, test=0.0),
                image_size_px=size_px,
            ),
            backbone=BackboneConfig(name=backbone),
            freeze_depth=1,
            augmentation=AugmentationConfig(policy="flip", num_views=1),
            compute=ComputeConfig(prefix_precision=precision),
        )
        self.bench = Workbench()
        self.loaded = self.bench.backbone(config)
        self.config = config.model_copy(update={"freeze_depth": self.loaded.graph.num_stages})
        self.layout = memory_format(config.compute)
        self.normalise = Normaliser(self.loaded.mean, self.loaded.std, CPU, self.layout)
        self.views = Views(self.bench.side(config.data, "train"), config.augmentation, size_px, self.bench.views)
        self.views.fetch(np.arange(NUM_PICTURES), 0)

    def cuts(self, which: str) -> list[int]:
        """The cuts that a case names."""
        last = self.loaded.graph.num_stages
        named = {"first": [1], "middle": [last // 2], "last": [last], "all but first": list(range(2, last + 1))}
        return named[which]

    def bare(self, cuts: list[int]) -> float:
        """Seconds of a forward pass to the deepest cut, in canonical batches."""
        prefix = self.loaded.graph.split(cuts[-1])[0].to(memory_format=self.layout)
        is_bf16 = self.config.compute.prefix_precision == "bf16"
        started = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
            for block in canonical_blocks(np.arange(NUM_PICTURES), self.config.compute.prefix_batch_size):
                prefix(self.normalise(self.views.fetch(block, 0)))
        return time.perf_counter() - started

    def fill(self, cuts: list[int], folder: Path) -> float:
        """Seconds of a pass that stores the cuts."""
        stages = self.loaded.graph.stage_modules(cuts[-1], CPU, self.layout)
        prefix = FrozenPrefix(stages, self.config.compute)
        images = ImageBatches(self.views, self.normalise, None)
        store = FeatureStore(folder, 1 << 40, spare_bytes=0)
        started = time.perf_counter()
        keep = {"train": tuple(cuts)}
        stored = StoredFeatures(store, self.config, self.loaded, ranks=Ranks(CPU), cuts_to_keep=keep)
        for _ in visit(images, stored, prefix, 0, cuts):
            pass
        stored.close()
        seconds = time.perf_counter() - started
        if [entry.is_complete for entry in store.entries()] != [True] * len(cuts):
            raise RuntimeError("the store did not take the features")
        shutil.rmtree(folder)
        return seconds


def measure_filling(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    make_pictures(folder / "pictures", {"train": NUM_PICTURES}, options.px)
    table = pack(open_source(str(folder / "pictures" / "train")), folder / "tables", side_px=options.px)
    cases: list[dict[str, Any]] = []
    for backbone, precision, which, has_bar in (case for case in FILL_CASES if case[1] in options.precisions):
        subject = Filling(table, backbone, precision, options.px)
        cuts = subject.cuts(which)
        found: dict[str, list[float]] = {"overhead": [], "fill s": [], "forward s": []}
        for turn in range(options.repeats + 1):
            pair = [subject.bare(cuts), subject.fill(cuts, folder / "filled"), subject.bare(cuts)]
            forward = (pair[0] + pair[2]) / 2
            if turn:  # the first turn makes plans and warms up
                found["overhead"].append(pair[1] / forward)
                found["fill s"].append(pair[1])
                found["forward s"].append(forward)
        name = f"{backbone} {precision}, cut {'+'.join(map(str, cuts))}"
        rounded = {column: [round(value, 3) for value in found[column]] for column in found}
        cases.append({"fill": name, "has_bar": has_bar, **rounded})
    return cases


def main() -> int:
    wanted = parser(__doc__, repeats=5)
    wanted.add_argument(
        "--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="of the filling passes"
    )
    wanted.add_argument("--px", type=int, default=SIZE_PX, help="side of their pictures (default %(default)s)")
    options = wanted.parse_args()
    keep_freed_memory()  # as a lane's worker does
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype, shape, count in CASES:
            found = measure(Path(folder), dtype, shape, count, options.repeats)
            cases.append({"case": name, **{column: [round(value, 3) for value in found[column]] for column in found}})
        fills = measure_filling(Path(folder), options)
    columns = ["ratio", "store GB/s", "map GB/s", "fill ratio", "check GB/s"]
    table = [[str(case["case"]), *(span(case[column]) for column in columns)] for case in cases]
    is_met = all(median(case["ratio"]) >= BAR for case in cases[:BAR_CASES])
    is_met &= all(median(case["overhead"]) <= FILL_BAR for case in fills if case["has_bar"])
    notes = [
        f"ratio: rate of the store by that of np.memmap, batches of {BATCH_SIZE} shuffled rows; bar {BAR}, first two"
    ]
    report("Feature store: reading", ["rows", *columns], table, notes)
    columns = ["overhead", "fill s", "forward s"]
    table = [[str(case["fill"]), *(span(case[column], 3) for column in columns)] for case in fills]
    marks = ", ".join(str(case["fill"]) for case in fills if not case["has_bar"])
    note = f"overhead: seconds of a pass that stores, by those of a bare forward pass of {NUM_PICTURES} pictures at "
    note += f"{options.px} px; bar {FILL_BAR}, but not for {marks}"
    report("Feature store: filling", ["network", *columns], table, [note])
    return conclude("store_throughput", [*cases, *fills], is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
