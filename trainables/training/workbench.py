"""What a warm process keeps from trial to trial, so that only its first trial pays for it.

In: the parts of a trial's configuration that name pictures and a backbone. Out: these, opened or loaded once. Nothing
that a trial changes is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from trainables.backbones.zoo import Backbone, load_backbone
from trainables.config import DataConfig, FeatureSettings, SplitName, TrialConfig
from trainables.data.kept_views import ViewCache
from trainables.data.sharing import open_table
from trainables.data.side import Side
from trainables.data.splits import labelled_rows, sides_of
from trainables.data.table import ImageTable
from trainables.errors import InputError
from trainables.features.probes import ProbeResult
from trainables.features.residence import PageBudget
from trainables.features.store import FeatureStore
from trainables.files.node_cache import features_root

_MOST_BACKBONES = 4


class Workbench:
    """What a warm process keeps from trial to trial: open tables, views in memory, fitted heads, the feature store.

    Args:
        view_cache_bytes: Memory that views may take.
        features: Where what frozen parts computed is kept; None computes it each time.

    Attributes:
        beat: Called for each batch, as a sign of life.
        waiting: Around what takes its time and is no hang: a table that comes from storage.
    """

    def __init__(self, view_cache_bytes: int = 1 << 30, features: FeatureSettings | None = None) -> None:
        self.views = ViewCache(view_cache_bytes)
        self.heads: dict[str, ProbeResult] = {}  # by `probing.head_key`
        self.features = features
        self.beat: Callable[[], object] = lambda: None
        self.waiting: Callable[[], AbstractContextManager[object]] = nullcontext
        self.store: FeatureStore | None = None
        self.pages = PageBudget(None if features is None else features.resident_bytes)
        if features is not None:
            directory = features_root(features.directory)
            self.store = FeatureStore(directory, features.budget_bytes, features.shared_uri)
        self._tables: dict[tuple[str, str], ImageTable] = {}
        self._sides: dict[tuple[object, ...], Side] = {}
        self._backbones: OrderedDict[tuple[object, ...], Backbone] = OrderedDict()

    def table(self, config: DataConfig) -> ImageTable:
        """The image table of ``config``, opened once; from shared storage by way of this node's copy.

        Raises:
            InputError: No table there, a damaged one, or one with other content than ``config`` names.
        """
        key = (config.table, config.fingerprint)
        if key not in self._tables:
            with self.waiting():
                table = open_table(config)
            if table.fingerprint != config.fingerprint:
                raise InputError(
                    f"image table {config.table}: its pictures are others now ({table.fingerprint[:12]} instead of "
                    f"{config.fingerprint[:12]}): start a new sweep on them"
                )
            self._tables[key] = table
        return self._tables[key]

    def side(self, config: DataConfig, name: SplitName) -> Side:
        """The pictures of one side, in table order; dealt once.

        Raises:
            InputError: See `table`.
        """
        key = (*_deal_of(config), config.fold, name)
        if key not in self._sides:
            table = self.table(config)
            rows, labels = labelled_rows(table, config)
            sides = sides_of(table, rows, config)
            chosen = sides == name
            whole, places = None, None
            if isinstance(config.fold, int) and name != "test":
                untested = sides != "test"
                whole = self._sides.setdefault(
                    (*_deal_of(config), "untested", name), Side(table, rows[untested], labels[untested], name)
                )
                places = np.flatnonzero(chosen[untested])
            self._sides[key] = Side(table, rows[chosen], labels[chosen], name, whole, places)
        return self._sides[key]

    def backbone(self, config: TrialConfig) -> Backbone:
        """The backbone of ``config``, with the bits that `load_backbone` gives it.

        Its body is loaded once and shared, which the frozen stages are made for; its head is the trial's own.
        """
        num_classes, size_px = len(config.data.class_names), config.data.image_size_px
        name, weights = config.backbone.name, config.backbone.weights
        # Without weights the body is drawn from the seed; with them their hash says what is in it.
        key = (name, size_px, config.seed if weights is None else weights.key)
        if key not in self._backbones:
            self._backbones[key] = load_backbone(
                name, weights, num_classes=num_classes, input_size_px=size_px, seed=config.seed
            )
            while len(self._backbones) > _MOST_BACKBONES:
                self._backbones.popitem(last=False)
        self._backbones.move_to_end(key)
        return self._backbones[key].with_head(num_classes, config.seed, config.head)


def _deal_of(config: DataConfig) -> tuple[object, ...]:
    """What decides how pictures are dealt to sides and folds."""
    return (
        config.table, config.fingerprint, config.class_names, config.label_separator,
        config.split, config.group_pattern, config.folds,
    )  # fmt: skip
