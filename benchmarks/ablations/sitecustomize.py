"""Takes single ideas out of Thaw for a measurement; Python runs this at the start of every process that finds it.

``versus_plain_ray.py --ablation`` puts this folder on the PYTHONPATH of a sweep and names in ``THAW_ABLATIONS`` what is
to be missing, so the product has no switches that nobody but a benchmark would use:

- ``lanes``: a worker group ends after one job, and each trial waits for one of its own, a new ``TorchTrainer``.
- ``packed_images``: each view is made from its picture's file, decoded anew, and none is kept in memory.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path


def _without_lanes(module):
    """The lane's second request for a job is not made: its loop ends there."""
    ask = module._Line.next_order

    def ask_once(line):
        if getattr(line, "_has_asked", False):
            return None
        line._has_asked = True
        return ask(line)

    module._Line.next_order = ask_once


def _without_packed_images(module):
    """Pixels come out of the picture's file: the same ones, because packing decodes in the same way."""
    root = Path(os.environ["THAW_ABLATION_IMAGES"])

    def image(table, row):
        import torch

        from trainables.data.decoding import decode_picture

        pixels_HWC = decode_picture((root / table.names[row]).read_bytes(), table.side_px)
        return torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)

    module.ImageTable.image = image


def _without_views_in_memory(module):
    module.ViewCache.slot = lambda *_: None


_PATCHES = {
    "lanes": {"trainables.lanes.lane": _without_lanes},
    "packed_images": {
        "trainables.data.table": _without_packed_images,
        "trainables.data.kept_views": _without_views_in_memory,
    },
}


class _Patcher(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module as usual and then patches it."""

    def __init__(self, patches):
        self._patches, self._real = patches, {}

    def find_spec(self, name, path, target=None):  # noqa: ARG002
        if name not in self._patches or name in self._real:
            return None
        self._real[name] = None  # while the real one is looked for, this finder stays out of the way
        real = importlib.util.find_spec(name)
        if real is None:
            return None
        self._real[name] = real.loader
        real.loader = self
        return real

    def create_module(self, spec):
        return self._real[spec.name].create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._real[module.__name__]
        module.__loader__.exec_module(module)
        self._patches[module.__name__](module)


_wanted = [name for name in os.environ.get("THAW_ABLATIONS", "").split(",") if name]
if _wanted:
    sys.meta_path.insert(0, _Patcher({place: patch for name in _wanted for place, patch in _PATCHES[name].items()}))
