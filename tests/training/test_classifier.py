"""What trains and how fast: parameter groups, the schedule, clipping, label smoothing, the optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from training_support import DEVICE, copied, num_stages

from trainables.backbones.zoo import load_backbone
from trainables.config import OptimizerConfig, TrialConfig
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.trained_part import build_optimizer, lr_scale, parameter_groups, split_network
from trainables.training.workbench import Workbench

# --- groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["lenet", "squeezenet1_1", "mobilenet_v2", "efficientnet_b0", "resnet18"])
@pytest.mark.parametrize("part", ["nothing", "half", "all"])
def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay(backbone: str, part: str) -> None:
    depth = {"nothing": 0, "half": num_stages(backbone) // 2, "all": num_stages(backbone)}[part]
    network = split_network(load_backbone(backbone, None, num_classes=5, input_size_px=32, seed=0), depth)
    config = OptimizerConfig(lr=0.5, backbone_lr_ratio=0.1, weight_decay=0.01)
    groups = parameter_groups(network.tail, network.head_name, config)
    placed = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(placed), "a parameter in two groups"
    assert set(placed) == {id(parameter) for parameter in network.tail.parameters()}
    head = network.tail.get_submodule(network.head_name)
    in_head = {id(parameter) for parameter in head.parameters()}
    assert len(in_head) == 2
    for parameter in network.tail.parameters():
        group = placed[id(parameter)]
        assert group["peak_lr"] == group["lr"] == pytest.approx(0.5 if id(parameter) in in_head else 0.05)
        assert group["weight_decay"] == (0.01 if parameter.dim() > 1 else 0.0)


@pytest.mark.parametrize("backbone", ["lenet", "mobilenet_v2", "resnet18"])
def test_stages_learn_the_slower_the_further_they_are_from_the_head(backbone: str) -> None:
    loaded = load_backbone(backbone, None, num_classes=5, input_size_px=32, seed=0)
    network = split_network(loaded, 1)
    config = OptimizerConfig(lr=0.5, backbone_lr_ratio=0.2, layer_decay=0.5)
    groups = parameter_groups(network.tail, network.head_name, config, loaded.graph.stage_keys)
    rate_of = {id(parameter): group["peak_lr"] for group in groups for parameter in group["params"]}
    names = dict(network.tail.named_parameters())
    assert len(rate_of) == len(names)
    last = loaded.graph.num_stages - 1
    found = {key for keys in loaded.graph.stage_keys[1:] for key in keys if key in names}
    assert found == {name for name in names if not name.startswith(f"{network.head_name}.")}
    for stage, keys in enumerate(loaded.graph.stage_keys[1:], start=1):
        rates = [rate_of[id(names[key])] for key in keys if key in names]
        assert rates == pytest.approx([0.1 * 0.5 ** (last - stage)] * len(rates))
    assert rate_of[id(names[f"{network.head_name}.weight"])] == 0.5
    alike = parameter_groups(network.tail, network.head_name, OptimizerConfig(), loaded.graph.stage_keys)
    assert [len(group["params"]) for group in alike] == [
        len(group["params"]) for group in parameter_groups(network.tail, network.head_name, OptimizerConfig())
    ]


def test_the_prefix_hash_names_exactly_what_is_frozen() -> None:
    def hash_of(backbone: str = "lenet", depth: int = 2, seed: int = 0, num_classes: int = 5) -> str:
        loaded = load_backbone(backbone, None, num_classes=num_classes, input_size_px=32, seed=seed)
        return split_network(loaded, depth).prefix_hash

    assert hash_of() == hash_of() == hash_of(num_classes=3), "the head is not frozen"
    assert len({hash_of(), hash_of(depth=1), hash_of(depth=0), hash_of(seed=1), hash_of("resnet18")}) == 5


def test_the_optimizers_are_the_ones_that_were_asked_for() -> None:
    network = split_network(load_backbone("lenet", None, num_classes=5, input_size_px=16, seed=0), 0)
    sgd = build_optimizer(network.tail, network.head_name, OptimizerConfig(name="sgd", momentum=0.8))
    assert type(sgd) is torch.optim.SGD
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.8, True)}
    plain = build_optimizer(network.tail, network.head_name, OptimizerConfig(name="sgd", momentum=0.0))
    assert {(group["momentum"], group["nesterov"]) for group in plain.param_groups} == {(0.0, False)}
    assert type(build_optimizer(network.tail, network.head_name, OptimizerConfig())) is torch.optim.AdamW


# --- schedule ------------------------------------------------------------------------------------------------


@given(steps=st.integers(1, 50), epochs=st.integers(1, 30), warmup=st.one_of(st.just(0.0), st.floats(0.01, 40.0)))
def test_the_rate_rises_to_its_peak_and_falls_towards_0(steps: int, epochs: int, warmup: float) -> None:
    scales = [lr_scale(step, steps, epochs, warmup) for step in range(steps * epochs)]
    peak = scales.index(max(scales))
    assert max(scales) == 1.0
    assert peak == min(round(warmup * steps), steps * epochs - 1)
    assert all(earlier < later for earlier, later in pairwise(scales[: peak + 1]))
    assert all(earlier > later for earlier, later in pairwise(scales[peak:]))
    assert all(0 < scale <= 1 for scale in scales)


def test_the_schedule_at_its_ends_and_in_its_middle() -> None:
    assert lr_scale(0, 10, 10, 0.0) == 1.0
    assert lr_scale(50, 10, 10, 0.0) == pytest.approx(0.5)
    assert lr_scale(99, 10, 10, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert lr_scale(100, 10, 10, 0.0) == 0.0
    assert [lr_scale(step, 4, 3, 1.0) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_other_schedules_are_those_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=40, cycle_momentum=False)
    for step in range(40):
        assert lr_scale(step, 10, 4, 3.0, "one_cycle") == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step() if step < 39 else None
    assert [lr_scale(step, 2, 2, 0.0, "linear") for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert [lr_scale(step, 2, 2, 1.0, "constant") for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert all(0 < lr_scale(step, 1, 2, 0.0, "one_cycle") <= 1 for step in range(2))


def test_a_trial_follows_the_schedule(config: Callable[..., TrialConfig]) -> None:
    optimizer = {"lr": 0.02, "backbone_lr_ratio": 0.25, "warmup_epochs": 1.0}
    run = TrialRun(config(optimizer=optimizer, epochs=3), Workbench(), Ranks(DEVICE))
    seen: list[list[tuple[float, float]]] = []
    run._optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([(group["lr"], group["peak_lr"]) for group in optimizer.param_groups])
    )
    for _ in range(3):
        run.run_epoch()
    assert len(seen) == 9
    for step, groups in enumerate(seen):
        scale = lr_scale(step, 3, 3, 1.0)
        assert {peak for _, peak in groups} == {0.02, 0.005}
        assert all(lr == pytest.approx(peak * scale) for lr, peak in groups)


# --- one step ------------------------------------------------------------------------------------------------


def first_step(config: TrialConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], TrialRun]:
    """Parameters before and gradients of a trial's only step."""
    run = TrialRun(config, Workbench(), Ranks(DEVICE))
    before = copied(dict(run._tail.named_parameters()))
    run.run_epoch()
    return before, {name: parameter.grad for name, parameter in run._tail.named_parameters()}, run


