"""An autoencoder's weights in a checkpoint file, whatever they are nested in.

A file may nest the autoencoder in dictionaries (`state_dict`, `vae`) and prefixes (`first_stage_model.`,
`module.`, `network.`). Nested names are joined by dots; the autoencoder is what shares the prefix of
`encoder.conv_in.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from simflow_plugin.autoencoders.ldm import is_ldm, ldm_to_diffusers
from simflow_plugin.errors import WeightsError
from simflow_plugin.weights import listed, read_tensors

ANCHOR = "encoder.conv_in.weight"
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
OWN_PREFIX = "network."
"""Where our own autoencoder keeps diffusers' network."""


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
    """

    source: str
    layout: str
    state: dict[str, Tensor]
    shift: Tensor | None = None
    scale: Tensor | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)


def read_autoencoder(path: Path) -> AutoencoderWeights:
    """Read the autoencoder in a checkpoint file of any known layout.

    Raises:
        WeightsError: if the file cannot be read, or holds no autoencoder, or more than one.
    """
    tensors = read_tensors(path)
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
    if is_ldm(state):
        shift, scale = _repa_e_statistics(path)
        return AutoencoderWeights(str(path), "ldm", ldm_to_diffusers(state), shift, scale)
    if not prefix.endswith(OWN_PREFIX):
        return AutoencoderWeights(str(path), "diffusers", state)
    own = prefix.removesuffix(OWN_PREFIX)
    shift, scale = tensors.get(f"{own}latent_shift"), tensors.get(f"{own}latent_scale")
    start = f"{own}head."
    head = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return AutoencoderWeights(str(path), "simflow", state, shift, scale, head)


def _repa_e_statistics(path: Path) -> tuple[Tensor | None, Tensor | None]:
    """Return (shift, scale) from the `NAME-latents-stats.pt` that the REPA-E host keeps beside `NAME.pt`."""
    beside = path.with_name(f"{path.stem}-latents-stats.pt")
    if not beside.is_file():
        return None, None
    tensors = read_tensors(beside)
    if not {"latents_bias", "latents_scale"} <= set(tensors):
        raise WeightsError(f"{beside}: expected latents_scale and latents_bias, found {listed(tensors)}")
    return tensors["latents_bias"].flatten(), tensors["latents_scale"].flatten()
