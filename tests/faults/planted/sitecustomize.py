"""Makes trials of a sweep fail in chosen ways; Python runs this at the start of every process that finds it.

The tests put this folder on the PYTHONPATH of a sweep. The folder in ``THAW_PLANTED_FAULTS`` holds one empty file per
fault, named ``<rank of the trial>-<epoch>-<kind>``: the first trials each take one, in the order of names, when they
begin that epoch, and leave a file that names their configuration, so that a fault strikes once.

Kinds: ``raise``, ``memory``, ``nan``, ``kill`` (the worker), ``hang``, ``pause`` (until the test removes
the file ``paused``).

``THAW_PLANTED_CLOCK`` names a file that holds by how many seconds the wall clock is wrong.
``THAW_PLANTED_PATIENCE_S`` is how long what is to be kept waits for a storage that takes nothing.
"""

import hashlib
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

_FOLDER = os.environ.get("THAW_PLANTED_FAULTS")


def _strike(run, kind):
    import torch

    if kind == "raise":
        raise RuntimeError("a planted mistake")
    if kind == "memory":
        raise torch.OutOfMemoryError("planted: tried to allocate 99 GiB")
    if kind == "nan":
        with torch.no_grad():
            next(run._tail.parameters()).fill_(float("nan"))
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        while True:
            time.sleep(1)
    if kind == "pause":
        paused = Path(_FOLDER, "paused")
        paused.touch()
        while paused.exists():
            time.sleep(0.01)


def _plant_patience(module):
    module.PATIENCE_S = float(os.environ["THAW_PLANTED_PATIENCE_S"])


def _plant_faults(module):
    run_epoch = module.TrialRun.run_epoch

    def run_epoch_or_fail(run, *arguments, **options):
        folder = Path(_FOLDER)
        about = hashlib.sha256(run.config.model_dump_json().encode()).hexdigest()[:16]
        owner = folder / f"owner-{about}"
        if not owner.exists():
            free = sorted(path for path in folder.iterdir() if path.name[0].isdigit())
            if free:
                free[0].rename(owner.with_name(f"taken-{free[0].name}"))
                owner.write_text(free[0].name)
            else:
                owner.write_text("")
        _, epoch, kind = (owner.read_text() or "-0-").split("-")
        if kind and run.epoch + 1 == int(epoch):
            owner.write_text("")
            _strike(run, kind)
        return run_epoch(run, *arguments, **options)

    module.TrialRun.run_epoch = run_epoch_or_fail


class _Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module as usual and then changes it."""

    def __init__(self, name, plant):
        self._name, self._plant, self._real = name, plant, None

    def find_spec(self, name, path, target=None):
        if name != self._name or self._real is not None:
            return None
        self._real = False  # while the real one is looked for, this finder stays out of the way
        real = importlib.util.find_spec(name)
        self._real = real.loader
        real.loader = self
        return real

    def create_module(self, spec):
        return self._real.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._real
        self._real.exec_module(module)
        self._plant(module)


_right_time = time.time


def _wrong_time():
    # Of this module and without a closure: Ray pickles what holds it, by name.
    try:
        return _right_time() + float(Path(os.environ["THAW_PLANTED_CLOCK"]).read_text() or 0)
    except OSError:
        return _right_time()


def _wrong_time_ns():
    return int(_wrong_time() * 1e9)


if _FOLDER:
    sys.meta_path.insert(0, _Planter("trainables.training.loop", _plant_faults))
if "THAW_PLANTED_PATIENCE_S" in os.environ:
    sys.meta_path.insert(0, _Planter("trainables.files.outages", _plant_patience))
if "THAW_PLANTED_CLOCK" in os.environ:
    time.time, time.time_ns = _wrong_time, _wrong_time_ns