def norm_of(tensors: dict[str, torch.Tensor]) -> float:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).norm().item()


def test_clipping_clips_and_changes_no_direction(config: Callable[..., TrialConfig]) -> None:
    whole = {"batch_size": 64, "epochs": 1}
    _, free, _ = first_step(config(optimizer={"name": "sgd"}, **whole))
    _, clipped, _ = first_step(config(optimizer={"name": "sgd", "grad_clip_norm": 0.01}, **whole))
    _, loose, _ = first_step(config(optimizer={"name": "sgd", "grad_clip_norm": 1e3}, **whole))
    assert norm_of(free) > 0.02
    assert norm_of(clipped) == pytest.approx(0.01, rel=1e-3)
    for name, grad in free.items():
        assert torch.equal(loose[name], grad)
        torch.testing.assert_close(clipped[name], grad * (0.01 / norm_of(free)), rtol=1e-3, atol=1e-9)


def test_the_gradient_is_that_of_the_mean_smoothed_loss(config: Callable[..., TrialConfig]) -> None:
    """Against the textbook: the whole side in one batch, no dropout (head only has one, so depth 0 without noise)."""
    trial = config("resnet18", depth=num_stages("resnet18"), batch_size=64, epochs=1, label_smoothing=0.2,
                   optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
                   augmentation={"policy": "none"})  # fmt: skip
    before, grads, run = first_step(trial)
    side = run.side("train")
    plan = run._batches(side, trial.augmentation).batches([torch.arange(len(side)).numpy()], 0)
    ((features, labels),) = list(plan)
    weight, bias = (before[name].clone().requires_grad_() for name in ("fc.weight", "fc.bias"))
    logits = F.linear(features, weight, bias)
    target = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    loss = -(target * logits.log_softmax(1)).sum(1).mean()
    loss.backward()
    torch.testing.assert_close(grads["fc.weight"], weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grads["fc.bias"], bias.grad, rtol=1e-4, atol=1e-6)
    moved = dict(run._tail.named_parameters())
    torch.testing.assert_close(moved["fc.weight"], before["fc.weight"] - 0.1 * weight.grad, rtol=1e-4, atol=1e-6)


