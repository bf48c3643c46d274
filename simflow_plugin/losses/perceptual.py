"""Base of perceptual losses: a frozen backbone that is not trained, averaged or saved."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PerceptualLoss(nn.Module, ABC):
    """Base: a distance of frozen features, in float32 and in evaluation mode whatever the loop does."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Return a float32 scalar, the mean over the batch.

        Args:
            reconstruction: (B, 3, H, W), about [-1, 1].
            images: (B, 3, H, W), [-1, 1].
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._distance(reconstruction.float(), images.float())

    @abstractmethod
    def _distance(self, reconstruction: Tensor, images: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode: dropout and batch statistics would change the distance."""
        return super().train(False)


def freeze(module: nn.Module) -> nn.Module:
    """Turn all parameters and buffers of `module` into constants: buffers that no state dict contains.

    They follow the module to its device, have no gradient, and cost a checkpoint nothing: a frozen
    backbone is found again by its path. Changes `module`, and returns it.
    """
    for part in module.modules():
        tensors = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
        for name, tensor in tensors.items():
            delattr(part, name)
            part.register_buffer(name, tensor.detach(), persistent=False)
    return module.eval()
