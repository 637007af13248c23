"""``backbones: auto``: the stated rule, and what is left out and said; never a network with random weights instead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.loading import dump_spec, parse_spec, read_spec
from search_spaces.model_spec import MOST_CHOSEN
from search_spaces.spec import SweepSpec
from trainables.backbones.families import backbone_names
from trainables.backbones.published import Published, all_published, published
from trainables.errors import InputError
from trainables.training import latency
from tuner.networks import choosing, preparing
from tuner.networks.choosing import settle_backbones
from tuner.paths import HomePaths


def spec_with(size_px: int = 64, **model: Any) -> SweepSpec:
    raw = {"name": "bees", "data": {"source": "x", "image_size_px": size_px}, "model": {"backbones": "auto", **model}}
    return parse_spec(raw, SweepSpec, "test")


@pytest.fixture
def settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SweepSpec, list[str], list[str]]]:
    """Chooses with weights that only some networks have; returns the spec, what was told, and what was asked for."""

    def settle(spec: SweepSpec, missing: Callable[[str], bool] = lambda _: False) -> Any:
        asked: list[str] = []

        def weights(name: str, backbone: str, *_: Any) -> None:
            asked.append(backbone)
            if missing(backbone):
                raise InputError(f"model.weights: {name} of {backbone} could not be downloaded (no route)")

        monkeypatch.setattr(preparing, "prepare_weights", weights)
        monkeypatch.setattr(Published, "is_on_disk", property(lambda self: not missing(self.name)))
        told: list[str] = []
        return settle_backbones(spec, HomePaths.at(tmp_path), told.append), told, asked

    return settle


def test_the_best_of_each_family_within_the_bounds(settle: Any) -> None:
    spec, told, _ = settle(spec_with(max_parameters=6_000_000, max_gflops=0.2))
    names = [choice.backbone for choice in spec.model.entries]
    facts = [published(name) for name in names]
    assert len(names) == MOST_CHOSEN == len({each.family for each in facts})
    assert [each.top1 for each in facts] == sorted((each.top1 for each in facts), reverse=True)
    for each in facts:
        assert each.num_parameters <= 6_000_000
        assert each.gflops_at(64) <= 0.2
        better = [other for other in all_published() if other.family == each.family and other.top1 > each.top1]
        assert all(other.num_parameters > 6_000_000 or other.gflops_at(64) > 0.2 for other in better)
    assert [line.split(":")[1].strip() for line in told] == names
    assert "top-1" in told[0]


def test_what_was_chosen_is_named_in_the_spec_with_its_weights(settle: Any) -> None:
    spec, _, _ = settle(spec_with(max_parameters=4_000_000))
    assert all(choice.weights == published(choice.backbone).weights for choice in spec.model.entries)
    again = read_spec(dump_spec(spec), (), "spec.yaml")
    assert again == spec
    assert settle(again)[0] is again, "what is settled stays, whatever can be had now"


def test_what_takes_too_long_here_is_left_out_and_said(settle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # No real times in a test: as many milliseconds as GFLOPs at 64 px, in tenths.
    monkeypatch.setattr(latency, "latency_ms", lambda name, size_px, _: 10 * published(name).gflops_at(size_px))
    by_time, told, asked = settle(spec_with(max_parameters=6_000_000, max_latency_ms=0.5))
    by_flops, _, _ = settle(spec_with(max_parameters=6_000_000, max_gflops=0.05))
    assert by_time.model.entries == by_flops.model.entries
    assert told[-1].endswith(f" {10 * published(asked[-1]).gflops_at(64):.3g} ms a picture here")
    assert any("is left out: it takes " in line and "ms for a picture of 64 px here" in line for line in told)
    assert asked == [choice.backbone for choice in by_time.model.entries], "nothing is downloaded in vain"
    with pytest.raises(
        InputError, match=r"no network is within 30,000,000 parameters and 0\.001 ms for a picture of 64"
    ):
        settle(spec_with(max_latency_ms=0.001))


def test_a_latency_is_measured_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(latency, "_LOOKED_AT_S", 0.0)
    threads = torch.get_num_threads()
    memory = str(tmp_path)
    taken = latency.latency_ms("squeezenet1_1", 32, memory)
    assert torch.get_num_threads() == threads
    (tmp_path / "no-folder").write_text("")
    with caplog.at_level(logging.WARNING):
        assert latency.latency_ms("squeezenet1_1", 32, f"{memory}/no-folder") > 0
    assert "cannot be kept" in caplog.text
    (tmp_path / "no-folder").unlink()
    assert 0 < taken < 60_000
    measured = []
    monkeypatch.setattr(latency, "_measure", lambda *what: measured.append(what) or 7.0)
    assert latency.latency_ms("squeezenet1_1", 32, memory) == taken
    assert not measured
    [path] = tmp_path.iterdir()
    path.write_text(path.read_text()[:10])
    assert latency.latency_ms("squeezenet1_1", 32, memory) == 7.0, "what is damaged is measured anew"
    assert latency.latency_ms("squeezenet1_1", 48, memory) == 7.0
    assert measured == [("squeezenet1_1", 32), ("squeezenet1_1", 48)]


def test_what_cannot_be_had_is_left_out_and_said(settle: Any) -> None:
    bounds = spec_with(max_parameters=6_000_000)
    first = settle(bounds)[0].model.entries[0].backbone
    spec, told, _ = settle(bounds, lambda name: name == first)
    assert first not in [choice.backbone for choice in spec.model.entries]
    assert told[0].startswith(f"backbones: {first} is left out: ")
    assert "could not be downloaded (no route)" in told[0]


def test_without_a_network_only_weights_on_disk_are_tried(settle: Any) -> None:
    spec, told, asked = settle(spec_with(), lambda name: name not in ("squeezenet1_1", "resnet18"))
    assert [choice.backbone for choice in spec.model.entries] == ["resnet18", "squeezenet1_1"]
    assert len(asked) == 2 + choosing._MOST_FAILED
    assert "only networks whose weights this machine has already" in told[choosing._MOST_FAILED]


def test_with_nothing_to_choose_the_line_says_what_to_change(settle: Any) -> None:
    with pytest.raises(InputError, match=r"no network is within 1,000 parameters; raise the bound"):
        settle(spec_with(max_parameters=1000))
    with pytest.raises(InputError, match=r"can be had; fetch some elsewhere and name them: \[\{backbone: NAME"):
        settle(spec_with(), lambda _: True)


def test_a_network_that_needs_larger_pictures_is_left_out(settle: Any) -> None:
    _, told, asked = settle(spec_with(32))
    left_out = [line for line in told if "is left out" in line]
    assert all("px are too few" in line for line in left_out)
    assert not any(f"backbones: {name} is left out" in line for line in left_out for name in asked)


def test_every_network_but_lenet_has_published_facts() -> None:
    stated = all_published()
    assert {each.name for each in stated} == set(backbone_names()) - {"lenet"}
    assert all(each.num_parameters > 1e6 and each.flops > 1e7 and 50 < each.top1 < 100 for each in stated)
    assert published("resnet18").gflops_at(112) == pytest.approx(published("resnet18").flops / 4e9)


def test_what_takes_no_pictures_as_small_as_training_begins_with_is_left_out(settle: Any) -> None:
    chosen, _, _ = settle(spec_with(96))
    small = spec_with(96)
    small = small.model_copy(update={"search": small.search.model_copy(update={"start_size": (0.25, 1.0)})})
    spec, told, _ = settle(small)
    assert spec.search.smallest_start_size == 0.25
    left = {each.backbone for each in chosen.model.entries} - {each.backbone for each in spec.model.entries}
    assert left
    assert all(any(f"{name} is left out" in line for line in told) for name in left)


def test_sizes_for_all_are_given_to_each_network_that_has_none_of_its_own(settle: Any) -> None:
    raw = {
        "name": "bees", "data": {"source": "x", "image_size_px": 128}, "search": {"image_size_px": [96, 128]},
        "model": {"backbones": ["resnet18", {"backbone": "lenet", "weights": "none", "image_size_px": 32}]},
    }  # fmt: skip
    spec, told, _ = settle(parse_spec(raw, SweepSpec, "test"))
    assert list(spec.model.named) == ["resnet18-96px", "resnet18-128px", "lenet"]
    assert spec.search.image_size_px is None
    assert told == []
    assert read_spec(dump_spec(spec), [], "test") == spec
    assert settle(spec)[0] == spec
    single, _, _ = settle(parse_spec({**raw, "model": {"backbone": "resnet18", "weights": "none"}}, SweepSpec, "test"))
    assert [(name, each.weights) for name, each in single.model.named.items()] == [
        ("resnet18-96px", "none"), ("resnet18-128px", "none"),
    ]  # fmt: skip
    chosen, _, _ = settle(parse_spec({**raw, "model": {"backbones": "auto"}}, SweepSpec, "test"))
    assert len(chosen.model.named) == 2 * MOST_CHOSEN
