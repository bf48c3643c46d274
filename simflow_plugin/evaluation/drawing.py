"""Draw images from a model: by index, so that each one can be drawn again alone, in any batch, on any process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL, Autoencoder, GenerativeModel
from simflow_plugin.randomness import IndexedRandom


def balanced_labels(num_samples: int, num_classes: int | None) -> Tensor:
    """Return labels (num_samples,), classes in turn: 0, 1, ..., K - 1, 0, 1, ...; `NO_LABEL` without classes."""
    if num_classes is None:
        return torch.full((num_samples,), NO_LABEL, dtype=torch.int64)
    return torch.arange(num_samples) % num_classes


def to_uint8(images: Tensor) -> Tensor:
    """Turn images (B, 3, H, W) in [-1, 1] into uint8 (B, H, W, 3) in [0, 255]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


@torch.no_grad()
def draw_images(
    autoencoder: Autoencoder,
    model: GenerativeModel,
    indices: Sequence[int],
    labels: Tensor,
    guidance: float,
    seed: int,
    image_size: int,
) -> Tensor:
    """Draw the samples with the given indices.

    Args:
        indices: of the samples; sample i is a function of (seed, i, its label, guidance) only.
        labels: (len(indices),) int64.
        guidance: weight w >= 0.
        seed: of the noise.
    Returns:
        (len(indices), 3, H, W) in [-1, 1], on the CPU.
    """
    device = next(autoencoder.parameters()).device
    shape = (len(indices), *autoencoder.latent_shape(image_size))
    known = labels.to(device) if bool((labels != NO_LABEL).any()) else None
    latents = model.sample(known, shape, guidance, IndexedRandom(seed, tuple(indices)))
    return autoencoder.decode(latents).clamp(-1, 1).cpu()


def draw_many(
    autoencoder: Autoencoder,
    model: GenerativeModel,
    labels: Tensor,
    guidance: float,
    seed: int,
    image_size: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Draw samples 0 .. len(labels) - 1 in batches; `advance` is told how many were done.

    Returns:
        uint8 (N, H, W, 3).
    """
    done = []
    for start in range(0, len(labels), batch_size):
        rows = range(start, min(start + batch_size, len(labels)))
        done.append(
            to_uint8(
                draw_images(
                    autoencoder, model, rows, labels[rows.start : rows.stop], guidance, seed, image_size
                )
            )
        )
        advance(len(rows))
    return torch.cat(done)
