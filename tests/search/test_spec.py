"""Every mistake a spec can hold is refused in one line that names the field, the value and the remedy."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.loading import dump_spec, load_kept_spec, load_pretrain_spec, load_spec, parse_spec
from search_spaces.mistakes import field_paths, fields_at
from search_spaces.search_spec import SearchSpec
from search_spaces.spec import PretrainSpec, SweepSpec
from trainables.errors import InputError

MINIMAL = {"name": "bees", "data": {"source": "folder:bees"}, "model": {"backbone": "resnet18"}}


def spec_with(**parts):
    return parse_spec({**MINIMAL, **parts}, SweepSpec, "bees.yaml")


def refusal(*overrides, spec="digits"):
    with pytest.raises(InputError) as caught:
        load_spec(spec, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("search.freze_depth=3", "search.freze_depth: there is no such field; did you mean `search.freeze_depth`?"),
        ("lr=0.1", "lr: there is no such field; did you mean `search.lr`?"),
        ("budget.trials=4", "budget.trials: there is no such field; did you mean `search.num_trials`?"),
        ("search.lr.lo=1.0e-4", "search.lr.lo: there is no such field; did you mean `search.lr.low`?"),
        (
            "zebra=1",
            "zebra: there is no such field; the fields here are version, name, data, model, search, budget, compute, "
            "features, cache, early_stopping, keep_checkpoints, metric, costs, baselines, tracking, seed",
        ),
        ("search.lr.low=1", "search.lr: low 1.0 is above high 0.03; swap them"),
        ("search.lr.low=0.03", "search.lr: low and high are both 0.03; give that one value instead of a range"),
        (
            "search.freeze_depth={low: 3, high: 2}",
            "search.freeze_depth: low 3 is above high 2; swap them",
        ),
        (
            "search.weight_decay={low: 0, high: 0.1, log: true}",
            "search.weight_decay: log needs low above 0, and low is 0.0; raise low or leave log out",
        ),
        ("search.lr=-0.1", "search.lr: -0.1 is not allowed: it should be greater than 0"),
        ("search.lr=[0.1, 0.0]", "search.lr[1]: 0.0 is not allowed: it should be greater than 0"),
        ("search.lr.high=.inf", "search.lr.high: inf is not allowed: it should be a finite number"),
        (
            "cache.directory=s3://bucket/features",
            "cache.directory: 's3://bucket/features' is no folder; give one, and a storage behind it by shared_uri",
        ),
        ("cache.directory=''", "cache.directory: '' is no folder; give one, and a storage behind it by shared_uri"),
        (
            "cache.budget_gb=1.0e300",
            "cache.budget_gb: 1e+300 is more than 1,000,000,000; lower it",
        ),
        (
            "budget.epochs=2147483648",
            "budget.epochs: 2147483648 is more than 10,000; lower it",
        ),
        (
            "tracking.model_name=a@b",
            "tracking.model_name: 'a@b' cannot name a model in MLflow; use a name without '/', ':' and '@'",
        ),
        (
            "tracking.model_name=..a",
            "tracking.model_name: '..a' cannot name a model in MLflow; use a name without '/', ':' and '@'",
        ),
        ("name=Default", "name: 'Default' is an experiment of MLflow's own; give another name"),
        ("budget.threads_per_worker=1000000", "budget.threads_per_worker: 1000000 is more than 1,024; lower it"),
        (
            "budget.trial_timeout_s=1.0e+10",
            "budget.trial_timeout_s: 10000000000.0 is more than 1,000,000,000; lower it",
        ),
        ("compute.prefix_batch_size=4096", "compute.prefix_batch_size: 4096 is more than 1,024; lower it"),
        (
            "search.num_views={low: 1, high: 1000000000}",
            "search.num_views.high: 1000000000 is more than 100,000; lower it",
        ),
        ("data.split.seed=1.0e300", "data.split.seed: 1e+300 has too many digits; give a smaller number"),
        ("search.lr=[]", "search.lr: the list is empty; give at least one value"),
        ("search.lr=[0.1, 0.1]", "search.lr: 0.1 is listed twice; list each value once"),
        (
            "data.group_pattern='a{99999999999}'",
            "data.group_pattern: 'a{99999999999}' is no regular expression (the repetition number is too large); write "
            "\\ before . ( [ * + ?",
        ),
        (
            "model.weights.pretrain.seed=20261127163000",
            "model.weights.pretrain.seed: 20261127163000 is not allowed: it should be less than or equal to 4294967295",
        ),
        (
            "model.weights.pretrain.warmup_epochs=50",
            "model.weights.pretrain.warmup_epochs: 50 is more than the 12 of epochs; lower it, or train longer",
        ),
        ("search.lr=fast", "search.lr: 'fast' is not allowed: it should be a valid number"),
        ("search.batch_size=12.5", "search.batch_size: 12.5 is not allowed: it should be a valid integer"),
        ("search.magnitude=31", "search.magnitude: 31 is not allowed: it should be less than or equal to 30"),
        ("seed=true", "seed: True is not allowed: it should be a valid integer"),
        ("search.freeze_depth=al", "search.freeze_depth: 'al' is not a whole number or 'all'"),
        ("budget.concurrency=many", "budget.concurrency: 'many' is not a whole number or 'auto'"),
        ("search.optimizer=adam", "search.optimizer: 'adam' is not one of adamw, sgd; did you mean `adamw`?"),
        (
            "search.optimizer={low: 1, high: 2}",
            "search.optimizer: {'low': 1, 'high': 2} is a range, and this field has none; give one value, or a list",
        ),
        (
            "metric=val/acc",
            "metric: 'val/acc' is not one of val/accuracy, val/balanced_accuracy, val/macro_f1, val/loss, val/auroc, "
            "val/cost, val/map; "
            "did you mean `val/accuracy`?",
        ),
        (
            "early_stopping=asha",
            "early_stopping: 'asha' is not a mapping; the fields here are scheduler, grace_period, reduction_factor, "
            "patience, population",
        ),
        ("model.backbone=18", "model.backbone: 18 is not allowed: it should be a valid string"),
        ("version=2", "version: 2 is newer than 1, the newest this Thaw reads; install a newer Thaw"),
        (
            "name=../bees",
            "name: '../bees' cannot name a folder everywhere; use letters, digits, '.', '_' and '-', at most 64",
        ),
        ("data.exclude_classes=[5, 5]", "data.exclude_classes: '5' is listed twice; list each value once"),
        (
            "baselines=[head_onli]",
            "baselines[0]: 'head_onli' is not one of head_only, full_finetune, from_scratch; did you mean `head_only`?",
        ),
    ],
)
def test_a_wrong_field_is_refused_with_its_path_its_value_and_a_remedy(override, line):
    assert refusal(override) == f"digits: {line}"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["data.split.train=0.5"],
            "data.split: the shares train 0.5, val 0.2, test 0.6 add up to 1.3; make it 1",
        ),
        (
            ["data.split={train: 0.8, val: 0, test: 0.2}"],
            "data.split: val has a share of 0, and without it no trial can be judged; give it a share",
        ),
        (
            ["search.magnitude={low: 1, high: 30}"],
            "search.magnitude: searched, but only color, industrial, randaugment, augmix use it and "
            "search.augmentation is none; add one of them there, or leave magnitude out",
        ),
        (
            ["search.freeze_depth=all"],
            "search.backbone_lr_ratio: searched, but search.freeze_depth is 'all' and nothing of the backbone learns; "
            "lower freeze_depth, or leave backbone_lr_ratio out",
        ),
        (
            ["features=required", "search.augmentation=[none, flip]", "search.num_views=unlimited"],
            "features: required, but views without end (search.num_views: unlimited) are never seen twice and so never "
            "stored; give num_views a number, or set features: auto",
        ),
        (
            ["search.warmup_epochs=[0, 11]"],
            "search.warmup_epochs: 11 is more than the 10 of budget.epochs; lower it, or train longer",
        ),
        (
            ["early_stopping.grace_period=11"],
            "early_stopping.grace_period: 11 is more than the 10 of budget.epochs, so nothing would ever be stopped; "
            "lower it, or set early_stopping.scheduler to none",
        ),
        (
            ["budget.workers_per_trial=20"],
            "search.batch_size: 16 pictures cannot be shared among 20 workers; "
            "use at least 20, or lower budget.workers_per_trial",
        ),
        (
            ["search.cutmix_alpha=[0, 1]", "search.batch_size=[1, 32]"],
            "search.cutmix_alpha: 1 mixes pictures of one batch, and search.batch_size may be 1; "
            "use at least 2 there, or set cutmix_alpha to 0",
        ),
        (
            ["search.head=[mlp, cosine]", "search.head_init=[probe, random]"],
            "search.head_init: a probe is a linear head, and search.head is mlp or cosine; add linear there, or leave "
            "head_init out",
        ),
        (
            ["search.bn_mode=keep", "model.weights=none"],
            "search.bn_mode: 'keep' keeps pretrained statistics, and model.weights is none; name weights, or leave "
            "bn_mode out",
        ),
        (
            ["search.bn_mode=[update, keep]", "search.freeze_depth=all", "search.backbone_lr_ratio=1.0"],
            "search.bn_mode: search.freeze_depth is 'all', and the frozen part keeps its statistics anyway; lower "
            "freeze_depth, or leave bn_mode out",
        ),
        (
            ["search.precision=[fp32, bf16]", "compute.precision=bf16"],
            "compute.precision: bf16, but search.precision says what trials have; leave one of the two out",
        ),
        (
            ["budget.gpus_per_worker=0.5", "budget.workers_per_trial=2"],
            "budget.gpus_per_worker: 0.5 of a GPU for each of 2 workers: only a single worker can share a GPU; "
            "set it to 1, or budget.workers_per_trial to 1",
        ),
        (
            ["budget.gpus_per_worker=1.5"],
            "budget.gpus_per_worker: 1.5 is neither a fraction of one GPU nor a whole number; round it",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused_with_what_to_change(overrides, line):
    assert refusal(*overrides) == f"digits: {line}"


def test_a_budget_ends_a_search_of_which_no_number_of_trials_is_given():
    assert spec_with().most_trials == 16
    assert spec_with(budget={"flops": 1e15}).most_trials is None
    assert spec_with(budget={"time_s": 60.0}).most_trials is None
    assert spec_with(budget={"time_s": 60.0}, search={"num_trials": 5}).most_trials == 5
    assert "search.num_trials: 'many' is not a whole number or 'auto'" in refusal("search.num_trials=many")
    assert "budget.flops: 0.0 is not allowed: it should be greater than 0" in refusal("budget.flops=0.0")
    assert "search.cost_aware: 1 is not allowed: it should be a valid boolean" in refusal("search.cost_aware=1")


def test_the_old_name_of_a_budget_of_seconds_is_read():
    spec = load_spec("digits", ["budget.time_budget_s=60.0"])
    assert (spec.budget.time_s, "time_budget_s" in dump_spec(spec)) == (60.0, False)
    assert refusal("budget.time_budget_s=60.0", "budget.time_s=1.0") == (
        "digits: budget: time_budget_s is the old name of time_s, and both are given; leave time_budget_s out"
    )
    assert "budget.time_s: -1.0 is not allowed" in refusal("budget.time_budget_s=-1.0")


def test_every_mistake_has_a_line_of_its_own():
    lines = refusal("sed=1", "search.lr.low=2", "budget.epochs=0").splitlines()
    assert [line.split(": ")[1] for line in sorted(lines)] == ["budget.epochs", "search.lr", "sed"]


def test_every_contradiction_has_a_line_of_its_own():
    lines = refusal("search.freeze_depth=all", "search.warmup_epochs=99").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["search.backbone_lr_ratio", "search.warmup_epochs"]


def test_a_missing_field_says_what_it_is_for_and_how_to_give_it():
    line = refusal(spec="quick")
    assert line.startswith(
        "quick: data.source: missing; where pictures are: 'folder:PATH' or 'folder:URI' (class folders"
    )
    assert line.endswith("or 'digits'; give it in the spec, or with --set data.source=VALUE")


def test_a_default_never_contradicts_what_the_user_fixed():
    spec = spec_with(search={"augmentation": "none", "freeze_depth": "all"}, budget={"epochs": 1})
    assert spec.grace_period == 1
    assert parse_spec(spec.model_dump(mode="json"), SweepSpec, "again") == spec


def test_a_value_a_list_and_a_range_are_told_apart():
    search = SearchSpec.model_validate({"lr": 0.1, "batch_size": [8, 16], "label_smoothing": {"low": 0.0, "high": 0.2}})
    assert (search.lr, search.batch_size, search.label_smoothing.high) == (0.1, (8, 16), 0.2)
    assert search.model_copy() == SearchSpec.model_validate(search.model_dump())


def test_a_spec_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        spec_with().seed = 1


@pytest.mark.parametrize(
    ("metric", "mode"), [("val/accuracy", "max"), ("val/auroc", "max"), ("val/loss", "min"), ("val/cost", "min")]
)
def test_the_mode_follows_from_the_metric(metric, mode):
    assert spec_with(metric=metric, costs=[[0, 1], [2, 0]]).mode == mode


def test_the_sweeps_pretraining_runs_its_backbone_on_its_resources():
    spec = load_spec("digits", ["budget.workers_per_trial=2", "compute.precision=bf16", "model.backbone=resnet18"])
    pretrain = spec.pretrain_specs()["resnet18"]
    assert (pretrain.backbone, pretrain.resources.workers_per_trial, pretrain.compute) == (
        "resnet18", 2, spec.compute.without_auto()
    )  # fmt: skip
    assert pretrain.data.exclude_classes == ("5", "6", "7", "8", "9")
    assert pretrain.params()["freeze_depth"] == 0
    assert spec_with().pretrain_specs() == {}


def test_a_pretraining_has_a_file_of_its_own_or_a_sweeps(tmp_path):
    of_sweep = load_pretrain_spec("digits", ["model.weights.pretrain.epochs=3"])
    path = tmp_path / "pretrain.yaml"
    path.write_text(dump_spec(of_sweep))
    assert load_pretrain_spec(path) == of_sweep
    assert load_pretrain_spec(path, ["epochs=4"]).epochs == 4
    with pytest.raises(InputError, match="epoch: there is no such field; did you mean `epochs`"):
        load_pretrain_spec(path, ["epoch=4"])
    with pytest.raises(InputError, match=r"resources\.gpus_per_worker: 1\.5 is neither"):
        load_pretrain_spec(path, ["resources.gpus_per_worker=1.5"])
    with pytest.raises(InputError, match=r"model\.weights: nothing is pretrained here"):
        load_pretrain_spec("quick", ["data.source=folder:x"])


def test_a_sweep_that_has_begun_is_not_refused_what_it_was_allowed_then(tmp_path):
    raw = {
        **MINIMAL,
        "features": "required",
        "search": {"augmentation": "flip", "num_views": "unlimited"},
        "cache": {"directory": "odd://name", "budget_gb": 1e10},
        "budget": {"epochs": 200_000},
    }
    with pytest.raises(InputError) as refused:
        parse_spec(raw, SweepSpec, "bees.yaml")
    for said in ("no folder; give one", "epochs: 200000 is more than 10,000", "budget_gb: 10000000000.0 is more than"):
        assert said in str(refused.value)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(raw))
    kept = load_kept_spec(path)
    assert (kept.cache.directory, kept.cache.budget_gb, kept.budget.epochs) == ("odd://name", 1e10, 200_000)
    with pytest.raises(InputError, match=r"budget.concurrency"):
        load_kept_spec(path, ["budget.concurrency=0"])


@pytest.mark.parametrize("model", [SweepSpec, PretrainSpec])
def test_every_field_is_described(model):
    for path in field_paths(model):
        *parents, name = path.split(".")
        for part in fields_at(model, parents):
            assert name not in part.model_fields or part.model_fields[name].description, path


scalars = st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars | st.sampled_from(["all", "auto", "none", "adamw", "unlimited"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["low", "high", "log", "train", "lr", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*field_paths(SweepSpec), "lr", "serach.lr"]), values, max_size=4))
def test_any_spec_is_read_or_refused_in_words_and_a_read_one_survives_its_own_dump(changes):
    raw = {"name": "bees", "data": {"source": "folder:bees"}, "model": {"backbone": "resnet18"}}
    for path, value in changes.items():
        *parents, name = path.split(".")
        part = raw
        for parent in parents:
            part = part.setdefault(parent, {}) if isinstance(part, dict) else {}
        if isinstance(part, dict):
            part[name] = value
    spec, lines = None, []
    try:
        spec = parse_spec(raw, SweepSpec, "bees.yaml")
    except InputError as error:
        lines = str(error).splitlines()
    assert bool(lines) == (spec is None)
    assert all(line.startswith("bees.yaml: ") and line.count(": ") >= 2 for line in lines)
    assert spec is None or parse_spec(spec.model_dump(mode="json"), SweepSpec, "again") == spec
