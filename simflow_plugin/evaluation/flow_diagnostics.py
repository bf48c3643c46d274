"""Diagnostics of a flow: log-determinants by block, normality of its noise, Jacobi iterations of its inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simflow_plugin.errors import EvaluationError
from simflow_plugin.flow import TransformerFlow


@dataclass(frozen=True)
class FlowDiagnostics:
    """Log-determinants of real latents, and statistics of the noise they become.

    Args:
        logdet_per_dim: (K,), mean log-determinant of each block in training order, nats per latent dimension; the
            last one is the deep block.
        noise_mean: mean of the noise over images, tokens and channels; 0 if the flow is exact.
        noise_variance: likewise; 1.
        mean_by_token: (T,), raster order.
        variance_by_token: (T,).
        token_correlation: correlation of a token with the next one in raster order, mean over channels; 0.
        channel_correlation: mean absolute correlation of two channels of a token; 0 up to 1 / sqrt(B T).
    """

    logdet_per_dim: Tensor
    noise_mean: float
    noise_variance: float
    mean_by_token: Tensor
    variance_by_token: Tensor
    token_correlation: float
    channel_correlation: float


@torch.no_grad()
def diagnose_flow(
    flow: TransformerFlow, tokens: Tensor, labels: Tensor | None, batch_size: int = 256
) -> FlowDiagnostics:
    """Push real tokens to noise and look at the noise.

    Args:
        flow: in eval mode.
        tokens: (B, T, D), of held-out images; B at least 2.
        labels: (B,) int64, or None.
    Raises:
        EvaluationError: for fewer than two rows.
    """
    if len(tokens) < 2:
        raise EvaluationError(f"flow diagnostics: {len(tokens)} images; correlations need two at least.")
    outputs = []
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        outputs.append(flow(tokens[rows], None if labels is None else labels[rows]))
    noise = torch.cat([output.noise for output in outputs]).double()
    block_logdets = torch.cat([output.block_logdets for output in outputs], dim=1).double()
    dims = noise[0].numel()
    return FlowDiagnostics(
        logdet_per_dim=(block_logdets.mean(dim=1) / dims).cpu(),
        noise_mean=float(noise.mean()),
        noise_variance=float(noise.var()),
        mean_by_token=noise.mean(dim=(0, 2)).cpu(),
        variance_by_token=noise.transpose(1, 2).flatten(0, 1).var(dim=0).cpu(),
        token_correlation=_token_correlation(noise),
        channel_correlation=_channel_correlation(noise.flatten(0, 1)),
    )


def jacobi_iterations(
    flow: TransformerFlow, noise: Tensor, labels: Tensor | None, tolerances: Sequence[float]
) -> dict[float, list[int]]:
    """Return how many Jacobi iterations over the whole sequence each block takes to converge, by tolerance.

    Args:
        flow: in eval mode.
        noise: (B, T, D), standard normal: blocks are inverted in generation order, each on what the one before made.
        labels: (B,) int64, or None.
        tolerances: largest change of a token that counts as converged, relative to max(1, its size).
    Returns:
        tolerance -> iterations by block, in training order; T at most, which is what one token after the other takes.
    """
    found = {}
    for tolerance in tolerances:
        method = {"name": "jacobi", "segment": noise.shape[1], "tolerance": tolerance}
        _, statistics = flow.inverse(noise, labels, method=method, return_statistics=True)
        by_block = {block.block: max(block.iterations, default=0) for block in statistics.blocks}
        found[tolerance] = [by_block[block] for block in sorted(by_block)]
    return found


def _token_correlation(noise: Tensor) -> float:
    """Correlate neighbours in raster order, channel by channel, over images and positions."""
    if noise.shape[1] < 2:
        return 0.0
    first, second = noise[:, :-1].flatten(0, 1), noise[:, 1:].flatten(0, 1)  # (B (T - 1), D)
    first, second = first - first.mean(dim=0), second - second.mean(dim=0)
    scale = (first.square().sum(dim=0) * second.square().sum(dim=0)).sqrt().clamp(min=1e-300)
    return float(((first * second).sum(dim=0) / scale).mean())


def _channel_correlation(rows: Tensor) -> float:
    """Return the mean absolute correlation of different columns of rows (N, D)."""
    dims = rows.shape[1]
    if dims < 2:
        return 0.0
    correlation = torch.corrcoef(rows.T).nan_to_num()
    off_diagonal = ~torch.eye(dims, dtype=torch.bool, device=rows.device)
    return float(correlation[off_diagonal].abs().mean())
