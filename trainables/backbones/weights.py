"""Pretrained tensors: read from wherever the user has them, checked against the network, kept as safetensors.

In: ``none``, a name of torchvision's, a file, or a state dict. Out: a ``WeightsFile`` named by its content, which holds
what the backbone needs and no more: neither the old head nor auxiliary ones. Nothing that could run code is opened.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision.models

from trainables.backbones.families import check_name, outer_normalisation, skeleton
from trainables.backbones.inputs import read_rgb, read_stated
from trainables.config import WEIGHTS_ENDINGS, WeightsFile
from trainables.errors import InputError
from trainables.files.node_cache import fetch_once
from trainables.files.storage import fetch_file, is_local, join, read_bytes, write_bytes
from trainables.files.typed_path import expand
from trainables.wording import shorten_place

_PLACE = "model.weights"
# Heads that torchvision trains beside the real one and that are left out here.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Files made before module names could not hold dots: torchvision's own DenseNets are published so.
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)$")
# Files made before BatchNorm counted its batches lack the counter; the count plays no part in what is computed here.
_COUNTER = ".num_batches_tracked"
# What torch.load raises for files that are damaged or hold something else; tried on truncated and altered files.
_UNREADABLE = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, OSError,
)  # fmt: skip


def resolve_weights(
    spec: str, backbone: str, root: Path | str, note: Callable[[str], object] = lambda _: None
) -> WeightsFile | None:
    """Finds, checks and stores the weights that a user asks for.

    Args:
        spec: ``none``; ``default`` or a name such as ``IMAGENET1K_V1`` (downloaded by torchvision); or the path of a
            ``.pth``, ``.pt`` or ``.safetensors`` file with a state dict.
        backbone: The network that they are for.
        root: Folder or URI that the stored file is put in.
        note: Told what a file says of its pictures, and what was adapted to red, green and blue in [0, 1].

    Raises:
        InputError: No such weights, or they do not fit, or they hold code.
    """
    check_name(backbone)
    if spec == "none":
        return None
    if spec.startswith("models:"):
        raise InputError(f"{_PLACE}: {spec} is a registered model; its state dict goes through `store_weights`")
    if "/" in spec or Path(spec).suffix:
        path = expand(spec, _PLACE)
        stored = store_weights(_read_file(path), backbone, root, place=f"{_PLACE}: {path}", note=note)
        if stored.mean is None or stored.std is None:
            return stored
        mean, std = outer_normalisation(backbone, stored.mean, stored.std)
        return stored.model_copy(update={"mean": mean, "std": std})
    return store_weights(_download(spec, backbone), backbone, root, place=f"{_PLACE}: {spec}")


def store_weights(
    state: object,
    backbone: str,
    root: Path | str,
    *,
    place: str = _PLACE,
    note: Callable[[str], object] = lambda _: None,
) -> WeightsFile:
    """Checks a state dict against a backbone and writes it as ``root/<sha256>.safetensors``.

    Args:
        state: Tensors by torchvision's names, the head's being ignored; also a training checkpoint that holds them
            under ``state_dict`` or ``model``, or names that start with ``module.``. What else stands in a checkpoint
            may say how pictures were normalised.
        backbone: The network that they are for.
        root: Folder or URI.
        place: How error messages name the source.
        note: As `resolve_weights`.

    Raises:
        InputError: A tensor is missing, unexpected, of another shape, or not finite; or the input is none of ours.
    """
    check_name(backbone)
    state, metadata = _unwrapped(state)
    stated = read_stated(metadata, place)
    named, adapted = read_rgb(_usual_names(state, place), _expected(backbone), place)
    for remark in (*stated.remarks, *adapted):
        note(f"{place}: {remark}")
    check_fit(named, backbone, place=place)
    tensors = _complete(named, backbone, place=place)
    sha256 = hash_tensors(tensors)
    uri = join(str(root), f"{sha256}.safetensors")
    try:
        _verify(uri, sha256)
    except (FileNotFoundError, InputError):  # not there yet, or damaged
        write_bytes(uri, safetensors.torch.save(tensors))
    return WeightsFile(uri=uri, sha256=sha256, mean=stated.mean, std=stated.std)


def load_tensors(file: WeightsFile) -> dict[str, torch.Tensor]:
    """The tensors of a stored file, verified against its hash once per process.

    Raises:
        InputError: The file is gone or damaged.
    """
    try:
        uri = _node_copy(file)
        _verify_once(uri, file.sha256)
        return _read_stored(uri)
    except FileNotFoundError:
        raise InputError(f"{file.uri}: the stored weights are gone; start the sweep again to store them anew") from None


def _node_copy(file: WeightsFile) -> str:
    """A path that can be mapped: the file's own, or that of this node's verified copy of it."""
    if is_local(file.uri):
        return file.uri

    def is_usable(path: Path) -> bool:
        try:
            _verify_once(str(path), file.sha256)
        except (FileNotFoundError, InputError):
            return False
        return path.exists()

    def fetch(path: Path) -> None:
        fetch_file(file.uri, path)
        if not is_usable(path):
            raise InputError(_damaged(file.uri))

    return str(fetch_once(f"weights/{file.sha256}.safetensors", fetch, is_usable=is_usable))


def check_fit(state: Mapping[str, torch.Tensor], backbone: str, *, place: str) -> None:
    """Compares names and shapes with what ``backbone`` has below its head; heads are not looked at.

    Args:
        state: Tensors by torchvision's names.
        backbone: The network that they are for.
        place: How error messages name the source.

    Raises:
        InputError: A tensor is missing, unexpected, or of another shape.
    """
    expected = _expected(backbone)
    given = {key: value for key, value in state.items() if not key.startswith(_ignored(backbone))}
    missing = [key for key in expected if key not in given and not key.endswith(_COUNTER)]
    unexpected = [key for key in given if key not in expected]
    misshapen = [
        f"{key} {list(given[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    faults = [
        f"{len(keys)} {kind} ({_first_few(keys)})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if faults:
        raise InputError(
            f"{place} does not fit {backbone}: {'; '.join(faults)}; take weights of this network, or the network that "
            "they were trained in"
        )


def _complete(state: Mapping[str, torch.Tensor], backbone: str, *, place: str) -> dict[str, torch.Tensor]:
    """All tensors of ``backbone`` below its head, in its precision, from a state dict that fits it."""
    tensors: dict[str, torch.Tensor] = {}
    for key, pattern in _expected(backbone).items():
        value = state[key] if key in state else torch.zeros(pattern.shape)
        if not value.isfinite().all():
            raise InputError(f"{place} holds values that are not finite in {key}; take weights of a run that converged")
        tensors[key] = value.detach().to("cpu", pattern.dtype).contiguous()
    return tensors


def _expected(backbone: str) -> dict[str, torch.Tensor]:
    model, _ = skeleton(backbone)
    return {key: value for key, value in model.state_dict().items() if not key.startswith(_ignored(backbone))}


def _ignored(backbone: str) -> tuple[str, ...]:
    _, traced = skeleton(backbone)
    return (f"{traced.head_name}.", *_AUXILIARY.get(backbone, ()))


def _first_few(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes; order and memory layout do not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_whole(uri: str, sha256: str) -> bool:
    """Whether a stored file is there and holds the tensors of that hash."""
    try:
        _verify(uri, sha256)
    except (FileNotFoundError, InputError):
        return False
    return True


def _verify(uri: str, sha256: str) -> None:
    if hash_tensors(_read_stored(uri)) != sha256:
        raise InputError(_damaged(uri))


@functools.cache
def _verify_once(uri: str, sha256: str) -> None:
    """Once per process: hashing VGG's half a gigabyte for every trial would be felt."""
    _verify(uri, sha256)


