"""What the bits of a stored feature depend on, and nothing else, as one hash.

In: the settings of a trial, the frozen part it stands on, and the machine that computes. Out: a ``FeatureKey``. What
does not decide a bit has no field here: head, learning rate, paths, the order of training, the number of workers.
No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from trainables.config import AugmentationConfig, Fit, PolicyName, Precision, Settings, TrialConfig

# Raised whenever this project's own arithmetic gives other bits (views, normalisation, the prefix's batches), or the
# files look different: what older versions stored is then never found again.
SCHEMA_VERSION = 3


class ViewKey(Settings):
    """Which view of each picture; only what `views.view` reads under the policy."""

    policy: PolicyName
    magnitude: int | None = Field(description="None where it has no effect.")
    seed: int | None = Field(description="None where the policy draws nothing.")
    index: int = Field(ge=0)

    @classmethod
    def of(cls, policy: AugmentationConfig, index: int) -> ViewKey:
        """View ``index`` under ``policy``; how many views there are does not change any of them."""
        if policy.policy == "none":
            return cls(policy="none", magnitude=None, seed=None, index=0)
        return cls(policy=policy.policy, magnitude=policy.effective_magnitude, seed=policy.seed, index=index)


class FrozenPart(Settings):
    """The prefix: which network, cut where, with which tensors and operations, fed with which numbers."""

    backbone: str
    cut: tuple[str, ...] = Field(description="Names of the frozen stages, in order.")
    program: str = Field(description="SHA-256 of the operations: the same tensors can be put to other uses.")
    prefix_hash: str = Field(description="SHA-256 of the tensors.")
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Machine(Settings):
    """What rounds: other kernels, instruction sets and libraries give other bits."""

    device: Literal["cpu", "cuda"]
    processor: str = Field(description="Of the CPU: model and instruction sets. Of the GPU: its name.")
    threads: int = Field(ge=0, description="They decide how sums are cut up; 0 on a GPU, where they do not.")
    software: tuple[tuple[str, str], ...] = Field(description="Libraries and their versions, sorted.")
    numerics: tuple[tuple[str, str], ...] = Field(description="Switches that allow other arithmetic, sorted.")


class FeatureKey(Settings):
    """Everything that decides the stored features of one side of the split, for one view and one cut."""

    schema_version: int = SCHEMA_VERSION
    table: str = Field(description="Fingerprint of the image table.")
    rows: str = Field(description="`rows_digest` of the pictures, in the order of their positions.")
    view: ViewKey
    input_size_px: int = Field(ge=1)
    fit: Fit = "crop"
    frozen: FrozenPart
    dtype: Precision = Field(description="Precision of the prefix, and of what is stored.")
    batch_size: int = Field(ge=1, description="The prefix's canonical batch.")
    channels_last: bool = Field(description="Memory layout of the prefix.")
    machine: Machine

    @classmethod
    def of(  # noqa: D417
        cls,
        config: TrialConfig,
        *,
        rows: str,
        policy: AugmentationConfig,
        view_index: int,
        frozen: FrozenPart,
        machine: Machine,
    ) -> FeatureKey:
        """The key of what ``config``'s frozen part makes of some pictures.

        Args:
            rows: See `rows_digest`.
            policy: The trial's own for training, ``none`` for evaluation.
            view_index: See `views.view_index`.
        """
        return cls(
            table=config.data.fingerprint,
            rows=rows,
            view=ViewKey.of(policy, view_index),
            input_size_px=config.data.image_size_px,
            fit=config.data.fit,
            frozen=frozen,
            dtype=config.compute.prefix_precision,
            batch_size=config.compute.prefix_batch_size,
            channels_last=config.compute.channels_last,
            machine=machine,
        )

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: the name of the entry in the store."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def rows_digest(ids: Iterable[bytes | str]) -> str:
    """SHA-256 over content ids in the order of their positions.

    Args:
        ids: SHA-256 of each picture file as hexadecimal text.
    """
    digest = hashlib.sha256()
    for content_id in ids:
        text = content_id if isinstance(content_id, str) else bytes(content_id).decode("ascii")
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()
