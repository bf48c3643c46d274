"""Conditioning of a block on labels or features: as prefix tokens, added to every token, or by adaLN."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.flow.adaln import LayerModulation
from simflow_plugin.flow.architecture import FlowConfig
from simflow_plugin.randomness import Random


class Embedding(NamedTuple):
    """A condition as one block sees it; at most one of the three is there.

    `prefix` (B, P, width): tokens in front. `added` (B, 1, width): to every token. `modulations`: adaLN's vectors,
    one `LayerModulation` a layer.
    """

    prefix: Tensor | None = None
    added: Tensor | None = None
    modulations: tuple[LayerModulation, ...] | None = None

    @property
    def num_prefix(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]


class LabelEmbedding(nn.Module):
    """Labels (B,) -> embeddings (B, 1, width); `NO_LABEL` rows get the null embedding."""

    def __init__(self, num_classes: int, width: int, null_label: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        has_null_row = null_label == "learned"
        self.table = nn.Parameter(torch.randn(num_classes + has_null_row, width) * 0.02)

    def forward(self, labels: Tensor) -> Tensor:
        # torch.where instead of a test: no branch that depends on data, so no wait for a GPU.
        is_null = (labels == NO_LABEL)[:, None]
        has_null_row = len(self.table) > self.num_classes
        null = self.table[-1] if has_null_row else self.table.mean(dim=0)
        rows = torch.where(is_null, null, self.table[labels.clamp(min=0)])
        return rows[:, None]


class FeatureEmbedding(nn.Module):
    """Condition features (B, L, F) -> prefix tokens (B, L, width)."""

    def __init__(self, condition_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(condition_dim, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features.to(self.proj.weight.dtype))


def make_embedding(config: FlowConfig) -> nn.Module | None:
    """Return the module that embeds this flow's condition, or None for an unconditional flow."""
    if config.num_classes is not None:
        return LabelEmbedding(config.num_classes, config.width, config.null_label)
    if config.condition_dim is not None:
        return FeatureEmbedding(config.condition_dim, config.width)
    return None


def drop_labels(labels: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """Return labels with `NO_LABEL` where uniform < probability: classifier-free training.

    Args:
        labels: (B,) int64.
        uniform: (B,) in [0, 1), drawn by the caller.
        probability: in [0, 1].
    """
    return torch.where(uniform < probability, NO_LABEL, labels)


def drop_at_random(labels: Tensor | None, probability: float, random: Random) -> Tensor | None:
    """Return `drop_labels` of labels (B,), by numbers drawn as `label_dropout`; None stays None."""
    if labels is None or probability == 0:
        return labels
    uniform = random.uniform("label_dropout", (len(labels),), labels.device)
    return drop_labels(labels, uniform, probability)
