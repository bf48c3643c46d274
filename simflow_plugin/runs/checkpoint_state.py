"""Types of what `state.json` of a checkpoint holds beside its tensors; none of it is taken as another type."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0)]


class CheckpointState(BaseModel):
    """Plain values of a checkpoint; earlier versions lack some, and other packages may add theirs."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    step: Count
    format_version: Count
    num_tensors: dict[str, Count] = Field(default_factory=dict)
    run_id: str | None = None
    seconds: float = Field(0.0, ge=0)
    num_classes: Count | None = None
    class_names: list[str] | None = None
    num_images: Count | None = None
    feature_dim: Count | None = None
    autoencoder_options: dict[str, Any] | None = None
    corrupt_images: list[Count] = Field(default_factory=list)
    steps_since_log: Count = 0
    skipped_steps: Count = 0
    skipped_in_a_row: Count = 0
    bad_steps: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict
    )
    scaler: dict[str, float] | None = None


def check_state(state: dict[str, Any], step: int) -> str | None:
    """Return what is wrong with the content of `state.json` in the folder of `step`, or None."""
    try:
        found = CheckpointState.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        return f"state.json: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r:.80}"
    if found.format_version >= 2 and "num_tensors" not in state:
        return "state.json: num_tensors is missing"
    return None if found.step == step else f"state.json is of step {found.step}"
