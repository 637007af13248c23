"""Delta checkpoints: the tensors that a trial trained, and the hash of the frozen ones they stand on.

A file holds a checksum of the rest (128 bits of XXH3), then safetensors with a JSON header: no pickle, and damage is
noticed before anything is read. Files appear whole or not at all; they may lie in a folder or under any pyarrow
filesystem URI.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import nn
from xxhash import xxh3_128

from trainables.files.storage import read_bytes, write_bytes

_MAGIC = b"thaw-delta-2\n"
_HASHES: Mapping[bytes, Callable[[], Any]] = {b"thaw-delta-1\n": hashlib.sha256, _MAGIC: xxh3_128}
"""What a file's checksum is, by how the file begins."""

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls them."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: damaged, or made for another network."""


@dataclass(frozen=True)
class Checkpoint:
    """What a trial can go on from, or be rebuilt from.

    Attributes:
        prefix_hash: Of the frozen tensors that the delta completes.
        tail: State of the trained part by its names in the whole model.
        meta: JSON values; the loop's own, such as the epoch.
        optimizer: Tensors of the optimizer by ``<parameter>/<name>``; empty where only the weights are kept.
        average: Moving averages by the names of ``tail``; empty where there are none, or only the weights are kept.
    """

    prefix_hash: str
    tail: Mapping[str, torch.Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, torch.Tensor] = field(default_factory=dict)
    average: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tail_for(self, prefix_hash: str) -> Mapping[str, torch.Tensor]:
        """The trained tensors, to be loaded beside the prefix of that hash.

        Raises:
            CheckpointError: They were trained on another prefix.
        """
        if prefix_hash != self.prefix_hash:
            raise CheckpointError(
                f"this checkpoint stands on frozen weights {self.prefix_hash[:12]}, not on {prefix_hash[:12]}: "
                "load it beside the backbone, weights and freeze_depth that it was trained with"
            )
        return self.tail


def save_checkpoint(uri: str, checkpoint: Checkpoint) -> int:
    """Writes ``checkpoint`` to a path or URI, whole or not at all; returns its size in bytes."""
    tensors = {f"tail/{name}": tensor for name, tensor in checkpoint.tail.items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in checkpoint.optimizer.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in checkpoint.average.items()}
    header = {"prefix_hash": checkpoint.prefix_hash, "meta": json.dumps(dict(checkpoint.meta))}
    payload = _safetensors(tensors, header)
    checksum = xxh3_128()
    for piece in payload:
        checksum.update(piece)
    pieces = (_MAGIC, checksum.digest(), *payload)
    write_bytes(uri, *pieces)
    return sum(map(len, pieces))


def load_checkpoint(uri: str) -> Checkpoint:
    """Reads and verifies what ``save_checkpoint`` wrote.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is damaged.
    """
    payload = _verified(uri)
    header_size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + header_size])["__metadata__"]
    tensors = safetensors.torch.load(payload)
    return Checkpoint(
        prefix_hash=header["prefix_hash"],
        tail=_strip(tensors, "tail/"),
        meta=json.loads(header["meta"]),
        optimizer=_strip(tensors, "optimizer/"),
        average=_strip(tensors, "average/"),
    )


def is_whole(uri: str) -> bool:
    """Whether there is a checkpoint, and undamaged."""
    try:
        _verified(uri)
    except (FileNotFoundError, CheckpointError):
        return False
    return True


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state by the names of the module's parameters (learning rates are the schedule's, not state).

    By place would not do: how parameters are grouped depends on the rates, and whoever goes on may have others.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{name}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts what ``optimizer_tensors`` gave back into an optimizer over the same parameters, however grouped.

    Files hold no strides. A moment gets those of its parameter back, as in a run that was never interrupted: for mixed
    layouts torch takes other, slower code, which need not give the same bits.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in module.named_parameters()}
    places = {names[parameter]: place for place, parameter in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        owner, name = key.rsplit("/", 1)
        place = int(owner) if owner.isdigit() else places[owner]  # an older Thaw numbered them
        parameter = parameters[place]
        if tensor.shape == parameter.shape:
            moment = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        else:
            moment = tensor
        state.setdefault(place, {})[name] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _safetensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A safetensors file in pieces that are the tensors' own memory: the library would copy a large network twice."""
    # Wide elements first, so that each begins at a multiple of its size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    pieces, offset = [], 0
    for name, tensor in ordered:
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        place = [offset, offset := offset + content.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        pieces.append(content.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *pieces]


def _verified(uri: str) -> bytes:
    """What a file holds behind its checksum."""
    content = read_bytes(uri)
    magic = content[: len(_MAGIC)]
    hashed = _HASHES.get(magic, xxh3_128)()
    start = len(magic) + hashed.digest_size
    payload = content[start:]
    hashed.update(payload)
    if magic not in _HASHES or hashed.digest() != content[len(magic) : start]:
        raise CheckpointError(f"{uri}: damaged checkpoint (its checksum does not match)")
    return payload


def _strip(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
