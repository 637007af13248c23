"""Stages: where the rules put the cuts, what they cost, and what cannot be cut."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torchvision.models
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from trainables.backbones.families import backbone_names, build_model, skeleton
from trainables.backbones.graph import CutGraph, build_graph
from trainables.backbones.published import published
from trainables.backbones.stage_counts import NUM_STAGES
from trainables.backbones.stages import Segment, choose_stages
from trainables.backbones.tracing import plan_cuts
from trainables.errors import InputError
from tuner.cli import app

REPRESENTATIVES = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "densenet121", "vgg11",
    "vgg11_bn", "alexnet", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "googlenet",
    "inception_v3",
)  # fmt: skip
# A dense block hands all its layers' results on at once, and AlexNet's second convolution is one layer.
INDIVISIBLE = {"densenet121": 0.37, "alexnet": 0.32}


def graph_at_224(name: str) -> CutGraph:
    """Only shapes are asked for here, and the meta device has no more."""
    model, traced = skeleton(name)
    size_px = 299 if name == "inception_v3" else 224
    return CutGraph(copy.deepcopy(model), plan_cuts(traced, model, size_px), size_px)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_flops_are_those_that_torchvision_publishes(name: str) -> None:
    graph = graph_at_224(name)
    total = sum(stage.flops for stage in graph.stages) + graph.head.flops
    published = 2e9 * torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]  # given as GMACs
    if name == "squeezenet1_1":  # its head was a convolution at each place of the last map, 13 x 13
        published -= (13 * 13 - 1) * graph.head.flops
    # Published with two or three digits after the point, so the smallest networks' figures are the coarsest.
    assert total == pytest.approx(published, rel=0.02, abs=1e6)


def test_flops_of_resnet18() -> None:
    graph = graph_at_224("resnet18")
    assert sum(stage.flops for stage in graph.stages) + graph.head.flops == pytest.approx(3.628e9, rel=1e-3)
    assert [stage.name for stage in graph.stages] == [
        "conv1..bn1", "layer1.0", "layer1.1", "layer2", "layer3", "layer4",
    ]  # fmt: skip
    assert graph.stages[0].output_shape == (64, 56, 56)
    assert graph.stages[0].output_bytes == 4 * 64 * 56 * 56
    assert graph.stages[-1].output_shape == (512,)
    assert (graph.head.name, graph.head.in_features, graph.head.num_classes) == ("fc", 512, 1000)


def test_flops_of_stages_are_those_of_the_whole_network() -> None:
    graph = build_graph(build_model("shufflenet_v2_x0_5"), 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        graph.model(torch.zeros(1, 3, 64, 64))
    assert sum(stage.flops for stage in graph.stages) + graph.head.flops == counter.get_total_flops()


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_no_stage_holds_more_than_a_quarter_where_cuts_allow(name: str) -> None:
    graph = graph_at_224(name)
    total = sum(stage.flops for stage in graph.stages) + graph.head.flops
    assert max(stage.flops for stage in graph.stages) <= INDIVISIBLE.get(name, 0.255) * total
    assert 5 <= graph.num_stages <= 10
    stated = published(name)
    if stated is not None and stated.input_px == 224:
        assert NUM_STAGES[name] == graph.num_stages, "write the table anew, see `stage_counts`"


def test_the_list_of_networks_has_the_stages_of_each() -> None:
    assert set(NUM_STAGES) == set(backbone_names())
    run = CliRunner().invoke(app, ["backbones", "--format", "json", "--sort", "top1"])
    rows = json.loads(run.stdout)
    assert {row["name"]: row["stages"] for row in rows} == NUM_STAGES
    assert [row["top1"] for row in rows[:-1]] == sorted(row["top1"] for row in rows[:-1])
    assert (rows[-1]["name"], rows[-1]["top1"]) == ("lenet", None)
    run = CliRunner().invoke(app, ["backbones", "lenet", "--image-size", "32", "--format", "json"])
    (row,) = json.loads(run.stdout)
    assert (row["stages"], row["input"]) == (4, 32)
    assert "name some" in str(CliRunner().invoke(app, ["backbones", "--image-size", "32"]).exception)


def test_intermediate_linear_layers_are_stages_of_their_own() -> None:
    assert [stage.name for stage in graph_at_224("vgg11").stages][-3:] == [
        "features.16..features.18", "classifier.0", "classifier.3",
    ]  # fmt: skip
    assert graph_at_224("mobilenet_v3_small").stages[-1].name == "classifier.0"


@pytest.mark.slow
@pytest.mark.parametrize("name", backbone_names())
def test_every_backbone_on_offer_can_be_cut(name: str) -> None:
    graph = graph_at_224(name)
    assert 3 <= graph.num_stages <= 20
    assert all(stage.num_parameters and stage.flops for stage in graph.stages)
    prefix, tail = graph.split(graph.num_stages)
    assert tail(prefix(torch.zeros(2, 3, 224, 224, device="meta"))).shape == (2, graph.head.num_classes)


def test_a_picture_that_is_too_small_is_refused_with_a_size_that_fits() -> None:
    with pytest.raises(InputError, match=r"image_size_px: 32 px are too few for AlexNet; take 64 px or more"):
        build_graph(copy.deepcopy(skeleton("alexnet")[0]), 32)


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="neither linear nor a convolution"):
        build_graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 16)


class _Tied(nn.Module):
    """One convolution used before and after another."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.middle, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, stride=2), nn.Linear(3, 2)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        maps = self.shared(self.middle(self.shared(images_BCHW)))
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_a_layer_that_is_used_twice_is_not_cut_apart() -> None:
    graph = build_graph(_Tied(), 32)
    assert graph.num_stages == 1
    assert set(graph.prefix_keys(1)) == {"shared.weight", "shared.bias", "middle.weight", "middle.bias"}


