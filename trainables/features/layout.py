"""What a store is on disk: every name, and the two JSON files of an entry. Pure, but for looking for shards.

An entry is a folder named by its key's digest. ``plan.json`` is written when it is begun, one Arrow file per shard
when that shard is done, ``manifest.json`` when all are: without it nothing is read. A shard's name carries its
checksum, so a file and what it must hold appear in one step.

N rows of the side, cut into shards of R rows; the last one may be shorter.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from trainables.config import Precision, Settings
from trainables.features.key import SCHEMA_VERSION, FeatureKey

ITEM_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"
IN_USE_NAME = "in_use"
MUTEX_NAME = "mutex"
_SHARD_NAME = re.compile(r"(\d{6})-([0-9a-f]{32})\.arrow")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LEAST_SHARD_ROWS = 64
_USUAL_SHARDS = 64
_MOST_BATCHES = 64
_OVERHEAD_BYTES = 12288
_ROW_ALIGNMENT = 64


class DamagedError(ValueError):
    """A file of the store does not hold what it should; what it stands for is computed anew."""


class Plan(Settings):
    """What an entry will hold."""

    key: FeatureKey
    num_rows: int
    rows_per_shard: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, key: FeatureKey, num_rows: int, shape: tuple[int, ...]) -> Plan:
        """The plan that every filler of ``key`` comes to."""
        return cls(key=key, num_rows=num_rows, rows_per_shard=shard_rows(num_rows, key.batch_size), shape=shape)

    @property
    def num_shards(self) -> int:
        """Number of Arrow files."""
        return -(-self.num_rows // self.rows_per_shard)

    @property
    def row_bytes(self) -> int:
        """Of one picture's features."""
        return math.prod(self.shape) * ITEM_BYTES[self.key.dtype]

    @property
    def row_stride(self) -> int:
        """Values from one row to the next: rows begin at whole cache lines, so that shards end at whole pages."""
        return -(-self.row_bytes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT // ITEM_BYTES[self.key.dtype]

    @property
    def num_bytes(self) -> int:
        """Of all features with the gaps between rows, without what Arrow adds."""
        return self.num_rows * self.row_stride * ITEM_BYTES[self.key.dtype]

    @property
    def reserved_bytes(self) -> int:
        """What the entry may take on disk: the features, what Arrow adds to each shard, and two JSON files."""
        return self.num_bytes + (self.num_shards + 4) * _OVERHEAD_BYTES

    @property
    def is_channels_last(self) -> bool:
        """Whether rows lie on disk as [H, W, C], so that they come back in the layout that the network computes in."""
        return self.key.channels_last and len(self.shape) == len("CHW")

    def bounds(self, number: int) -> tuple[int, int]:
        """First position of a shard, and the one behind its last."""
        first = number * self.rows_per_shard
        return first, min(first + self.rows_per_shard, self.num_rows)


@dataclass(frozen=True)
class ShardFile:
    """One shard on disk; its name says which one, and what its bytes hash to (128 bits of XXH3, in hexadecimal)."""

    name: str
    number: int
    checksum: str
    num_bytes: int

    @classmethod
    def parse(cls, name: str, num_bytes: int) -> ShardFile | None:
        """None for a file that is no shard."""
        match = _SHARD_NAME.fullmatch(name)
        return cls(name, int(match[1]), match[2], num_bytes) if match else None


@dataclass(frozen=True)
class Manifest:
    """A complete entry: its plan and its shards, in order. Deterministic: two fillers write the same one."""

    plan: Plan
    shards: tuple[ShardFile, ...]

    def to_json(self) -> str:
        """As text, for `from_json`; it carries its own checksum."""
        shards = [[shard.name, shard.num_bytes] for shard in self.shards]
        body = {"schema_version": SCHEMA_VERSION, "plan": self.plan.model_dump(mode="json"), "shards": shards}
        return _sealed(body)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
            DamagedError: Anything else, or of another version.
        """
        body = _unsealed(text)
        try:
            plan = Plan.model_validate(body["plan"])
            shards = tuple(ShardFile.parse(name, num_bytes) for name, num_bytes in body["shards"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError("the manifest does not list shards") from error
        named = tuple(shard for shard in shards if shard is not None)
        if [shard.number for shard in named] != list(range(plan.num_shards)):
            raise DamagedError("the manifest does not list every shard")
        return cls(plan, named)


def plan_to_json(plan: Plan) -> str:
    """As text, for `plan_from_json`."""
    return _sealed({"schema_version": SCHEMA_VERSION, "plan": plan.model_dump(mode="json")})


def plan_from_json(text: str) -> Plan:
    """Reads what `plan_to_json` wrote.

    Raises:
        DamagedError: Anything else, or of another version.
    """
    body = _unsealed(text)
    try:
        return Plan.model_validate(body["plan"])
    except (KeyError, ValidationError) as error:
        raise DamagedError("no plan") from error


def shard_rows(num_rows: int, batch_size: int) -> int:
    """Rows per shard: whole canonical batches, at most 64 shards while shards hold at most 64 batches.

    Small sides get small shards, so that several workers have something to share; it depends on nothing that two
    fillers of one key could see differently.
    """
    unit = math.lcm(batch_size, _LEAST_SHARD_ROWS)
    return unit * min(max(1, -(-num_rows // (unit * _USUAL_SHARDS))), _MOST_BATCHES)


def shard_name(number: int, checksum: str) -> str:
    """The name of a finished shard."""
    return f"{number:06d}-{checksum}.arrow"


def lease_name(number: int) -> str:
    """The name of the claim on a shard."""
    return f"{number:06d}.lease"


def find_shards(folder: Path) -> dict[int, ShardFile]:
    """The finished shards of an entry by number; of two for one number the first by name."""
    found: dict[int, ShardFile] = {}
    for path in sorted(folder.glob("*.arrow"), reverse=True):
        try:
            shard = ShardFile.parse(path.name, path.stat().st_size)
        except FileNotFoundError:
            continue
        if shard:
            found[shard.number] = shard
    return found


def find_numbers(folder: Path) -> set[int]:
    """The numbers of the finished shards of an entry."""
    matches = (_SHARD_NAME.fullmatch(path.name) for path in folder.iterdir())
    return {int(match[1]) for match in matches if match}


def is_digest(name: str) -> bool:
    """Whether a folder of this name is an entry."""
    return _DIGEST.fullmatch(name) is not None


def _sealed(body: dict[str, Any]) -> str:
    return json.dumps({"body": body, "sha256": _checksum(body)}, indent=1, sort_keys=True)


def _unsealed(text: str) -> dict[str, Any]:
    try:
        sealed = json.loads(text)
        body: dict[str, Any] = sealed["body"]
        if body["schema_version"] != SCHEMA_VERSION:
            raise DamagedError(f"written by version {body['schema_version']} of the store, not {SCHEMA_VERSION}")
        is_whole = sealed["sha256"] == _checksum(body)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedError("not a file of the store") from error
    if not is_whole:
        raise DamagedError("altered since it was written")
    return body


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


Check = Literal["open", "touch"]
"""When a shard's checksum is verified: all when the entry is opened, or each when it is first read."""
