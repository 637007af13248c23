"""Weights from files and downloads: what fits is kept under its content's name, the rest is one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision.models
from torch import nn

from trainables.backbones.families import build_model
from trainables.backbones.weights import hash_tensors, load_tensors, resolve_weights, store_weights
from trainables.config import WeightsFile
from trainables.errors import InputError

SMALL = "shufflenet_v2_x0_5"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def lenet() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model("lenet").state_dict()


def refused(spec: Path | str, root: Path, backbone: str = "lenet") -> str:
    with pytest.raises(InputError) as error:
        resolve_weights(str(spec), backbone, root)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("model.weights: ")
    assert not list(root.glob("*.safetensors")), "nothing of refused weights is kept"
    return message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "stored"


def test_every_format_gives_one_file_named_by_its_content(lenet: State, tmp_path: Path, root: Path) -> None:
    torch.save(lenet, tmp_path / "a.pth")
    torch.save(dict(reversed(lenet.items())), tmp_path / "b.pt")
    torch.save(lenet, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {f"module.{k}": v for k, v in lenet.items()}, "epoch": 3}, tmp_path / "c.pth")
    safetensors.torch.save_file(lenet, tmp_path / "d.safetensors")
    sources = ["a.pth", "b.pt", "old.pth", "c.pth", "d.safetensors"]
    files = {resolve_weights(str(tmp_path / source), "lenet", root) for source in sources}
    assert len(files) == 1
    (file,) = files
    assert file is not None
    assert [path.name for path in root.iterdir()] == [f"{file.sha256}.safetensors"]
    tensors = load_tensors(file)
    assert tensors.keys() == {key for key in lenet if not key.startswith("head.")}
    assert all(torch.equal(value, lenet[key]) for key, value in tensors.items())
    assert hash_tensors(tensors) == file.sha256


def test_the_head_does_not_matter_and_everything_else_does(lenet: State, root: Path) -> None:
    file = store_weights(lenet, "lenet", root)
    body = {key: value for key, value in lenet.items() if not key.startswith("head.")}
    assert store_weights(body, "lenet", root) == file
    assert (
        store_weights(body | {"head.weight": torch.zeros(7, 3), "head.0.bias": torch.zeros(2)}, "lenet", root) == file
    )
    assert store_weights(body | {"hidden.bias": body["hidden.bias"] + 1}, "lenet", root) != file


def test_half_precision_is_widened(lenet: State, root: Path) -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in lenet.items()}
    tensors = load_tensors(store_weights(halves, "lenet", root))
    assert all(torch.equal(value, halves[key].to(value.dtype)) for key, value in tensors.items())
    assert tensors["hidden.weight"].dtype == torch.float32


def test_old_spellings_of_published_files_are_understood(root: Path) -> None:
    state = build_model("densenet121").state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    tensors = load_tensors(store_weights(old, "densenet121", root))
    assert all(torch.equal(value, state[key]) for key, value in tensors.items())


def test_auxiliary_heads_of_published_files_are_left_out(root: Path) -> None:
    full = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False).state_dict()
    assert any(key.startswith("aux1.") for key in full)
    tensors = load_tensors(store_weights(full, "googlenet", root))
    assert tensors.keys() == {key for key in full if not key.startswith(("aux1.", "aux2.", "fc."))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("block1.0.weight"), r"1 missing \(block1\.0\.weight\)"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"1 unexpected \(extra\.weight\)"),
        (
            lambda s: s.update({"hidden.weight": torch.zeros(2, 3)}),
            r"1 of another shape \(hidden\.weight \[2, 3\] instead of \[128, 256\]\)",
        ),
        (lambda s: s["hidden.bias"].__setitem__(0, float("nan")), "values that are not finite in hidden.bias"),
        (lambda s: s.update({"epoch": 3}), "holds a int under 'epoch', not a tensor"),
        (lambda s: s.clear(), "holds nothing, not a state dict"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(
    lenet: State, tmp_path: Path, root: Path, change: Callable[[State], object], message: str
) -> None:
    state = {key: value.clone() for key, value in lenet.items()}
    change(state)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    assert re.search(message, refused(path, root))


def test_weights_of_another_network_are_refused_with_the_first_few_keys(
    lenet: State, tmp_path: Path, root: Path
) -> None:
    torch.save(build_model(SMALL).state_dict(), tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth", root)
    assert "does not fit lenet: " in message
    assert "missing (block1.0.weight, block1.1.weight, block1.1.bias, ...)" in message
    assert "unexpected (conv1.0.weight, " in message
    assert len(message) < 500


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("trap-was-sprung"),))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Trap()}, tmp_path / "trap.pth")
    assert "holds pickled code (" in refused(tmp_path / "trap.pth", root)
    assert not (tmp_path / "trap-was-sprung").exists()


def test_a_whole_pickled_model_is_refused_with_the_way_to_save_it(tmp_path: Path, root: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth", root)
    assert "holds pickled code (torch.nn.modules.linear.Linear)" in message
    assert "torch.save(model.state_dict(), path)" in message


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "text", "zeros"])
def test_damaged_files_are_refused(lenet: State, tmp_path: Path, root: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(lenet, path)
    else:
        torch.save(lenet, path)
    content = path.read_bytes()
    contents = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "garbage": bytes(range(256)) * 20,
        "text": b"<html>404 not found</html>\n" * 5,
        "zeros": bytes(4096),
    }
    path.write_bytes(contents[damage])
    assert "is damaged or no " in refused(path, root)


def test_damaged_in_any_place_it_is_refused_or_read_but_never_crashes(lenet: State, tmp_path: Path, root: Path) -> None:
    """The old format's header is a bare pickle: each altered byte takes another way through the reader."""
    path = tmp_path / "w.pth"
    torch.save({"hidden.bias": lenet["hidden.bias"]}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place, value in zip(
        torch.randint(300, (200,), generator=generator).tolist(),
        torch.randint(256, (200,), generator=generator).tolist(),
        strict=True,
    ):
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        refused(path, root)  # where it can still be read, most tensors are missing


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing/w.pth", "does not exist"),
        ("w.onnx", "none of the known endings"),
        ("models:/thing@champion", "is a registered model"),
        ("default", "lenet has no published weights"),
        ("IMAGENET1K_V1", "lenet has no published weights"),
    ],
)
def test_sources_that_are_not_there_are_refused(root: Path, spec: str, message: str) -> None:
    assert message in refused(spec, root)


