"""A model's file gives the network's logits, for every batch size, and refuses what it should."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch import fx, nn
from torchvision.ops import StochasticDepth
from tracking_networks import CLASSES, card, tiny_network

from trainables.data.views import eval_view
from trainables.errors import InputError
from trainables.training.scores import decide
from tuner.models.classifier import Classifier
from tuner.models.model_file import TOLERANCE, ModelFileError, load_card, load_state, save_model
from tuner.models.predicting import predict
from tuner.tracking.mlflow_client import open_pytorch


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(tiny_network(), card(sweep="s", trial=7, stored_side_px=24), folder)
    return folder


def _pictures(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator) for shape in shapes]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize(
    ("name", "traced"),
    [
        pytest.param("resnet18", False, marks=pytest.mark.slow),
        ("mobilenet_v2", True),
        ("squeezenet1_1", False),
        pytest.param("efficientnet_b0", True, marks=pytest.mark.slow),
    ],
)
def test_exported_equals_eager_for_every_batch_size(tmp_path: Path, name: str, traced: bool) -> None:
    """Also as an fx graph with channels-last weights, which is what a trial ends with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    if traced:
        network = fx.GraphModule(network, _Tracer().trace(network)).to(memory_format=torch.channels_last)
    names = tuple("56789")
    save_model(network, card(class_names=names, image_size_px=64, backbone=name), tmp_path / "model")
    classifier = Classifier.load(tmp_path / "model")
    pictures = _pictures(*[(64, 64)] * 7)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (classifier.card.mean, classifier.card.std))
    network.eval()
    for size in (1, 2, 7):
        images = (torch.stack(pictures[:size]).float() / 255 - mean) / std
        with torch.no_grad():
            expected = network(images).softmax(dim=1)
        found = classifier.probabilities(pictures[:size])
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    state = load_state(tmp_path / "model")
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())


def test_saving_changes_neither_the_network_nor_the_random_state(tmp_path: Path) -> None:
    network = tiny_network().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    save_model(network, card(), tmp_path / "model")
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_prediction_looks_at_pictures_as_evaluation_does(saved: Path) -> None:
    network = tiny_network()
    classifier = Classifier.load(saved)
    pictures = _pictures((16, 16), (40, 20), (9, 33))
    views = torch.stack([eval_view(picture, 16) for picture in pictures]).float() / 255
    mean, std = torch.tensor((0.5, 0.4, 0.3)).view(1, 3, 1, 1), torch.tensor((0.2, 0.25, 0.3)).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = network((views - mean) / std).softmax(dim=1)
    found = classifier.probabilities(pictures)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(classifier.probabilities(pictures, batch_size=1), found, rtol=TOLERANCE, atol=TOLERANCE)
    assert classifier.probabilities([]).shape == (0, len(CLASSES))


def test_the_card_comes_back_whole(saved: Path) -> None:
    assert load_card(saved) == card(sweep="s", trial=7, stored_side_px=24)


