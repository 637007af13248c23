"""Peak memory of packing and of training 100,000 pictures, with that of 10,000; and how busy packing keeps the cores.

Every measurement is a process of its own, and the kernel says what its resident memory was at most (VmHWM), mapped
files included. Pictures are made up: small JPEG files in class folders, so that what grows with their number is not
hidden behind what grows with their size. What Thaw keeps on purpose has budgets of its own (views in memory, stored
features); views get none here, so that the smaller set does not simply fit. The bar: at most 1.1 times as much.

The cores are watched with fewer, larger pictures, as cameras make them: processor seconds of packing, by wall seconds
and cores. The bar: at least 0.8.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import conclude, parser, report
from PIL import Image

MOST_GROWTH = 1.1
LEAST_BUSY = 0.8
FEW, MANY = 10_000, 100_000
NUM_CLASSES = 4
SMALL_PX, SEEN_PX = 48, 32
ROW_GROUP = 1000
NUM_LARGE, LARGE_PX = 600, 1200


def make_small(folder: Path, count: int) -> None:
    """Writes ``count`` different pictures: one JPEG's bytes, with the number in its comment and in its pixels."""
    noise = np.random.Generator(np.random.Philox(key=0))
    for number in range(count):
        if number % 1000 == 0:
            block = noise.integers(0, 256, (1000, 6, 6, 3), dtype=np.uint8)
        place = folder / f"class{number % NUM_CLASSES}" / f"{number // 1000:03d}"
        if number % 1000 < NUM_CLASSES:
            place.mkdir(parents=True)
        buffer = io.BytesIO()
        Image.fromarray(block[number % 1000]).resize((SMALL_PX, SMALL_PX)).save(buffer, "JPEG", quality=80)
        (place / f"{number:06d}.jpg").write_bytes(buffer.getvalue())


def make_lists(folder: Path) -> dict[str, str]:
    """The pictures of a folder as each kind of source; a list and a Parquet file of them are written beside it."""
    files = sorted(folder.rglob("*.jpg"))
    with folder.with_suffix(".csv").open("w") as lines:
        lines.write("file,label\n")
        lines.writelines(f"{file.relative_to(folder.parent)},{file.relative_to(folder).parts[0]}\n" for file in files)
    schema = pa.schema([("image", pa.binary()), ("label", pa.string())])
    with pq.ParquetWriter(folder.with_suffix(".parquet"), schema) as writer:
        for start in range(0, len(files), ROW_GROUP):
            some = files[start : start + ROW_GROUP]
            columns = [[file.read_bytes() for file in some], [file.relative_to(folder).parts[0] for file in some]]
            writer.write_table(pa.table(columns, schema=schema))
    return {"folder": f"folder:{folder}", "csv": f"csv:{folder}.csv", "parquet": f"parquet:{folder}.parquet"}


def make_large(folder: Path) -> None:
    noise = np.random.Generator(np.random.Philox(key=1))
    for number in range(NUM_LARGE):
        place = folder / f"class{number % NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize((LARGE_PX * 4 // 3, LARGE_PX), Image.Resampling.BICUBIC).save(place / f"{number:04d}.jpg")


def peak_mb() -> float:
    """The most resident memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def pack_here(source: str, home: Path, size_px: int) -> dict[str, float]:
    """What a sweep does first: packs, deals the sides, checks them."""
    from search_spaces.data_spec import DataSpec
    from tuner.paths import HomePaths
    from tuner.pictures.dealing import prepare_data

    spec = DataSpec(source=source, image_size_px=size_px)
    before, cpu_before = time.perf_counter(), time.process_time()
    prepared = prepare_data(spec, HomePaths.at(home), lambda *_: None)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    return {
        "pictures": prepared.report.num_images,
        "peak_mb": peak_mb(),
        "seconds": seconds,
        "busy": cpu_seconds / seconds / len(os.sched_getaffinity(0)),
    }


def train_here(source: str, home: Path) -> dict[str, float]:
    """One epoch of a small network over all pictures, and its validation, as a lane's worker does it."""
    import torch

    from search_spaces.data_spec import DataSpec
    from trainables.config import BackboneConfig, TrialConfig
    from trainables.ranks import Ranks
    from trainables.training.loop import TrialRun
    from trainables.training.workbench import Workbench
    from tuner.paths import HomePaths
    from tuner.pictures.dealing import prepare_data

    spec = DataSpec(source=source, image_size_px=SEEN_PX)
    data = prepare_data(spec, HomePaths.at(home), lambda *_: None)
    config = TrialConfig(
        data=data.config, backbone=BackboneConfig(name="lenet"), freeze_depth=0, batch_size=128, epochs=1
    )
    started = time.perf_counter()
    run = TrialRun(config, Workbench(view_cache_bytes=0), Ranks(torch.device("cpu")))
    run.run_epoch()
    return {"pictures": data.report.num_images, "peak_mb": peak_mb(), "seconds": time.perf_counter() - started}


def measured(phase: str, source: str, home: Path) -> dict[str, Any]:
    """A phase in a process of its own."""
    command = [sys.executable, __file__, "--phase", phase, "--source", source, "--home", str(home)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"phase": phase, "kind": source.split(":", maxsplit=1)[0], **json.loads(done.stdout.splitlines()[-1])}


def parse_options() -> argparse.Namespace:
    options = parser(__doc__, repeats=1)
    options.add_argument("--few", type=int, default=FEW)
    options.add_argument("--many", type=int, default=MANY)
    options.add_argument("--phase", choices=["pack", "train", "large"], help=argparse.SUPPRESS)
    options.add_argument("--source", help=argparse.SUPPRESS)
    options.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return options.parse_args()


def run_phase(options: argparse.Namespace) -> dict[str, float]:
    if options.phase == "train":
        return train_here(options.source, options.home)
    return pack_here(options.source, options.home, SEEN_PX if options.phase == "pack" else 224)


def main() -> int:
    options = parse_options()
    if options.phase is not None:
        print(json.dumps(run_phase(options)))
        return 0
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="thaw-benchmark-") as name:
        folder = Path(name)
        for count in (options.few, options.many):
            pictures = folder / f"{count}"
            make_small(pictures, count)
            for kind, source in make_lists(pictures).items():
                cases.append(measured("pack", source, folder / f"home-{kind}-{count}"))
            cases.append(measured("train", f"folder:{pictures}", folder / f"home-folder-{count}"))
        make_large(folder / "large")
        large = measured("large", f"folder:{folder / 'large'}", folder / "home-large")
    pairs = list(zip(cases[: len(cases) // 2], cases[len(cases) // 2 :], strict=True))
    growths = [many["peak_mb"] / few["peak_mb"] for few, many in pairs]
    rows = [
        [
            "training, one epoch of lenet" if few["phase"] == "train" else f"packing, {few['kind']}",
            *(f"{case['peak_mb']:.0f} MB in {case['seconds']:.0f} s" for case in (few, many)),
            f"{growth:.2f}",
        ]
        for (few, many), growth in zip(pairs, growths, strict=True)
    ]
    report(
        f"Peak resident memory, pictures of {SMALL_PX} px seen at {SEEN_PX}",
        ["", f"{options.few:,} pictures", f"{options.many:,} pictures", "ratio"],
        rows,
        [
            f"Packing {NUM_LARGE} pictures of {LARGE_PX * 4 // 3} x {LARGE_PX} px: {large['seconds']:.0f} s, "
            f"{large['busy']:.0%} of all cores busy."
        ],
    )
    is_met = max(growths) <= MOST_GROWTH and large["busy"] >= LEAST_BUSY
    return conclude("memory_bound", [*cases, large], is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
