"""The whole model as a file: an MLflow model in torch.export's format.

In: a trained network and its `ModelCard`. Out: a folder that MLflow serves and registers, without pickled code in it,
for any batch size. The network takes normalised pictures and gives logits; the card, kept inside, says how pictures
become its input, so that prediction needs nothing else.

Axes: N pictures, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError

from trainables.config import Fit, Settings, SplitConfig
from trainables.errors import InputError, first_line
from trainables.files.half_written import half_written
from tuner.tracking.mlflow_client import open_pytorch

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-5
"""Largest difference of a logit between the network and its file, absolute plus relative. The exported graph runs the
same kernels, but may order them otherwise: a few units in the last place of float32 (1e-7), grown over the layers."""

_CARD_KEY = "thaw"
_CHECKED_BATCHES = (1, 2, 7)
_EXAMPLE_STEPS = 16
_ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_environment_lock = threading.Lock()


class ModelFileError(RuntimeError):
    """A network whose file would not give the network's results."""


class ModelCard(Settings):
    """What a model's file says of itself."""

    class_names: tuple[str, ...] = Field(description="The classes in the order of the logits.")
    image_size_px: int = Field(ge=1, description="Side of the square that the network sees.")
    fit: Fit = Field("crop", description="How pictures of any shape are brought to that square.")
    stored_side_px: int | None = Field(
        None, description="Pictures were shrunk to this shorter side before; decode to it for the same pixels."
    )
    mean: tuple[float, ...] = Field(description="Per channel, subtracted from pixels in 0..1.")
    std: tuple[float, ...] = Field(description="Per channel, what is left is divided by it.")
    backbone: str = Field(description="Name of the network.")
    data_fingerprint: str = Field(description="Of the image table that it learnt from.")
    labels: Literal["single", "multi"] = Field(
        "single",
        description="'single': a picture shows one class, probabilities are a softmax of the logits. 'multi': any "
        "number; each is a sigmoid, and a label is given from a half on.",
    )
    costs: tuple[tuple[float, ...], ...] | None = Field(
        None,
        description="What decisions cost, by true class and by decision: the model decides for the class whose cost, "
        "weighed by the probabilities, is least; none: for the most probable.",
    )
    split: SplitConfig | None = Field(None, description="How pictures were dealt to sides; none: not known.")
    group_pattern: str | None = Field(None, description="By which names pictures stayed together; see `data`.")
    is_dealt_by_source: bool = Field(False, description="Whether the source's own sides or groups were kept.")
    test_digest: str | None = Field(None, description="Of the test pictures and their labels; none: not tested.")
    sweep: str | None = Field(None, description="Where it comes from.")
    trial: int | None = Field(None, description="The trial's number in the sweep.")


def save_model(model: nn.Module, card: ModelCard, folder: Path, examples_NCHW: torch.Tensor | None = None) -> None:
    """Writes ``model`` as an MLflow model and makes sure that the file gives the same logits.

    Args:
        model: From normalised float32 [N, 3, H, W] to logits [N, K]; it is neither moved nor changed.
        card: Kept in the model's metadata.
        folder: Replaced if it exists; appears whole.
        examples_NCHW: Two pictures, uint8 [2, 3, H, W], for the input example. Default: a colour gradient.

    Raises:
        ModelFileError: The file's logits differ, for one of several batch sizes.
    """
    import torch

    frozen = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    # The format keeps tensors as plain rows; weights in channels-last memory make it complain.
    frozen = frozen.to(memory_format=torch.contiguous_format)
    example = _input_example(card, examples_NCHW)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with half_written(folder) as partial:
        open_pytorch().save_model(
            frozen,
            str(partial),
            serialization_format="pt2",
            pip_requirements=_requirements(),
            signature=_signature(card),
            input_example=example,
            metadata={_CARD_KEY: card.model_dump(mode="json")},
        )
        _check_same(frozen, load_network(partial), example.shape)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)


