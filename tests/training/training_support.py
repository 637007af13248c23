"""Trials of a few seconds, and processes to run them in: alone, or as the ranks of a group."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainables.backbones.zoo import Backbone, load_backbone
from trainables.config import BackboneConfig, DataConfig, SplitConfig, TrialConfig
from trainables.data.packing import PackReport
from trainables.ranks import Ranks
from trainables.training import loop
from trainables.training.loop import TrialRun
from trainables.training.repeatable import make_repeatable
from trainables.training.trained_part import SplitNetwork, split_network
from trainables.training.workbench import Workbench

Numbers = dict[str, float]
Tensors = dict[str, torch.Tensor]
DEVICE = torch.device(os.environ.get("THAW_TEST_DEVICE", "cpu"))
"""Where trials are trained. `make gpu-tests` says cuda:0: what holds to the bit on a CPU has to hold there too."""
make_repeatable(DEVICE)

# 46 pictures to learn from and 25 to judge by, of five classes: batches and shares have remainders.
SMALL_SPLIT = SplitConfig(train=0.06, val=0.03, test=0.91)
PATIENCE_S = 120.0
# All that changes batches, labels, steps and the weights that are judged.
EVERY_CHOICE: dict[str, Any] = {
    "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "class_balance": "balanced", "ema_decay": 0.9, "grad_accumulation": 2,
    "label_smoothing": 0.1,
}  # fmt: skip


def build_config(report: PackReport, backbone: str = "lenet", depth: int = 0, **changes: Any) -> TrialConfig:
    """A trial on few digits; ``split`` and ``size_px`` are the data's, every other change is the trial's own."""
    data = DataConfig(
        table=str(report.path),
        fingerprint=report.fingerprint,
        class_names=("0", "1", "2", "3", "4"),
        split=changes.pop("split", SMALL_SPLIT),
        image_size_px=changes.pop("size_px", 16 if backbone == "lenet" else 32),
    )
    values = {"batch_size": 16, "epochs": 3, **changes}
    return TrialConfig.model_validate(
        {"data": data, "backbone": BackboneConfig(name=backbone), "freeze_depth": depth, **values}
    )


def num_stages(backbone: str, size_px: int = 32) -> int:
    """The depth at which only the head is trained."""
    return load_backbone(backbone, None, num_classes=5, input_size_px=size_px, seed=0).graph.num_stages


def numbers(metrics: dict[str, float]) -> Numbers:
    """What a trial found out, without how long it took."""
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def copied(tensors: Any) -> Tensors:
    """Tensors that no later step changes."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def finish(run: TrialRun) -> tuple[list[Numbers], Tensors]:
    """Trains what is left of a trial; returns the numbers of its epochs, and every tensor that it goes on from."""
    epochs = []
    while run.epoch < run.config.epochs:
        epochs.append(numbers(run.run_epoch()))
    end = run.checkpoint()
    state = {f"tail/{name}": value for name, value in copied(end.tail).items()}
    state |= {f"average/{name}": value for name, value in copied(end.average).items()}
    return epochs, state | {f"optimizer/{name}": value for name, value in copied(end.optimizer).items()}


def train(
    config: TrialConfig, bench: Workbench | None = None, ranks: Ranks | None = None
) -> tuple[list[Numbers], Tensors]:
    """A whole trial, by default alone and with nothing kept from another."""
    return finish(TrialRun(config, bench or Workbench(), ranks or Ranks(DEVICE)))


class DoubleRun(TrialRun):
    """A trial whose trained part computes in float64, where rounding is too small to hide a mistake behind."""

    def __init__(self, config: TrialConfig, bench: Workbench, ranks: Ranks) -> None:
        def split_in_double(backbone: Backbone, depth: int) -> SplitNetwork:
            network = split_network(backbone, depth)
            network.tail.double()
            return network

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "split_network", split_in_double)
            super().__init__(config, bench, ranks)

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._model(inputs.double())


