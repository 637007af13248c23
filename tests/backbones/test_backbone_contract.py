"""What every backbone promises, whatever its architecture: one contract, run against one network of each family."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from family_sizes import SIZES_PX
from torch import nn
from torchvision.ops import StochasticDepth

from trainables.backbones.families import build_model
from trainables.backbones.graph import CutGraph, build_graph
from trainables.config import ComputeConfig
from trainables.errors import InputError

HEAVY = ("alexnet", "vgg11", "vgg11_bn")  # hundreds of megabytes, most of them in linear layers
FAMILIES = [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in SIZES_PX]


WITHOUT_DROPOUT_BEFORE_HEAD = {
    "resnet18", "convnext_tiny", "densenet121", "shufflenet_v2_x0_5", "regnet_y_400mf", "alexnet",
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A network as its authors run it, and as it is cut here."""

    name: str
    reference: nn.Module
    graph: CutGraph
    images: torch.Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Normalisation statistics and scales are drawn at random, so that none of them is an identity."""
    name, generator = request.param, torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    reference = copy.deepcopy(model) if name not in HEAVY else model
    images = torch.randn(3, 3, SIZES_PX[name], SIZES_PX[name], generator=generator)
    return Subject(name, reference, build_graph(model, SIZES_PX[name]), images)


def parts(graph: CutGraph) -> Iterator[tuple[int, nn.Module, nn.Module]]:
    """Every way to cut, one at a time: tails are copies, and all at once would not fit."""
    for depth in range(graph.num_stages + 1):
        yield depth, *graph.split(depth)


@torch.no_grad()
def test_prefix_then_tail_has_the_bits_of_the_whole_network(subject: Subject) -> None:
    whole = subject.graph.model(subject.images)
    assert whole.shape == (3, subject.graph.head.num_classes)
    for depth, prefix, tail in parts(subject.graph):
        features = prefix(subject.images)
        assert torch.equal(tail(features), whole), f"depth {depth}"
        expected = subject.graph.stages[depth - 1].output_shape if depth else subject.images.shape[1:]
        assert tuple(features.shape[1:]) == tuple(expected)


@torch.no_grad()
def test_stages_one_after_another_are_the_prefix(subject: Subject) -> None:
    before = repr(subject.graph.model)
    for depth, prefix, _ in parts(subject.graph):
        stages = subject.graph.stage_modules(depth)
        assert len(stages) == depth
        features = subject.images
        for stage in stages:
            given = features.clone()
            made = stage(features)
            assert torch.equal(features, given), "a stage reads its input and does not write it"
            features = made
        assert torch.equal(features, prefix(subject.images)), f"depth {depth}"
        names = [name for stage in stages for name in stage.state_dict()]
        assert sorted(names) == sorted(subject.graph.prefix_keys(depth))
        assert not any(tensor.requires_grad for stage in stages for tensor in stage.parameters())
        assert not any(module.training for stage in stages for module in stage.modules())
    assert repr(subject.graph.model) == before


@torch.no_grad()
def test_whole_network_has_the_bits_of_its_authors_forward(subject: Subject) -> None:
    if subject.name != "squeezenet1_1":
        assert torch.equal(subject.graph.model(subject.images), subject.reference(subject.images))
        return
    prefix, _ = subject.graph.split(subject.graph.num_stages)
    pooled = subject.reference.features(subject.images).mean((2, 3))
    # Pooling sums in another order than a mean: float32 rounding of 169 terms at most.
    torch.testing.assert_close(prefix(subject.images), pooled, rtol=1e-5, atol=1e-6)


def test_each_tensor_is_on_one_side_under_its_own_name(subject: Subject) -> None:
    names = {name: tensor.shape for name, tensor in subject.reference.state_dict().items()}
    if subject.name == "squeezenet1_1":  # its head was a 1x1 convolution
        names["classifier.1.weight"] = torch.Size([1000, 512])
    for depth, prefix, tail in parts(subject.graph):
        in_prefix, in_tail = prefix.state_dict(), tail.state_dict()
        assert in_prefix.keys() == set(subject.graph.prefix_keys(depth))
        assert in_tail.keys() == set(subject.graph.tail_keys(depth))
        assert not in_prefix.keys() & in_tail.keys()
        assert {name: tensor.shape for name, tensor in (in_prefix | in_tail).items()} == names
        assert f"{subject.graph.head_name}.weight" in in_tail


def test_prefix_has_no_gradient_and_tail_has(subject: Subject) -> None:
    for depth, prefix, tail in parts(subject.graph):
        features = prefix(subject.images)
        assert not features.requires_grad
        if depth in (0, subject.graph.num_stages):  # the extremes: a backward pass at every depth proves no more
            tail.train()(features).sum().backward()
            assert all(parameter.grad is not None for parameter in tail.parameters())
        assert all(parameter.requires_grad for parameter in tail.parameters())
        assert all(parameter.grad is None for parameter in prefix.parameters())


@torch.no_grad()
def test_training_a_tail_changes_neither_network_nor_prefix_nor_the_next_tail(subject: Subject) -> None:
    _, first = subject.graph.split(0)
    before = {name: tensor.clone() for name, tensor in subject.graph.model.state_dict().items()}
    first.train()(subject.images)  # moves the statistics of BatchNorm
    for parameter in first.parameters():
        parameter.add_(1)  # stands for a step
    trained, after = first.state_dict(), subject.graph.model.state_dict()
    _, second = subject.graph.split(0)
    fresh = second.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
        assert torch.equal(fresh[name], tensor), name
        assert not torch.equal(trained[name], tensor), name


@torch.no_grad()
def test_tail_reads_its_input_and_does_not_write_it(subject: Subject) -> None:
    for depth, prefix, tail in parts(subject.graph):
        features = prefix(subject.images)
        kept = features.clone()
        for is_training in (False, True):
            tail.train(is_training)(features)
            assert torch.equal(features, kept), f"depth {depth}, training {is_training}"


@torch.no_grad()
def test_tail_follows_train_and_eval(subject: Subject) -> None:
    """Dropout, stochastic depth and BatchNorm are what they are at the moment, not what they were when traced."""
    _, tail = subject.graph.split(0)
    eval_logits = tail(subject.images)
    torch.manual_seed(1)
    tail.train()
    train_logits = [tail(subject.images) for _ in range(2)]
    kinds = {type(module) for module in subject.reference.modules()}
    is_random = bool(kinds & {nn.Dropout, StochasticDepth})
    assert torch.equal(*train_logits) != is_random or nn.BatchNorm2d in kinds
    reacts = is_random or nn.BatchNorm2d in kinds
    assert torch.equal(train_logits[0], eval_logits) != reacts
    moved = {
        name
        for name, tensor in tail.state_dict().items()
        if name.endswith("running_mean") and not torch.equal(tensor, subject.graph.model.state_dict()[name])
    }
    assert moved == {name for name in tail.state_dict() if name.endswith("running_mean")}
    assert bool(moved) == (nn.BatchNorm2d in kinds)


@torch.no_grad()
def test_dropout_before_the_head_is_trained_with_the_head(subject: Subject) -> None:
    prefix, tail = subject.graph.split(subject.graph.num_stages)
    features = prefix(subject.images)
    assert features.flatten(1).shape == (3, subject.graph.head.in_features)
    torch.manual_seed(1)
    first, second = (tail.train()(features) for _ in range(2))
    assert torch.equal(first, second) == (subject.name in WITHOUT_DROPOUT_BEFORE_HEAD)
    assert torch.equal(tail.eval()(features), tail.eval()(features))


@torch.no_grad()
def test_a_pictures_features_do_not_depend_on_its_company(subject: Subject) -> None:
    """In the canonical batch, as the frozen prefix runs: other neighbours, another place, zero padding."""
    generator = torch.Generator().manual_seed(2)
    shape = (ComputeConfig().prefix_batch_size, 3, SIZES_PX[subject.name], SIZES_PX[subject.name])
    batch = torch.randn(shape, generator=generator)
    company = torch.randn(shape, generator=generator)
    padded = torch.zeros_like(batch)
    company[7], padded[:5] = batch[0], batch[:5]
    prefix, _ = subject.graph.split(subject.graph.num_stages)
    features = prefix(batch)
    assert torch.equal(prefix(company)[7], features[0])
    assert torch.equal(prefix(padded)[:5], features[:5])


def test_stages_account_for_every_parameter(subject: Subject) -> None:
    graph = subject.graph
    assert all(stage.num_parameters > 0 and stage.flops > 0 for stage in graph.stages)
    total = sum(stage.num_parameters for stage in graph.stages) + graph.head.num_parameters
    assert total == sum(parameter.numel() for parameter in subject.reference.parameters())
    assert len({stage.name for stage in graph.stages}) == graph.num_stages


@pytest.mark.parametrize("beyond", [-1, 1])
def test_a_depth_that_is_not_there_is_refused(subject: Subject, beyond: int) -> None:
    depth = -1 if beyond < 0 else subject.graph.num_stages + 1
    for ask in (subject.graph.split, subject.graph.stage_modules, subject.graph.prefix_keys, subject.graph.tail_keys):
        with pytest.raises(InputError, match=f"freeze_depth: {depth} is outside 0 to {subject.graph.num_stages}"):
            ask(depth)
