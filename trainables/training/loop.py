"""Fine-tuning one configuration: epochs, evaluation, and the state that carries a trial over an interruption.

In: a ``TrialConfig``, a ``Workbench`` (what a warm process keeps) and this process's place among the ranks.
Out: metrics per epoch and checkpoints. Knows no Ray. Nothing of a trial outlives its ``TrialRun``: random state,
gradients, autocast and the backbone are as they were, so a warm process gives the numbers of a fresh one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from trainables.backbones.graph import Stage
from trainables.backbones.zoo import Backbone
from trainables.config import AugmentationConfig, SplitName, TrialConfig
from trainables.data.batches import Batch, BatchSource, ImageBatches, Normaliser, PartOf
from trainables.data.kept_views import Views
from trainables.data.label_sets import members_of
from trainables.data.side import Side, plan_epoch, plan_in_order
from trainables.data.views import view_index
from trainables.features.source import FeatureBatches, StoredFeatures, at_places, visit
from trainables.frozen_prefix import FrozenPrefix, memory_format
from trainables.ranks import Ranks, SharedNoise, share_bounds, share_noise
from trainables.training.accumulation import turns_of
from trainables.training.averaging import WeightAverage
from trainables.training.checkpoint import Checkpoint, CheckpointError, optimizer_tensors, restore_optimizer
from trainables.training.kernels import choose_kernels
from trainables.training.label_scores import judge_labels
from trainables.training.losses import TrainingLoss, class_weights
from trainables.training.mixing import Mixer
from trainables.training.scores import Evaluation, decide, judge_whole
from trainables.training.sizes import share_at, size_at
from trainables.training.trained_part import build_optimizer, keep_statistics, lr_scale, replace_dropout, split_network
from trainables.training.workbench import Workbench

_EVALUATION_BATCH_SIZE = 64
_AS_IS = AugmentationConfig(policy="none", num_views=1)


class DivergedError(RuntimeError):
    """The loss of a trial is no longer a finite number."""


class StoppedError(Exception):
    """Nobody wants this trial any more; the epoch under way is dropped."""


class TrialRun:
    """One trial on one rank; every rank of the lane makes the same one.

    Args:
        config: What to train.
        bench: The process's workbench.
        ranks: This process among the lane's workers.
        cuts_to_keep: See `TrainJob`.
    """

    def __init__(
        self,
        config: TrialConfig,
        bench: Workbench,
        ranks: Ranks,
        cuts_to_keep: Mapping[Literal["train", "val"], Collection[int]] | None = None,
    ) -> None:
        self.config, self._bench, self._ranks = config, bench, ranks
        self.epoch = 0
        self._has_begun = False
        backbone = bench.backbone(config)
        self.stages: tuple[Stage, ...] = backbone.graph.stages
        self._network = split_network(backbone, config.freeze_depth)
        layout = memory_format(config.compute)
        self._normalise = Normaliser(backbone.mean, backbone.std, ranks.device, layout)
        self._prefix: FrozenPrefix | None = None
        self._stored: StoredFeatures | None = None
        if config.freeze_depth:
            stages = backbone.graph.stage_modules(config.freeze_depth, ranks.device, layout)
            self._prefix = FrozenPrefix(stages, config.compute, bench.beat)
            self._stored = self._open_store(backbone, cuts_to_keep)
        if config.dropout is not None:
            replace_dropout(self._network.tail, self._network.head_name, config.dropout)
        tail = choose_kernels(self._network.tail, ranks.device, config.compute.precision)
        self._tail = tail.to(ranks.device).to(memory_format=layout)
        # Looked up where it counts: it takes a look at every tensor of the network.
        stage_keys = backbone.graph.stage_keys if config.optimizer.layer_decay < 1 else ()
        self._optimizer = build_optimizer(self._tail, self._network.head_name, config.optimizer, stage_keys)
        self._members_SK = self._look_up_members()
        self._loss = TrainingLoss(config.label_smoothing, self._weigh_classes(), self._members_SK)
        self._mixer = Mixer(config, ranks)
        self._average: WeightAverage | None = None
        self._noise = SharedNoise(config.seed)
        model = share_noise(self._tail, self._noise)
        is_kept = config.bn_mode == "keep"
        self._model = ranks.wrap(keep_statistics(model) if is_kept else ranks.join_batch_norms(model))
        self._prefix_flops, self._tail_flops = backbone.graph.flops_around(config.freeze_depth)

    def _weigh_classes(self) -> torch.Tensor | None:
        """What each class's pictures count in the loss [K]; None where all count the same."""
        if self.config.class_balance != "weighted":
            return None
        return class_weights(self.side("train").labels, len(self.config.data.class_names)).to(self._ranks.device)

    def _look_up_members(self) -> torch.Tensor | None:
        """Which classes each set of labels holds, as 0 and 1 [S, K]; None where each picture has one class."""
        data = self.config.data
        if data.label_separator is None:
            return None
        members_SK = members_of(self._bench.table(data).class_names, data.class_names, data.label_separator)
        return torch.from_numpy(members_SK).float().to(self._ranks.device)

    def _open_store(
        self, backbone: Backbone, cuts_to_keep: Mapping[Literal["train", "val"], Collection[int]] | None
    ) -> StoredFeatures | None:
        settings = self._bench.features
        if self._bench.store is None or settings is None:
            return None
        return StoredFeatures(
            self._bench.store,
            self.config,
            backbone,
            ranks=self._ranks,
            cuts_to_keep=cuts_to_keep,
            is_required=settings.mode == "required",
            pages=self._bench.pages,
        )

    @property
    def prefix_hash(self) -> str:
        """Of the frozen tensors that its checkpoints complete."""
        return self._network.prefix_hash

    def close(self) -> None:
        """Lets go of the stored features that the trial read; it can go on, and opens them again."""
        if self._stored is not None:
            self._stored.close()

    def side(self, name: SplitName) -> Side:
        """The pictures of one side, in table order."""
        return self._bench.side(self.config.data, name)

    def visit(self, name: SplitName, cuts: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, torch.Tensor]]]:
        """Features of a side's pictures, as evaluation sees them, behind frozen stages: see `source.visit`."""
        if self._prefix is None:
            raise ValueError(f"{self.config.backbone.name}: nothing is frozen, so there are no features to visit")
        side = self.side(name)
        images = ImageBatches(self._views(side.whole or side, _AS_IS), self._normalise, self._prefix)
        visited = visit(images, self._stored, self._prefix, 0, cuts)
        layout = memory_format(self.config.compute)
        return visited if side.places is None else at_places(visited, side.places, layout)

    @torch.no_grad()
    def head_inputs(self, features: torch.Tensor) -> torch.Tensor:
        """What the head gets [B, D] of the features at this run's depth, while nothing is dropped."""
        caught: list[torch.Tensor] = []
        head = self._tail.get_submodule(self._network.head_name)
        with head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])):
            self._tail.eval()(features.to(self._ranks.device).float())
        return caught[0]

    def _start_head(self) -> None:
        """Gives the head what it starts from, once, and the average of the weights; a checkpoint brings its own."""
        if self._has_begun:
            return
        self._has_begun = True
        if self.config.head_init == "probe":
            from trainables.training.probing import probed_head  # it runs a trial of its own

            weight_KD, bias_K = probed_head(self.config, len(self.stages), self._bench, self._ranks)
            head = self._tail.get_submodule(self._network.head_name)
            head.load_state_dict({"weight": weight_KD, "bias": bias_K})
        self._start_average()

    def _start_average(self) -> None:
        """Begins the moving average with the weights as they are, if the trial has one."""
        if self.config.ema_decay is not None:
            self._average = WeightAverage(self._tail, self.config.ema_decay)

    def run_epoch(self, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Trains one epoch and scores the validation side; the same numbers on every rank.

        Returns:
            Metrics ``train/...``, ``val/...``, ``time/...`` (seconds) and ``compute/...`` of this epoch.

        Raises:
            DivergedError: The loss is not finite.
            StoppedError: ``should_stop`` said so on rank 0, between two batches.
        """
        started = time.perf_counter()
        self._start_head()
        with torch.random.fork_rng(devices=[self._ranks.device] if self._ranks.device.type == "cuda" else []):
            # The loop draws nothing from the global generator; a backbone's own code might.
            torch.manual_seed(self.config.seed * 1_000_003 + self.epoch)
            train_loss = self._train_epoch(should_stop)
        trained = time.perf_counter()
        if not math.isfinite(train_loss):
            raise DivergedError(f"training loss is {train_loss} in epoch {self.epoch + 1}")
        scores = self.evaluate("val").metrics if len(self.side("val")) else {}
        if not math.isfinite(scores.get("loss", 0.0)):
            raise DivergedError(f"validation loss is {scores['loss']} in epoch {self.epoch + 1}")
        self.epoch += 1
        num_train, num_val = len(self.side("train")), len(self.side("val"))
        num_read, flops_saved = self._count_read()
        # Backward is counted as twice forward: gradients of the inputs and of the weights.
        # They go by the pixels, where pictures grow.
        num_alike = num_train * (self._train_size(self.epoch - 1) / self.config.data.image_size_px) ** 2
        flops = 3 * num_alike * self._tail_flops + num_val * self._tail_flops
        flops += (num_alike + num_val) * self._prefix_flops - flops_saved
        return {
            "train/loss": train_loss,
            **{f"val/{name}": value for name, value in scores.items()},
            "time/train_s": trained - started,
            "time/val_s": time.perf_counter() - trained,
            "compute/images": float(num_train + num_val),
            "compute/images_from_store": float(num_read),
            "compute/gflops": flops / 1e9,
            "compute/flops_saved": float(flops_saved),
        }

    def _count_read(self) -> tuple[int, int]:
        """Over all ranks: pictures whose features this epoch read, and FLOPs of frozen stages that it saved so."""
        if self._stored is None:
            return 0, 0
        tally = self._ranks.sum(torch.tensor(self._stored.tally.take(), device=self._ranks.device))
        num_read, flops_saved = tally.tolist()
        return num_read, flops_saved

    def _train_epoch(self, should_stop: Callable[[], bool]) -> float:
        config, ranks, side = self.config, self._ranks, self.side("train")
        self._model.train()
        balanced_labels = side.labels if config.class_balance == "balanced" else None
        plan = plan_epoch(len(side), config.batch_size, config.seed, self.epoch, balanced_labels)
        batches = self._batches(side, config.augmentation, self._train_size(self.epoch)).batches(
            [ranks.share(positions) for positions in plan], view_index(config.augmentation, self.epoch)
        )
        turns = turns_of(plan, config.grad_accumulation)
        num_steps = turns[-1].step + 1
        loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
        for number, (positions, batch, turn) in enumerate(zip(plan, batches, turns, strict=True)):
            if ranks.agree_to(should_stop()):
                raise StoppedError
            self._noise.begin_step(
                self.epoch, number, *share_bounds(len(positions), ranks.rank, ranks.world_size), len(positions)
            )
            if turn.is_first:
                self._optimizer.zero_grad(set_to_none=True)
            with ranks.syncing(self._model, is_last=turn.is_last):
                loss = self._loss_of(batch, number, len(positions))
                loss_sum += loss.detach()
                # DDP divides gradients by the number of ranks; the loss of the global batch wants their sum.
                (loss * (ranks.world_size / turn.num_pictures)).backward()
            if turn.is_last:
                self._take_step(self.epoch * num_steps + turn.step, num_steps)
        return ranks.sum(loss_sum).item() / len(side)

    def _loss_of(self, batch: Batch, number: int, num_rows: int) -> torch.Tensor:
        """The losses of a batch's pictures, added up, after mixing if the trial mixes; every rank must call this."""
        mixed = self._mixer.mixed(batch, self.epoch, number, num_rows)
        if mixed is None:
            return self._loss(self._forward(batch.inputs), batch.labels_B)
        return self._loss.of_mixed(self._forward(mixed.inputs), mixed)

    def _take_step(self, step: int, steps_per_epoch: int) -> None:
        self._set_lr(step, steps_per_epoch)
        if self.config.optimizer.grad_clip_norm is not None:
            clip_grad_norm_(self._tail.parameters(), self.config.optimizer.grad_clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update(step)

    def _judged(self) -> AbstractContextManager[None]:
        """While this lasts the trained part holds the weights that are judged: their average, if the trial has one."""
        return nullcontext() if self._average is None else self._average.in_place()

    @torch.no_grad()
    def evaluate(self, name: SplitName) -> Evaluation:
        """Scores one side with the weights as they are, or their average; the same on every rank."""
        self._start_head()
        with self._judged():
            return self._evaluate(name)

    def _evaluate(self, name: SplitName) -> Evaluation:
        side, num_classes = self.side(name), len(self.config.data.class_names)
        self._model.eval()
        device, costs = self._ranks.device, self.config.costs
        costs_KK = None if costs is None else torch.tensor(costs, dtype=torch.float64, device=device)
        positions = self._ranks.share(np.arange(len(side)))
        plan = [positions[block] for block in plan_in_order(len(positions), _EVALUATION_BATCH_SIZE)]
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        decided_N = torch.zeros(len(side), dtype=torch.int64, device=device)
        # Each rank fills its own rows: the sum over ranks is the whole side, with no picture twice.
        logits_NK = torch.zeros((len(side), num_classes), dtype=next(self._tail.parameters()).dtype, device=device)
        for block, batch in zip(plan, self._batches(side, _AS_IS).batches(plan, 0), strict=True):
            logits_BK, rows = self._forward(batch.inputs), slice(block[0], block[-1] + 1)
            if self._members_SK is None:
                loss_sum += F.cross_entropy(logits_BK, batch.labels_B, reduction="sum")
                decided_N[rows] = decide(logits_BK, costs_KK)
            logits_NK[rows] = logits_BK
        self._ranks.sum(logits_NK)
        labels_N = torch.from_numpy(side.labels).to(device)
        if self._members_SK is not None:
            return judge_labels(logits_NK, self._members_SK[labels_N])
        loss = self._ranks.sum(loss_sum).item() / max(1, len(side))
        self._ranks.sum(decided_N)
        return judge_whole(loss, decided_N, logits_NK, labels_N, None if costs is None else np.array(costs))

    def checkpoint(self, meta: dict[str, Any] | None = None, *, weights_only: bool = False) -> Checkpoint:
        """The trial's state after its last whole epoch; its tensors are the run's own and change with the next one.

        Args:
            meta: JSON values to keep beside the loop's own.
            weights_only: Leaves out what only training needs; the weights are those that are judged.
        """
        self._start_head()
        averages = {} if self._average is None else self._average.tensors()
        return Checkpoint(
            prefix_hash=self._network.prefix_hash,
            tail=averages if averages and weights_only else self._tail.state_dict(),
            meta={"epoch": self.epoch, "config": self.config.model_dump(mode="json"), **(meta or {})},
            optimizer={} if weights_only else optimizer_tensors(self._optimizer, self._tail),
            average={} if weights_only else averages,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from ``checkpoint``: what follows equals what an uninterrupted trial would give.

        Raises:
            CheckpointError: It was made for another network, or on other frozen weights.
        """
        try:
            self._tail.load_state_dict(dict(checkpoint.tail_for(self._network.prefix_hash)))
        except RuntimeError as error:
            raise CheckpointError(f"this checkpoint does not fit {self.config.backbone.name}: {error}") from error
        if checkpoint.optimizer:
            restore_optimizer(self._optimizer, self._tail, checkpoint.optimizer)
        self._start_average()
        if self._average is not None and checkpoint.average:
            self._average.restore(checkpoint.average)
        self.epoch = int(checkpoint.meta["epoch"])
        self._has_begun = True

    def _train_size(self, epoch: int) -> int:
        """Side in pixels of the pictures that an epoch, counted from 0, trains on."""
        config = self.config
        return size_at(share_at(epoch, config.start_size, config.epochs), config.data.image_size_px)

    def _views(self, side: Side, policy: AugmentationConfig, size_px: int | None = None) -> Views:
        data = self.config.data
        is_pinned = self._ranks.device.type == "cuda"
        return Views(side, policy, size_px or data.image_size_px, self._bench.views, data.fit, pinned=is_pinned)

    def _batches(self, side: Side, policy: AugmentationConfig, size_px: int | None = None) -> BatchSource:
        views = self._views(side.whole or side, policy, size_px)
        images = ImageBatches(views, self._normalise, self._prefix)
        batches: BatchSource = images
        # What is stored is of the full size.
        is_full = views.size_px == self.config.data.image_size_px
        if is_full and self._stored is not None and self._prefix is not None:
            batches = FeatureBatches(images, self._stored, self._prefix)
        return batches if side.places is None else PartOf(batches, side.places)

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._bench.beat()
        is_bf16 = self.config.compute.precision == "bf16"
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            return self._model(inputs if is_bf16 else inputs.float()).float()

    def _set_lr(self, step: int, steps_per_epoch: int) -> None:
        optimizer = self.config.optimizer
        scale = lr_scale(step, steps_per_epoch, self.config.epochs, optimizer.warmup_epochs, optimizer.schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
