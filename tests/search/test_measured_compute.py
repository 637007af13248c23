"""What is chosen by measured times: the rule, what is asked, and where the choice is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search_spaces.compute_spec import ComputeSpec
from search_spaces.loading import dump_spec, load_spec, parse_spec, read_spec
from search_spaces.space import BackboneShape, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import ComputeConfig
from trainables.errors import InputError
from trainables.jobs import Timing
from tuner.cluster.lanes import LaneError
from tuner.networks.measuring import batch_class, choose, measure_job, pinned, reasons, settle_compute
from tuner.paths import HomePaths

AUTO = {"precision": "auto", "prefix_precision": "auto", "channels_last": "auto"}


def spec_with(**parts: Any) -> SweepSpec:
    raw = {"name": "bees", "data": {"source": "folder:bees"}, "model": {"backbone": "resnet18"}, **parts}
    return parse_spec(raw, SweepSpec, "test")


def timings(**seconds: float) -> list[Timing]:
    """``trained_bf16_first=0.2`` and so on; last is the layout where none is named."""
    found: list[Timing] = []
    for name, value in seconds.items():
        part, precision, *layout = name.split("_")
        timing = {"part": part, "precision": precision, "channels_last": layout != ["first"], "seconds": value}
        found.append(cast(Timing, timing))
    return found


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        # What was seen on 2 cores: resnet18, efficientnet_b0.
        ({"trained_fp32": 5.2, "trained_bf16": 2.5, "frozen_fp32": 1.5, "frozen_bf16": 0.5}, ("bf16", "bf16", True)),
        ({"trained_fp32": 6.2, "trained_bf16": 8.4, "frozen_fp32": 1.1, "frozen_bf16": 0.8}, ("fp32", "bf16", True)),
        # 9% faster is not worth the bits, nor another layout.
        ({"trained_fp32": 1.09, "trained_bf16": 1.0, "frozen_fp32": 1.11, "frozen_bf16": 1.0}, ("fp32", "bf16", True)),
        ({"trained_fp32": 1.0, "trained_fp32_first": 0.97}, ("fp32", "fp32", True)),
        ({"trained_fp32": 1.0, "trained_bf16": 0.9, "trained_fp32_first": 0.5, "trained_bf16_first": 0.6},
         ("fp32", "fp32", False)),
        ({}, ("fp32", "fp32", True)),
    ],
)  # fmt: skip
def test_the_defaults_stay_unless_something_is_faster(seconds: dict[str, float], chosen: tuple[str, str, bool]) -> None:
    found = choose(ComputeSpec(**AUTO), timings(**seconds))
    assert (found.precision, found.prefix_precision, found.channels_last) == chosen


def test_what_is_fixed_stays_fixed() -> None:
    fast = timings(trained_bf16=1.0, trained_fp32=9.0, frozen_bf16=1.0, frozen_fp32=9.0)
    compute = ComputeSpec(prefix_precision="auto", prefix_batch_size=8)
    assert choose(compute, fast) == ComputeConfig(prefix_precision="bf16", prefix_batch_size=8)
    assert choose(ComputeSpec(precision="auto"), fast) == ComputeConfig(precision="bf16")


def test_the_choices_are_told_with_their_figures() -> None:
    compute = ComputeSpec(**AUTO)
    seen = timings(trained_fp32=0.36, trained_bf16=0.2, frozen_fp32=1.0, frozen_bf16=20.0, trained_fp32_first=0.5,
                   trained_bf16_first=0.4, frozen_fp32_first=2.0, frozen_bf16_first=20.0)  # fmt: skip
    assert reasons("resnet18", compute, choose(compute, seen), seen, "this CPU") == [
        "precision: resnet18: bf16 is 1.80 times as fast as fp32 in training steps on this CPU: bf16 chosen",
        "prefix_precision: resnet18: fp32 is 20.00 times as fast as bf16 in the frozen part on this CPU: fp32 chosen",
        "channels_last: resnet18: channels last is 2.00 times as fast as channels first: true chosen",
    ]


def test_a_middling_batch_of_a_worker_is_timed_as_a_power_of_two() -> None:
    assert batch_class(spec_with().search, 1) == 32  # of 16, 32 and 64
    assert batch_class(spec_with().search, 2) == 16
    assert batch_class(spec_with(search={"batch_size": 1}).search, 1) == 2
    assert batch_class(spec_with(search={"batch_size": {"low": 20, "high": 300}}).search, 1) == 64


@pytest.mark.parametrize(
    ("search", "compute", "asked"),
    [
        ({}, AUTO, (0, 6, ("fp32", "bf16"), ("fp32", "bf16"), (True, False))),
        ({}, {"prefix_precision": "auto"}, (0, 6, (), ("fp32", "bf16"), (True,))),
        ({}, {"precision": "auto", "channels_last": False}, (0, 6, ("fp32", "bf16"), (), (False,))),
        ({"freeze_depth": {"low": 2, "high": 4}}, AUTO, (2, 4, ("fp32", "bf16"), ("fp32", "bf16"), (True, False))),
        ({"freeze_depth": "all"}, AUTO, (6, 6, (), ("fp32", "bf16"), (True, False))),
        ({"freeze_depth": 0}, AUTO, (0, 0, ("fp32", "bf16"), (), (True, False))),
        ({"precision": ["bf16"]}, {"channels_last": "auto"}, (0, 6, ("bf16",), ("fp32",), (True, False))),
    ],
)
def test_only_what_is_open_is_asked_for(
    search: dict[str, Any], compute: dict[str, Any], asked: tuple[Any, ...]
) -> None:
    spec = spec_with(search=search, compute=compute)
    job = measure_job(spec, spec.compute, SearchSpace(spec.search, 6, "resnet18"), 2, 64, "memory")
    assert (job.freeze_depth, job.deepest, job.precisions, job.prefix_precisions, job.layouts) == asked


class Pool:
    """Lanes that answer every measurement alike.

    Args:
        seconds: By network; a network that is not there fails.
    """

    def __init__(self, **seconds: dict[str, float]) -> None:
        self.seconds, self.asked = seconds, list[str]()

    def run(self, job: Any) -> Any:
        self.asked.append(job.backbone)
        if job.backbone not in self.seconds:
            raise LaneError("out of memory")
        found = timings(**self.seconds[job.backbone])
        return iter([{"kind": "measured", "timings": found, "is_remembered": False, "place": "this CPU"}])


def settled(spec: SweepSpec, pool: Pool, home: Path) -> tuple[SweepSpec, list[str]]:
    notes: list[str] = []
    progress = SimpleNamespace(phase=lambda _: None, note=notes.append)
    head = SimpleNamespace(num_classes=2)
    networks = {
        choice.backbone: SimpleNamespace(image_size_px=64, cuts=SimpleNamespace(head=head))
        for choice in spec.model.entries
    }
    space = SearchSpace.over(spec.search, dict.fromkeys(networks, BackboneShape(6)))
    args: Any = (networks, pool, HomePaths.at(home), progress)
    return settle_compute(spec, space, *args), notes


FAST = {"trained_fp32": 2.0, "trained_bf16": 1.0, "frozen_fp32": 3.0, "frozen_bf16": 1.0}
SLOW = {"trained_fp32": 1.0, "trained_bf16": 2.0, "frozen_fp32": 3.0, "frozen_bf16": 1.0}


def test_the_choice_is_pinned_in_the_spec_and_never_measured_again(tmp_path: Path) -> None:
    pool = Pool(resnet18=FAST)
    spec, notes = settled(spec_with(compute=AUTO | {"channels_last": True}), pool, tmp_path)
    assert spec.compute == ComputeSpec(precision="bf16", prefix_precision="bf16")
    assert len(notes) == 2
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec))
    kept = load_spec(path)
    assert kept == spec
    assert settled(kept, pool, tmp_path) == (spec, [])
    assert pool.asked == ["resnet18"]


def test_each_of_several_networks_has_its_own(tmp_path: Path) -> None:
    model = {"backbones": ["resnet18", {"backbone": "efficientnet_b0", "weights": "none"}, "lenet"]}
    compute = {"precision": "auto", "prefix_precision": "auto"}
    pool = Pool(resnet18=FAST, efficientnet_b0=SLOW)
    spec, notes = settled(spec_with(model=model, compute=compute), pool, tmp_path)
    found = {choice.backbone: spec.compute_of(choice.backbone) for choice in spec.model.entries}
    assert (found["resnet18"].precision, found["efficientnet_b0"].precision, found["lenet"].precision) == (
        "bf16", "fp32", "fp32"
    )  # fmt: skip
    assert notes[-1] == "compute: lenet: not measured (out of memory): the defaults are taken"
    assert spec.model.entries[1].weights == "none"
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec))
    assert settled(load_spec(path), pool, tmp_path) == (spec, [])
    assert len(pool.asked) == 3


def test_nothing_is_measured_where_nothing_is_open(tmp_path: Path) -> None:
    spec = spec_with(compute={"precision": "bf16"})
    assert settled(spec, Pool(), tmp_path) == (spec, [])


def test_a_pretraining_takes_the_defaults_in_the_place_of_what_is_measured() -> None:
    spec = load_spec("digits", ["compute.precision=auto", "compute.prefix_precision=bf16"])
    assert spec.pretrain_specs()["lenet"].compute == ComputeConfig(prefix_precision="bf16")


def test_what_is_measured_changes_no_recipe_and_can_be_read_again() -> None:
    recipe = {"name": "first", "data": {"source": "digits"}}
    size = {"image_size_px": [16, 24]}
    for model in (
        {"backbone": "lenet", "weights": {"pretrain": recipe}},
        {"backbones": [{"backbone": "lenet", "weights": {"pretrain": recipe}, **size}, {"backbone": "resnet18"}]},
    ):
        spec = spec_with(model=model, compute={"precision": "auto"}, data={"source": "digits", "image_size_px": 32})
        before = spec.pretrain_specs()
        fast = ComputeConfig(precision="bf16", prefix_precision="bf16")
        chosen = {name: fast if number == 0 else ComputeConfig() for number, name in enumerate(spec.model.named)}
        settled_spec = pinned(spec, chosen)
        assert {name: settled_spec.compute_of(name).without_auto() for name in chosen} == chosen
        again = read_spec(dump_spec(settled_spec), [], "kept")
        assert again == settled_spec
        for name, wanted in before.items():
            for later in (settled_spec, again):
                assert later.pretrain_specs()[name] == wanted


@pytest.mark.parametrize("override", ["compute.precision=fast", "compute.channels_last=fast", "compute.precision=1"])
def test_another_word_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=f"digits: {override.partition('=')[0]}: .* is not one of .*, auto"):
        load_spec("digits", [override])
