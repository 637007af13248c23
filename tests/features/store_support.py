"""Keys and features for tests of the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.features.filling import Part, Writer
from trainables.features.key import FeatureKey, FrozenPart, Machine, ViewKey, rows_digest
from trainables.features.lease import LeaseDesk
from trainables.features.store import FeatureStore

NUM_ROWS, SHAPE = 150, (4, 3, 3)
ROOT = Path(__file__).parents[2]


def make_key(**changes: Any) -> FeatureKey:
    fields: dict[str, Any] = {
        "table": "a" * 64,
        "rows": rows_digest(f"{number:064x}" for number in range(NUM_ROWS)),
        "view": ViewKey(policy="flip", magnitude=None, seed=0, index=0),
        "input_size_px": 64,
        "frozen": FrozenPart(
            backbone="resnet18",
            cut=("conv1..bn1", "layer1"),
            program="b" * 64,
            prefix_hash="c" * 64,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        "dtype": "fp32",
        "batch_size": 16,
        "channels_last": True,
        "machine": Machine(device="cpu", processor="some cpu", threads=2, software=(("torch", "2"),), numerics=()),
    }
    return FeatureKey(**{**fields, **changes})


def make_features(key: FeatureKey, num_rows: int = NUM_ROWS, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Random features, the same for the same key in every process."""
    generator = torch.Generator().manual_seed(int(key.digest()[:8], 16))
    values = torch.randn(num_rows, *shape, generator=generator)
    if len(shape) == 3 and key.channels_last:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.to(torch.bfloat16 if key.dtype == "bf16" else torch.float32)


def make_store(folder: Path, **settings: Any) -> FeatureStore:
    given = {"budget_bytes": 1 << 30, "spare_bytes": 0, **settings}
    return FeatureStore(folder, **given)


def fill(store: FeatureStore, key: FeatureKey, features: torch.Tensor | None = None) -> int:
    """Fills an entry; returns the number of rows that this took."""
    features = make_features(key) if features is None else features
    with store.fill(key, len(features), tuple(features.shape[1:])) as writer:
        put_all(writer, features)
    return writer.rows_written


def put_all(writer: Writer, features: torch.Tensor) -> list[Part]:
    done = []
    for part in writer.parts():
        writer.put(part, features[part.first : part.stop])
        done.append(part)
    return done


def entry(store: FeatureStore, key: FeatureKey) -> Path:
    return store.directory / key.digest()


def shards(store: FeatureStore, key: FeatureKey) -> list[Path]:
    return sorted(entry(store, key).glob("*.arrow"))


def all_rows(store: FeatureStore, key: FeatureKey, **settings: Any) -> torch.Tensor | None:
    features = store.open(key, **settings)
    if features is None:
        return None
    with features:
        return features.rows(np.arange(len(features)))


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def script(body: str) -> list[str]:
    """A Python program that knows this module."""
    lines = ["import sys", f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]"]
    return [sys.executable, "-c", "\n".join([*lines, "from store_support import *", body])]


__all__ = [
    "NUM_ROWS", "SHAPE", "FeatureStore", "LeaseDesk", "Path", "all_rows", "entry", "fill", "flip_byte", "make_features",
    "make_key", "make_store", "np", "put_all", "script", "shards", "sys", "torch",
]  # fmt: skip
