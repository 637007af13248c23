"""Checkpoints: what comes back is what was saved, on the network it was saved from, or nothing comes back at all."""

from __future__ import annotations

import hashlib
import json
import resource
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from training_support import DEVICE, assert_same_bits, copied, num_stages

from trainables.backbones.weights import store_weights
from trainables.backbones.zoo import load_backbone
from trainables.config import BackboneConfig, OptimizerConfig, TrialConfig
from trainables.ranks import Ranks
from trainables.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from trainables.training.loop import TrialRun
from trainables.training.trained_part import build_optimizer
from trainables.training.workbench import Workbench

TENSORS = {"head.weight": torch.arange(6.0).view(2, 3), "norm.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "last.ckpt"
    save_checkpoint(str(path), Checkpoint("abc", TENSORS, {"epoch": 3}, {"0/momentum_buffer": torch.ones(2, 3)}))
    return path


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_moments_follow_their_parameters_into_other_groups(optimizer: str) -> None:
    """A population's settings move, and with a layer decay each stage is a group of its own."""
    network = nn.Sequential(OrderedDict((name, nn.Linear(4, 4)) for name in ("first", "second", "head")))
    stages = [[f"{name}.{kind}" for kind in ("weight", "bias")] for name in ("first", "second")]

    def optimizer_of(layer_decay: float) -> torch.optim.Optimizer:
        return build_optimizer(network, "head", OptimizerConfig(name=optimizer, layer_decay=layer_decay), stages)

    before = optimizer_of(1.0)
    network(torch.randn(8, 4)).square().sum().backward()
    before.step()
    for layer_decay in (1.0, 0.7):
        after = optimizer_of(layer_decay)
        restore_optimizer(after, network, optimizer_tensors(before, network))
        for parameter in network.parameters():
            assert_same_bits(dict(after.state[parameter]), dict(before.state[parameter]))
    numbered = {
        f"{place}/{name}": value
        for place, parameter in enumerate(parameter for group in before.param_groups for parameter in group["params"])
        for name, value in before.state[parameter].items()
    }
    of_old = optimizer_of(1.0)
    restore_optimizer(of_old, network, numbered)
    assert_same_bits(optimizer_tensors(of_old, network), optimizer_tensors(before, network))


def test_what_was_saved_comes_back(saved: Path) -> None:
    loaded = load_checkpoint(str(saved))
    assert_same_bits(dict(loaded.tail), TENSORS)
    assert_same_bits(dict(loaded.optimizer), {"0/momentum_buffer": torch.ones(2, 3)})
    assert (loaded.prefix_hash, loaded.meta) == ("abc", {"epoch": 3})


def test_every_dtype_and_memory_layout_comes_back(tmp_path: Path) -> None:
    tensors = {
        "bf16": torch.randn(3, 4).bfloat16(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "part": torch.arange(12.0).view(3, 4)[:, 1:3],
    }
    save_checkpoint(str(tmp_path / "x"), Checkpoint("", tensors))
    assert_same_bits(dict(load_checkpoint(str(tmp_path / "x")).tail), tensors)


def test_a_checkpoint_lies_behind_a_storage_uri_too(tmp_path: Path) -> None:
    uri = (tmp_path / "storage" / "best.ckpt").as_uri()
    size = save_checkpoint(uri, Checkpoint("abc", TENSORS))
    assert (tmp_path / "storage" / "best.ckpt").stat().st_size == size
    assert_same_bits(dict(load_checkpoint(uri).tail), TENSORS)
    with pytest.raises(FileNotFoundError):
        load_checkpoint((tmp_path / "storage" / "none.ckpt").as_uri())


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_beside_it(saved: Path) -> None:
    save_checkpoint(str(saved), Checkpoint("new", TENSORS))
    assert load_checkpoint(str(saved)).prefix_hash == "new"
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_write_that_fails_leaves_the_old_checkpoint(saved: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # the system takes no more of a file than that
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(str(saved), Checkpoint("new", TENSORS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(str(saved)).prefix_hash == "abc"
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(0, 80), len(content) // 2, len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged checkpoint"):
            load_checkpoint(str(saved))


def test_a_flipped_bit_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(str(saved))


@pytest.mark.parametrize("content", [b"", b"\x80\x05K\x01.", safetensors.torch.save(TENSORS)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(str(tmp_path / "x"))


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(str(tmp_path / "none"))


# --- deltas --------------------------------------------------------------------------------------------------


def run_of(config: TrialConfig) -> TrialRun:
    return TrialRun(config, Workbench(), Ranks(DEVICE))


def test_a_head_only_delta_is_kilobytes(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    depth = num_stages("resnet18")
    run = run_of(config("resnet18", depth=depth, epochs=1))
    run.run_epoch()
    delta = save_checkpoint(str(tmp_path / "best"), run.checkpoint(weights_only=True))
    state = save_checkpoint(str(tmp_path / "last"), run.checkpoint())
    backbone = load_backbone("resnet18", None, num_classes=5, input_size_px=32, seed=0)
    whole = sum(tensor.nbytes for tensor in backbone.model.state_dict().values())
    assert whole > 40e6
    assert delta < 16e3  # 5 x 512 weights and 5 biases are 10 kB, the configuration 1 kB
    assert state < 48e3  # and AdamW's two moments
    assert set(load_checkpoint(str(tmp_path / "best")).tail) == {"fc.weight", "fc.bias"}
    assert not load_checkpoint(str(tmp_path / "best")).optimizer


def test_a_delta_and_its_prefix_are_the_whole_trained_network(config: Callable[..., TrialConfig]) -> None:
    trial = config("mobilenet_v2", depth=3, epochs=1, optimizer={"lr": 0.01})
    run = run_of(trial)
    run.run_epoch()
    delta = copied(run.checkpoint(weights_only=True).tail)
    backbone = load_backbone("mobilenet_v2", None, num_classes=5, input_size_px=32, seed=trial.seed)
    _, whole = backbone.graph.split(0)
    whole.load_state_dict({**backbone.model.state_dict(), **delta}, strict=True)
    images = torch.randn(trial.compute.prefix_batch_size, 3, 32, 32, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = run._tail.eval()(run._prefix(images))
        found = whole.eval().to(DEVICE).to(memory_format=torch.channels_last)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_delta_is_refused_beside_other_frozen_weights(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """Another seed, weights file, depth or backbone; another learning rate is no matter."""
    trial = config(depth=2, epochs=1)
    checkpoint = run_of(trial).checkpoint()
    other = load_backbone("lenet", None, num_classes=5, input_size_px=16, seed=5).model.state_dict()
    weights = store_weights(other, "lenet", tmp_path)
    refused: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "weights": {"backbone": BackboneConfig(name="lenet", weights=weights)},
        "depth": {"freeze_depth": 1},
        "backbone": {"backbone": BackboneConfig(name="resnet18")},
    }
    for change in refused.values():
        with pytest.raises(CheckpointError, match=r"stands on frozen weights .* load it beside the backbone"):
            run_of(trial.model_copy(update=change)).restore(checkpoint)
    run_of(trial.model_copy(update={"batch_size": 5})).restore(checkpoint)


def test_where_nothing_is_frozen_another_network_is_refused_by_its_names_and_shapes(
    config: Callable[..., TrialConfig],
) -> None:
    checkpoint = run_of(config("lenet")).checkpoint()
    with pytest.raises(CheckpointError, match="does not fit resnet18"):
        run_of(config("resnet18")).restore(checkpoint)


def test_the_header_is_json_and_nothing_in_the_file_is_code(saved: Path) -> None:
    payload = saved.read_bytes()[len(b"thaw-delta-2\n") + 16 :]
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    assert header["__metadata__"]["prefix_hash"] == "abc"
    assert set(header) == {
        "__metadata__", "tail/head.weight", "tail/norm.num_batches_tracked", "optimizer/0/momentum_buffer",
    }  # fmt: skip


def test_files_of_the_first_format_are_read_and_verified(saved: Path) -> None:
    """Their checksum was a SHA-256."""
    now = load_checkpoint(str(saved))
    payload = saved.read_bytes()[len(b"thaw-delta-2\n") + 16 :]
    first = b"thaw-delta-1\n" + hashlib.sha256(payload).digest() + payload
    saved.write_bytes(first)
    before = load_checkpoint(str(saved))
    assert before.meta == now.meta
    assert before.tail.keys() == now.tail.keys()
    assert all(torch.equal(before.tail[name], tensor) for name, tensor in now.tail.items())
    saved.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(str(saved))
