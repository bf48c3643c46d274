"""Options of `training.ema`: which average of the weights a run keeps, to sample from and to measure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from simflow_plugin.options import Options

LONGEST = 12**-0.5
"""The relative length of the plain mean over all steps; power functions are shorter."""

Length = Annotated[float, Field(gt=0, lt=LONGEST)]


class AverageOptions(Options):
    """Options that all averages share."""

    includes_autoencoder: bool | None = Field(
        None,
        description="average the trained autoencoder too. null: yes, but where only the alignment moves it (SiT and "
        "DiT with REPA-E): that host keeps no average of its VAE",
    )


class ExponentialAverage(AverageOptions):
    """average <- d average + (1 - d) weights, after each optimizer step."""

    kind: Literal["exponential"] = Field("exponential", description="exponential moving average; the default")
    decay: float = Field(0.9999, ge=0, lt=1, description="d, per optimizer step")
    warmup: bool = Field(
        True,
        description="d is min(decay, (1 + step) / (10 + step)), which rules the first 9 / (1 - decay) steps, 90,000 at "
        "0.9999: until then the average is over about a ninth of the run so far. false: as in the REPA-E host, where "
        "the random initialisation fades by `decay` only",
    )


class PowerAverage(AverageOptions):
    """Power functions of the step (EDM2, arXiv:2312.02696): a length is a share of the run, whatever its duration.

    Snapshots are kept for good, from which an average of any length is made afterwards (`--ema-length`).
    """

    kind: Literal["power"] = Field(description="power functions of the step, of several lengths")
    lengths: tuple[Length, ...] = Field(
        (0.05, 0.1),
        min_length=2,
        max_length=3,
        description="relative lengths kept, standard deviation of the profile over steps done; grids and reports show "
        "the first",
    )
    snapshot_every: int = Field(
        5000, gt=0, description="steps; each snapshot holds every length, float32, in averages/ of the run"
    )

    @model_validator(mode="after")
    def _lengths_differ(self) -> PowerAverage:
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError("lengths must differ from each other")
        return self


def _with_kind(value: Any) -> Any:
    return {"kind": "exponential", **value} if isinstance(value, dict) else value


def from_earlier_keys(training: Any) -> Any:
    """Return the raw section `training` with `ema_decay`, its name in version 0.1.0, as `ema.decay`.

    Raises:
        ValueError: if both are given.
    """
    if not isinstance(training, dict) or "ema_decay" not in training:
        return training
    if "ema" in training:
        raise ValueError("ema_decay is the earlier name of ema.decay: give one of them")
    values = dict(training)
    values["ema"] = {"decay": values.pop("ema_decay")}
    return values


Average = Annotated[
    ExponentialAverage | PowerAverage, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
