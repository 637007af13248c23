"""How fast and how exactly trials compute, as the section ``compute`` of a spec says it.

In: a mapping. Out: `ComputeSpec`, which may leave choices to be measured; with what was measured, the `ComputeConfig`
that trials take. Who measures is no matter of this module.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from search_spaces.ranges import Count, SpecPart, at_most
from trainables.config import ComputeConfig

PrecisionOrAuto = Literal["fp32", "bf16", "auto"]


class ComputeSpec(SpecPart):
    """Choices of speed and rounding, not of method; 'auto' takes what is fastest, measured before the first trial.

    A few steps of the network are timed where trials will run. The choice is told, stands in the sweep's own copy of
    the spec, so that it holds for every trial and whoever goes on with the sweep, and the times are remembered in
    Thaw's home. The defaults stay unless something else is at least 10% faster.
    """

    precision: PrecisionOrAuto = Field("fp32", description="Of the trained part: fp32, bf16 (autocast) or auto.")
    prefix_precision: PrecisionOrAuto = Field("fp32", description="Of the frozen part: fp32, bf16 (autocast) or auto.")
    channels_last: Literal[True, False, "auto"] = Field(
        True, description="Memory layout of pictures and weights: true, false or auto."
    )
    prefix_batch_size: Annotated[Count, at_most(1024)] = Field(
        32, description="The frozen part always runs in batches of this size, the last one padded."
    )

    @property
    def is_open(self) -> bool:
        """Whether something is still to be measured."""
        return "auto" in (self.precision, self.prefix_precision, self.channels_last)

    def without_auto(self, chosen: ComputeConfig | None = None) -> ComputeConfig:
        """What trials take, with the values of ``chosen`` (default: the defaults) in the place of 'auto'."""
        chosen = chosen or ComputeConfig()
        fixed = {name: value for name, value in self.model_dump().items() if value != "auto"}
        return chosen.model_copy(update=fixed)
