"""From an autoencoder's run to one file that other runs start from: averaged weights, normalised latents.

Latents are brought to zero mean and unit variance by channel, by statistics of z ~ q(z|x) over the training
split. Every model of a study thus sees latents of the same scale.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.data.cache import write_atomically
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.engine.loaded_run import LoadedRun
from simflow_plugin.engine.parts import build_dataset
from simflow_plugin.errors import EvaluationError
from simflow_plugin.randomness import IndexedRandom

NUM_IMAGES = 5000


def export_autoencoder(loaded: LoadedRun, path: Path, num_images: int = NUM_IMAGES) -> None:
    """Write the autoencoder of a run to a file for `autoencoder.pretrained`, in the layout `simflow`.

    Args:
        loaded: the run; its autoencoder's normalisation changes.
        path: `.safetensors`, written in one piece.
        num_images: the first ones of the training split, for the statistics.
    Raises:
        EvaluationError: if the autoencoder has no normalisation of its own.
    """
    autoencoder = loaded.autoencoder
    if not isinstance(autoencoder, KLAutoencoder):
        raise EvaluationError(
            f"{loaded.directory.path}: only autoencoders of the kind `kl` can be exported, not "
            f"`{loaded.config.autoencoder.name}`."
        )
    mean, std = latent_mean_and_std(loaded, num_images)
    autoencoder.fit_normalization(mean, std)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in autoencoder.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: save_file(tensors, target))


@torch.no_grad()
def latent_mean_and_std(loaded: LoadedRun, num_images: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation by channel, (C,) each, of z ~ q(z|x) over training images."""
    train = build_dataset(loaded.config, "train")
    channels = loaded.autoencoder.latent_channels
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    rows = range(min(num_images, len(train)))
    for batch in evaluation_batches(train, loaded.config.sampling.batch_size, rows):
        posterior = loaded.autoencoder.encode(batch.images.to(loaded.device))
        random = IndexedRandom(loaded.config.seed, tuple(batch.indices.tolist()))
        noise = random.normal("export", posterior.mean.shape, loaded.device)
        latents = posterior.sample(noise=noise).double().cpu()
        total += latents.sum((0, 2, 3))
        squares += latents.square().sum((0, 2, 3))
        count += latents[:, 0].numel()
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=1e-12).sqrt().float()


def std_before_scaling(path: Path, std: float) -> list[float]:
    """Return by channel the standard deviation in the encoder's own space that is `std` after normalisation."""
    scale = load_file(path)["latent_scale"].flatten()
    return [round(std / value, 6) for value in scale.tolist()]
