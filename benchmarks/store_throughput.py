"""How fast the feature store reads shuffled batches, beside a plain memory map of the same bytes.

Bar: at least 0.8 of the map's rate for batches of 32 rows of 50 kB. Also printed, without a bar: other row sizes, the
rate of verification, and of filling beside a plain write of the same bytes.

    .venv/bin/python benchmarks/store_throughput.py --check
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import conclude, median, parser, report, span

from trainables.config import Precision
from trainables.features.key import FeatureKey, FrozenPart, Machine, ViewKey
from trainables.features.reading import Features
from trainables.features.store import FeatureStore

BAR = 0.8
BATCH_SIZE = 32
# Name, dtype, shape of one row, rows: 50 kB as a convolution's output and as a flat one, and a head's input.
CASES: tuple[tuple[str, Precision, tuple[int, ...], int], ...] = (
    ("50 kB fp32, channels last", "fp32", (64, 14, 14), 4096),
    ("50 kB bf16, channels last", "bf16", (128, 14, 14), 4096),
    ("2 kB fp32, flat", "fp32", (512,), 4096),
    ("50 kB fp32, 600 rows", "fp32", (64, 14, 14), 600),
)
BAR_CASES = 2  # the first ones; the others are information


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


def main() -> int:
    options = parser(__doc__, repeats=5).parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype, shape, count in CASES:
            found = measure(Path(folder), dtype, shape, count, options.repeats)
            cases.append({"case": name, **{column: [round(value, 3) for value in found[column]] for column in found}})
    columns = ["ratio", "store GB/s", "map GB/s", "fill ratio", "check GB/s"]
    table = [[str(case["case"]), *(span(case[column]) for column in columns)] for case in cases]
    is_met = all(median(case["ratio"]) >= BAR for case in cases[:BAR_CASES])
    notes = [
        f"ratio: rate of the store by that of np.memmap, batches of {BATCH_SIZE} shuffled rows; bar {BAR}, first two"
    ]
    report("Feature store", ["rows", *columns], table, notes)
    return conclude("store_throughput", cases, is_met=is_met, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