def test_a_model_with_costs_decides_by_them(tmp_path: Path) -> None:
    """A class that must not be missed is decided for, though another is more probable; evaluation decides the same."""
    paths = []
    for place, pixels_CHW in enumerate(_pictures((16, 16), (20, 18), (16, 16))):
        paths.append(tmp_path / f"{place}.png")
        Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(paths[-1])
    network, costs = tiny_network(), ((0.5, 90.0, 80.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    save_model(network, card(costs=costs), tmp_path / "model")
    classifier = Classifier.load(tmp_path / "model")
    plain = Classifier(card(), network, torch.device("cpu"))
    for path, with_costs, without in zip(paths, predict(classifier, paths, 2), predict(plain, paths, 3), strict=True):
        probabilities = dict(without.classes)
        expected = {
            name: sum(probabilities[true] * costs[row][column] for row, true in enumerate(CLASSES))
            for column, name in enumerate(CLASSES)
        }
        assert [name for name, _ in with_costs.classes] == sorted(CLASSES, key=expected.__getitem__)[:2]
        assert with_costs.classes[0][0] == "ants" != without.classes[0][0]
        assert with_costs.expected_costs == pytest.approx(sorted(expected.values())[:2], rel=1e-4)
        assert [row["expected_cost"] for row in with_costs.rows()] == sorted(
            row["expected_cost"] for row in with_costs.rows()
        )
        assert "expected_cost" not in without.rows()[0]
        logits = torch.tensor([[probabilities[name] for name in CLASSES]]).log()
        assert CLASSES[int(decide(logits, torch.tensor(costs)))] == "ants", path


def test_plain_mlflow_serves_it(saved: Path) -> None:
    """Signature, input example and requirements are what MLflow's own tools go by."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(saved))
    example = model.input_example
    assert example.shape == (2, 3, 16, 16)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, 16, 16)
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 3)
    logits = model.predict(np.concatenate([example, example[:1]]).astype(np.float32))
    with torch.no_grad():
        expected = tiny_network()(torch.from_numpy(example.astype(np.float32)))
    np.testing.assert_allclose(logits[:2], expected, rtol=TOLERANCE, atol=TOLERANCE)
    requirements = (saved / "requirements.txt").read_text().split()
    assert {requirement.split("==")[0] for requirement in requirements} == {"mlflow", "torch", "numpy"}
    assert not any("+" in requirement for requirement in requirements)


def test_given_pictures_become_the_example(tmp_path: Path) -> None:
    from mlflow.models import Model

    pictures = torch.stack(_pictures((16, 16), (16, 16)))
    save_model(tiny_network(), card(), tmp_path / "model", pictures)
    example = Model.load(str(tmp_path / "model")).load_input_example(str(tmp_path / "model"))
    mean, std = torch.tensor((0.5, 0.4, 0.3)).view(1, 3, 1, 1), torch.tensor((0.2, 0.25, 0.3)).view(1, 3, 1, 1)
    expected = (pictures.float() / 255 - mean) / std
    np.testing.assert_allclose(example, expected, atol=1 / 32 + 1e-6)  # rounded to sixteenths
    with pytest.raises(ValueError, match=r"shape \(1, 3, 16, 16\), not \(2, 3, 16, 16\)"):
        save_model(tiny_network(), card(), tmp_path / "model", pictures[:1])
    assert load_card(tmp_path / "model") == card(), "a failed save leaves what was there"


class _DependsOnBatchSize(nn.Module):
    """What export cannot see: the branch that the example took is the only one in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return self.layer(images_NCHW.mean(dim=(2, 3))) * self.calls


def test_a_file_that_differs_from_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a batch of 1: logits of the file differ"):
        save_model(_DependsOnBatchSize(), card(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_model(tiny_network(seed=seed), card(trial=seed), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_card(tmp_path / "model").trial == 1
    assert torch.equal(load_state(tmp_path / "model")["6.weight"], tiny_network(seed=1).state_dict()["6.weight"])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model here"):
        load_state(tmp_path)
    with pytest.raises(InputError, match="not a model that Thaw wrote"):
        load_card(tmp_path)


def test_a_model_with_pickled_code_is_refused_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    open_pytorch().save_model(
        tiny_network(), str(tmp_path / "pickled"), serialization_format="pickle", pip_requirements=["torch"]
    )
    with pytest.raises(InputError, match="without pickled code"):
        load_state(tmp_path / "pickled")
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "true"


def test_a_model_that_brings_modules_is_refused_without_running_them(saved: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(saved, folder)
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["flavors"]["pytorch"]["code"] = "code"
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    (folder / "code").mkdir()
    (folder / "code" / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    before = list(sys.path)
    with pytest.raises(InputError, match="brings code of its own"):
        Classifier.load(folder)
    assert sys.path == before
    assert not ran.exists()


def test_every_label_that_is_given_is_shown(tmp_path: Path) -> None:
    paths = []
    for place, pixels_CHW in enumerate(_pictures(*[(16, 16)] * 6)):
        paths.append(tmp_path / f"{place}.png")
        Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(paths[-1])
    network = tiny_network()
    with torch.no_grad():
        list(network.parameters())[-1].copy_(torch.tensor([1.0, -1.0, 0.9]))
    classifier = Classifier(card(labels="multi"), network, torch.device("cpu"))
    whole, short = (list(predict(classifier, paths, top_k)) for top_k in (len(CLASSES), 1))
    nums_given = [sum(prediction.are_given) for prediction in whole]
    assert max(nums_given) > 1
    assert [len(prediction.classes) for prediction in short] == [max(1, number) for number in nums_given]


def test_pictures_are_brought_to_a_square_as_they_were_in_training() -> None:
    network, pictures, found = tiny_network(), _pictures((40, 90), (90, 40)), []
    for fit in ("crop", "squash", "pad"):
        known = card(fit=fit)
        views = torch.stack([eval_view(image, known.image_size_px, fit) for image in pictures]).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (known.mean, known.std))
        with torch.no_grad():
            expected = network.eval()((views - mean) / std).softmax(dim=1)
        found.append(Classifier(known, network, torch.device("cpu")).probabilities(pictures))
        torch.testing.assert_close(found[-1], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
