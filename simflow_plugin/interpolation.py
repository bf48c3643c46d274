"""Images between two images of a trained run: along an arc between their noises, or a line between their latents."""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.evaluation.likelihood import draw_latents
from simflow_plugin.inputs import LabelledBatch
from simflow_plugin.runs.loaded_run import LoadedRun

NEARLY_PARALLEL = 1e-4
"""Radians. Below it, and this near to opposite, the arc is not told apart from the chord in float32."""


def images_between(loaded: LoadedRun, start: LabelledBatch, end: LabelledBatch, num: int) -> Tensor:
    """Return images on the way from each image of `start` to that of `end`, (B, num, 3, H, W) in [-1, 1], on the CPU.

    Args:
        loaded: the run; without a flow the way is a line between latents.
        start: images, and the classes of the way.
        end: as many images.
        num: of images on the way, both ends included.
    """
    model, labels = loaded.model, start.labels
    flow = None if model is None else model.token_flow()
    noise_std = 0.0 if model is None else model.noise_std
    ends = []
    with loaded.precision.active():
        for batch in (start, end):
            posterior = loaded.autoencoder.encode(batch.images)
            noise = batch.random.normal("posterior", posterior.mean.shape, loaded.device)
            ends.append(draw_latents(posterior, noise_std, noise))
        if flow is not None:
            ends = [flow(model.tokens(latents), labels).noise for latents in ends]  # type: ignore[union-attr, operator]
        first, last = ends
        way = []
        for share in torch.linspace(0, 1, num).tolist():
            point = torch.lerp(first, last, share) if flow is None else slerp(first, last, share)
            if flow is not None:
                point = model.latents(flow.inverse(point, labels))  # type: ignore[union-attr, operator]
            clean = point if model is None else model.remove_noise(point, labels)
            way.append(loaded.autoencoder.decode(clean).float().clamp(-1, 1).cpu())
    return torch.stack(way, dim=1)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Return sin((1 - t) w) / sin w * start + sin(t w) / sin w * end, w the angle between them, for each row.

    Args:
        start: (B, ...), noise.
        end: likewise.
        share: t in [0, 1]; 0 is `start`, 1 is `end`.
    Reference:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    one, other = (point.flatten(1).double() for point in (start, end))
    angle = torch.acos(torch.cosine_similarity(one, other, dim=1).clamp(-1, 1))[:, None]
    sine = angle.sin()
    is_line = sine < NEARLY_PARALLEL
    safe = torch.where(is_line, torch.ones_like(sine), sine)
    of_start = torch.where(is_line, torch.full_like(sine, 1 - share), ((1 - share) * angle).sin() / safe)
    of_end = torch.where(is_line, torch.full_like(sine, share), (share * angle).sin() / safe)
    return (of_start * one + of_end * other).to(start.dtype).view_as(start)