def load_card(folder: Path) -> ModelCard:
    """The card of a model's folder.

    Raises:
        InputError: It is no model of Thaw's.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        metadata = Model.load(str(folder)).metadata or {}
        return ModelCard.model_validate(metadata[_CARD_KEY])
    except (MlflowException, KeyError, ValidationError) as error:
        raise InputError(
            f"{folder}: not a model that Thaw wrote; give one from a sweep (thaw predict --model NAME)"
        ) from error


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model's folder, by the names of the network that was saved.

    Raises:
        InputError: It is not in torch.export's format, or holds pickled code.
    """
    return {name: tensor.detach().clone() for name, tensor in load_network(folder).state_dict().items()}


def load_network(folder: Path, device: str = "cpu") -> nn.Module:
    """The network of a model's folder, from normalised pictures to logits.

    Raises:
        InputError: It is not in torch.export's format, holds pickled code, or brings modules along.
    """
    pytorch = open_pytorch()
    from mlflow.exceptions import MlflowException

    if not (folder / "MLmodel").is_file():
        raise InputError(f"{folder}: there is no model here; give the folder that holds its MLmodel file")
    _refuse_modules(folder)
    try:
        with _pickle_refused():
            return pytorch.load_model(str(folder), device=device)
    except MlflowException as error:
        gist = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: not a model in torch.export's format without pickled code ({gist})") from error


def _refuse_modules(folder: Path) -> None:
    """MLflow would put a model's own modules before all others, and the next import would run them."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        flavors = Model.load(str(folder)).flavors
    except (MlflowException, yaml.YAMLError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: its MLmodel file cannot be read ({first_line(error)})") from error
    if brought := [name for name, flavor in flavors.items() if flavor.get("code")]:
        raise InputError(
            f"{folder}: the model brings code of its own ({', '.join(brought)}: code), which Thaw does not run: give "
            "one that was saved without"
        )


@contextmanager
def _pickle_refused() -> Iterator[None]:
    """MLflow's own switch against code in model files, which it reads from the environment, for the time of a load."""
    with _environment_lock:
        before = os.environ.get(_ALLOW_PICKLE)
        os.environ[_ALLOW_PICKLE] = "false"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_ALLOW_PICKLE]
            else:
                os.environ[_ALLOW_PICKLE] = before


def _check_same(model: nn.Module, loaded: nn.Module, shape: tuple[int, ...]) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for size in _CHECKED_BATCHES:
            images_NCHW = torch.randn(size, *shape[1:], generator=generator)
            expected, found = model(images_NCHW), loaded(images_NCHW)
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                worst = (found - expected).abs().max().item()
                raise ModelFileError(f"a batch of {size}: logits of the file differ from the network's by {worst:.2g}")


def _input_example(card: ModelCard, examples_NCHW: torch.Tensor | None) -> Any:
    """Two normalised pictures as an array [2, 3, H, W]; two, because a batch of one would fix the file's batch size."""
    import torch

    from trainables.data.batches import Normaliser

    size = card.image_size_px
    if examples_NCHW is None:
        ramp = torch.linspace(0, 255, size).to(torch.uint8).expand(3, size, size)
        examples_NCHW = torch.stack([ramp, ramp.transpose(1, 2)])
    if tuple(examples_NCHW.shape) != (2, 3, size, size):
        raise ValueError(f"examples: shape {tuple(examples_NCHW.shape)}, not (2, 3, {size}, {size})")
    normalised = Normaliser(card.mean, card.std, torch.device("cpu"), torch.contiguous_format)(examples_NCHW)
    # MLflow keeps the example as text: sixteenths take a third of the room of full digits.
    return (normalised * _EXAMPLE_STEPS).round().div(_EXAMPLE_STEPS).numpy()


def _signature(card: ModelCard) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    size = card.image_size_px
    floats = np.dtype(np.float32)
    return ModelSignature(
        inputs=Schema([TensorSpec(floats, (-1, 3, size, size))]),
        outputs=Schema([TensorSpec(floats, (-1, len(card.class_names)))]),
    )


def _requirements() -> list[str]:
    """What the file needs to run, without the build's local label (``+cpu``), which package indexes do not know."""
    import mlflow
    import numpy as np
    import torch

    versions = {"mlflow": mlflow.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return [f"{name}=={version.split('+')[0]}" for name, version in versions.items()]
