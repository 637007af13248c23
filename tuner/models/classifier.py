"""A saved model that says what pictures show.

Axes: N pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.models.model_file import ModelCard, load_card, load_network
from tuner.models.registry import fetched_model

if TYPE_CHECKING:
    import torch
    from torch import nn


class Classifier:
    """A saved model, ready to say what pictures show.

    Args:
        card: Its card.
        network: From normalised pictures to logits, on ``device``.
        device: Where it runs.
    """

    def __init__(self, card: ModelCard, network: nn.Module, device: torch.device) -> None:
        from trainables.data.batches import Normaliser

        self.card = card
        self._network = network
        self._normalise = Normaliser(card.mean, card.std, device)

    @classmethod
    def load(cls, location: str | Path, tracking_uri: str | None = None, device: str = "cpu") -> Classifier:
        """Opens a model's folder, or a ``models:/`` URI with the MLflow that knows it.

        Raises:
            InputError: There is no such model, or it is not Thaw's.
        """
        import torch

        folder = Path(location)
        if str(location).startswith("models:/"):
            if tracking_uri is None:
                raise ValueError(f"{location}: a registered model needs the address of its MLflow")
            with fetched_model(str(location), tracking_uri) as fetched:
                return cls.load(fetched, device=device)
        return cls(load_card(folder), load_network(folder, device), torch.device(device))

    def probabilities(self, images: Iterable[torch.Tensor], batch_size: int = 32) -> torch.Tensor:
        """What each picture shows: float32 [N, K], classes as in ``card.class_names``.

        Rows sum to 1 where a picture shows one class; where it shows several, each is a probability of its own.

        Args:
            images: uint8 [3, H, W] each, of any size; best decoded to ``card.stored_side_px``. Taken as needed.
            batch_size: Pictures at a time; changes speed and memory, not results beyond rounding.
        """
        import torch

        from trainables.data.views import eval_view

        parts = [torch.empty(0, len(self.card.class_names))]
        with torch.inference_mode():
            waiting = iter(images)
            while some := list(islice(waiting, batch_size)):
                views = [eval_view(image, self.card.image_size_px, self.card.fit) for image in some]
                logits = self._network(self._normalise(torch.stack(views))).float()
                parts.append((logits.softmax(dim=1) if self.card.labels == "single" else logits.sigmoid()).cpu())
        return torch.cat(parts)
