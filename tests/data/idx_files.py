"""Small files of MNIST's kind."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def write_mnist(folder: Path, num_train: int = 5, num_test: int = 3) -> None:
    """Writes the four gzipped files; picture n is grey n everywhere, its label n modulo 10."""
    folder.mkdir(parents=True)
    for prefix, number in (("train", num_train), ("t10k", num_test)):
        values = np.arange(number, dtype=np.uint8)
        images_NHW = np.broadcast_to(values[:, None, None], (number, 28, 28))
        sizes = np.array([2051, number, 28, 28], ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(sizes + images_NHW.tobytes()))
        sizes = np.array([2049, number], ">u4").tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(sizes + (values % 10).tobytes()))
