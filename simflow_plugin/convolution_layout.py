"""Memory layout of images before convolutions: channels last on a CPU, where oneDNN is faster on it."""

from __future__ import annotations

import torch
from torch import Tensor


def convolution_layout(images: Tensor) -> Tensor:
    """Return `images` (B, C, H, W) in the layout in which convolutions of this device are fast; values are the same.

    Channels last on a CPU: the layers after it keep the layout, so that one copy of the input serves a whole network,
    and depthwise convolutions run several times as fast. Weights stay as they are (a checkpoint holds plain tensors).
    As given on other devices. On CUDA the group norms of an autoencoder return the plain layout, whatever they get, so
    that the next convolution would have to change it again; nothing was measured there.
    """
    if images.device.type != "cpu":
        return images
    return images.contiguous(memory_format=torch.channels_last)
