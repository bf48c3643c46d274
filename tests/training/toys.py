"""The smallest parts that keep the contracts: a linear autoencoder and linear models, in closed form."""

import math

import torch
from torch import nn

from simflow_plugin.contracts import Autoencoder, GenerativeModel
from simflow_plugin.posteriors.gaussian import FixedVariancePosterior


class LinearAutoencoder(Autoencoder):
    """A per-pixel linear map between 3 image channels and 3 latent channels; counts its calls."""

    def __init__(self, trainable: str = "full", std: float = 0.5) -> None:
        super().__init__()
        self.factor, self.latent_channels, self.trainable, self.std = 1, 3, trainable, torch.tensor(std)
        self.encoder = nn.Conv2d(3, 3, 1, bias=False)
        self.decoder = nn.Conv2d(3, 3, 1, bias=False)
        self.calls = {"encode": 0, "decode": 0}
        self.encoder.requires_grad_(trainable == "full")
        self.decoder.requires_grad_(trainable != "none")

    @classmethod
    def identity(cls, std: float = 0.5):
        """Latents whose means are the images."""
        autoencoder = cls(std=std)
        for layer in (autoencoder.encoder, autoencoder.decoder):
            layer.weight = nn.Parameter(torch.eye(3)[:, :, None, None])
        return autoencoder

    def encode(self, images):
        self.calls["encode"] += 1
        return FixedVariancePosterior(self.encoder(images), self.std)

    def decode(self, latents):
        self.calls["decode"] += 1
        return self.decoder(latents)

    def last_layer(self):
        return self.decoder.weight


class LinearModel(GenerativeModel):
    """Hidden tokens a * z; one term of its own and one alignment term; counts its calls."""

    def __init__(self, own_term: str = "nll") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.own_term = own_term
        self.calls = 0

    def training_losses(self, latents, labels, features, random):
        self.calls += 1
        hidden = self.scale * latents
        terms = {self.own_term: 0.5 * (hidden**2).mean()}
        if features is not None:
            terms["alignment"] = (hidden * features).mean()
        return terms

    def sample(self, labels, shape, guidance, random):
        return random.normal("noise", shape) / self.scale


class CoupledModel(LinearModel):
    """As SimFlow: both terms reach the autoencoder."""

    coupled_terms = frozenset({"nll", "alignment"})


class AlignmentCoupledModel(LinearModel):
    """As SiT with REPA-E: only the alignment reaches it."""

    coupled_terms = frozenset({"alignment"})

    def __init__(self) -> None:
        super().__init__("denoising")


class DetachedModel(LinearModel):
    """As STARFlow on a frozen autoencoder: nothing reaches it."""

    def __init__(self) -> None:
        super().__init__("nll")


class DensityOnly(GenerativeModel):
    """A model that is neither trained nor sampled from."""

    def training_losses(self, latents, labels, features, random):
        raise AssertionError

    def sample(self, labels, shape, guidance, random):
        raise AssertionError


class StandardNormal(DensityOnly):
    """p(z) = N(0, I)."""

    def log_prob(self, latents, labels):
        return -0.5 * (latents.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
