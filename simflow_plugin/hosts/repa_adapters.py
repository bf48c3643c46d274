"""Adapters for sihyun-yu/REPA at 67f7145: STARFlow on the host's frozen, precomputed latents.

The host keeps its loss in a class of its own and never trains its autoencoder, so there is no SimFlow here. The
patched loss hands over to a model that `computes_own_losses`. `simflow patch repa` inserts the look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.hosts.hosted_flow import FlowKind, HostArguments, HostedFlow, flow_kinds, sample

LATENT_CHANNELS = 4
"""Of the one autoencoder that this host uses (SD-VAE), which it does not pass to the factory."""
CLASS_DROPOUT = 0.1
"""The host's own, which `--cfg-prob` only switches on."""


class RepaFlow(HostedFlow):
    """STARFlow as a model of REPA.

    Args:
        kind: family, size and patch.
        use_cfg: whether labels are dropped in training, the host's `--cfg-prob`.
        arguments: the host's other keywords, see `HostArguments`.
    Raises:
        HostError: if they do not fit each other.
    """

    computes_own_losses = True

    def __init__(self, kind: FlowKind, *, use_cfg: bool, **arguments: Any) -> None:
        dropout = CLASS_DROPOUT if use_cfg else 0.0
        super().__init__(
            kind, HostArguments(in_channels=LATENT_CHANNELS, class_dropout_prob=dropout, **arguments)
        )

    def forward(self, x: Tensor, y: Tensor, zs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the host's loss returns: its main loss and the alignment.

        Args:
            x: (N, 4, h, w), latents that the host normalised.
            y: (N,) int64.
            zs: (N, L, F) of each encoder.
        Returns:
            The NLL (N,), nats per latent dimension; the alignment, a scalar.
        """
        uniform = torch.rand(len(x), device=x.device)
        losses = self.losses(x, y, zs, uniform, torch.randn_like(x))
        return losses.nll, losses.alignment


def add_models(models: dict[str, Callable[..., nn.Module]]) -> None:
    """Add `STARFlow-B/1` and the others to the host's dictionary (entry point in `repa.models`)."""
    for kind in flow_kinds():
        if kind.family == "STARFlow":
            models.setdefault(kind.name, partial(RepaFlow, kind))


def add_samplers(samplers: dict[type, Callable[..., Tensor]]) -> None:
    """Add our sampler to the patched host's dictionary, model class -> sampler (`repa.samplers`)."""
    samplers.setdefault(RepaFlow, sample)
