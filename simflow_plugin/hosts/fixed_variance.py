"""The host's own convolutional autoencoder with a fixed-variance posterior, q(z|x) = N(mean(x), sigma^2).

Parameters keep the host's names and shapes, so that its checkpoints load here and ours there: the half of the
moments that would be the log-variance is computed and not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from simflow_plugin.contracts import Posterior, PosteriorContext
from simflow_plugin.errors import HostError
from simflow_plugin.posteriors.fixed import FixedVarianceHead, FixedVarianceOptions

DEFAULT_STD = 0.5
PARTS = ("encoder", "quant_conv", "post_quant_conv", "decoder")


class FixedVarianceAutoencoder(nn.Module):
    """Called as the host calls its own: `vae(images)` -> (posterior, latents, reconstruction).

    Args:
        network: the host's autoencoder, whose parts are taken over.
        latent_channels: C.
        std: sigma > 0, in units of the raw latents.
    Raises:
        HostError: if the network does not have the parts of the pinned commit.
    Reference:
        SimFlow, arXiv:2512.04084.
    """

    encoder: nn.Module
    quant_conv: nn.Module
    post_quant_conv: nn.Module
    decoder: nn.Module

    def __init__(self, network: nn.Module, latent_channels: int, std: float = DEFAULT_STD) -> None:
        super().__init__()
        for name in PARTS:
            part = getattr(network, name, None)
            if part is None:
                raise HostError(
                    f"the host's {type(network).__name__} has no `{name}`; expected {', '.join(PARTS)}"
                )
            self.add_module(name, part)
        self.head = FixedVarianceHead(FixedVarianceOptions(std=std), PosteriorContext(latent_channels))

    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior of images (B, 3, H, W) in [-1, 1]; it has `kl()`, `mean` and `std`."""
        moments = self.quant_conv(self.encoder(images))
        return self.head(moments[:, : self.head.latent_channels])

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """Return an object whose `sample` is images (B, 3, H, W), not clamped."""
        return SimpleNamespace(sample=self.decoder(self.post_quant_conv(latents)))

    def forward(self, images: Tensor, return_recon: bool = True) -> tuple[Posterior, Tensor, Tensor | None]:
        """Return posterior, a sample of it (drawn as the host draws, from the global generator), reconstruction."""
        posterior = self.encode(images)
        latents = posterior.sample()
        return posterior, latents, self.decode(latents).sample if return_recon else None


@dataclass(frozen=True)
class FixedVarianceFactory:
    """An entry of the host's dictionary of autoencoders.

    Args:
        build: the host's own factory of the network.
        latent_channels: C.
        factor: pixels per latent pixel, along one side.
        std: sigma.
    """

    build: Callable[..., nn.Module]
    latent_channels: int
    factor: int
    std: float = DEFAULT_STD

    def __call__(self, **options: Any) -> FixedVarianceAutoencoder:
        return FixedVarianceAutoencoder(self.build(**options), self.latent_channels, self.std)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return (C, h, w) for square images of `resolution` pixels.

        Raises:
            HostError: if the factor does not divide it.
        """
        if resolution % self.factor:
            raise HostError(
                f"resolution {resolution} is not a multiple of the autoencoder's factor {self.factor}"
            )
        return (self.latent_channels, resolution // self.factor, resolution // self.factor)
