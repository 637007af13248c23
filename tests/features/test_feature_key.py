"""What changes a feature key, and what must not."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
import torch
from store_support import make_key, script
from torch import nn

from trainables.backbones.assembling import program_of
from trainables.backbones.zoo import load_backbone
from trainables.config import (
    AugmentationConfig,
    BackboneConfig,
    ComputeConfig,
    DataConfig,
    OptimizerConfig,
    TrialConfig,
    WeightsFile,
)
from trainables.features.key import FeatureKey, FrozenPart, Machine, ViewKey, rows_digest
from trainables.features.machine import describe_machine, describe_prefix


def changed(value: Any) -> Any:
    """Some other value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        others = {"fp32": "bf16", "cpu": "cuda", "flip": "flip_crop"}
        return others.get(value, value + "x")
    if isinstance(value, tuple):
        return (*value[:-1], changed(value[-1])) if value else (("switch", "on"),)
    if isinstance(value, float):
        return value + 1e-6
    return 7


def leaves(settings: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        found += leaves(value, (*path, name)) if hasattr(value, "model_fields_set") else [(*path, name)]
    return found


def with_change(settings: Any, path: tuple[str, ...]) -> Any:
    value = getattr(settings, path[0])
    new = with_change(value, path[1:]) if path[1:] else changed(value)
    return settings.model_copy(update={path[0]: new})


@pytest.mark.parametrize("path", leaves(make_key()), ids=".".join)
def test_every_field_changes_the_digest(path: tuple[str, ...]) -> None:
    assert with_change(make_key(), path).digest() != make_key().digest()


def test_equal_keys_have_one_digest_in_every_process() -> None:
    program = script("print(make_key().digest())")
    elsewhere = subprocess.run(
        program, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    assert elsewhere.stdout.strip() == make_key().digest()


def test_the_order_of_a_dict_does_not_matter() -> None:
    fields = json.loads(make_key().canonical_json())
    backwards = {name: fields[name] for name in reversed(fields)}
    backwards["frozen"] = {name: fields["frozen"][name] for name in reversed(fields["frozen"])}
    assert FeatureKey.model_validate(backwards).digest() == make_key().digest()


def test_the_canonical_form_reads_back_as_the_same_key() -> None:
    key = make_key(input_size_px=96)
    assert FeatureKey.model_validate_json(key.canonical_json()) == key


MACHINE = Machine(device="cpu", processor="some cpu", threads=2, software=(), numerics=())
FROZEN = FrozenPart(backbone="lenet", cut=("a",), program="p", prefix_hash="h", mean=(0.5,), std=(0.5,))
CONFIG = TrialConfig(
    data=DataConfig(table="/data/one", fingerprint="f" * 64, class_names=("ant", "bee"), image_size_px=64),
    backbone=BackboneConfig(name="lenet", weights=WeightsFile(uri="/weights/one", sha256="c" * 64)),
    freeze_depth=1,
    augmentation=AugmentationConfig(policy="randaugment", magnitude=9, num_views=4, seed=3),
)


def digest_of(config: TrialConfig, view_index: int = 1) -> str:
    policy = config.augmentation
    key = FeatureKey.of(config, rows="r", policy=policy, view_index=view_index, frozen=FROZEN, machine=MACHINE)
    return key.digest()


@pytest.mark.parametrize(
    "update",
    [
        {"optimizer": OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.5, warmup_epochs=2)},
        {"batch_size": 7},
        {"epochs": 99},
        {"label_smoothing": 0.1},
        {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "class_balance": "balanced", "ema_decay": 0.9},
        {"seed": 5},
        {"data": CONFIG.data.model_copy(update={"table": "s3://elsewhere/table"})},
        {"backbone": BackboneConfig(name="lenet", weights=WeightsFile(uri="/moved", sha256="c" * 64))},
        {"augmentation": CONFIG.augmentation.model_copy(update={"num_views": 8})},
        {"compute": ComputeConfig(precision="bf16")},
    ],
    ids=lambda update: next(iter(update)),
)
def test_what_decides_no_bit_does_not_change_the_digest(update: dict[str, Any]) -> None:
    assert digest_of(CONFIG.model_copy(update=update)) == digest_of(CONFIG)


@pytest.mark.parametrize(
    "update",
    [
        {"data": CONFIG.data.model_copy(update={"fingerprint": "e" * 64})},
        {"data": CONFIG.data.model_copy(update={"image_size_px": 65})},
        {"data": CONFIG.data.model_copy(update={"fit": "pad"})},
        {"augmentation": CONFIG.augmentation.model_copy(update={"magnitude": 10})},
        {"augmentation": CONFIG.augmentation.model_copy(update={"seed": 4})},
        {"augmentation": CONFIG.augmentation.model_copy(update={"policy": "flip_crop"})},
        {"compute": ComputeConfig(prefix_precision="bf16")},
        {"compute": ComputeConfig(prefix_batch_size=16)},
        {"compute": ComputeConfig(channels_last=False)},
    ],
)
def test_what_decides_bits_changes_the_digest(update: dict[str, Any]) -> None:
    assert digest_of(CONFIG.model_copy(update=update)) != digest_of(CONFIG)
    assert digest_of(CONFIG, view_index=2) != digest_of(CONFIG, view_index=1)


def test_magnitude_counts_for_randaugment_only() -> None:
    weak, strong = (AugmentationConfig(policy="flip_crop", magnitude=magnitude) for magnitude in (1, 30))
    assert ViewKey.of(weak, 3) == ViewKey.of(strong, 3)
    weak, strong = (AugmentationConfig(policy="randaugment", magnitude=magnitude) for magnitude in (1, 30))
    assert ViewKey.of(weak, 3) != ViewKey.of(strong, 3)


def test_without_augmentation_there_is_one_view() -> None:
    one, other = (AugmentationConfig(policy="none", seed=seed, magnitude=seed) for seed in (1, 2))
    assert ViewKey.of(one, 0) == ViewKey.of(other, 5)


def test_rows_are_told_apart_by_content_and_position() -> None:
    assert rows_digest([b"a", b"b"]) == rows_digest(["a", "b"])
    digests = {rows_digest(ids) for ids in (["a", "b"], ["b", "a"], ["a"], ["ab"], ["a", "b", "c"], [])}
    assert len(digests) == 6


def test_a_changed_weight_changes_the_key_and_a_changed_head_does_not() -> None:
    def frozen(**settings: Any) -> FrozenPart:
        backbone = load_backbone("lenet", None, **{"num_classes": 2, "input_size_px": 32, "seed": 0, **settings})
        return describe_prefix(backbone, 1)

    assert frozen(num_classes=5) == frozen()
    assert frozen(seed=1).prefix_hash != frozen().prefix_hash

    backbone = load_backbone("lenet", None, num_classes=2, input_size_px=32, seed=0)
    weight = next(iter(backbone.graph.split(1)[0].parameters()))
    weight.data[0, 0, 0, 0] += 1e-6
    assert describe_prefix(backbone, 1) != frozen()


def test_each_cut_is_named_by_what_lies_before_it() -> None:
    backbone = load_backbone("lenet", None, num_classes=2, input_size_px=32, seed=0)
    cuts = range(1, backbone.graph.num_stages + 1)
    parts = [describe_prefix(backbone, cut) for cut in cuts]
    assert [len(part.cut) for part in parts] == list(cuts)
    for field in ("program", "prefix_hash"):
        assert len({getattr(part, field) for part in parts}) == len(parts)
    assert describe_prefix(backbone.with_head(7, seed=3), 2) == parts[1]


def test_the_same_tensors_in_another_program_are_another_key() -> None:
    assert program_of(nn.Conv2d(3, 4, 3, stride=1)) != program_of(nn.Conv2d(3, 4, 3, stride=2))


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA"])
def test_switches_of_the_environment_are_in_the_key(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    before = describe_machine(torch.device("cpu"))
    monkeypatch.setenv(name, "BF16")
    assert describe_machine(torch.device("cpu")) != before


def test_threads_and_switches_of_this_process_are_in_the_key() -> None:
    device, threads = torch.device("cpu"), torch.get_num_threads()
    before = describe_machine(device)
    assert before == describe_machine(device)
    assert before.threads == threads
    try:
        torch.set_num_threads(threads + 1)
        assert describe_machine(device) != before
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("medium")
        assert describe_machine(device) != before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(threads)
    assert describe_machine(device) == before