def train_in_double_on(ranks: Ranks, config: TrialConfig) -> tuple[list[Numbers], Tensors]:
    """``train_on`` in float64."""
    return finish(DoubleRun(config, Workbench(), ranks))


def train_on(ranks: Ranks, config: TrialConfig) -> tuple[list[Numbers], Tensors]:
    """``train`` as ``RankGroup.call`` wants it."""
    return train(config, ranks=ranks)


def train_all(configs: list[TrialConfig]) -> list[tuple[list[Numbers], Tensors]]:
    """One whole trial after the other, each with a workbench of its own."""
    return [train(config) for config in configs]


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    """Fails unless names, dtypes and every bit agree."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), f"{name}: {(found[name] - tensor).abs().max()}"


def _answer(outbox: multiprocessing.queues.Queue[tuple[bool, bytes]], call: Callable[[], Any]) -> None:
    # A plain pickle: torch's own way through a queue hands over file descriptors, which end with the process.
    try:
        outbox.put((True, pickle.dumps(call())))
    except BaseException:
        outbox.put((False, pickle.dumps(traceback.format_exc())))
        raise


def _receive(outbox: multiprocessing.queues.Queue[tuple[bool, bytes]]) -> Any:
    is_well, content = outbox.get(timeout=PATIENCE_S)
    answer = pickle.loads(content)
    if not is_well:
        raise RuntimeError(f"in the other process:\n{answer}")
    return answer


def _run_once(
    outbox: multiprocessing.queues.Queue[tuple[bool, bytes]], function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    _answer(outbox, lambda: function(*args))


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns in a process that has done nothing else, with one thread."""
    context = multiprocessing.get_context("spawn")
    outbox = context.Queue()
    process = context.Process(target=_run_once, args=(outbox, function, args), daemon=True)
    process.start()
    try:
        return _receive(outbox)
    finally:
        process.join(PATIENCE_S)


class RankGroup:
    """Processes that are joined over gloo, or NCCL on GPUs, and run one function after another, without Ray.

    Args:
        world_size: How many.
        folder: Where they meet.
    """

    def __init__(self, world_size: int, folder: Path) -> None:
        if DEVICE.type == "cuda" and torch.cuda.device_count() < world_size:
            pytest.skip(f"{world_size} ranks need {world_size} GPUs: NCCL takes one rank per GPU")
        context = multiprocessing.get_context("spawn")
        self._inboxes = [context.Queue() for _ in range(world_size)]
        self._outboxes = [context.Queue() for _ in range(world_size)]
        self._processes = [
            context.Process(
                target=_serve,
                args=(rank, world_size, str(folder / "meeting"), self._inboxes[rank], self._outboxes[rank]),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(ranks, *args)`` on every rank; what each returned, in their order."""
        # Plain pickles: torch's own way through a queue would have the ranks share one memory.
        for inbox in self._inboxes:
            inbox.put(pickle.dumps((function, args)))
        try:
            return [_receive(outbox) for outbox in self._outboxes]
        except (RuntimeError, queue.Empty):
            # The ranks have parted: whatever comes next would wait in vain.
            for process in self._processes:
                process.kill()
            raise

    def close(self) -> None:
        """Ends the processes."""
        for inbox in self._inboxes:
            inbox.put(None)
        for process in self._processes:
            process.join(10.0)
            process.kill()


def _serve(
    rank: int,
    world_size: int,
    meeting: str,
    inbox: multiprocessing.queues.Queue[bytes | None],
    outbox: multiprocessing.queues.Queue[tuple[bool, bytes]],
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    device = DEVICE if DEVICE.type == "cpu" else torch.device("cuda", rank)
    backend = "gloo" if device.type == "cpu" else "nccl"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    ranks = Ranks.join(device)
    while (task := inbox.get()) is not None:
        function, args = pickle.loads(task)
        _answer(outbox, lambda function=function, args=args: function(ranks, *args))
    dist.destroy_process_group()
