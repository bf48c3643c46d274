"""A tiny third-party distribution, for tests of entry points."""

MODEL_SOURCE = '''
import torch
from simflow_plugin.contracts import GenerativeModel
from simflow_plugin.options import Options


class GaussianOptions(Options):
    std: float = 1.0


class Gaussian(GenerativeModel):
    """p(z) = N(b, std^2): the smallest model there is."""

    Options = GaussianOptions

    def __init__(self, options, context):
        super().__init__()
        self.std = options.std
        self.bias = torch.nn.Parameter(torch.zeros(context.latent_shape))

    def training_losses(self, latents, labels, features, random):
        return {"denoising": ((latents - self.bias) ** 2).mean()}

    def sample(self, labels, shape, guidance, random):
        return self.bias + self.std * random.normal("noise", shape, self.bias.device)
'''
