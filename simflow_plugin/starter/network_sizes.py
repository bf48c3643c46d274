"""Sizes of a first run by image size and device.

The autoencoder halves the image until its latents are 8 x 8 (16 x 16 from 256 pixels on). The weight of the
reconstruction follows from the ELBO of a Gaussian decoder of standard deviation 0.22 in [-1, 1], with beta 1 per latent
dimension: 3 f^2 / C pixels' values per latent dimension, over 2 x 0.22^2, about 10 x 3 f^2 / C.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from simflow_plugin.errors import ConfigError
from simflow_plugin.starter.folder_facts import FolderFacts

IMAGE_SIZES = (16, 32, 64, 128, 256)
LARGEST = {"cpu": 32, "cuda": 128}
"""Image size that is chosen at most; a larger one is asked for with --image-size."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    Args:
        image_size: pixels.
        factor, latent_channels, widths: of the autoencoder.
        width, layers_per_block, patch_size: of the flow.
        batch_size: images.
    """

    image_size: int
    factor: int
    latent_channels: int
    widths: tuple[int, ...]
    width: int
    layers_per_block: tuple[int, ...]
    patch_size: int
    batch_size: int

    @property
    def reconstruction_weight(self) -> float:
        return 10.0 * 3 * self.factor**2 / self.latent_channels

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.factor // self.patch_size) ** 2


def choose_image_size(facts: FolderFacts, device_type: str) -> int:
    """Return the largest size that the typical image fills and this device trains in minutes."""
    limit = min(statistics.median(facts.short_sides), LARGEST.get(device_type, LARGEST["cpu"]))
    return max((size for size in IMAGE_SIZES if size <= limit), default=IMAGE_SIZES[0])


def choose_sizes(image_size: int, num_train: int, device_type: str) -> Sizes:
    """Return sizes that learn something within minutes on the device.

    Raises:
        ConfigError: for an image size that is not of `IMAGE_SIZES`.
    """
    if image_size not in IMAGE_SIZES:
        raise ConfigError(f"--image-size {image_size}: expected one of {', '.join(map(str, IMAGE_SIZES))}.")
    has_gpu = device_type == "cuda"
    factor = min(image_size // 8, 16)
    num_levels = factor.bit_length()
    base = 64 if has_gpu else 16
    widths = tuple(base * min(2**level, 4) for level in range(num_levels))
    batch_size = min(64 if has_gpu else 32, num_train)
    flow: dict[str, Any] = {"width": 192, "layers_per_block": (1, 1, 4), "patch_size": 2}
    if image_size == 16 and not has_gpu:
        flow["width"] = 96
    if has_gpu:
        flow = {"width": 512, "layers_per_block": (2, 2, 8), "patch_size": 1}
    return Sizes(image_size, factor, min(2 * factor, 32), widths, batch_size=batch_size, **flow)
