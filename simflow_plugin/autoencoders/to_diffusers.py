"""Our autoencoder as a plain diffusers AutoencoderKL, for code that knows nothing of us.

A fixed-variance encoder returns C means; diffusers' one returns C means and C log-variances. The export gets the
missing outputs as a convolution with weights 0 and bias 2 log sigma, so that diffusers' posterior is ours. The
latents' normalisation becomes `scaling_factor` and `shift_factor`, or `latents_mean` and `latents_std` by channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.autoencoders.network import moments_prefix
from simflow_plugin.errors import WeightsError
from simflow_plugin.posteriors.heads import (
    FixedVarianceHead,
    FixedVarianceLayerNormHead,
    LearnedVarianceHead,
)


@torch.no_grad()
def to_diffusers(autoencoder: KLAutoencoder) -> Any:
    """Return a diffusers AutoencoderKL on the CPU that encodes and decodes as `autoencoder` does.

    Its `encode(images).latent_dist` is the posterior before normalisation.

    Args:
        autoencoder: is not changed.
    Raises:
        WeightsError: if the posterior cannot be said as diffusers' (mean, log-variance): layer norm on the mean, or
            noise on top of a learnable variance.
    """
    head = autoencoder.head
    if isinstance(head, FixedVarianceLayerNormHead):
        raise WeightsError(
            "posterior.kind `fixed_layernorm`: diffusers' AutoencoderKL has no layer norm on the mean. Export to a "
            ".safetensors file."
        )
    if isinstance(head, LearnedVarianceHead) and head.noise_std > 0:
        raise WeightsError(
            f"posterior.noise_std {head.noise_std:g}: diffusers' AutoencoderKL has no noise on top of its posterior. "
            "Export to a .safetensors file."
        )
    state = {name: tensor.detach().cpu() for name, tensor in autoencoder.network.state_dict().items()}
    if isinstance(head, FixedVarianceHead):
        _append_log_variance(state, 2 * head.std.flatten().cpu().log())
    network = autoencoder.architecture.build(2 * autoencoder.latent_channels)
    network.load_state_dict(state)
    network.register_to_config(**_normalization(autoencoder))
    return network.eval()


def _append_log_variance(state: dict[str, Tensor], log_variance: Tensor) -> None:
    """Append C outputs that are `log_variance` (C,) for every input."""
    prefix = moments_prefix(state)
    weight, bias = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
    state[f"{prefix}.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    state[f"{prefix}.bias"] = torch.cat([bias, log_variance.to(bias)])


def _normalization(autoencoder: KLAutoencoder) -> dict[str, Any]:
    shift, scale = autoencoder.latent_shift.flatten().tolist(), autoencoder.latent_scale.flatten().tolist()
    if len(set(shift)) == len(set(scale)) == 1:
        return {"scaling_factor": scale[0], "shift_factor": shift[0] if shift[0] else None}
    return {"scaling_factor": 1.0, "latents_mean": shift, "latents_std": [1 / value for value in scale]}
