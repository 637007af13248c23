"""Several backbones in one space: each has its own depths, its share of the first trials and its own price."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from searching_support import METRIC, Loop, told

from search_spaces.advice import rules_of_thumb
from search_spaces.loading import dump_spec, load_pretrain_spec, parse_spec
from search_spaces.naming import network_of
from search_spaces.search_spec import SearchSpec
from search_spaces.seeding import ProbedDepth, first_points, first_points_of_all, rank_probed
from search_spaces.single import searched_fields, single_spec
from search_spaces.space import BackboneShape, SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import BackboneConfig, DataConfig, TrialConfig
from trainables.errors import InputError
from tuner.networks.material import Material
from tuner.networks.network import space_over
from tuner.networks.pricing import Looked, Pricing

SHAPES = {
    "deep": BackboneShape(6),
    "shallow": BackboneShape(3, is_pretrained=False),
    "listed": BackboneShape(8, freeze_depth=(0, 5, "all")),
}
MATERIALS = {
    "deep": Material((10**7,) * 6, 10**3, (10**4,) * 6, num_train=100, num_val=20),
    "shallow": Material((10**6,) * 3, 10**3, (10**3,) * 3, num_train=100, num_val=20),
    "listed": Material((10**7,) * 8, 10**3, (10**4,) * 8, num_train=100, num_val=20),
}


def space_of(**search: Any) -> SearchSpace:
    return SearchSpace.over(SearchSpec.model_validate(search), SHAPES)


def spec_with(model: dict[str, Any], **parts: Any) -> SweepSpec:
    return parse_spec({"name": "bees", "data": {"source": "folder:x"}, "model": model, **parts}, SweepSpec, "t")


def draw(space: SearchSpace, number: int = 120) -> list[tuple[dict[str, Any], optuna.Trial]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [(space.suggest(trial), trial) for trial in (study.ask() for _ in range(number))]


# --- points --------------------------------------------------------------------------------------------------


def test_each_backbone_has_its_own_depths_and_optuna_tells_them_apart() -> None:
    drawn = draw(space_of())
    depths = {name: {point["freeze_depth"] for point, _ in drawn if point["backbone"] == name} for name in SHAPES}
    assert depths == {"deep": set(range(7)), "shallow": set(range(4)), "listed": {0, 5, 8}}
    for point, trial in drawn:
        asked = {name for name in trial.params if name.startswith("freeze_depth")}
        assert asked == {f"freeze_depth@{point['backbone']}"}
        last = SHAPES[point["backbone"]].num_stages
        assert ("backbone_lr_ratio" in point) == (point["freeze_depth"] < last)


def test_only_pretrained_backbones_have_two_ways_to_begin_a_head() -> None:
    drawn = draw(space_of())
    heads = {name: {point["head_init"] for point, _ in drawn if point["backbone"] == name} for name in SHAPES}
    assert heads == {"deep": {"probe", "random"}, "shallow": {"random"}, "listed": {"probe", "random"}}


def test_what_optuna_is_told_of_a_point_is_what_it_was_asked() -> None:
    space = space_of()
    for point, trial in draw(space, 30):
        assert space.asked(point) == trial.params
        assert space.searched(point) == trial.distributions
        assert space.contains(point)


def test_a_depth_of_another_backbone_is_no_point() -> None:
    space = space_of(freeze_depth="all")
    point = next(point for point, _ in draw(space) if point["backbone"] == "shallow")
    assert space.contains(point)
    assert not space.contains({**point, "freeze_depth": 6})
    assert not space.contains({**point, "backbone": "deep"})
    assert not space.contains({**point, "backbone": "strange"})
    assert not space.contains({name: value for name, value in point.items() if name != "backbone"})


def test_depths_beyond_a_backbone_are_refused_with_its_name() -> None:
    with pytest.raises(InputError, match=r"search.freeze_depth: 4 is beyond the 3 stages of shallow"):
        space_of(freeze_depth=[0, 4])
    with pytest.raises(InputError, match=r"model.backbones: freeze_depth of b: 9 is beyond the 2 stages of b"):
        SearchSpace.over(SearchSpec(), {"a": BackboneShape(9), "b": BackboneShape(2, freeze_depth=9)})


def test_the_space_of_one_backbone_is_the_same_however_it_is_written() -> None:
    one, listed = SearchSpace(SearchSpec(), 6, "deep"), SearchSpace.over(SearchSpec(), {"deep": BackboneShape(6)})
    assert one.digest() == listed.digest() == space_of().alone("deep").digest()
    assert one.digest() != space_of().digest()
    assert draw(listed)[0][0].keys() == draw(one)[0][0].keys()
    assert "backbone" not in listed.fixed


def test_a_point_becomes_a_trial_on_the_base_of_its_backbone() -> None:
    space = space_of()
    data = DataConfig(table="t", fingerprint="f", class_names=("a", "b"), image_size_px=32)
    point = next(point for point, _ in draw(space) if point["backbone"] == "listed")
    base = TrialConfig(data=data, backbone=BackboneConfig(name="listed"), freeze_depth=0)
    trial = space.trial_config(point, base)
    assert (trial.backbone.name, trial.freeze_depth, trial.optimizer.lr) == (
        "listed",
        point["freeze_depth"],
        point["lr"],
    )


# --- first trials --------------------------------------------------------------------------------------------


def probed(peak: int, log_me: float, stages: int = 6) -> list[ProbedDepth]:
    return [
        ProbedDepth(depth, 0.9 - 0.1 * abs(depth - peak), 1000, log_me - abs(depth - peak))
        for depth in range(1, stages + 1)
    ]


def test_common_advice_takes_turns() -> None:
    rules = rules_of_thumb(space_of())
    assert [(rule["backbone"], rule["freeze_depth"]) for rule in rules] == [
        ("deep", 6),
        ("shallow", 3),
        ("listed", 8),
        ("deep", 3),
        ("shallow", 1),
        ("listed", 0),  # half of it is no depth of its own
    ]


def test_the_backbone_that_promises_most_gets_most_of_the_first_trials() -> None:
    space = space_of()
    probes = {"deep": probed(4, 0.1), "shallow": [], "listed": probed(5, 0.3, 8)}
    assert rank_probed(probes) == ["listed", "deep", "shallow"]
    points = first_points_of_all(space, probes, 16)
    assert [point["backbone"] for point in points] == ["listed", "deep", "shallow", "listed", "listed"]
    assert points[0]["freeze_depth"] == 5
    assert points[1]["freeze_depth"] == 4
    assert [point["backbone"] for point in first_points_of_all(space, probes, 2)] == ["listed", "deep"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for given in points:
        study.enqueue_trial(space.asked(given))
        point = space.suggest(study.ask())
        assert space.contains(point)
        assert given.items() <= point.items(), "nothing is left to chance"


def test_of_two_the_other_one_gets_two() -> None:
    space = SearchSpace.over(SearchSpec(), {"a": BackboneShape(6), "b": BackboneShape(6)})
    points = first_points_of_all(space, {"a": probed(6, 0.1), "b": probed(2, 0.2)}, None)
    own = {name: [p["freeze_depth"] for p in points if p["backbone"] == name] for name in ("a", "b")}
    assert own["b"] == [2, 6, 3, 0]
    assert own["a"] == [6, 3]
    alone = first_points(space.alone("b"), probed(2, 0.2), None)
    assert all(
        {name: value for name, value in p.items() if name != "backbone"} in alone
        for p in points
        if p["backbone"] == "b"
    )


# --- searching -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes"])
def test_a_search_over_several_that_is_broken_off_ends_like_one_that_is_not(sampler: str) -> None:
    pricing = Pricing(spec_with({"backbone": "b"}), space_of(), MATERIALS)
    arguments = {"space": space_of(), "num_trials": 16, "options": {"sampler": sampler, "pricing": pricing}}
    whole = Loop(**arguments).start().run()
    assert {record.params["backbone"] for record in whole.records.values()} == set(SHAPES)
    assert all(space_of().contains(record.params) for record in whole.records.values())
    for steps in (5, 40):
        loop = Loop(**arguments).start().run(steps)
        loop.start().run(9)
        loop.start().run()
        assert loop.records == whole.records
        assert told(loop.searcher) == told(whole.searcher)


@pytest.mark.parametrize("sampler", ["grid", "brute_force"])
def test_samplers_that_list_try_every_depth_of_every_backbone_once(sampler: str) -> None:
    one = {
        "lr": 1e-3, "backbone_lr_ratio": 0.1, "optimizer": "adamw", "weight_decay": 1e-4, "augmentation": "none",
        "batch_size": 16, "label_smoothing": 0.0, "warmup_epochs": 0.0, "grad_clip_norm": None, "head_init": "random",
    }  # fmt: skip
    space = space_of(**one)
    whole = [(name, depth) for name in SHAPES for depth in space.alone(name).depths]
    loop = Loop(space=space, num_trials=len(whole), options={"sampler": sampler}).start().run(30)
    loop.start().run()
    found = [(record.params["backbone"], record.params["freeze_depth"]) for record in loop.records.values()]
    assert sorted(found) == sorted(whole)


def test_proposals_drift_to_the_better_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    import searching_support

    plain = searching_support.curve
    worse = {"deep": 0.0, "shallow": 0.3, "listed": 0.3}
    monkeypatch.setattr(searching_support, "curve", lambda point, epoch: plain(point, epoch) - worse[point["backbone"]])
    records = Loop(space=space_of(), num_trials=40, scheduled=False).start().run().records
    late = [records[number].params["backbone"] for number in range(20, 40)]
    assert late.count("deep") > 12
    assert max(records.values(), key=lambda r: max(epoch[METRIC] for epoch in r.epochs)).params["backbone"] == "deep"


# --- what trials cost ----------------------------------------------------------------------------------------


def point(backbone: str, depth: int, policy: str = "flip") -> dict[str, Any]:
    return {"backbone": backbone, "freeze_depth": depth, "augmentation": policy, "num_views": 4}


def test_a_trial_costs_what_its_own_backbone_computes() -> None:
    spec = spec_with({"backbone": "b"})
    rates = Pricing(spec, space_of(), MATERIALS)
    alone = Pricing(spec, space_of().alone("shallow"), MATERIALS["shallow"])
    own = {name: value for name, value in point("shallow", 2).items() if name != "backbone"}
    assert rates.cost(point("shallow", 2)) == alone.cost(own)
    assert rates.cost(point("deep", 2)).total > 5 * rates.cost(point("shallow", 2)).total
    assert [row.depth for row in rates.outlook("listed")] == [0, 5, 8]
    assert rates.affinity(point("deep", 3)) != rates.affinity(point("shallow", 3))


def test_features_of_one_backbone_are_none_of_another() -> None:
    rates = Pricing(spec_with({"backbone": "b"}), space_of(), MATERIALS)
    first = rates.cost(point("deep", 3))
    assert rates.cost(point("deep", 3), [Looked(point("listed", 5), 8)]) == first
    assert rates.cost(point("deep", 3), [Looked(point("deep", 3), 8)]).fill_flops == 0


def test_each_backbone_may_fill_its_share_of_the_store() -> None:
    # Four views of 100 pictures of 10 kB take 4 MB; a third of the budget is less.
    budget = {"cache": {"budget_gb": 8e-3}}
    one = Pricing(spec_with({"backbone": "b"}, **budget), space_of().alone("deep"), MATERIALS["deep"])
    several = Pricing(spec_with({"backbone": "b"}, **budget), space_of(), MATERIALS)
    own = {name: value for name, value in point("deep", 6).items() if name != "backbone"}
    assert one.cuts_to_keep(own)["train"]
    assert several.cuts_to_keep(point("deep", 6))["train"] == ()


# --- the spec ------------------------------------------------------------------------------------------------

TWO = {
    "backbones": ["resnet18", {"backbone": "lenet", "weights": "none", "image_size_px": 32, "freeze_depth": [0, "all"]}]
}


def test_a_list_of_names_and_mappings_survives_the_way_through_a_file() -> None:
    spec = spec_with(TWO)
    first, second = spec.model.entries
    assert (first.backbone, first.weights, first.is_pretrained) == ("resnet18", "default", True)
    assert (second.backbone, second.image_size_px, second.freeze_depth) == ("lenet", 32, (0, "all"))
    assert spec.model.label == "resnet18, lenet"
    assert spec_with(spec.model_dump(mode="json")["model"]) == spec
    assert "resnet18" in dump_spec(spec)


@pytest.mark.parametrize(
    ("model", "parts", "line"),
    [
        ({}, {}, "model.backbone: missing; name of the network, as torchvision spells it; give it in the spec"),
        ({"backbones": "resnet18"}, {}, "model.backbones: 'resnet18' is neither 'auto' nor a list; write a list"),
        ({"backbones": []}, {}, "model.backbones: the list is empty; give at least one network"),
        ({"backbones": ["a", {"backbone": "a"}]}, {}, "model.backbones: 'a' is listed twice; list it once, or give"),
        ({"backbones": [18]}, {}, "model.backbones[0]: 18 is not allowed: it should be a valid string"),
        ({"backbones": [{"backbone": "a", "size": 3}]}, {}, "model.backbones[0].size: there is no such field; "),
        (
            {"backbone": "a", "backbones": ["b"]},
            {},
            "model.backbones: given beside model.backbone, which is 'a'",
        ),
        ({"backbones": ["a"], "weights": "none"}, {}, "model.weights: they are those of model.backbone, and"),
        ({"backbones": ["a"], "max_gflops": 1.0}, {}, "model.max_gflops: only backbones: auto keeps to it, and model."),
        ({"backbone": "a", "max_parameters": 1}, {}, "model.max_parameters: only backbones: auto keeps to it, and one"),
        ({"backbone": "a", "max_latency_ms": 5}, {}, "model.max_latency_ms: only backbones: auto keeps to it, and one"),
        (TWO, {"search": {"cost_aware": True}}, "search.cost_aware: depth and policy, which decide a price, are"),
        (TWO, {"data": {"source": "x", "image_size_px": 16}}, "model.backbones[1].image_size_px: 32 is more than the"),
        (
            {"backbones": [{"backbone": "a", "image_size_px": 64}, {"backbone": "a", "image_size_px": [32, 64]}]},
            {},
            "model.backbones: 'a-64px' is listed twice; list each value once",
        ),
        (
            {"backbones": ["a"]},
            {"search": {"image_size_px": [64, 9999]}},
            "search.image_size_px[1]: 9999 is not allowed: it should be less than or equal to 1024",
        ),
        (
            {"backbones": ["a"]},
            {"search": {"image_size_px": [64, 512]}},
            "search.image_size_px: 512 is more than the 224 of data.image_size_px, for which pictures are kept; raise",
        ),
        (
            {"backbone": "a"},
            {"search": {"image_size_px": [64, 128], "cost_aware": True}},
            "search.cost_aware: depth and policy, which decide a price, are",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(model: dict[str, Any], parts: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        spec_with(model, **parts)
    assert str(caught.value).startswith(f"t: {line}")
    assert "\n" not in str(caught.value)


def test_each_size_of_a_network_is_searched_as_a_network_of_its_own() -> None:
    model = {"backbones": ["lenet", {"backbone": "resnet18", "image_size_px": [64, 96], "weights": "none"}]}
    spec = spec_with(model)
    assert list(spec.model.named) == ["lenet", "resnet18-64px", "resnet18-96px"]
    assert spec.model.label == "lenet, resnet18-64px, resnet18-96px"
    assert [choice.image_size_px for choice in spec.model.named.values()] == [None, 64, 96]
    assert {network_of(name) for name in spec.model.named} == {"lenet", "resnet18"}
    apart = {"backbones": [{"backbone": "resnet18", "image_size_px": size} for size in (64, 96)]}
    assert list(spec_with(apart).model.named) == ["resnet18-64px", "resnet18-96px"]
    assert spec_with(spec.model_dump(mode="json")["model"]) == spec
    assert searched_fields(spec)[0] == "model.backbones"
    one = spec_with({"backbone": "resnet18"}, search={"image_size_px": [64, 96]})
    assert "search.image_size_px" in searched_fields(one)

    shapes = {"lenet": BackboneShape(4), "resnet18-64px": BackboneShape(6), "resnet18-96px": BackboneShape(6)}
    space = SearchSpace.over(spec.search, shapes)
    points = [point for point, _ in draw(space)]
    assert {point["backbone"] for point in points} == set(shapes)
    # What is learnt of depths at one size is of use at the other.
    known_as = {name for point in points for name in space.searched(point) if name.startswith("freeze_depth")}
    assert known_as == {"freeze_depth@lenet", "freeze_depth@resnet18"}
    shapes["resnet18-96px"] = BackboneShape(6, freeze_depth=(0, "all"))
    apart_too = SearchSpace.over(spec.search, shapes)
    known_as = {name for point, _ in draw(apart_too) for name in apart_too.searched(point) if "freeze" in name}
    assert known_as == {"freeze_depth@lenet", "freeze_depth@resnet18-64px", "freeze_depth@resnet18-96px"}

    single = single_spec(spec, next(point for point in points if point["backbone"] == "resnet18-96px"), "best")
    (entry,) = single.model.entries
    assert (entry.backbone, entry.image_size_px, list(single.model.named)) == ("resnet18", 96, ["resnet18"])


def test_several_pretrained_backbones_each_have_a_recipe(tmp_path: Any) -> None:
    recipe = {"name": "one", "data": {"source": "digits"}}
    entries = [{"backbone": name, "weights": {"pretrain": recipe}} for name in ("lenet", "resnet18")]
    with pytest.raises(InputError, match="two networks are pretrained as 'one'; give each recipe another name"):
        spec_with({"backbones": entries})
    entries[1]["weights"] = {"pretrain": {**recipe, "name": "two"}}
    spec = spec_with({"backbones": entries})
    assert {name: each.name for name, each in spec.pretrain_specs().items()} == {"lenet": "one", "resnet18": "two"}
    path = tmp_path / "two.yaml"
    path.write_text(dump_spec(spec))
    with pytest.raises(InputError, match="lenet, resnet18 are pretrained here; give one of them a spec of its own"):
        load_pretrain_spec(path)


def test_the_champions_spec_has_its_backbone_alone() -> None:
    spec = spec_with(TWO)
    assert searched_fields(spec)[0] == "model.backbones"
    space = SearchSpace.over(spec.search, {"resnet18": BackboneShape(6), "lenet": BackboneShape(4, False, (0, "all"))})
    point = next(point for point, _ in draw(space) if point["backbone"] == "lenet")
    single = single_spec(spec, point, "best")
    (choice,) = single.model.entries
    assert (choice.backbone, choice.weights, choice.image_size_px) == ("lenet", "none", 32)
    assert searched_fields(single) == []
    alone = SearchSpace.over(single.search, {"lenet": BackboneShape(4, False, choice.freeze_depth)})
    assert alone.contains({name: value for name, value in point.items() if name != "backbone"})
    assert searched_fields(spec_with({"backbones": [TWO["backbones"][1]]}))[0] == "model.backbones[0].freeze_depth"


def test_networks_without_batch_norm_have_nothing_to_keep() -> None:
    def networks_of(**depths: int) -> Any:
        return {
            name: SimpleNamespace(
                cuts=SimpleNamespace(num_stages=4, batch_norm_depth=depth),
                choice=SimpleNamespace(is_pretrained=True, freeze_depth=None),
            )
            for name, depth in depths.items()
        }

    spec = spec_with({"backbones": ["vgg11", "alexnet"]}, search={"bn_mode": ["update", "keep"]})
    with pytest.raises(InputError, match="there is no BatchNorm to keep in vgg11 or alexnet"):
        space_over(spec, networks_of(vgg11=0, alexnet=0))
    assert space_over(spec, networks_of(vgg11=0, vgg11_bn=3)).is_joint
