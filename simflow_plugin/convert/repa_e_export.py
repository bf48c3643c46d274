"""A diffusers AutoencoderKL as the REPA-E host's weights: `NAME.pt` and `NAME-latents-stats.pt`.

The host has the names and shapes of latent diffusion (LDM), and keeps latents = (raw - bias) * scale in a second file.
Its f8d4 and f16d32 return mean and log-variance, and a fixed variance is a constant log-variance there. Its class also
has a form without (`use_variational=False`), which f16d64 is built with: then the means alone are written.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.autoencoders.architecture import NAMED_ARCHITECTURES
from simflow_plugin.autoencoders.diffusers_config import config_statistics
from simflow_plugin.autoencoders.ldm import diffusers_to_ldm
from simflow_plugin.errors import RunDirectoryError, WeightsError
from simflow_plugin.files import replacing

HOST_NORM_GROUPS = 32


def write_repa_e(network: Any, out: Path) -> None:
    """Write the weights and the statistics of the latents.

    Args:
        network: a diffusers AutoencoderKL; its moments are mean and log-variance.
        out: of the weights, `NAME.pt`; the statistics go beside it.
    Raises:
        WeightsError: if it lacks what every autoencoder of the host has, 1 x 1 convolutions around the latent and norms
            of 32 groups; or, with the shape of f16d64, if its variance depends on the image.
        RunDirectoryError: if a file cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    channels, is_f16d64 = int(network.config.latent_channels), _is_f16d64(network)
    problem = None
    if "quant_conv.weight" not in state:
        problem = (
            "the host's autoencoders have 1 x 1 convolutions around the latent; this one has none "
            "(autoencoder.uses_quant_conv: false)"
        )
    elif network.config.norm_num_groups != HOST_NORM_GROUPS:
        groups = network.config.norm_num_groups
        problem = f"the host's group norms have {HOST_NORM_GROUPS} groups, these {groups}"
    elif is_f16d64 and bool(state["quant_conv.weight"][channels:].any()):
        problem = "f16d64 has no log-variance in the host, but this encoder's variance depends on the image"
    if problem is not None:
        raise WeightsError(f"--out {out}: {problem}. Export to a .safetensors file or a diffusers folder")
    if is_f16d64:
        state |= {name: state[name][:channels] for name in ("quant_conv.weight", "quant_conv.bias")}
    shift, scale = (
        (values.expand(channels) if values.numel() == 1 else values).reshape(1, -1, 1, 1).clone()
        for values in config_statistics(dict(network.config), "the exported autoencoder")
    )
    _save(diffusers_to_ldm(state), out)
    statistics = out.with_name(f"{out.stem}-latents-stats.pt")
    _save({"latents_scale": scale, "latents_bias": shift}, statistics)


def _save(content: dict[str, Tensor], path: Path) -> None:
    """Write a file of torch.save, whose errors look the same for a full disk as for anything else."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path, RunDirectoryError) as part:
        part.write_bytes(buffer.getbuffer())


def _is_f16d64(network: Any) -> bool:
    named = NAMED_ARCHITECTURES["f16d64"]
    is_f16 = len(network.config.block_out_channels) == len(named["widths"])
    return is_f16 and network.config.latent_channels == named["latent_channels"]