def segment(*, flops: int = 1, size: int = 8, **facts: object) -> Segment:
    defaults: dict[str, object] = {
        "has_state": True, "has_weights": True, "has_dropout": False, "parts_norm": False,
        "num_values": 4 * size * size, "is_flat": False, "nesting": 0,
    }  # fmt: skip
    return Segment(flops=flops, spatial_size=(size, size), **{**defaults, **facts})  # type: ignore[arg-type]


POOL = {"flops": 0, "has_state": False, "has_weights": False}


def test_a_cut_slides_behind_pooling_but_not_behind_dropout() -> None:
    row = [segment(), segment(**POOL), segment(**POOL, size=4), segment(size=4), segment(size=4)]
    assert choose_stages(row)[0] == 2
    row.insert(2, segment(**POOL, has_dropout=True))
    assert choose_stages(row)[0] == 1


def test_a_downsampling_block_starts_its_stage_whole() -> None:
    """The layer that halves the size lies inside a block whose first layer still has the old size."""
    block_ends, inside = {"nesting": 1}, {"nesting": 3}
    row = [
        segment(**block_ends),
        segment(**block_ends),
        segment(**inside),
        segment(size=4, **inside),
        segment(flops=99, size=4),
    ]
    assert choose_stages(row) == (1, 3, 4)


def test_a_convolution_and_its_norm_stay_together() -> None:
    norm = {"flops": 0, "has_weights": False}
    row = [segment(flops=9, parts_norm=True), segment(**norm), segment(flops=9, parts_norm=True), segment(**norm)]
    assert choose_stages(row) == (1, 3)


@given(
    st.lists(
        st.builds(
            segment,
            flops=st.integers(0, 1000),
            size=st.sampled_from([1, 2, 4, 8]),
            has_state=st.booleans(),
            has_weights=st.just(value=False),
            has_dropout=st.booleans(),
            parts_norm=st.booleans(),
            nesting=st.integers(0, 3),
        )
        | st.builds(segment, flops=st.integers(1, 1000), size=st.sampled_from([1, 2, 4, 8])),
        min_size=1,
        max_size=30,
    )
)
def test_stages_cover_the_row_and_each_has_weights(row: list[Segment]) -> None:
    row = [segment(), *row]
    ends = choose_stages(row)
    assert ends[-1] == len(row) - 1
    starts = [0, *(end + 1 for end in ends[:-1])]
    assert list(starts) == sorted(set(starts))
    for start, end in zip(starts, ends, strict=True):
        assert any(part.has_weights for part in row[start : end + 1])