def _read_stored(uri: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(uri) if is_local(uri) else safetensors.torch.load(read_bytes(uri))
    except safetensors.SafetensorError as error:
        raise InputError(_damaged(uri)) from error


def _damaged(uri: str) -> str:
    return f"{uri}: the stored weights are damaged; start the sweep again to store them anew"


def _read_file(path: Path) -> object:
    place = f"{_PLACE}: {path}"
    if path.suffix not in WEIGHTS_ENDINGS:
        raise InputError(f"{place} has none of the known endings; save a state dict as {', '.join(WEIGHTS_ENDINGS)}")
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{place} {what}; give the path of a state dict, 'default' or 'none'")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            return {**metadata, "state_dict": safetensors.torch.load_file(path)}
        with warnings.catch_warnings():
            # PyTorch wonders aloud about damaged files before it gives them up; the refusal below says it once.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise InputError(f"{place} is damaged or no safetensors file ({_first_line(error)}); fetch it again") from error
    except _UNREADABLE as error:
        code = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error))
        if code or "TorchScript" in str(error):
            raise InputError(
                f"{place} holds pickled code ({code[1] if code else 'TorchScript'}), which is never run; where it "
                "comes from, save the tensors alone: torch.save(model.state_dict(), path)"
            ) from error
        raise InputError(f"{place} is damaged or no PyTorch file ({_first_line(error)}); fetch it again") from error


def _download(name: str, backbone: str) -> object:
    """What torchvision publishes, from its cache or its site, checked against the hash in their file name."""
    if backbone == "lenet":
        raise InputError(f"{_PLACE}: lenet has no published weights; give a file, `pretrain` settings, or 'none'")
    published = torchvision.models.get_model_weights(backbone)
    wanted = published.DEFAULT.name if name == "default" else name
    if wanted not in published.__members__:
        raise InputError(
            f"{_PLACE}: {backbone} has no weights {shorten_place(name)}; take one of none, default, "
            f"{', '.join(published.__members__)}, or a file ending in {', '.join(WEIGHTS_ENDINGS)}"
        )
    try:
        return published[wanted].get_state_dict(progress=False, check_hash=True)
    except (OSError, HTTPException, RuntimeError) as error:
        raise InputError(
            f"{_PLACE}: {name} of {backbone} could not be downloaded ({_first_line(error)}); fetch "
            f"{published[wanted].url} elsewhere and give the file's path"
        ) from error


def _unwrapped(state: object) -> tuple[object, dict[str, Any]]:
    """The state dict of a training checkpoint, and what stands beside it."""
    metadata: dict[str, Any] = {}
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            metadata |= {str(key): value for key, value in state.items() if key != wrapper}
            state = state[wrapper]
    return state, metadata


def _usual_names(state: object, place: str) -> dict[str, torch.Tensor]:
    """Undoes the prefixes and spellings that are common in published files."""
    if not isinstance(state, Mapping) or not state:
        what = "nothing" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise InputError(f"{place} holds {what}, not a state dict; save one with torch.save(model.state_dict(), path)")
    odd = next((key for key, value in state.items() if not isinstance(value, torch.Tensor)), None)
    if odd is not None:
        raise InputError(f"{place} holds a {type(state[odd]).__name__} under {odd!r}, not a tensor; save a state dict")
    names = [str(key) for key in state]
    if all(name.startswith("module.") for name in names):  # DistributedDataParallel
        names = [name.removeprefix("module.") for name in names]
    return {_OLD_DENSENET_KEY.sub(r"\1\2", name): value for name, value in zip(names, state.values(), strict=True)}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
