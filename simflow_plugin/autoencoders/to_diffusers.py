"""Our autoencoder as a plain diffusers AutoencoderKL, for code that knows nothing of us.

diffusers' encoder returns C means and C log-variances. Ours returns what the posterior head reads, and the head gives
the linear map from that to those 2 C moments; it is folded into the last convolution of the encoder. For a fixed
variance that is a convolution with weights 0 and bias 2 log sigma. The latents' normalisation becomes
`scaling_factor` and `shift_factor`, or `latents_mean` and `latents_std` by channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.autoencoders.network import Architecture, moments_prefix
from simflow_plugin.contracts import MomentsMap


@torch.no_grad()
def to_diffusers(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    moments: MomentsMap,
    shift: Tensor,
    scale: Tensor,
) -> Any:
    """Return a diffusers AutoencoderKL on the CPU that encodes and decodes as ours does.

    Its `encode(images).latent_dist` is the posterior before normalisation.

    Args:
        architecture: of the network.
        weights: of the network, by diffusers' names.
        moments: from the outputs of its encoder to diffusers'.
        shift: (C,), of the raw latents.
        scale: (C,), > 0.
    """
    state = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    prefix = moments_prefix(state)
    last, offset = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
    weight = moments.weight.to(last)
    state[f"{prefix}.weight"] = torch.einsum("om,mikl->oikl", weight, last)
    state[f"{prefix}.bias"] = weight @ offset + moments.bias.to(offset)
    network = architecture.build(2 * architecture.latent_channels)
    network.load_state_dict(state)
    network.register_to_config(**_normalization(shift.tolist(), scale.tolist()))
    return network.eval()


def _normalization(shift: list[float], scale: list[float]) -> dict[str, Any]:
    if len(set(shift)) == len(set(scale)) == 1:
        return {"scaling_factor": scale[0], "shift_factor": shift[0] if shift[0] else None}
    return {"scaling_factor": 1.0, "latents_mean": shift, "latents_std": [1 / value for value in scale]}
