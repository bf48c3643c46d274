"""Export of a run's autoencoder to a safetensors file, a diffusers folder, or a file of the REPA-E host.

Latents are brought to zero mean and unit variance by channel, by statistics of z ~ q(z|x) over the training
split, unless the run's own normalisation is kept. Every model of a study thus sees latents of the same scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from simflow_plugin.contracts import ExportableAutoencoder
from simflow_plugin.convert.repa_e_export import write_repa_e
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import ConfigError, EvaluationError, RunDirectoryError
from simflow_plugin.files import check_new_folder, filling, replacing
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.weights import read_tensors

NUM_IMAGES = 5000


def export_autoencoder(loaded: LoadedRun, out: Path, num_images: int | None = NUM_IMAGES) -> dict[str, Any]:
    """Write the autoencoder of a run for `autoencoder.pretrained`, in one piece.

    Args:
        loaded: the run; its autoencoder's normalisation changes.
        out: a name that ends in `.safetensors` (layout `simflow`) or in `.pt` (layout of the REPA-E host, with
            `NAME-latents-stats.pt` beside it), or a new folder (a diffusers AutoencoderKL).
        num_images: of the training split, drawn at random, for the statistics; None keeps the normalisation of the run.
    Returns:
        The options of an autoencoder that read it back, frozen.
    Raises:
        ConfigError: if `out` is neither.
        EvaluationError: if the autoencoder is not an `ExportableAutoencoder`.
        WeightsError: if diffusers cannot express its posterior.
        RunDirectoryError: if `out` cannot be written, or is a folder that holds something.
    """
    autoencoder = loaded.autoencoder
    if not isinstance(autoencoder, ExportableAutoencoder):
        raise EvaluationError(
            f"{loaded.directory.path}: the autoencoder `{loaded.config.autoencoder.name}` cannot be exported: it lacks "
            "fit_normalization, to_diffusers or options_to_load (ExportableAutoencoder in simflow_plugin.contracts)."
        )
    layout = _layout(out)
    if layout == "diffusers":
        check_new_folder(out)
    if layout != "simflow":
        autoencoder.to_diffusers()  # refuses now what it cannot express, before the images are encoded
    if num_images is not None:
        autoencoder.fit_normalization(*latent_mean_and_std(loaded, num_images))
    if layout == "simflow":
        tensors = {
            name: tensor.cpu().contiguous() for name, tensor in loaded.autoencoder.state_dict().items()
        }
        with replacing(out, RunDirectoryError) as part:
            save_file(tensors, part)
    elif layout == "repa-e":
        write_repa_e(autoencoder.to_diffusers(), out)
    else:
        with filling(out) as part:
            autoencoder.to_diffusers().save_pretrained(part)
    return autoencoder.options_to_load(out)


def _layout(out: Path) -> Literal["simflow", "repa-e", "diffusers"]:
    """Return the layout that a name asks for.

    Raises:
        ConfigError: if it asks for none, or a folder has a file's ending.
    """
    if out.suffix in (".safetensors", ".pt"):
        if out.is_dir():
            raise ConfigError(f"--out {out}: is a folder. Name a file, or a folder without that ending.")
        return "simflow" if out.suffix == ".safetensors" else "repa-e"
    if out.suffix or out.is_file():
        raise ConfigError(
            f"--out {out}: expected a file name that ends in .safetensors, or in .pt for the REPA-E host's layout, or "
            "the name of a folder, without a dot in it, for diffusers' layout."
        )
    return "diffusers"


@torch.no_grad()
def latent_mean_and_std(loaded: LoadedRun, num_images: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation by channel, (C,) each, of z ~ q(z|x) over training images."""
    train = build_dataset(loaded.config, "train")
    channels = loaded.autoencoder.latent_channels
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    rows = sample_rows(len(train), num_images)
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
    scale = read_tensors(path)["latent_scale"].flatten()
    return [round(std / value, 6) for value in scale.tolist()]