def test_a_folder_and_an_unknown_published_name_are_refused(tmp_path: Path, root: Path) -> None:
    (tmp_path / "w.pth").mkdir()
    assert "is a folder, not a file" in refused(tmp_path / "w.pth", root)
    message = refused("IMAGENET1K_V9", root, "resnet50")
    assert "take one of none, default, IMAGENET1K_V1, IMAGENET1K_V2" in message


def test_none_is_none(root: Path) -> None:
    assert resolve_weights("none", "lenet", root) is None


def test_published_weights_come_from_torchvisions_cache(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = build_model(SMALL).state_dict()
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    published = torchvision.models.get_model_weights(SMALL).DEFAULT
    torch.save(state, checkpoints / published.url.rsplit("/", 1)[1])
    file = resolve_weights("default", SMALL, root)
    assert file is not None
    assert file == resolve_weights(published.name, SMALL, root)
    assert torch.equal(load_tensors(file)["conv5.0.weight"], state["conv5.0.weight"])


def test_a_failed_download_says_what_to_do(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = refused("default", root, SMALL)
    assert "could not be downloaded (<urlopen error no route to host>)" in message
    assert "shufflenetv2_x0.5-f707e7126e.pth elsewhere and give the file's path" in message


def test_stored_weights_that_are_gone_or_altered_are_not_loaded(lenet: State, root: Path) -> None:
    with pytest.raises(InputError, match="are gone; start the sweep again"):
        load_tensors(WeightsFile(uri=str(root / "0.safetensors"), sha256="0"))
    file = store_weights(lenet, "lenet", root)
    path = Path(file.uri)
    path.write_bytes(safetensors.torch.save({"hidden.bias": torch.zeros(3)}))
    with pytest.raises(InputError, match="are damaged; start the sweep again"):
        load_tensors(file)
    path.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="are damaged; start the sweep again"):
        load_tensors(file)
    assert store_weights(lenet, "lenet", root) == file  # as the message promises
    assert torch.equal(load_tensors(file)["hidden.bias"], lenet["hidden.bias"])
