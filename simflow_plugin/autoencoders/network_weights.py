"""An autoencoder's weights in a checkpoint file, whatever they are nested in, and the normalisation of its latents.

A file may nest the autoencoder in dictionaries (`state_dict`, `vae`) and prefixes (`first_stage_model.`,
`module.`, `network.`). Nested names are joined by dots; the autoencoder is what shares the prefix of
`encoder.conv_in.weight`.

Shift and scale of the latents are looked for where others keep them: diffusers' `config.json` beside the file, the
`NAME-latents-stats.pt` of the REPA-E host, the `scale_factor` of a latent-diffusion checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from simflow_plugin.autoencoders.diffusers_config import config_beside, config_statistics
from simflow_plugin.autoencoders.ldm import is_ldm, ldm_to_diffusers, with_current_attention
from simflow_plugin.errors import WeightsError
from simflow_plugin.weights import listed, read_tensors

ANCHOR = "encoder.conv_in.weight"
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
OWN_PREFIX = "network."
"""Prefix of diffusers' network in the state of our own autoencoder."""
LDM_SCALE = "scale_factor"
"""latents = raw * scale_factor, in latent-diffusion checkpoints: a buffer, or a number among the arguments."""


@dataclass(frozen=True)
class AutoencoderWeights:
    """An autoencoder's tensors.

    Args:
        source: where they are from, for messages.
        layout: `diffusers`, `ldm` or `simflow`, as found.
        state: tensors by diffusers' names.
        shift: (C,) or scalar, of the raw latents; None if unknown.
        scale: (C,) or scalar: latents = (raw - shift) * scale; None if unknown.
        head: state of the posterior head, in our own layout; empty for most.
        config: diffusers' `config.json` beside the file, or None.
    """

    source: str
    layout: str
    state: dict[str, Tensor]
    shift: Tensor | None = None
    scale: Tensor | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None


def read_autoencoder(path: Path) -> AutoencoderWeights:
    """Read the autoencoder in a checkpoint file of any known layout.

    Raises:
        WeightsError: if the file cannot be read, or holds no autoencoder, or more than one.
    """
    tensors = read_tensors(path, numbers=[LDM_SCALE])
    prefixes = [name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR)]
    # Adversarial training checkpoints carry other encoders as well; an autoencoder has a decoder.
    prefixes = [prefix for prefix in prefixes if f"{prefix}decoder.conv_in.weight" in tensors]
    if len(prefixes) != 1:
        found = (
            f"under {', '.join(repr(p) for p in prefixes)}" if prefixes else f"names like {listed(tensors)}"
        )
        raise WeightsError(
            f"{path}: expected one autoencoder ({ANCHOR} and decoder.conv_in.weight under one prefix), found "
            f"{len(prefixes)}, {found}. Name a file that holds the autoencoder's state dict"
        )
    prefix = prefixes[0]
    state = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(tuple(prefix + part for part in PARTS))
    }
    if is_ldm(state) or not prefix.endswith(OWN_PREFIX):
        config = config_beside(path)
        shift, scale = _foreign_statistics(path, tensors, prefix, config)
        layout = "ldm" if is_ldm(state) else "diffusers"
        plain = ldm_to_diffusers(state) if is_ldm(state) else with_current_attention(state)
        return AutoencoderWeights(str(path), layout, plain, shift, scale, config=config)
    own = prefix.removesuffix(OWN_PREFIX)
    shift, scale = tensors.get(f"{own}latent_shift"), tensors.get(f"{own}latent_scale")
    start = f"{own}head."
    head = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return AutoencoderWeights(str(path), "simflow", state, shift, scale, head)


def _foreign_statistics(
    path: Path, tensors: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return (shift, scale) of the first source that knows them; None where none does."""
    shift, scale = _repa_e_statistics(path)
    if scale is None:
        scale = _ldm_scale(path, tensors, prefix)
    if scale is None and config is not None:
        return config_statistics(config, str(path.with_name("config.json")))
    return shift, scale


def _ldm_scale(path: Path, tensors: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """Return the `scale_factor` of the latent-diffusion model that holds the autoencoder.

    The nearest around the autoencoder counts; else any other in the file (`hyper_parameters`), if they agree.
    """
    found = {name: value for name, value in tensors.items() if name.rpartition(".")[2] == LDM_SCALE}
    around = [name for name in found if prefix.startswith(name.removesuffix(LDM_SCALE))]
    if around:
        return found[max(around, key=len)].flatten()
    values = {tuple(value.flatten().tolist()) for value in found.values()}
    if len(values) > 1:
        raise WeightsError(
            f"{path}: holds more than one {LDM_SCALE}: {listed(found)}. Set the option `scale`"
        )
    return next(iter(found.values())).flatten() if found else None


def _repa_e_statistics(path: Path) -> tuple[Tensor | None, Tensor | None]:
    """Return (shift, scale) from the `NAME-latents-stats.pt` that the REPA-E host keeps beside `NAME.pt`."""
    beside = path.with_name(f"{path.stem}-latents-stats.pt")
    if not beside.is_file():
        return None, None
    tensors = read_tensors(beside)
    if not {"latents_bias", "latents_scale"} <= set(tensors):
        raise WeightsError(f"{beside}: expected latents_scale and latents_bias, found {listed(tensors)}")
    return tensors["latents_bias"].flatten(), tensors["latents_scale"].flatten()
