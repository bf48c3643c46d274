"""Checks of the inputs of a flow: shapes, ranges and NaN, each with a message that names the tensor.

Checks that read values would make the host wait for a GPU, so during training they run for CPU tensors only;
`log_prob`, `inverse` and `sample` always run them. Meta tensors have no values: compute is counted on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.flow.architecture import FlowConfig
from simflow_plugin.guided_by_weaker import check_facts


def check_tokens(tokens: Tensor, config: FlowConfig, name: str, reads_values: bool) -> None:
    """Raise ShapeError unless `tokens` is floating (B, T, D) of this flow, and finite if values are read."""
    expected = (config.num_tokens, config.token_dim)
    if tokens.dim() != 3 or tuple(tokens.shape[1:]) != expected or not tokens.is_floating_point():
        raise ShapeError(
            f"{name}: found {tuple(tokens.shape)} of {tokens.dtype}, expected floating (B, {expected[0]}, "
            f"{expected[1]}): a grid of {config.grid_size[0]} x {config.grid_size[1]} tokens; see patchify"
        )
    if reads_values and not tokens.is_meta and not bool(torch.isfinite(tokens).all()):
        bad = int((~torch.isfinite(tokens)).flatten(1).any(dim=1).sum())
        raise ShapeError(
            f"{name}: NaN or infinite values in {bad} of {len(tokens)} rows; expected finite numbers"
        )


def check_labels(labels: Tensor, num_rows: int, config: FlowConfig, reads_values: bool) -> None:
    """Raise ShapeError unless `labels` is int64 (B,) in [0, num_classes) or NO_LABEL and the flow has any."""
    if not isinstance(labels, Tensor):
        raise ShapeError(
            f"labels: found a {type(labels).__name__}, expected a tensor ({num_rows},) of torch.int64"
        )
    if config.num_classes is None:
        raise ShapeError("labels: this flow has no labels (num_classes is None); leave them out")
    if labels.shape != (num_rows,) or labels.dtype != torch.int64:
        raise ShapeError(
            f"labels: found {tuple(labels.shape)} of {labels.dtype}, expected ({num_rows},) of torch.int64"
        )
    if reads_values and labels.numel() and not labels.is_meta:
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < NO_LABEL or high >= config.num_classes:
            raise ShapeError(
                f"labels: found values from {low} to {high}, expected 0 to {config.num_classes - 1}, or "
                f"{NO_LABEL} for none"
            )


def check_condition(
    features: Tensor,
    num_rows: int,
    config: FlowConfig,
    name: str,
    reads_values: bool,
    length: int | None = None,
) -> None:
    """Raise ShapeError unless `features` is (num_rows, length, condition_dim), finite if values are read.

    A length of None is that of the configuration, which may be any.
    """
    if config.condition_dim is None:
        raise ShapeError(
            f"{name}: this flow takes no condition features (condition_dim is None); leave them out"
        )
    length = config.condition_length if length is None else length
    is_right = (
        features.dim() == 3
        and features.shape[0] == num_rows
        and features.shape[2] == config.condition_dim
        and (length is None or features.shape[1] == length)
    )
    if not is_right:
        raise ShapeError(
            f"{name}: found {tuple(features.shape)}, expected ({num_rows}, {length or 'L'}, "
            f"{config.condition_dim})"
        )
    if reads_values and not features.is_meta and not bool(torch.isfinite(features).all()):
        raise ShapeError(f"{name}: NaN or infinite values; expected finite numbers")


def check_guide(guide: FlowConfig, flow: FlowConfig) -> None:
    """Raise ConfigError unless a flow can guide another: same tokens, condition, number and order of blocks."""
    names = (
        *("token_dim", "grid_size", "patch_size", "condition_dim", "num_classes"),
        *("num_blocks", "first_order", "start_token", "scale"),
    )
    check_facts(*({name: getattr(config, name) for name in names} for config in (guide, flow)))
    if flow.scale == "unit":
        raise ConfigError(
            "autoguidance: scale `unit` keeps its spread in the prior, where no rule reaches it"
        )
