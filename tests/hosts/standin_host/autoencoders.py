"""The stand-in's autoencoder: one convolution each way, with the parts that the real host names."""

from types import SimpleNamespace

import torch
from torch import nn


class Posterior:
    def __init__(self, moments):
        self.mean, self.logvar = moments.chunk(2, dim=1)

    def sample(self):
        return self.mean + (0.5 * self.logvar).exp() * torch.randn_like(self.mean)

    def kl(self):
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum((1, 2, 3))


class ConvVae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 8, stride=8)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.decoder = nn.ConvTranspose2d(4, 3, 8, stride=8)

    def decode(self, z):
        return SimpleNamespace(sample=self.decoder(self.post_quant_conv(z)))

    def forward(self, x, return_recon=True):
        posterior = Posterior(self.quant_conv(self.encoder(x)))
        z = posterior.sample()
        return posterior, z, self.decode(z).sample if return_recon else None


VAES = {"f8d4": ConvVae}
