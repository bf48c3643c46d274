"""Tiny third-party distributions, for tests of entry points."""

from pathlib import Path

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


def declare(site: Path, distribution: str, entry_points: str | bytes) -> None:
    """Write what an installed package leaves behind: its metadata, and its list of entry points."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    content = entry_points.encode() if isinstance(entry_points, str) else entry_points
    (info / "entry_points.txt").write_bytes(content)
