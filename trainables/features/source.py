"""Batches from stored features: what a frozen part made of the pictures is read, and computed where it is missing.

In: a trial's pictures, its frozen part and the process's store. Out: the batches that `ImageBatches` would make, to the
bit, because both run the frozen part in the same canonical batches. What cannot be stored is computed from pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from torch import nn

from trainables.backbones.zoo import Backbone
from trainables.config import TrialConfig
from trainables.data.batches import Batch, ImageBatches
from trainables.features.key import FeatureKey, rows_digest
from trainables.features.machine import describe_machine, describe_prefix
from trainables.features.reading import Features
from trainables.features.store import FeatureStore
from trainables.ranks import Ranks


class FeaturesRequiredError(RuntimeError):
    """The spec demands stored features, and they cannot be stored."""


@dataclass
class FeatureTally:
    """Pictures whose features were read, not computed, since the last ``take``."""

    num_read: int = 0

    def take(self) -> int:
        """The count, which begins again at 0."""
        count, self.num_read = self.num_read, 0
        return count


class StoredFeatures:
    """One trial's view of the store; keeps what it reads open until it is closed.

    Args:
        store: The process's store.
        config: The trial's.
        backbone: Its backbone.
        stages: The frozen ones.
        prefix_hash: Of its tensors.
        ranks: This process among the workers, which share the filling.
        is_required: Whether training from pictures instead is an error.
    """

    def __init__(
        self,
        store: FeatureStore,
        config: TrialConfig,
        backbone: Backbone,
        stages: Sequence[nn.Module],
        prefix_hash: str,
        *,
        ranks: Ranks,
        is_required: bool = False,
    ) -> None:
        self.tally = FeatureTally()
        self._store, self._config, self._ranks, self._is_required = store, config, ranks, is_required
        frozen = backbone.graph.stages[: config.freeze_depth]
        self._shape = frozen[-1].output_shape
        self._frozen = describe_prefix(
            stages,
            backbone=backbone.name,
            cut=tuple(stage.name for stage in frozen),
            prefix_hash=prefix_hash,
            mean=backbone.mean,
            std=backbone.std,
        )
        self._machine = describe_machine(ranks.device)
        self._open: dict[str, Features] = {}
        self._stack = ExitStack()

    def features(self, images: ImageBatches, view_index: int) -> Features | None:
        """The features of one view of a side, computed and stored if need be; None when they cannot be stored.

        Raises:
            FeaturesRequiredError: They cannot, and the spec demands them.
        """
        side = images.side
        key = FeatureKey.of(
            self._config,
            rows=rows_digest(side.table.ids[side.rows]),
            policy=images.policy,
            view_index=view_index,
            frozen=self._frozen,
            machine=self._machine,
        )
        digest = key.digest()
        if digest not in self._open:
            found = self._store.open(key) or self._fill(key, images, view_index)
            if found is None:
                if self._is_required:
                    reason = self._store.storing.reason or "the cache's budget or disk is too small"
                    raise FeaturesRequiredError(f"features: required, but they cannot be stored: {reason}")
                return None
            self._open[digest] = self._stack.enter_context(found)
        return self._open[digest]

    def close(self) -> None:
        """Lets the store evict what this trial read."""
        self._open.clear()
        self._stack.close()

    def _fill(self, key: FeatureKey, images: ImageBatches, view_index: int) -> Features | None:
        ranks = self._ranks
        with self._store.fill(
            key, len(images.side), self._shape, rank=ranks.rank, world_size=ranks.world_size
        ) as writer:
            for part in writer.parts():
                blocks = images.inputs([part.positions], view_index)
                writer.put(part, next(iter(blocks)).cpu())
                # Read back by this very epoch, or another rank's: they were not saved anything.
                self.tally.num_read -= len(part.positions)
        return self._store.open(key)


class FeatureBatches:
    """Batches from the store, or from pictures where it has nothing to give.

    Args:
        images: The same batches from pictures.
        stored: The trial's view of the store.
    """

    def __init__(self, images: ImageBatches, stored: StoredFeatures) -> None:
        self._images, self._stored = images, stored

    def batches(self, plan: Sequence[np.ndarray], view_index: int) -> Iterator[Batch]:
        """One batch per entry of ``plan``, in order."""
        features = self._stored.features(self._images, view_index)
        if features is None:
            yield from self._images.batches(plan, view_index)
            return
        self._stored.tally.num_read += sum(len(positions) for positions in plan)
        for positions in plan:
            yield self._images.labelled(features.rows(positions), positions)