def test_a_rare_classs_pictures_count_for_more_and_all_for_1_on_average(config: Callable[..., TrialConfig]) -> None:
    trial = config(
        class_balance="weighted", batch_size=64, epochs=1, augmentation={"policy": "none"}, label_smoothing=0.2
    )
    before, grads, run = first_step(trial)
    side = run.side("train")
    labels = torch.from_numpy(side.labels).to(DEVICE)
    weights_K = run._loss.weights_K
    assert weights_K is not None
    assert weights_K[labels].mean().item() == pytest.approx(1.0)
    counts_K = torch.bincount(labels).float()
    torch.testing.assert_close(weights_K * counts_K, torch.full((5,), len(labels) / 5, device=DEVICE))
    _, plain, _ = first_step(trial.model_copy(update={"class_balance": "none"}))
    assert before.keys() == grads.keys()
    logits, targets = torch.randn(9, 5, device=DEVICE), torch.arange(9, device=DEVICE) % 5
    by_picture = [F.cross_entropy(logits[i], targets[i], label_smoothing=0.2) * weights_K[targets[i]] for i in range(9)]
    torch.testing.assert_close(run._loss(logits, targets), torch.stack(by_picture).sum())
    assert not torch.equal(plain["head.weight"], grads["head.weight"])
    assert TrialRun(config(), Workbench(), Ranks(DEVICE))._loss.weights_K is None


def test_smoothing_is_for_training_only(config: Callable[..., TrialConfig]) -> None:
    still = {"lr": 1e-12}
    plain = TrialRun(config(optimizer=still, epochs=1), Workbench(), Ranks(DEVICE)).run_epoch()
    smooth = TrialRun(config(optimizer=still, epochs=1, label_smoothing=0.5), Workbench(), Ranks(DEVICE)).run_epoch()
    assert smooth["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-6)
    assert smooth["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-4)


def test_weight_decay_shrinks_matrices_and_leaves_vectors(config: Callable[..., TrialConfig]) -> None:
    whole = {"batch_size": 64, "epochs": 1, "depth": 4}
    moved = {}
    for decay in (0.0, 0.5):
        _, _, run = first_step(config(optimizer={"name": "adamw", "lr": 0.1, "weight_decay": decay}, **whole))
        moved[decay] = copied(dict(run._tail.named_parameters()))
    before = dict(TrialRun(config(**whole), Workbench(), Ranks(DEVICE))._tail.named_parameters())
    # AdamW: decay acts beside the gradient's step, by lr times decay.
    torch.testing.assert_close(moved[0.0]["head.weight"] - 0.05 * before["head.weight"], moved[0.5]["head.weight"])
    assert torch.equal(moved[0.0]["head.bias"], moved[0.5]["head.bias"])
