"""Options of the guidance rules of diffusion models: the times in which guidance acts."""

from __future__ import annotations

from pydantic import Field, field_validator

from simflow_plugin.options import Options
from simflow_plugin.registry import DIFFUSION_GUIDANCE


@DIFFUSION_GUIDANCE.declare("classifier_free", "simflow_plugin.diffusion.guidance.classifier_free")
class GuidanceOptions(Options):
    """Times in which guidance acts; shared by all rules."""

    interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="[low, high] in t, both included, in which guidance acts; 0 is data, 1 is noise",
    )

    @field_validator("interval")
    @classmethod
    def _interval_is_valid(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(
                f"interval is {list(value)}, but it must lie in [0, 1] with low < high (t = 0 is data, t = 1 is "
                "noise); [0, 1] guides everywhere"
            )
        return value
